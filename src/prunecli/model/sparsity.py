"""The zeros of a checkpoint: which are a mask, what its sidecar claims of them, and what is so."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prunecli.errors import InputError
from prunecli.model.arch import Arch
from prunecli.model.checkpoint import Checkpoint
from prunecli.model.pattern import SparsityPattern

if TYPE_CHECKING:
    import torch
# a dense matrix may hold a zero or two by chance
LEAST = 0.001
WEIGHTS = "weights"  # the granularity of methods that set weights to zero, a pattern behind it


@dataclass(frozen=True)
class FixedMask:
    """Which matrices are sparse, before the model is built: their names, and how many zeros."""

    names: tuple[str, ...]
    zeros: int
    weights: int


class Census:
    """Counts what is not zero in tensors as they pass by, and what breaks a pattern.

    Attributes:
        nonzero, block_nonzero: weights that are not zero, of all tensors and of block matrices.
        broken: block matrices with groups of more than N in M, and how many groups.
    """

    def __init__(self, arch: Arch, pattern: SparsityPattern | None = None) -> None:
        self.pattern = pattern if pattern is not None and pattern.group else None
        self.nonzero = self.block_nonzero = 0
        self.broken: dict[str, int] = {}
        self._tensors, self._linears = arch.tensors(), set(arch.linears())

    def add(self, name: str, values: "torch.Tensor") -> int:
        """Count one tensor; return how many of its weights are not zero."""
        live = int(values.count_nonzero())
        self.nonzero += live
        if self.of_block(name):
            self.block_nonzero += live
            if self.pattern is not None and (groups := _crowded(values, self.pattern)):
                self.broken[name] = groups
        return live

    def of_block(self, name: str) -> bool:
        """Return whether a tensor is one of the block matrices, which a pattern is about."""
        return self._tensors[name].template in self._linears

    @property
    def fault(self) -> str:
        """What is broken, in words; empty for nothing."""
        if not self.broken:
            return ""
        name, groups = next(iter(self.broken.items()))
        more = f", and {len(self.broken) - 1} more matrices do" if len(self.broken) > 1 else ""
        return f"'{name}' breaks {self.pattern} in {groups} groups{more}"


def _crowded(weight_OI: "torch.Tensor", pattern: SparsityPattern) -> int:
    """Return how many groups of M inputs in a row have more than N that are not zero.

    A rest of a row that is no whole group counts as one.
    """
    from torch.nn.functional import pad

    live = pad(weight_OI != 0, (0, -weight_OI.shape[1] % pattern.group))
    return int((live.view(-1, pattern.group).sum(1) > pattern.keep).sum())


def claimed(results: Mapping[str, Any]) -> str | None:
    """Return what a sidecar's results say of the zeros: `unstructured`, N:M, None for nothing."""
    kind, _, pattern = str(results.get("granularity")).partition(", ")
    return pattern if kind == WEIGHTS and pattern else None


def pattern_of(results: Mapping[str, Any]) -> SparsityPattern | None:
    """Return the N:M that a sidecar's results claim, if they do."""
    return SparsityPattern.of_groups(claimed(results) or "")


def results_of(checkpoint: Checkpoint | None) -> dict[str, Any]:
    """Return the results in a checkpoint's sidecar; nothing without one."""
    return checkpoint.sidecar.results if checkpoint and checkpoint.sidecar else {}


def claims(
    own: Mapping[str, Any], held: Mapping[str, Any], arch: Arch, census: Census
) -> dict[str, Any]:
    """Return what a checkpoint that is made of a sparse one may say of its zeros.

    `own` are the results of that one, `held` of the one whose zeros were kept, if any: where there
    is none that claims a mask, the zeros that were counted are all there are.
    """
    if claimed(own) is None:
        return {}
    if claimed(held) is not None:
        return {name: held.get(name) for name in ("granularity", "ratio", "ratio_total")}
    return {
        "granularity": None,
        "ratio": 1 - census.block_nonzero / arch.block_params,
        "ratio_total": 1 - census.nonzero / arch.total_params,
    }


def faults(checkpoint: Checkpoint) -> list[str]:
    """Return what a checkpoint's sidecar claims of its zeros and is not so; reads every weight."""
    told = results_of(checkpoint)
    census = Census(checkpoint.arch, pattern_of(told))
    for name in checkpoint.arch.tensors():
        census.add(name, checkpoint.tensor(name))
    return _faults(told, checkpoint.arch, census)


def _faults(told: Mapping[str, Any], arch: Arch, census: Census) -> list[str]:
    found = []
    if told.get("nonzero") not in (None, census.nonzero):
        found.append(
            f"the sidecar tells {told['nonzero']} non-zero weights, there are {census.nonzero}"
        )
    if census.broken:
        found.append(f"the sidecar tells {census.pattern}: {census.fault}")
    ratio, zeros = told.get("ratio"), 1 - census.block_nonzero / arch.block_params
    right = isinstance(ratio, int | float) and abs(ratio - zeros) <= LEAST
    if claimed(told) is not None and not right:
        found.append(f"the sidecar tells a ratio of {ratio}, of block weights {zeros:.4f} are zero")
    return found


def sparse_tensors(checkpoint: Checkpoint) -> FixedMask:
    """Return the block matrices of a checkpoint whose zeros are a mask.

    Where the sidecar claims a mask, these are all that have a zero. Raises InputError if the zeros
    are not what it tells.
    """
    told = results_of(checkpoint)
    census = Census(checkpoint.arch, pattern_of(told))
    least = LEAST if claimed(told) is None else 0.0
    names, zeros, weights = [], 0, 0
    for name in checkpoint.arch.tensors():
        values = checkpoint.tensor(name)
        gone = values.numel() - census.add(name, values)
        if census.of_block(name) and gone > least * values.numel():
            names.append(name)
            zeros, weights = zeros + gone, weights + values.numel()
    if wrong := _faults(told, checkpoint.arch, census):
        raise InputError(
            f"masks do not fit: of '{checkpoint.folder.name}' {wrong[0]}",
            "was it changed after it was made?",
        )
    return FixedMask(tuple(names), zeros, weights)


def check_masks(masked: Checkpoint, checkpoint: Checkpoint, held: FixedMask) -> None:
    """Raise InputError unless the zeros of `masked` are zeros of `checkpoint` too."""
    for name in held.names:
        spec = checkpoint.specs.get(name)
        if spec is None or spec.shape != masked.specs[name].shape:
            got = "missing" if spec is None else list(spec.shape)
            raise InputError(
                f"masks do not fit: '{name}' is {list(masked.specs[name].shape)} in "
                f"'{masked.folder.name}' and {got} in '{checkpoint.folder.name}'"
            )
        if bool(checkpoint.tensor(name)[masked.tensor(name) == 0].any()):
            raise InputError(
                f"masks do not fit: '{name}' has weights where '{masked.folder.name}' has zeros",
                "make a twin with `prunecli init --like ... --masks keep`",
            )
