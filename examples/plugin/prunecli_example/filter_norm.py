"""Filter norm: heads and FFN channels by the norm of their weights (Li et al. 2017, 1608.08710).

    c[j] = ||W[:, j]||_p     W the projection out of the heads or the FFN; p is 1 or 2

A KV group is worth the sum over the channels of its query heads.
"""

from typing import TYPE_CHECKING, Any

from prunecli.methods import LayerView, Method, Option

if TYPE_CHECKING:
    import torch


def score(layer: LayerView, options: dict[str, Any]) -> "dict[str, torch.Tensor]":
    """Return `kv_heads` [K] and `ffn` [F]."""
    order = int(options["norm"])
    heads, ffn = (layer.weights[point].double().norm(order, dim=0) for point in ("o", "down"))
    return {"kv_heads": heads.view(layer.kv_heads, -1).sum(1), "ffn": ffn}


METHOD = Method(
    name="filter-norm",
    title="Filter norm",
    reference="arXiv 1608.08710",
    unit="channels",
    granularity="KV groups + FFN channels",
    axes=("heads", "ffn"),
    options=(Option("norm", str, "1", "which norm: 1 or 2", choices=("1", "2")),),
    score=score,
)
