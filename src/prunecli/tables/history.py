"""Histories: how artefacts came to be, step by step, from their sidecars.

A sidecar holds the options and inputs of every step that led to it, and the results of the last.
Those of other steps are known where their own sidecars are given as well.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, get_args

from prunecli.files import sidecar
from prunecli.files.sidecar import HistoryStep, Input, Kind, Sidecar
from prunecli.report import cut
from prunecli.tables.render import Cell, Column, Row, Table

SHORT = 12  # characters of an id or a digest
LARGEST = 1 << 63  # no count is more
# of a long history in a terminal
FIRST, LAST = 10, 30
PLANNED = "plan"
# what an input of this role says of a step
ORIGINS = {"config": "a config", "like": "a twin", PLANNED: "as planned", "teacher": "distilled"}

COLUMNS = (
    Column("step", "step", repeats=True),
    Column("from", "from"),
    Column("command", "command"),
    Column("what", "what"),
    Column("ratio", "ratio", ".4f"),
    Column("params", "parameters"),
    Column("tokens", "tokens"),
    Column("loss", "loss", ".4f"),
    Column("perplexity", "perplexity", ".6g"),
    Column("id", "id"),
    Column("digest", "digest", detail=True),
    Column("version", "version", detail=True),
)


@dataclass(frozen=True)
class Step:
    """One step of a history.

    Attributes:
        made: its id, the id of the step before, its command, options and inputs.
        digest: of what it made, None where nothing given tells it.
        record: its own sidecar, where that was given.
    """

    made: HistoryStep
    digest: str | None = None
    record: Sidecar | None = None

    @property
    def kind(self) -> str | None:
        """The kind of what it made, by its id; None if options or inputs were changed."""
        if self.record is not None:
            return self.record.kind
        options, inputs = self.made.options, self.made.inputs
        ids = {sidecar.content_id(kind, options, inputs): kind for kind in get_args(Kind)}
        return ids.get(self.made.id)

    def input(self, role: str) -> Input | None:
        """Return its first input of a role."""
        return next((entry for entry in self.made.inputs if entry.role == role), None)

    @property
    def what(self) -> str:
        """What was done, in a few words: the method, the pattern of zeros, steps, the text."""
        options = self.made.options
        words = [options.get(name) for name in ("method", "sparsity", "source")]
        words += [told for role, told in ORIGINS.items() if self.input(role)]
        if (steps := _number(options.get("steps"))) is not None and not options.get("method"):
            words.append(f"{steps} steps")
        words += [
            (entry.model_extra or {}).get("source")
            for entry in self.made.inputs
            if entry.role == "evaluation" and self.made.command == "eval"
        ]
        statistics = options.get("statistics")
        words += sorted(statistics) if isinstance(statistics, dict) else []
        return cut(", ".join(word for word in words if isinstance(word, str) and word))

    @property
    def ratio(self) -> float | None:
        """The fraction of block weights that it removed: achieved, or else asked for."""
        if self.made.command != "prune":
            return None
        sizes = self.made.options.get("sizes")
        asked = sizes if isinstance(sizes, dict) else self.made.options
        achieved: float | None = self.result("ratio")
        return _number(asked.get("ratio")) if achieved is None else achieved

    @property
    def tokens(self) -> int | None:
        """How many tokens it read, all passes counted; None where it read none."""
        if self.made.command in ("tokenize", "eval"):
            read: int | None = self.result("tokens")
            return read
        counts = [_tokens_of(entry.model_extra or {}) for entry in self.made.inputs]
        known = [count for count in counts if count is not None]
        return sum(known) if known else None

    def result(self, name: str) -> Any:
        """Return a number among its results, None if it is not known."""
        return None if self.record is None else _number(self.record.results.get(name))

    def cells(self) -> dict[str, Any]:
        """Return what is known of it by the keys of COLUMNS, but for its place in the history."""
        numbers = {name: self.result(name) for name in ("params", "loss", "perplexity")}
        return {
            "command": self.made.command,
            "what": self.what,
            "ratio": self.ratio,
            "tokens": self.tokens,
            **numbers,
            "id": self.made.id,
            "digest": self.digest,
            "version": None if self.record is None else self.record.made_by.version,
        }

    def dump(self) -> dict[str, Any]:
        """Return it as plain JSON, options and inputs included."""
        made = self.made.model_dump(mode="json")
        return {"id": made.pop("id"), "parent": made.pop("parent"), **self.cells(), **made}


@dataclass(frozen=True)
class History:
    """Steps, each after those that it reads from; and what is wrong with the sidecars.

    Attributes:
        steps: those of all sidecars, each once.
        records: the sidecars, by the paths that were given.
    """

    steps: list[Step]
    records: dict[str, Sidecar]
    faults: list[str] = field(default_factory=list)

    def of(self, path: str) -> list[Step]:
        """Return the steps that led to one of the paths."""
        ids = {step.id for step in self.records[path].history}
        return [step for step in self.steps if step.made.id in ids]

    def table(self, *, short: bool = False) -> Table:
        """Return a row per step; of many in `short` only the first and the last."""
        numbers = {step.made.id: number for number, step in enumerate(self.steps, 1)}
        rows = [self._row(step, numbers) for step in self.steps]
        notes = list(self.faults)
        if short and len(rows) > FIRST + LAST:
            notes.append(f"{len(rows) - FIRST - LAST} steps after step {FIRST} are not shown")
            rows = rows[:FIRST] + rows[-LAST:]
        return Table(rows, COLUMNS, notes=notes, whole="--json")

    def _row(self, step: Step, numbers: dict[str, int]) -> Row:
        read = {numbers[entry.id] for entry in step.made.inputs if entry.id in numbers}
        cells: Row = {name: Cell(value) for name, value in step.cells().items()}
        for name in ("id", "digest"):
            cells[name] = str(step.cells()[name] or "")[:SHORT]
        cells |= {"step": numbers[step.made.id], "from": ", ".join(map(str, sorted(read)))}
        return cells


def steps_of(records: Iterable[Sidecar]) -> list[Step]:
    """Return every step of these records once, each after those that it reads from."""
    own = {record.id: record for record in records}
    made = {step.id: step for record in own.values() for step in record.history}
    digests = _digests(own.values(), made.values())
    # a tokenizer may be that of a model that was initialized, which no input says
    first = sorted(made.values(), key=lambda step: step.command != "init")
    return [Step(step, digests.get(step.id), own.get(step.id)) for step in _in_order(first)]


def _digests(records: Iterable[Sidecar], made: Iterable[HistoryStep]) -> dict[str, str]:
    """Return the digests of what steps made by their ids: who reads it records them, too."""
    digests = {
        entry.id: entry.digest
        for step in made
        for entry in step.inputs
        # a plan is known by its content, and `speed` reads no weights
        if entry.id and entry.role != PLANNED and step.command != "speed"
    }
    own = {record.id: record.outputs.get("digest") for record in records}
    return digests | {key: value for key, value in own.items() if isinstance(value, str)}


def _in_order(made: list[HistoryStep]) -> Iterator[HistoryStep]:
    """Yield steps in the order given, but each after those that it reads from."""
    known = {step.id: step for step in made}
    seen: set[str] = set()
    for last in made:
        stack = [last]
        while stack:
            step = stack[-1]
            if step.id not in seen:
                seen.add(step.id)  # a circle, which only a changed sidecar has, ends here
                stack += [known[e.id] for e in step.inputs if e.id in known and e.id not in seen]
                continue
            stack.pop()
            if step.id in known:
                yield known.pop(step.id)


def _tokens_of(meta: dict[str, Any]) -> int | None:
    """Return how many tokens an input is, by what its sidecar says beside its digest."""
    count = _number(meta.get("passes", meta.get("nsamples")))
    length = _number(meta.get("seq_len"))
    return None if count is None or length is None else int(count * length)


def _number(value: Any) -> Any:
    """Return a number as it is, None for anything else: sidecars may come from anybody."""
    whole = isinstance(value, int | float) and not isinstance(value, bool)
    return value if whole and abs(value) < LARGEST else None
