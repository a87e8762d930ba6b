"""`table`: sidecars, the paper's own rows, or both, in one layout."""

from pathlib import Path

from prunecli.errors import InputError, OutputExists, UsageError, suggest
from prunecli.settings import Output
from prunecli.tables import own_layouts
from prunecli.tables.collect import Models, collect
from prunecli.tables.entries import ModelRow
from prunecli.tables.layouts import LAYOUTS, build, select
from prunecli.tables.render import Table

LAYOUT_NAMES = (*own_layouts.LAYOUTS, *LAYOUTS)
SUFFIXES = {"plot": (".png", ".svg", ".pdf"), "html": (".html", ".htm")}


DEFAULT, REFERENCE_DEFAULT, FIGURES_DEFAULT = "models", "table2", "table16"


def table(paths: list[str], layout: str | None = None, reference: str | None = None) -> Table:
    """Return one table of what lies in files and folders (searched to any depth).

    Layouts: `models` has a row per model and measurement, `pairs` one for each pruned model beside
    each scratch model of its size, told whether they are token-matched (matching.py); the others
    are the paper's (layouts.py). `reference="paper"` adds the paper's own rows, or shows them
    alone where there are no `paths`.
    Raises UsageError for unknown names or neither paths nor reference, InputError for a path
    without any sidecar, one that is damaged, or nothing that fits the layout.
    """
    return tabled(found(paths, reference), layout, reference)


def found(paths: list[str], reference: str | None) -> Models:
    """Return the models among some paths; none are needed beside a reference."""
    if not paths and reference is None:
        raise UsageError("no sidecars given", "give files or folders, or --reference paper")
    return collect(paths) if paths else Models({}, [])


def tabled(collected: Models, layout: str | None, reference: str | None) -> Table:
    """Return one layout of models that were collected before."""
    if reference not in (None, "paper"):
        raise UsageError(f"unknown reference '{reference}'", "there is 'paper'")
    if layout is None:
        layout = DEFAULT if reference is None else REFERENCE_DEFAULT
    if layout not in LAYOUT_NAMES:
        raise UsageError(f"unknown layout '{layout}'{suggest(layout, list(LAYOUT_NAMES))}")
    if layout in own_layouts.LAYOUTS:
        if reference is not None:
            raise UsageError(f"layout '{layout}' has no rows of the paper", "choose another layout")
        return own_layouts.build(collected, layout)
    return build(LAYOUTS[layout], chosen(collected, layout, reference))


def chosen(collected: Models, layout: str | None, reference: str | None) -> list[ModelRow]:
    """Return what belongs into one of the paper's layouts; without one, all that was retrained."""
    wanted = LAYOUTS[layout if layout in LAYOUTS else FIGURES_DEFAULT]
    ours = select(wanted, wanted.ours(collected))
    if not ours and reference is None:
        raise InputError(f"nothing for layout '{layout}' among these sidecars")
    return ([] if reference is None else wanted.printed()) + ours


def check_file(option: str, path: str, output: Output) -> None:
    """Raise an error if a figure or report cannot go to `path`.

    UsageError for a name that says another kind of file, InputError for a folder, OutputExists.
    """
    place, suffixes = Path(path), SUFFIXES[option]
    if place.suffix not in suffixes:
        raise UsageError(f"--{option} '{path}': expected a name ending in {' or '.join(suffixes)}")
    if place.is_dir():
        raise InputError(f"'{path}' is a folder", "name a file")
    if place.exists() and not output.force:
        raise OutputExists(f"'{path}' exists", "use --force or move it away")
