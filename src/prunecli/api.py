"""The library by plain keywords: `prunecli.prune("in", "out", method="flap", ratio=0.5)`.

Each function builds the records of settings.py and of its verb out of its keywords, and calls the
verb, which is what the command line does too. A record can be given as a whole as well
(`amount=Amount(ratio=0.5)`); what is not given has the record's default.
"""

import os
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
    from prunecli.tables.log import Log
    from prunecli.tables.picture import Picture
    from prunecli.tables.render import Table

Path = str | os.PathLike[str]
R = TypeVar("R")


class RunWords(TypedDict, total=False):
    """Keywords of every function that writes: fields of Output, Compute and RunContext."""

    output: Output
    force: bool
    skip_existing: bool
    dry_run: bool
    restart: bool
    probe: bool
    argv: tuple[str, ...]
    command: str
    compute: Compute
    device: str
    dtype: str
    buffer: str
    memory: str | None
    report: Report
    stop: Callable[[], bool]


class AmountWords(TypedDict, total=False):
    """Keywords for how much to remove: fields of Amount, one of which is given, and `multiple`."""

    amount: Amount | None
    ratio: float | None
    sparsity: str | None
    layers: int | None
    hidden: int | None
    heads: int | None
    ffn: int | None
    experts: int | None
    params: float | None
    arch: str | None
    multiple: int | None


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

    data: Path | Data | None


def _taken(record: R, words: dict[str, Any], keywords: type | None = None) -> R:
    """Return `record` with the fields that `words` name, which are taken out of it.

    Where `keywords` are given, of these alone.
    """
    names = {field.name for field in fields(record)} & words.keys()  # type: ignore[arg-type]
    if keywords is not None:
        names &= keywords.__annotations__.keys()
    return replace(record, **{name: words.pop(name) for name in names})  # type: ignore[type-var]


def _whole(words: dict[str, Any], name: str, kind: type[R]) -> R:
    """Return the record that the keyword `name` gives as a whole, else one of defaults."""
    record = words.pop(name, None)
    if record is None:
        return kind()
    if not isinstance(record, kind):
        raise UsageError(f"{name} is {record!r:.60}: expected a record {kind.__name__}(...)")
    return record


def _run(out: Path, words: dict[str, Any]) -> RunContext:
    """Return the context that keywords ask for, which are taken out of them."""
    output = _whole(words, "output", Output)
    if output.path:
        raise UsageError(f"output has the path '{output.path}'", "give OUT by itself")
    output = _taken(replace(output, path=os.fspath(out)), words, RunWords)
    compute = _taken(_whole(words, "compute", Compute), words, RunWords)
    context = RunContext(output, compute)
    return _taken(context, words, RunWords)


def _data(words: dict[str, Any]) -> Data:
    """Return the Data that keywords ask for, which are taken out of them."""
    given = words.pop("data", None)
    if given is not None and not isinstance(given, Data):
        given = Data(given)
    return _taken(given or Data(), words, DataWords)


def _amount(words: dict[str, Any]) -> Amount:
    """Return the Amount that keywords ask for, which are taken out of them."""
    return _taken(_whole(words, "amount", Amount), words, AmountWords)


def _built(record: type[R], keywords: type, words: dict[str, Any], **known: Any) -> R:
    """Return a request of what is `known` and of the `words` that are left.

    `keywords` are all that the function takes; raises UsageError for any other.
    """
    takes = {field.name for field in fields(record)} - known.keys()  # type: ignore[arg-type]
    _refuse_unknown(words.keys() - takes, keywords)
    if words.get("compat") == "official":  # as the command line spells it
        words["compat"] = True
    return record(**known, **words)


def _refuse_unknown(words: Iterable[str], keywords: type) -> None:
    """Raise UsageError for a word that is none of a function's `keywords`."""
    for name in words:
        if "options" in keywords.__annotations__ and name in _method_options():
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
    model: Path, out: Path, methods: str | Sequence[str], **words: Unpack[CalibrateWords]
) -> Result:
    """Collect what `methods` need, of the dense model on `data`, into OUT.safetensors."""
    from prunecli.pruning.calibrate import CalibrateRequest
    from prunecli.pruning.calibrate import calibrate as verb

    rest: dict[str, Any] = dict(words)
    run, amount, data = _run(out, rest), _amount(rest), _data(rest)
    names = [name.strip() for name in methods.split(",")] if isinstance(methods, str) else methods
    if not names:
        raise UsageError("methods names no method", "see `prunecli methods`")
    request = _built(
        CalibrateRequest, CalibrateWords, rest, model=model, methods=names, data=data, amount=amount
    )
    return verb(request, run)


class ScoreWords(AmountWords, DataWords, RunWords, total=False):
    """Keywords of `score`; `options` are those of the method."""

    options: Mapping[str, Any]
    stats: str | None
    compat: bool


def score(model: Path, out: Path, method: str, **words: Unpack[ScoreWords]) -> Result:
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
    keep_wrapper: bool


