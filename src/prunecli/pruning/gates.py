"""Gates: learned factors between 0 and 1 on the units of a model (Louizos et al. 2018, 1712.01312).

A gate z multiplies what a unit gives: `hidden` [D] every channel of the residual stream, `layers`
[L] both sublayers, `kv_heads` [L, K] the context of a group's heads, `ffn` [L, F] the FFN channels.
What a sublayer gives is multiplied where it is added to the stream: behind its norm, if it has one
there. Norms, those over all heads too, take their mean over the channels whose gate is not zero. A
model with gates, and the model that has them folded into its weights and those at zero cut out,
compute the same.
"""

from collections.abc import Callable, Mapping
from functools import reduce
from math import log
from operator import mul
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from prunecli.files.tensorfile import torch_dtype
from prunecli.model.arch import Arch
from prunecli.model.checkpoint import Reader
from prunecli.pruning.plan import Plan

BETA = 2 / 3


LOW, HIGH = -0.1, 1.1  # what samples are stretched to before they are clamped to [0, 1]


EPSILON = 1e-6
LIMIT = log(100)  # of log alpha, on either side
SHARPNESS = 0.8  # of the settled gates, as in the official code


EMBEDDING, LAST, HEAD = "model.embed_tokens", "model.norm", "lm_head"


NORMED = ("hidden", "heads", "kv_heads")  # axes that a norm may run over, in whole units


Values = Mapping[str, Tensor]


def sample(log_alpha: Tensor, uniform: Tensor) -> Tensor:
    """Return gates drawn by uniform numbers in (0, 1) of the same shape; many are 0 or 1."""
    noise = uniform.log() - (1 - uniform).log()
    soft = torch.sigmoid((noise + log_alpha) / BETA)
    return (soft * (HIGH - LOW) + LOW).clamp(0, 1)


def limited(log_alpha: Tensor) -> Tensor:
    """Return log alpha within its limits."""
    return log_alpha.clamp(-LIMIT, LIMIT)


def chance_of_zero(log_alpha: Tensor) -> Tensor:
    """Return the probability that a drawn gate is zero."""
    return torch.sigmoid(BETA * log(-LOW / HIGH) - log_alpha).clamp(EPSILON, 1 - EPSILON)


def settled(log_alpha: Tensor, keep: int | Tensor) -> Tensor:
    """Return gates [..., n] without noise: the `keep` greatest of each row, the others zero.

    `keep` may differ from row to row: [..., 1]. Of equal ones the unit with the lower index goes
    first.
    """
    rank = log_alpha.argsort(dim=-1, stable=True).argsort(dim=-1)
    soft = torch.sigmoid(SHARPNESS * limited(log_alpha) / BETA)
    return soft.where(rank >= log_alpha.shape[-1] - keep, 0.0)


def plan_of(values: Values) -> Plan:
    """Return the plan that keeps every unit whose gate is not zero."""
    kept = {
        axis: [tuple(row.nonzero()[:, 0].tolist()) for row in gates.view(-1, gates.shape[-1])]
        for axis, gates in values.items()
    }
    layers = kept["layers"][0] if "layers" in kept else None

    def of_layers(axis: str) -> tuple[tuple[int, ...], ...] | None:
        if axis not in kept:
            return None
        return tuple(kept[axis][i] for i in (range(len(kept[axis])) if layers is None else layers))

    return Plan(
        layers=layers,
        hidden=kept["hidden"][0] if "hidden" in kept else None,
        ffn=of_layers("ffn"),
        kv_heads=of_layers("kv_heads"),
    )


