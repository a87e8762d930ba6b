"""SparseGPT: optimal brain surgery column by column (Frantar & Alistarh 2023, arXiv 2301.00774).

With H = X^T X + lambda I, lambda = damping * mean(diag H), and U the upper Cholesky factor of
H^-1 (H^-1 = U^T U), columns are visited in blocks from the left. A column's weights are worth

    S[i, j] = W[i, j]^2 / U[j, j]^2

where 1 / U[j, j]^2 is 1 over the j-th diagonal of the inverse restricted to columns not yet
visited: the code's reading; the paper prints diag(H^-1). Unstructured masks are chosen for a
whole block at once, N:M masks group by group on the already updated weights: no group may lie in
two blocks, so M must divide the block. What a pruned weight did is spread over the columns to its
right:  W[i, j:] -= W[i, j] / U[j, j] * U[j, j:].

`--compat official` prunes everything at or below the score at rank floor(n * ratio) of a block,
one weight more than asked, and propagates weights before the cast to the storage type.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prunecli.errors import PruneError, UsageError
from prunecli.methods._base import Method, Option, RequiredStatistic, Setting
from prunecli.methods._masks import drop_mask
from prunecli.model.pattern import SparsityPattern

if TYPE_CHECKING:
    import torch

RETRIES = 5


def prepare(stats: "dict[str, torch.Tensor]", options: dict[str, Any]) -> "dict[str, torch.Tensor]":
    """Return U [I, I] and the inputs that were never active, `dead` [I].

    U is the inverse of R in H = R R^T with R upper triangular, which one Cholesky of H with its
    indices reversed gives: no explicit inverse, half the work, and less rounding. Where H is not
    positive definite the damping grows tenfold, up to five times, the later ones in fp64.
    Raises PruneError if it still is not.
    """
    import torch

    gram_II = stats["gram"].clone()
    diagonal = gram_II.diagonal()
    dead = diagonal == 0
    diagonal[dead] = 1
    damping = options["damping"] * diagonal.mean()
    for attempt in range(RETRIES):
        if attempt == 2:
            gram_II, damping = gram_II.double(), damping.double()
        damped = gram_II + torch.diag(damping.expand(len(gram_II)))
        lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if bool((failed == 0) & lower.diagonal().isfinite().all()):
            upper = lower.flip(0, 1)
            identity = torch.eye(len(upper), dtype=upper.dtype, device=upper.device)
            factor_II = torch.linalg.solve_triangular(upper, identity, upper=True)
            return {"U": factor_II.float(), "dead": dead, "retries": torch.tensor(attempt)}
        damping = damping * 10
    raise PruneError(
        f"the Hessian of {len(gram_II)} inputs is not positive definite, even with damping "
        f"{options['damping'] * 10 ** (RETRIES - 1):g}",
        "use more calibration tokens or a larger --damping",
    )


def sparsify(
    weight_OI: "torch.Tensor",
    factor: "dict[str, torch.Tensor]",
    pattern: SparsityPattern,
    options: dict[str, Any],
) -> "torch.Tensor":
    """Return `weight_OI` in fp32 with zeros where pruned and the other weights compensated."""
    weight_OI, U = weight_OI.clone(), factor["U"]
    weight_OI[:, factor["dead"]] = 0
    inputs, size = weight_OI.shape[1], options["block_size"]
    for start in range(0, inputs, size):
        stop = min(start + size, inputs)
        block = weight_OI[:, start:stop]
        U_block = U[start:stop, start:stop]
        diagonal = U_block.diagonal()
        drop = None if pattern.group else _block_mask(block, diagonal, pattern, options)
        error = block.new_empty(stop - start, block.shape[0])
        for j in range(stop - start):
            if pattern.group and j % pattern.group == 0:
                columns = slice(j, j + pattern.group)
                score = (block[:, columns] / diagonal[columns]).square()
                group_drop = drop_mask(score, pattern, "row")
            column_drop = group_drop[:, j % pattern.group] if drop is None else drop[:, j]
            error[j] = block[:, j].masked_fill(~column_drop, 0) / diagonal[j]
            block[:, j:].addr_(error[j], U_block[j, j:], alpha=-1)
            block[:, j].masked_fill_(column_drop, 0)
        weight_OI[:, stop:].addmm_(error.T, U[start:stop, stop:], alpha=-1)
    return weight_OI


def _block_mask(
    block: "torch.Tensor",
    diagonal: "torch.Tensor",
    pattern: SparsityPattern,
    options: dict[str, Any],
) -> "torch.Tensor":
    score = (block / diagonal).square()
    if options["compat"]:
        limit = score.flatten().sort().values[int(score.numel() * pattern.ratio)]
        return score <= limit
    return drop_mask(score, pattern, "matrix")


def check(options: Mapping[str, Any], pattern: SparsityPattern) -> None:
    """Raise UsageError for blocks without columns, or such that cut a group of N:M in two."""
    size, group = options["block_size"], pattern.group
    if size < 1:
        raise UsageError(f"--block-size {size}: expected at least 1")
    if group and size % group:
        raise UsageError(
            f"--block-size {size} cuts the groups of --sparsity {pattern} in two: it is not a "
            f"multiple of {group}",
            f"use a multiple, such as {-(-size // group) * group}",
        )


def _quirks(beside: Setting) -> str:
    if beside.grouped and not beside.rounded:
        return "with an N:M pattern it is about rounding that propagates, and here none does"
    return ""


METHOD = Method(
    name="sparsegpt",
    title="SparseGPT",
    reference="arXiv 2301.00774",
    unit="weights",
    granularity="weights",
    needs=(RequiredStatistic("gram", ("q", "o", "gate", "down")),),
    sequential=True,
    options=(
        Option(
            "block_size",
            int,
            128,
            "columns that are pruned and compensated as one block",
            stage="prune",
        ),
        Option(
            "damping",
            float,
            0.01,
            "damping of the Hessian, as a fraction of the mean of its diagonal",
            stage="prune",
        ),
    ),
    recipes={
        "paper": {"source": "c4", "sampler": "docs", "nsamples": 128, "seq_len": 8192},
        "official": {"source": "c4", "sampler": "docs", "nsamples": 128, "seq_len": 2048},
    },
    quirks=_quirks,
    prepare=prepare,
    sparsify=sparsify,
    check=check,
)
