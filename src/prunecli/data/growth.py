"""How much longer a tokenizer makes a text: bounded, since a file of a stranger says it.

A replacement by sixty characters, four times over, makes a gigabyte of a hundred characters. What
Unicode itself lengthens (its forms are at most 18 times as long) counts for nothing here.
"""

import json
from base64 import b64decode
from math import prod
from typing import Any

from prunecli.errors import InputError

# times; the longest replacement of SentencePiece's usual table has 33 bytes
MOST = 100
PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


# where a part holds others, which work one after the other
INSIDE = ("normalizers", "pretokenizers", "processors", "decoders")


def check(tokenizer: Any, folder: str) -> None:
    """Raise InputError for a tokenizer of the library that can make a text too long."""
    for name in PARTS:
        part = getattr(tokenizer, name)
        if part is not None and (times := growth(json.loads(part.__getstate__()))) > MOST:
            raise InputError(
                f"tokenizer.json in '{folder}': its {name} makes a text up to {times:.3g} times "
                f"as long, expected at most {MOST} times",
                "give another with --tokenizer",
            )


def growth(part: dict[str, Any]) -> float:
    """Return how many times as long a part of tokenizer.json can make a text."""
    for name in INSIDE:
        if name in part:
            return prod(map(growth, part[name]))
    match part["type"]:
        case "Replace":
            literal = part["pattern"].get("String", "")
            content = len(part["content"])
            # a regular expression can match nothing, and so stand between all characters
            return max(1.0, content / len(literal)) if literal else 1.0 + content
        case "Prepend":
            return 1.0 + len(part["prepend"])
        case "Precompiled":
            return max(1.0, _longest(b64decode(part["precompiled_charsmap"])))
        case "TemplateProcessing":
            return max(1.0, sum("Sequence" in piece for piece in part["single"]))
    return 1.0


def _longest(table: bytes) -> int:
    """Return the longest replacement of SentencePiece's table: a trie, then texts that NUL ends."""
    texts = table[4 + int.from_bytes(table[:4], "little") :]
    return max(map(len, texts.split(b"\0")))
