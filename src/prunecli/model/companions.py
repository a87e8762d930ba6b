"""Files that belong to a model beside its weights: one list to fetch, read, check and copy."""

import json
from pathlib import Path
from typing import Any

from prunecli.errors import InputError
from prunecli.files import regular, strict

FAST = "tokenizer.json"


# vocabularies in older formats, which transformers converts, in the order of their digest
OLDER = (
    "tokenizer.model", "spiece.model", "vocab.json", "merges.txt", "vocab.txt", "tekken.json",
    "tokenizer.model.*", "tiktoken.model", "sentencepiece.bpe.model", "sentencepiece.model",
    "spm.model", "tokenizer.*.json",
)  # fmt: skip


# those of them that need the sentencepiece library, an optional dependency
SENTENCEPIECE = (
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "spm.model",
)


SETTINGS = (
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "chat_template.json", "additional_chat_templates/*.jinja", "chat_templates/*.jinja",
)  # fmt: skip


TOKENIZER = (FAST, *OLDER, *SETTINGS)


# what transformers opens to read a tokenizer
# what prepares the inputs of a multimodal model
PROCESSOR = (
    "processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json",
)  # fmt: skip
OPENED = (*TOKENIZER, "config.json", "processor_config.json", "preprocessor_config.json")
ALL = (
    *TOKENIZER, "generation_config.json", "LICENSE*", "LICENCE*", "License*", "license*",
    "COPYING*", "NOTICE*", "Notice*", "USE_POLICY*",
)  # fmt: skip


# the key of configs that names code in the same repository; it is never run and never copied
CODE = "auto_map"


def find(folder: str | Path, patterns: tuple[str, ...] = ALL) -> list[Path]:
    """Return the files of a folder that match, in the order of the patterns, each once.

    Raises InputError for what is no file, cannot be read, or is a link to elsewhere.
    """
    home = Path(folder)
    if not regular.is_dir(home):
        return []
    paths = (path for pattern in patterns for path in sorted(home.glob(pattern)))
    found = dict.fromkeys(
        path for path in paths if regular.exists(path) and not regular.is_dir(path)
    )
    for path in found:
        # libraries open these by themselves, and would wait for a pipe
        regular.opened(regular.inside(home, path)).close()
    return list(found)


def vocabulary(folder: str | Path) -> list[Path]:
    """Return the files that hold a folder's vocabulary: tokenizer.json, else the older ones."""
    return find(folder, (FAST,)) or find(folder, OLDER)


def contents(folder: str | Path, patterns: tuple[str, ...] = ALL) -> dict[str, bytes]:
    """Return the content of files by name, to be written beside other weights.

    Only references to code, which is not copied, are removed. tokenizer.json comes last, so that a
    folder that has it has all. Raises InputError as `find` does.
    """
    paths = sorted(find(folder, patterns), key=lambda path: (path.name == FAST, str(path)))
    return {path.relative_to(folder).as_posix(): _copied(path) for path in paths}


def _copied(path: Path) -> bytes:
    content = regular.content(path)
    is_record = path.name in (*SETTINGS, *PROCESSOR) and path.suffix == ".json"
    # a name can be written in escapes, too
    if not is_record or not (CODE.encode() in content or b"\\u" in content):
        return content
    try:
        record = strict.parsed(content)
    except ValueError as error:
        raise InputError(f"'{path}' is not readable as JSON: {error}") from None
    without = _without_code(record)
    if without == record:
        return content
    return (json.dumps(without, indent=2, ensure_ascii=False) + "\n").encode()


def _without_code(value: Any) -> Any:
    """Return a JSON value without references to code, at whatever depth."""
    if isinstance(value, dict):
        return {key: _without_code(inner) for key, inner in value.items() if key != CODE}
    return [_without_code(inner) for inner in value] if isinstance(value, list) else value
