"""What a run will do, checked as a whole before its first step."""

from dataclasses import dataclass
from math import ceil, inf
from typing import Any

from prunecli.data import rows as row_sets
from prunecli.data import tokenizer, windows
from prunecli.data.rows import Rows
from prunecli.errors import InputError, UsageError
from prunecli.files import provenance, sidecar
from prunecli.files.sidecar import Input, Trained
from prunecli.files.tensorfile import STORAGE
from prunecli.model.checkpoint import Checkpoint
from prunecli.report import Report
from prunecli.settings import Compute, Data, Training
from prunecli.training import world
from prunecli.training.trackers import library

SWEEP = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
SWEEP_NAME = "sweep"
MOST_LR = 1000
LR = 3e-4
BATCH_SIZE = 16


PAPER_BATCH, PAPER_LENGTH = 512, 8192


KD_WEIGHT, TEMPERATURE = 0.5, 1.0


MICRO_TOKENS = 8192
STATES = 20  # saved over a run, if --save-every does not say otherwise
SHORTEST_SWEEP = 20
MASKS = ("keep", "drop")


@dataclass(frozen=True)
class ResolvedTraining:
    """A run with every default resolved.

    Attributes:
        lrs: the learning rates to choose from on `sweep_steps` steps; one needs no choice.
        trained: the rows that it reads, and how many tokens that is.
        masked: the checkpoint whose zeros are held, None for none.
    """

    checkpoint: Checkpoint
    rows: Rows
    training: Training
    steps: int
    batch_size: int
    lrs: tuple[float, ...]
    sweep_steps: int
    micro: int
    save_every: int
    eval_every: int
    trained: Trained
    masked: Checkpoint | None
    teacher: Checkpoint | None
    kd_weight: float
    temperature: float
    held_out: "windows.Tokens | None"

    @property
    def tokens(self) -> int:
        """Tokens of all steps."""
        return self.trained.count

    def options(self, dtype: str) -> dict[str, Any]:
        """Return everything that decides what the weights will be; saving does not."""
        training = self.training
        names = (
            "beta1", "beta2", "eps", "weight_decay", "clip", "warmup", "floor", "seed",
            "micro_batch", "activation_checkpointing", "compile", "save_dtype",
        )  # fmt: skip
        sweeping = len(self.lrs) > 1
        return {
            "steps": self.steps,
            "batch_size": self.batch_size,
            "lr": list(self.lrs) if sweeping else self.lrs[0],
            "sweep_steps": self.sweep_steps if sweeping else None,
            **{name: getattr(training, name) for name in names},
            "masks": "keep" if self.masked is not None else "drop",
            "kd_weight": self.kd_weight if self.teacher else None,
            "temperature": self.temperature if self.teacher else None,
            "eval_every": self.eval_every if self.held_out is not None else None,
            "dtype": dtype,
        }

    def inputs(self, report: Report) -> list[Input]:
        """Return all inputs with their digests; reads every weight once."""
        checkpoint, rows = self.checkpoint, self.rows
        found = [checkpoint.as_input(checkpoint.digest(report))]
        found.append(
            Input.model_validate(
                {
                    "role": "rows",
                    "id": rows.id,
                    "digest": rows.digest,
                    "range": list(self.trained.range),
                    "passes": self.steps * self.batch_size,
                    "seq_len": rows.seq_len,
                }
            )
        )
        if self.teacher is not None:
            found.append(self.teacher.as_input(self.teacher.digest(report), "teacher"))
        if self.masked is not None and self.masked is not checkpoint:
            found.append(self.masked.as_input(self.masked.digest(report), "masks"))
        if self.held_out is not None:
            found.append(
                sidecar.tokens_input("evaluation", self.held_out.meta, self.held_out.windows)
            )
        return found


