"""The library by plain keywords: `prunecli.prune("in", "out", method="flap", ratio=0.5)`.

Each function builds the records of settings.py and of its verb out of its keywords, and calls the
verb, which is what the command line does too. A record can be given as a whole as well
(`amount=Amount(ratio=0.5)`); what is not given has the record's default.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack

from prunecli.errors import UsageError, suggest
from prunecli.report import SILENT, Report
from prunecli.settings import (
    Amount,
    Compute,
    Data,
    InitRequest,
    Output,
    Result,
    RunContext,
    Tasks,
    Timing,
    Training,
)

if TYPE_CHECKING:
    from prunecli.tables.render import Table

R = TypeVar("R")


class RunWords(TypedDict, total=False):
    """Keywords of every function that writes: fields of Output, Compute and RunContext."""

    output: Output
    force: bool
    skip_existing: bool
    dry_run: bool
    restart: bool
    argv: tuple[str, ...]
    compute: Compute
    device: str
    dtype: str
    buffer: str
    report: Report
    stop: Callable[[], bool]


class AmountWords(TypedDict, total=False):
    """Keywords for how much to remove: fields of Amount, one of which is given."""

    amount: Amount | None
    ratio: float | None
    sparsity: str | None
    layers: int | None
    hidden: int | None
    heads: int | None
    ffn: int | None
    params: float | None
    arch: str | None


class WindowWords(TypedDict, total=False):
    """Keywords for how windows are read: fields of Data beside its source."""

    sampler: str | None
    nsamples: int | None
    seq_len: int | None
    seed: int
    tokenizer: str | None
    bos: str | None
    special_tokens: str | None
    text_column: str | None
    skip_bad: int


class DataWords(WindowWords, total=False):
    """Keywords for what is read: `data`, a source or a whole record, and fields of Data."""

    data: str | Data | None


def _taken(record: R, words: dict[str, Any]) -> R:
    """Return `record` with the fields that `words` name, which are taken out of it."""
    names = {field.name for field in fields(record)} & words.keys()  # type: ignore[arg-type]
    return replace(record, **{name: words.pop(name) for name in names})  # type: ignore[type-var]


def _run(out: str, words: dict[str, Any]) -> RunContext:
    """Return the context that keywords ask for, which are taken out of them."""
    output = _taken(words.pop("output", None) or Output(), words)
    compute = _taken(words.pop("compute", None) or Compute(), words)
    return _taken(RunContext(replace(output, path=out), compute), words)


def _data(words: dict[str, Any]) -> Data:
    """Return the Data that keywords ask for, which are taken out of them."""
    given = words.pop("data", None)
    data = given if isinstance(given, Data) else Data(**({"source": given} if given else {}))
    return _taken(data, words)


def _amount(words: dict[str, Any]) -> Amount:
    """Return the Amount that keywords ask for, which are taken out of them."""
    return _taken(words.pop("amount", None) or Amount(), words)


def _built(record: type[R], keywords: type, words: dict[str, Any], **known: Any) -> R:
    """Return a request of what is `known` and of the `words` that are left.

    `keywords` are all that the function takes; raises UsageError for any other.
    """
    takes = {field.name for field in fields(record)} - known.keys()  # type: ignore[arg-type]
    _refuse_unknown(words.keys() - takes, keywords)
    return record(**known, **words)


def _refuse_unknown(words: Iterable[str], keywords: type) -> None:
    """Raise UsageError for a word that is none of a function's `keywords`."""
    for name in words:
        if name in _method_options():
            raise UsageError(f"'{name}' is an option of a method", f"use options={{'{name}': ...}}")
        near = suggest(name, sorted(keywords.__annotations__))
        raise UsageError(f"unknown keyword '{name}'{near}")


def _method_options() -> set[str]:
    """Return the names of the options that any method has."""
    from prunecli.methods import registry

    methods = (registry.get(name) for name in registry.names())
    return {option.name for method in methods for option in method.options}


class CalibrateWords(AmountWords, DataWords, RunWords, total=False):
    """Keywords of `calibrate`."""

    compat: bool


def calibrate(
    model: str, out: str, methods: str | list[str], **words: Unpack[CalibrateWords]
) -> Result:
    """Collect what `methods` need, of the dense model on `data`, into OUT.safetensors."""
    from prunecli.pruning.calibrate import CalibrateRequest
    from prunecli.pruning.calibrate import calibrate as verb

    rest: dict[str, Any] = dict(words)
    run, amount, data = _run(out, rest), _amount(rest), _data(rest)
    names = [methods] if isinstance(methods, str) else methods
    request = _built(
        CalibrateRequest, CalibrateWords, rest, model=model, methods=names, data=data, amount=amount
    )
    return verb(request, run)


