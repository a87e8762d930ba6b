"""Where files come from, by their sidecars: rows trained on, and whether a record is intact."""

from collections.abc import Iterable
from typing import Any, get_args

from prunecli.files.sidecar import Kind, Sidecar, Trained, content_id


def integrity_error(record: Sidecar) -> str:
    """Return what in a sidecar contradicts the rest of it, as a message; empty for nothing.

    Ids are hashes of options and inputs, the step before is one of the inputs, and the tokens
    trained on are those of the steps: no step can be changed without changing all after it.
    """
    if not record.history or record.history[-1].id != record.id:
        return "its id is not that of its last step"
    last = record.history[-1]
    if (last.options, last.inputs) != (record.options, record.inputs):
        return "its options or inputs are not those of its last step"
    for before, step in zip([None, *record.history], record.history, strict=False):
        if step.parent != (before.id if before else None):
            return f"its history is broken at '{step.command}'"
        if before and before.id not in [entry.id for entry in step.inputs]:
            return f"'{step.command}' in its history was not made from the step before"
        if step.id not in (content_id(kind, step.options, step.inputs) for kind in get_args(Kind)):
            return f"options or inputs of '{step.command}' in its history were changed"
    try:
        counted = [
            (entry.digest, tuple(extra["range"]), extra["passes"] * extra["seq_len"])
            for step in record.history
            for entry in step.inputs
            if entry.role == "rows" and "passes" in (extra := entry.model_extra or {})
        ]
    except (KeyError, TypeError):
        return "the rows in its history have no range, or no length"
    if counted != [(t.rows, t.range, t.count) for t in record.tokens.trained]:
        return "the tokens that it was trained on are not those of its history"
    return ""


def overlap(one: Trained, others: Iterable[Trained]) -> int:
    """Return how many rows a record has in common with others, each counted once."""
    count, end = 0, one.range[0]
    for first, stop in sorted(other.range for other in others if other.rows == one.rows):
        end, start = max(end, min(stop, one.range[1])), max(end, first)
        count += max(0, end - start)
    return count


def trained_on(meta: dict[str, Any]) -> Trained | None:
    """Return which rows tokens are, by their `meta`; None if they are no rows."""
    if "rows" not in meta:
        return None
    start, stop = meta["range"]
    return Trained(rows=meta["rows"], range=(start, stop), count=(stop - start) * meta["seq_len"])
