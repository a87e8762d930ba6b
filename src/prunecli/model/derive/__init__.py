"""A family's record, derived from transformers' own class of a `model_type`.

What a dimension means shows in how it changes: tiny models are built on the meta device, each with
one size of config.json changed. Which linears read the same, what comes last and what a norm
computes shows in a forward of a tiny random model. The record is a proposal, until it has been
tried (pruning/probe.py).

    draft      the record in the making, and its text
    shrunk     config.json of a tiny model of the kind
    mixtures   its experts, and what files call the linears of one
    forward    what the parts of a tiny model took and gave
    tables     its tensors and their axes
    kinds      which list tells of which kinds layers are, and sizes of a family's own
    defaults   what config.json means where it lacks keys
    saved      by what names its tensors are saved
    record     all of these, in order
"""

from prunecli.model.derive.draft import BY_HAND, LONGEST, Draft, Indescribable
from prunecli.model.derive.mixtures import unstacked
from prunecli.model.derive.record import drafted, language_model, quietly
from prunecli.model.derive.saved import save

__all__ = [
    "BY_HAND",
    "LONGEST",
    "Draft",
    "Indescribable",
    "drafted",
    "language_model",
    "quietly",
    "save",
    "unstacked",
]
