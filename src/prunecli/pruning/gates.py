"""Hard concrete masks z in [0, 1] on the units of a model (Louizos et al. 2018, arXiv 1712.01312).

A mask multiplies the output of a unit: `hidden` [D] every channel of the residual stream, `layers`
[L] both sublayers, `kv_heads` [L, K] the context of a group's heads, `ffn` [L, F] the FFN channels;
of the last two, L are the layers that have some.
The output of a sublayer is multiplied where it is added to the stream: after its norm, if it has
one there. Norms, those over all heads too, take their mean over the channels whose mask is not
zero. So a masked model, and the model with the masks merged into its weights and the units at zero
removed, compute the same.
"""

from collections.abc import Callable, Mapping
from functools import partial, reduce
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
SHARPNESS = 0.8  # of the final masks, as in the official code
NORMED = ("hidden", "heads", "kv_heads")  # axes that a norm may run over, in whole units

MaskValues = Mapping[str, Tensor]  # z by axis


def sample(log_alpha: Tensor, uniform: Tensor) -> Tensor:
    """Return masks sampled by uniform numbers in (0, 1) of the same shape; many are 0 or 1."""
    noise = uniform.log() - (1 - uniform).log()
    soft = torch.sigmoid((noise + log_alpha) / BETA)
    return (soft * (HIGH - LOW) + LOW).clamp(0, 1)


def clamped(log_alpha: Tensor) -> Tensor:
    """Return log alpha clamped to its limits."""
    return log_alpha.clamp(-LIMIT, LIMIT)


def prob_zero(log_alpha: Tensor) -> Tensor:
    """Return the probability that a sampled mask is zero."""
    return torch.sigmoid(BETA * log(-LOW / HIGH) - log_alpha).clamp(EPSILON, 1 - EPSILON)


def final_masks(
    log_alpha: Tensor, keep: int | Tensor, arch: Arch | None = None, axis: str = ""
) -> Tensor:
    """Return masks [..., n] without noise: the `keep` greatest of each row, the others zero.

    `keep` may differ from row to row: [..., 1]. Of equal units those of lower index are removed
    first. With `arch`, of the `layers` those stay without which there is no model.
    """
    ranked = log_alpha
    if arch is not None and axis == "layers":
        stay = arch.must_stay(log_alpha.argsort(stable=True).flip(0).tolist())
        ranked = log_alpha.clone()
        ranked[stay] = torch.inf
    rank = ranked.argsort(dim=-1, stable=True).argsort(dim=-1)
    soft = torch.sigmoid(SHARPNESS * clamped(log_alpha) / BETA)
    return soft.where(rank >= log_alpha.shape[-1] - keep, 0.0)


def plan_of(values: MaskValues, arch: Arch) -> Plan:
    """Return the plan that keeps every unit whose mask is not zero."""
    kept = {
        axis: [tuple(row.nonzero()[:, 0].tolist()) for row in z.view(-1, z.shape[-1])]
        for axis, z in values.items()
    }
    layers = kept["layers"][0] if "layers" in kept else None

    def of_layers(axis: str) -> tuple[tuple[int, ...], ...] | None:
        if axis not in kept:
            return None
        found = {
            i: tuple(n * arch.times(axis, i) + j for n in own for j in range(arch.times(axis, i)))
            for i, own in zip(arch.with_units(axis), kept[axis], strict=True)
        }
        return tuple(found.get(i, ()) for i in (range(arch.layers) if layers is None else layers))

    return Plan(
        layers=layers,
        hidden=kept["hidden"][0] if "hidden" in kept else None,
        ffn=of_layers("ffn"),
        kv_heads=of_layers("kv_heads"),
    )


