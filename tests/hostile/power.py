"""Power loss: a run's operations on files are recorded, and what a crash could leave is built.

What is durable follows from fsync alone: of a file, its data; of a folder, the names in it. All
else was in memory, and a crash may leave any of it: names that were made, moved or removed since,
in order or not (a rename is one step), and data that is missing, torn or whole. File systems keep
more than that, each in its own way; what holds here holds on all.
"""

import builtins
import hashlib
import io
import os
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from forks import in_child

from prunecli.files import output

CALLS = ("mkdir", "rename", "replace", "link", "symlink", "unlink", "remove", "rmdir")
DATA = ("missing", "torn", "whole")
ROOT = 0

Names = dict[int, dict[str, int]]  # of each folder by number, the numbers of what is in it
Change = tuple[int, str, int | None]  # folder, name, what is there now


@dataclass
class Step:
    """One operation: the names that it changed at once, or the file or folder that it synced.

    `names` are all names, and `data` the digests of all files, once it was done.
    """

    what: str
    changes: list[Change]
    synced: int | None
    names: Names
    data: dict[int, str]


@dataclass
class Trace:
    """The operations of a run below a folder; the first step is what was there before.

    `store` has what files held, by digest.
    """

    steps: list[Step] = field(default_factory=list)
    store: dict[str, bytes] = field(default_factory=dict)


class Recorder:
    """Looks at the folder after every call that may have changed it."""

    def __init__(self, root: Path) -> None:
        self.root, self.trace = root, Trace()
        self._open, self._fdopen = io.open, os.open
        self._numbers: dict[int, int] = {}
        self._last = -1
        self._look("before", None)

    def install(self, fsyncs: bool) -> None:
        """Replace what writes, in this process; there is no way back, so it is a child."""
        for name in CALLS:
            setattr(os, name, self._watched(name, getattr(os, name)))
        os.open = self._watched("open", os.open)
        builtins.open = io.open = self._watched("open", io.open)
        output._exchange = self._watched("exchange", output._exchange)

        def fsync(handle) -> None:
            if fsyncs:
                self._look("fsync", os.fstat(handle).st_ino)

        os.fsync = os.fdatasync = fsync

    def _watched(self, name: str, real: Callable) -> Callable:
        def call(*args, **kwargs):
            done = real(*args, **kwargs)
            self._look(name, None)
            return done

        return call

    def _look(self, what: str, synced: int | None) -> None:
        numbers, names, data = {self.root.stat().st_ino: ROOT}, {}, {}
        for folder, below, files in os.walk(self.root):
            own = names[numbers[os.stat(folder).st_ino]] = {}
            for name in (*below, *files):
                inode = os.lstat(os.path.join(folder, name)).st_ino
                if inode not in self._numbers:
                    self._last += 1
                    self._numbers[inode] = self._last + 1
                numbers[inode] = own[name] = self._numbers[inode]
                if name in files:
                    data[own[name]] = self._kept(os.path.join(folder, name))
        self._numbers = numbers  # the system may give an inode again
        then = self.trace.steps[-1].names if self.trace.steps else {}
        changes = [
            (folder, name, names[folder].get(name))
            for folder in names  # what happens in a folder that goes itself is of no interest
            for name in {*then.get(folder, {}), *names[folder]}
            if then.get(folder, {}).get(name) != names[folder].get(name)
        ]
        number = numbers.get(synced) if synced is not None else None
        if changes or number is not None or not self.trace.steps:
            self.trace.steps.append(Step(what, changes, number, names, data))
        else:
            self.trace.steps[-1].data = data

    def _kept(self, path: str) -> str:
        with self._open(path, "rb") as file:
            content = file.read()
        digest = hashlib.sha256(content).hexdigest()
        self.trace.store[digest] = content
        return digest


