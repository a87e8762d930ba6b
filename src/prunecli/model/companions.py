"""Files that belong to a model beside its weights: one list to fetch, read, check and copy."""

import json
from pathlib import Path

from prunecli.errors import InputError

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
ALL = (
    *TOKENIZER, "generation_config.json", "LICENSE*", "LICENCE*", "License*", "license*",
    "COPYING*", "NOTICE*", "Notice*", "USE_POLICY*",
)  # fmt: skip


# the key of configs that names code in the same repository; it is never run and never copied
CODE = "auto_map"


def find(folder: str | Path, patterns: tuple[str, ...] = ALL) -> list[Path]:
    """Return the files of a folder that match, in the order of the patterns, each once."""
    paths = (path for pattern in patterns for path in sorted(Path(folder).glob(pattern)))
    return list(dict.fromkeys(path for path in paths if path.is_file()))


def vocabulary(folder: str | Path) -> list[Path]:
    """Return the files that hold a folder's vocabulary: tokenizer.json, else the older ones."""
    return find(folder, (FAST,)) or find(folder, OLDER)


def contents(folder: str | Path, patterns: tuple[str, ...] = ALL) -> dict[str, bytes]:
    """Return the content of files by name, to be written beside other weights.

    Only references to code, which is not copied, are removed. tokenizer.json comes last, so that a
    folder that has it has all. Raises InputError for files that cannot be read, or that links bring
    in from elsewhere.
    """
    _refuse_links(Path(folder), find(folder, patterns))
    paths = sorted(find(folder, patterns), key=lambda path: (path.name == FAST, str(path)))
    return {path.relative_to(folder).as_posix(): _copied(path) for path in paths}


def _refuse_links(folder: Path, paths: list[Path]) -> None:
    """Raise InputError for a link that would copy a file from elsewhere.

    A hub's cache is made of links, from snapshots into the blobs of the same repository.
    """
    allowed = [folder.resolve()]
    if allowed[0].parent.name == "snapshots":
        allowed.append(allowed[0].parent.parent / "blobs")
    for path in paths:
        if not any(path.resolve().is_relative_to(parent) for parent in allowed):
            raise InputError(
                f"'{path}' is a link to a file outside its folder, which is not copied",
                "replace the link by the file itself, or remove it",
            )


def _copied(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read '{path}': {error.strerror}") from None
    if path.name not in SETTINGS or f'"{CODE}"'.encode() not in content:
        return content
    try:
        record = json.loads(content)
    except ValueError:
        return content
    if not isinstance(record, dict) or CODE not in record:
        return content
    del record[CODE]
    return (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode()
