"""`prunecli eval`."""

import shlex
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

import typer

from prunecli.cli import console, options, records, streams
from prunecli.cli.options import OUTPUT_PANEL, option
from prunecli.errors import UsageError
from prunecli.settings import Data, Result, Tasks

DATA_PANEL = "Evaluation data"
TASKS_PANEL = "Tasks"
SAMPLING = ("sampler", "nsamples", "seq_len")
KEPT = ("force", "skip_existing")


EVALUATION: options.Group = {
    "data": (
        Annotated[
            list[str] | None,
            option(
                "data",
                "data to measure loss and perplexity on, may be repeated: builtin[:part], a "
                ".txt/.jsonl/.json/.parquet[.gz/.zst] file or folder, FILE.safetensors:NAME (token "
                "ids), a named set (c4, wikitext2, ...), or hf:org/name[:split[:column]] "
                "[default: builtin:evaluation]",
                DATA_PANEL,
                metavar="DATA",
            ),
        ],
        None,
    ),
    "tasks": (
        Annotated[
            str | None,
            option(
                "tasks",
                "tasks of lm-eval, zero-shot unless their files say otherwise",
                TASKS_PANEL,
                metavar="NAME,...",
            ),
        ],
        None,
    ),
    "suite": (
        Annotated[
            str | None,
            option(
                "suite",
                "the paper's data (C4, WikiText-103, WikiText-2, CNN/DailyMail; up to 256 windows "
                "of 8192 tokens each) and its eight tasks",
                DATA_PANEL,
            ),
        ],
        None,
    ),
    "include_path": (
        Annotated[
            str | None,
            option(
                "include-path",
                "folder with your own lm-eval task files",
                TASKS_PANEL,
                metavar="DIR",
            ),
        ],
        None,
    ),
    "allow_code": (
        Annotated[
            bool, option("allow-code", "accept task files that can run Python code", TASKS_PANEL)
        ],
        False,
    ),
    "limit": (
        Annotated[
            int | None,
            option(
                "limit", "run only the first N items of each task", TASKS_PANEL, metavar="N", min=1
            ),
        ],
        None,
    ),
    "batch_size": (
        Annotated[
            int | None,
            option(
                "batch-size",
                "sequences per batch [default: CPU 1, GPU as many as fit]",
                TASKS_PANEL,
                metavar="N",
                min=1,
            ),
        ],
        None,
    ),
    "compat": (
        Annotated[
            str | None,
            option(
                "compat",
                "take the windows of --suite from train splits, as the official implementation "
                "does",
                DATA_PANEL,
            ),
        ],
        None,
    ),
    "out": (
        Annotated[
            str | None,
            option("out", "also write the results to this file", OUTPUT_PANEL, metavar="FILE.json"),
        ],
        None,
    ),
    "allow_overlap": (
        Annotated[
            bool,
            option("allow-overlap", "accept windows that the model was calibrated on", DATA_PANEL),
        ],
        False,
    ),
    "restart": (options.Restart, False),
    "repeat": (
        Annotated[
            int,
            option(
                "repeat",
                "measure N times, and print the difference between the runs",
                DATA_PANEL,
                metavar="N",
                min=1,
            ),
        ],
        1,
    ),
}


@options.with_options(
    EVALUATION,
    options.under(DATA_PANEL, options.WINDOWS),
    options.STREAM,
    options.OUTPUT,
    options.PROBE,
    options.VERBOSITY,
    options.CONFIG,
)
def evaluate(
    context: typer.Context,
    models: Annotated[
        list[str],
        typer.Argument(metavar="IN...", help="model folders, hf:org/name, or - for stdin"),
    ],
) -> None:
    """Measure loss, perplexity and task accuracy.

    The loss is in nats per token of held-out text. Logits and log-probabilities are fp32. With
    --out FILE.json, progress is saved in FILE.json.partial. Rerun the same command to resume.
    Without it nothing is kept.
    """
    report, values = records.setup(context), context.params
    folders = records.models_of(models, values["out"])
    from prunecli.measuring.eval import EvalRequest
    from prunecli.measuring.eval import evaluate as verb

    sources, names = _sources(values), _tasks(values["tasks"], values["suite"])
    _refuse_idle(context, sources, names)
    wanted = Tasks(
        names,
        values["include_path"],
        values["limit"],
        values["batch_size"],
        values["allow_code"],
        values["tokenizer"],
        values["bos"],
    )
    if not sources and not names:
        sources = [records.data_of(values, Data.source)]
    made: list[Result] = []
    try:
        run = records.run_context(values, values["out"], report)
        for folder in folders:
            request = EvalRequest(
                folder, tuple(sources), wanted, values["allow_overlap"], values["repeat"]
            )
            made.append(verb(request, run))
    finally:
        # what was measured before a failure is not lost
        if made:
            _print(made, values["json"] or values["dry_run"])
    if values["out"]:
        console.hint(f"table {shlex.quote(values['out'])}", values)


