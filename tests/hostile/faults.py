"""Faults at every write point of a command: it is killed, a write is torn, or the system refuses.

A write point is a call by which a process changes what is on a disk: opening a file for writing,
every write through it, mkdir, rename, link, fsync, unlink, rmdir, truncate, and the exchange of two
names. They are met by replacing `open` and the functions of `os`, in a forked child only. What
libraries write by themselves, from C, is not met.
"""

import builtins
import errno
import io
import os
import resource
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from forks import in_child

from prunecli.cli import app
from prunecli.files import output

KILLED = 9
KILL, TORN = "kill", "torn"
ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "EACCES": errno.EACCES}
# the functions of os, and which of their arguments are paths
CALLS = {
    "mkdir": 1, "rename": 2, "replace": 2, "link": 2, "symlink": 2, "unlink": 1, "remove": 1,
    "rmdir": 1, "truncate": 1, "ftruncate": 1, "fsync": 1, "fdatasync": 1, "write": 1,
}  # fmt: skip
REMOVAL = ("unlink", "remove", "rmdir")
BY_NAME = ("open", "mkdir", "rename", "replace", "link", "symlink", *REMOVAL)


def can(kind: str, point: str) -> bool:
    """Return whether a system does this at a write point of this name."""
    if kind == TORN:
        return point == "write"
    if kind == "ENOSPC":
        return point not in REMOVAL
    return kind != "EACCES" or point in BY_NAME


@dataclass
class Layer:
    """Counts write points below `root`, and at the one of number `at` does what `kind` says.

    Without `exchange` the system has no renameat2.
    """

    root: Path
    at: int = -1
    kind: str = KILL
    exchange: bool = True
    points: list[str] = field(default_factory=list)

    def install(self) -> None:
        """Replace what writes, in this process; there is no way back, so it is a child."""
        self._open = io.open
        self._exchange = output._exchange
        real = os.open

        def open_flags(path, flags, *args, **kwargs):
            if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
                self.step("open", [path], kwargs.get("dir_fd"))
            return real(path, flags, *args, **kwargs)

        os.open = open_flags
        for name, paths in CALLS.items():
            setattr(os, name, self._counted(name, getattr(os, name), paths))
        io.open = builtins.open = self._opened
        output._exchange = self._exchanged

    def step(self, name: str, paths: list, folder: int | None = None, half=None) -> None:
        """Count a write point, and act if it is the one; `half` does half of a write."""
        if not self._below(paths[0], folder):
            return
        self.points.append(name)
        if len(self.points) - 1 != self.at:
            return
        if self.kind == TORN and half is not None:
            half()
        if self.kind in (KILL, TORN):
            os._exit(KILLED)
        number = ERRORS[self.kind]
        named = [path for path in paths[:1] if name in BY_NAME]
        raise OSError(number, os.strerror(number), *named)

    def _below(self, path, folder: int | None) -> bool:
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        elif folder is not None:
            path = Path(os.readlink(f"/proc/self/fd/{folder}"), os.fsdecode(path))
        return Path(os.path.abspath(os.fsdecode(path))).is_relative_to(self.root)

    def _counted(self, name: str, real: Callable, paths: int) -> Callable:
        def call(*args, **kwargs):
            half = None
            if name == "write":
                half = lambda: real(args[0], args[1][: len(args[1]) // 2])  # noqa: E731
            self.step(name, list(args[:paths]), kwargs.get("dir_fd"), half)
            return real(*args, **kwargs)

        return call

    def _exchanged(self, one: Path, other: Path) -> bool:
        try:
            self.step("exchange", [one])
        except OSError:
            return False  # as the system call says it
        return self.exchange and self._exchange(one, other)

    def _opened(
        self, file, mode="r", buffering=-1, encoding=None, errors=None, newline=None,
        closefd=True, opener=None,
    ):  # fmt: skip
        if not set(mode) & set("wax+") or not self._below(file, None):
            return self._open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        if not isinstance(file, int) and opener is None:
            self.step("open", [file])
        raw = _File(self, file, mode.replace("b", "").replace("t", ""), closefd, opener)
        if buffering == 0:
            return raw
        buffer = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return buffer
        text = io.TextIOWrapper(buffer, encoding, errors, newline, line_buffering=buffering == 1)
        text.mode = mode
        return text


class _File(io.FileIO):
    """A file whose writes are write points, whatever buffers stand before it."""

    def __init__(self, layer: Layer, file, mode, closefd, opener) -> None:
        super().__init__(file, mode, closefd, opener)
        self._layer = layer

    def write(self, data) -> int:
        half = lambda: super(_File, self).write(bytes(data[: len(data) // 2]))  # noqa: E731
        self._layer.step("write", [self.fileno()], half=half)
        return super().write(data)

    def truncate(self, size=None) -> int:
        self._layer.step("truncate", [self.fileno()])
        return super().truncate(size)


@dataclass
class Ended:
    """How a command ended: its status, the lines on stderr, and the write points that it met."""

    status: int
    lines: list[str]
    points: list[str]


def ended(line: list[str], layer: Layer, talk: Path, before: Callable = lambda: None) -> Ended:
    """Run the command line in a child with a layer, after `before`; `talk` gets what it says."""

    def work() -> None:
        status = 70
        sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
        sys.argv = ["prunecli", *line]
        with talk.open("w") as said, counted.open("w") as points:
            before()
            layer.install()
            try:
                app.main()
                status = 0
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else 1
            except BaseException:
                traceback.print_exc()
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            said.write(sys.stderr.getvalue())
            points.write(" ".join(layer.points))
        os._exit(status)

    counted = talk.with_suffix(".points")
    status = in_child(work)
    return Ended(status, talk.read_text().splitlines(), counted.read_text().split())


def under(layer: Layer, work: Callable) -> Callable:
    """Return `work` under a layer, to be done in a child."""

    def faulty() -> None:
        layer.install()
        work()

    return faulty
