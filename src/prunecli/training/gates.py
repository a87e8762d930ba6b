"""Gates: learned factors between 0 and 1 on the units of a model (Louizos et al. 2018, 1712.01312).

A gate z multiplies what a unit gives: `hidden` [D] every channel of the residual stream, `layers`
[L] both sublayers, `kv_heads` [L, K] the context of a group's heads, `ffn` [L, F] the FFN channels.
Norms take their mean over the hidden channels whose gate is not zero. A model with gates, and the
model that has them folded into its weights and those at zero cut out, compute the same.
"""

from collections.abc import Callable, Mapping
from math import log

import torch
from torch import Tensor, nn

from prunecli.arch import BIASED, Arch
from prunecli.io.checkpoint import Reader
from prunecli.io.tensorfile import torch_dtype
from prunecli.plan import Plan

BETA = 2 / 3
LOW, HIGH = -0.1, 1.1  # what samples are stretched to before they are clamped to [0, 1]
EPSILON = 1e-6
LIMIT = log(100)  # of log alpha, on either side
SHARPNESS = 0.8  # of the settled gates, as in the official code

Values = Mapping[str, Tensor]


def sample(log_alpha: Tensor, uniform: Tensor) -> Tensor:
    """Return gates drawn by uniform numbers in (0, 1) of the same shape; many are 0 or 1."""
    noise = uniform.log() - (1 - uniform).log()
    soft = torch.sigmoid((noise + log_alpha) / BETA)
    return (soft * (HIGH - LOW) + LOW).clamp(0, 1)


def chance_of_zero(log_alpha: Tensor) -> Tensor:
    """Return the probability that a drawn gate is zero."""
    return torch.sigmoid(BETA * log(-LOW / HIGH) - log_alpha).clamp(EPSILON, 1 - EPSILON)


def settled(log_alpha: Tensor, keep: int) -> Tensor:
    """Return gates [..., n] without noise: the `keep` greatest of each row, the others zero.

    Of equal ones the unit with the lower index goes first.
    """
    order = log_alpha.argsort(dim=-1, stable=True)
    gone = order[..., : log_alpha.shape[-1] - keep]
    return torch.sigmoid(SHARPNESS * log_alpha / BETA).scatter(-1, gone, 0.0)


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


def attach(model: nn.Module, arch: Arch, values: Callable[[], Values]) -> None:
    """Have a stock model multiply by the gates that `values()` returns at the time of a forward."""

    def hidden(x: Tensor) -> Tensor:
        gates = values().get("hidden")
        return x if gates is None else x * gates.to(x.dtype)

    def scale() -> float:
        gates = values().get("hidden")
        return 1.0 if gates is None else (len(gates) / int(gates.count_nonzero())) ** 0.5

    def into(axis: str, i: int, repeats: int) -> Callable[..., tuple[Tensor]]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
            gates = values().get(axis)
            if gates is None:
                return (inputs[0],)
            return (inputs[0] * gates[i].repeat_interleave(repeats).to(inputs[0].dtype),)

        return hook

    def out_of(i: int) -> Callable[..., Tensor]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            gates = values().get("layers")
            return hidden(output if gates is None else output * gates[i].to(output.dtype))

        return hook

    model.model.embed_tokens.register_forward_hook(  # type: ignore[union-attr]
        lambda module, inputs, output: hidden(output)
    )
    for name, tensor in arch.tensors().items():
        if tensor.axes == ("hidden",) and not name.endswith(".bias"):
            norm = model.get_submodule(name.removesuffix(".weight"))
            # the stock mean is over all channels, of which those at zero add nothing
            norm.register_forward_pre_hook(lambda module, inputs: (inputs[0] * scale(),))
            norm.register_forward_hook(lambda module, inputs, output: hidden(output) / scale())
    for i in range(arch.layers):
        for module, axis, repeats in (
            (BIASED[0], "kv_heads", arch.group * arch.head_dim),
            (BIASED[1], "ffn", 1),
        ):
            linear = model.get_submodule(f"model.layers.{i}.{module}")
            linear.register_forward_pre_hook(into(axis, i, repeats))
            linear.register_forward_hook(out_of(i))


class Folded(Reader):
    """Weights with gates multiplied in: reads like a checkpoint, of the same shape as `source`."""

    def __init__(self, source: Reader, values: Values) -> None:
        self.source, self.arch, self.specs, self.values = source, source.arch, source.specs, values
        self._tensors = source.arch.tensors()

    def tensor(self, name: str) -> Tensor:
        """Return one weight, in its storage type."""
        stored, tensor, arch = self.source.tensor(name), self._tensors[name], self.arch
        module = name.rpartition(".")[0]
        writes = module.endswith(BIASED)
        values, hidden = stored.float(), self.values.get("hidden")
        # the head reads what the last norm has gated; a tied one is gated as the embedding is
        gated = tensor.axes[-1:] == ("hidden",) and not writes and tensor.layer is None
        norm = tensor.axes == ("hidden",) and not name.endswith(".bias")
        if name == "lm_head.weight" or (name == "model.norm.weight" and arch.tied):
            gated = norm = False
        if hidden is not None and (gated or norm):
            values = values * hidden
        if writes and tensor.layer is not None:
            values = self._written(values, name, module, tensor.layer, hidden)
        return values.to(torch_dtype(self.specs[name].dtype))

    def _written(
        self, values: Tensor, name: str, module: str, i: int, hidden: Tensor | None
    ) -> Tensor:
        """Return a projection into the residual stream, rows and columns gated; or its bias."""
        rows = torch.ones(len(values)) if hidden is None else hidden
        if "layers" in self.values:
            rows = rows * self.values["layers"][i]
        if name.endswith(".bias"):
            return values * rows
        axis, repeats = (
            ("ffn", 1)
            if module.endswith(BIASED[1])
            else ("kv_heads", self.arch.group * self.arch.head_dim)
        )
        if axis in self.values:
            values = values * self.values[axis][i].repeat_interleave(repeats)
        return values * rows[:, None]
