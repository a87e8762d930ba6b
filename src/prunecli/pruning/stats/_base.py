"""`Collector`: what listens at one point of one layer."""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class Collector(Protocol):
    """Sees batches of whole sequences, keeps a state that can be merged, yields named tensors.

    `observe` gets [B, T, I] in the compute type: at an input point that input, at `block` the
    layer's input and output. States are float32 or better.

    Attributes:
        yields: the names of what `result` returns.
    """

    yields: tuple[str, ...]

    def observe(self, *tensors: "torch.Tensor") -> None:
        """Take one batch into the state."""

    def result(self) -> "dict[str, torch.Tensor]":
        """Return the statistics of everything seen so far."""


def at_least_float32(tensor: "torch.Tensor") -> "torch.Tensor":
    """Return `tensor` in float32, or as it is if it is wider."""
    import torch

    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
