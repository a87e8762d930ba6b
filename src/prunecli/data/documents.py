"""Documents: the text of a source, by the form of its name."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from prunecli.data import builtin_text, hub, textfiles
from prunecli.data.records import Reading
from prunecli.errors import InputError, UsageError, suggest
from prunecli.files import regular


@dataclass(frozen=True)
class Text:
    """Documents, and the name of their source for the record: no path, defaults spelt out.

    `builtin` marks the text inside Python, which comes with a warning. `hub` is `org/name@commit`.
    """

    name: str
    documents: Iterable[str]
    builtin: bool = False
    hub: str | None = None

    @property
    def origin(self) -> dict[str, str]:
        """What a record of it adds if it came from a hub."""
        return {} if self.hub is None else {"hub": self.hub}


def open_text(source: str, part: str, lazy: bool, reading: Reading | None = None) -> Text:
    """Return the documents of a source that is not token ids.

    `part` is the split to read where the source names none. `lazy` promises that documents are read
    in order, once, and perhaps not all. `reading` says how, and counts bad lines. Raises UsageError
    for an unknown name, and InputError for what cannot be read, sometimes only while documents are
    read.
    """
    reading = reading or Reading()
    kind, colon, rest = source.partition(":")
    if kind == "builtin":
        if reading.column:
            raise UsageError("--text-column is for text with columns, and builtin has none")
        return _builtin(rest if colon else part)
    if kind == "hf":
        name, rows, commit = hub.by_id(rest, part, lazy, reading)
        return Text(name, rows, hub=commit)
    if kind in hub.SETS and (not colon or rest in builtin_text.PARTS):
        name, rows, commit = hub.by_name(kind, rest or part, lazy, reading)
        return Text(name, rows, hub=commit)
    path = Path(source)
    if source and regular.exists(path):
        return Text(path.name or path.resolve().name, textfiles.documents(path, reading))
    if textfiles.format_of(path)[0] or "/" in source:
        hint = f"for the Hugging Face hub write hf:{source}" if hub.is_id(source) else ""
        raise InputError(f"no such file or folder: '{source}'", hint or "check the path")
    raise UsageError(f"unknown data '{source}'{suggest(source, ['builtin', *hub.SETS])}")


def _builtin(part: str) -> Text:
    if part not in builtin_text.PARTS:
        raise UsageError(f"unknown part '{part}' of builtin{suggest(part, [*builtin_text.PARTS])}")
    documents = (text for _, text in builtin_text.documents(part))
    return Text(f"builtin:{part}", documents, builtin=True)
