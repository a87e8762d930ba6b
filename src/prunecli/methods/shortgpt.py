"""ShortGPT: layers that barely turn the residual stream go (Men et al. 2024, arXiv 2403.03853).

    BI[l] = 1 - mean_t cos(x[l, t], x[l+1, t])        x[l] the input of layer l, x[l+1] its output

The lowest go, anywhere in the model, none protected. Of equal scores the later layer goes first,
as in the fork of the paper, whose bf16 cosines swap close ranks: ours are fp32.
"""

from typing import TYPE_CHECKING, Any

from prunecli.methods._base import Method, RequiredStatistic

if TYPE_CHECKING:
    import torch


def score_layers(
    stats: "dict[str, torch.Tensor]", options: dict[str, Any]
) -> "dict[str, torch.Tensor]":
    """Return `layers` [L], the block influence; `stats` has `block_influence.i` [1] of layer i."""
    import torch

    return {"layers": torch.cat([stats[f"block_influence.{i}"] for i in range(len(stats))])}


METHOD = Method(
    name="shortgpt",
    title="ShortGPT",
    reference="arXiv 2403.03853",
    unit="layers",
    granularity="layers",
    axes=("layers",),
    needs=(RequiredStatistic("block_influence", ("block",)),),
    selection="lowest",
    recipes={
        "official": {
            "source": "wikitext103",
            "sampler": "concat-contiguous",
            "nsamples": 1024,
            "seq_len": 8192,
        },
    },
    score_layers=score_layers,
)
