"""What the library verbs are handed: plain records, with each default stated once."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from typing import Any

from prunecli.errors import UsageError
from prunecli.ranks import ALONE, Ranks
from prunecli.record import Record, limited
from prunecli.report import SILENT, Report, cut, printable

SHARD_TOKENS = 1 << 24  # per file of token rows
LARGEST_SEED = 2**32 - 1
BATCH_TOKENS = 1024  # through a layer at once, in walks over a model on a CPU
SIZE = re.compile(r"(\d{1,9}(?:\.\d{1,9})?) ?([kMGT])B")  # what --memory takes


@dataclass(frozen=True)
class Data(Record):
    """Which tokens to read: DATA of the command line, and how windows are drawn from it.

    `None` means that the source or the sampler decides (data/windows.py). `asked` are the fields
    that stand for themselves whatever their values: where one is the default, a recipe has no say.
    """

    source: str = "builtin"
    sampler: str | None = None
    nsamples: int | None = None
    seq_len: int | None = None
    seed: int = limited(0, least=0, most=LARGEST_SEED)
    tokenizer: str | None = None
    bos: str | None = None
    special_tokens: str | None = None
    up_to: bool = False  # take as many windows as there are, and no more positions than there are
    text_column: str | None = None  # 'text', or else the only one of strings
    skip_bad: int = limited(0, least=0)  # lines without text to pass over before one stops the run
    asked: frozenset[str] = field(default=frozenset(), compare=False)


@dataclass(frozen=True)
class Tasks(Record):
    """Which tasks of lm-eval to run. `None` for the batch size means that the device decides."""

    names: tuple[str, ...] = ()
    include_path: str | None = None
    limit: int | None = limited(None, least=1)
    batch_size: int | None = limited(None, least=1)
    allow_code: bool = False
    tokenizer: str | None = None
    bos: str | None = None


@dataclass(frozen=True)
class Compute(Record):
    """Where and in which type to compute; statistics and losses are float32 or better anyway.

    `buffer` is where hidden states are kept between layers: on the device, in the machine's memory
    or in a file; `auto` is the first of these that they fit into. `memory`, such as `4GB`, is what
    a run may take with the program and its libraries, without the pages of files that are mapped.
    It decides where hidden states are kept and how many are, and not what results are.
    """

    device: str = "auto"
    dtype: str = limited("auto", choices=("auto", "float32", "bfloat16"))
    buffer: str = limited("auto", choices=("auto", "device", "ram", "disk"))
    memory: str | None = None

    @property
    def most_bytes(self) -> int | None:
        """The bytes of memory that a run may take; raises UsageError for what is no size."""
        if self.memory is None:
            return None
        match = SIZE.fullmatch(self.memory)
        if match is None or not float(match[1]):
            raise UsageError(
                f"--memory is '{cut(self.memory)}': expected a size",
                "write a number with kB, MB, GB or TB, such as 4GB",
            )
        return int(float(match[1]) * 1000 ** (1 + "kMGT".index(match[2])))


@dataclass(frozen=True)
class Timing(Record):
    """What to time, and how often. `rounds` are counted, `warmup` passes are not."""

    quantities: tuple[str, ...] = ("prefill", "decode", "train")
    batch_size: int = limited(1, least=1)
    decode_tokens: int = limited(32, least=1)
    warmup: int = limited(1, least=0)
    rounds: int = limited(7, least=1)
    compile: bool = False
    seed: int = limited(0, least=0, most=LARGEST_SEED)


@dataclass(frozen=True)
class Amount(Record):
    """How much to remove. `ratio` is the fraction of the decoder-block linear parameters.

    `multiple`: what hidden and FFN sizes made from `ratio` or `params` are multiples of. `None`
    means that those of the model decide (pruning/sizes.py).
    """

    ratio: float | None = None
    sparsity: str | None = None
    layers: int | None = None
    hidden: int | None = None
    heads: int | None = None
    ffn: int | None = None
    experts: int | None = None
    params: float | None = None
    arch: str | None = None
    multiple: int | None = limited(None, least=1)


@dataclass(frozen=True)
class Output(Record):
    """Where the result goes, what may happen to what is there, and the recorded command line.

    `command` is that line in one form, which a model card shows: equal runs have equal ones.
    `restart` clears the state of an unfinished run instead of going on from it; `probe` tries
    whether the memory that the run needs can be had, before any work.
    """

    path: str = ""
    force: bool = False
    skip_existing: bool = False
    dry_run: bool = False
    restart: bool = False
    probe: bool = False
    argv: tuple[str, ...] = ()
    command: str = ""

    def for_intermediates(self, path: str) -> "Output":
        """Return where a file of a step between goes: one of the same run is taken as it is."""
        return Output(path, force=self.force, skip_existing=not self.force, restart=self.restart)


def never() -> bool:
    """Return False: nobody asks the run to stop."""
    return False


@dataclass(frozen=True)
class RunContext(Record):
    """What every verb is handed beside its request.

    `stop` is asked between steps of long work; where it says so, the state is saved and Stopped
    raised. `ranks` are the processes that divide the rows; verbs join them.
    """

    output: Output = Output()
    compute: Compute = Compute()
    report: Report = SILENT
    stop: Callable[[], bool] = never
    ranks: Ranks = ALONE


@dataclass
class Result:
    """What a verb made: its path as the user gave it, the whole sidecar, and its results."""

    path: str
    sidecar: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the path, and those results that are one value."""
        single = {"path": self.path} | {
            key: value
            for key, value in self.results.items()
            if isinstance(value, str | int | float)
        }
        rows = "".join(
            f"<tr><th>{escape(printable(key))}</th><td>{escape(printable(str(value)))}</td></tr>"
            for key, value in single.items()
        )
        return f"<table>{rows}</table>"


@dataclass(frozen=True, kw_only=True)
class Optimization(Record):
    """AdamW, the clipping of its gradients, and the schedule of its learning rate.

    Attributes:
        seed: of the order of rows, and of dropout.
        clip: what the global gradient norm is clipped to.
        warmup: fraction of the steps over which the learning rate rises.
        floor: fraction of the peak learning rate at which the cosine ends.
    """

    seed: int = limited(0, least=0, most=LARGEST_SEED)
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
    skip_bad: int = limited(Data.skip_bad, least=0)
    eval_every: int | None = None
    save_every: int | None = None
    keep_states: int = 2
    save_dtype: str = "auto"
    sweep_steps: int | None = None
    activation_checkpointing: bool = False
    compile: bool = False
    track: str | None = None


@dataclass(frozen=True, kw_only=True)
class InitRequest(Record):
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
    seed: int = limited(0, least=0, most=LARGEST_SEED)
    dtype: str = "auto"
    tokenizer: str = "auto"
    compat: bool = False
