"""What the library verbs are told: plain records, with each default stated once."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Data:
    """Which tokens to read: D of the command line, and how windows are drawn from it.

    `None` means that the source or the sampler decides (io/tokens.py).
    """

    source: str = "builtin"
    sampler: str | None = None
    nsamples: int | None = None
    seq_len: int | None = None
    seed: int = 0
    tokenizer: str | None = None


@dataclass(frozen=True)
class Compute:
    """Where and in which type to compute; statistics and losses are float32 or better anyway."""

    device: str = "auto"
    dtype: str = "auto"
    buffer: str = "ram"


@dataclass(frozen=True)
class Amount:
    """How much to remove. `ratio` is the fraction of the decoder-block linear parameters."""

    ratio: float | None = None
    sparsity: str | None = None
    layers: int | None = None
    hidden: int | None = None
    heads: int | None = None
    ffn: int | None = None
    params: float | None = None
    arch: str | None = None


@dataclass(frozen=True)
class Output:
    """What may happen to an existing OUT, and what is recorded as the command line."""

    force: bool = False
    skip_existing: bool = False
    dry_run: bool = False
    argv: tuple[str, ...] = ()


@dataclass
class Made:
    """What a verb made: its path as the user gave it, the whole sidecar, and its results."""

    path: str
    sidecar: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
