"""Rotate the residual stream of a model: the same function in other coordinates.

RMS norms without gains do not see a rotation Q. So gains go into what reads them, embeddings and
all that writes into the stream are multiplied by Q, all that reads it by Q^T; the output head,
which takes the last norm's gains, cannot be the embedding any more.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prunecli.files.tensorfile import Spec, spans, torch_dtype
from prunecli.model.arch import Arch
from prunecli.model.checkpoint import Reader

if TYPE_CHECKING:
    import torch


def untied(arch: Arch) -> Arch:
    """Return a model's shape with an output head of its own."""
    return Arch({**arch.config, "tie_word_embeddings": False})


class Rotated(Reader):
    """A model in rotated coordinates, made so that the first `width` channels can be cut out.

    A norm over fewer channels divides by a smaller mean: gains of sqrt(D / width), with an epsilon
    as much greater, give what a norm over all D gives where the others are zero.
    """

    def __init__(self, source: Reader, rotation: "torch.Tensor", width: int) -> None:
        self.source, self.rotation = source, rotation.double()
        shape = untied(source.arch)
        self.widened = shape.hidden / width
        key = shape.family.key("rms_norm_eps")
        epsilon = float(shape.get(key)) * self.widened
        self.arch = Arch({**shape.config, key: epsilon})
        self._tensors, family = self.arch.tensors(), self.arch.family
        self._embedding = f"{family.embedding}.weight"
        head = f"{family.head}.weight"
        made = Spec(source.specs[self._embedding].dtype, self._tensors[head].shape)
        self.specs = {head: made, **source.specs}

    def tensor(self, name: str) -> "torch.Tensor":
        """Return one rotated tensor, in its storage type."""
        import torch

        tensor, dtype = self._tensors[name], torch_dtype(self.specs[name].dtype)
        if self.arch.is_output(tensor):
            stored = self.source.tensor(name)
            if stored.dim() == 1:
                return next(self._times(stored[None], None, dtype))[0]
            return torch.cat([*self._times(stored.T, None, dtype)]).T.contiguous()
        if "hidden" not in tensor.axes:
            return self.source.tensor(name)
        return torch.cat([*self.parts(name)])

    def parts(self, name: str) -> "Iterator[torch.Tensor]":
        """Yield one rotated tensor in parts; those that write the residual stream whole."""
        import torch

        tensor, dtype = self._tensors[name], torch_dtype(self.specs[name].dtype)
        if "hidden" not in tensor.axes or self.arch.is_output(tensor):
            return iter((self.tensor(name),))
        if tensor.axes == ("hidden",):
            gain = self.widened**0.5 - self.arch.family.norm_weight_offset
            return iter((torch.full(tensor.shape, gain, dtype=dtype),))
        stored = self.source.tensor(name if name in self.source.specs else self._embedding)
        gains = None if name == self._embedding else self._gains(name, tensor.layer)
        return self._times(stored, gains, dtype)

    def _times(
        self, matrix: "torch.Tensor", gains: "torch.Tensor | None", dtype: "torch.dtype"
    ) -> "Iterator[torch.Tensor]":
        """Yield a matrix [.., D], its columns times gains, times Q, some rows at a time."""
        for part in spans(len(matrix), 8 * matrix.shape[1]):
            rows = matrix[part].double()
            wide = rows if gains is None else rows * gains
            yield (wide @ self.rotation).to(dtype)

    def _gains(self, name: str, layer: int | None) -> "torch.Tensor":
        """Return the gains of the norm that this matrix reads."""
        if layer is None:
            norm = self.arch.family.final_norm
        else:
            norms, layer_name = self.arch.norms(layer), self.arch.prefix(layer)
            # what reads the last of them is beside the FFN's first linear
            ffn = self.arch.module("gate").partition(".")[0]
            of_ffn = name.startswith(f"{layer_name}{ffn}.")
            norm = layer_name + norms[-1 if of_ffn else 0]
        return self.source.tensor(f"{norm}.weight").double() + self.arch.family.norm_weight_offset
