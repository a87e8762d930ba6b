"""Token-matching: exposures as multisets of rows, and every kind of mismatch."""

from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunecli.files.sidecar import HistoryStep, Input
from prunecli.tables import matching


def step(command: str, rows: str = "", start: int = 0, stop: int = 0, passes: int | None = None,
         batch: int | None = None):  # fmt: skip
    inputs = []
    if rows:
        passes = stop - start if passes is None else passes
        entry = {"role": "rows", "digest": rows, "range": [start, stop], "passes": passes}
        inputs = [Input.model_validate(entry)]
    options = {"batch_size": batch}
    return HistoryStep(id="x", parent=None, command=command, options=options, inputs=inputs)


def line(*steps: HistoryStep) -> matching.TrainingHistory:
    return matching.training_history(SimpleNamespace(history=list(steps)))  # type: ignore[arg-type]


runs = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(0, 6), st.integers(1, 6), st.integers(1, 20)),
    max_size=5,
)


@given(runs)
def test_exposure_counts_every_row(found) -> None:
    expected: dict[str, Counter] = {"a": Counter(), "b": Counter()}
    steps = []
    for rows, start, size, passes in found:
        passes = max(passes, size)
        steps.append(step("train", rows, start, start + size, passes))
        for i in range(passes):
            expected[rows][start + i % size] += 1
    got: dict[str, Counter] = {"a": Counter(), "b": Counter()}
    seen = matching.rows_seen(steps)
    for rows, pieces in seen.items():
        for start, stop, times in pieces:
            got[rows].update(dict.fromkeys(range(start, stop), times))
    assert got == expected
    halves = matching.added(matching.rows_seen(steps[::2]), matching.rows_seen(steps[1::2]))
    assert halves == seen


PRUNED = (
    step("init"),
    step("train", "a", 0, 100),
    step("prune"),
    step("train", "a", 100, 150),
)


@pytest.mark.parametrize(
    ("scratch", "expected"),
    [
        ([("a", 100, 150, 50)], matching.EQUAL_RETRAINING),
        ([("a", 100, 120, 20), ("a", 120, 150, 30)], matching.EQUAL_RETRAINING),
        ([("a", 0, 150, 150)], matching.EQUAL_TOTAL),
        ([("a", 100, 151, 51)], None),  # one row more
        ([("a", 100, 149, 49)], None),  # one row less
        ([("a", 101, 151, 50)], None),  # as many rows, but others
        ([("b", 100, 150, 50)], None),  # another set of rows
        ([("a", 100, 150, 100)], None),  # twice over
        ([("a", 100, 150, 51)], None),  # one row read again
        ([], None),
    ],
)
def test_every_kind_of_mismatch(scratch, expected) -> None:
    trained = [step("train", *entry) for entry in scratch]
    setting, why = matching.comparison_setting(line(*PRUNED), line(step("init"), *trained))
    assert setting == expected
    assert bool(why) == (expected is None)


def in_batches(start, stop, batch):
    """Return a run over a range, which ends with its last whole batch."""
    return step("train", "a", start, stop - (stop - start) % batch, batch=batch)


@pytest.mark.parametrize(
    ("rows", "batch", "matched"),
    [
        ([(0, 150)], 16, True),  # 96 and 48 rows, and 144: four at the end for those at 96
        ([(0, 100), (100, 150)], 16, True),  # the same rows
        ([(0, 102), (102, 150)], 16, False),  # rows at 100, which are behind no end
        ([(1, 151)], 16, False),
        ([(0, 150)], 3, False),  # 150 rows
        ([(0, 96), (105, 153)], 16, False),  # five rows from 100 on: not those right behind 96
        ([(0, 144), (200, 206)], 6, False),
    ],
)
def test_rows_that_fill_no_batch(rows, batch, matched) -> None:
    """The parent is trained on rows to 100 and 50 more follow: the rest of both is left out."""
    pruned = (step("init"), in_batches(0, 100, 16), step("prune"), in_batches(100, 150, 16))
    scratch = line(step("init"), *(in_batches(*entry, batch) for entry in rows))
    found = matching.comparison_setting(line(*pruned), scratch)[0]
    assert found == (matching.EQUAL_TOTAL if matched else None)


def test_a_batch_that_no_run_has_made_matches_nothing() -> None:
    """A forged sidecar could name one of a million rows."""
    pruned = line(step("init"), step("prune"), step("train", "a", 0, 10, batch=10**6))
    scratch = line(step("init"), step("train", "a", 10, 20, batch=10**6))
    assert matching.comparison_setting(pruned, scratch)[0] is None


def test_a_parent_from_elsewhere() -> None:
    pruned = line(step("prune"), step("train", "a", 0, 10))
    scratch = line(step("init"), step("train", "a", 0, 10))
    assert matching.comparison_setting(pruned, scratch) == (matching.RELEASED, "")


def test_total_tokens_need_disjoint_rows() -> None:
    pruned = line(step("train", "a", 0, 10), step("prune"), step("train", "a", 5, 15))
    both = line(step("init"), step("train", "a", 0, 10), step("train", "a", 5, 15))
    assert matching.comparison_setting(pruned, both)[0] is None


def test_what_is_scratch() -> None:
    assert line(step("init")).scratch
    assert not line(step("init"), step("prune")).scratch
    assert not line(step("train", "a", 0, 1)).scratch
