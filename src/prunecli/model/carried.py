"""What a token takes along beside its hidden channels, for layers that read more than these.

States between layers are [.., W]: hidden channels first, then the token's id, where layers have
embeddings of their own, then the keys and values that later layers take. So whatever keeps, moves
or differentiates hidden states does the same with these.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prunecli.model.arch import Arch
from prunecli.model.layout import BASE

Keys = Mapping[str, tuple[Tensor, Tensor]]  # by type of layer: keys and values [B, H, T, C]


class OneOf(dict[Any, tuple[Tensor, Tensor]]):
    """The keys and values that one layer takes or gives, under whatever name it asks for them.

    transformers calls them by the type of layer, older ones by the number of the layer that gives.
    """

    def __missing__(self, name: Any) -> tuple[Tensor, Tensor]:
        (only,) = self.values()
        return only


class Carried:
    """Puts it behind the hidden channels of an architecture's states, and reads it there."""

    def __init__(self, arch: Arch) -> None:
        self._arch, self._places = arch, arch.carried

    @property
    def arguments(self) -> set[str]:
        """The arguments of a layer that are made of this."""
        family = self._arch.family
        return {one.argument for one in (family.layer_inputs, family.shared_keys) if one}

    def begun(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """Return the states [B, T, W] of hidden states [B, T, D] that enter the first layer."""
        if not self._places:
            return hidden
        states = hidden.new_zeros(*ids.shape, self._arch.states_width)
        states[..., : self._arch.hidden] = hidden
        for n, column in enumerate(range(*self._id.indices(states.shape[-1]))):
            states[..., column] = (ids.to(states.device) // BASE**n % BASE).to(states.dtype)
        return states

    @property
    def _id(self) -> slice:
        return self._places.get("id", slice(0))

    def hidden(self, states: Tensor) -> Tensor:
        """Return the hidden channels [.., D] of states [.., W]."""
        return states[..., : self._arch.hidden] if self._places else states

    def ids(self, states: Tensor) -> Tensor | None:
        """Return the ids [B, T] of states [B, T, W], None where no layer reads them."""
        digits = states.detach()[..., self._id].long()
        places = BASE ** torch.arange(digits.shape[-1], device=digits.device)
        return (digits * places).sum(-1) if len(places) else None

    def keys(self, i: int, states: Tensor) -> dict[str, Any]:
        """Return what layer `i` takes of earlier layers, and puts its own into."""
        shared, taken = self._arch.family.shared_keys, OneOf()
        if shared is None:
            return {}
        if shared.taker in self._arch.kinds[i]:
            kind, size = self._type(i), self._arch.size("head_dim", i)
            both = states[..., self._places[kind]].view(*states.shape[:-1], 2, -1, size)
            taken[kind] = tuple(both.permute(2, 0, 3, 1, 4))  # [B, H, T, C] each
        return {shared.argument: taken}

    def onward(self, i: int, out: Tensor, states: Tensor, keys: Mapping[str, Keys]) -> Tensor:
        """Return the states [B, T, W] that leave layer `i`, out of which come `out` [B, T, D].

        `keys` is what the layer was given, with what it put into that.
        """
        if not self._places:
            return out
        parts = {name: states[..., place] for name, place in self._places.items()}
        shared = self._arch.shared_keys
        if shared is not None and shared.giver[kind := self._type(i)] in self._arch.kinds[i]:
            own = torch.stack(keys[shared.argument][kind])  # [2, B, H, T, C]
            parts[kind] = own.permute(1, 3, 0, 2, 4).flatten(2).to(out.dtype)
        return torch.cat([out, *parts.values()], -1)

    def _type(self, i: int) -> str:
        assert self._arch.family.shared_keys is not None, "somebody takes keys"
        return next(k for k in self._arch.kinds[i] if k in self._arch.family.shared_keys.giver)
