"""Data sets of the Hugging Face hub, through `datasets`.

What goes wrong there, and much can, comes out as one InputError.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from prunecli.errors import InputError, PruneError, UsageError
from prunecli.io.builtin_text import PARTS
from prunecli.io.textfiles import first_line, string_columns, text_column, text_of


@dataclass(frozen=True)
class HubSet:
    """A data set of the hub, and what of it is for calibration and what for evaluation.

    `parts` are names of splits, or of data files where a whole split is too much to fetch.
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


def by_name(name: str, part: str, lazy: bool) -> tuple[str, Iterable[str]]:
    """Return the full name and the documents of one of `SETS`; raise InputError if unreachable.

    Only without `lazy` are the documents a Sequence, for which everything is fetched.
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
    return f"{name}:{part}", _load(known.repo, known.column, settings, name, lazy)


def by_id(name: str, part: str, lazy: bool) -> tuple[str, Iterable[str]]:
    """Return the same for org/name[:split[:column]]; the part decides only where no split does."""
    repo, split, column = [*name.split(":"), "", ""][:3]
    if name.count(":") > 2 or not is_id(repo):
        raise UsageError(f"'hf:{name}' is not hf:org/name[:split[:column]]")
    split = split or {"calibration": "train", "evaluation": "test"}[part]
    rows = _load(repo, column or None, {"split": split}, f"hf:{name}", lazy)
    return ":".join(filter(None, ["hf", repo, split, column])), rows


def _load(
    repo: str, column: str | None, settings: dict[str, Any], name: str, lazy: bool
) -> Iterable[str]:
    with _hub_errors(name):
        import datasets
        from huggingface_hub import HfApi, is_offline_mode

        offline = is_offline_mode()
        if not offline:
            # without a connection `datasets` would try again for half a minute before it says so
            HfApi().dataset_info(repo, timeout=10)
        datasets.disable_progress_bars()
        # streaming reads only what is used, but needs a connection; the cache does without
        rows = datasets.load_dataset(repo, streaming=lazy and not offline, **settings)
        first: dict[str, Any] = next(iter(rows), {})
    if column is None:
        column = text_column(string_columns(first), f"'{name}'")
    elif column not in first:
        raise InputError(f"'{name}' has no column '{column}': {', '.join(first) or 'it is empty'}")
    return _Lazy(rows, column, name) if lazy else _Rows(rows, column, name)


class _Lazy:
    """One column of a data set, in order."""

    def __init__(self, rows: Any, column: str, name: str) -> None:
        self.rows, self.column, self.name = rows, column, name

    def __iter__(self) -> Iterator[str]:
        with _hub_errors(self.name):
            for batch in self.rows.iter(batch_size=100):
                for value in batch[self.column]:
                    yield text_of({self.column: value}, self.column, f"a row of '{self.name}'")


class _Rows(_Lazy, Sequence[str]):
    """One column of a data set on disk, of which any row can be read."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return text_of(self.rows[index], self.column, f"row {index} of '{self.name}'")


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    """Turn whatever fetching may raise into one line; its errors have no common base."""
    try:
        yield
    except PruneError:
        raise
    except Exception as error:
        raise InputError(
            f"data '{name}' needs the Hugging Face hub, which failed: {first_line(error)}",
            "download it elsewhere and give a .txt, .jsonl or .parquet file, "
            "or FILE.safetensors:NAME",
        ) from None
