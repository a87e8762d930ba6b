"""The zeros of a checkpoint: which are a mask, and whether they are as its sidecar records."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from prunecli.errors import InputError
from prunecli.files.tensorfile import rows_of
from prunecli.model.arch import Arch
from prunecli.model.checkpoint import Checkpoint
from prunecli.model.pattern import SparsityPattern
from prunecli.report import Report

if TYPE_CHECKING:
    import torch
# the least share of zeros in a mask: a dense matrix may hold a zero or two by chance
MIN_MASK_SHARE = 0.001
WEIGHTS = "weights"  # the granularity of methods that set weights to zero, before the pattern


@dataclass(frozen=True)
class FixedMask:
    """Which matrices have a mask, and how many of their weights are zero."""

    names: tuple[str, ...]
    zeros: int
    weights: int


class Census:
    """Counts non-zero weights of tensors as they are read, and groups that break a pattern.

    Attributes:
        nonzero, block_nonzero: non-zero weights of all tensors, and of block matrices.
        broken: block matrices with groups of more than N non-zero in M, and how many groups.
    """

    def __init__(self, arch: Arch, pattern: SparsityPattern | None = None) -> None:
        self.pattern = pattern if pattern is not None and pattern.group else None
        self.nonzero = self.block_nonzero = 0
        self.broken: dict[str, int] = {}
        self._tensors, self._linears = arch.tensors(), set(arch.block_linears())

    def add(self, name: str, values: "torch.Tensor") -> int:
        """Count one tensor, or some of its rows; return how many weights are not zero."""
        import numpy as np

        pattern, nonzero, groups = self.pattern, 0, 0
        of_block = self.of_block(name)
        for rows in rows_of(values):
            # the whole model is counted: of booleans, numpy does it in a sixth of torch's time
            nonzero += int(np.count_nonzero((rows != 0).cpu().numpy()))
            if pattern is not None and of_block:
                groups += _crowded(rows, pattern)
        self.nonzero += nonzero
        if of_block:
            self.block_nonzero += nonzero
        if groups:
            self.broken[name] = self.broken.get(name, 0) + groups
        return nonzero

    def of_block(self, name: str) -> bool:
        """Return whether a tensor is a block matrix, to which patterns apply."""
        return self._tensors[name].template in self._linears

    @property
    def fault(self) -> str:
        """What is broken, as a message; empty for nothing."""
        if not self.broken:
            return ""
        name, groups = next(iter(self.broken.items()))
        more = f", and {len(self.broken) - 1} more matrices do" if len(self.broken) > 1 else ""
        return f"'{name}' breaks {self.pattern} in {groups} groups{more}"


def _crowded(weight_OI: "torch.Tensor", pattern: SparsityPattern) -> int:
    """Return how many groups of M inputs have more than N non-zero weights, of [out, in].

    The rest of a row that is no whole group counts as one.
    """
    from torch.nn.functional import pad

    group = min(pattern.group, weight_OI.shape[1])  # what a sidecar records can be any number
    # [O, I], filled up to whole groups
    nonzero = pad(weight_OI != 0, (0, -weight_OI.shape[1] % group))
    return int((nonzero.reshape(-1, group).sum(1) > pattern.keep).sum())


def claimed(results: Mapping[str, Any]) -> str | None:
    """Return the pattern of zeros in a sidecar's results: `unstructured`, N:M, or None."""
    kind, _, pattern = str(results.get("granularity")).partition(", ")
    return pattern if kind == WEIGHTS and pattern else None


def pattern_of(results: Mapping[str, Any]) -> SparsityPattern | None:
    """Return the N:M in a sidecar's results, None for any other pattern."""
    return SparsityPattern.of_groups(claimed(results) or "")


def results_of(checkpoint: Checkpoint | None) -> dict[str, Any]:
    """Return the results in a checkpoint's sidecar; empty without one."""
    return checkpoint.sidecar.results if checkpoint and checkpoint.sidecar else {}


