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
    """One FFN, gated or not.

    down(act(gate x) * up x)        down(act(up x))

    Where transformers' own class has another formula, that one.
    """

    def __init__(self, hidden: int, ffn: int, stacked: Any, names: Experts) -> None:
        super().__init__()
        self.__dict__["_stacked"], self._names = stacked, names
        for name in names.linears[:-1]:
            self.add_module(name, nn.Linear(hidden, ffn, bias=names.biased))
        self.add_module(names.down, nn.Linear(ffn, hidden, bias=names.biased))

    def forward(self, states: Tensor) -> Tensor:
        """Return the output [N, D] for states [N, D]."""
        *first, down = map(self.get_submodule, self._names.linears)
        read, stacked = [linear(states) for linear in first], self.__dict__["_stacked"]
        if self._names.interleaved:
            inner = stacked._apply_gate(torch.stack(read, -1).flatten(-2))
        else:
            inner = stacked.act_fn(read[0])
            inner = inner * read[1] if len(read) > 1 else inner
        out: Tensor = down(inner)
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
        count, *sizes = stacked.down_proj.shape
        hidden, ffn = reversed(sizes) if names.transposed else sizes
        super().__init__(Expert(hidden, ffn, stacked, names) for _ in range(count))
        self.__dict__["stacked"] = stacked  # no part of this module: it has no weights
        self._names = names
        self.fed_all: frozenset[int] = frozenset()
        self.between: Callable[[], None] = lambda: None
        self.watch: Callable[[Tensor, Tensor], None] | None = None

    def forward(
        self, states: Tensor, chosen: Tensor | None = None, weights: Tensor | None = None
    ) -> Tensor:
        """Return the sum [N, D] of the chosen experts' outputs for states [N, D], times weights.

        `chosen` and `weights` are [N, k]. Without them the weights are in the states, as Llama 4
        has it: what every expert reads, one after the other [E N, D], and so is what they give.
        """
        if chosen is None or weights is None:
            return self._of_weighted(states.view(len(self), -1, states.shape[-1])).view_as(states)

        def sent_to(e: int) -> tuple[Tensor, Tensor, Tensor]:
            tokens, place = torch.where(chosen == e)
            return tokens, states[tokens], weights[tokens, place]

        out = torch.zeros_like(states)
        for _, tokens, made, share in self._each(states, sent_to, lambda: states):
            out.index_add_(0, tokens, (made * share[:, None]).to(out.dtype))
        return out

    def _of_weighted(self, states: Tensor) -> Tensor:
        """Return the outputs [E, N, D] of every expert for states that are 0 where none are sent.

        One that is shown all tokens sees them as those do that they are sent to.
        """

        def sent_to(e: int) -> tuple[Tensor, Tensor, Tensor]:
            (tokens,) = torch.where(states[e].any(-1))
            return tokens, states[e, tokens], states.new_ones(len(tokens))

        out = torch.zeros_like(states)
        for e, tokens, made, _ in self._each(states[0], sent_to, lambda: states.sum(0)):
            out[e, tokens] = made
        return out

    def _each(
        self,
        states: Tensor,
        sent_to: Callable[[int], tuple[Tensor, Tensor, Tensor]],
        every: Callable[[], Tensor],
    ) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """Yield of each expert its number, its tokens [n], what it makes of them, and its weights.

        `sent_to` gives the tokens of an expert, what it reads of them [n, D], and these weights
        [n]; `every` what one reads that is shown all, of which nothing is yielded. There are as
        many tokens as `states` [N, D] has, where these are.
        """
        count = len(states) if self.watch else 0
        sent, norms = torch.zeros(2, count, len(self), device=states.device)
        for e, expert in enumerate(self):
            if e in self.fed_all:
                expert(every())
                self.between()
                continue
            tokens, read, share = sent_to(e)
            made = expert(read)
            yield e, tokens, made, share
            if self.watch is not None:
                sent[tokens, e] = share.float()
                norms[tokens, e] = torch.linalg.vector_norm(made.float(), dim=-1)
        if self.watch is not None:
            self.watch(sent, norms)

    def restacked(self) -> nn.Module:
        """Return transformers' module with the weights of these experts."""
        stacked: nn.Module = self.__dict__["stacked"]
        for name, parts in self._names.stacks_of(stacks(self._names)):
            blocks = [
                self._block([expert.get_parameter(part) for part in parts]) for expert in self
            ]
            setattr(stacked, name, nn.Parameter(torch.stack(blocks).detach()))
        return stacked

    def _block(self, parts: list[Tensor]) -> Tensor:
        """Return what a stack has of one expert, whose tensors [O, I] or [O] these are."""
        turns = self._names.interleaved
        joined = torch.stack(parts, 1).flatten(0, 1) if turns else torch.cat(parts)
        return joined.T if self._names.transposed and joined.dim() == 2 else joined


def stacks(names: Experts) -> tuple[str, str]:
    """Return what transformers calls its tensors of all experts."""
    return ("gate_up_proj" if names.gate else "up_proj", "down_proj")


def unstack(layer: nn.Module, names: Experts | None) -> None:
    """Give a layer of transformers, on the meta device, experts as files have them, if it has any.

    Its modules are then called as files call them.
    """
    if names is None or not _has_experts(layer, names):
        return
    for old, new in names.moved:
        (holder, own), (around, called) = _inside(layer, old), _inside(layer, new)
        # the code of the class still finds it by its own name, which is no longer one of a module
        holder.__dict__[own] = module = holder._modules.pop(own)
        around.add_module(called, module)
    stacked = layer.get_submodule(names.module)
    with torch.device("meta"):
        layer.set_submodule(names.module, ExpertList(stacked, names))


def _has_experts(layer: nn.Module, names: Experts) -> bool:
    """Return whether a layer of a mixture has experts: some are dense."""
    known = {*dict(layer.named_modules())}
    return bool(known & {names.module, *_stock(names)})


def _stock(names: Experts) -> list[str]:
    """Return what transformers calls the experts, where files do otherwise."""
    return [
        old + names.module.removeprefix(new)
        for old, new in names.moved
        if names.module.startswith(f"{new}.")
    ]


def _inside(layer: nn.Module, path: str) -> tuple[nn.Module, str]:
    """Return the module of a layer that one is in, and what that one is called there."""
    holder, _, own = path.rpartition(".")
    return layer.get_submodule(holder), own


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
