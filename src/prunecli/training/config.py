"""A request to train, resolved against model and rows: checked as a whole before any step."""

from dataclasses import dataclass
from functools import cached_property
from math import ceil, inf
from typing import Any

from prunecli.data import rows as row_sets
from prunecli.data import tokenizer, windows
from prunecli.data.rows import Rows
from prunecli.errors import InputError, UsageError
from prunecli.files import provenance, sidecar, world
from prunecli.files.sidecar import Input, Trained
from prunecli.files.tensorfile import STORAGE, Spec
from prunecli.model import memory
from prunecli.model.checkpoint import Checkpoint
from prunecli.report import Report
from prunecli.settings import Compute, Data, Training
from prunecli.training.trackers import library

SWEEP = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
SWEEP_NAME = "sweep"
MAX_LR = 1000
LR = 3e-4
BATCH_SIZE = 16
PAPER_BATCH, PAPER_LENGTH = 512, 8192
KD_WEIGHT, TEMPERATURE = 0.5, 1.0
MICRO_TOKENS = 8192
STATES = 20  # saved over a run, unless --save-every says otherwise
SHORTEST_SWEEP = 20
MASKS = ("keep", "drop")


@dataclass(frozen=True)
class ResolvedTraining:
    """A run with every default resolved.

    Attributes:
        dtype: the compute type.
        lrs: the learning rates to choose from in trials of `sweep_steps` steps; one needs no trial.
        micro_batch_size: sequences that go through a process at once.
        trained: the rows that are read, and how many tokens that is.
        masked: the checkpoint whose zeros stay zero, None for none.
        held_out: the windows to evaluate on, None for none.
    """

    checkpoint: Checkpoint
    rows: Rows
    training: Training
    dtype: str
    steps: int
    batch_size: int
    lrs: tuple[float, ...]
    sweep_steps: int
    micro_batch_size: int
    save_every: int
    eval_every: int
    trained: Trained
    masked: Checkpoint | None
    teacher: Checkpoint | None
    kd_weight: float
    temperature: float
    held_out: windows.Tokens | None

    @property
    def tokens(self) -> int:
        """Tokens of all steps."""
        return self.trained.count

    @cached_property
    def stored_specs(self) -> dict[str, Spec]:
        """How OUT stores every tensor."""
        return self.checkpoint.stored(self.training.save_dtype)[1]

    @property
    def options(self) -> dict[str, Any]:
        """Everything that decides the weights, for the sidecar; when states are saved does not."""
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
            "dtype": self.dtype,
        }

    def inputs(self, report: Report) -> list[Input]:
        """Return all inputs with their digests; reads every weight once."""
        checkpoint, rows = self.checkpoint, self.rows
        read = {
            "role": "rows",
            "id": rows.id,
            "digest": rows.digest,
            "range": list(self.trained.range),
            "passes": self.steps * self.batch_size,
            "seq_len": rows.seq_len,
        }
        inputs = [checkpoint.as_input(checkpoint.digest(report)), Input.model_validate(read)]
        if self.teacher is not None:
            inputs.append(self.teacher.as_input(self.teacher.digest(report), "teacher"))
        if self.masked is not None and self.masked is not checkpoint:
            inputs.append(self.masked.as_input(self.masked.digest(report), "masks"))
        if self.held_out is not None:
            held_out = self.held_out
            inputs.append(sidecar.tokens_input("evaluation", held_out.meta, held_out.windows))
        return inputs

    @property
    def expected(self) -> dict[str, Any]:
        """The results of a dry run; `state_bytes` are weights, moments and gradients."""
        arch, length = self.checkpoint.arch, self.rows.seq_len
        return {
            "tokens": self.tokens,
            "rows": list(self.trained.range),
            "params": arch.total_params,
            "flops": memory.training_flops(arch, self.tokens, length),
            "state_bytes": memory.STATE_BYTES * arch.total_params,
            "micro_batch": self.micro_batch_size,
            "save_every": self.save_every,
        }


