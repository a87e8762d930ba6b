"""Fixed masks: weights that stay zero while the others are trained.

Masks are taken once, before the first step. An unmasked weight that becomes zero later is still
trained, unlike in implementations that look for zeros again at every step.
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
    """Return this process's part of a full tensor, sharded as the parameter is."""
    tensor = tensor.to(parameter.device)
    if not isinstance(parameter, DTensor):
        return tensor
    mesh, placements = parameter.device_mesh, parameter.placements
    # every process has the full tensor, so nothing has to be sent
    return distribute_tensor(tensor, mesh, placements, src_data_rank=None).to_local()


class Masks:
    """Keeps the weights of these names at zero wherever those of `source` are zero."""

    def __init__(
        self, model: nn.Module, names: tuple[str, ...], source: Reader | None = None
    ) -> None:
        self._masked: list[tuple[str, nn.Parameter, Tensor]] = []
        if source is None:
            return
        for name, parameter in model.named_parameters():
            if name in names:
                unmasked = part_of(source.tensor(name) != 0, parameter.detach())
                self._masked.append((name, parameter, unmasked))

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Zero the gradients of masked weights, so that they count in no norm and no moment."""
        for _, parameter, unmasked in self._masked:
            if parameter.grad is not None:
                local(parameter.grad).mul_(unmasked)

    @torch.no_grad()
    def mask_weights(self) -> None:
        """Zero the masked weights again."""
        for _, parameter, unmasked in self._masked:
            local(parameter).mul_(unmasked)

    @torch.no_grad()
    def check(self) -> None:
        """Raise PruneError if a masked weight is not zero."""
        for name, parameter, unmasked in self._masked:
            if bool(local(parameter)[~unmasked].any()):
                raise PruneError(f"'{name}' has lost its mask")
