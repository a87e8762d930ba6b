"""Registries: ours by file name, those of other packages by entry points.

A module `wanda_sp.py` in a package is the entry `wanda-sp`: adding an entry is adding a file. A
package of others adds one by an entry point, which is called like the entry. Nothing is imported or
looked for before it is asked for.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from prunecli.errors import UsageError, suggest
from prunecli.report import cut

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

OURS = "prunecli"
UNKNOWN = "unknown"  # version of a package that says none

# versions of the packages of others whose entries were loaded, by name
packages: dict[str, str] = {}


class Foreign(NamedTuple):
    """An entry of another package: its record, and the name of the package."""

    record: Any
    package: str


class Registry:
    """The modules of one package, each holding one record under the name `attribute`.

    `group` is the group of entry points by which other packages add records of the type `record`.
    """

    def __init__(
        self,
        package: str,
        folder: str,
        kind: str,
        attribute: str,
        group: str = "",
        record: type = object,
    ) -> None:
        self.package, self.folder, self.kind, self.attribute = package, folder, kind, attribute
        self.group, self.record = group, record

    def names(self) -> list[str]:
        """Return the sorted names of all entries; raise UsageError if packages share one."""
        return sorted([*self.own(), *self._foreign])

    def get(self, name: str) -> Any:
        """Return the record called `name`; raise UsageError with a suggestion if there is none."""
        if name in self._foreign:
            return self._foreign[name].record
        if name not in self.own():
            raise UsageError(f"unknown {self.kind} '{name}'{suggest(name, self.names())}")
        return self._imported(name)

    def ours(self) -> list[Any]:
        """Return the records of our own entries, and look for no others."""
        return [self._imported(name) for name in self.own()]

    def _imported(self, name: str) -> Any:
        return getattr(import_module(f"{self.package}.{name.replace('-', '_')}"), self.attribute)

    def source(self, name: str) -> str:
        """Return the name of the package that an entry is from."""
        return self._foreign[name].package if name in self._foreign else OURS

    @contextmanager
    def trying(self, record: Any) -> Iterator[None]:
        """Have one more record, that of nobody's package, meanwhile."""
        before = dict(self._foreign)
        self._foreign[record.name] = Foreign(record, "what is tried")
        try:
            yield
        finally:
            self._foreign.clear()
            self._foreign.update(before)

    def own(self) -> list[str]:
        """Return the names of our own entries, importing none."""
        return self._stems

    @cached_property
    def _stems(self) -> list[str]:
        """The modules of the folder, which is read once: every model asks for its family."""
        stems = (path.stem for path in Path(self.folder).glob("*.py"))
        return sorted(
            stem.replace("_", "-") for stem in stems if stem[0] != "_" and stem != "registry"
        )

    @cached_property
    def _foreign(self) -> dict[str, Foreign]:
        """The entries of other packages; those that fail to load are told, and left out."""
        found: dict[str, Foreign] = {}
        for point in self._points():
            # what lies in a folder without its metadata has neither name nor version
            package = (point.dist and point.dist.name) or point.value
            if point.name in self.own() or point.name in found:
                other = found[point.name].package if point.name in found else OURS
                raise UsageError(
                    f"'{other}' and '{package}' both have a {self.kind} '{point.name}'",
                    f"uninstall '{package}', or rename its {self.kind}",
                )
            try:
                found[point.name] = Foreign(self._loaded(point), package)
            except (Exception, SystemExit) as error:
                # code of others raises anything
                why = f"{type(error).__name__}: {error}"
                told = f"{self.kind} '{point.name}' of package '{package}' is left out: {why}"
                logging.getLogger(OURS).warning(cut(f"{OURS}: warning: {told}"))
                continue
            packages[package] = (point.dist and point.dist.version) or UNKNOWN
        return found

    def _points(self) -> "Iterator[EntryPoint]":
        from importlib.metadata import entry_points

        if self.group:
            yield from sorted(
                entry_points(group=self.group), key=lambda point: (point.name, point.value)
            )

    def _loaded(self, point: "EntryPoint") -> Any:
        """Return the record of an entry point; raise whatever its package does, or TypeError."""
        with redirect_stdout(sys.stderr):  # stdout is for results
            record = point.load()
        kind = self.record.__name__
        if not isinstance(record, self.record):
            raise TypeError(f"{point.value} is a {type(record).__name__}, expected a {kind}")
        name = getattr(record, "name", None)
        if name != point.name:
            raise TypeError(f"its {kind} is called '{name}', its entry point '{point.name}'")
        return record
