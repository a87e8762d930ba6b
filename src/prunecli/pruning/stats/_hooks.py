"""Statistics of layers, collected by hooks while a model is walked."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from prunecli.methods._base import RequiredStatistic
from prunecli.model import experts, memory
from prunecli.model.arch import Arch
from prunecli.model.stream import LayerStream
from prunecli.pruning.stats import registry
from prunecli.pruning.stats._base import Collector

Stats = dict[str, Tensor]
Needs = tuple[RequiredStatistic, ...]
NAMED = 8  # experts in a message


class HookedCollectors:
    """Collectors of one layer, attached while in use; `statistics` is what they computed.

    Those of an expert see the tokens that it is sent. With `only` these experts are observed, and
    nothing else.
    """

    def __init__(
        self,
        stream: LayerStream,
        i: int,
        layer: nn.Module,
        needs: Needs,
        only: Sequence[int] | None = None,
    ) -> None:
        self._arch, self._block = stream.arch, stream.arch.block(i)
        self._of_all = stream.arch.point(i, "experts")
        self._collectors: dict[tuple[str, str], Collector] = {}
        self._ranks = stream.ranks
        self._experts: dict[str, int] = {}
        self._tokens: Counter[str] = Counter()
        for need in needs:
            for point in need.points:
                for name in self._observed(i, point, only):
                    self._collectors[name, need.name] = registry.get(need.name).make()
        self._at: dict[str, list[Collector]] = {name: [] for name, _ in self._collectors}
        for (name, _), collector in self._collectors.items():
            self._at[name].append(collector)
        self._batch = torch.Size()
        self._hooks: list[RemovableHandle | experts.Watching] = [
            layer.register_forward_pre_hook(self._begin)
        ]
        described = self._arch.family.experts
        if self._of_all in self._at and described is not None:
            self._hooks.append(experts.watching(layer, described, self._watch))
        for name in self._at.keys() - {self._block, self._of_all}:
            module = name.removeprefix(stream.arch.prefix(i)).removesuffix(":in")
            self._hooks.append(
                layer.get_submodule(module).register_forward_pre_hook(self._hook(name))
            )

    def _observed(self, i: int, point: str, only: Sequence[int] | None) -> Iterator[str]:
        for name, _, expert in self._arch.places(i, point):
            if only is None or expert in only:
                yield name
                if expert is not None:
                    self._experts[name] = expert

    def _begin(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._batch = inputs[0].shape[:2]

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        # some classes (OPT) flatten sequences before their FFN; what an expert reads is of no one
        whole = name not in self._experts

        def capture(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            states = inputs[0]
            self._tokens[name] += states.shape[:-1].numel()
            self._update(name, states.view(*self._batch, -1) if whole else states[None])

        return capture

    def _watch(self, sent: Tensor, norms: Tensor) -> None:
        assert self._of_all is not None, "it is told only where there are experts"
        shape = (*self._batch, -1)
        self._update(self._of_all, sent.view(shape), norms.view(shape))

    def _update(self, name: str, *tensors: Tensor) -> None:
        for collector in self._at.get(name, ()):
            collector.update(*tensors)

    def update_block(self, before: Tensor, after: Tensor) -> None:
        """Take what entered and what left the layer, [B, T, D] each."""
        self._update(self._block, before, after)

    @property
    def of_experts(self) -> bool:
        """Whether some of what is observed are inputs of experts."""
        return bool(self._experts)

    def starved(self) -> list[int]:
        """Return the experts that saw fewer tokens than channels: their Gram matrix is singular."""
        # that all processes saw together: they decide alike
        tokens = self._ranks.sum(torch.tensor([self._tokens[name] for name in self._experts]))
        few = {
            e
            for e, count in zip(self._experts.values(), tokens.tolist(), strict=True)
            if count < self._arch.hidden
        }
        return sorted(few)

    def statistics(self) -> Stats:
        """Return what all processes collected, hold it no more and let go of the layer."""
        for hook in self._hooks:
            hook.remove()
        statistics: Stats = {}
        for (name, _), collector in self._collectors.items():
            if not self._ranks.alone:
                collector.reduce(self._ranks)
            for part, value in collector.compute().items():
                statistics[f"{name}.{part}"] = value
        self._collectors.clear()
        self._at.clear()
        return statistics


class LayerRun(NamedTuple):
    """A layer, and the hidden states [N, T, D] of all ids [N, T] that enter it."""

    stream: LayerStream
    i: int
    layer: nn.Module
    hidden: Tensor
    ids: Tensor

    def run(self, hooked: HookedCollectors | None = None, onward: bool = False) -> None:
        """Run all batches, observed by `hooked`; `onward` puts what leaves in `hidden`."""

        def through(before: Tensor) -> Tensor:
            after = self.stream.forward(self.layer, self.i, before)
            if hooked is not None:
                hooked.update_block(self.stream.hidden(before), self.stream.hidden(after))
            return after

        onto = self.hidden if onward else None
        self.stream.each(self.stream.batches(self.ids), through, self.hidden, into=onto)

    def statistics(self, needs: Needs, onward: bool = False) -> Stats:
        """Return the layer's statistics; `onward` puts what leaves it in `hidden`.

        Experts that were sent too few tokens are named, and shown all tokens instead. Which these
        are is known when all have passed: then what leaves the layer is computed again.
        """
        stream, i = self.stream, self.i
        hooked = HookedCollectors(stream, i, self.layer, needs)
        again = hooked.of_experts
        self.run(hooked, onward and not again)
        stream.rest()
        found, few = hooked.statistics(), hooked.starved()
        names = stream.arch.family.experts
        if few and names is not None:
            stream.keeper.run.report.info(_about_starved(i, few, stream.arch))
            # what is kept of one expert lies between what was let go of it, where the next one's
            # states do not fit
            with experts.showing_all(self.layer, names, few, memory.release):
                shown = HookedCollectors(stream, i, self.layer, needs, few)
                self.run(shown)
            found |= shown.statistics()
        if onward and again:
            self.run(onward=True)
        return found


def _about_starved(i: int, few: list[int], arch: Arch) -> str:
    more = f" and {len(few) - NAMED} more" if len(few) > NAMED else ""
    return (
        f"layer {i}: {len(few)} of {arch.experts} experts were sent fewer tokens than the "
        f"{arch.hidden} channels that they read ({', '.join(map(str, few[:NAMED]))}{more}): their "
        "statistics are those of all tokens"
    )


@torch.no_grad()
def dense(stream: LayerStream, ids: Tensor, needs: Needs) -> Iterator[Stats]:
    """Yield every layer's statistics from one pass over the unpruned model; ids are [N, T].

    Those that a stopped run yielded are left out: the caller keeps them.
    """
    state = {"hidden": stream.embed(ids)}
    layers = range(stream.arch.layers)
    for i in stream.walk(layers, "calibrating", "layers", state, spent=("hidden",)):
        run = LayerRun(stream, i, stream.layer(i), state["hidden"], ids)
        found = run.statistics(needs, onward=True)
        yield {name: value.cpu() for name, value in found.items()}


@contextmanager
def _no_product(layer: nn.Module, name: str) -> Iterator[None]:
    """Let a linear of a layer give zeros, without a product; what enters it is observed as before.

    They are the layer's own: Llama 4 adds to them in place.
    """
    linear = layer.get_submodule(name)

    def zeros(states: Tensor) -> Tensor:
        return states.new_zeros(*states.shape[:-1], len(linear.weight))  # type: ignore[arg-type]

    linear.forward = zeros
    try:
        yield
    finally:
        del linear.forward


@torch.no_grad()
def layerwise(
    stream: LayerStream, ids: Tensor, needs: Needs
) -> Iterator[tuple[int, nn.Module, Stats]]:
    """Yield every layer with its statistics, to be given other weights: later layers see these.

    The statistics of a layer come from its unpruned weights on inputs out of edited layers: it
    runs once to be observed and, edited, once more to make the next layer's inputs. Nobody reads
    what leaves it at first, so its last product is made only for who observes it. Statistics stay
    on the device. Layers that a stopped run yielded are left out: the caller keeps what it made.
    """
    state, depth = {"hidden": stream.embed(ids)}, stream.arch.layers
    whole = any({"block", "experts"} & {*need.points} for need in needs)
    for i in stream.walk(range(depth), "pruning", "layers", state, spent=("hidden",)):
        run = LayerRun(stream, i, stream.layer(i), state["hidden"], ids)
        unread = () if whole else stream.arch.modules("down", i)
        with ExitStack() as stack:
            for name in unread:
                stack.enter_context(_no_product(run.layer, name))
            statistics = run.statistics(needs)
        yield i, run.layer, statistics
        if i + 1 < depth:
            run.run(onward=True)
