"""What a stopped run left in OUT.partial: read as strictly as what others wrote.

It may have been torn by a lost disk, or come from elsewhere with the folder around it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from prunecli.errors import InputError
from prunecli.files import regular, strict

RESTART = "use --restart to start over"


def read(path: Path, form: Any) -> Any:
    """Return the JSON value of a file as `form`, a type that pydantic knows.

    What a run computed may be infinite. Raises InputError unless the file has that form.
    """
    with refusals():
        content = regular.content(path)
        try:
            return checked(strict.parsed(content, finite=False), form)
        except ValueError as error:
            raise damaged(path, str(error)) from None


def checked(value: Any, form: Any) -> Any:
    """Return a value as `form`; raise ValueError, of one line, unless it has that form."""
    try:
        return TypeAdapter(form).validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the value"
        raise ValueError(f"{where}: {first['msg']}") from None


def damaged(path: Path, why: str) -> InputError:
    """Return the refusal of a file in OUT.partial."""
    return InputError(f"'{path.name}' in '{path.parent.name}' is damaged: {why}", RESTART)


@contextmanager
def refusals() -> Iterator[None]:
    """Say of all files in OUT.partial that are refused in the block what to do about them."""
    try:
        yield
    except InputError as error:
        raise InputError(error.what, RESTART) from None
