"""Which runs are token-matched, proven from the histories in their sidecars.

What a model has seen is a multiset of rows: how often each row of each set (known by its digest)
was trained on, along the whole ancestry. Two models are matched when these are equal, not when
some option was. A run leaves out the rows at its end that fill no batch; so one run over the rows
of two has as many others instead, and these may differ. In the paper's terms (arXiv 2606.14150),
with S trained from scratch, P before pruning and R after it:

    S_N vs P_M-R_N       S has seen what R has
    S_{M+N} vs P_M-R_N   S has seen what P and R have, and these share no row
    S_N vs Meta-R_N      S has seen what R has, the parent came trained from elsewhere
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from typing import Any

from prunecli.files.sidecar import HistoryStep, Input, Sidecar

EQUAL_RETRAINING = "S_N vs P_M-R_N"
EQUAL_TOTAL = "S_{M+N} vs P_M-R_N"
RELEASED = "S_N vs Meta-R_N"
DEEPEST = 50  # models that are made of another, one after the other


# per set of rows: segments [start, stop) and how often their rows were seen, joined where equal
RowsSeen = dict[str, tuple[tuple[int, int, int], ...]]
# per set of rows: by how much the number of times changes at a row
Changes = defaultdict[str, defaultdict[int, int]]


@dataclass(frozen=True)
class TrainingHistory:
    """What a model went through: rows seen before and after pruning, or never pruned.

    With each go those behind the ends of its runs, too few for a batch, which it can have left out.
    """

    pruned: bool
    scratch: bool
    before: RowsSeen
    after: RowsSeen
    behind_before: RowsSeen
    behind_after: RowsSeen


def training_history(record: Sidecar) -> TrainingHistory:
    """Read a checkpoint's history; the last pruning divides it."""
    steps = record.history
    cuts = [index for index, step in enumerate(steps) if step.command == "prune"]
    last = cuts[-1] if cuts else -1
    born = bool(steps) and steps[0].command == "init" and not cuts
    parts = steps[: last + 1], steps[last + 1 :]
    return TrainingHistory(bool(cuts), born, *map(rows_seen, parts), *map(rows_behind, parts))


def origin(record: Sidecar) -> str:
    """Return the digest of what was pruned first, nothing if that is not known."""
    for step in record.history:
        if step.command == "prune":
            return next((entry.digest for entry in step.inputs if entry.role == "model"), "")
    return ""


def rows_seen(steps: Iterable[HistoryStep]) -> RowsSeen:
    """Return which rows these steps trained on, and how often."""
    changes: Changes = defaultdict(lambda: defaultdict(int))
    for _, digest, start, stop, passes in _ranges(steps):
        # rows read in all; the first few of an unfinished epoch once more than the others
        times, more = divmod(passes, stop - start)
        counts = changes[digest]
        counts[start] += times + 1
        counts[start + more] -= 1
        counts[stop] -= times
    return _of_changes(changes)


def rows_behind(steps: Iterable[HistoryStep]) -> RowsSeen:
    """Return the rows behind the ends of these steps' ranges that fill no batch of theirs."""
    changes: Changes = defaultdict(lambda: defaultdict(int))
    for step, digest, start, stop, passes in _ranges(steps):
        batch = step.options.get("batch_size")
        # several epochs leave out nothing; no batch has more rows than the run
        if type(batch) is int and passes == stop - start and 1 < batch <= passes:
            changes[digest][stop] += 1
            changes[digest][stop + batch - 1] -= 1
    return _of_changes(changes)


def _ranges(steps: Iterable[HistoryStep]) -> Iterator[tuple[HistoryStep, str, int, int, int]]:
    """Yield what steps trained on: the step, the rows' digest, their range, how many were read."""
    for step in steps:
        for entry in step.inputs:
            extra = entry.model_extra or {}
            if entry.role == "rows" and "passes" in extra:
                yield step, entry.digest, *extra["range"], extra["passes"]


def _of_changes(changes: Mapping[str, dict[int, int]]) -> RowsSeen:
    return {digest: segments for digest, c in changes.items() if (segments := _segments(c))}


def _segments(changes: dict[int, int]) -> tuple[tuple[int, int, int], ...]:
    segments: list[tuple[int, int, int]] = []
    times = 0
    for start, stop in pairwise(sorted(changes)):
        times += changes[start]
        if not times:
            continue
        if segments and segments[-1][1:] == (start, times):
            segments[-1] = (segments[-1][0], stop, times)
        else:
            segments.append((start, stop, times))
    return tuple(segments)


def added(one: RowsSeen, other: RowsSeen, sign: int = 1) -> RowsSeen:
    """Return what two models have seen together; with -1, what one has seen more than the other.

    There, rows that the other has seen more are counted below zero.
    """
    changes: Changes = defaultdict(lambda: defaultdict(int))
    for factor, rows in ((1, one), (sign, other)):
        for digest, segments in rows.items():
            for start, stop, times in segments:
                changes[digest][start] += factor * times
                changes[digest][stop] -= factor * times
    return _of_changes(changes)


def alike(one: RowsSeen, other: RowsSeen, behind_one: RowsSeen, behind_other: RowsSeen) -> bool:
    """Return whether two multisets are equal, but for as many rows that each can have left out."""
    surplus = 0
    for digest, segments in added(one, other, -1).items():
        for start, stop, times in segments:
            behind = (behind_other if times > 0 else behind_one).get(digest, ())
            if abs(times) > 1 or not any(a == start and stop <= b for a, b, _ in behind):
                return False
            surplus += times * (stop - start)
    return surplus == 0