def recorded(root: Path, work: Callable[[], object], fsyncs: bool = True) -> Trace:
    """Return what `work`, done in a child, did below a folder; as if without fsync, if asked."""
    file = root.parent / f"{root.name}.trace"

    def watched() -> None:
        recorder = Recorder(root)
        leave = os._exit

        def end(status: int) -> None:
            with recorder._open(file, "wb") as to:
                pickle.dump(recorder.trace, to)
            leave(status)

        os._exit = end
        recorder.install(fsyncs)
        work()

    assert in_child(watched) == 0
    trace: Trace = pickle.loads(file.read_bytes())
    file.unlink()
    return trace


@dataclass
class Disk:
    """What is durable: names of folders, data of files by digest."""

    names: Names
    data: dict[int, str]

    def with_names(self, pending: list[list[Change]]) -> Names:
        """Return all names once these operations are durable too."""
        names = {folder: dict(own) for folder, own in self.names.items()}
        for changes in pending:
            for folder, name, now in changes:
                own = names.setdefault(folder, {})
                own.pop(name, None)
                if now is not None:
                    own[name] = now
        return names


Part = tuple[str, int]  # the digest of what a file held, and how many bytes of that are left
FOLDER: Part = ("", -1)
Files = dict[str, Part]  # by path


def crashes(trace: Trace) -> Iterator[tuple[int, Files]]:
    """Yield each state that a crash could leave, with the number of the step that it comes after.

    Of the operations that are not durable: none, each prefix, all but one, and one alone.
    """
    first, *steps = trace.steps
    disk, pending = Disk(first.names, dict(first.data)), []
    folders = {folder for step in trace.steps for folder in step.names}
    written: dict[int, str] = {}
    seen: set[tuple] = set()
    for number, step in enumerate(steps):
        written |= step.data
        if step.changes:
            pending.append(step.changes)
        if step.synced is not None:
            pending = _synced(disk, pending, step)
        orders = [pending[:count] for count in range(len(pending) + 1)]
        orders += [pending[:i] + pending[i + 1 :] for i in range(len(pending))]
        orders += [[one] for one in pending]
        for order in orders:
            for kind in DATA:
                names = disk.with_names(order)
                files = dict(_files(disk, names, folders, written, kind, trace.store))
                # at the end of a run more is promised than before it
                key = (*sorted(files.items()), number == len(steps) - 1)
                if key not in seen:
                    seen.add(key)
                    yield number, files


def _synced(disk: Disk, pending: list[list[Change]], step: Step) -> list[list[Change]]:
    """Make durable what an fsync does; return the operations that are pending after it."""
    if step.synced in step.data:
        disk.data[step.synced] = step.data[step.synced]
        return pending
    mine = [any(folder == step.synced for folder, _, _ in changes) for changes in pending]
    disk.names = disk.with_names([c for c, own in zip(pending, mine, strict=True) if own])
    return [changes for changes, own in zip(pending, mine, strict=True) if not own]


def _files(
    disk: Disk,
    names: Names,
    folders: set[int],
    written: dict[int, str],
    kind: str,
    store: dict[str, bytes],
) -> Iterator[tuple[str, Part]]:
    waiting = [(ROOT, "")]
    while waiting:
        folder, path = waiting.pop()
        for name, number in names.get(folder, {}).items():
            here = path + name
            if number in folders:
                yield here, FOLDER
                waiting.append((number, here + "/"))
            else:
                yield here, _content(disk.data.get(number), written.get(number), kind, store)


def _content(durable: str | None, written: str | None, kind: str, store: dict[str, bytes]) -> Part:
    """Return what is left of a file: what is durable of it is never lost."""
    kept = 0 if durable is None else len(store[durable])
    if kind == "missing" or written is None or written == durable:
        return (durable or "", kept)
    now = store[written]
    start = kept if durable is not None and now.startswith(store[durable]) else 0
    return (written, len(now) if kind == "whole" else start + (len(now) - start) // 2)


def build(files: Files, store: dict[str, bytes], folder: Path) -> None:
    """Make a state on disk."""
    folder.mkdir()
    for path, (digest, length) in sorted(files.items()):
        if length < 0:
            (folder / path).mkdir(parents=True, exist_ok=True)
        else:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(store[digest][:length] if length else b"")
