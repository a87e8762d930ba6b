"""A forward of a tiny random model: what its parts took and gave, and what shows in that."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prunecli.model import configs
from prunecli.model.derive.draft import LAYERS, SIZES, Draft
from prunecli.model.families._base import HEAD_SIZE, MEAN, SQUARE

if TYPE_CHECKING:
    from torch import Tensor, nn

SPREAD = 0.3  # of random weights
TIMES = "logit"  # in the names of keys of what logits are multiplied by


def random_model(config: Mapping[str, Any], fresh: bool = False) -> Any:
    """Return transformers' model of a tiny config.json, `fresh` or with every weight random."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]), configs.refusals(configs.CANNOT_BUILD):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(
            configs.transformers_config(config), dtype=torch.float32
        )
        with torch.no_grad():
            for parameter in () if fresh else model.parameters():
                noise = torch.randn_like(parameter)
                parameter.copy_(noise * SPREAD if parameter.dim() > 1 else noise * 0.2 + 1)
            kept = model.state_dict()
            for name, buffer in () if fresh else model.named_buffers():
                # which files have, so that each is told from all others there
                if name in kept and buffer.is_floating_point():
                    buffer.copy_(torch.randn_like(buffer) * 0.2)
    return model.eval()


@dataclass
class Call:
    """What a module without parts took and gave, when it was first called."""

    name: str
    module: "nn.Module"
    taken: "Tensor"
    given: "Tensor"

    @property
    def parent(self) -> str:
        """The module that it is a part of."""
        return self.name.rpartition(".")[0]


