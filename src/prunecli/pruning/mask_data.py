"""The data that masks are trained on: one or more domains of token rows, and what is held out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

from torch import Tensor

from prunecli.data import rows as row_sets
from prunecli.data import windows
from prunecli.data.joined import WindowRows
from prunecli.data.rows import Rows
from prunecli.errors import InputError
from prunecli.files import provenance, sidecar
from prunecli.files.sidecar import Input, Trained
from prunecli.model.checkpoint import Checkpoint
from prunecli.report import Report
from prunecli.settings import Data
from prunecli.training.config import check_rows

EVAL_ROWS = 16  # held out of a domain, for its loss; a tenth of it at most


@dataclass(frozen=True)
class Domain:
    """Rows of one source, and what the sidecar records of them."""

    rows: Rows | WindowRows
    record: Input

    @property
    def source(self) -> str:
        """The source as it was given."""
        return str((self.record.model_extra or {})["source"])

    @property
    def trained(self) -> Trained:
        """Which rows these are, of those that were tokenized or drawn."""
        meta = self.record.model_extra or {}
        drawn = Trained(rows=self.record.digest, range=(0, meta["nsamples"]), count=0)
        return provenance.trained_on(meta) or drawn

    def ids(self) -> Tensor:
        """Return all rows: int64 [N, T]."""
        return self.rows.read(range(self.rows.start, self.rows.start + len(self.rows)))

    def part(self, first: int, stop: int) -> "Domain":
        """Return rows `first` to `stop` - 1; the record names no others."""
        rows = self.rows
        changes = {**(self.record.model_extra or {}), "nsamples": stop - first}
        if isinstance(rows, WindowRows):
            changes["windows"] = changes["windows"][first:stop]
            return Domain(WindowRows(rows.ids[first:stop]), self.record.model_copy(update=changes))
        first, stop = rows.start + first, rows.start + stop
        changes["range"] = [first, stop]
        record = self.record.model_copy(update=changes)
        return Domain(replace(rows, start=first, stop=stop), record)

    def split(self) -> tuple["Domain", "Domain"]:
        """Return the rows to train on, and the last ones, which are held out for the loss."""
        size = len(self.rows)
        if size < 2:
            raise InputError(
                f"the domain '{self.source}' has one window, and needs another for its loss",
                "use more text",
            )
        kept = size - min(EVAL_ROWS, max(1, size // 10))
        held_out = self.part(kept, size)
        record = held_out.record.model_copy(update={"role": "evaluation"})
        return self.part(0, kept), replace(held_out, record=record)


def open_domains(
    checkpoint: Checkpoint, data: Data, sources: Sequence[str], report: Report
) -> list[Domain]:
    """Return the domains of these sources; raise InputError where they cannot be mixed.

    Rows made by `tokenize` are read as they are needed; of other sources `data` draws windows.
    """
    domains = [_open(checkpoint, replace(data, source=source), report) for source in sources]
    if len({domain.rows.seq_len for domain in domains}) > 1:
        raise InputError("the domains have windows of unequal lengths", "set --seq-len")
    trained = [domain.trained for domain in domains]
    if any(provenance.overlap(one, trained[:number]) for number, one in enumerate(trained)):
        raise InputError("two domains have the same text", "name every source once")
    return domains


def _open(checkpoint: Checkpoint, data: Data, report: Report) -> Domain:
    folder = str(checkpoint.folder)
    if row_sets.is_rows(data.source):
        rows, meta = windows.open_rows(data, folder)
        check_rows(rows, checkpoint)
        sizes = {"nsamples": len(rows), "seq_len": rows.seq_len, "digest": rows.digest}
        return Domain(rows, sidecar.tokens_input("calibration", {**meta, **sizes}, []))
    drawn = windows.load(
        data,
        folder=folder,
        vocab_size=checkpoint.arch.vocab,
        max_positions=checkpoint.arch.max_positions,
        part="calibration",
        report=report,
    )
    record = sidecar.tokens_input("calibration", drawn.meta, drawn.windows)
    return Domain(WindowRows(drawn.ids), record)


def trained_rows(domains: Sequence[Domain], count: int) -> Trained:
    """Return which rows weights are trained on, of all domains as one set, for `count` tokens."""
    trained = [domain.trained for domain in domains]
    if len(trained) == 1:
        return trained[0].model_copy(update={"count": count})
    names = " ".join(f"{one.rows} {one.range}" for one in trained)
    size = sum(len(domain.rows) for domain in domains)
    return Trained(rows=sha256(names.encode()).hexdigest(), range=(0, size), count=count)