def prune(model: Path, out: Path, **words: Unpack[PruneWords]) -> Result:
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
    eval_data: Path | Data
    allow_overlap: bool
    compat: bool


def search_arch(model: Path, out: Path, method: str, **words: Unpack[SearchWords]) -> Result:
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


def init(out: Path, **words: Unpack[InitWords]) -> Result:
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
    lr: str | float | None
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


def train(model: Path, out: Path, data: Path, **words: Unpack[TrainWords]) -> Result:
    """Train a model on the token rows `data`, from scratch or after pruning, into OUT."""
    from prunecli.training.train import train as verb

    rest: dict[str, Any] = dict(words)
    run = _run(out, rest)
    if isinstance(rest.get("lr"), float):
        rest["lr"] = repr(rest["lr"])
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


def tokenize(source: Path, out: Path, seq_len: int, **words: Unpack[TokenizeWords]) -> Result:
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

    data: Path | Data | Sequence[Path | Data] | None
    tasks: str | Sequence[str] | Tasks | None
    include_path: str | None
    limit: int | None
    batch_size: int | None
    allow_code: bool
    allow_overlap: bool
    repeat: int


def evaluate(model: Path, out: Path | None = None, **words: Unpack[EvalWords]) -> Result:
    """Measure losses on held-out data and accuracies on tasks; with OUT.json, record them there."""
    from prunecli.measuring.eval import EvalRequest
    from prunecli.measuring.eval import evaluate as verb

    rest: dict[str, Any] = dict(words)
    run = _run(out or "", rest)
    shared = {name: rest.pop(name) for name in WindowWords.__annotations__ if name in rest}
    tasks, sources = rest.pop("tasks", None) or (), rest.pop("data", None) or ()
    if not isinstance(tasks, Tasks):
        tasks = Tasks((tasks,) if isinstance(tasks, str) else tuple(tasks))
    idle = [name for name in ("limit", "batch_size", "include_path") if name in rest]
    tasks = _taken(_taken(tasks, rest, EvalWords), dict(shared))
    if idle and not tasks.names:
        raise UsageError(f"{idle[0]} is for tasks, and none is named", "remove it, or add tasks=")
    sources = [sources] if isinstance(sources, str | os.PathLike | Data) else list(sources)
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
    quantities: str | tuple[str, ...]
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


def speed(model: Path, out: Path | None = None, **words: Unpack[SpeedWords]) -> Result:
    """Count what a model costs and time it, beside `base` if given; with OUT.json, record it."""
    from prunecli.measuring.speed import SpeedRequest
    from prunecli.measuring.speed import speed as verb

    rest: dict[str, Any] = dict(words)
    run = _run(out or "", rest)
    if isinstance(rest.get("quantities"), str):
        rest["quantities"] = (rest["quantities"],)
    timing = _taken(_whole(rest, "timing", Timing), rest, SpeedWords)
    request = _built(SpeedRequest, SpeedWords, rest, model=model, timing=timing)
    return verb(request, run)


def check(path: Path, *, deep: bool = False, report: Report = SILENT) -> list[str]:
    """Return what is wrong with a model, a folder of rows, or a file; `deep` reads every byte."""
    from prunecli.measuring.check import check as verb

    return verb(os.fspath(path), deep=deep, report=report)


def log(paths: Path | Sequence[Path]) -> "Log":
    """Return the steps that led to models and files, oldest first, as their sidecars record them.

    `steps` are what is known of each, `table()` shows them, and `commands()` is a shell script that
    makes them again. The histories of several paths are one.
    Raises InputError for a path without a sidecar, or one that is damaged.
    """
    from prunecli.tables.log import log as verb

    several = [paths] if isinstance(paths, str | os.PathLike) else paths
    return verb([os.fspath(one) for one in several])


def table(
    paths: Path | Sequence[Path] = (), layout: str | None = None, reference: str | None = None
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

    several = [paths] if isinstance(paths, str | os.PathLike) else paths
    made = verb(TableRequest(tuple(os.fspath(one) for one in several), layout, reference)).table
    assert made is not None  # no advice was asked for
    return made


def figure(
    paths: Path | Sequence[Path] = (),
    name: str = "1",
    layout: str | None = None,
    reference: str | None = None,
) -> "Picture":
    """Return one figure of the sidecars in files and folders; a notebook shows it.

    `name` is that of `table --figure`: 1, 3, 4, 5, sweep or plan. Its `title` says what is seen,
    `save(path)` draws it into a file, `text(width)` shows it in characters.
    Raises UsageError for unknown names, InputError for a path without any sidecar, one that is
    damaged, or nothing that fits the figure.
    """
    from prunecli.tables.picture import Picture
    from prunecli.tables.table import TableRequest, drawn

    several = [paths] if isinstance(paths, str | os.PathLike) else paths
    given = tuple(os.fspath(one) for one in several)
    return Picture(drawn(TableRequest(given, layout, reference, figure=name)))
