"""A model folder's tokenizer, read from local files only."""

import json
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunecli.errors import InputError
from prunecli.io.beside import FAST, SENTENCEPIECE, vocabulary

if TYPE_CHECKING:
    import numpy as np

BYTES = 256


class Tokenizer:
    """Turns text into token ids as transformers' AutoTokenizer does, special tokens included.

    Raises InputError if the folder has no tokenizer, or one that cannot be read.

    Attributes:
        digest: sha256 of tokenizer.json, or of the older files that stand for it.
    """

    def __init__(self, folder: str) -> None:
        self.digest = digest(folder)
        _check_library(folder)
        from transformers import AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(
                Path(folder), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:
            # whatever a broken file makes the library raise, it is the file's fault
            why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise InputError(
                f"cannot read the tokenizer in '{folder}': {why}", "give another with --tokenizer"
            ) from None

    def encode(self, text: str) -> "np.ndarray":
        """Return the ids of `text`, int64 [tokens]."""
        import numpy as np

        encoded = self._tokenizer(well_formed(text), return_attention_mask=False, verbose=False)
        return np.array(encoded["input_ids"], dtype=np.int64)

    def encode_plain(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text, without special tokens around it."""
        encoded = self._tokenizer(
            [well_formed(text) for text in texts],
            add_special_tokens=False,
            return_attention_mask=False,
            verbose=False,
        )
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    @property
    def separator(self) -> int | None:
        """The id that ends a document: end of sequence, else beginning; None if it has neither."""
        for found in (self._tokenizer.eos_token_id, self._tokenizer.bos_token_id):
            if found is not None:
                return int(found)
        return None

    @property
    def size(self) -> int:
        """How many ids there are, added tokens included."""
        return len(self._tokenizer)


def byte_level(model: Any) -> Any:
    """Return a tokenizer of the library whose `model` sees the bytes of UTF-8 text."""
    from tokenizers import Tokenizer as Bare
    from tokenizers import decoders, pre_tokenizers

    bare = Bare(model)
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    return bare


def alphabet() -> list[str]:
    """Return what stands for the 256 bytes in a byte-level tokenizer."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def files_of(bare: Any, **special: str) -> dict[str, bytes]:
    """Return the files by which transformers loads a tokenizer of the library.

    `special` are its special tokens, as in `eos_token`. tokenizer.json comes last, so that a folder
    that has it has all.
    """
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
        "clean_up_tokenization_spaces": False,
    }
    return {
        "tokenizer_config.json": (json.dumps(settings, indent=2) + "\n").encode(),
        FAST: bare.to_str().encode(),
    }


def well_formed(text: str) -> str:
    """Return text that has UTF-8: JSON can hold half a surrogate pair, which no tokenizer takes."""
    return text.encode("utf-8", "replace").decode()


def _check_library(folder: str) -> None:
    """Raise InputError where a vocabulary needs a library that is not installed."""
    found = vocabulary(folder)
    if not any(path.name in SENTENCEPIECE for path in found):
        return
    missing = [name for name in ("sentencepiece", "google.protobuf") if not _installed(name)]
    if missing:
        raise InputError(
            f"'{found[0]}' is in SentencePiece's format, which takes {' and '.join(missing)}",
            "pip install 'prunecli[sentencepiece]', or give another with --tokenizer",
        )


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def present(folder: str) -> bool:
    """Return whether a folder has a tokenizer."""
    return bool(vocabulary(folder))


def digest(folder: str) -> str:
    """Return the digest of a folder's tokenizer; raise InputError if it has none."""
    if not Path(folder).is_dir():
        raise InputError(f"no such tokenizer folder: '{folder}'", "check the path")
    found = vocabulary(folder)
    if not found:
        raise InputError(
            f"'{folder}' has no tokenizer, which text needs",
            "add --tokenizer DIR, or give token ids: --data FILE.safetensors:NAME",
        )
    sha = sha256()
    for path in found:
        sha.update(path.read_bytes())
    return sha.hexdigest()
