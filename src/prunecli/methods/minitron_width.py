"""Minitron-width: hidden and FFN channels by the size of their activations (2407.14679).

    hidden[j] = sum_layers sum_norms sum_tokens X[t, j]^2     X: what attention and FFN read
    ffn[l, j] = sum_tokens X[t, j]^2                          X: the input of down_proj

This is the L2 norm over tokens of the paper's eq. (4) as its code takes it: at the outputs of the
layer norms, not at the block outputs that the text names (`--hidden-score block-out`). `nvidia`
is ModelOpt's aggregation on (tokens, batch): mean |x| over the sequence, L2 over sequences, the
norms summed over layers. Heads stay; norm gains are cut, not rescaled.
"""

from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

from prunecli.methods._base import LayerView, Method, Option, RequiredStatistic

if TYPE_CHECKING:
    import torch


def score(layer: LayerView, options: dict[str, Any]) -> "dict[str, torch.Tensor]":
    """Return this layer's share of `hidden` [D], and `ffn` [F]."""
    stats = layer.stats
    # a layer of some models has one sublayer
    sublayers = [point for point in ("q", "gate") if f"{point}.sumsq" in stats]
    hidden = {
        "ln-out": lambda: reduce(add, (stats[f"{point}.sumsq"] for point in sublayers)),
        "block-out": lambda: stats["block.sumsq"],
        "nvidia": lambda: reduce(add, (stats[f"{point}.absmean"].sqrt() for point in sublayers)),
    }
    ffn = {"l2": lambda: stats["down.sumsq"], "nvidia": lambda: stats["down.absmean"].sqrt()}
    scores = {"hidden": hidden[options["hidden_score"]]()}
    if "down.sumsq" in stats:
        scores["ffn"] = ffn[options["mlp_score"]]()
    return scores


PAPER = {"source": "wikitext103", "sampler": "concat-contiguous", "nsamples": 1024, "seq_len": 8192}
METHOD = Method(
    name="minitron-width",
    title="Minitron-width",
    reference="arXiv 2407.14679",
    unit="channels",
    granularity="hidden + FFN channels",
    axes=("hidden", "ffn"),
    needs=(
        RequiredStatistic("moments", ("q", "gate", "down", "block")),
        RequiredStatistic("absmean", ("q", "gate", "down")),
    ),
    options=(
        Option(
            "hidden_score",
            str,
            "ln-out",
            "rank hidden channels by layer norm outputs (ln-out) or block outputs (block-out), "
            "or as NVIDIA's implementation does",
            choices=("ln-out", "block-out", "nvidia"),
            idle=lambda beside: "the hidden size stays" if beside.keeps("hidden") else "",
        ),
        Option(
            "mlp_score",
            str,
            "l2",
            "rank FFN channels by the l2 norm of their activations, or as NVIDIA's "
            "implementation does",
            choices=("l2", "nvidia"),
            idle=lambda beside: "the FFN size stays" if beside.keeps("ffn") else "",
        ),
    ),
    recipes={"paper": PAPER, "official": PAPER},
    score=score,
)
