"""Faults at every write point of every command that writes: what is left, and what comes next.

After each, the old result is whole or the new one is. The next equal run makes the bytes of an
undisturbed one and leaves nothing else. What the system refuses is told in one line, with the path
and what to do, and leaves nothing half-written.
"""

import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import COUNTS, Case
from faults import ERRORS, KILL, TORN, can
from lines import CHANGED

from prunecli import errors
from prunecli.files import output


def judged(tried: list[list[str]], what: str) -> None:
    """Print the counts of what is wrong, and fail unless all are 0."""
    wrong = [one for trial in tried for one in trial]
    counts = Counter(one.split(":")[0] for one in wrong)
    print(f"\n{what}: {len(tried)} faults, " + ", ".join(f"{counts[c]} {c}" for c in COUNTS))
    print("\n".join(wrong))
    assert not wrong, "\n".join(wrong[:20])


def walked(case: Case, kinds: tuple[str, ...]) -> Iterator[list[str]]:
    """Yield what is wrong after a fault at every write point, from the last to the first.

    Each point gets one of `kinds`, by turns, of those that it can have.
    """
    for at, point in reversed(list(enumerate(case.points))):
        if possible := [kind for kind in kinds if can(kind, point)]:
            yield case.tried(at, possible[at % len(possible)])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", CHANGED)
def test_kills_at_every_point_of_every_command(name, words, tmp_path):
    tried = []
    for force, exchange in ((False, True), (True, True), (True, False)):
        case = Case(name, words, tmp_path / f"{force}{exchange}", force, exchange)
        tried += walked(case, (KILL,))
    judged(tried, f"killed: {name}")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", CHANGED)
def test_refusals_at_every_point_of_every_command(name, words, tmp_path):
    tried = []
    for force in (False, True):
        case = Case(name, words, tmp_path / str(force), force)
        tried += [*walked(case, (TORN,)), *walked(case, tuple(ERRORS))]
    judged(tried, f"torn or refused: {name}")


def copied(temporary: Path, path: Path) -> None:
    output.remove(path)
    shutil.copytree(temporary, path)


def numbered(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{kind}")


PLANTED = {
    "copied, not renamed": (output, "publish", copied, KILL, {"lost", "bad"}),
    "leftovers nobody knows": (output, "sibling", numbered, KILL, {"left"}),
    "errors without a remedy": (errors, "REMEDIES", {}, "EIO", {"mute"}),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_planted_faults_are_found(fault, words, tmp_path, monkeypatch):
    module, name, planted, kind, expected = PLANTED[fault]
    monkeypatch.setattr(module, name, planted)
    case = Case("init", words, tmp_path, force=True)
    assert any({one.split(":")[0] for one in wrong} & expected for wrong in walked(case, (kind,)))


@pytest.mark.parametrize("name", CHANGED)
def test_a_few_faults_of_every_command(name, words, tmp_path):
    """At points that the name draws: the same each time, others for each command."""
    draw, tried = random.Random(name), []
    for force, kinds in ((False, [KILL]), (True, [KILL, draw.choice([TORN, *ERRORS])])):
        case = Case(name, words, tmp_path / str(force), force)
        for kind in kinds:
            at = draw.choice([i for i, point in enumerate(case.points) if can(kind, point)])
            tried.append(case.tried(at, kind))
    judged(tried, name)