def channels(values: MaskValues, axis: str, i: int | None, arch: Arch) -> Tensor | None:
    """Return the mask of every channel of an axis of layer `i`; for `layers`, that of the layer.

    None where the axis has no masks.
    """
    unit = "kv_heads" if axis == "heads" else axis
    if unit not in values:
        return None
    if unit in ("hidden", "layers"):
        z = values[unit] if i is None or unit == "hidden" else values[unit][i]
    else:
        assert i is not None, "these units are those of a layer"
        z = values[unit][arch.with_units(unit).index(i)]
    return z.repeat_interleave(arch.axis_size(axis, i) // len(z)) if z.dim() else z


class MaskedOutput(NamedTuple):
    """Which masks multiply the output of a module of layer `i`, or its input."""

    axes: tuple[str, ...]
    i: int | None = None

    def factor(self, values: MaskValues, arch: Arch) -> Tensor | None:
        """Return the product of the masks, None for 1."""
        of_axes = (channels(values, axis, self.i, arch) for axis in self.axes)
        masks = [z for z in of_axes if z is not None]
        return reduce(mul, masks) if masks else None


def outputs(arch: Arch) -> dict[str, MaskedOutput]:
    """Return the modules whose outputs are masked: norms and writers of the residual stream."""
    family = arch.family
    modules = {name: MaskedOutput(("hidden",)) for name in (family.embedding, family.final_norm)}
    for i in range(arch.layers):
        layer = arch.prefix(i)
        modules |= {layer + norm: MaskedOutput(("hidden",)) for norm in arch.norms(i)}
        modules |= {
            layer + writer: MaskedOutput(("layers", "hidden"), i) for writer in arch.writers(i)
        }
    return modules


def inputs(arch: Arch) -> dict[str, MaskedOutput]:
    """Return the modules whose inputs are masked: readers of heads and FFN channels."""
    return {
        arch.prefix(i) + module: MaskedOutput((axis,), i)
        for i in range(arch.layers)
        for point, axis in (("o", "heads"), ("down", "ffn"))
        for module in arch.compensated_in(i)
        if module == arch.module(point)
    }


def attach(
    model: nn.Module, arch: Arch, values: Callable[[], MaskValues], embedding: bool = True
) -> list[RemovableHandle]:
    """Hook a transformers model to multiply by the masks that `values()` returns at each forward.

    Without `embedding` its output is not masked. Returns the handles that remove the hooks.
    """
    handles = []
    masked_outputs = outputs(arch)
    if not embedding:
        del masked_outputs[arch.family.embedding]

    def times(masked: MaskedOutput, x: Tensor) -> Tensor:
        factor = masked.factor(values(), arch)
        return x if factor is None else x * factor.to(x.dtype)

    for name, tensor in arch.tensors().items():
        if len(tensor.axes) == 1 and tensor.axes[0] in NORMED and not name.endswith(".bias"):
            norm = model.get_submodule(name.removesuffix(".weight"))
            axis, layer = tensor.axes[0], tensor.layer
            before, after = _norm_hooks(partial(_channels_now, values, axis, layer, arch))
            handles.append(norm.register_forward_pre_hook(before))
            handles.append(norm.register_forward_hook(after))
    for name, masked in masked_outputs.items():
        handles.append(
            model.get_submodule(name).register_forward_hook(
                lambda module, args, output, masked=masked: times(masked, output)
            )
        )
    for name, masked in inputs(arch).items():
        handles.append(
            model.get_submodule(name).register_forward_pre_hook(
                lambda module, args, masked=masked: (times(masked, args[0]),)
            )
        )
    return handles


def _channels_now(
    values: Callable[[], MaskValues], axis: str, i: int | None, arch: Arch
) -> Tensor | None:
    return channels(values(), axis, i, arch)


def _norm_hooks(
    masks: Callable[[], Tensor | None],
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return hooks before and after a norm, which make its mean one over the unmasked channels."""

    def unmasked() -> tuple[Tensor, Tensor] | None:
        """Return which channels are not at zero, and the root of the inverse of their share."""
        z = masks()
        if z is None:
            return None
        kept = z != 0
        return kept, (len(z) / kept.sum().clamp(min=1)).sqrt()

    def before(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor] | None:
        if (now := unmasked()) is None:
            return None
        kept, scale = now
        return (args[0] * (kept * scale).to(args[0].dtype),)

    def after(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        now = unmasked()
        return None if now is None else output / now[1].to(output.dtype)

    return before, after


class MergedMasks(Reader):
    """Weights with masks multiplied in: reads like a checkpoint, of the same shape as `source`.

    `official`: the output head is multiplied by the hidden masks too, not only the norm before it.
    """

    def __init__(self, source: Reader, values: MaskValues, official: bool = False) -> None:
        self.source, self.arch, self.specs, self.values = source, source.arch, source.specs, values
        self._tensors = source.arch.tensors()
        self._outputs, self._inputs = outputs(source.arch), inputs(source.arch)
        if official:
            self._inputs[source.arch.family.head] = MaskedOutput(("hidden",))
        elif source.arch.tied:
            # the head is masked as the embedding is
            del self._outputs[source.arch.family.final_norm]

    def tensor(self, name: str) -> Tensor:
        """Return one weight, in its storage type."""
        stored, tensor = self.source.tensor(name), self._tensors[name]
        module, values = name.rpartition(".")[0], stored.float()
        if module in self._outputs:
            factor = self._outputs[module].factor(self.values, self.arch)
            # a norm multiplies by its weight plus the offset
            norm = tensor.axes == ("hidden",) and not name.endswith(".bias")
            offset = self.arch.family.norm_weight_offset if norm else 0.0
            if factor is not None:
                rows = values.dim() == 2 and tensor.axes[0] == "hidden" and factor.dim() == 1
                values = (values + offset) * (factor[:, None] if rows else factor) - offset
        if module in self._inputs and values.dim() == 2:
            factor = self._inputs[module].factor(self.values, self.arch)
            values = values if factor is None else values * factor
        return values.to(torch_dtype(self.specs[name].dtype))