class Seen:
    """A forward of a tiny random model: what its parts took and gave."""

    def __init__(self, made: Draft) -> None:
        import torch
        from torch import nn

        self.made, self.model = made, random_model(made.config)
        self.calls: dict[str, Call] = {}
        lists = {
            name: module
            for name, module in self.model.named_modules()
            if isinstance(module, nn.ModuleList) and len(module) == LAYERS
        }
        if len(lists) != 1:
            told = ", ".join(f"'{name}'" for name in lists) or "none"
            raise made.refused(f"it has not one list of layers: {told}")
        (self.list,) = lists
        self.sums: list[Tensor] = []  # what experts, and others beside them, give together
        for name, module in self.model.named_modules():
            if not list(module.children()):
                module.register_forward_hook(self._note(name))
            elif made.experts and name.endswith(f".{made.experts.module.rpartition('.')[0]}"):
                module.register_forward_hook(self._note_sum)
        self.entered: Any = None
        lists[self.list][0].register_forward_pre_hook(self._enter, with_kwargs=True)
        self.ids = torch.randint(
            SIZES["vocab"], (2, 32), generator=torch.Generator().manual_seed(5)
        )
        with configs.bounded("transformers' model cannot be run"), torch.no_grad():
            self.logits = self.model(self.ids, use_cache=False).logits

    def _note(self, name: str) -> Callable[..., None]:
        def note(module: "nn.Module", taken: Any, given: Any) -> None:
            if taken and hasattr(taken[0], "shape") and hasattr(given, "shape"):
                self.calls.setdefault(name, Call(name, module, taken[0], given))

        return note

    def _note_sum(self, module: "nn.Module", taken: Any, given: Any) -> None:
        self.sums.append(given[0] if isinstance(given, tuple) else given)

    def _enter(self, module: "nn.Module", taken: Any, named: Any) -> None:
        self.entered = taken[0] if taken else named.get("hidden_states")

    def layer(self, i: int | str) -> str:
        """Return what the names of the modules of layer `i` begin with; `{i}` is that of any."""
        return f"{self.list}.{i}."

    def own_name(self, name: str) -> str | None:
        """Return a name within its layer, None for what is in none."""
        number, _, own = name.removeprefix(f"{self.list}.").partition(".")
        inside = name.startswith(f"{self.list}.") and (number.isdecimal() or number == "{i}")
        return own if inside else None

    def called(self, module: str) -> Iterator[Call]:
        """Yield the calls of a module in each layer that has it."""
        for i in range(LAYERS):
            if (call := self.calls.get(self.layer(i) + module)) is not None:
                yield call

    def groups(self, i: int) -> list[list[str]]:
        """Return the linears of layer `i` by what they read, in the order of computing."""
        from torch import nn

        groups: list[list[Call]] = []
        for call in self.calls.values():
            if not call.name.startswith(self.layer(i)) or not isinstance(call.module, nn.Linear):
                continue
            for group in groups:
                if group[0].parent == call.parent and equal(group[0].taken, call.taken):
                    group.append(call)
                    break
            else:
                groups.append([call])
        return [[call.name.removeprefix(self.layer(i)) for call in group] for group in groups]

    def places(self) -> dict[str, Any]:
        """Return what is outside the layers: embedding, positions, last norm and head."""
        from torch import nn

        names = {module: name for name, module in self.model.named_modules()}
        embedding = names.get(self.model.get_input_embeddings())
        head = names.get(self.model.get_output_embeddings())
        if embedding is None or head is None:
            raise self.made.refused("its class does not say which are its embedding and its head")
        read = self.calls[head].taken if head in self.calls else None
        last = [call.name for call in self.calls.values() if equal(call.given, read)]
        if not last:
            raise self.made.refused("what its head reads does not come from a norm")
        others = [
            name
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Embedding) and name != embedding
        ]
        if len(others) > 1 or any(name.startswith(self.list) for name in others):
            raise self.made.refused(f"it has another embedding, '{others[-1]}'")
        found = {"embedding": embedding, "head": head, "final_norm": last[-1]}
        if others:
            rows = self.model.get_submodule(others[0]).weight.shape[0]
            found |= {"positions": others[0], "position_offset": rows - SIZES["positions"]}
        return found

    def norms(self) -> list[Call]:
        """Return what norms the residual stream, or what is added to it, in layers and behind."""
        last = self.made.fields["final_norm"]
        return [
            call
            for call in self.calls.values()
            if "norm" in type(call.module).__name__.lower()
            and call.given.shape[-1] == SIZES["hidden"]
            and call.given.dim() == 3
            and (call.name == last or self.own_name(call.name) is not None)
        ]

    def computed(self, written: Sequence[str], narrows: bool) -> dict[str, Any]:
        """Return what shows in what is computed: norms, scales, and what cannot be lost.

        `written` are the linears that add to the residual stream; `narrows` is whether that of
        attention reads the channels of the heads.
        """
        import torch

        norms = self.norms()
        offsets = {offset for call in norms if (offset := _offset(call.module)) is not None}
        if len(offsets) > 1:
            raise self.made.refused("its norms multiply by their weights in different ways")
        fixed = {"hidden": MEAN} if any(_centres(call.module) for call in norms) else {}
        if "head_dim" not in self.made.keys:
            fixed["heads"] = HEAD_SIZE
        elif not narrows:
            fixed = {"hidden": SQUARE, "heads": SQUARE}
        writers = [call.given for name in written for call in self.called(name)]
        behind = dict.fromkeys(
            own
            for call in norms
            if (own := self.own_name(call.name)) is not None
            and any(equal(call.taken, one) for one in (*writers, *self.sums))
        )
        rows = self.model.get_input_embeddings().weight[self.ids]
        scaled = rows * SIZES["hidden"] ** 0.5
        plain = self.calls[self.made.fields["head"]].given
        times = [
            key
            for key, value in self.made.config.items()
            if TIMES in key
            and isinstance(value, float)
            and value != 1
            and self.logits.allclose(plain * value)
        ]
        return {
            "norm_weight_offset": float(offsets.pop()) if offsets else 0.0,
            "fixed": fixed,
            "post_norms": tuple(behind),
            "scales_embedding": self.entered is not None
            and self.entered.shape == scaled.shape
            and torch.allclose(self.entered, scaled, rtol=1e-2),
            "logits_times": times[0] if times else None,
        }


def equal(one: "Tensor | None", other: "Tensor | None") -> bool:
    """Return whether both are there, and the same in every bit."""
    return one is not None and other is not None and one.shape == other.shape and one.equal(other)


def _centres(norm: "nn.Module") -> bool:
    """Return whether a norm subtracts the mean: then a number added to all changes nothing."""
    import torch

    with torch.no_grad():
        states = torch.linspace(-1, 2, SIZES["hidden"]).sin()[None, None]
        return torch.allclose(norm(states), norm(states + 1), atol=1e-3)


def _offset(norm: "nn.Module") -> int | None:
    """Return what a norm adds to its weight, None if it has no weight."""
    import copy

    import torch

    probe: Any = copy.deepcopy(norm)
    weight = getattr(probe, "weight", None)
    if weight is None:
        return None
    with torch.no_grad():
        if getattr(probe, "bias", None) is not None:
            probe.bias.zero_()
        states = torch.linspace(-1, 2, SIZES["hidden"]).sin()[None, None]
        sums = []
        for value in (0, 1):
            weight.fill_(value)
            sums.append(float(probe(states).abs().sum()))
    share = sums[0] / sums[1]
    return round(share / (1 - share))
