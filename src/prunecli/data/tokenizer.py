"""A model folder's tokenizer, read from local files only."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from re import fullmatch
from typing import TYPE_CHECKING, Any, TypeVar

from prunecli import native
from prunecli.data import growth
from prunecli.errors import InputError, PruneError, UsageError, of_memory, suggest
from prunecli.files import regular, strict
from prunecli.model import companions
from prunecli.model.companions import FAST, SENTENCEPIECE, vocabulary

if TYPE_CHECKING:
    import numpy as np
T = TypeVar("T")

BYTES = 256
END = "<|endoftext|>"  # the end of sequence of tokenizers that are made here


# --bos: whether a text begins with beginning of sequence
AUTO, ALWAYS, NEVER = BOS = ("auto", "always", "never")


# of recipes: as auto, but in front of texts before windows are cut from them
OFFICIAL = "official"


# --special-tokens: what becomes of special tokens that are spelled out in a text
TEXT, IDS = SPELLED_OUT = ("text", "ids")


@dataclass(frozen=True)
class Marks:
    """What a tokenizer has to begin and to end a text with.

    Attributes:
        size: one more than the largest id, added tokens included; ids may have gaps.
        begins: what the tokenizer itself puts in front of one text: as a rule, `bos` or nothing.
        bos, eos: its beginning and its end of sequence.
    """

    size: int
    begins: tuple[int, ...] = ()
    bos: int | None = None
    eos: int | None = None

    def front(self, bos: str) -> list[int]:
        """Return the ids before a text under --bos; raise InputError if there is no such id."""
        check_choice("bos", bos, (*BOS, OFFICIAL))
        if bos == NEVER or (bos != ALWAYS and not self.begins):
            return []
        if self.begins:
            return list(self.begins)
        if self.bos is None:
            raise InputError(
                "--bos always: the tokenizer has no beginning of sequence",
                "use --bos auto, or name its bos_token in tokenizer_config.json",
            )
        return [self.bos]

    def separator(self, asked: str, front: list[int]) -> int | None:
        """Return the id after every document for --separator; None for none.

        `front` are the ids before documents. `auto` is the end of sequence or, without one, the
        beginning of sequence, unless documents begin with it. Raises UsageError for what is no id
        of this tokenizer.
        """
        if asked == "none":
            return None
        if asked == AUTO:
            return self.eos if self.eos is not None or front else self.bos
        if not fullmatch(r"[0-9]{1,9}", asked) or int(asked) >= self.size:
            raise UsageError(
                f"--separator '{asked}': expected auto, none, or an id below {self.size}"
            )
        return int(asked)


def check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise UsageError, with a suggestion, for a value that is none of the choices."""
    if value not in choices:
        raise UsageError(f"--{option}: unknown value '{value}'{suggest(value, list(choices))}")


def stock(folder: str) -> Any:
    """Return the tokenizer of a folder as transformers' AutoTokenizer reads it.

    Code beside it is never run. Raises InputError for one that cannot be read, or needs code.
    """
    from transformers import AutoTokenizer

    companions.find(folder, companions.OPENED)  # raises now or never
    config = _config(Path(folder))

    def read() -> Any:
        return AutoTokenizer.from_pretrained(
            Path(folder), config=config, local_files_only=True, trust_remote_code=False
        )

    tokenizer = asked(folder, read, "read")
    if tokenizer.is_fast:
        asked(folder, lambda: growth.check(tokenizer.backend_tokenizer, folder), "read")
    _repeatable(tokenizer, folder)
    return tokenizer


def _repeatable(tokenizer: Any, folder: str) -> None:
    """Let equal texts have equal ids: leave out the dropout of merges, which is for training.

    Raises InputError for SentencePiece that draws its pieces at random.
    """
    if tokenizer.is_fast and getattr(tokenizer.backend_tokenizer.model, "dropout", None):
        tokenizer.backend_tokenizer.model.dropout = None
    settings = getattr(tokenizer, "sp_model_kwargs", None) or {}
    if settings.get("enable_sampling"):
        raise InputError(
            f"the tokenizer in '{folder}' draws its tokens at random (enable_sampling)",
            "remove that from its tokenizer_config.json, or give another with --tokenizer",
        )


def asked(folder: str, work: Callable[[], T], what: str = "use") -> T:
    """Return what the tokenizer of a folder makes, which a signal can interrupt.

    Raises InputError where it fails: a strange file can make the library raise anything.
    """
    try:
        return native.called(work, silent=what == "use")
    except (PruneError, MemoryError):
        raise
    except Exception as error:
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise of_memory(error) or InputError(
            f"cannot {what} the tokenizer in '{folder}': {why}", "give another with --tokenizer"
        ) from None


