"""Wanda-sp: Wanda's score summed up to heads and FFN channels (An et al. 2024, 2312.11983).

    c[j] = mean_i |W[i, j]| * ||X[:, j]||_2     W the projection out of the heads or the FFN

A KV group with its query heads is worth the sum over its channels. Sequential: both statistics
of a layer come from the unpruned layer on inputs that pruned layers made.

The official code takes one ratio of heads and of FFN channels. Here a ratio means FLAP's default
shape; give `--heads` and `--ffn` for that one, with `--recipe official` too.
"""

from typing import TYPE_CHECKING, Any

from prunecli.methods._base import LayerView, Method, RequiredStatistic
from prunecli.methods._sums import of_inputs

if TYPE_CHECKING:
    import torch


def score(layer: LayerView, options: dict[str, Any]) -> "dict[str, torch.Tensor]":
    """Return `kv_heads` [K] and `ffn` [F]."""
    import torch

    def channels(point: str) -> "torch.Tensor":
        weight = layer.weights[point]
        mean = of_inputs(weight, torch.abs) / len(weight)
        return mean * layer.stats[f"{point}.feature_norm"].sqrt()

    found = {point: channels(point) for point in layer.weights}
    scores = {"kv_heads": found["o"].view(layer.kv_heads, -1).sum(1)} if "o" in found else {}
    return {**scores, **({"ffn": found["down"]} if "down" in found else {})}


METHOD = Method(
    name="wanda-sp",
    title="Wanda-sp",
    reference="arXiv 2312.11983",
    unit="channels",
    granularity="KV groups + FFN channels",
    axes=("heads", "ffn"),
    needs=(RequiredStatistic("feature_norm", ("o", "down")),),
    sequential=True,
    recipes={
        "official": {"source": "c4", "sampler": "docs", "nsamples": 128, "seq_len": 128},
    },
    score=score,
)
