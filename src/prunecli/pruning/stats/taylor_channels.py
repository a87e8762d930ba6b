"""Taylor importance of channels: saliences of single weights, summed over rows and columns."""

from collections.abc import Callable, Mapping

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


def taylor_channels(weights: list[WeightGradients], arch: Arch) -> Stats:
    """Return `AXIS.SALIENCE` [I]: saliences summed over every row or column of a channel.

    A channel of `heads` has a row of q and a column of o, one of `kv_heads` a row of k and one of
    v, one of `ffn` a row of gate and of up and a column of down.
    """
    found: Stats = {}
    for entry in (s for s in weights if len(s.axes) == 2):
        for name, salience in SALIENCES.items():
            values = salience(entry).double()
            for dim, axis in enumerate(entry.axes):
                for part, place in zip(axis.split("+"), arch.axis_slices(axis), strict=True):
                    if part in UNITS:
                        share = values.sum(1 - dim)[place].abs()
                        key = f"{part}.{name}"
                        found[key] = found[key] + share if key in found else share
    return found


STATISTIC = Statistic(
    GRADIENTS, taylor_channels,
    shapes=lambda arch, count: {
        f"{axis}.{name}": (arch.axis_size(axis),) for axis in UNITS for name in SALIENCES
    },
)  # fmt: skip
