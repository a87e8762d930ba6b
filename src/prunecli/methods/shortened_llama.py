"""Shortened LLaMA: layers whose weights the loss would miss least (Kim et al. 2024, 2402.02834).

    score[l] = sum over all weights w of layer l of |w * dL/dw|        norms included

L is the mean loss over the calibration tokens: the gradient is summed before the absolute value.
The lowest go, one-shot, anywhere but among the first four and the last two layers (`--protect`),
the official code's "plus" heuristic. Where more should go than is left, that code silently drops
the last of what it built; here it is an error.
"""

from typing import TYPE_CHECKING, Any

from prunecli.methods._base import Method, Option, RequiredStatistic, layers_of

if TYPE_CHECKING:
    import torch


def score_layers(
    stats: "dict[str, torch.Tensor]", options: dict[str, Any]
) -> "dict[str, torch.Tensor]":
    """Return `layers` [L], infinite for the protected; `stats` has `taylor.i` [1] of layer i."""
    import torch

    scores = torch.cat([stats[f"taylor.{i}"] for i in range(len(stats))])
    first, last = layers_of(options["protect"])
    scores[:first] = torch.inf
    scores[len(scores) - last :] = torch.inf
    return {"layers": scores}


METHOD = Method(
    name="shortened-llama",
    title="Shortened LLaMA (Taylor)",
    reference="arXiv 2402.02834",
    unit="layers",
    granularity="layers",
    axes=("layers",),
    needs=(RequiredStatistic("taylor", ("block",)),),
    selection="lowest",
    options=(
        Option(
            "protect",
            str,
            "4,2",
            "number of first and of last layers that are not pruned",
            metavar="FIRST,LAST",
        ),
    ),
    protects=lambda options: layers_of(options["protect"]),
    recipes={
        "official": {
            "source": "hf:bookcorpus/bookcorpus:train:text",
            "sampler": "docs",
            "nsamples": 10,
            "seq_len": 128,
            "seed": 1234,
        },
    },
    score_layers=score_layers,
)
