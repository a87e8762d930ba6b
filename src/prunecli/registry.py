"""Registries by file name: a module `wanda_sp.py` in a package is the entry `wanda-sp`.

Adding an entry is adding a file; nothing is imported before it is asked for.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

from prunecli.errors import UsageError, suggest


class Registry:
    """The modules of one package, each holding one record under the name `attribute`."""

    def __init__(self, package: str, folder: str, kind: str, attribute: str) -> None:
        self.package, self.folder, self.kind, self.attribute = package, folder, kind, attribute

    def names(self) -> list[str]:
        """Return the sorted names of all entries, importing none."""
        stems = (path.stem for path in Path(self.folder).glob("*.py"))
        return sorted(
            stem.replace("_", "-") for stem in stems if stem[0] != "_" and stem != "registry"
        )

    def get(self, name: str) -> Any:
        """Return the record called `name`; raise UsageError with a suggestion if there is none."""
        if name not in self.names():
            raise UsageError(f"unknown {self.kind} '{name}'{suggest(name, self.names())}")
        module = import_module(f"{self.package}.{name.replace('-', '_')}")
        return getattr(module, self.attribute)
