"""The library verb `evaluate`: losses on any D and accuracies on tasks, into one sidecar.

Losses come from the model streamed layer by layer, so a checkpoint larger than memory can be
evaluated; lm-eval needs it whole. What is done is kept in OUT.partial, one file each.
"""

import json
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from prunecli.data.tokenizer import AUTO
from prunecli.files import output as place
from prunecli.files import sidecar
from prunecli.files.sidecar import SidecarBuilder
from prunecli.measuring import harness, perplexity
from prunecli.measuring import tasks as of_tasks
from prunecli.model.arch import FLOPS_TOKENS
from prunecli.model.checkpoint import Checkpoint
from prunecli.model.device import check_device, settled
from prunecli.report import SILENT, Report
from prunecli.settings import Compute, Data, Output, Result, Tasks

MODEL = ("method", "granularity", "ratio", "params", "nonzero", "sizes", "flops", "flops_tokens")


def evaluate(
    model: str,
    *,
    data: list[Data] | None = None,
    tasks: Tasks | None = None,
    allow_overlap: bool = False,
    out: str | None = None,
    restart: bool = False,
    repeat: int = 1,
    compute: Compute | None = None,
    output: Output | None = None,
    report: Report = SILENT,
) -> Result:
    """Measure one checkpoint on each D and each task; with `out`, write the sidecar there as JSON.

    Without either, the built-in text. Results: `loss` (nats per token), `perplexity` and `tokens`
    (predicted) of the first D; `data`, a list with the same for every D, `window_losses` included;
    `tasks`, one record for each task and group of tasks (harness.py); `average` where the paper's
    eight tasks are among them. With `repeat`, everything is measured as often, and each record has
    its `noise`: the greatest differences between these times (perplexity.py, harness.py).
    Raises InputError if a window was calibrated or trained on, unless `allow_overlap`, and for data
    or tasks that cannot be had, before anything is computed.
    """
    compute, output, tasks = compute or Compute(), output or Output(), tasks or Tasks()
    check_device(compute)
    recorder = SidecarBuilder("eval", output.argv)
    checkpoint = Checkpoint(model, report)
    if out is not None:
        place.check_place(out, output, [checkpoint.folder])
    sources = data or ([] if tasks.names else [Data()])
    compute = settled(compute, checkpoint)
    given = [tasks.tokenizer, *(source.tokenizer for source in sources)]
    tokenizer = next(filter(None, given), None)
    words = harness.tokenizer_digest(checkpoint, tokenizer) if tasks.names else ""
    loaded, groups = of_tasks.load(tasks, report)
    harness.check_marks(checkpoint, tokenizer, tasks, loaded)
    read = [perplexity.read(checkpoint, source, report) for source in sources]
    if not allow_overlap:
        for found in read:
            perplexity.refuse_overlap(checkpoint, found)
    inputs = [checkpoint.as_input(checkpoint.digest(report))]
    inputs += [sidecar.tokens_input("evaluation", t.meta, t.windows) for t in read]
    inputs += [task.as_input(words) for task in loaded]
    inputs += [group.as_input(words) for group in groups]
    options: dict[str, Any] = {"dtype": compute.dtype, "allow_overlap": allow_overlap}
    if loaded:
        options["limit"] = tasks.limit
        options |= {"bos": tasks.bos or AUTO, "lm_eval": metadata.version("lm-eval")}
        options["batch_size"] = tasks.batch_size or harness.batch_of(compute)
    if repeat > 1:
        options["repeat"] = repeat
    key = sidecar.key("eval", options, inputs)
    if out is not None and (same := place.same_already(out, output, key)):
        return Result(model, same.sidecar, same.results)
    if out is not None:
        place.check_partial(out, key, restart)
    if output.dry_run:
        named = {"data": [source.source for source in sources], "tasks": list(tasks.names)}
        return Result(model, results=named)

    from prunecli.model.stream import LayerStream, sequence_losses

    runner = LayerStream(checkpoint, compute, report) if read else None
    whole = harness.Harness(checkpoint, compute, tasks, tokenizer, report)

    def losses(found: Any, turn: int) -> dict[str, Any]:
        assert runner is not None
        # every other time in the opposite order, which must not matter
        order = slice(None, None, -1 if turn % 2 else 1)
        windows = sequence_losses(runner, found.ids[list(range(len(found.ids)))[order]])
        return perplexity.result(found, windows.tolist()[order])

    def repeated(
        make: Callable[[int], dict[str, Any]], noise: Callable[[Any], dict[str, Any]]
    ) -> dict[str, Any]:
        times = [make(turn) for turn in range(repeat)]
        return {**times[0], **({"noise": noise(times)} if repeat > 1 else {})}

    work: list[tuple[str, Callable[[], dict[str, Any]]]] = [
        # by number: names may be alike as names of files, and two D may have the same tokens
        *(
            (f"data-{number}", lambda t=t: repeated(partial(losses, t), perplexity.noise))
            for number, t in enumerate(read)
        ),
        *(
            (f"task-{number}", lambda t=t: repeated(partial(whole.run, t), harness.noise))
            for number, t in enumerate(loaded)
        ),
    ]
    state = nullcontext(None) if out is None else place.partial(out, key, restart)
    with state as folder:
        # one D shows its own progress
        several = report.track(work, "measuring", unit="measurement") if len(work) > 1 else work
        done = [_kept(folder, name, make) for name, make in several]
        measured, figures = done[: len(read)], done[len(read) :]
        by_name = {found["name"]: found for found in figures}
        figures += [harness.of_group(group, by_name, tasks.limit) for group in groups]
        results = _results(checkpoint, measured, figures)
        record = recorder.sidecar(
            "eval",
            options,
            inputs,
            outputs={},
            results=results,
            parent=checkpoint.sidecar,
            device=compute.device,
            dtype=compute.dtype,
            # windows go through alone
            batch=max((t.ids.shape[1] for t in read), default=None),
        )
        if out is not None and folder is not None:
            place.write_json(out, record.text())
            place.remove(folder)
    return Result(model, record.dump(), results)


def _kept(folder: Path | None, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return a measurement that was finished before, or make it and keep it."""
    if folder is None:
        return make()
    path = folder / f"{name}.json"
    if not path.exists():
        place.replace_text(path, json.dumps(make()))
    kept: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return kept


def _results(
    checkpoint: Checkpoint, measured: list[dict[str, Any]], tasks: list[dict[str, Any]]
) -> dict[str, Any]:
    arch = checkpoint.arch
    made_by = checkpoint.sidecar.results if checkpoint.sidecar else {}
    first = {name: measured[0][name] for name in ("loss", "perplexity", "tokens") if measured}
    results = {
        **first,
        "data": measured,
        "tasks": tasks,
        "params": arch.total_params,
        "flops": made_by.get("flops", arch.flops(FLOPS_TOKENS)),
        "flops_tokens": FLOPS_TOKENS,
        # so that an evaluation can be told from, where its checkpoint does not lie beside it
        "model": {name: made_by[name] for name in MODEL if name in made_by},
    }
    mean = harness.average(tasks)
    return results if mean is None else {**results, "average": mean}
