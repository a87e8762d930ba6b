"""English text that every CPython carries, for trying things and for CI without a network.

The help topics of `pydoc_data` (the language reference) are one document each; the docstrings of
each module of the standard library are another. Modules are read as text, never imported. The two
parts share no document, and neither do they share a topic's paragraph or a package.
"""

import ast
import inspect
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path

from prunecli.errors import InputError

PARTS = ("calibration", "evaluation")
MIN_CHARS = 400  # shorter documents say too little to be worth a boundary


# programs, demos and data beside the library; `test` and `tests` also where they are subfolders
LEFT_OUT = {"ensurepip", "idlelib", "lib2to3", "pydoc_data", "test", "tests", "turtledemo"}


def documents(part: str) -> Iterator[tuple[str, str]]:
    """Yield (name, text) of one part, 'calibration' (about 3/4 of the text) or 'evaluation'.

    The order is that of a hash of the names, which mixes subjects. A module is parsed when it is
    reached, so the first documents come fast. Raises InputError if this Python carries no text.
    """
    topics, modules = _topics(), _modules()
    if not topics and not modules:
        raise InputError(
            "this Python has neither pydoc_data nor the sources of its standard library",
            "give a text file with --data",
        )
    seen: set[str] = set()
    for name in sorted([*topics, *modules], key=_hash):
        if _part(name) == part:
            text = topics[name] if name in topics else _docstrings(modules[name])
            text = _without(seen, text)
            if len(text) >= MIN_CHARS:
                yield name, text


def _hash(name: str) -> str:
    return sha256(name.encode()).hexdigest()


def _part(name: str) -> str:
    """Return the part of a document; modules of one package, which repeat each other, share it."""
    group = name if name.startswith("topics/") else name.split(".")[0].strip("_")
    return PARTS[int(_hash(f"part of {group}"), 16) % 4 == 0]


def _topics() -> dict[str, str]:
    """Return the topics by name. They quote each other, so each paragraph is kept only once."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return {}
    seen: set[str] = set()
    named = {f"topics/{name}": text for name, text in topics.items()}
    return {name: _without(seen, _clean(named[name])) for name in sorted(named, key=_hash)}


def _modules() -> dict[str, Path]:
    """Return the source files of the standard library by module name."""
    found = {}
    folder = Path(sysconfig.get_path("stdlib"))
    for top in sys.stdlib_module_names - LEFT_OUT:
        for path in [folder / f"{top}.py", *(folder / top).rglob("*.py")]:
            parts = path.relative_to(folder).with_suffix("").parts
            if path.is_file() and not LEFT_OUT.intersection(parts):
                found[".".join(part for part in parts if part != "__init__")] = path
    return found


def _docstrings(path: Path) -> str:
    """Return all docstrings of a source file, in its order."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a source's invalid escapes are none of our business
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return ""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    nodes.sort(key=lambda node: getattr(node, "lineno", 0))
    return "\n\n".join(_clean(ast.get_docstring(node, clean=False) or "") for node in nodes)


def _clean(text: str) -> str:
    return re.sub(r"[ \t]+$", "", inspect.cleandoc(text), flags=re.MULTILINE)


def _without(seen: set[str], text: str) -> str:
    """Return `text` without paragraphs in `seen`, and add those that are left to it."""

    def new(paragraphs: Iterable[str]) -> Iterator[str]:
        for paragraph in paragraphs:
            if paragraph.strip() and paragraph.strip() not in seen:
                seen.add(paragraph.strip())
                yield paragraph

    return "\n\n".join(new(re.split(r"\n{2,}", text)))
