"""The mark in every figure and report that `table` writes, by which it knows its own files again.

They have no sidecar, so each carries the name of its maker where its format has a place for that.
"""

from pathlib import Path

MADE_BY = "prunecli table"
# suffix -> the metadata that matplotlib writes, without a date: it would make equal figures differ
METADATA: dict[str, dict[str, str | None]] = {
    ".png": {"Software": MADE_BY},
    ".svg": {"Creator": MADE_BY, "Date": None},
    ".pdf": {"Creator": MADE_BY, "CreationDate": None},
}
_REPORT = f"<meta name='generator' content='{MADE_BY}'>"  # in templates/report.html
_FOUND = {
    ".png": f"Software\0{MADE_BY}",
    ".svg": f"<dc:title>{MADE_BY}</dc:title>",
    ".pdf": f"/Creator ({MADE_BY})",
    ".html": _REPORT,
    ".htm": _REPORT,
}
_END = 1 << 16  # bytes from the start or to the end within which each format has its mark


def is_ours(path: Path) -> bool:
    """Return whether a file is a figure or report that `table` wrote."""
    if not path.is_file():
        return False
    mark = _FOUND[path.suffix].encode()
    with path.open("rb") as file:
        start = file.read(_END)
        file.seek(max(0, path.stat().st_size - _END))
        return mark in start or mark in file.read(_END)