def prepare(checkpoint: Checkpoint, training: Training, report: Report) -> ResolvedTraining:
    """Resolve and check a run; raise UsageError or InputError for one that makes no sense."""
    _check_numbers(training)
    if training.save_dtype not in ("auto", *STORAGE):
        raise UsageError(
            f"--save-dtype '{training.save_dtype}' is not one of auto, {', '.join(STORAGE)}"
        )
    rows = row_sets.open_rows(training.data)
    check_rows(rows, checkpoint)
    batch_size = _batch_size(training, rows)
    steps = _steps(training, rows, batch_size, report)
    needed = steps * batch_size
    if needed > len(rows) and not training.repeat:
        raise InputError(
            f"{steps} steps of {batch_size} need {needed} rows, '{training.data}' has {len(rows)}",
            f"tokenize more text, or --repeat to read them {needed / len(rows):.2f} times",
        )
    stop = min(rows.stop, rows.start + needed)
    trained = rows.trained(stop, needed * rows.seq_len)
    if not training.allow_overlap:
        _refuse_overlap(checkpoint, trained, stop - rows.start)
    lrs = _learning_rates(training)
    teacher = _teacher(training, checkpoint, rows)
    held_out = _held_out(training, checkpoint, trained, report)
    return ResolvedTraining(
        checkpoint,
        rows,
        training,
        steps,
        batch_size,
        lrs,
        min(steps, training.sweep_steps or max(SHORTEST_SWEEP, steps // 20)),
        _micro(training, share(batch_size), rows.seq_len),
        training.save_every or ceil(steps / STATES),
        training.eval_every or ceil(steps / STATES),
        trained,
        _masked(training, checkpoint),
        teacher,
        0.0 if teacher is None else _or(training.kd_weight, KD_WEIGHT),
        _or(training.temperature, TEMPERATURE),
        held_out,
    )


def _check_numbers(training: Training) -> None:
    if training.tokens is not None and training.steps is not None:
        raise UsageError("--tokens and --steps say the same", "give one of them")
    least = {
        "tokens": 1, "steps": 1, "batch_size": 1, "micro_batch": 1, "eval_every": 1,
        "save_every": 1, "keep_states": 1, "sweep_steps": 1,
    }  # fmt: skip
    for name, bound in least.items():
        value = getattr(training, name)
        if value is not None and not bound <= value < inf:
            raise UsageError(f"--{name.replace('_', '-')} {value}: expected at least {bound}")
    for name in ("warmup", "floor"):
        if not 0 <= getattr(training, name) <= 1:
            raise UsageError(f"--{name} {getattr(training, name)}: expected a fraction of 1")
    for name in ("beta1", "beta2"):
        if not 0 <= getattr(training, name) < 1:
            raise UsageError(f"--{name} {getattr(training, name)}: expected 0 or more, below 1")
    for name in ("clip", "temperature", "eps"):
        value = getattr(training, name)
        if value is not None and not value > 0:
            raise UsageError(f"--{name} {value}: expected more than 0")
    # a norm that is infinite clips nothing, which may be what is wanted
    for name in ("temperature", "eps", "weight_decay"):
        value = getattr(training, name)
        if value is not None and not 0 <= value < inf:
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag} {value}: expected a finite number, 0 or more")
    if training.kd_weight is not None and not 0 <= training.kd_weight <= 1:
        raise UsageError(f"--kd-weight {training.kd_weight}: expected a fraction of 1")
    if training.track is not None:
        library(training.track)
    if training.eval_every is not None and training.eval_data is None:
        raise UsageError("--eval-every needs held-out tokens", "add --eval-data")
    if (training.text_column is not None or training.skip_bad) and training.eval_data is None:
        raise UsageError("--text-column and --skip-bad are for held-out text", "add --eval-data")


def check_rows(rows: Rows, checkpoint: Checkpoint) -> None:
    """Raise InputError for rows that this model cannot read."""
    windows.check_tokenizer(rows, str(checkpoint.folder))
    arch = checkpoint.arch
    if rows.min_id < 0 or rows.max_id >= arch.vocab:
        wrong = f"id {rows.min_id} < 0" if rows.min_id < 0 else f"id {rows.max_id}"
        raise InputError(
            f"rows of another vocabulary: {wrong}, the model has vocab_size {arch.vocab}",
            "tokenize the text with this model's own tokenizer",
        )
    if rows.seq_len > arch.max_positions:
        raise InputError(
            f"rows of {rows.seq_len} tokens are too long: the model has {arch.max_positions} "
            "positions",
            "tokenize with a smaller --seq-len",
        )


def _batch_size(training: Training, rows: Rows) -> int:
    if training.recipe is None:
        return training.batch_size or BATCH_SIZE
    if training.recipe != "paper":
        raise UsageError(f"unknown recipe '{training.recipe}': did you mean 'paper'?")
    if rows.seq_len != PAPER_LENGTH:
        raise InputError(
            f"the paper trains on rows of {PAPER_LENGTH} tokens, these have {rows.seq_len}",
            f"tokenize with --seq-len {PAPER_LENGTH}, or leave out --recipe",
        )
    return training.batch_size or PAPER_BATCH


def _steps(training: Training, rows: Rows, batch_size: int, report: Report) -> int:
    per_step = batch_size * rows.seq_len
    if training.steps is not None:
        return training.steps
    asked = training.tokens if training.tokens is not None else len(rows) * rows.seq_len
    steps = int(asked // per_step)
    if steps == 0:
        raise InputError(
            f"{asked:.0f} tokens are less than one step of {batch_size} x {rows.seq_len}",
            "use a smaller --batch-size",
        )
    if steps * per_step != asked:
        report.note(f"{steps} steps of {batch_size} x {rows.seq_len}: {steps * per_step} tokens")
    return steps


def _learning_rates(training: Training) -> tuple[float, ...]:
    text = training.lr or (SWEEP_NAME if training.recipe else str(LR))
    if text == SWEEP_NAME:
        return SWEEP
    if training.sweep_steps is not None:
        raise UsageError("--sweep-steps needs --lr sweep")
    try:
        lr = float(text)
    except ValueError:
        raise UsageError(f"--lr '{text}': expected a number or {SWEEP_NAME}") from None
    if not 0 < lr < MOST_LR:
        raise UsageError(f"--lr {text}: expected more than 0 and less than {MOST_LR}")
    return (lr,)


def share(batch_size: int) -> int:
    """Return how many sequences of a step are one process's; raise InputError for a fraction."""
    size = world.size()
    if batch_size % size:
        raise InputError(
            f"a batch of {batch_size} cannot be divided among {size} processes",
            f"use a --batch-size that is a multiple of {size}",
        )
    return batch_size // size


def _micro(training: Training, own: int, length: int) -> int:
    """Return how many sequences a process takes at once: a divisor of its share."""
    if training.micro_batch is not None:
        if own % training.micro_batch:
            raise InputError(
                f"--micro-batch {training.micro_batch} does not divide the {own} sequences of a "
                "process"
            )
        return training.micro_batch
    return micro(own, length)


def micro(own: int, length: int) -> int:
    """Return how many of a process's `own` sequences go through at once: a divisor."""
    most = max(1, MICRO_TOKENS // length)
    return max(size for size in range(1, own + 1) if own % size == 0 and size <= most)


def _refuse_overlap(checkpoint: Checkpoint, trained: Trained, count: int) -> None:
    shared = provenance.overlap(trained, checkpoint.trained)
    if shared:
        raise InputError(
            f"{shared} of {count} rows were trained on by an ancestor of "
            f"'{checkpoint.folder.name}'",
            "take other rows (ROWS:A:B), or --allow-overlap",
        )


def _masked(training: Training, checkpoint: Checkpoint) -> Checkpoint | None:
    if training.masks in MASKS:
        return checkpoint if training.masks == "keep" else None
    return Checkpoint(training.masks)


def _or(given: float | None, default: float) -> float:
    return default if given is None else given


def _teacher(training: Training, checkpoint: Checkpoint, rows: Rows) -> Checkpoint | None:
    if training.teacher is None:
        for name in ("kd_weight", "temperature"):
            if getattr(training, name) is not None:
                flag = name.replace("_", "-")
                raise UsageError(f"--{flag} needs a teacher", "add --teacher DIR")
        return None
    teacher = Checkpoint(training.teacher)
    ours, theirs = checkpoint.arch, teacher.arch
    if ours.vocab != theirs.vocab:
        raise InputError(
            f"the teacher has {theirs.vocab} ids, the model {ours.vocab}",
            "distil from a model with the same tokenizer",
        )
    folders = [str(checkpoint.folder), str(teacher.folder)]
    if all(map(tokenizer.present, folders)) and len(set(map(tokenizer.digest, folders))) > 1:
        raise InputError("the teacher has another tokenizer than the model")
    if rows.seq_len > theirs.max_positions:
        raise InputError(
            f"rows of {rows.seq_len} tokens are too long: the teacher has {theirs.max_positions} "
            "positions"
        )
    return teacher


def _held_out(
    training: Training, checkpoint: Checkpoint, trained: Trained, report: Report
) -> "windows.Tokens | None":
    """Read the rows to validate on; raise InputError if any of them are trained on."""
    if training.eval_data is None:
        return None
    found = windows.load(
        Data(training.eval_data, text_column=training.text_column, skip_bad=training.skip_bad),
        folder=str(checkpoint.folder),
        vocab_size=checkpoint.arch.vocab,
        max_positions=checkpoint.arch.max_positions,
        part="evaluation",
        report=report,
    )
    own = provenance.trained_on(found.meta)
    if own is not None and not training.allow_overlap:
        shared = provenance.overlap(own, [trained, *checkpoint.trained])
        if shared:
            raise InputError(
                f"{shared} of {len(found.windows)} validation rows are trained on",
                "take other rows (ROWS:A:B), or --allow-overlap",
            )
    return found


def dtype_of(compute: Compute) -> str:
    """Return the compute type: float32 on a CPU unless asked, bfloat16 where a GPU has it."""
    import torch

    from prunecli.model.device import device_of

    device = device_of(compute)
    if compute.dtype != "auto":
        return compute.dtype
    return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
