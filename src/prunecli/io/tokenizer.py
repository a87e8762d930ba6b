"""A model folder's tokenizer, read from local files only."""

from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from prunecli.errors import InputError

if TYPE_CHECKING:
    import numpy as np

FAST = "tokenizer.json"
# vocabularies in older formats, which transformers converts
OLDER = ("tokenizer.model", "spiece.model", "vocab.json", "merges.txt", "vocab.txt", "tekken.json")


class Tokenizer:
    """Turns text into token ids as transformers' AutoTokenizer does, special tokens included.

    Raises InputError if the folder has no tokenizer, or one that cannot be read.

    Attributes:
        digest: sha256 of tokenizer.json, or of the older files that stand for it.
    """

    def __init__(self, folder: str) -> None:
        self.digest = _digest(folder)
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

        # JSON can hold half a surrogate pair, which has no UTF-8 and which no tokenizer takes
        text = text.encode("utf-8", "replace").decode()
        encoded = self._tokenizer(text, return_attention_mask=False, verbose=False)
        return np.array(encoded["input_ids"], dtype=np.int64)


def _digest(folder: str) -> str:
    if not Path(folder).is_dir():
        raise InputError(f"no such tokenizer folder: '{folder}'", "check the path")
    present = [Path(folder, name) for name in OLDER if Path(folder, name).is_file()]
    if Path(folder, FAST).is_file():
        present = [Path(folder, FAST)]
    if not present:
        raise InputError(
            f"'{folder}' has no tokenizer, which text needs",
            "add --tokenizer DIR, or give token ids: --data FILE.safetensors:NAME",
        )
    sha = sha256()
    for path in present:
        sha.update(path.read_bytes())
    return sha.hexdigest()
