"""A run that learns masks: what it will do, its steps and states, and what came out of it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunecli import surgery
from prunecli.allocate import Sizes
from prunecli.errors import InputError, PruneError, Stopped, UsageError
from prunecli.io.checkpoint import Checkpoint, Reader
from prunecli.io.rows import trained_on
from prunecli.io.sidecar import Input, Trained
from prunecli.io.tokens import Tokens
from prunecli.plan import Plan
from prunecli.report import Report
from prunecli.settings import Compute, Training
from prunecli.stock import bare
from prunecli.training import gates, state, world
from prunecli.training.domains import Mixture
from prunecli.training.loop import Loop
from prunecli.training.masks import Masks
from prunecli.training.model import fill, materialise
from prunecli.training.ranks import Ranks
from prunecli.training.shearing import Gates, Shearing

SHORTEST = 300  # steps, where one pass over D is less
STATES = 10  # saved over a run
LOOKED = 4  # windows of a domain, for its loss
JUDGED = 16  # windows for the losses that are reported
MICRO_TOKENS = 8192


@dataclass(frozen=True)
class Learned:
    """What a run has learned: the plan, its weights with gates folded in, and its figures."""

    plan: Plan
    weights: Reader
    results: dict[str, Any]


@dataclass(frozen=True)
class Windows:
    """Token windows [N, T] as rows for the loop."""

    ids: Tensor
    start: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def seq_len(self) -> int:
        """Tokens per window."""
        return self.ids.shape[1]

    def read(self, indices: list[int]) -> Tensor:
        """Return windows by number: int64 [rows, T]."""
        return self.ids[indices].long()


class _Weights(Reader):
    """The weights of a model in memory, as a checkpoint of the parent's types."""

    def __init__(self, model: nn.Module, parent: Checkpoint) -> None:
        self.arch, self.specs = parent.arch, parent.specs
        self._parameters = dict(model.named_parameters())

    def tensor(self, name: str) -> Tensor:
        """Return one weight, float32 on the CPU."""
        return self._parameters[name].detach().float().cpu()


@dataclass(frozen=True)
class Lesson:
    """A run with every default resolved: windows [N, T], steps, and what is recorded of it.

    `sizes` are the windows of each domain, which lie one after the other. `trained` is None where
    only masks are.
    """

    ids: Tensor
    sizes: list[int]
    steps: int
    options: Mapping[str, Any]
    seed: int
    trained: Trained | None

    @property
    def inputs(self) -> list[Input]:
        """The windows as what weights were trained on, if they were."""
        if self.trained is None:
            return []
        told = {"passes": self.steps * self.options["batch_size"], "seq_len": self.ids.shape[1]}
        first = {"role": "rows", "digest": self.trained.rows, "range": list(self.trained.range)}
        return [Input.model_validate({**first, **told})]


