"""What the paper measures (arXiv 2606.14150, Appendices E and F)."""

from typing import Any

from prunecli.data.tokenizer import IDS, OFFICIAL
from prunecli.errors import UsageError, suggest
from prunecli.settings import Data

NAMES = ("paper",)
DATA = ("c4", "wikitext103", "wikitext2", "cnn_dailymail")


WINDOWS, LENGTH = 256, 8192


TASKS = (
    *("winogrande", "hellaswag", "piqa", "arc_challenge"),
    *("arc_easy", "sciq", "openbookqa", "boolq"),
)


def suite(name: str, official: bool) -> tuple[list[Data], tuple[str, ...]]:
    """Return the data and tasks of a suite; raise UsageError if unknown.

    Up to 256 whole windows of 8192 tokens of each held-out split. `official` reproduces the
    authors' code: windows of the train split, and BOS before the text, not before every window.
    """
    if name not in NAMES:
        raise UsageError(f"unknown suite '{name}'{suggest(name, list(NAMES))}")
    part = ":calibration" if official else ":evaluation"
    size: dict[str, Any] = {"nsamples": WINDOWS, "seq_len": LENGTH, "up_to": True}
    if official:
        size |= {"bos": OFFICIAL, "special_tokens": IDS}
    return [Data(source + part, **size) for source in DATA], TASKS
