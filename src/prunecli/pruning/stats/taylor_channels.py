"""Taylor importance of channels: saliences of single weights, summed over rows and columns."""

from collections.abc import Callable, Mapping
from itertools import product

import torch
from torch import Tensor

from prunecli.model.arch import Arch
from prunecli.pruning.stats._base import GRADIENTS, Statistic
from prunecli.pruning.stats._gradients import WeightGradients
from prunecli.pruning.stats._hooks import Stats

# saliences of single weights; `vector` is summed with signs before the absolute value
SALIENCES: Mapping[str, Callable[[WeightGradients], Tensor]] = {
    "element1": lambda s: (s.weight * s.gradient).abs(),
    "element2": lambda s: s.weight.square() * s.square,
    "mix": lambda s: (s.weight * s.gradient - s.weight.square() * s.square / 2).abs(),
    "vector": lambda s: s.weight * s.gradient,
}


UNITS = ("heads", "kv_heads", "ffn")


def taylor_channels(weights: list[WeightGradients], arch: Arch, i: int) -> Stats:
    """Return `AXIS.SALIENCE` [I]: saliences summed over every row or column of a channel.

    A channel of `heads` has a row of q and a column of o, one of `kv_heads` a row of k and one of
    v, one of `ffn` a row of up, of gate if there is one, and a column of down. It is zeros where
    a layer has no such channels, or heads that are like no other layer's.
    """
    found: Stats = {}
    for entry in (s for s in weights if len(s.axes) == 2):
        for name, salience in SALIENCES.items():
            values = salience(entry).double()
            for dim, axis in enumerate(entry.axes):
                sums = values.sum(1 - dim)
                for part, place in zip(axis.split("+"), arch.axis_slices(axis, i), strict=True):
                    for unit, share in _shares(part, sums[place], arch):
                        key = f"{unit}.{name}"
                        found[key] = found.get(key, 0.0) + share.abs()
    for axis, name in product(UNITS, SALIENCES):
        if f"{axis}.{name}" not in found:
            found[f"{axis}.{name}"] = torch.zeros(arch.axis_size(axis, i), dtype=torch.float64)
    return found


def _shares(axis: str, sums: Tensor, arch: Arch) -> list[tuple[str, Tensor]]:
    """Return the rows or columns of an axis, by the unit of whose channels they are."""
    if axis == "qkv_by_head":
        q, k, v = sums.view(arch.heads, 3, arch.head_dim).unbind(1)
        return [("heads", q.flatten()), ("kv_heads", k.flatten()), ("kv_heads", v.flatten())]
    if axis == "gated_heads":
        return [("heads", part.flatten()) for part in sums.view(arch.heads, 2, -1).unbind(1)]
    ranked = axis == "ffn" or (axis in UNITS and arch.even_heads)
    return [(axis, sums)] if ranked else []


STATISTIC = Statistic(
    GRADIENTS, taylor_channels,
    shapes=lambda arch, i: {
        f"{axis}.{name}": (arch.axis_size(axis, i),) for axis in UNITS for name in SALIENCES
    },
)  # fmt: skip
