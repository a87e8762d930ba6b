"""The log of a run, one JSON line per step; and how its losses are reported."""

import json
import os
from pathlib import Path
from typing import Any

from prunecli.files import output

LOG = "log.jsonl"
POINTS = 1000


class Log:
    """One JSON line per step. Lines of steps that no state holds are dropped on resuming."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.path = folder / LOG
        self.lines = self._read(steps)
        output.replace_text(self.path, "".join(json.dumps(line) + "\n" for line in self.lines))
        self._file = self.path.open("a", encoding="utf-8")

    def _read(self, steps: int) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        lines = []
        for text in self.path.read_text("utf-8", "replace").splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                break  # the line that was being written when the run was killed
            if line["step"] > steps:
                break
            lines.append(line)
        return lines

    def add(self, line: dict[str, Any]) -> None:
        """Write a line at once."""
        self.lines.append(line)
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Flush to disk, before a state is saved that counts on the lines."""
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
