"""A run that trains masks: what it reads, its steps and states, and what comes out of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from prunecli.data import rows as row_sets
from prunecli.data import windows
from prunecli.data.joined import ConcatRows, WindowRows
from prunecli.data.rows import Rows
from prunecli.errors import InputError, Stopped, UsageError
from prunecli.files import provenance, sidecar
from prunecli.files.sidecar import Input, Trained
from prunecli.files.tensorfile import Spec, TensorWriter, read_tensor
from prunecli.methods._base import Method, domains_of, shares_of
from prunecli.model import stream
from prunecli.model.checkpoint import Checkpoint, Reader
from prunecli.pruning import gates, surgery
from prunecli.pruning.gates import Values
from prunecli.pruning.plan import Plan, Selection
from prunecli.pruning.sheared import HardConcreteMasks, ShearedObjective
from prunecli.pruning.sizes import Sizes
from prunecli.report import Report
from prunecli.settings import Compute, Data, RunContext, Training
from prunecli.training import config, schedule
from prunecli.training import objective as models
from prunecli.training.distributed import Ranks
from prunecli.training.domains import DomainMixture
from prunecli.training.fixed_masks import Masks
from prunecli.training.log import curve, final
from prunecli.training.loop import Loop, StepMetrics
from prunecli.training.trainer import Trainer

if TYPE_CHECKING:
    import torch

    pass
SHORTEST = 300  # steps, where one pass over D is less
STATES = 10  # saved over a run
LOOKED = 16  # windows of a domain, for its loss; a tenth of it at most
JUDGED = 16  # windows for the losses that are reported
DRAWS = 3  # of random masks to compare with
WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class ResolvedMaskTraining:
    """A run with every default resolved: its rows, its steps, and what is recorded of it.

    `dtype` is the compute type, `calibration` are the inputs that rows come from; `trained` is None
    where only masks are. `looked` are rows of each domain that are not learned on, for its loss,
    and `held_out` what is recorded of them; there are none of one D alone. `official`: with the
    quirks of the official code.
    """

    rows: ConcatRows
    steps: int
    options: Mapping[str, Any]
    seed: int
    dtype: str
    calibration: list[Input]
    trained: Trained | None
    looked: list[Rows | WindowRows]
    held_out: list[Input]
    official: bool

    @property
    def recorded(self) -> dict[str, Any]:
        """What decides the result beside the inputs; these tell what domains there are."""
        names = [(entry.model_extra or {})["source"] for entry in self.calibration[1:]]
        options = {**self.options, "domains": ",".join(names)}
        return {"options": options, "steps": self.steps, "seed": self.seed, "dtype": self.dtype}

    @property
    def inputs(self) -> list[Input]:
        """What rows come from; and which, if weights are trained on them."""
        read = [*self.calibration, *self.held_out]
        if self.trained is None:
            return read
        told = {"passes": self.steps * self.options["batch_size"], "seq_len": self.rows.seq_len}
        first = {"role": "rows", "digest": self.trained.rows, "range": list(self.trained.range)}
        return [*read, Input.model_validate({**first, **told})]

    @property
    def calibration_tokens(self) -> int:
        """How many tokens were read without training weights on them, domains included."""
        return 0 if self.trained else len(self.rows) * self.rows.seq_len

    def expected(self, params: int) -> dict[str, Any]:
        """Return what a dry run tells; `state_bytes` are weights, moments and gradients in memory,
        `disk_bytes` states and the learned weights.
        """
        frozen = self.options["freeze_weights"]
        per_step = self.options["batch_size"] * self.rows.seq_len
        return {
            "steps": self.steps,
            "tokens": self.steps * per_step,
            "state_bytes": (4 if frozen else 16) * params,
            # a new state is whole before the old one goes; gates are next to nothing
            "disk_bytes": 0 if frozen else 4 * params * (2 * 3 + 1),
        }


def resolve_mask_training(
    checkpoint: Checkpoint,
    data: Data,
    options: Mapping[str, Any],
    compute: Compute,
    report: Report,
    official: bool = False,
) -> ResolvedMaskTraining:
    """Return a run over D and other domains: `tokens`, or one pass over them, 300 steps at least.

    Rows that `tokenize` made are read as they are needed. Of several domains the last rows of each
    are held out. Raises UsageError or InputError for a run that makes no sense.
    """
    for name in ("tokens", "batch_size", "lr", "mask_lr", "domain_every"):
        if options[name] is not None and not 0 < options[name] < inf:
            raise UsageError(
                f"--{name.replace('_', '-')} {options[name]}: expected a number above 0"
            )
    batch_size = options["batch_size"]
    config.share(batch_size)
    sources = (data.source, *domains_of(options))
    shares_of(options, len(sources))
    opened = [_open(checkpoint, replace(data, source=name), report) for name in sources]
    if len({found.seq_len for found, _ in opened}) > 1:
        raise InputError("the domains have windows of unequal lengths", "give a --seq-len")
    read = [_rows_of(entry) for _, entry in opened]
    if any(provenance.overlap(one, read[:number]) for number, one in enumerate(read)):
        raise InputError("the domains have the same text twice", "name every D once")
    held_out = [_held_out(*one) for one in opened] if len(opened) > 1 else []
    for number, (kept, _) in enumerate(held_out):
        opened[number] = _some(0, len(opened[number][0]) - len(kept), *opened[number])
    rows = ConcatRows([found for found, _ in opened])
    per_step = batch_size * rows.seq_len
    steps = max(len(rows) // batch_size, SHORTEST)
    if options["tokens"] is not None:
        steps = int(options["tokens"] // per_step)
        if steps < 1:
            raise InputError(
                f"{options['tokens']:.0f} tokens are less than one step of {batch_size} x "
                f"{rows.seq_len}",
                "use a smaller --batch-size",
            )
    needed = steps * batch_size
    if needed > len(rows):
        times = needed / len(rows)
        report.note(f"D is read {times:.1f} times: {steps} steps of {batch_size} x {rows.seq_len}")
    if len(opened) == 1 and needed < len(rows):
        opened = [_some(0, needed, *opened[0])]
        rows = ConcatRows([opened[0][0]])
    calibration = [entry for _, entry in opened]
    trained = None
    if not options["freeze_weights"]:
        trained = _trained(calibration, len(rows), needed * rows.seq_len)
    dtype = config.dtype_of(compute)
    looked, told = [found for found, _ in held_out], [entry for _, entry in held_out]
    return ResolvedMaskTraining(
        rows, steps, options, data.seed, dtype, calibration, trained, looked, told, official
    )


def _open(checkpoint: Checkpoint, data: Data, report: Report) -> tuple[Rows | WindowRows, Input]:
    """Return a D to learn on, and what is recorded of it."""
    folder = str(checkpoint.folder)
    if row_sets.is_rows(data.source):
        found, meta = windows.open_rows(data, folder)
        config.check_rows(found, checkpoint)
        sizes = {"nsamples": len(found), "seq_len": found.seq_len, "digest": found.digest}
        return found, sidecar.tokens_input("calibration", {**meta, **sizes}, [])
    drawn = windows.load(
        data,
        folder=folder,
        vocab_size=checkpoint.arch.vocab,
        max_positions=checkpoint.arch.max_positions,
        part="calibration",
        report=report,
    )
    return WindowRows(drawn.ids), sidecar.tokens_input("calibration", drawn.meta, drawn.windows)


def _some(
    first: int, stop: int, rows: Rows | WindowRows, entry: Input
) -> tuple[Rows | WindowRows, Input]:
    """Return rows `first` to `stop` - 1 of a D, and what is recorded of these: no more are read."""
    told = {**(entry.model_extra or {}), "nsamples": stop - first}
    if isinstance(rows, WindowRows):
        told["windows"] = told["windows"][first:stop]
        return WindowRows(rows.ids[first:stop]), entry.model_copy(update=told)
    told["range"] = [rows.start + first, rows.start + stop]
    part = replace(rows, start=rows.start + first, stop=rows.start + stop)
    return part, entry.model_copy(update=told)


def _held_out(rows: Rows | WindowRows, entry: Input) -> tuple[Rows | WindowRows, Input]:
    """Return the rows of a domain that are kept for its loss, and what is recorded of these."""
    if len(rows) < 2:
        source = (entry.model_extra or {})["source"]
        raise InputError(
            f"the domain '{source}' has one window, its loss needs another", "give more text"
        )
    count = min(LOOKED, max(1, len(rows) // 10))
    kept, told = _some(len(rows) - count, len(rows), rows, entry)
    return kept, told.model_copy(update={"role": "evaluation"})


def _rows_of(entry: Input) -> Trained:
    """Return which rows a D has, given or drawn."""
    meta = entry.model_extra or {}
    drawn = Trained(rows=entry.digest, range=(0, meta["nsamples"]), count=0)
    return provenance.trained_on(meta) or drawn


def _trained(calibration: list[Input], rows: int, count: int) -> Trained:
    """Return what weights are trained on: the rows of one D, or all domains as one set."""
    read = [_rows_of(entry) for entry in calibration]
    if len(read) == 1:
        return read[0].model_copy(update={"count": count})
    told = " ".join(f"{one.rows} {one.range}" for one in read)
    return Trained(rows=sha256(told.encode()).hexdigest(), range=(0, rows), count=count)


@dataclass(frozen=True)
class MaskTrainingResult:
    """What a run has learned: what stays, the weights with gates folded in, and its figures."""

    plan: Plan
    weights: Reader
    gates: Values
    results: dict[str, Any]


class _Kept(Reader):
    """Weights in float32 in a file, under the shape and the storage types of their parent."""

    def __init__(self, path: Path, parent: Reader) -> None:
        self.path, self.arch, self.specs = path, parent.arch, parent.specs

    def tensor(self, name: str) -> Tensor:
        """Return one weight, float32."""
        return read_tensor(self.path, name)


def learn(
    checkpoint: Checkpoint,
    sizes: Sizes,
    lesson: ResolvedMaskTraining,
    folder: Path,
    ranks: Ranks,
    *,
    name: str,
    compute: Compute,
    report: Report,
    stop: Callable[[], bool],
) -> MaskTrainingResult:
    """Learn masks for these sizes, and the weights with them; all processes take part.

    The state lies in `folder`, which the user knows as `name`, and is gone on from; the weights are
    left there. `stop` is asked at every step; when it says so, the state is saved and Stopped
    raised. Raises NotANumber where the loss is none.
    """
    options, rows = lesson.options, lesson.rows
    masks = HardConcreteMasks(checkpoint.arch, sizes, lesson.seed)
    dtype, share = getattr(torch, lesson.dtype), options["mask_lr"] / options["lr"]

    def make(model: nn.Module, teacher: nn.Module | None) -> ShearedObjective:
        return ShearedObjective(model, checkpoint.arch, masks, dtype, share, lesson.official)

    objective = models.assemble(
        checkpoint, None, ranks, make,
        recompute=options["activation_checkpointing"], frozen=options["freeze_weights"],
    )  # fmt: skip
    assert isinstance(objective, ShearedObjective)
    mixture = None
    if lesson.looked:
        mixture = DomainMixture(rows.sizes, lesson.seed, shares_of(options, len(rows.sizes)))
    settings = Training("", seed=lesson.seed, weight_decay=0.0, warmup=0.1)
    loop = Loop(
        objective, rows, settings, Masks(objective.model, ()), ranks,
        steps=lesson.steps, batch_size=options["batch_size"], lr=options["lr"],
        micro=config.micro(config.share(options["batch_size"]), rows.seq_len), order=mixture,
        rate=schedule.late if lesson.official else schedule.rate,
    )  # fmt: skip
    mixing = None
    if mixture is not None:
        reference = _domain_losses(checkpoint, lesson.looked, compute)
        mixing = _Mixing(mixture, lesson.looked, options["domain_every"], reference)

    def line_of(step: int, done: StepMetrics) -> dict[str, Any]:
        if mixing is None or (step + 1) % mixing.every:
            return {}
        mixing.look(loop)
        return {"weights": mixing.mixture.weights.tolist()}

    every = -(-lesson.steps // STATES)
    run = Trainer(folder, name, "learning masks", every, 1, True, report, stop)
    try:
        lines = run.take(loop, line_of, lambda line: report.live(f"loss {line['loss']:.4f}"))
        values, figures = masks.settled(), masks.figures()
        weights: Reader = checkpoint
        if lesson.trained is not None:
            _keep(objective.model, folder / WEIGHTS, ranks)
            weights = _Kept(folder / WEIGHTS, checkpoint)
    finally:
        objective.release()
    losses = [line["loss"] for line in lines]
    results = {
        "variant": None if lesson.trained else "masks alone, weights frozen",
        "steps": lesson.steps,
        "batch_size": options["batch_size"],
        "tokens": lesson.steps * options["batch_size"] * rows.seq_len,
        "mask_loss": final(losses) if losses else None,
        "curve": curve(losses) if losses else None,
        **figures,
        "domain_weights": None if mixture is None else mixture.weights.tolist(),
    }
    folded = gates.MergedMasks(weights, values, lesson.official)
    return MaskTrainingResult(gates.plan_of(values), folded, values, results)


@dataclass
class _Mixing:
    """When and by what a mixture of domains changes; `reference` are the parent's losses [D]."""

    mixture: DomainMixture
    looked: list[Rows | WindowRows]
    every: int
    reference: Tensor

    def look(self, loop: Loop) -> None:
        """Measure all domains with the masked model, and shift the weights."""
        losses = [loop.evaluate(_all(rows)) for rows in self.looked]
        self.mixture.update(torch.tensor(losses, dtype=torch.float64), self.reference)