def _sources(values: Mapping[str, Any]) -> list[Data]:
    """Return what --data and --suite ask for; raise UsageError for --compat without a suite."""
    from prunecli.measuring.suite import suite

    sources = [records.data_of(values, source) for source in values["data"] or []]
    if values["suite"] is None:
        if values["compat"] is not None:
            raise UsageError("--compat belongs to --suite")
        return sources
    fields = ("tokenizer", "bos", "special_tokens")
    explicit = {name: values[name] for name in fields if values[name] is not None}
    of_suite, _ = suite(values["suite"], values["compat"] == "official")
    return [*sources, *(replace(source, **explicit) for source in of_suite)]


def _tasks(tasks: str | None, name: str | None) -> tuple[str, ...]:
    """Return the names of the tasks of --tasks and --suite, each once."""
    from prunecli.measuring.suite import TASKS

    names = tuple(filter(None, (task.strip() for task in (tasks or "").split(","))))
    return names if name is None else tuple(dict.fromkeys((*TASKS, *names)))


def _refuse_idle(context: typer.Context, sources: list[Data], tasks: tuple[str, ...]) -> None:
    """Raise UsageError for options that nothing would read."""
    values = context.params
    of_tasks = ("include_path", "limit", "allow_code", "batch_size")
    if not tasks and any(values[name] for name in of_tasks):
        raise UsageError("--include-path, --allow-code, --limit and --batch-size belong to --tasks")
    if values["allow_code"] and not values["include_path"]:
        records.refuse(context, ["allow_code"], "is about the files of --include-path")
    if values["suite"] is not None and not values["data"]:
        records.refuse(context, SAMPLING, "is what --suite decides")
        records.refuse(context, options.READING, "is about files of --data, not of a suite")
    if tasks and not sources:
        of_windows = [*SAMPLING, *options.READING, "special_tokens", "buffer"]
        records.refuse(context, of_windows, "is about windows of --data, not tasks")
    if sources and not tasks:
        records.refuse_tokenizer(context, *(source.source for source in sources))
    if values["out"] is None:
        records.refuse(context, [*KEPT, "restart"], "is about the file of --out")


def _print(made: list[Result], as_json: bool) -> None:
    if as_json:
        console.print_objects(made)
        return
    measured = [
        row for one in made for row in (*one.results["data"], *one.results.get("tasks", []))
    ]
    noisy = any("noise" in row for row in measured)
    headings = ["model", "source", "tokens", "loss", "perplexity", *["noise"] * noisy]
    rows = [
        [
            one.path,
            row["source"],
            str(row["tokens"]),
            f"{row['loss']:.6f}",
            console.plain(row["perplexity"]),
            *([f"{row['noise']['loss']:.1e}"] if noisy else []),
        ]
        for one in made
        for row in one.results["data"]
    ]
    if rows:
        console.print_columns(headings, rows)
    headings = ["model", "task", "metric", "value", "sigma", "items", *["noise"] * noisy]
    tasks = [
        [
            one.path,
            task["name"],
            metric,
            f"{task['metrics'][metric]:.4f}",
            "" if (sigma := task["sigmas"][metric]) is None else f"{sigma:.4f}",
            str(task["counts"][metric]),
            # the mean of a group has none of its own
            *([f"{task['noise']['metrics'][metric]:.1e}" if "noise" in task else ""] * noisy),
        ]
        for one in made
        for task in one.results.get("tasks", [])
        # the one that tables show comes first
        for metric in dict.fromkeys([task["metric"], *task["metrics"]])
    ]
    if rows and tasks:
        streams.result()
    if tasks:
        console.print_columns(headings, tasks)


EXAMPLES = (
    ("perplexity on the built-in text", "eval out/"),
    ("on token ids, as JSON", "eval --data tokens.safetensors:eval --json out/"),
    ("your own tasks, without a network", "eval --tasks cloze4 --include-path tasks out/"),
    ("what the paper measures", "eval --suite paper --out out.json out/"),
    ("how much repeated runs differ", "eval --repeat 3 out/"),
    ("on your own text, results saved", "eval --out out.json --data text.txt out/"),
)