class ScoreWords(AmountWords, DataWords, RunWords, total=False):
    """Keywords of `score`; `options` are those of the method."""

    options: Mapping[str, Any]
    stats: str | None
    compat: bool


def score(model: str, out: str, method: str, **words: Unpack[ScoreWords]) -> Result:
    """Turn statistics into importances, higher = keep, into OUT.safetensors."""
    from prunecli.pruning.score import ScoreRequest
    from prunecli.pruning.score import score as verb

    rest: dict[str, Any] = dict(words)
    run, amount, data = _run(out, rest), _amount(rest), _data(rest)
    request = _built(
        ScoreRequest, ScoreWords, rest, model=model, method=method, data=data, amount=amount
    )
    return verb(request, run)


class PruneWords(AmountWords, DataWords, RunWords, total=False):
    """Keywords of `prune`; `options` are those of the method."""

    method: str | None
    options: Mapping[str, Any]
    recipe: str | None
    stats: str | None
    scores: str | None
    plan: str | None
    plan_only: bool
    keep: str | None
    compat: bool


def prune(model: str, out: str, **words: Unpack[PruneWords]) -> Result:
    """Prune a model folder, or `hf:org/name`, into the folder OUT."""
    from prunecli.pruning.prune import prune as verb
    from prunecli.pruning.request import PruneRequest

    rest: dict[str, Any] = dict(words)
    run, amount, data = _run(out, rest), _amount(rest), _data(rest)
    request = _built(PruneRequest, PruneWords, rest, model=model, amount=amount, data=data)
    return verb(request, run)


class SearchWords(DataWords, RunWords, total=False):
    """Keywords of `search_arch`; one of `params`, `flops` and `ratio` is the budget."""

    options: Mapping[str, Any]
    params: float | None
    flops: float | None
    ratio: float | None
    multiple: int | None
    eval_data: str | Data
    allow_overlap: bool
    compat: bool


def search_arch(model: str, out: str, method: str, **words: Unpack[SearchWords]) -> Result:
    """Find the lowest-loss architecture within a budget, and write it to OUT.json."""
    from prunecli.pruning.search_arch import SearchRequest
    from prunecli.pruning.search_arch import search_arch as verb

    rest: dict[str, Any] = dict(words)
    run, data = _run(out, rest), _data(rest)
    held_out = _data({"data": rest.pop("eval_data", None)})
    request = _built(
        SearchRequest, SearchWords, rest, model=model, method=method, data=data, eval_data=held_out
    )
    return verb(request, run)


class InitWords(RunWords, total=False):
    """Keywords of `init`: fields of InitRequest; here `dtype` is that of storage."""

    config: str | None
    like: str | None
    masks: str
    scheme: str
    warm: str | None
    seed: int
    tokenizer: str
    compat: bool


def init(out: str, **words: Unpack[InitWords]) -> Result:
    """Create a randomly initialized checkpoint, of a config.json or `like` another, in OUT."""
    from prunecli.training.init import init as verb

    rest: dict[str, Any] = dict(words)
    storage = {"dtype": rest.pop("dtype")} if "dtype" in rest else {}
    run = _run(out, rest)
    return verb(_built(InitRequest, InitWords, rest | storage), run)


class TrainWords(RunWords, total=False):
    """Keywords of `train`: fields of Training beside `model` and `data`."""

    tokens: float | None
    steps: int | None
    batch_size: int | None
    lr: str | None
    recipe: str | None
    repeat: bool
    allow_overlap: bool
    micro_batch: int | None
    masks: str
    teacher: str | None
    kd_weight: float | None
    temperature: float | None
    eval_data: str | None
    text_column: str | None
    skip_bad: int
    eval_every: int | None
    save_every: int | None
    keep_states: int
    save_dtype: str
    sweep_steps: int | None
    activation_checkpointing: bool
    compile: bool
    track: str | None
    seed: int
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    clip: float
    warmup: float
    floor: float


def train(model: str, out: str, data: str, **words: Unpack[TrainWords]) -> Result:
    """Train a model on the token rows `data`, from scratch or after pruning, into OUT."""
    from prunecli.training.train import train as verb

    rest: dict[str, Any] = dict(words)
    run = _run(out, rest)
    return verb(_built(Training, TrainWords, rest, model=model, data=data), run)


