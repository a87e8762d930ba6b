"""Minitron-depth: the contiguous block of layers that is missed least (arXiv 2407.14679, eq. 3).

    argmin_i  loss(model without layers i .. i+k-1) - loss(model)       i = 0 .. L-k

Every start is tried, the first and the last included; the first minimum wins ties. The official
code compares |delta perplexity| of bf16 logits; the order is the same wherever removing hurts.
"""

from typing import TYPE_CHECKING, Any

from prunecli.methods._base import Method, RequiredStatistic

if TYPE_CHECKING:
    import torch


def score_layers(
    stats: "dict[str, torch.Tensor]", options: dict[str, Any]
) -> "dict[str, torch.Tensor]":
    """Return `blocks.k` [L-k+1]: the loss, in nats per token, without the block that starts there.

    `stats` holds the same vector as `skip_loss.k`.
    """
    return {
        name.replace("skip_loss", "blocks"): losses
        for name, losses in stats.items()
        if name.startswith("skip_loss.")
    }


PAPER = {"source": "wikitext103", "sampler": "concat-contiguous", "nsamples": 1024, "seq_len": 8192}
METHOD = Method(
    name="minitron-depth",
    title="Minitron-depth",
    reference="arXiv 2407.14679",
    unit="layers",
    granularity="layers",
    axes=("layers",),
    needs=(RequiredStatistic("skip_loss", ("model",)),),
    selection="block",
    recipes={"paper": PAPER, "official": PAPER},
    score_layers=score_layers,
)
