"""SLEB: the layer that is missed least goes, again and again (Song et al. 2024, arXiv 2402.09025).

    repeat k times:   drop  argmin_l  loss(model without the layers dropped so far and without l)

The first and the last layer always stay, as in the official code. Of equal losses the earlier layer
goes first. One removal is tried with all earlier ones in place, which is what tells it from
one-shot scores: about L k losses, half as many layer runs by sharing prefixes.
"""

from typing import TYPE_CHECKING, Any

from prunecli.methods._base import Method, RequiredStatistic

if TYPE_CHECKING:
    import torch


def score_layers(
    stats: "dict[str, torch.Tensor]", options: dict[str, Any]
) -> "dict[str, torch.Tensor]":
    """Return `layers` [L]: the round in which a layer went, infinite for those that stay.

    `stats` holds the same vector as `greedy_skip.k`.
    """
    (rounds,) = (value for name, value in stats.items() if name.startswith("greedy_skip."))
    return {"layers": rounds}


METHOD = Method(
    name="sleb",
    title="SLEB",
    reference="arXiv 2402.09025",
    unit="layers",
    granularity="layers",
    axes=("layers",),
    needs=(RequiredStatistic("greedy_skip", ("model",)),),
    selection="lowest",
    protects=lambda options: (1, 1),
    recipes={
        # the official code takes 128 rows of WikiText-2, which make a handful of windows
        "official": {
            "source": "wikitext2",
            "sampler": "concat-contiguous",
            "nsamples": 8,
            "seq_len": 2048,
        },
    },
    score_layers=score_layers,
)
