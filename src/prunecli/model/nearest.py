"""What a model type that no family reads has in common with those that one does.

Its layers are those of the class that transformers builds by default, on the meta device.
"""

import re
from collections.abc import Sequence

from prunecli.model.families import registry
from prunecli.model.families._base import Family

LAYERS = 4  # of a few kinds, as many as are looked at
SHOWN = 3  # names of tensors of each sort in a message
LAYER = re.compile(r".*?\.(?:layers|h|blocks)\.\d+\.(.*)")


def described(model_type: str) -> str:
    """Return the nearest family and what differs, as the end of a message; empty if not known.

    `model_type` is looked up in transformers, and its default config is built. No weights are made.
    """
    own = _layer_tensors(model_type)
    if not own:
        return ""
    families = [registry.get(name) for name in registry.names()]
    family = min(families, key=lambda one: len(own ^ _described(one, own)))
    theirs = _described(family, own)
    parts = [("has also", own - theirs), ("lacks", theirs - own)]
    told = [f"{what} {_listed(sorted(names))}" for what, names in parts if names]
    differs = " and ".join(told) or "has the same tensors, and may compute something else"
    return (
        f"; nearest is '{family.name}', from which it differs: its layer {differs}; "
        "`prunecli families --probe DIR` tries to describe it"
    )


def _layer_tensors(model_type: str) -> set[str]:
    """Return the names of the tensors of a layer, of any of its kinds."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.for_model(model_type)
        config.num_hidden_layers = LAYERS
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:LAYERS]
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception:  # types it knows not, and default configs that cannot be built or cut
        return set()
    return {match[1] for name in model.state_dict() if (match := LAYER.fullmatch(name))}


def _described(family: Family, own: set[str]) -> set[str]:
    """Return the names that a family has in a layer: of those with a flag what `own` has."""
    if family.experts is not None:  # transformers stacks what files have one by one
        return _layer_tensors(family.model_types[0])
    tables = (*family.biases.values(), *family.optional.values())
    flagged = {name.removeprefix(family.layer) for table in tables for name in table}
    always = {
        name.removeprefix(family.layer) for name in family.tensors if name.startswith(family.layer)
    }
    return always | (flagged & own)


def _listed(names: Sequence[str]) -> str:
    short = [name.removesuffix(".weight") for name in names[:SHOWN]]
    rest = len(names) - len(short)
    return ", ".join(short) + (f" and {rest} more" if rest else "")
