"""Every command that writes, and what is judged of it after something went wrong."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import lines
from faults import KILL, KILLED, REMOVAL, TORN, Ended, Layer, ended

OLD, NEW = 1, 3  # what WAY stands for in the command that made the old result, and the new one
SAID = {"ENOSPC": "free some space", "EIO": "check that disk", "EACCES": "change the permissions"}
COUNTS = ("bad", "lost", "refused", "left", "mute")


@dataclass
class Case:
    """A command in a folder of its own, and what it makes there when nothing disturbs it."""

    name: str
    words: dict[str, str]
    root: Path
    force: bool
    exchange: bool = True

    def __post_init__(self) -> None:
        self.old = self.root / "old"
        self.old.mkdir(parents=True)
        if self.force:
            self.done(self.old, OLD)
        new = self.begun("new")
        self.points = self.done(new, NEW)
        self.before, self.after = contents(self.old), contents(new)
        assert self.before != self.after and len(self.points) > 5

    def line(self, folder: Path, way: int) -> list[str]:
        return lines.line(self.name, self.words, folder, way, *["--force"] * self.force)

    def run(self, folder: Path, way: int = NEW, at: int = -1, kind: str = KILL, **how) -> Ended:
        layer = Layer(folder, at, kind, self.exchange)
        return ended(self.line(folder, way), layer, self.root / "said", **how)

    def done(self, folder: Path, way: int) -> list[str]:
        """Run the command, which must succeed; return the write points."""
        ended = self.run(folder, way)
        assert ended.status == 0, (self.name, ended.lines)
        return ended.points

    def begun(self, name: str) -> Path:
        """Return a new folder, with the old result under --force."""
        folder = self.root / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        shutil.copytree(self.old, folder, dirs_exist_ok=True)
        return folder

    def tried(self, at: int, kind: str) -> list[str]:
        """Return what is wrong after a fault at a write point, and after the next run."""
        folder = self.begun("tried")
        first = self.run(folder, at=at, kind=kind)
        wrong = [*self.mixed(folder)]
        if kind in (KILL, TORN):
            if first.status != KILLED:
                wrong.append(f"mute: it was not killed, but ended with {first.status}")
        else:
            wrong += self.untold(folder, first, SAID[kind])
            if self.points[at] not in REMOVAL:  # what cannot be removed stays
                wrong += self.half_written(folder)
        wrong += self.afterwards(folder)
        return [f"{one} ({self.name}, {kind} at {at} {self.points[at]})" for one in wrong]

    def mixed(self, folder: Path) -> Iterator[str]:
        """Yield what is neither the old result nor the new one."""
        found = contents(folder)
        for unit in {unit_of(name) for name in self.after}:
            state, old, new = (of_unit(every, unit) for every in (found, self.before, self.after))
            # one step before its end a result is whole beside its place, not in it
            beside = folder / Path(unit).parent / f".{Path(unit).name}.prunecli-"
            moving = any(Path(f"{beside}{kind}").exists() for kind in ("new", "old"))
            if state and state not in (old, new) and not moving:
                yield f"bad: '{unit}' is a mixture"
            if self.force and not state and not moving:
                yield f"lost: '{unit}'"

    def untold(self, folder: Path, ended: Ended, said: str) -> Iterator[str]:
        """Yield that a command did not say in one line which path the system refused and why."""
        text = " ".join(ended.lines)
        right = [str(folder) in text, said in text, "internal error" not in text]
        told = ended.status in (1, 4) and len(ended.lines) == 1 and all(right)
        if ended.status != 0 and not told:  # a fault that changes nothing need not be told
            yield f"mute: status {ended.status}: {ended.lines}"

    def half_written(self, folder: Path) -> Iterator[str]:
        """Yield what an error left beside the results, but for what the next run goes on from."""
        known, state = {*self.before, *self.after}, re.compile(r"\.partial/|\.prunecli-new/")
        half = [name for name in contents(folder) if name not in known and not state.search(name)]
        if half:
            yield f"left: {sorted(half)} after an error"

    def afterwards(self, folder: Path) -> Iterator[str]:
        """Yield what is wrong after the next run, undisturbed."""
        again = self.run(folder)
        published = again.status == 5 and not self.force
        if again.status != 0 and not published:
            yield f"refused: {again.lines}"
        found = contents(folder)
        if extra := found.keys() - self.after.keys():
            yield f"left: {sorted(extra)}"
        if any(found.get(name) != self.after[name] for name in self.after):
            yield "bad: the next run does not make what an undisturbed one does"


def contents(folder: Path) -> dict[str, object]:
    """Return all files and empty folders in a folder, but for what differs between equal runs."""
    found: dict[str, object] = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            name, content = str(file.relative_to(folder)), lines.TIMES.sub(b"", file.read_bytes())
            found[name] = without_run(content) if file.suffix == ".json" else content
        elif not any(file.iterdir()):
            found[f"{file.relative_to(folder)}/"] = b""
    return found


def without_run(content: bytes) -> object:
    """Return a sidecar without the part that differs between equal runs; torn text as it is."""
    try:
        record = json.loads(content)
    except ValueError:
        return content
    return {k: v for k, v in record.items() if k != "run"} if isinstance(record, dict) else record


def unit_of(name: str) -> str:
    """Return the artefact that a file belongs to: a folder, or a file with its sidecar."""
    if name.startswith("kept/tok") or name.startswith("kept/spec"):
        return name  # a tokenizer for the user, which consists of files
    if name.startswith("o/"):
        return "o"
    return name.replace(".safetensors.json", ".safetensors")


def of_unit(found: dict[str, object], unit: str) -> dict[str, object]:
    return {name: content for name, content in found.items() if unit_of(name) == unit}
