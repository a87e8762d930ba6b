"""The library verb `evaluate`: losses on held-out tokens and accuracies on tasks, in one sidecar.

Losses come from the model streamed layer by layer, so a checkpoint larger than memory can be
evaluated; lm-eval needs it whole. Finished measurements are kept in OUT.partial, one file each,
and what is done of long losses.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from prunecli.data.tokenizer import AUTO
from prunecli.data.windows import Tokens, tell_of_joints
from prunecli.errors import UsageError
from prunecli.files import forms, keeping, output, sidecar
from prunecli.files.artefact import Artefact
from prunecli.files.claim import exclusive
from prunecli.files.keeping import Keeper
from prunecli.files.sidecar import Computed, Input, Part, SidecarBuilder
from prunecli.measuring import harness, perplexity
from prunecli.measuring.tasks import Group, Task, load
from prunecli.model import memory
from prunecli.model.arch import FLOPS_TOKENS
from prunecli.model.checkpoint import Checkpoint, home
from prunecli.model.device import computable, settled
from prunecli.model.memory import MemoryNeed
from prunecli.record import Record, limited
from prunecli.report import Report
from prunecli.settings import Compute, Data, Result, RunContext, Tasks, never
from prunecli.training.distributed import joined

# what an evaluation repeats of its model's sidecar
MODEL = ("method", "granularity", "ratio", "params", "nonzero", "sizes", "flops", "flops_tokens")

Results = dict[str, Any]
Measure = Callable[[int, Keeper], Results]


@dataclass(frozen=True)
class EvalRequest(Record):
    """What to measure of one checkpoint: `data`, or `tasks`, or both; without either built-in text.

    `allow_overlap` accepts windows that the model was calibrated or trained on. Everything is
    measured `repeat` times, to know its noise.
    """

    model: str
    data: tuple[Data, ...] = ()
    tasks: Tasks = field(default_factory=Tasks)
    allow_overlap: bool = False
    repeat: int = limited(1, least=1)


@exclusive
def evaluate(request: EvalRequest, run: RunContext = RunContext()) -> Result:
    """Measure one checkpoint; with an OUT, write the sidecar there as JSON.

    Results: `loss` (nats per token), `perplexity` and `tokens` (predicted) of the first data;
    `data`, a list with the same for all of them, `window_losses` included; `tasks`, one record for
    each task and group of tasks (harness.py); `average` where the paper's eight tasks are among
    them. If `repeat` is more than 1, each record has its `noise`: the greatest differences between
    these times (perplexity.py, harness.py).
    Raises InputError for windows that the model has seen, and for data or tasks that cannot be had,
    before anything is computed; UsageError; OutputExists; with an OUT, Stopped. Under `torchrun`
    all processes call this, divide the windows and get the results; the first one writes, and
    nothing is kept.
    """
    with joined(run) as run:
        return _evaluate(request, run)


def _evaluate(request: EvalRequest, run: RunContext) -> Result:
    run = computable(run)
    if request.tasks.names and not run.ranks.alone:
        raise UsageError("tasks are answered by one process", "run it without torchrun")
    builder = SidecarBuilder("eval", run.output.argv)
    if run.output.path:
        output.check_path(run.output.path, run.output, [home(request.model)])
    checkpoint = Checkpoint(request.model, run.report)
    run = replace(run, compute=settled(run.compute, checkpoint))
    material = _read(request, checkpoint, run.report)
    run = memory.within(run, lambda run: _need(material, checkpoint, run))
    artefact = Artefact(
        builder,
        "eval",
        _options(request, material, run.compute),
        [checkpoint.as_input(checkpoint.digest(run.report)), *material.as_inputs()],
        run,
        parent=checkpoint.sidecar,
        computed=Computed(run.compute.device, run.compute.dtype, material.batch, run.ranks.world),
        label=request.model,
        resumable=True,
    )
    need = _need(material, checkpoint, run)
    if done := run.ranks.of_first(lambda: need.settled(artefact, material.names, run.compute)):
        return done
    with artefact.keeping() as keeper:
        of_data, of_tasks = _measure(material, request, checkpoint, run, keeper.folder)
        return artefact.write_json({}, _results(checkpoint, of_data, of_tasks), keeper)


@dataclass(frozen=True)
class _Material:
    """What a model is measured on, read before it computes.

    `tokenizer` is the folder of the one that tasks are read with, if it is not the model's, and
    `tokenizer_digest` its digest; empty without tasks.
    """

    windows: list[Tokens]
    tasks: list[Task]
    groups: list[Group]
    tokenizer: str | None
    tokenizer_digest: str
    names: Results

    @property
    def batch(self) -> int | None:
        """How many tokens go through a layer at once: windows go through alone."""
        return max((tokens.ids.shape[1] for tokens in self.windows), default=None)

    def as_inputs(self) -> list[Input]:
        """Return all of it as inputs of a sidecar."""
        return [
            *(sidecar.tokens_input("evaluation", one.meta, one.windows) for one in self.windows),
            *(task.as_input(self.tokenizer_digest) for task in self.tasks),
            *(group.as_input(self.tokenizer_digest) for group in self.groups),
        ]


def _read(request: EvalRequest, checkpoint: Checkpoint, report: Report) -> _Material:
    """Load tasks and windows; raise InputError for those that cannot be had or were seen."""
    wanted = request.tasks
    sources = request.data or (() if wanted.names else (Data(),))
    explicit = (wanted.tokenizer, *(source.tokenizer for source in sources))
    tokenizer = next(filter(None, explicit), None)
    digest = harness.tokenizer_digest(checkpoint, tokenizer) if wanted.names else ""
    loaded, groups = load(wanted, report)
    harness.check_marks(checkpoint, tokenizer, wanted, loaded)
    windows = [perplexity.read(checkpoint, source, report) for source in sources]
    for source, tokens in zip(sources, windows, strict=True):
        if not request.allow_overlap:
            perplexity.refuse_overlap(checkpoint, tokens)
        if checkpoint.trained:
            tell_of_joints(tokens, source.source, report)
    names = {"data": [source.source for source in sources], "tasks": list(wanted.names)}
    return _Material(windows, loaded, groups, tokenizer, digest, names)


def _need(material: _Material, checkpoint: Checkpoint, run: RunContext) -> MemoryNeed:
    """Return what the largest of the windows needs; of tasks, which load the model, its weights."""
    item = memory.item_bytes(run.compute)
    whole = item * checkpoint.arch.total_params if material.tasks else 0
    shapes = [one.ids[run.ranks.share(len(one.ids))].shape for one in material.windows]
    walks = [memory.of_walk(checkpoint, run.compute, *shape) for shape in shapes]
    tasks = MemoryNeed({}, {"the model": whole}) if material.tasks else MemoryNeed()
    return max([*walks, tasks], key=lambda need: need.total)


def _options(request: EvalRequest, material: _Material, compute: Compute) -> dict[str, Any]:
    """Return what the id depends on beside the inputs."""
    options: dict[str, Any] = {"dtype": compute.dtype, "allow_overlap": request.allow_overlap}
    if material.tasks:
        wanted = request.tasks
        options["limit"] = wanted.limit
        options |= {"bos": wanted.bos or AUTO, "lm_eval": metadata.version("lm-eval")}
        options["batch_size"] = wanted.batch_size or harness.batch_of(compute)
    if request.repeat > 1:
        options["repeat"] = request.repeat
    return options


def _measure(
    material: _Material,
    request: EvalRequest,
    checkpoint: Checkpoint,
    run: RunContext,
    folder: Path | None,
) -> tuple[list[Results], list[Results]]:
    """Return the results of all data, and of all tasks and groups; finished ones from `folder`."""
    stop = never if folder is None else run.stop
    whole = harness.Harness(
        checkpoint, run.compute, request.tasks, material.tokenizer, run.report, stop
    )
    # by number: names may be alike as names of files, and two sources may have the same tokens
    measurements: list[tuple[str, type[Part], Measure, Callable[[Any], Results]]] = [
        *(
            (
                f"data-{number}",
                forms.Loss,
                partial(_losses, checkpoint, run, tokens),
                perplexity.noise,
            )
            for number, tokens in enumerate(material.windows)
        ),
        *(
            (f"task-{number}", forms.Task, partial(_answers, whole, task), harness.noise)
            for number, task in enumerate(material.tasks)
        ),
    ]
    # one alone shows its own progress
    several = len(measurements) > 1
    watched = run.report.progress(measurements, "measuring", unit="measurement")
    results = [
        _repeated(folder and folder / name, form, measure, noise, request.repeat, run)
        for name, form, measure, noise in (watched if several else measurements)
    ]
    of_data, of_tasks = results[: len(material.windows)], results[len(material.windows) :]
    by_name = {task["name"]: task for task in of_tasks}
    of_tasks += [harness.of_group(one, by_name, request.tasks.limit) for one in material.groups]
    return of_data, of_tasks


def _repeated(
    kept: Path | None,
    form: type[Part],
    measure: Measure,
    noise: Callable[[list[Results]], Results],
    repeat: int,
    run: RunContext,
) -> Results:
    """Return the first of `repeat` results with the noise of all.

    Each is in a file whose path begins with `kept`, and its unfinished work in a folder beside it.
    """
    times = []
    for turn in range(repeat):
        unfinished = kept and kept.with_name(f"{kept.name}-{turn}")
        keeper = Keeper(run, unfinished)
        file = unfinished and unfinished.with_suffix(".json")
        times.append(keeping.result(file, partial(measure, turn, keeper), form, run.report))
        if unfinished is not None:
            output.remove(unfinished)
    return {**times[0], **({"noise": noise(times)} if repeat > 1 else {})}


def _answers(whole: harness.Harness, task: Task, turn: int, keeper: Keeper) -> Results:
    """Return the results of a task, which is done as a whole."""
    return whole.run(task, turn)


def _losses(
    checkpoint: Checkpoint, run: RunContext, tokens: Tokens, turn: int, keeper: Keeper
) -> Results:
    """Return the results of these windows, [N, T] ids; odd turns take them in reverse order."""
    from prunecli.model.stream import LayerStream, sequence_losses

    stream = LayerStream(checkpoint, run.compute, run.report, keeper)
    # the order must not matter
    order = slice(None, None, -1 if turn % 2 else 1)
    losses = sequence_losses(stream, tokens.ids[list(range(len(tokens.ids)))[order]])  # [N], nats
    return perplexity.result(tokens, losses.tolist()[order])


def _results(checkpoint: Checkpoint, of_data: list[Results], of_tasks: list[Results]) -> Results:
    arch = checkpoint.arch
    made_by = checkpoint.sidecar.results if checkpoint.sidecar else {}
    first = {name: of_data[0][name] for name in ("loss", "perplexity", "tokens") if of_data}
    results = {
        **first,
        "data": of_data,
        "tasks": of_tasks,
        "params": arch.total_params,
        **arch.active_counts(),
        "flops": made_by.get("flops", arch.flops(FLOPS_TOKENS)),
        "flops_tokens": FLOPS_TOKENS,
        # tables read these where the checkpoint itself is not at hand
        "model": {name: made_by[name] for name in MODEL if name in made_by},
    }
    mean = harness.average(of_tasks)
    return results if mean is None else {**results, "average": mean}
