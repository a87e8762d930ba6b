"""The library verb `log`: how models and files came to be, as a table, a script or a card."""

from collections.abc import Sequence
from pathlib import Path

from prunecli.errors import UsageError
from prunecli.files import provenance, regular, sidecar
from prunecli.model import card
from prunecli.tables.history import History, steps_of
from prunecli.tables.remake import Script, remake


class Log(History):
    """A history that can be made again."""

    def script(self) -> Script:
        """Return a shell script that makes every step again, and what it lacks."""
        return remake(self)

    def commands(self) -> str:
        """Return the text of that script."""
        return self.script().text

    def card(self) -> str:
        """Return the model card of the checkpoint among the paths.

        The evaluations among them that are of it are in its metadata; the licence is that of the
        card that lies beside it. Raises UsageError unless there is one checkpoint.
        """
        models = {p: r for p, r in self.records.items() if r.kind == "checkpoint"}
        if len(models) != 1:
            raise UsageError(f"a card is of one checkpoint, got {len(models)}", "name one folder")
        [(path, record)] = models.items()
        folder = Path(path) if regular.is_dir(path) else Path(path).parent
        known = (record.id, record.outputs.get("digest"))
        measured = [
            one
            for one in self.records.values()
            if one.kind == "eval" and (one.inputs[0].id, one.inputs[0].digest) == known
        ]
        return card.text(record, card.licence(folder), measured)

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        return self.table()._repr_html_()


def log(paths: Sequence[str]) -> Log:
    """Return the history of artefacts, oldest first.

    Each path is a folder, a file with a sidecar, or a sidecar. The histories of several are one:
    where a step reads what another of them made, it comes after it.
    Raises InputError for a path without a sidecar, or one that is damaged.
    """
    records = {path: sidecar.read(path) for path in paths}
    faults = [
        f"the sidecar of '{path}' contradicts itself: {error}"
        for path, record in records.items()
        if (error := provenance.integrity_error(record))
    ]
    return Log(steps_of(records.values()), records, faults)
