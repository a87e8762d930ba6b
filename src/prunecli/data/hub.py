"""Data sets of the Hugging Face hub, through `datasets`.

Whatever fails there is raised as one InputError.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from prunecli.data.builtin_text import PARTS
from prunecli.data.records import (
    BYTES,
    DEFAULT,
    STRING,
    Reading,
    choose,
    column_texts,
    decoded,
    first_line,
    texts,
)
from prunecli.data.textfiles import unzstd
from prunecli.errors import InputError, PruneError, UsageError, refused


@dataclass(frozen=True)
class HubSet:
    """A data set of the hub, with its splits for calibration and for evaluation.

    `parts` are names of splits, or of data files where a whole split is too large to fetch.
    """

    repo: str
    parts: tuple[str, str]
    config: str | None = None
    column: str = "text"
    files: bool = False


SETS = {
    "c4": HubSet(
        "allenai/c4",
        ("en/c4-train.00000-of-01024.json.gz", "en/c4-validation.00000-of-00008.json.gz"),
        files=True,
    ),
    "wikitext2": HubSet("Salesforce/wikitext", ("train", "test"), config="wikitext-2-raw-v1"),
    "wikitext103": HubSet("Salesforce/wikitext", ("train", "test"), config="wikitext-103-raw-v1"),
    "cnn_dailymail": HubSet(
        "abisee/cnn_dailymail", ("train", "test"), config="3.0.0", column="article"
    ),
    # training sets without a held-out split: two files of each
    "dclm": HubSet(
        "mlfoundations/dclm-baseline-1.0",
        (
            "global-shard_01_of_10/local-shard_0_of_10/shard_00000000_processed.jsonl.zst",
            "global-shard_01_of_10/local-shard_0_of_10/shard_00000001_processed.jsonl.zst",
        ),
        files=True,
    ),
    "fineweb-edu": HubSet(
        "HuggingFaceFW/fineweb-edu",
        ("sample/10BT/000_00000.parquet", "sample/10BT/001_00000.parquet"),
        files=True,
    ),
    # the 3-billion-token sample: Dolma itself comes as a script, which `datasets` no longer runs
    "dolma": HubSet(
        "emozilla/dolma-v1_7-3B",
        ("data/train-00000-of-*.parquet", "data/train-00001-of-*.parquet"),
        files=True,
    ),
}


def is_id(name: str) -> bool:
    """Return whether `name` looks like org/name."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name))


Found = tuple[str, Iterable[str], str | None]


def by_name(name: str, part: str, lazy: bool, reading: Reading) -> Found:
    """Return the full name and the documents of one of `SETS`; raise InputError if unreachable.

    The third is `org/name@commit`, None where only a cache was read. Only without `lazy` are the
    documents a Sequence, and everything is fetched.
    """
    known = SETS[name]
    chosen = known.parts[PARTS.index(part)]
    settings: dict[str, Any] = {"split": chosen}
    if known.files:
        # the declared splits' sizes are those of the whole set, not of one file
        settings = {"data_files": {"train": chosen}, "split": "train"}
        settings["verification_mode"] = "no_checks"
    if known.config:
        settings["name"] = known.config
    reading.column = reading.column or known.column
    return f"{name}:{part}", *_load(known.repo, settings, name, lazy, reading)


def by_id(name: str, part: str, lazy: bool, reading: Reading) -> Found:
    """Return the same for org/name[:split[:column]]; `part` matters only without a split."""
    repo, split, column = [*name.split(":"), "", ""][:3]
    if name.count(":") > 2 or not is_id(repo):
        raise UsageError(f"'hf:{name}' is not hf:org/name[:split[:column]]")
    if column and reading.column not in (None, column):
        raise UsageError(f"'hf:{name}' names another column than --text-column")
    reading.column = column or reading.column
    split = split or {"calibration": "train", "evaluation": "test"}[part]
    found = _load(repo, {"split": split}, f"hf:{name}", lazy, reading)
    return ":".join(filter(None, ["hf", repo, split, column])), *found


def _load(
    repo: str, settings: dict[str, Any], name: str, lazy: bool, reading: Reading
) -> tuple[Iterable[str], str | None]:
    commit = None
    with _hub_errors(name):
        import datasets
        import fsspec.compression
        from huggingface_hub import HfApi, is_offline_mode

        offline = is_offline_mode()
        if not offline:
            # without a connection `datasets` would retry for half a minute before it fails
            revision = HfApi().dataset_info(repo, timeout=10).sha
            commit = f"{repo}@{revision}"
            settings = {**settings, "revision": revision}
        datasets.disable_progress_bars()
        # fsspec's own silently stops after the first frame
        fsspec.compression.register_compression("zstd", unzstd, "zst", force=True)
        # streaming reads only what is used, but needs a connection; the cache does without
        settings = {"streaming": lazy and not offline, **settings}
        rows = datasets.load_dataset(repo, **settings)
        if rows.info.builder_name == "text":
            # a .txt file is one document here as on disk, not one a line
            whole = {"sample_by": "document", "encoding": "utf-8-sig"}
            rows = datasets.load_dataset(repo, **whole, **settings)
        next(iter(rows), {})  # what cannot be fetched fails now
        if rows.features is None:
            return _Undeclared(rows, name, reading), commit
        kinds = {column: _kind(feature) for column, feature in rows.features.items()}
        column = choose(kinds, reading.column, f"'{name}'")
        if column not in (reading.column, DEFAULT):
            reading.guessed(column, f"'{name}'")
        rows = rows.select_columns([column])
    return (_Lazy if lazy else _Rows)(rows, name, reading, column), commit


def _kind(feature: Any) -> str:
    """Return what a column of this feature holds."""
    dtype = getattr(feature, "dtype", None)
    if type(feature).__name__ != "Value":
        return type(feature).__name__
    if dtype in ("string", "large_string", "string_view"):
        return STRING
    return BYTES if dtype in ("binary", "large_binary", "binary_view") else str(dtype)


class _Undeclared:
    """The text of a data set that does not say which columns it has, in order."""

    def __init__(self, rows: Any, name: str, reading: Reading) -> None:
        self.rows, self.name, self.reading = rows, name, reading

    def __iter__(self) -> Iterator[str]:
        with _hub_errors(self.name):
            located = ((f"row {n} of '{self.name}'", row) for n, row in enumerate(self.rows, 1))
            yield from texts(located, self.reading)


class _Lazy:
    """One column of a data set, in order."""

    def __init__(self, rows: Any, name: str, reading: Reading, column: str) -> None:
        self.rows, self.name, self.reading, self.column = rows, name, reading, column

    def __iter__(self) -> Iterator[str]:
        with _hub_errors(self.name):
            batches = self.rows.iter(batch_size=100)
            values = (value for batch in batches for value in batch[self.column])
            located = ((f"row {n} of '{self.name}'", value) for n, value in enumerate(values, 1))
            yield from column_texts(located, self.column, self.reading)


class _Rows(_Lazy, Sequence[str]):
    """One column of a data set on disk, of which any row can be read."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        where = f"row {index + 1} of '{self.name}'"
        try:
            return decoded(self.rows[index][self.column], self.column, where)
        except InputError as error:
            # a row cannot be skipped here; an empty one is too short for any window
            self.reading.bad(error.what, error.remedy)
            return ""


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    """Turn whatever fetching may raise into one line; its errors have no common base."""
    try:
        yield
    except PruneError:
        raise
    except Exception as error:
        raise refused(error) or InputError(
            f"data '{name}' needs the Hugging Face hub, which failed: {first_line(error)}",
            "download it elsewhere and give its files, or FILE.safetensors:NAME",
        ) from None
