"""LLM-Pruner: KV groups and FFN channels that the loss would miss least (Ma et al., 2305.11627).

With g = dL/dw of the mean loss, F the mean over sequences of squared gradients, and every row or
column w of a channel (q, k, v and o of a head; gate, up and down of an FFN channel):

    element1   sum |w g|                      vector   sum over rows and columns of |sum w g|
    element2   sum |w^2 F|                    mix      sum |w g - w^2 F / 2|      (eq. 5, Table 3)

A group is worth the sum over its channels. Under grouped-query attention that is one KV head and
the g query heads that read it, which lie side by side. `--compat official` adds up query heads
j, j + K, j + 2 K, .. for group j of K, as the official code does: heads of other groups.

The official code also leaves the first four and the last two layers as they are (`--protect
4,2`), which makes layers of unequal sizes: written padded, as FLAP's ragged plans are. Equal
layers are the default.
"""

from typing import TYPE_CHECKING, Any

from prunecli.methods._base import LayerView, Method, Option, RequiredStatistic, Setting, layers_of

if TYPE_CHECKING:
    import torch


def score(layer: LayerView, options: dict[str, Any]) -> "dict[str, torch.Tensor]":
    """Return `kv_heads` [K] and `ffn` [F]."""
    heads, kv_heads, ffn = (
        layer.stats[f"block.{axis}.{options['taylor']}"] for axis in ("heads", "kv_heads", "ffn")
    )
    groups = layer.kv_heads
    if options["compat"]:
        heads = heads.view(-1, len(kv_heads)).sum(0)
    return {
        "kv_heads": heads.view(groups, -1).sum(1) + kv_heads.view(groups, -1).sum(1),
        "ffn": ffn,
    }


def _quirks(beside: Setting) -> str:
    if beside.group == 1:
        return "it is about query heads that share a KV head, and here none do"
    return "it is about heads, and none go" if beside.keeps("kv_heads") else ""


METHOD = Method(
    name="llm-pruner",
    title="LLM-Pruner",
    reference="arXiv 2305.11627",
    unit="channels",
    granularity="KV groups + FFN channels",
    axes=("heads", "ffn"),
    needs=(RequiredStatistic("taylor_channels", ("block",)),),
    options=(
        Option(
            "taylor",
            str,
            "element1",
            "Taylor expansion: first order of single weights (element1), second order (element2), "
            "both (mix), or first order of whole rows and columns (vector)",
            choices=("element1", "element2", "mix", "vector"),
        ),
        Option(
            "protect",
            str,
            "0,0",
            "number of first and of last layers that are not pruned",
            metavar="FIRST,LAST",
            stage="prune",
        ),
    ),
    protects=lambda options: layers_of(options["protect"]),
    recipes={
        "official": {
            "source": "hf:bookcorpus/bookcorpus:train:text",
            "sampler": "docs",
            "nsamples": 10,
            "seq_len": 64,
            "seed": 42,
            "protect": "4,2",
        },
    },
    quirks=_quirks,
    score=score,
)
