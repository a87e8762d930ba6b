"""SliceGPT with one rotation for the whole model: not the original (Ashkboos et al., 2401.15024).

    C = sum over norms' inputs and tokens of x x^T, x of unit RMS;    C = Q diag(e) Q^T
    score[j] = e[j], greatest first; the residual stream is rotated by Q, and its last channels go

The original has a rotation of its own at every residual point, computed on the already sliced
model, and a matrix in every shortcut to go from one to the next; no stock architecture holds those.
With one Q shortcuts stay the identity and a plain Llama remains: norm gains are folded into what
reads them (so that a tied output head has to be untied), and the gains of what is left make up for
the narrower mean. Less is kept of each point than by a rotation of its own; figures of this variant
are not SliceGPT's.
"""

from typing import TYPE_CHECKING, Any

from prunecli.methods._base import Method, RequiredStatistic

if TYPE_CHECKING:
    import torch


def score_layers(
    stats: "dict[str, torch.Tensor]", options: dict[str, Any]
) -> "dict[str, torch.Tensor]":
    """Return `hidden` [D], eigenvalues from the greatest, and `rotation` [D, D], their vectors."""
    import torch

    values, vectors = torch.linalg.eigh(stats["residual_gram"].double())
    values, vectors = values.flip(0), vectors.flip(1)
    # a vector's sign is arbitrary: its greatest entry is positive
    greatest = vectors.abs().argmax(0, keepdim=True)
    return {"hidden": values, "rotation": vectors * vectors.gather(0, greatest).sign()}


METHOD = Method(
    name="slicegpt-global",
    title="SliceGPT with one global rotation",
    reference="arXiv 2401.15024",
    unit="channels",
    granularity="hidden channels",
    axes=("hidden",),
    needs=(RequiredStatistic("residual_gram", ("model",)),),
    rotates=True,
    recipes={
        "official": {
            "source": "wikitext2",
            "sampler": "concat-random",
            "nsamples": 128,
            "seq_len": 2048,
            "seed": 42,
        },
    },
    score_layers=score_layers,
)