def prepare(domains: list[Tokens], options: Mapping[str, Any], seed: int, report: Report) -> Lesson:
    """Return a run over windows: `tokens`, or one pass over them, 300 steps at least.

    Raises UsageError or InputError for one that makes no sense.
    """
    if world.size() > 1:
        raise UsageError("masks are learned in one process", "leave out torchrun")
    for name in ("batch_size", "lr", "mask_lr", "domain_every"):
        if not options[name] > 0:
            raise UsageError(f"--{name.replace('_', '-')} {options[name]}: expected more than 0")
    if len({found.ids.shape[1] for found in domains}) > 1:
        raise InputError("the domains have windows of unequal lengths", "give a --seq-len")
    ids, batch_size = torch.cat([found.ids for found in domains]), options["batch_size"]
    per_step = batch_size * ids.shape[1]
    steps = max(len(ids) // batch_size, SHORTEST)
    if options["tokens"] is not None:
        steps = int(options["tokens"] // per_step)
        if steps < 1:
            raise InputError(
                f"{options['tokens']:.0f} tokens are less than one step of {batch_size} x "
                f"{ids.shape[1]}",
                "use a smaller --batch-size",
            )
    if steps * batch_size > len(ids):
        times = steps * batch_size / len(ids)
        report.note(f"D is read {times:.1f} times: {steps} steps of {batch_size} x {ids.shape[1]}")
    trained = None
    if not options["freeze_weights"]:
        trained = _recorded(domains, len(ids), steps * batch_size, steps * per_step)
    return Lesson(ids, [len(found.ids) for found in domains], steps, options, seed, trained)


def _recorded(domains: list[Tokens], windows: int, needed: int, count: int) -> Trained:
    """Return what weights are trained on: rows, given windows, or all domains as one set."""
    meta = domains[0].meta
    rows = trained_on(meta) if len(domains) == 1 else None
    if rows is not None:
        start = rows.range[0]
        return Trained(rows=rows.rows, range=(start, start + min(windows, needed)), count=count)
    digests = " ".join(found.meta["digest"] for found in domains)
    digest = meta["digest"] if len(domains) == 1 else sha256(digests.encode()).hexdigest()
    stop = min(windows, needed) if len(domains) == 1 else windows
    return Trained(rows=digest, range=(0, stop), count=count)


def learn(
    checkpoint: Checkpoint,
    sizes: Sizes,
    lesson: Lesson,
    folder: Path,
    *,
    compute: Compute,
    report: Report,
    stop: Callable[[], bool],
) -> Learned:
    """Learn masks for these sizes, and the weights with them.

    The state lies in `folder` and is gone on from. `stop` is asked at every step; when it says so,
    the state is saved and Stopped raised. Raises PruneError where the loss is no number.
    """
    from prunecli.stats.run import device_of, dtype_of

    arch, device, options, ids = checkpoint.arch, device_of(compute), lesson.options, lesson.ids
    ranks = Ranks(0, 1, device, None)
    model = bare(arch, device)
    materialise(model, device)
    if arch.tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    fill(model, checkpoint, ranks)
    model.train().requires_grad_(not options["freeze_weights"])
    masks = Gates(arch, sizes, lesson.seed).to(device)
    lr, mask_lr = options["lr"], options["mask_lr"]
    objective = Shearing(model, arch, masks, dtype_of(compute, checkpoint), mask_lr / lr)
    mixture = Mixture(lesson.sizes, lesson.seed) if len(lesson.sizes) > 1 else None
    settings = Training("", seed=lesson.seed, weight_decay=0.0, warmup=0.1)
    loop = Loop(
        objective, Windows(ids), settings, Masks(model, ()), ranks,  # type: ignore[arg-type]
        steps=lesson.steps, batch_size=options["batch_size"], lr=lr,
        micro=_micro(options["batch_size"], ids.shape[1]), order=mixture,
    )  # fmt: skip
    mixing = None
    if mixture is not None:
        mixing = _Mixing(
            mixture, options["domain_every"], _domain_losses(checkpoint, lesson, compute)
        )
    losses = list(_train(loop, folder, lesson.steps, mixing, report, stop))
    return _judged(checkpoint, objective, ids, losses, loop, compute, report)


def _micro(batch_size: int, length: int) -> int:
    """Return how many sequences go through at once: a divisor of the batch."""
    most = max(1, MICRO_TOKENS // length)
    return max(n for n in range(1, batch_size + 1) if batch_size % n == 0 and n <= most)


@dataclass
class _Mixing:
    """When and by what a mixture of domains changes; `reference` are the parent's losses [D]."""

    mixture: Mixture
    every: int
    reference: Tensor

    def look(self, loop: Loop) -> None:
        """Measure all domains with the masked model, and shift the weights."""
        looked = [range(part.start, part.stop)[:LOOKED] for part in self.mixture.parts]
        losses = [loop.evaluate(loop.rows.read(list(rows))) for rows in looked]
        self.mixture.update(torch.tensor(losses, dtype=torch.float64), self.reference)


def _domain_losses(checkpoint: Checkpoint, lesson: Lesson, compute: Compute) -> Tensor:
    """Return the parent's loss on every domain [D], in nats per token."""
    from prunecli.stats import run
    from prunecli.stats.removals import sequence_losses

    runner = run.Runner(checkpoint, compute)
    found = []
    for part in torch.split(lesson.ids, lesson.sizes):
        looked = part[:LOOKED]
        found.append(sequence_losses(runner, looked).sum() / looked[:, 1:].numel())
    return torch.stack(found).double()


def _train(
    loop: Loop,
    folder: Path,
    steps: int,
    mixing: _Mixing | None,
    report: Report,
    stop: Callable[[], bool],
) -> Iterator[float]:
    """Take all steps that are left, saving now and then; yield the losses of all."""
    saved = state.saved(folder)
    start = state.step_of(saved[-1]) if saved else 0
    if saved:
        state.load(saved[-1], loop)
        report.note(f"resuming '{folder.name}' at step {start} of {steps}")
    log = state.Log(folder, start)
    yield from (line["loss"] for line in list(log.lines))
    if mixing is not None:
        for old in log.lines:
            if "weights" in old:
                mixing.mixture.weights = torch.tensor(old["weights"], dtype=torch.float64)
    every = -(-steps // STATES)
    try:
        for step in report.track(range(start, steps), "learning masks", steps - start, "steps"):
            done = loop.step(step, stop())
            if not done.finite:
                raise PruneError(
                    f"the loss of step {step + 1} is {done.loss}", "use a lower --lr or --mask-lr"
                )
            line: dict[str, Any] = {"step": step + 1, "loss": done.loss}
            if mixing is not None and (step + 1) % mixing.every == 0:
                mixing.look(loop)
                line["weights"] = mixing.mixture.weights.tolist()
            log.add(line)
            report.live(f"loss {done.loss:.4f}")
            yield done.loss
            if (step + 1) % every == 0 or step + 1 == steps or done.stop:
                log.sync()
                state.save(folder, step + 1, loop, 1)
            if done.stop:
                raise Stopped(
                    f"stopped after step {step + 1} of {steps}; '{folder.name}' keeps the state",
                    "the same command goes on",
                )
    finally:
        log.close()


def _judged(
    checkpoint: Checkpoint,
    objective: Shearing,
    ids: Tensor,
    losses: list[float],
    loop: Loop,
    compute: Compute,
    report: Report,
) -> Learned:
    """Return what was learned, beside the parent cut by these masks and by random ones."""
    values, masks = objective.masks.settled(), objective.masks
    weights = gates.Folded(_Weights(objective.model, checkpoint), values)
    plan, chance = gates.plan_of(values), gates.plan_of(_random(masks))
    shape = plan.child(checkpoint.arch)
    judged = ids[:: max(1, len(ids) // JUDGED)][:JUDGED]

    def loss(reader: Reader, kept: Plan) -> float:
        from prunecli.stats import run
        from prunecli.stats.removals import sequence_losses

        runner = run.Runner(surgery.Child(reader, kept, shape), compute, report)
        return float(sequence_losses(runner, judged).sum()) / (judged[:, 1:].numel())

    share = {
        axis: float(gates.chance_of_zero(alpha.detach()).mean())
        for axis, alpha in masks.log_alpha.items()
    }
    tail = losses[-max(1, len(losses) // 20) :]
    results = {
        "variant": None
        if any(p.requires_grad for p in objective.model.parameters())
        else ("masks alone, weights frozen"),
        "steps": loop.steps,
        "batch_size": loop.batch_size,
        "tokens": loop.steps * loop.batch_size * ids.shape[1],
        "mask_loss": sum(tail) / len(tail),
        "expected_sparsity": share,
        "target_sparsity": masks.target,
        "multipliers": {axis: two.detach().tolist() for axis, two in masks.multipliers.items()},
        "domain_weights": loop.order.weights.tolist() if isinstance(loop.order, Mixture) else None,
        "judged_windows": len(judged),
        "loss": {
            "learned": loss(weights, plan),
            "parent_with_learned_masks": loss(checkpoint, plan),
            "parent_with_random_masks": loss(checkpoint, chance),
        },
    }
    told = results["loss"]
    assert isinstance(told, dict)
    report.note(
        f"loss {told['learned']:.4f}; of the parent with these masks "
        f"{told['parent_with_learned_masks']:.4f}, with random masks of the same shape "
        f"{told['parent_with_random_masks']:.4f}"
    )
    return Learned(plan, weights, results)


def _random(masks: Gates) -> dict[str, Tensor]:
    """Return gates of the same shape that keep units at random."""
    draw = torch.Generator().manual_seed(masks.seed)
    return {
        axis: gates.settled(torch.randn(alpha.shape, generator=draw), masks.keep[axis])
        for axis, alpha in masks.log_alpha.items()
    }