class TokenizeWords(RunWords, total=False):
    """Keywords of `tokenize`: fields of TokenizeRequest (data/tokenize.py)."""

    tokenizer: str | None
    train_tokenizer: int | None
    separator: str
    bos: str
    special_tokens: str
    tokens: float | None
    split: str
    shard_tokens: int
    workers: int | None
    text_column: str | None
    skip_bad: int


def tokenize(source: str, out: str, seq_len: int, **words: Unpack[TokenizeWords]) -> Result:
    """Write text as token rows of `seq_len` tokens into the folder OUT, to train on."""
    from prunecli.data.tokenize import TokenizeRequest
    from prunecli.data.tokenize import tokenize as verb

    rest: dict[str, Any] = dict(words)
    run = _run(out, rest)
    request = _built(TokenizeRequest, TokenizeWords, rest, source=source, seq_len=seq_len)
    return verb(request, run)


class EvalWords(WindowWords, RunWords, total=False):
    """Keywords of `evaluate`: `data` and `tasks`, one, several or whole records, and their fields.

    Fields of Data hold for every source.
    """

    data: str | Data | Sequence[str | Data] | None
    tasks: str | Sequence[str] | Tasks | None
    include_path: str | None
    limit: int | None
    batch_size: int | None
    allow_code: bool
    allow_overlap: bool
    repeat: int


def evaluate(model: str, out: str | None = None, **words: Unpack[EvalWords]) -> Result:
    """Measure losses on held-out data and accuracies on tasks; with OUT.json, record them there."""
    from prunecli.measuring.eval import EvalRequest
    from prunecli.measuring.eval import evaluate as verb

    rest: dict[str, Any] = dict(words)
    run = _run(out or "", rest)
    shared = {name: rest.pop(name) for name in WindowWords.__annotations__ if name in rest}
    tasks, sources = rest.pop("tasks", None) or (), rest.pop("data", None) or ()
    if not isinstance(tasks, Tasks):
        tasks = Tasks((tasks,) if isinstance(tasks, str) else tuple(tasks))
    tasks = _taken(_taken(tasks, rest), dict(shared))
    sources = [sources] if isinstance(sources, str | Data) else list(sources)
    data = tuple(
        _data({"data": source, **shared})
        for source in sources or ([] if tasks.names else [Data.source])
    )
    request = _built(EvalRequest, EvalWords, rest, model=model, data=data, tasks=tasks)
    return verb(request, run)


class SpeedWords(RunWords, total=False):
    """Keywords of `speed`: fields of Timing and of SpeedRequest (measuring/speed.py)."""

    base: str | None
    timing: Timing | None
    quantities: tuple[str, ...]
    batch_size: int
    decode_tokens: int
    warmup: int
    rounds: int
    compile: bool
    seed: int
    seq_len: int | None
    sparsity: str | None
    flops_only: bool
    official: bool


def speed(model: str, out: str | None = None, **words: Unpack[SpeedWords]) -> Result:
    """Count what a model costs and time it, beside `base` if given; with OUT.json, record it."""
    from prunecli.measuring.speed import SpeedRequest
    from prunecli.measuring.speed import speed as verb

    rest: dict[str, Any] = dict(words)
    run = _run(out or "", rest)
    timing = _taken(rest.pop("timing", None) or Timing(), rest)
    request = _built(SpeedRequest, SpeedWords, rest, model=model, timing=timing)
    return verb(request, run)


def check(path: str, *, deep: bool = False, report: Report = SILENT) -> list[str]:
    """Return what is wrong with a model, a folder of rows, or a file; `deep` reads every byte."""
    from prunecli.measuring.check import check as verb

    return verb(path, deep=deep, report=report)


def table(
    paths: Sequence[str] = (), layout: str | None = None, reference: str | None = None
) -> "Table":
    """Return one table of the sidecars in files and folders, which are searched to any depth.

    Layouts: `models` has a row per model and measurement, `pairs` one for each pruned model beside
    each scratch model of its size; the others are the paper's. `reference="paper"` adds the paper's
    own rows, or shows them alone where there are no `paths`.
    Raises UsageError for unknown names or neither paths nor reference, InputError for a path
    without any sidecar, one that is damaged, or nothing that fits the layout.
    """
    from prunecli.tables.table import TableRequest
    from prunecli.tables.table import table as verb

    made = verb(TableRequest(tuple(paths), layout, reference)).table
    assert made is not None  # no advice was asked for
    return made
