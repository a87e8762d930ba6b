"""Biases that go with a plan: removed channels are replaced by what they gave on average.

FLAP (arXiv 2312.11983): b = sum_j mean(X[:, j]) * W[:, j] over the removed inputs j of the
projections out of the heads and out of the FFN, added to a bias that is there already.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from prunecli.arch import BIASED, Arch
from prunecli.io.checkpoint import Reader
from prunecli.plan import Plan

if TYPE_CHECKING:
    import torch


def bias(
    name: str,
    checkpoint: Reader,
    plan: Plan,
    child: Arch,
    means: "Mapping[str, torch.Tensor]",
) -> "torch.Tensor":
    """Return the child's bias `name`, in fp64: compensated, or zeros where nothing went.

    `means` holds `model.layers.i.MODULE:in.mean` of the parent's layers, [I].
    """
    import torch

    arch, tensor = checkpoint.arch, child.tensors()[name]
    layer = tensor.layer
    assert layer is not None, "only layers have compensated biases"
    module = next((m for m in BIASED if f".{m}." in name), None)
    if module is None:
        return torch.zeros(tensor.shape, dtype=torch.float64)
    source = f"model.layers.{plan.kept_layers(arch)[layer]}.{module}"
    weight_OI = checkpoint.tensor(f"{source}.weight")
    removed = torch.ones(weight_OI.shape[1], dtype=torch.bool)
    removed[_kept_inputs(module, layer, plan, arch)] = False
    bias_O = weight_OI[:, removed].double() @ means[f"{source}:in.mean"].double()[removed]
    if f"{source}.bias" in checkpoint.specs:
        bias_O += checkpoint.tensor(f"{source}.bias").double()
    return bias_O


def _kept_inputs(module: str, layer: int, plan: Plan, arch: Arch) -> list[int]:
    if module == "mlp.down_proj":
        return list(plan.kept_ffn(arch, layer))
    heads = plan.kept_heads(arch, layer)
    return [head * arch.head_dim + j for head in heads for j in range(arch.head_dim)]
