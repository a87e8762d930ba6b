"""The log of a run, one JSON line per step; and how its losses are reported."""

import json
import os
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import FiniteFloat

from prunecli.files import output, regular, strict, unfinished
from prunecli.files.sidecar import Part

LOG = "log.jsonl"
POINTS = 1000
LONGEST = 1_000_000  # bytes of a line


class _Line(Part):
    step: int
    loss: FiniteFloat
    eval_loss: float | None = None
    tokens: int | None = None


class Log:
    """One JSON line per step. Lines of steps that no state holds are dropped on resuming.

    Raises InputError where one of the first `steps` lines is missing or is no such line.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        self.path = folder / LOG
        self.lines = self._read(steps)
        self._write()

    def _write(self) -> None:
        output.replace_text(self.path, "".join(json.dumps(line) + "\n" for line in self.lines))
        self._file = self.path.open("a", encoding="utf-8")

    def _read(self, steps: int) -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = []
        if steps == 0 or not self.path.exists():
            return lines
        with regular.opened(self.path) as file:
            # the last line may have been torn when the run was killed; no state needs that one
            for text in islice(iter(lambda: file.readline(LONGEST), b""), steps):
                try:
                    line = strict.parsed(text, finite=False)
                    found = unfinished.checked(line, _Line).step
                except ValueError as error:
                    raise unfinished.damaged(self.path, str(error)) from None
                lines.append(line)
                if found != len(lines):
                    raise unfinished.damaged(self.path, f"line {len(lines)} is of step {found}")
        if len(lines) < steps:
            raise unfinished.damaged(self.path, f"it ends at step {len(lines)} of {steps}")
        return lines

    def add(self, line: dict[str, Any]) -> None:
        """Write a line at once."""
        self.lines.append(line)
        with regular.named(self.path):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()

    def complete(self, more: dict[str, Any]) -> None:
        """Add to the last line what was not known when it was written."""
        self.close()
        self.lines[-1] |= more
        self._write()

    def sync(self) -> None:
        """Flush to disk, before a state is saved that counts on the lines."""
        with regular.named(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def tail_mean(losses: list[float]) -> float:
    """Return the mean loss over the last twentieth of the steps."""
    tail = losses[-max(1, len(losses) // 20) :]
    return sum(tail) / len(tail)


def loss_curve(losses: list[float]) -> dict[str, object]:
    """Return at most a thousand means over `every` consecutive steps each, and `every`."""
    every = -(-len(losses) // POINTS)
    parts = [losses[i : i + every] for i in range(0, len(losses), every)]
    return {"every": every, "loss": [sum(part) / len(part) for part in parts]}
