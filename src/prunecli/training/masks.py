"""Fixed sparsity: zeros of the loaded weights that stay zero while the others are trained.

Masks are taken once, at load. A live weight that passes through zero later stays alive, unlike in
codes that look for zeros again at every step.
"""

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from prunecli.errors import PruneError


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class Masks:
    """Holds the zeros of some weights, from the time it is made."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        wanted = set(names)
        self._held = [
            (name, parameter, local(parameter.detach()) != 0)
            for name, parameter in model.named_parameters()
            if name in wanted
        ]

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
