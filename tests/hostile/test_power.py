"""Power loss at any moment: the old result is whole, or the new one, and the next run goes on."""

import random
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import lines
import pytest
from lines import EIGHT, LINES, line, made
from power import Files, build, crashes, recorded

from prunecli.files.claim import claimed
from prunecli.files.output import MARK
from prunecli.settings import RunContext

OLD, NEW = 1, 3
TWO_STEPS = " --force, without an exchange"
# what was there: nothing, not even the folder; or an old result, with renameat2 and without
MODES = ("", " --force", TWO_STEPS)
COUNTS = ("bad", "lost", "refused", "differs", "not kept")


@dataclass
class Case:
    """A command in a folder of its own, in one of MODES."""

    name: str
    mode: str
    words: dict[str, str]
    root: Path

    def __post_init__(self) -> None:
        self.results = []
        for way in (OLD, NEW) if self.force else (NEW,):
            folder = self.root / str(way)
            folder.mkdir(parents=True)
            assert lines.run(self.line(folder, way), self.talk) == 0
            self.results.append(made(folder, self.name))
        self.names = lines.names(self.root / str(NEW))

    @property
    def force(self) -> bool:
        return self.mode != ""

    @property
    def talk(self) -> Path:
        return self.root / "talk"

    def line(self, folder: Path, way: int) -> list[str]:
        return line(self.name, self.words, folder, way, *["--force"] * self.force)

    def crashes(self, fsyncs: bool = True) -> list[tuple[bool, Files]]:
        """Return what a crash could leave, and whether the run had ended."""
        root = self.root / f"recorded{fsyncs}"
        root.mkdir()
        if self.force:
            shutil.copytree(self.root / str(OLD), root, dirs_exist_ok=True)
        # without --force OUT lies in a folder that is new
        folder = root if self.force else root / "new"
        before = lines.without_exchange if self.mode == TWO_STEPS else lambda: None
        trace = recorded(
            root, lambda: lines.as_program(self.line(folder, NEW), self.talk, before), fsyncs
        )
        self.store, states = trace.store, list(crashes(trace))
        last = max(number for number, _ in states)
        return [(number == last, files) for number, files in states]

    def judge(self, ended: bool, files: Files, folder: Path) -> str:
        """Return what is wrong after this crash, or what was found and made good."""
        shutil.rmtree(folder, ignore_errors=True)
        build(files, self.store, folder)
        at = folder if self.force else folder / "new"
        at.mkdir(exist_ok=True)
        old, new = self.results[0] if self.force else None, self.results[-1]
        out = LINES[self.name][0]
        found = made(at, self.name)
        found.pop(f"{out}/{MARK}", None)  # a new OUT bears it until the old one is put away
        state = "old" if found == old else "new" if found == new else "none"
        if state == "none" and (at / out).exists():
            if lines.run(["check", "--deep", str(at / out)], self.talk) == 0:
                return "bad"
            state = "told"
        if ended and state != "new":
            return "not kept"
        if self.force and state != "new":
            shutil.copytree(at, folder / "copy", ignore=shutil.ignore_patterns("copy"))
            with claimed(RunContext(), str(folder / "copy" / out)):
                if made(folder / "copy", self.name) not in (old, new):
                    return "lost"
        status = lines.run(self.line(at, NEW), self.talk)
        if status != 0 and not (status == 5 and state == "new"):
            return "refused"
        whole = made(at, self.name) == new and lines.names(at) - {"copy"} == self.names
        return state if whole else "differs"


def walk(case: Case, states: list[tuple[bool, Files]], show: bool = False) -> Counter[str]:
    counts: Counter[str] = Counter()
    for number, (ended, files) in enumerate(states):
        found = case.judge(ended, files, case.root / "crash")
        counts[found] += 1
        if show and found in COUNTS:
            print(f"\n{case.name} {number}: {found}: {sorted(files)} {case.talk.read_text()}")
    return counts


def wrong(counts: Counter[str]) -> dict[str, int]:
    return {kind: counts[kind] for kind in COUNTS if counts[kind]}


@pytest.mark.parametrize("name", ["calibrate", "prune", "train", "tokenize"])
def test_some_crashes(name, words, tmp_path):
    for mode in MODES[:2]:
        case = Case(name, mode, words, tmp_path / f"at{mode}")
        states = case.crashes()
        assert not wrong(walk(case, random.Random(0).sample(states, 2)))


def test_without_fsync_there_are_losses(words, tmp_path):
    """The control: what does not wait for the disk is found."""
    case = Case("prune", MODES[1], words, tmp_path / "at")
    states = case.crashes(fsyncs=False)
    assert wrong(walk(case, random.Random(0).sample(states, 12)))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_all_crashes(words, tmp_path):
    total: Counter[str] = Counter()
    for name in EIGHT:
        for mode in MODES:
            case = Case(name, mode, words, tmp_path / name / f"at{mode}")
            states = case.crashes()
            some = random.Random(0).sample(states, min(len(states), 20))
            counts = walk(case, some, show=True)
            print(f"\n{name}{mode}: {len(states)} states, {dict(counts)}")
            total += counts
    print(f"\n{total.total()} states after a loss of power: {dict(total)}")
    assert total.total() >= 200 and not wrong(total)