def disjoint(one: RowsSeen, other: RowsSeen) -> bool:
    """Return whether no row is in both: segments of one never meet, so those that do are of two."""
    return all(
        before[1] <= after[0]
        for digest in one.keys() & other.keys()
        for before, after in pairwise(sorted((*one[digest], *other[digest])))
    )


def comparison_setting(pruned: TrainingHistory, scratch: TrainingHistory) -> tuple[str | None, str]:
    """Return in which of the paper's settings two models are matched, or None and why not."""
    seen = added(scratch.before, scratch.after)
    behind = added(scratch.behind_before, scratch.behind_after)
    if not seen:
        return None, "the scratch model was not trained"
    if not pruned.after:
        return None, "the pruned model was not retrained"
    if alike(seen, pruned.after, behind, pruned.behind_after):
        return (EQUAL_RETRAINING if pruned.before else RELEASED), ""
    whole = added(pruned.before, pruned.after)
    if alike(seen, whole, behind, added(pruned.behind_before, pruned.behind_after)):
        if disjoint(pruned.before, pruned.after):
            return EQUAL_TOTAL, ""
        return None, "the pruned model was retrained on rows that its parent had seen"
    return None, f"scratch saw {described(seen)}, retraining {described(pruned.after)}"


Histories = Mapping[str, Sequence[HistoryStep]]


def histories(records: Iterable[Sidecar]) -> dict[str, Sequence[HistoryStep]]:
    """Return the steps to every model that these records name, by the id of the last."""
    return {
        step.id: record.history[: number + 1]
        for record in records
        for number, step in enumerate(record.history)
    }


def zeros(record: Sidecar, known: Histories) -> str | None:
    """Return what made the zeros that a model holds, as an id; None for a dense one.

    Counting them would not do: trained weights round to zero, and untrained biases are.
    """
    step = _zeros(record.history, known)
    # nothing is recorded of the model that had them first, but what was removed is
    sparse = str(record.results.get("granularity")).startswith("weights")
    return step if sparse or not _unknown(step) else None


UNKNOWN = "those of "


def _unknown(step: str | None) -> bool:
    return step is not None and step.startswith(UNKNOWN)


def _zeros(steps: Sequence[HistoryStep], known: Histories) -> str | None:
    """Return the id of the step that made the zeros, or UNKNOWN and a model without history.

    A scratch twin holds those of the model that it is like; training keeps them, drops them or
    takes those of another. The last step that says anything decides.
    """
    walked: set[str] = set()
    left = list(steps)
    while left:
        step = left.pop()
        by_role = {entry.role: entry for entry in step.inputs}
        masks, other = step.options.get("masks"), by_role.get("masks")
        if step.command == "init":
            other = by_role.get("like") if masks == "keep" else None
        if step.command == "prune" and step.options.get("sparsity") is not None:
            return step.id
        if step.command == "train" and masks == "drop":
            return None
        if other is not None:
            key = other.id or ""
            if key not in known or key in walked:
                return f"{UNKNOWN}{key or other.digest}"
            walked.add(key)
            left = list(known[key])
    return None


def recipe(record: Sidecar, known: Histories) -> list[Any]:
    """Return how a model was made but for seeds, as plain JSON: equal for two seeds of one run.

    That is every step with its options and inputs. Inputs that were made by steps that are known
    count by these, others by their content; windows drawn from a text count by the text, and a
    dense model that another is drawn like by its sizes alone. Steps of others are in it as a hash:
    many can lead to the same ones.
    """
    hashes: dict[str, str] = {}

    def of(steps: Sequence[HistoryStep], walked: frozenset[str]) -> list[Any]:
        own = {step.id for step in steps}
        return [
            [
                step.command,
                seedless(step.options),
                [content_of(entry, step, own, walked) for entry in step.inputs],
            ]
            for step in steps
        ]

    def content_of(
        entry: Input, step: HistoryStep, own: set[str], walked: frozenset[str]
    ) -> list[Any]:
        extra, key = entry.model_extra or {}, entry.id or ""
        redrawn = entry.role == "like" and step.options.get("compat") is None
        content: Any = entry.digest
        if redrawn and _zeros([step], known) is None:
            content = "its sizes"
        elif key in own:
            content = "the step before"
        elif key in known and key not in walked and len(walked) < DEEPEST:
            if key not in hashes:
                text = json.dumps(of(known[key], walked | {key}), sort_keys=True)
                hashes[key] = sha256(text.encode()).hexdigest()
            content = hashes[key]
        elif entry.digest in (drawn := _drawn_windows(step)):
            content = drawn[entry.digest]
        meta = {name: value for name, value in extra.items() if name != "windows"}
        return [entry.role, content, seedless(meta)]

    return of(record.history, frozenset())


def _drawn_windows(step: HistoryStep) -> dict[str | None, str]:
    """Return the text that a step's seeds drew windows from, by the windows' digest.

    Masks are learned on such windows, so a step can have them as its rows, too.
    """
    extras = ((entry.digest, entry.model_extra or {}) for entry in step.inputs)
    return {
        digest: extra["text"]
        for digest, extra in extras
        if extra.get("seed") is not None and extra.get("text") is not None
    }


def seedless(content: Any) -> Any:
    """Return plain JSON without any seed in it."""
    if isinstance(content, dict):
        return {key: seedless(value) for key, value in content.items() if key != "seed"}
    return [seedless(value) for value in content] if isinstance(content, list) else content


def described(seen: RowsSeen) -> str:
    """Return the rows seen in words: first letters of each digest, ranges, repetitions."""
    return " and ".join(
        f"{digest[:8]}:" + ",".join(f"{a}:{b}" + (f" x{n}" * (n > 1)) for a, b, n in segments)
        for digest, segments in sorted(seen.items())
    )
