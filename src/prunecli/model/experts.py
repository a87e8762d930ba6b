"""Experts as files have them: linears each, in place of the stacked tensors of transformers.

So a layer's weights have the names of the files, and each linear its own input, that of the tokens
which the router sends to its expert.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from prunecli.model.families._base import Experts


class Expert(nn.Module):
    """One gated FFN.

    down(act(gate x) * up x)
    """

    def __init__(self, hidden: int, ffn: int, act: Any, names: Experts) -> None:
        super().__init__()
        self._act, self._names = act, names
        for name in (names.gate, names.up):
            self.add_module(name, nn.Linear(hidden, ffn, bias=False))
        self.add_module(names.down, nn.Linear(ffn, hidden, bias=False))

    def linears(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        """Return gate, up and down."""
        gate, up, down = map(
            self.get_submodule, (self._names.gate, self._names.up, self._names.down)
        )
        return gate, up, down

    def forward(self, states: Tensor) -> Tensor:
        """Return the output [N, D] for states [N, D]."""
        gate, up, down = self.linears()
        out: Tensor = down(self._act(gate(states)) * up(states))
        return out


class ExpertList(nn.ModuleList):
    """All experts of a layer, each run on its own tokens only; every one is run.

    Attributes:
        stacked: transformers' own module, which has a tensor of all experts.
        fed_all: experts that are shown all tokens, and whose outputs are left out.
        between: is called after each of these.
        watch: is told, of each batch [N, D], the weight of every expert's output [N, E], and the
            norm of that [N, E], both 0 where a token is not sent there; None: nobody asks.
    """

    def __init__(self, stacked: Any, names: Experts) -> None:
        count, hidden, ffn = stacked.down_proj.shape
        super().__init__(Expert(hidden, ffn, stacked.act_fn, names) for _ in range(count))
        self.__dict__["stacked"] = stacked  # no part of this module: it has no weights
        self.fed_all: frozenset[int] = frozenset()
        self.between: Callable[[], None] = lambda: None
        self.watch: Callable[[Tensor, Tensor], None] | None = None

    def forward(self, states: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Return the sum [N, D] of the chosen experts' outputs for states [N, D], times weights.

        `chosen` and `weights` are [N, k].
        """
        out = torch.zeros_like(states)
        sent, norms = torch.zeros(2, len(states) if self.watch else 0, len(self), device=out.device)
        for e, expert in enumerate(self):
            if e in self.fed_all:
                expert(states)
                self.between()
                continue
            tokens, place = torch.where(chosen == e)
            made, share = expert(states[tokens]), weights[tokens, place]
            out.index_add_(0, tokens, (made * share[:, None]).to(out.dtype))
            if self.watch is not None:
                sent[tokens, e] = share.float()
                norms[tokens, e] = torch.linalg.vector_norm(made.float(), dim=-1)
        if self.watch is not None:
            self.watch(sent, norms)
        return out

    def restacked(self) -> nn.Module:
        """Return transformers' module with the weights of these experts."""
        gates, ups, downs = zip(*(expert.linears() for expert in self), strict=True)  # type: ignore[operator]
        joined = [torch.cat([gate.weight, up.weight]) for gate, up in zip(gates, ups, strict=True)]
        stacked: nn.Module = self.__dict__["stacked"]
        for name, matrices in (
            ("gate_up_proj", joined), ("down_proj", [down.weight for down in downs])
        ):  # fmt: skip
            setattr(stacked, name, nn.Parameter(torch.stack(matrices).detach()))
        return stacked


def unstack(layer: nn.Module, names: Experts | None) -> None:
    """Give a layer of transformers, on the meta device, experts as files have them, if it has any.

    Its modules are then called as files call them.
    """
    if names is None or not _has_experts(layer, names):
        return
    if names.stock is not None:
        # the layer's code still finds it by its own name, which is no longer one of a module
        layer.__dict__[names.stock] = module = layer._modules.pop(names.stock)
        layer.add_module(names.module.rpartition(".")[0], module)
    stacked = layer.get_submodule(names.module)
    with torch.device("meta"):
        layer.set_submodule(names.module, ExpertList(stacked, names))


def _has_experts(layer: nn.Module, names: Experts) -> bool:
    """Return whether a layer of a mixture has experts: some are dense."""
    around, _, own = names.module.rpartition(".")
    known = {*dict(layer.named_modules())}
    return bool(known & {names.module, f"{names.stock or around}.{own}"})


def restack(layer: nn.Module, names: Experts | None) -> None:
    """Give a layer transformers' own experts again, with the weights that it has."""
    if names is not None and _has_experts(layer, names):
        experts = layer.get_submodule(names.module)
        assert isinstance(experts, ExpertList)
        layer.set_submodule(names.module, experts.restacked())


@contextmanager
def showing_all(
    layer: nn.Module, names: Experts, some: Iterable[int], between: Callable[[], None]
) -> Iterator[None]:
    """Let some experts of a layer be shown all tokens; what they give is then left out.

    `between` is called after each of them.
    """
    experts = layer.get_submodule(names.module)
    assert isinstance(experts, ExpertList)
    experts.fed_all, experts.between = frozenset(some), between
    try:
        yield
    finally:
        experts.fed_all = frozenset()


class Watching(NamedTuple):
    """Somebody watches the experts of a layer, until they `remove` themselves."""

    experts: ExpertList

    def remove(self) -> None:
        """Let go of the experts."""
        self.experts.watch = None


def watching(layer: nn.Module, names: Experts, watch: Callable[[Tensor, Tensor], None]) -> Watching:
    """Have `watch` told what the experts of a layer give; see `ExpertList`."""
    experts = layer.get_submodule(names.module)
    assert isinstance(experts, ExpertList)
    experts.watch = watch
    return Watching(experts)
