"""The library verb `log`: how models and files came to be, as a table and as a script."""

from collections.abc import Sequence

from prunecli.files import provenance, sidecar
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
