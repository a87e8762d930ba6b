"""Model cards: the README.md of a checkpoint, with the metadata that a hub reads.

A card follows from the sidecar alone, and from the licence in the parent's card, so equal runs give
equal cards. It belongs to the user: no seal is on it, and `run.card` in the sidecar only tells
whether it is still as it was written.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from prunecli.errors import InputError
from prunecli.files import forms, output, regular, sidecar, strict
from prunecli.files.sidecar import CARD, HistoryStep, Sidecar
from prunecli.report import printable

MOST = 1_000_000  # bytes of a card that is read
METADATA = 100_000  # characters of its metadata
LONGEST = 200  # characters of a text taken over from one
LICENCE = ("license", "license_name", "license_link")
TASK = "text-generation"
TASK_OF_WRAPPER = "image-text-to-text"
# a repository on a hub; what others wrote is checked before it is a link
REPOSITORY = re.compile(r"[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}", re.ASCII)
WORD = re.compile(r"[\w.:-]{1,60}", re.ASCII)
DONE = {"prune": "pruned", "train": "trained", "init": "initialized at random"}
WEIGHTS = ("model", "from")  # the roles of inputs whose weights go on in what was made


class _Results(forms.Counts):
    """What a card tells of a checkpoint's results."""

    params_before: int | None = None
    removed_layers: list[int] | None = None
    steps: int | None = None
    tokens: int | None = None
    loss: float | None = None


def write(folder: Path, record: Sidecar, parent: Path | None, out: str) -> None:
    """Write the card of the checkpoint in `folder`, which will be OUT; note in `record` what it is.

    A card that its user has edited at OUT is kept. `parent` is the folder of the weights' origin.
    """
    made = text(record, {} if parent is None else licence(parent)).encode()
    record.run.card = _digest(made)
    kept = edited(Path(out))
    output.write_bytes(folder / CARD, made if kept is None else kept)


def edited(folder: Path) -> bytes | None:
    """Return the card in a folder of ours if it is not as we wrote it; None if it is, or is none.

    Raises InputError if it cannot be read.
    """
    if not regular.is_own(folder / CARD):
        return None
    found = regular.content(folder / CARD)
    run = strict.read_object(sidecar.path_of(folder)).get("run")
    written = run.get("card") if isinstance(run, dict) else None
    return None if written == _digest(found) else found


def licence(folder: Path) -> dict[str, str]:
    """Return what the card in a folder says of the licence; nothing where it cannot be read."""
    import yaml  # type: ignore[import-untyped]

    try:
        card = regular.content(regular.inside(folder, folder / CARD), MOST).decode()
        # texts only: numbers, dates and merges can take minutes to work out
        data = yaml.load(_metadata(card), yaml.BaseLoader)
    except (FileNotFoundError, InputError, UnicodeDecodeError, yaml.YAMLError, RecursionError):
        return {}
    found = {name: data.get(name) for name in LICENCE} if isinstance(data, dict) else {}
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, str) and value.isprintable() and 0 < len(value) <= LONGEST
    }


def _metadata(card: str) -> str:
    """Return the YAML between two lines of dashes at the top of a card."""
    found = re.match(r"\s*---[ \t]*\r?\n(.*?)\n---[ \t]*\r?(?:\n|\Z)", card, re.DOTALL)
    return found[1] if found and len(found[1]) <= METADATA else ""


def text(record: Sidecar, licence: dict[str, str], evaluations: Sequence[Sidecar] = ()) -> str:
    """Return the card of the checkpoint that `record` describes.

    `licence` are metadata of the parent's card, `evaluations` the sidecars of measurements of this
    model.
    """
    from huggingface_hub import ModelCard, ModelCardData

    base = base_model(record)
    title = _title(record, None if base is None else base.partition("@")[0])
    measured = list(_measured(evaluations))
    data = ModelCardData(
        base_model=None if base is None else base.partition("@")[0],
        library_name="transformers",
        pipeline_tag=TASK_OF_WRAPPER if "wrapper" in record.outputs else TASK,
        tags=["prunecli", *_tags(record)],
        model_name=title if measured else None,
        eval_results=measured or None,
        **licence,  # type: ignore[arg-type]
    )
    parts = [f"# {title}", _origin(record, base), *_sections(record, evaluations)]
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"))


def base_model(record: Sidecar) -> str | None:
    """Return `org/name@commit` of the hub's model whose weights went into this, the nearest."""
    for step in record.history[::-1]:
        for entry in step.inputs:
            hub = (entry.model_extra or {}).get("hub")
            if entry.role in WEIGHTS and isinstance(hub, str):
                name, _, commit = hub.partition("@")
                if REPOSITORY.fullmatch(name) and WORD.fullmatch(commit):
                    return hub
    return None


def _title(record: Sidecar, base: str | None) -> str:
    done: list[str] = []
    for step in record.history:
        method = _word(step.options.get("method"))
        word = DONE.get(step.command, "") + (f" with {method}" if method else "")
        if step.command in DONE and word not in done:
            done.append(word)
    what = base or f"A {_word(record.results.get('container')) or 'model'}"
    return f"{what}: {', '.join(done)}"


