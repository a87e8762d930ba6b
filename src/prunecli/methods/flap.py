"""FLAP: channels that fluctuate little can be replaced by their mean (An et al. 2024, 2312.11983).

    m[j] = Var(X[:, j]) * sum_i W[i, j]^2                              (eq. 5, "WIFV")

with W the projection out of the heads (o) or out of the FFN (down). The official code squares m
for the heads, and so do we. What a removed channel gave on average goes into a bias:
b = sum_j mean(X[:, j]) * W[:, j] over the removed j.

A unit of the heads is a KV group (one KV head and its query heads: the only reading under
grouped-query attention that fits the paper's Tables 1 and 6). `UL` structures rank within a layer
and sum a group; `AL` structures rank across all layers after standardising each (z-scores with
the unbiased deviation) and average a group. `UM` gives heads and FFN the same ratio, `MM` a
number of its own to each, `AM` one ranking for both, a group weighing as many FFN channels as
its parameters would buy.

`--compat official` takes the official code's estimate of the variance, where old and new mean are
the same tensor (`fluctuation`).
"""

from typing import TYPE_CHECKING, Any

from prunecli.methods._base import LayerView, Method, Option, RequiredStatistic, Setting
from prunecli.methods._sums import of_inputs

if TYPE_CHECKING:
    import torch


def score(layer: LayerView, options: dict[str, Any]) -> "dict[str, torch.Tensor]":
    """Return `kv_heads` [K] and `ffn` [F]: sums (UL) or means of z-scores (AL)."""
    import torch

    def channels(point: str) -> "torch.Tensor":
        stats = {name: layer.stats.get(f"{point}.{name}") for name in ("var", "fluctuation")}
        spread = stats["fluctuation"] if options["compat"] else stats["var"]
        weight = layer.weights[point]
        if options["metric"] == "WIFN":
            mean = of_inputs(weight, torch.abs) / len(weight)
            return mean * layer.stats[f"{point}.sumsq"].sqrt()
        assert spread is not None
        return spread if options["metric"] == "IFV" else spread * of_inputs(weight, torch.square)

    found = {point: channels(point) for point in layer.weights}
    if "o" in found:
        found["o"] = found["o"].square()
    within = options["structure"].startswith("UL")
    if not within:
        found = {point: _standardized(x) for point, x in found.items()}
    scores = {}
    if "o" in found:
        groups = found["o"].view(layer.kv_heads, -1)
        scores["kv_heads"] = groups.sum(1) if within else groups.mean(1)
    return {**scores, **({"ffn": found["down"]} if "down" in found else {})}


def _standardized(scores: "torch.Tensor") -> "torch.Tensor":
    """Return z-scores; zeros where all scores are equal, as of a layer that adds nothing."""
    spread = scores.std()
    centred = scores - scores.mean()
    return centred / spread if bool(spread > 0) else centred.zero_()


def _no_structure(beside: Setting) -> str:
    if beside.options["structure"] == "UL-UM" and not beside.of_ratio:
        return "it says what a ratio means, and sizes were given"
    return ""


def _quirks(beside: Setting) -> str:
    return "--metric WIFN reads no variance" if beside.options["metric"] == "WIFN" else ""


METHOD = Method(
    name="flap",
    title="FLAP",
    reference="arXiv 2312.11983",
    unit="channels",
    granularity="KV groups + FFN channels",
    axes=("heads", "ffn"),
    needs=(
        RequiredStatistic("moments", ("o", "down")),
        RequiredStatistic("fluctuation", ("o", "down"), compat=True),
    ),
    options=(
        Option(
            "structure",
            str,
            "UL-MM",
            "rank within each layer (UL) or across layers (AL); heads and FFN get the same ratio "
            "(UM), separate counts (MM), or one joint ranking (AM)",
            choices=("UL-UM", "UL-MM", "AL-MM", "AL-AM"),
            idle=_no_structure,
        ),
        Option(
            "metric",
            str,
            "WIFV",
            "rank channels by variance times squared weight norm (WIFV), variance alone (IFV), or "
            "the metric of Wanda-sp (WIFN)",
            choices=("WIFV", "IFV", "WIFN"),
        ),
        Option(
            "bias",
            str,
            "keep",
            "compensate removed channels by adding their mean output as a bias, or not",
            choices=("keep", "drop"),
            stage="prune",
        ),
    ),
    recipes={
        "paper": {"source": "c4", "sampler": "docs", "nsamples": 128, "seq_len": 8192},
        "official": {
            "source": "wikitext2",
            "sampler": "concat-random",
            "nsamples": 1024,
            "seq_len": 128,
            "structure": "AL-AM",
        },
    },
    quirks=_quirks,
    score=score,
    compensates=True,
)
