"""From scores and sizes to a plan."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from prunecli.errors import InputError
from prunecli.methods._base import Method
from prunecli.model.arch import Arch
from prunecli.pruning.plan import Indices, Plan
from prunecli.pruning.sizes import Sizes, block_params

if TYPE_CHECKING:
    import torch


def allocate(
    method: Method,
    amount: Sizes,
    scores: "Mapping[str, torch.Tensor]",
    arch: Arch,
    structure: str | None = None,
) -> Plan:
    """Return what stays: the best-scored units, in the numbers that `amount` says.

    `scores` holds `layers` or `blocks.k`, or `hidden`, `ffn.i`, `kv_heads.i` and `experts.i`.
    """
    if method.selection == "block":
        skip = arch.layers - amount.layers
        name = f"blocks.{skip}"
        if name not in scores:
            raise InputError(
                f"these scores are not for removing {skip} of {arch.layers} layers",
                "score again with this amount",
            )
        # the first of equal ones, of those that leave a model
        return Plan(layers=min(_blocks(scores[name].tolist(), skip, arch))[-1])
    if method.selection == "lowest":
        ranked = int(scores["layers"].isfinite().sum())
        if ranked < arch.layers - amount.layers and method.protects is not None:
            raise InputError(
                f"these scores rank {ranked} layers, {arch.layers - amount.layers} are to go",
                "score again with this amount",
            )
        # the later of two equal layers goes first, as documented in the method
        order = _ascending(scores["layers"], later_first=True)
        return Plan(layers=tuple(arch.first_of(order[::-1], amount.layers)))
    layers = range(arch.layers)
    groups, channels = _counts(scores, amount, arch, structure)
    experts = [amount.experts] * arch.layers
    lists: dict[str, tuple[Indices, ...]] = {
        axis: tuple(
            best(scores[f"{axis}.{i}"], counts[i], parts) if f"{axis}.{i}" in scores else ()
            for i in layers
        )
        for axis, counts, parts in (
            ("kv_heads", groups, 1),
            ("ffn", channels, 1),
            ("experts", experts, arch.expert_groups[0]),
        )
        if any(f"{axis}.{i}" in scores for i in layers)
    }
    hidden = best(scores["hidden"], amount.hidden) if "hidden" in scores else None
    return Plan(
        hidden=hidden,
        ffn=lists.get("ffn"),
        kv_heads=lists.get("kv_heads"),
        experts=lists.get("experts"),
    )


def best(score: "torch.Tensor", count: int, groups: int = 1) -> Indices:
    """Return the indices of the `count` highest scores, ascending; as many of each equal group."""
    size, each = len(score) // groups, count // groups
    order = [_ascending(score[n * size : (n + 1) * size])[size - each :] for n in range(groups)]
    return tuple(sorted(n * size + j for n, own in enumerate(order) for j in own))


def _ascending(score: "torch.Tensor", later_first: bool = False) -> list[int]:
    """Return the indices of scores from the lowest on; of equal ones the earlier is first."""
    if later_first:
        order: list[int] = (len(score) - 1 - score.flip(0).argsort(stable=True)).tolist()
        return order
    order = score.argsort(stable=True).tolist()
    return order


def _blocks(
    scores: list[float], skip: int, arch: Arch
) -> Iterator[tuple[bool, float, int, Indices]]:
    """Yield of each block of layers: if its removal leaves no model, score, start, what is left."""
    for start, score in enumerate(scores):
        kept = (*range(start), *range(start + skip, arch.layers))
        yield bool(arch.lost(kept)), score, start, kept


def _counts(
    scores: "Mapping[str, torch.Tensor]", amount: Sizes, arch: Arch, structure: str | None
) -> tuple[list[int], list[int]]:
    """Return how many KV groups and FFN channels every layer keeps, where it has some.

    `AL` structures choose across layers. A layer keeps one of each at least.
    """
    first, last = amount.untouched
    inner = arch.layers - first - last
    even = (
        [arch.kv_heads] * first + [amount.kv_heads] * inner + [arch.kv_heads] * last,
        [
            arch.times("ffn", i) * (amount.ffn if first <= i < first + inner else arch.ffn)
            for i in range(arch.layers)
        ],
    )
    if structure == "AL-MM":
        return (
            _spread(scores, "kv_heads", even[0], arch),
            _spread(scores, "ffn", even[1], arch),
        )
    return _global_ranking(scores, amount, arch) if structure == "AL-AM" else even


def _spread(
    scores: "Mapping[str, torch.Tensor]", axis: str, even: list[int], arch: Arch
) -> list[int]:
    """Return how many units each layer has among the best of all, as many as `even` has in all."""
    import torch

    layers = arch.ranked(axis)
    if not layers:
        return even
    keep = sum(even[i] for i in layers)
    lists = [scores[f"{axis}.{i}"] for i in layers]
    everything = torch.cat(lists)
    owner = torch.repeat_interleave(
        torch.tensor(layers), torch.tensor([len(entry) for entry in lists])
    )
    first = torch.cat([entry == entry.max() for entry in lists])
    # one unit of every layer is safe: rank the best of each above everything else
    order = torch.where(first, torch.inf, everything).argsort(stable=True)
    kept = owner[order[len(order) - max(keep, len(layers)) :]]
    return torch.bincount(kept, minlength=arch.layers).tolist()


def _global_ranking(
    scores: "Mapping[str, torch.Tensor]", amount: Sizes, arch: Arch
) -> tuple[list[int], list[int]]:
    """Return counts from one ranking of groups and channels, weighed by their parameters.

    A group costs head_dim (2 g + 2) / 3 channels (methods of An et al. for g = 1: 512 / 3), or
    half of head_dim (2 g + 2) where the FFN has no gate.
    """
    import torch

    attending, feeding = arch.ranked("kv_heads"), arch.with_units("ffn")
    cost = arch.head_dim * (arch.head_matrices * arch.group + 2) / arch.ffn_matrices
    kept = (
        block_params(amount, arch)
        if amount.ratio is None
        else (arch.block_params * (1 - amount.ratio))
    )
    kept -= arch.other_block_params
    if not attending:
        kept -= arch.params()["attention"]
    target = kept / (arch.ffn_matrices * arch.hidden)
    channels = torch.cat([scores[f"ffn.{i}"] for i in feeding])
    groups = torch.cat([channels[:0], *(scores[f"kv_heads.{i}"] for i in attending)])
    value = torch.cat([groups, channels])
    weight = torch.cat([torch.full_like(groups, cost), torch.ones_like(channels)])
    order = value.argsort(descending=True, stable=True)
    reach = weight[order].cumsum(0)
    best = order[: int((reach - target).abs().argmin()) + 1]
    keep = torch.zeros(len(value), dtype=torch.bool)
    keep[best] = True
    counts = []
    for axis, layers, of_axis in (
        ("kv_heads", attending, keep[: len(groups)]),
        ("ffn", feeding, keep[len(groups) :]),
    ):
        own = torch.split(of_axis, [arch.size(axis, i) for i in layers])
        found = {i: max(1, int(kept.sum())) for i, kept in zip(layers, own, strict=True)}
        counts.append([found.get(i, 0) for i in range(arch.layers)])
    return counts[0], counts[1]