def _all(rows: Rows | WindowRows) -> Tensor:
    """Return all rows: int64 [N, T]."""
    return rows.read(range(rows.start, rows.start + len(rows)))


def _domain_losses(
    checkpoint: Checkpoint, looked: list[Rows | WindowRows], compute: Compute
) -> Tensor:
    """Return the parent's loss on every domain [D], in nats per token."""
    from prunecli.model.stream import sequence_losses

    runner = stream.LayerStream(checkpoint, compute)
    found = []
    for rows in looked:
        ids = _all(rows)
        found.append(sequence_losses(runner, ids).sum() / ids[:, 1:].numel())
    return torch.stack(found).double()


def _keep(model: nn.Module, path: Path, ranks: Ranks) -> None:
    """Write all weights in float32, one at a time; all processes must take part."""
    stream = models.whole_tensors(model)
    if not ranks.first:
        for _ in stream:
            pass
        return
    specs = {name: Spec("F32", tuple(w.shape)) for name, w in model.named_parameters()}
    with TensorWriter(path, specs) as writer:
        for name, tensor in stream:
            writer.write(name, tensor.cpu())


def judge(
    checkpoint: Checkpoint,
    lesson: ResolvedMaskTraining,
    learned: MaskTrainingResult,
    *,
    compute: Compute,
    report: Report,
    stop: Callable[[], bool],
) -> dict[str, Any]:
    """Return the losses on some of the rows: of what was learned, of the parent cut by the same
    masks, and of the parent cut by random masks of the same shape, `DRAWS` times.

    Raises Stopped when `stop` says so in between.
    """
    from prunecli.model.stream import sequence_losses

    judged, shape = lesson.rows.some(JUDGED), learned.plan.child(checkpoint.arch)

    def loss(reader: Reader, plan: Plan) -> float:
        if stop():
            raise Stopped("stopped, with all masks learned", "the same command goes on")
        runner = stream.LayerStream(surgery.PrunedModel(reader, plan, shape), compute, report)
        return float(sequence_losses(runner, judged).sum()) / judged[:, 1:].numel()

    losses: dict[str, Any] = {
        "learned": loss(learned.weights, learned.plan),
        "parent_with_learned_masks": loss(checkpoint, learned.plan),
        "parent_with_random_masks": [
            loss(checkpoint, gates.plan_of(values))
            for values in _random(learned.gates, lesson.seed)
        ],
    }
    random = losses["parent_with_random_masks"]
    report.note(
        f"loss on {len(judged)} windows of D: {losses['learned']:.4f}; of the parent with these "
        f"masks {losses['parent_with_learned_masks']:.4f}, with random masks of the same shape "
        f"{sum(random) / DRAWS:.4f} ({min(random):.4f} to {max(random):.4f} in {DRAWS} draws)"
    )
    return {"judged_windows": len(judged), "loss": losses}


