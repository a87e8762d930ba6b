"""Two processes that want one OUT: one wins, the other is told, and what is there is one result."""

import os
import random
import shutil
from collections import Counter
from functools import partial
from pathlib import Path

import lines
import pytest
from forks import begun, ended
from lines import EIGHT, LINES, as_program, line, made

from prunecli.files import claim

WAYS = (1, 3)


@pytest.fixture(scope="module")
def alone(words, tmp_path_factory):
    """Return a function from a command and a way to the folder of a run without another."""
    known: dict[tuple[str, int], Path] = {}

    def of(name: str, way: int) -> Path:
        if (name, way) not in known:
            folder = known[name, way] = tmp_path_factory.mktemp("alone")
            assert lines.run(line(name, words, folder, way), folder.parent / "talk") == 0
        return known[name, way]

    return of


def statuses(one: list[str], other: list[str], talk: Path, before=lambda: None) -> list[int]:
    """Return the exit statuses of two command lines that begin together."""
    reader, writer = os.pipe()

    def ready(arguments: list[str], said: Path) -> None:
        os.close(writer)
        os.read(reader, 1)  # until the last writer is closed
        as_program(arguments, said, before)

    children = [
        begun(partial(ready, arguments, talk.with_name(f"{talk.name}{i}")))
        for i, arguments in enumerate((one, other))
    ]
    os.close(writer)
    os.close(reader)
    return [ended(child) for child in children]


def judge(name: str, ways: list[int], force: bool, ends: list[int], folder: Path, alone) -> str:
    """Check what a pair left; return who won."""
    wanted = [made(alone(name, way), name) for way in ways]
    found, talk = made(folder, name), folder.parent / "talk"
    assert sorted(ends) in ([0, 5], *([[0, 0]] if force else [])), ends
    assert found in wanted, f"neither result: {sorted(found)}"
    assert ends == [0, 0] or found == wanted[ends.index(0)]
    assert lines.names(folder) == lines.names(alone(name, ways[0])), lines.names(folder)
    assert lines.run(["check", "--deep", str(folder / LINES[name][0])], talk) == 0
    return "both, one after the other" if ends == [0, 0] else "one"


def pairs(name: str, count: int, words, alone, root: Path, before=lambda: None) -> Counter[str]:
    """Run so many pairs of a command: equal and other options, over nothing, and with --force."""
    counts, draw = Counter[str](), random.Random(name)
    for i in range(count):
        folder, force = root / str(i) / "at", bool(i % 2)
        ways = [1, 1] if draw.random() < 0.3 else draw.sample(WAYS, 2)
        if force and draw.random() < 0.5:
            shutil.copytree(alone(name, draw.choice(WAYS)), folder)
        folder.mkdir(parents=True, exist_ok=True)
        more = ["--force"] * force
        both = [line(name, words, folder, way, *more) for way in ways]
        ends = statuses(*both, root / "talk", before)
        counts[judge(name, ways, force, ends, folder, alone)] += 1
    return counts


@pytest.mark.parametrize("name", EIGHT)
def test_pairs(name, words, alone, tmp_path):
    pairs(name, 2, words, alone, tmp_path)


def test_without_a_lock_there_are_mixtures(words, alone, tmp_path):
    """The control: processes that do not exclude each other."""

    def plant() -> None:
        claim.fcntl.flock = lambda handle, how: None

    with pytest.raises(AssertionError):
        pairs("score", 12, words, alone, tmp_path, plant)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_400_pairs(words, alone, tmp_path):
    counts: Counter[str] = Counter()
    for name in EIGHT:
        counts += pairs(name, 50, words, alone, tmp_path / name)
    print(f"\n{counts.total()} pairs over {len(EIGHT)} commands, 0 corrupted; won: {dict(counts)}")