def _tags(record: Sidecar) -> Iterator[str]:
    """Yield what a hub can be searched by: how the model was made."""
    seen: set[str] = set()
    for step in record.history:
        words = ["pruning"] if step.command == "prune" else []
        words += [_word(step.options.get(name)) for name in ("method", "sparsity")]
        for word in filter(None, words):
            if word not in seen:
                seen.add(word)
                yield word


def _origin(record: Sidecar, base: str | None) -> str:
    """Return how it was made, in a sentence and a command."""
    made = f"Made by prunecli {_cell(record.made_by.version)}"
    if base is not None:
        name, _, commit = base.partition("@")
        made += f" from [{name}](https://huggingface.co/{name}) at commit `{commit}`"
    made += ". It loads in unmodified transformers."
    if record.run.command is None:
        return made
    command = printable(record.run.command)
    # a block ends only at as many signs as it began with
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", command))])
    return f"{made}\n\n{fence}\n{command}\n{fence}"


def _sections(record: Sidecar, evaluations: Sequence[Sidecar]) -> Iterator[str]:
    found = sidecar.part("the checkpoint", record.results, _Results)
    commands = [step.command for step in record.history]
    if "prune" in commands and found.ratio is not None:
        yield "## What was removed\n\n" + _bullets(_removed(found))
    if commands[-1] == "train" and found.loss is not None:
        yield (
            f"## Training\n\n{found.tokens} tokens in {found.steps} steps; the loss at the end was "
            f"{found.loss:.4f}."
        )
    yield "## Size\n\n" + _table(("", "before", "after"), _sizes(found))
    if lines := [line for one in evaluations for line in _lines(one)]:
        yield "## Evaluation\n\n" + _table(("on", "metric", "value"), lines)
    steps = [f"{number}. {_step(step)}" for number, step in enumerate(record.history, 1)]
    yield (
        "## History\n\n" + "\n".join(steps) + "\n\n"
        "`prunecli.json` records every option, and the digest of every input. "
        "`prunecli log --commands` prints a script that does it all again."
    )


def _removed(found: _Results) -> Iterator[str]:
    """Yield what pruning took away, in all steps."""
    if found.granularity:
        yield f"removed or set to zero: {found.granularity}"
    yield f"{found.ratio:.2%} of the weights in decoder blocks"
    if found.removed_layers:
        yield f"layers {', '.join(map(str, found.removed_layers))}, counted from 0"


def _sizes(found: _Results) -> Iterator[tuple[str, ...]]:
    """Yield a row per count: what, before, after."""
    before = "" if found.params_before is None else str(found.params_before)
    yield "parameters", before, str(found.params)
    yield "of them not zero", "", str(found.nonzero)
    for axis, size in found.sizes.items():
        if isinstance(size, int):
            yield axis, "", str(size)


def _measured(evaluations: Iterable[Sidecar]) -> "Iterator[Any]":
    """Yield what was measured, in the form of the metadata."""
    from huggingface_hub import EvalResult

    for one in evaluations:
        found = forms.Evaluation.model_validate(one.results)
        for loss in found.data:
            if loss.perplexity is not None:
                yield EvalResult(
                    task_type=TASK,
                    dataset_type=loss.source,
                    dataset_name=loss.source,
                    metric_type="perplexity",
                    metric_value=loss.perplexity,
                )
        for task in found.tasks:
            yield EvalResult(
                task_type=TASK,
                dataset_type=task.name,
                dataset_name=task.name,
                dataset_args={"num_few_shot": task.num_fewshot},
                metric_type=task.metric,
                metric_value=task.value,
            )


def _lines(evaluation: Sidecar) -> Iterator[tuple[str, ...]]:
    """Yield what was measured, in rows of the table."""
    found = forms.Evaluation.model_validate(evaluation.results)
    for loss in found.data:
        shown = "infinite" if loss.perplexity is None else f"{loss.perplexity:.6g}"
        size = f"{loss.windows} windows of {loss.seq_len} tokens"
        yield f"{loss.source}, {size}", "perplexity", shown
    for task in found.tasks:
        shots = "" if task.num_fewshot is None else f", {task.num_fewshot}-shot"
        yield f"{task.name}{shots}", task.metric, f"{task.value:.4f}"


def _step(step: HistoryStep) -> str:
    """Return a step of the history in a line."""
    options = step.options
    sizes = options.get("sizes")
    asked = sizes.get("ratio") if isinstance(sizes, dict) else options.get("ratio")
    words = [_word(options.get(name)) for name in ("method", "sparsity")]
    words += [f"ratio {asked:g}"] if isinstance(asked, float) else []
    words += [f"{options['steps']} steps"] if isinstance(options.get("steps"), int) else []
    details = ", ".join(filter(None, words))
    return f"{_word(step.command)}{': ' if details else ''}{details} (`{_word(step.id)}`)"


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {_cell(line)}" for line in lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    """Return a text as Markdown shows it as it is: what was measured may be named by anybody."""
    shown = "".join(sign if sign.isprintable() else " " for sign in text[:LONGEST])
    return re.sub(r"([\\`*_\[\]<>|&#])", r"\\\1", shown)


def _word(value: Any) -> str:
    """Return a name as it is, nothing for what is none: histories may come from anybody."""
    return value if isinstance(value, str) and WORD.fullmatch(value) else ""


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