def _random(values: Values, seed: int) -> list[dict[str, Tensor]]:
    """Return gates of the same shape that keep units at random, `DRAWS` times."""
    # other numbers than those that the gates began with
    draw = torch.Generator().manual_seed(((seed << 8) + 1) % (1 << 63))
    return [
        {
            axis: gates.settled(
                torch.randn(found.shape, generator=draw), int((found != 0).sum(-1).max())
            )
            for axis, found in values.items()
        }
        for _ in range(DRAWS)
    ]


def train_masks(
    checkpoint: Checkpoint,
    sizes: Sizes,
    resolved: ResolvedMaskTraining,
    folder: Path,
    name: str,
    run: RunContext,
) -> "MaskTrainingResult | None":
    """Train masks with state and weights in `folder`, which the user knows as `name`.

    All processes of `torchrun` take part; the first one gets the result, the others None.
    """
    from prunecli.training import distributed

    with distributed.started(run.compute) as processes:
        processes.barrier()
        found = learn(
            checkpoint, sizes, resolved, folder, processes,
            name=name, compute=run.compute, report=run.report, stop=run.stop,
        )  # fmt: skip
    return found if processes.first else None


def evaluate_masks(
    method: Method,
    checkpoint: Checkpoint,
    resolved: ResolvedMaskTraining,
    trained: MaskTrainingResult,
    run: RunContext,
) -> Selection:
    """Select what the masks say, having evaluated them; Stopped when `run.stop` says so."""
    losses = judge(
        checkpoint, resolved, trained, compute=run.compute, report=run.report, stop=run.stop
    )
    results: dict[str, Any] = {"learned": {**trained.results, **losses}}
    if resolved.trained is None:
        # a variant is no run of the method, in tables neither
        results["method"] = f"{method.name}-frozen"
    return Selection(trained.plan, trained.weights, results=results)
