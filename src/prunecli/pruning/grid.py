"""Which shapes a budget allows: the grids of the paper's Tables 5-7 (App. D.3), from sizes alone.

Every candidate has an FFN as wide as the budget allows, down to a multiple: 128 for a hidden size
of 4096, in proportion below, but 32 at least from 512 on, where the parent's sizes are multiples of
that. Three grids, told apart by what a method cuts:

- KV groups and FFN: from half of the groups to all of them (Table 6);
- hidden and FFN: every multiple, with 2 hidden <= FFN <= 4 hidden (Table 5);
- hidden, KV groups and FFN: hidden at 3/4 and 27/32, groups as above (Table 7).

What stays more than 4 % below the budget is left out. The integer rule gives all fifteen FFN widths
of Tables 6 and 7, and nine of the twelve of Table 5.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from typing import NamedTuple

from prunecli.errors import InputError, UsageError
from prunecli.methods._base import Method
from prunecli.model.arch import FLOPS_TOKENS, Arch
from prunecli.pruning.sizes import BLOCK, divides

LEAST = 0.96  # of the budget


NARROWEST, WIDEST = 2.0, 4.0  # FFN channels per hidden channel


HIDDEN_SHARES = (3 / 4, 27 / 32)
UNITS = {"params": "parameters", "block_params": "block-linear parameters", "flops": "FLOPs"}
SIZE_MULTIPLE = 128  # of a parent with hidden 4096 or more


@dataclass(frozen=True)
class Budget:
    """What a pruned model may cost: `params`, `block_params` (the block linears' alone), or `flops`
    of one forward of 2048 tokens.
    """

    quantity: str
    most: float

    def cost(self, arch: Arch) -> float:
        """Return what a shape costs."""
        if self.quantity == "flops":
            return arch.flops(FLOPS_TOKENS)
        return arch.total_params if self.quantity == "params" else arch.block_params


def budget(arch: Arch, params: float | None, flops: float | None, ratio: float | None) -> Budget:
    """Return the budget that was asked for; a ratio is that of the block-linear parameters.

    Raises UsageError unless exactly one is given, InputError if it is not below the parent's.
    """
    budgets = {"--params": params, "--flops": flops, "--ratio": ratio}
    named = {flag: value for flag, value in budgets.items() if value is not None}
    if len(named) != 1:
        raise UsageError(
            f"search-arch takes one budget, got {len(named)}", f"of {', '.join(budgets)}"
        )
    ((flag, value),) = named.items()
    if ratio is not None:
        if not 0 < ratio < 1:
            raise UsageError(f"--ratio {ratio:g} is not between 0 and 1", "0.5 removes half")
        return Budget("block_params", round((1 - ratio) * arch.block_params))
    budget = Budget("params" if params is not None else "flops", value)
    if not (isfinite(value) and value > 0):
        raise UsageError(f"{flag} {value:g}: expected a positive number")
    if value >= budget.cost(arch):
        raise InputError(f"{flag} {value:g} is not below the model's {budget.cost(arch):.0f}")
    return budget


def size_multiple(arch: Arch) -> int:
    """Return what hidden and FFN sizes are multiples of: a power of two, 128 at hidden 4096.

    From a hidden size of 512 on it is one that quantized formats take, where the parent's are.
    """
    size = SIZE_MULTIPLE
    while size > 1 and size * 32 > arch.hidden:
        size //= 2
    return max(size, BLOCK) if divides(BLOCK, arch) and arch.hidden >= 16 * BLOCK else size


class Grid(NamedTuple):
    """The shapes of a grid that use up a budget, and those that no stock container holds: why."""

    shapes: list[Arch]
    unsupported: list[str]


def candidates(
    axes: tuple[str, ...], arch: Arch, budget: Budget, multiple: int, biased: bool = False
) -> Grid:
    """Return the shapes of a grid that use up a budget, or raise InputError with the nearest.

    `axes` are those that a method cuts; layers stay. `biased` shapes have FLAP's biases.
    """
    near: list[Arch] = []
    shapes: list[Arch] = []
    unsupported: list[str] = []
    for hidden, kv_heads in _grid(axes, arch, multiple):
        least, most = _widths(axes, arch, hidden)
        family = _Widths(arch, hidden, kv_heads, biased)
        if multiple > most:
            continue
        try:
            child = family.widest(budget, multiple, most) or family.at(max(multiple, least))
        except InputError as error:
            unsupported.append(f"hidden {hidden} with {kv_heads * arch.group} heads: {error}")
            continue
        fits = LEAST * budget.most <= budget.cost(child) <= budget.most and child.ffn >= least
        if not fits:
            near.append(child)
        elif child.sizes != arch.sizes:
            shapes.append(child)
    if shapes:
        return Grid(shapes, unsupported)
    if unsupported and not near:
        raise InputError(f"no shape can be written: {unsupported[0]}")
    nearest = min(near, key=lambda child: abs(budget.cost(child) - budget.most), default=None)
    remedy = "choose a smaller --multiple"
    if nearest is not None:
        remedy = (
            f"the nearest has {budget.cost(nearest):.0f}: hidden {nearest.hidden}, heads "
            f"{nearest.heads}, ffn {nearest.ffn}"
        )
    raise InputError(
        f"no shape has {LEAST:.0%} to 100% of {budget.most:.0f} {UNITS[budget.quantity]}", remedy
    )


def check_searchable(method: Method) -> None:
    """Raise UsageError for a method that has no shapes to choose from, saying why."""
    if method.unit == "weights":
        why = "sets weights to zero, its shape stays"
    elif "ffn" not in method.axes:
        why = f"removes {method.granularity} only: a budget leaves nothing to choose"
    else:
        return
    raise UsageError(f"'{method.name}' {why}", "use `prunecli prune`, with an amount")


def _grid(axes: tuple[str, ...], arch: Arch, multiple: int) -> Iterator[tuple[int, int]]:
    groups = [arch.kv_heads]
    if "heads" in axes:
        groups = list(range(-(-arch.kv_heads // 2), arch.kv_heads + 1))
    hidden = [arch.hidden]
    if "hidden" in axes and "heads" in axes:
        hidden = [round(share * arch.hidden / multiple) * multiple for share in HIDDEN_SHARES]
    elif "hidden" in axes:
        hidden = list(range(multiple, arch.hidden, multiple))
    return ((width, count) for width in hidden for count in groups)


def _widths(axes: tuple[str, ...], arch: Arch, hidden: int) -> tuple[int, int]:
    """Return the narrowest and the widest FFN; a parent beyond the usual range widens it."""
    if "hidden" not in axes or "heads" in axes:
        return 1, arch.ffn
    own = arch.ffn / arch.hidden
    return int(min(NARROWEST, own) * hidden), min(arch.ffn, int(max(WIDEST, own) * hidden))


@dataclass(frozen=True)
class _Widths:
    """The shapes of one hidden size and one number of KV groups, which differ in their FFN."""

    arch: Arch
    hidden: int
    kv_heads: int
    biased: bool

    def at(self, ffn: int) -> Arch:
        """Return the shape with this FFN; raise InputError where no container holds it."""
        return self.arch.child(
            hidden=self.hidden, kv_heads=self.kv_heads, ffn=ffn, biased=self.biased
        )

    def widest(self, budget: Budget, multiple: int, most: int) -> Arch | None:
        """Return the widest shape within the budget, None if the narrowest costs more."""
        low, high = 0, most // multiple
        while low < high:
            middle = (low + high + 1) // 2
            fits = budget.cost(self.at(middle * multiple)) <= budget.most
            low, high = (middle, high) if fits else (low, middle - 1)
        return self.at(low * multiple) if low else None
