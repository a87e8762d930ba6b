"""SparseGPT: optimal brain surgery column by column (Frantar & Alistarh 2023, arXiv 2301.00774).

With H = X^T X + lambda I, lambda = damping * mean(diag H), and U the upper Cholesky factor of
H^-1 (H^-1 = U^T U), columns are visited in blocks from the left. A column's weights are worth

    S[i, j] = W[i, j]^2 / U[j, j]^2

where 1 / U[j, j]^2 is 1 over the j-th diagonal of the inverse restricted to columns not yet
visited: the code's reading; the paper prints diag(H^-1). Unstructured masks are chosen for a
whole block at once, N:M masks group by group on the already updated weights: no group may lie in
two blocks, so M must divide the block. What a pruned weight did is spread over the columns to its
right:  W[i, j:] -= W[i, j] / U[j, j] * U[j, j:].

No inverse is made. U = R^-1 where H = R R^T with R upper triangular, which is a Cholesky factor of
H with its indices reversed, and U[j, j] = 1 / R[j, j]. Let N be R with its columns divided by its
diagonal. If E holds every pruned weight as it was when its column was visited, weights change by
C = W - W' = E N^-1. So C N = E, and of a block K, whose own columns are yet to be visited, and all
columns V to its left

    W'[:, K] = W[:, K] + C[:, V] N[V, K] N[K, K]^-1.

Only blocks of the diagonal are inverted. In a block  W'[i, j:] -= W'[i, j] * N[K, K]^-1[j, j:].

`--compat official` prunes everything at or below the score at rank floor(n * ratio) of a block,
one weight more than asked, and propagates weights before the cast to the storage type.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from prunecli.errors import PruneError, UsageError
from prunecli.methods._base import Method, Option, RequiredStatistic, Setting
from prunecli.methods._masks import drop_mask, kth_lowest
from prunecli.model.pattern import SparsityPattern

if TYPE_CHECKING:
    import torch

RETRIES = 5
# so many columns are compensated one by one, and the rest of their block for all of them at once
STEP = 16
# numbers that are reversed at once
CHUNK = 1 << 20


def prepare(stats: "dict[str, torch.Tensor]", options: dict[str, Any]) -> "dict[str, torch.Tensor]":
    """Return N^T as `factor` [I, I], its blocks on the diagonal inverted; diag R as `scale` [I].

    And `dead` [I]: the inputs that were never active. Where H is not positive definite the damping
    grows tenfold, up to five times, the later ones in fp64. Beside the Gram matrix memory holds the
    factor, one matrix of its size. Raises PruneError if H still is not positive definite.
    """
    import torch

    gram_II = stats["gram"]
    diagonal_I = gram_II.diagonal().clone()
    dead_I = diagonal_I == 0
    diagonal_I[dead_I] = 1
    damping = options["damping"] * diagonal_I.mean()
    for attempt in range(RETRIES):
        if attempt == 2:
            diagonal_I, damping = diagonal_I.double(), damping.double()
        factor_II = _cholesky(gram_II, diagonal_I + damping)
        if factor_II is not None:
            scale_I = factor_II.diagonal().clone()
            factor_II.div_(scale_I[:, None])
            for block in _blocks(len(factor_II), options["block_size"]):
                square = factor_II[block, block]
                identity = torch.eye(len(square), dtype=square.dtype, device=square.device)
                square.copy_(
                    torch.linalg.solve_triangular(square, identity, upper=False, unitriangular=True)
                )
            return {
                "factor": factor_II.float(),
                "scale": scale_I.float(),
                "dead": dead_I,
                "retries": torch.tensor(attempt),
            }
        damping = damping * 10
    raise PruneError(
        f"the Hessian of {len(gram_II)} inputs is not positive definite, even with damping "
        f"{options['damping'] * 10 ** (RETRIES - 1):g}",
        "use more calibration tokens or a larger --damping",
    )


def _cholesky(gram_II: "torch.Tensor", diagonal_I: "torch.Tensor") -> "torch.Tensor | None":
    """Return R^T [I, I] of H = R R^T, which is the Gram matrix with this diagonal, in its type.

    None if H is not positive definite. All is done in the one matrix that is returned.
    """
    import torch

    # all entries in reverse are both indices in reverse
    factor_II = gram_II.to(diagonal_I.dtype).flatten().flip(0).view(gram_II.shape)
    factor_II.diagonal().copy_(diagonal_I.flip(0))
    lower, failed = factor_II.mT, torch.empty((), dtype=torch.int32, device=factor_II.device)
    torch.linalg.cholesky_ex(lower, out=(lower, failed))
    if not bool((failed == 0) & lower.diagonal().isfinite().all()):
        return None
    _reverse(factor_II.view(-1))
    return factor_II


def _reverse(numbers: "torch.Tensor") -> None:
    """Reverse a vector in place."""
    size = len(numbers)
    for start in range(0, size // 2, CHUNK):
        stop = min(start + CHUNK, size // 2)
        front, back = numbers[start:stop], numbers[size - stop : size - start]
        kept = front.flip(0)
        front.copy_(back.flip(0))
        back.copy_(kept)


def _blocks(inputs: int, size: int) -> Iterator[slice]:
    for start in range(0, inputs, size):
        yield slice(start, min(start + size, inputs))


def sparsify(
    weight_OI: "torch.Tensor",
    factor: "dict[str, torch.Tensor]",
    pattern: SparsityPattern,
    options: dict[str, Any],
) -> "torch.Tensor":
    """Return `weight_OI` in fp32 with zeros where pruned and the other weights compensated.

    Beside the weights memory holds what they change by (C), which becomes the result.
    """
    import torch

    factor_II, change_OI = factor["factor"], torch.empty_like(weight_OI)
    for block in _blocks(weight_OI.shape[1], options["block_size"]):
        visited, inverse_BB = slice(0, block.start), factor_II[block, block]
        moved_BO = factor_II[block, visited] @ change_OI[:, visited].T
        # inputs are rows here: one input's weights lie side by side
        weight_BO = torch.addmm(weight_OI[:, block].T, inverse_BB, moved_BO)
        weight_BO.masked_fill_(factor["dead"][block, None], 0)
        _prune_block(weight_BO, inverse_BB, factor["scale"][block], pattern, options)
        torch.sub(weight_OI[:, block], weight_BO.T, out=change_OI[:, block])
    return torch.sub(weight_OI, change_OI, out=change_OI)


def _prune_block(
    weight_BO: "torch.Tensor",
    inverse_BB: "torch.Tensor",
    scale_B: "torch.Tensor",
    pattern: SparsityPattern,
    options: dict[str, Any],
) -> None:
    """Prune and compensate a block, STEP columns at a time, in place.

    `inverse_BB` is (N[K, K]^-1)^T.
    """
    import torch

    group, zero = pattern.group, weight_BO.new_zeros(())
    if group:
        drop_BO = torch.empty_like(weight_BO, dtype=torch.bool)
    else:
        drop_BO = _block_mask((weight_BO.T * scale_B).square(), pattern, options).T.contiguous()
    step = -(-STEP // group) * group if group else STEP
    for part in _blocks(len(weight_BO), step):
        pruned_SO = torch.empty_like(weight_BO[part])
        for j in range(part.start, part.stop):
            if group and j % group == 0:
                columns = slice(j, j + group)
                score_OG = (weight_BO[columns].T * scale_B[columns]).square()
                drop_BO[columns] = drop_mask(score_OG, pattern, "row").T
            pruned_O, later = pruned_SO[j - part.start], slice(j + 1, part.stop)
            torch.where(drop_BO[j], weight_BO[j], zero, out=pruned_O)
            weight_BO[later].addr_(inverse_BB[later, j], pruned_O, alpha=-1)
        weight_BO[part.stop :].addmm_(inverse_BB[part.stop :, part], pruned_SO, alpha=-1)
    weight_BO.masked_fill_(drop_BO, 0)


def _block_mask(
    score_OB: "torch.Tensor", pattern: SparsityPattern, options: dict[str, Any]
) -> "torch.Tensor":
    if options["compat"]:
        rank = int(score_OB.numel() * pattern.ratio)
        return score_OB <= kth_lowest(score_OB.reshape(1, -1), rank + 1)
    return drop_mask(score_OB, pattern, "matrix")


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