def channels(values: Values, axis: str, i: int | None, arch: Arch) -> Tensor | None:
    """Return the gate of every channel of an axis of layer `i`, of `layers` that of the layer.

    None where the axis has no gates.
    """
    unit = "kv_heads" if axis == "heads" else axis
    if unit not in values:
        return None
    gates = values[unit] if unit == "hidden" else values[unit][i]
    return gates.repeat_interleave(arch.length(axis) // len(gates)) if gates.dim() else gates


class MaskedOutput(NamedTuple):
    """Which gates multiply what a module of layer `i` gives, or what it reads."""

    axes: tuple[str, ...]
    i: int | None = None

    def factor(self, values: Values, arch: Arch) -> Tensor | None:
        """Return their product, None for 1."""
        found = (channels(values, axis, self.i, arch) for axis in self.axes)
        known = [gates for gates in found if gates is not None]
        return reduce(mul, known) if known else None


def outputs(arch: Arch) -> dict[str, MaskedOutput]:
    """Return the modules whose outputs are gated: all that norms and writes the residual stream."""
    found = {name: MaskedOutput(("hidden",)) for name in (EMBEDDING, LAST)}
    for i in range(arch.layers):
        layer = f"model.layers.{i}."
        found |= {layer + norm: MaskedOutput(("hidden",)) for norm in arch.norms()}
        found |= {layer + writer: MaskedOutput(("layers", "hidden"), i) for writer in arch.writers}
    return found


def inputs(arch: Arch) -> dict[str, MaskedOutput]:
    """Return the modules whose inputs are gated: readers of what heads and FFN channels give."""
    return {
        f"model.layers.{i}.{arch.module(point)}": MaskedOutput((axis,), i)
        for i in range(arch.layers)
        for point, axis in (("o", "heads"), ("down", "ffn"))
    }


def attach(
    model: nn.Module, arch: Arch, values: Callable[[], Values], embedding: bool = True
) -> list[RemovableHandle]:
    """Have a stock model multiply by the gates that `values()` returns at the time of a forward.

    Without `embedding` its output is left as it is. Returns what takes the gates off again.
    """
    handles = []
    gated_outputs = outputs(arch)
    if not embedding:
        del gated_outputs[EMBEDDING]

    def times(gated: MaskedOutput, x: Tensor) -> Tensor:
        factor = gated.factor(values(), arch)
        return x if factor is None else x * factor.to(x.dtype)

    def over(axis: str, i: int | None) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """Return hooks around a norm, whose mean is over the channels that are not at zero."""

        def live() -> tuple[Tensor, Tensor] | None:
            gates = channels(values(), axis, i, arch)
            if gates is None:
                return None
            alive = gates != 0
            return alive, (len(gates) / alive.sum().clamp(min=1)).sqrt()

        def before(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor] | None:
            found = live()
            return None if found is None else (given[0] * (found[0] * found[1]).to(given[0].dtype),)

        def after(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            found = live()
            return None if found is None else output / found[1].to(output.dtype)

        return before, after

    for name, tensor in arch.tensors().items():
        if len(tensor.axes) == 1 and tensor.axes[0] in NORMED and not name.endswith(".bias"):
            norm = model.get_submodule(name.removesuffix(".weight"))
            before, after = over(tensor.axes[0], tensor.layer)
            handles.append(norm.register_forward_pre_hook(before))
            handles.append(norm.register_forward_hook(after))
    for name, gated in gated_outputs.items():
        handles.append(
            model.get_submodule(name).register_forward_hook(
                lambda module, given, output, gated=gated: times(gated, output)
            )
        )
    for name, gated in inputs(arch).items():
        handles.append(
            model.get_submodule(name).register_forward_pre_hook(
                lambda module, given, gated=gated: (times(gated, given[0]),)
            )
        )
    return handles


class MergedMasks(Reader):
    """Weights with gates multiplied in: reads like a checkpoint, of the same shape as `source`.

    `official`: the output head is multiplied by the hidden gates too, beside the norm before it.
    """

    def __init__(self, source: Reader, values: Values, official: bool = False) -> None:
        self.source, self.arch, self.specs, self.values = source, source.arch, source.specs, values
        self._tensors = source.arch.tensors()
        self._outputs, self._inputs = outputs(source.arch), inputs(source.arch)
        if official:
            self._inputs[HEAD] = MaskedOutput(("hidden",))
        elif source.arch.tied:
            # the head gets its gates with the embedding
            del self._outputs[LAST]

    def tensor(self, name: str) -> Tensor:
        """Return one weight, in its storage type."""
        stored, tensor = self.source.tensor(name), self._tensors[name]
        module, values = name.rpartition(".")[0], stored.float()
        if module in self._outputs:
            factor = self._outputs[module].factor(self.values, self.arch)
            # a norm multiplies by its weight plus the offset
            norm = tensor.axes == ("hidden",) and not name.endswith(".bias")
            offset = self.arch.family.gain_offset if norm else 0.0
            if factor is not None:
                rows = values.dim() == 2 and tensor.axes[0] == "hidden" and factor.dim() == 1
                values = (values + offset) * (factor[:, None] if rows else factor) - offset
        if module in self._inputs and values.dim() == 2:
            factor = self._inputs[module].factor(self.values, self.arch)
            values = values if factor is None else values * factor
        return values.to(torch_dtype(self.specs[name].dtype))