def claims(
    own: Mapping[str, Any], masked: Mapping[str, Any], arch: Arch, census: Census
) -> dict[str, Any]:
    """Return what the sidecar of a checkpoint made from a sparse one records of its zeros.

    `own` are the results of that one, `masked` those of the one whose mask was kept, if any. If
    that records no pattern, the zeros that were counted are recorded instead.
    """
    if claimed(own) is None:
        return {}
    if claimed(masked) is not None:
        return {name: masked.get(name) for name in ("granularity", "ratio", "ratio_total")}
    return {
        "granularity": None,
        "ratio": 1 - census.block_nonzero / arch.block_params,
        "ratio_total": 1 - census.nonzero / arch.total_params,
    }


def faults(checkpoint: Checkpoint, report: Report) -> list[str]:
    """Return where the zeros are not as the checkpoint's sidecar records; reads every weight."""
    recorded = results_of(checkpoint)
    census = Census(checkpoint.arch, pattern_of(recorded))
    _count(checkpoint, census, report)
    return _faults(recorded, checkpoint.arch, census)


def _count(checkpoint: Checkpoint, census: Census, report: Report) -> dict[str, int]:
    """Count all weights of a checkpoint; return how many of each tensor are zero."""
    zeros = {}
    with report.reading("counting zeros", checkpoint.num_bytes) as passed:
        for name in checkpoint.arch.tensors():
            values = checkpoint.tensor(name)
            zeros[name] = values.numel() - census.add(name, values)
            passed(values.nbytes)
    return zeros


def _faults(recorded: Mapping[str, Any], arch: Arch, census: Census) -> list[str]:
    faults = []
    if recorded.get("nonzero") not in (None, census.nonzero):
        faults.append(
            f"the sidecar records {recorded['nonzero']} non-zero weights, found {census.nonzero}"
        )
    if census.broken:
        faults.append(f"the sidecar records {census.pattern}, but {census.fault}")
    ratio, zeros = recorded.get("ratio"), 1 - census.block_nonzero / arch.block_params
    right = isinstance(ratio, int | float) and abs(ratio - zeros) <= MIN_MASK_SHARE
    if claimed(recorded) is not None and not right:
        faults.append(
            f"the sidecar records a ratio of {ratio}, but {zeros:.4f} of block weights are zero"
        )
    return faults


def sparse_tensors(checkpoint: Checkpoint, report: Report) -> FixedMask:
    """Return the block matrices of a checkpoint whose zeros are a mask.

    Where the sidecar records a pattern, these are all that have a zero. Raises InputError if the
    zeros are not as it records.
    """
    recorded = results_of(checkpoint)
    census = Census(checkpoint.arch, pattern_of(recorded))
    least = MIN_MASK_SHARE if claimed(recorded) is None else 0.0
    names, zeros, weights = [], 0, 0
    for name, removed in _count(checkpoint, census, report).items():
        size = prod(checkpoint.specs[name].shape)
        if census.of_block(name) and removed > least * size:
            names.append(name)
            zeros, weights = zeros + removed, weights + size
    if broken := _faults(recorded, checkpoint.arch, census):
        raise InputError(
            f"masks do not fit: in '{checkpoint.folder.name}' {broken[0]}",
            "was it changed after it was made?",
        )
    return FixedMask(tuple(names), zeros, weights)


def check_masks(masked: Checkpoint, checkpoint: Checkpoint, mask: FixedMask) -> None:
    """Raise InputError unless the zeros of `masked` are zeros of `checkpoint` too."""
    for name in mask.names:
        spec = checkpoint.specs.get(name)
        if spec is None or spec.shape != masked.specs[name].shape:
            got = "missing" if spec is None else list(spec.shape)
            raise InputError(
                f"masks do not fit: '{name}' is {list(masked.specs[name].shape)} in "
                f"'{masked.folder.name}' and {got} in '{checkpoint.folder.name}'"
            )
        both = zip(checkpoint.parts(name), masked.parts(name), strict=True)
        if any(bool(kept[mask == 0].any()) for kept, mask in both):
            raise InputError(
                f"masks do not fit: '{name}' has weights where '{masked.folder.name}' has zeros",
                "make it with `prunecli init --like ... --masks keep`",
            )