def _config(folder: Path) -> Any:
    """Return what AutoTokenizer asks of a model's config: its kind and its tokenizer's class.

    It would read the rest of config.json too, where some keys choose code.
    """
    from transformers import CONFIG_MAPPING, PretrainedConfig

    path = regular.inside(folder, folder / "config.json")
    values = strict.read_object(path) if path.exists() else {}
    kind, chosen = values.get("model_type"), values.get("tokenizer_class")
    known = isinstance(kind, str) and kind in CONFIG_MAPPING
    config = CONFIG_MAPPING[kind]() if known else PretrainedConfig()
    if isinstance(chosen, str):
        config.tokenizer_class = chosen
    return config


def marks_of(tokenizer: Any) -> Marks:
    """Return what a tokenizer of transformers has to begin and to end a text with."""
    plain = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
    around = tokenizer("a", return_special_tokens_mask=True, verbose=False)
    ids, is_special = around["input_ids"], around["special_tokens_mask"]
    if plain:
        starts = range(len(ids) - len(plain) + 1)
        # the text itself may begin with the id of BOS, where unknown words become that too
        matches = (i for i in starts if ids[i : i + len(plain)] == plain and not is_special[i])
        before = next(matches, 0)
    else:
        before = int(ids[:1] == [tokenizer.bos_token_id])
    size = max(tokenizer.get_vocab().values(), default=-1) + 1
    return Marks(size, tuple(ids[:before]), tokenizer.bos_token_id, tokenizer.eos_token_id)


def begin_with_bos(tokenizer: Any) -> None:
    """Make a tokenizer of transformers begin every text with BOS, if it does not do so itself."""
    from tokenizers.processors import TemplateProcessing

    if not marks_of(tokenizer).begins:
        bos = str(tokenizer.bos_token)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
        )


class Tokenizer:
    """Turns text into token ids as transformers' AutoTokenizer does, without ids around it.

    With `special_tokens` `text`, special tokens spelled out in a text are text like any other; with
    `ids` they are these tokens, as in prompts.
    Raises InputError if the folder has no tokenizer, or one that cannot be read.

    Attributes:
        digest: sha256 of tokenizer.json, or of older files in its place.
        marks: what it has to begin and to end a text with.
    """

    def __init__(self, folder: str, special_tokens: str = TEXT) -> None:
        check_choice("special-tokens", special_tokens, SPELLED_OUT)
        self.digest = digest(folder)
        _check_library(folder)
        self._folder = folder
        self._tokenizer = stock(folder)
        self._as_text = special_tokens == TEXT
        self.marks = asked(folder, lambda: marks_of(self._tokenizer))

    def encode(self, text: str) -> "np.ndarray":
        """Return the ids of `text`, int64 [tokens]."""
        import numpy as np

        return np.array(self.encode_all([text])[0], dtype=np.int64)

    def encode_all(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text."""
        if not texts:
            return []
        ids: list[list[int]] = self._encoded([well_formed(text) for text in texts])["input_ids"]
        return ids

    @property
    def places(self) -> bool:
        """Whether the tokenizer returns which characters each token stands for."""
        return bool(self._tokenizer.is_fast)

    def placed(self, text: str) -> "tuple[np.ndarray, np.ndarray]":
        """Return the ids of `text` [tokens], and each one's characters: start, stop [tokens, 2]."""
        import numpy as np

        encoded = self._encoded([well_formed(text)], return_offsets_mapping=True)
        spans = np.array(encoded["offset_mapping"][0], dtype=np.int64).reshape(-1, 2)
        return np.array(encoded["input_ids"][0], dtype=np.int64), spans

    def _encoded(self, texts: list[str], **settings: bool) -> Any:
        return asked(
            self._folder,
            lambda: self._tokenizer(
                texts,
                add_special_tokens=False,
                split_special_tokens=self._as_text,
                return_attention_mask=False,
                verbose=False,
                **settings,
            ),
        )


def byte_level(model: Any) -> Any:
    """Return a tokenizer of the library whose `model` sees the bytes of UTF-8 text."""
    from tokenizers import Tokenizer as Bare
    from tokenizers import decoders, pre_tokenizers

    bare = Bare(model)
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    return bare


def alphabet() -> list[str]:
    """Return the characters that a byte-level tokenizer uses for the 256 bytes."""
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
    """Return text without half surrogate pairs: JSON can hold them, but no tokenizer takes them."""
    return text.encode("utf-8", "replace").decode()


def _check_library(folder: str) -> None:
    """Raise InputError where a vocabulary needs a library that is not installed."""
    files = vocabulary(folder)
    if not any(path.name in SENTENCEPIECE for path in files):
        return
    missing = [name for name in ("sentencepiece", "google.protobuf") if not _installed(name)]
    if missing:
        raise InputError(
            f"'{files[0]}' is in SentencePiece's format, which needs {' and '.join(missing)}",
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
    if not regular.is_dir(folder):
        raise InputError(f"no such tokenizer folder: '{folder}'", "check the path")
    files = vocabulary(folder)
    if not files:
        raise InputError(
            f"'{folder}' has no tokenizer, which text needs",
            "add --tokenizer DIR, or give token ids: --data FILE.safetensors:NAME",
        )
    sha = sha256()
    for path in files:
        sha.update(regular.content(path))
    return sha.hexdigest()