def resolve_training(
    checkpoint: Checkpoint, training: Training, compute: Compute, report: Report
) -> ResolvedTraining:
    """Check a request and resolve every default of it; raise UsageError or InputError."""
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
    # arguments are evaluated in this order, which decides which error a user meets first
    lrs = _learning_rates(training)
    teacher = _teacher(training, checkpoint, rows)
    held_out = _held_out(training, checkpoint, trained, report)
    return ResolvedTraining(
        checkpoint=checkpoint,
        rows=rows,
        training=training,
        steps=steps,
        batch_size=batch_size,
        lrs=lrs,
        sweep_steps=min(steps, training.sweep_steps or max(SHORTEST_SWEEP, steps // 20)),
        micro_batch_size=_micro_batch_size(training, batch_size, rows.seq_len),
        save_every=training.save_every or ceil(steps / STATES),
        eval_every=training.eval_every or ceil(steps / STATES),
        trained=trained,
        masked=_masked(training, checkpoint),
        teacher=teacher,
        kd_weight=0.0 if teacher is None else _or(training.kd_weight, KD_WEIGHT),
        temperature=_or(training.temperature, TEMPERATURE),
        held_out=held_out,
        dtype=training_dtype(compute),
    )


def _check_numbers(training: Training) -> None:
    if training.tokens is not None and training.steps is not None:
        raise UsageError("--tokens and --steps cannot be combined", "remove one of them")
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
            raise UsageError(f"--{name} {getattr(training, name)}: expected 0 to 1")
    for name in ("beta1", "beta2"):
        if not 0 <= getattr(training, name) < 1:
            raise UsageError(f"--{name} {getattr(training, name)}: expected 0 or more, below 1")
    for name in ("clip", "temperature", "eps"):
        value = getattr(training, name)
        if value is not None and not value > 0:
            raise UsageError(f"--{name} {value}: expected more than 0")
    # an infinite --clip clips nothing, which may be intended
    for name in ("temperature", "eps", "weight_decay"):
        value = getattr(training, name)
        if value is not None and not 0 <= value < inf:
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag} {value}: expected a finite number, 0 or more")
    if training.kd_weight is not None and not 0 <= training.kd_weight <= 1:
        raise UsageError(f"--kd-weight {training.kd_weight}: expected 0 to 1")
    if training.track is not None:
        library(training.track)
    if training.eval_every is not None and training.eval_data is None:
        raise UsageError("--eval-every needs --eval-data", "add --eval-data")
    if (training.text_column is not None or training.skip_bad) and training.eval_data is None:
        raise UsageError("--text-column and --skip-bad need --eval-data", "add --eval-data")


def check_rows(rows: Rows, checkpoint: Checkpoint) -> None:
    """Raise InputError unless the model can read these rows."""
    windows.check_tokenizer(rows, str(checkpoint.folder))
    arch = checkpoint.arch
    if rows.min_id < 0 or rows.max_id >= arch.vocab:
        bad_id = rows.min_id if rows.min_id < 0 else rows.max_id
        raise InputError(
            f"rows of another vocabulary: id {bad_id}, the model has vocab_size {arch.vocab}",
            "make rows with the model's own: `prunecli tokenize --tokenizer IN`",
        )
    if rows.seq_len > arch.max_positions:
        raise InputError(
            f"rows of {rows.seq_len} tokens exceed the model's context length, "
            f"{arch.max_positions}",
            "make shorter rows: `prunecli tokenize --seq-len N`",
        )


def _batch_size(training: Training, rows: Rows) -> int:
    if training.recipe is None:
        return training.batch_size or BATCH_SIZE
    if training.recipe != "paper":
        raise UsageError(f"unknown recipe '{training.recipe}': did you mean 'paper'?")
    if rows.seq_len != PAPER_LENGTH:
        raise InputError(
            f"the paper trains on rows of {PAPER_LENGTH} tokens, these have {rows.seq_len}",
            f"tokenize with --seq-len {PAPER_LENGTH}, or remove --recipe",
        )
    return training.batch_size or PAPER_BATCH


def _steps(training: Training, rows: Rows, batch_size: int, report: Report) -> int:
    per_step = batch_size * rows.seq_len
    if training.steps is not None:
        return training.steps
    tokens = training.tokens if training.tokens is not None else len(rows) * rows.seq_len
    steps = whole_steps(tokens, batch_size, rows.seq_len)
    if steps * per_step != tokens:
        report.info(f"{steps} steps of {batch_size} x {rows.seq_len}: {steps * per_step} tokens")
    return steps


def whole_steps(tokens: float, batch_size: int, seq_len: int) -> int:
    """Return how many steps these tokens make; raise InputError for less than one."""
    steps = int(tokens // (batch_size * seq_len))
    if steps < 1:
        raise InputError(
            f"{tokens:.0f} tokens are less than one step of {batch_size} x {seq_len}",
            "use a smaller --batch-size",
        )
    return steps


def _learning_rates(training: Training) -> tuple[float, ...]:
    text = training.lr or (SWEEP_NAME if training.recipe else str(LR))
    if text == SWEEP_NAME:
        return SWEEP
    try:
        lrs = tuple(sorted({float(part) for part in text.split(",")}))
    except ValueError:
        raise UsageError(
            f"--lr '{text}': expected a number, several (1e-3,3e-3), or {SWEEP_NAME}"
        ) from None
    if not all(0 < lr < MAX_LR for lr in lrs):
        raise UsageError(f"--lr {text}: expected more than 0 and less than {MAX_LR}")
    if len(lrs) == 1 and training.sweep_steps is not None:
        raise UsageError("--sweep-steps needs --lr sweep")
    return lrs


def local_batch_size(batch_size: int) -> int:
    """Return the sequences of a step per process; raise InputError for a fraction."""
    size = world.size()
    if batch_size % size:
        raise InputError(
            f"a batch of {batch_size} sequences cannot be divided among {size} processes",
            f"use a --batch-size that is a multiple of {size}",
        )
    return batch_size // size


def _micro_batch_size(training: Training, batch_size: int, seq_len: int) -> int:
    if training.micro_batch is None:
        return micro_batch_size(batch_size, seq_len)
    local = local_batch_size(batch_size)
    if local % training.micro_batch:
        raise InputError(
            f"--micro-batch {training.micro_batch} does not divide the {local} sequences per "
            "process and step"
        )
    return training.micro_batch


def micro_batch_size(batch_size: int, seq_len: int) -> int:
    """Return how many sequences go through a process at once: a divisor of its batch."""
    local, limit = local_batch_size(batch_size), max(1, MICRO_TOKENS // seq_len)
    return max(size for size in range(1, local + 1) if local % size == 0 and size <= limit)


def _refuse_overlap(checkpoint: Checkpoint, trained: Trained, count: int) -> None:
    shared = provenance.overlap(trained, checkpoint.trained)
    if shared:
        raise InputError(
            f"{shared} of {count} rows were trained on by an ancestor of "
            f"'{checkpoint.folder.name}'",
            "use other rows (ROWS:A:B), or --allow-overlap",
        )


def _masked(training: Training, checkpoint: Checkpoint) -> Checkpoint | None:
    if training.masks in MASKS:
        return checkpoint if training.masks == "keep" else None
    return Checkpoint(training.masks)


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _teacher(training: Training, checkpoint: Checkpoint, rows: Rows) -> Checkpoint | None:
    if training.teacher is None:
        for name in ("kd_weight", "temperature"):
            if getattr(training, name) is not None:
                flag = name.replace("_", "-")
                raise UsageError(f"--{flag} needs --teacher", "add --teacher DIR")
        return None
    teacher = Checkpoint(training.teacher)
    vocab, teacher_vocab = checkpoint.arch.vocab, teacher.arch.vocab
    if vocab != teacher_vocab:
        raise InputError(
            f"the teacher has vocab_size {teacher_vocab}, the model {vocab}",
            "distill from a model with the same tokenizer",
        )
    folders = [str(checkpoint.folder), str(teacher.folder)]
    if all(map(tokenizer.present, folders)) and len(set(map(tokenizer.digest, folders))) > 1:
        raise InputError(
            "the teacher has another tokenizer than the model",
            "distill from a model with the same tokenizer",
        )
    if rows.seq_len > teacher.arch.max_positions:
        raise InputError(
            f"rows of {rows.seq_len} tokens exceed the teacher's context length, "
            f"{teacher.arch.max_positions}",
            "make shorter rows: `prunecli tokenize --seq-len N`",
        )
    return teacher


def _held_out(
    training: Training, checkpoint: Checkpoint, trained: Trained, report: Report
) -> windows.Tokens | None:
    """Return the windows to evaluate on; raise InputError if any of them are trained on."""
    if training.eval_data is None:
        return None
    held_out = windows.load(
        Data(training.eval_data, text_column=training.text_column, skip_bad=training.skip_bad),
        folder=str(checkpoint.folder),
        vocab_size=checkpoint.arch.vocab,
        max_positions=checkpoint.arch.max_positions,
        part="evaluation",
        report=report,
    )
    windows.tell_of_joints(held_out, training.eval_data, report)
    rows = provenance.trained_on(held_out.meta)
    if rows is not None and not training.allow_overlap:
        shared = provenance.overlap(rows, [trained, *checkpoint.trained])
        if shared:
            raise InputError(
                f"{shared} of {len(held_out.windows)} evaluation rows are trained on",
                "use other rows (ROWS:A:B), or --allow-overlap",
            )
    return held_out


def training_dtype(compute: Compute) -> str:
    """Return the compute type; `auto` is float32 on a CPU, bfloat16 on a GPU that supports it."""
    import torch

    from prunecli.model.device import device_of

    device = device_of(compute)
    if compute.dtype != "auto":
        return compute.dtype
    return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
