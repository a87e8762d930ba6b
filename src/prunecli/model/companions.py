"""What goes with a model's weights: one list for fetching, reading, checking and copying."""

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


# those of them that another library reads, an extra of ours
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


# names code that lies in a repository beside it, which is never run and never carried
CODE = "auto_map"


def find(folder: str | Path, patterns: tuple[str, ...] = ALL) -> list[Path]:
    """Return the files of a folder that fit, in the order of the patterns, each once."""
    found = (path for pattern in patterns for path in sorted(Path(folder).glob(pattern)))
    return list(dict.fromkeys(path for path in found if path.is_file()))


def vocabulary(folder: str | Path) -> list[Path]:
    """Return the files that hold a folder's vocabulary: tokenizer.json, else the older ones."""
    return find(folder, (FAST,)) or find(folder, OLDER)


def contents(folder: str | Path, patterns: tuple[str, ...] = ALL) -> dict[str, bytes]:
    """Return files by their names in the folder, as they are to lie beside other weights.

    They are as they were, but for references to code that does not come along. tokenizer.json comes
    last, so that a folder that has it has all.
    """
    _refuse_links(Path(folder), find(folder, patterns))
    paths = sorted(find(folder, patterns), key=lambda path: (path.name == FAST, str(path)))
    return {path.relative_to(folder).as_posix(): _carried(path) for path in paths}


def _refuse_links(folder: Path, paths: list[Path]) -> None:
    """Raise InputError for a link that would bring a file from elsewhere into what is written.

    A hub's cache is made of links, from snapshots into the blobs of the same repository.
    """
    inside = [folder.resolve()]
    if inside[0].parent.name == "snapshots":
        inside.append(inside[0].parent.parent / "blobs")
    for path in paths:
        if not any(path.resolve().is_relative_to(place) for place in inside):
            raise InputError(
                f"'{path}' is a link out of its folder, which is not copied",
                "put the file itself there, or take the link away",
            )


def _carried(path: Path) -> bytes:
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
