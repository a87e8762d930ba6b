"""`Statistic`, the record of one, and `Collector`, which is hooked to one point of a layer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from prunecli.files.tensorfile import Spec, spec_of
from prunecli.model.arch import Arch
from prunecli.ranks import Ranks

if TYPE_CHECKING:
    import torch

# what a statistic is made of
INPUTS = "inputs"  # batches that enter one point of a layer, or enter and leave it
GRADIENTS = "gradients"  # a layer's weights and their gradients
PROBE = 3  # channels of a point that is tried; no other length of a shape is this one
MODEL = "model"  # the model as a whole: its losses, its residual stream


class Collector(Protocol):
    """Sees batches of whole sequences, keeps a state that can be summed, yields named tensors.

    `update` gets [B, T, I] in the compute type: at an input point that input, at `block` the
    layer's input and output, at `experts` in float32 the weight of each expert's output and its
    norm [B, T, E], 0 where a token is not sent there. States are float32 or better.

    Attributes:
        names: the names of what `compute` returns.
    """

    names: tuple[str, ...]

    def update(self, *tensors: "torch.Tensor") -> None:
        """Take one batch into the state."""

    def reduce(self, ranks: Ranks) -> None:
        """Take in what the collectors of other processes have seen."""

    def compute(self) -> "dict[str, torch.Tensor]":
        """Return the statistics of everything seen so far."""


@dataclass(frozen=True)
class Statistic:
    """One statistic; its name is its file's.

    Attributes:
        scope: what it is made of.
        make: of `inputs`: makes a Collector. Of `gradients`: from the WeightGradients of one layer,
            the Arch and that layer's number to named tensors. Of the `model`: from a LayerStream,
            ids [N, T] and a number of layers to remove to one tensor.
        shapes: name -> shape of what it leaves in a file, all float64: for this layer, or for the
            model, with so many layers to remove. Empty for `inputs`, which have what they observe.
        depends_on_amount: how many layers are to be removed must be known to make it.
        ordered: every sequence is read in the light of those before it, so that processes cannot
            divide them.
        passes: of the `model`: how often it runs all layers, with so many layers to remove.
    """

    scope: str
    make: Callable[..., Any]
    shapes: Callable[[Arch, int], Mapping[str, tuple[int, ...]]] = lambda arch, number: {}
    depends_on_amount: bool = False
    ordered: bool = False
    passes: Callable[[Arch, int], float] = lambda arch, count: 1.0

    def parts(self, arch: Arch) -> list[str]:
        """Return the beginnings of the names that a file with this statistic has at a point."""
        if self.scope == INPUTS:
            return list(self.make().names)
        # with another number of layers to remove it is another tensor of the same name
        return [name.partition(".")[0] if self.depends_on_amount else name
                for name in self.shapes(arch, 0)]  # fmt: skip

    def observed(self, width: int, dtype: "torch.dtype | None" = None) -> Mapping[str, Spec]:
        """Return what is made of `inputs` of a type at a point of so many channels."""
        import torch

        collector: Collector = self.make()
        collector.update(*[torch.zeros(1, 2, PROBE, dtype=dtype)] * 2)
        probed = {name: spec_of(tensor) for name, tensor in collector.compute().items()}
        return {
            name: Spec(of.dtype, tuple(width if n == PROBE else n for n in of.shape))
            for name, of in probed.items()
        }

    def specs(self, arch: Arch, point: str, number: int) -> dict[str, Spec]:
        """Return what it leaves in a file, for the layer of a `point` or, without one, the model.

        `number` is that of the layer, or that of the layers to remove. Of `inputs` it is what is
        `observed`.
        """
        shapes = self.shapes(arch, number).items()
        return {f"{point}.{name}" if point else name: Spec("F64", shape) for name, shape in shapes}


def at_least_float32(tensor: "torch.Tensor") -> "torch.Tensor":
    """Return `tensor` in float32, or as it is if it is wider."""
    import torch

    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
