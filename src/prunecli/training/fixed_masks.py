"""Fixed sparsity: zeros of a checkpoint that stay zero while other weights are trained.

Masks are taken once, before the first step. A live weight that passes through zero later stays
alive, unlike in codes that look for zeros again at every step.
"""

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from prunecli.errors import PruneError
from prunecli.model.checkpoint import Reader


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part_of(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Return this process's part of a whole tensor, laid out and placed as a parameter is."""
    tensor = tensor.to(parameter.device)
    if not isinstance(parameter, DTensor):
        return tensor
    mesh, placements = parameter.device_mesh, parameter.placements
    # every process has the whole, so nothing has to be sent
    return distribute_tensor(tensor, mesh, placements, src_data_rank=None).to_local()


class Masks:
    """Holds some weights at zero wherever those of `source` are zero."""

    def __init__(
        self, model: nn.Module, names: tuple[str, ...], source: Reader | None = None
    ) -> None:
        self._held: list[tuple[str, nn.Parameter, Tensor]] = []
        if source is None:
            return
        for name, parameter in model.named_parameters():
            if name in names:
                live = part_of(source.tensor(name) != 0, parameter.detach())
                self._held.append((name, parameter, live))

    @torch.no_grad()
    def on_gradients(self) -> None:
        """Drop the gradients of held weights, so that they count in no norm and no moment."""
        for _, parameter, live in self._held:
            if parameter.grad is not None:
                local(parameter.grad).mul_(live)

    @torch.no_grad()
    def on_weights(self) -> None:
        """Put the zeros back."""
        for _, parameter, live in self._held:
            local(parameter).mul_(live)

    @torch.no_grad()
    def check(self) -> None:
        """Raise PruneError if a held weight is not zero."""
        for name, parameter, live in self._held:
            if bool(local(parameter)[~live].any()):
                raise PruneError(f"'{name}' has lost its mask")
