"""What the library verbs are handed: plain records, with each default stated once."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from prunecli.report import SILENT, Report

SHARD_TOKENS = 1 << 24  # per file of token rows
BATCH_TOKENS = 1024  # through a layer at once, in walks over a model


@dataclass(frozen=True)
class Data:
    """Which tokens to read: D of the command line, and how windows are drawn from it.

    `None` means that the source or the sampler decides (io/tokens.py). `asked` are the fields that
    stand for themselves whatever their values: where one is the default, a recipe has no say in it.
    """

    source: str = "builtin"
    sampler: str | None = None
    nsamples: int | None = None
    seq_len: int | None = None
    seed: int = 0
    tokenizer: str | None = None
    bos: str | None = None
    special_tokens: str | None = None
    up_to: bool = False  # take as many windows as there are, and no more positions than there are
    text_column: str | None = None  # 'text', or else the only one of strings
    skip_bad: int = 0  # lines without text to pass over before one stops the run
    asked: frozenset[str] = field(default=frozenset(), compare=False)


@dataclass(frozen=True)
class Tasks:
    """Which tasks of lm-eval to run. `None` for the batch size means that the device decides."""

    names: tuple[str, ...] = ()
    include_path: str | None = None
    limit: int | None = None
    batch_size: int | None = None
    allow_code: bool = False
    tokenizer: str | None = None
    bos: str | None = None


@dataclass(frozen=True)
class Compute:
    """Where and in which type to compute; statistics and losses are float32 or better anyway."""

    device: str = "auto"
    dtype: str = "auto"
    buffer: str = "ram"


@dataclass(frozen=True)
class Timing:
    """What to time, and how often. `rounds` are counted, `warmup` passes are not."""

    quantities: tuple[str, ...] = ("prefill", "decode", "train")
    batch_size: int = 1
    decode_tokens: int = 32
    warmup: int = 1
    rounds: int = 7
    compile: bool = False
    seed: int = 0


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
    """Where the result goes, what may happen to what is there, and the recorded command line.

    `restart` clears the state of an unfinished run instead of going on from it.
    """

    path: str = ""
    force: bool = False
    skip_existing: bool = False
    dry_run: bool = False
    restart: bool = False
    argv: tuple[str, ...] = ()

    def for_intermediates(self, path: str) -> "Output":
        """Return where a file of a step between goes: one of the same run is taken as it is."""
        return Output(path, force=self.force, skip_existing=not self.force)


def never() -> bool:
    """Return False: nobody asks the run to stop."""
    return False


@dataclass(frozen=True)
class RunContext:
    """What every verb is handed beside its request.

    `stop` is asked between steps of long work; where it says so, the state is saved and Stopped
    raised.
    """

    output: Output = Output()
    compute: Compute = Compute()
    report: Report = SILENT
    stop: Callable[[], bool] = never


@dataclass
class Result:
    """What a verb made: its path as the user gave it, the whole sidecar, and its results."""

    path: str
    sidecar: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """AdamW, the clipping of its gradients, and the schedule of its learning rate.

    Attributes:
        seed: of the order of rows, and of dropout.
        clip: what the global gradient norm is clipped to.
        warmup: fraction of the steps over which the learning rate rises.
        floor: fraction of the peak learning rate at which the cosine ends.
    """

    seed: int = 0
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip: float = 1.0
    warmup: float = 0.05
    floor: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Training(Optimization):
    """What to train, and how. `None` means that the recipe or the size of the run decides."""

    model: str
    data: str
    tokens: float | None = None
    steps: int | None = None
    batch_size: int | None = None
    lr: str | None = None
    recipe: str | None = None
    repeat: bool = False
    allow_overlap: bool = False
    micro_batch: int | None = None
    masks: str = "keep"
    teacher: str | None = None
    kd_weight: float | None = None
    temperature: float | None = None
    eval_data: str | None = None
    text_column: str | None = Data.text_column  # of eval_data, as is skip_bad
    skip_bad: int = Data.skip_bad
    eval_every: int | None = None
    save_every: int | None = None
    keep_states: int = 2
    save_dtype: str = "auto"
    sweep_steps: int | None = None
    activation_checkpointing: bool = False
    compile: bool = False
    track: str | None = None


@dataclass(frozen=True, kw_only=True)
class InitRequest:
    """Which checkpoint to initialize: the architecture of `config` or of `like`, one of them.

    Attributes:
        config: a config.json.
        like: a checkpoint to be a scratch twin of.
        masks: `keep` leaves zeros where a sparse `like` has them, `drop` does not.
        scheme: the standard deviations of the weights (SCHEMES in training/init.py).
        warm: a smaller checkpoint whose weights are copied into the leading block of every tensor,
            its layers repeated to the new depth.
        dtype: of storage; `auto` is that of `like` or of the config, else float32.
        tokenizer: a folder to copy it from, `bytes` (one token a byte, and an end of sequence where
            the vocabulary has an id left, which the config then names), `none`, or `auto`: that of
            `like`, or bytes where the vocabulary has room for them.
        compat: keep embeddings, norms and biases of `like`, as the paper's script does.
    """

    config: str | None = None
    like: str | None = None
    masks: str = "keep"
    scheme: str = "hf"
    warm: str | None = None
    seed: int = 0
    dtype: str = "auto"
    tokenizer: str = "auto"
    compat: bool = False
