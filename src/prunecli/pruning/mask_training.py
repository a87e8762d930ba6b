"""Training masks: a request resolved, the masks trained, and the pruned model evaluated."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.data.joined import ConcatRows
from prunecli.errors import Stopped, UsageError
from prunecli.files.sidecar import Input, Trained
from prunecli.files.tensorfile import Spec, TensorWriter, read_tensor
from prunecli.methods._base import Method, domains_of, shares_of
from prunecli.model import memory
from prunecli.model.arch import Arch
from prunecli.model.checkpoint import Checkpoint, Reader
from prunecli.model.memory import MemoryNeed
from prunecli.model.stock import stored_tensors
from prunecli.model.stream import LayerStream, sequence_losses
from prunecli.pruning import gates, surgery
from prunecli.pruning.gates import MaskValues
from prunecli.pruning.mask_data import Domain, open_domains, trained_rows
from prunecli.pruning.plan import Plan, Selection
from prunecli.pruning.sheared import HardConcreteMasks, ShearedObjective
from prunecli.pruning.sizes import Sizes
from prunecli.report import Report
from prunecli.settings import Compute, Data, Optimization, RunContext
from prunecli.training import config
from prunecli.training.distributed import Ranks, process_group
from prunecli.training.domains import DomainMixture
from prunecli.training.fixed_masks import Masks
from prunecli.training.loop import Loop, LoopSettings, StepMetrics
from prunecli.training.objective import assemble, full_tensors
from prunecli.training.run_log import loss_curve, tail_mean
from prunecli.training.schedule import cosine_lr, delayed_cosine_lr
from prunecli.training.trainer import Line, StateFolder, fit

MIN_STEPS = 300  # where one pass over the data is less
STATES = 10  # saved over a run
EVAL_WINDOWS = 16  # for the losses that are reported
RANDOM_MASKS = 3  # to compare with
WARMUP = 0.1  # fraction of the steps over which the learning rate rises
WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class ResolvedMaskTraining:
    """A request to train masks with every default resolved.

    Attributes:
        rows: those of all domains, as one set.
        domains: what is trained on; `held_out` are rows of each, for its loss, none of one alone.
        dtype: the compute type.
        trained: the rows that weights are trained on, None where only masks are.
        official: follow the quirks of the official code.
    """

    rows: ConcatRows
    steps: int
    options: Mapping[str, Any]
    seed: int
    dtype: str
    domains: list[Domain]
    held_out: list[Domain]
    trained: Trained | None
    official: bool

    @property
    def recorded(self) -> dict[str, Any]:
        """What decides the result beside the inputs, for the sidecar."""
        names = ",".join(domain.source for domain in self.domains[1:])
        options = {**self.options, "domains": names}
        return {"options": options, "steps": self.steps, "seed": self.seed, "dtype": self.dtype}

    @property
    def inputs(self) -> list[Input]:
        """The text that is read; and which rows, if weights are trained on them."""
        read = [domain.record for domain in (*self.domains, *self.held_out)]
        if self.trained is None:
            return read
        record = {
            "role": "rows",
            "digest": self.trained.rows,
            "range": list(self.trained.range),
            "passes": self.steps * self.options["batch_size"],
            "seq_len": self.rows.seq_len,
        }
        return [*read, Input.model_validate(record)]

    @property
    def calibration_tokens(self) -> int:
        """How many tokens were read without training weights on them, of all domains."""
        return 0 if self.trained else len(self.rows) * self.rows.seq_len

    @property
    def tokens(self) -> int:
        """Tokens of all steps."""
        tokens: int = self.steps * self.options["batch_size"] * self.rows.seq_len
        return tokens

    def expected(self, params: int) -> dict[str, Any]:
        """Return the results of a dry run; `state_bytes` are weights, moments and gradients in
        memory, `disk_bytes` states and the trained weights.
        """
        frozen = self.options["freeze_weights"]
        return {
            "steps": self.steps,
            "tokens": self.tokens,
            "state_bytes": self._state_bytes(params),
            # a new state is complete before the old one is removed; masks are next to nothing
            "disk_bytes": 0 if frozen else 4 * params * (2 * 3 + 1),
        }

    def _state_bytes(self, params: int) -> int:
        return (4 if self.options["freeze_weights"] else memory.STATE_BYTES) * params

    def memory_need(self, arch: Arch) -> MemoryNeed:
        """Return what training holds in memory."""
        length = self.rows.seq_len
        flops = memory.training_flops(arch, self.tokens, length)
        tokens = length * config.micro_batch_size(self.options["batch_size"], length)
        held = memory.activations(arch, tokens, 4, self.options["activation_checkpointing"])
        return memory.of_training(self._state_bytes(arch.total_params), flops, held)


def resolve_mask_training(
    checkpoint: Checkpoint,
    data: Data,
    options: Mapping[str, Any],
    compute: Compute,
    report: Report,
    official: bool = False,
) -> ResolvedMaskTraining:
    """Resolve a request to train on the data and other domains: how many steps, on which rows.

    That is `tokens`, or one pass over all rows, 300 steps at least. Of several domains the last
    rows of each are held out. Raises UsageError or InputError for a request that cannot be run.
    """
    for name in ("tokens", "batch_size", "lr", "mask_lr", "domain_every"):
        if options[name] is not None and not 0 < options[name] < inf:
            raise UsageError(
                f"--{name.replace('_', '-')} {options[name]}: expected a number above 0"
            )
    batch_size, tokens = options["batch_size"], options["tokens"]
    config.local_batch_size(batch_size)
    sources = (data.source, *domains_of(options))
    shares_of(options, len(sources))
    domains, held_out = open_domains(checkpoint, data, sources, report), []
    if len(domains) > 1:
        splits = [domain.split() for domain in domains]
        domains, held_out = ([split[i] for split in splits] for i in (0, 1))
    rows = ConcatRows([domain.rows for domain in domains])
    steps = max(len(rows) // batch_size, MIN_STEPS)
    if tokens is not None:
        steps = config.whole_steps(tokens, batch_size, rows.seq_len)
    needed = steps * batch_size
    if needed > len(rows):
        report.info(
            f"the data are repeated for {needed / len(rows):.1f} epochs: {steps} steps of "
            f"{batch_size} x {rows.seq_len}"
        )
    if len(domains) == 1 and needed < len(rows):
        domains = [domains[0].part(0, needed)]
        rows = ConcatRows([domains[0].rows])
    frozen = options["freeze_weights"]
    return ResolvedMaskTraining(
        rows=rows,
        steps=steps,
        options=options,
        seed=data.seed,
        dtype=config.training_dtype(compute),
        domains=domains,
        held_out=held_out,
        trained=None if frozen else trained_rows(domains, needed * rows.seq_len),
        official=official,
    )


@dataclass(frozen=True)
class MaskTrainingResult:
    """What was trained.

    Attributes:
        plan: the units that are kept.
        weights: those of the whole model, with the masks merged in.
        masks: z by axis, zero for the units that are removed.
        results: what the sidecar reports of the run.
    """

    plan: Plan
    weights: Reader
    masks: MaskValues
    results: dict[str, Any]


class StoredWeights(Reader):
    """Weights in float32 in a file, with the architecture and the storage types of `parent`."""

    def __init__(self, path: Path, parent: Reader) -> None:
        self.path, self.arch, self.specs = path, parent.arch, parent.specs

    def tensor(self, name: str) -> Tensor:
        """Return one weight, float32."""
        return read_tensor(self.path, name)


def train_masks(
    checkpoint: Checkpoint,
    sizes: Sizes,
    resolved: ResolvedMaskTraining,
    folder: Path,
    name: str,
    run: RunContext,
) -> MaskTrainingResult | None:
    """Train masks to these sizes, and the weights with them.

    `folder`, in messages `name`, has the state, which is resumed from, and the trained weights. All
    processes of `torchrun` take part; the main one gets the result, the others None.
    Raises Stopped when `run.stop` says so, and NotANumber where the loss is not finite; the state
    is saved in either case.
    """
    states = StateFolder(folder, name, -(-resolved.steps // STATES), keep=1, at_end=True)
    with process_group(run.compute) as ranks:
        ranks.barrier()
        masks = HardConcreteMasks(checkpoint.arch, sizes, resolved.seed)
        objective = _objective(checkpoint, masks, resolved, ranks)
        loop = _loop(objective, resolved, ranks)
        mixing = _Mixing.of(loop, checkpoint, resolved, run.compute)

        def on_log(line: Line) -> None:
            run.report.status(f"loss {line['loss']:.4f}")

        try:
            log = fit(loop, states, run, "training masks", on_log, mixing.step_record)
            values, constraint = masks.final_masks(), masks.results()
            weights: Reader = checkpoint
            if resolved.trained is not None:
                weights = _store_weights(objective.model, folder / WEIGHTS, checkpoint, ranks)
        finally:
            objective.release()
    if not ranks.is_main:
        return None
    results = {**_log_results(resolved, log), **constraint, "domain_weights": mixing.weights}
    merged = gates.MergedMasks(weights, values, resolved.official)
    return MaskTrainingResult(gates.plan_of(values, checkpoint.arch), merged, values, results)


def _objective(
    checkpoint: Checkpoint, masks: HardConcreteMasks, resolved: ResolvedMaskTraining, ranks: Ranks
) -> ShearedObjective:
    """Return the model with masks, on this process's device."""
    options, dtype = resolved.options, getattr(torch, resolved.dtype)
    mask_share = options["mask_lr"] / options["lr"]

    def masked(model: nn.Module, teacher: nn.Module | None) -> ShearedObjective:
        return ShearedObjective(model, checkpoint.arch, masks, dtype, mask_share, resolved.official)

    objective = assemble(
        checkpoint, None, ranks, masked,
        recompute=options["activation_checkpointing"], frozen=options["freeze_weights"],
    )  # fmt: skip
    assert isinstance(objective, ShearedObjective)
    return objective


def _loop(objective: ShearedObjective, resolved: ResolvedMaskTraining, ranks: Ranks) -> Loop:
    """Return the loop, whose batches are mixed of the domains where there are several."""
    options, rows = resolved.options, resolved.rows
    settings = LoopSettings(
        resolved.steps,
        options["batch_size"],
        config.micro_batch_size(options["batch_size"], rows.seq_len),
        options["lr"],
        Optimization(seed=resolved.seed, weight_decay=0.0, warmup=WARMUP),
        delayed_cosine_lr if resolved.official else cosine_lr,
    )
    mixture = None
    if resolved.held_out:
        shares = shares_of(options, len(rows.sizes))
        mixture = DomainMixture(rows.sizes, resolved.seed, shares)
    return Loop(objective, rows, settings, Masks(objective.model, ()), ranks, mixture)


@dataclass
class _Mixing:
    """When the weights of the domains change, and by which losses.

    `reference` [D] are the dense model's losses. There is no mixture of one domain alone.
    """

    loop: Loop
    held_out: list[Domain]
    every: int
    reference: Tensor

    @classmethod
    def of(
        cls, loop: Loop, checkpoint: Checkpoint, resolved: ResolvedMaskTraining, compute: Compute
    ) -> "_Mixing":
        """Measure the dense model's loss on every domain, in nats per token."""
        stream, losses = LayerStream(checkpoint, compute), []
        for domain in resolved.held_out:
            ids = domain.ids()
            losses.append(sequence_losses(stream, ids).sum() / ids[:, 1:].numel())
        reference = torch.stack(losses).double() if losses else torch.empty(0)
        return cls(loop, resolved.held_out, resolved.options["domain_every"], reference)

    @property
    def weights(self) -> list[float] | None:
        """The weights of the domains, None of one alone."""
        order = self.loop.order
        return order.weights.tolist() if isinstance(order, DomainMixture) else None

    def step_record(self, step: int, metrics: StepMetrics) -> Line:
        """Change the weights if it is time; return them, to be logged."""
        if self.weights is None or (step + 1) % self.every:
            return {}
        self.evaluate_domains()
        return {"weights": self.weights}

    def evaluate_domains(self) -> None:
        """Measure the masked model's loss on every domain, and change the weights by it."""
        losses = [self.loop.evaluate(domain.ids()) for domain in self.held_out]
        assert isinstance(self.loop.order, DomainMixture)
        self.loop.order.update(torch.tensor(losses, dtype=torch.float64), self.reference)


def _store_weights(model: nn.Module, path: Path, parent: Reader, ranks: Ranks) -> Reader:
    """Write all weights in float32, one at a time; all processes must take part."""
    tensors = full_tensors(model)
    if not ranks.is_main:
        for _ in tensors:
            pass  # a tensor is gathered from all processes
        return parent
    specs = {name: Spec("F32", tuple(w.shape)) for name, w in stored_tensors(model)}
    with TensorWriter(path, specs) as writer:
        for name, tensor in tensors:
            writer.write(name, tensor.cpu().float())
    return StoredWeights(path, parent)


def _log_results(resolved: ResolvedMaskTraining, log: list[Line]) -> dict[str, Any]:
    """Return what the sidecar reports of the steps."""
    losses = [line["loss"] for line in log]
    return {
        "variant": None if resolved.trained else "masks alone, weights frozen",
        "steps": resolved.steps,
        "batch_size": resolved.options["batch_size"],
        "tokens": resolved.tokens,
        "mask_loss": tail_mean(losses),
        "curve": loss_curve(losses),
    }


def evaluate_masks(
    method: Method,
    checkpoint: Checkpoint,
    resolved: ResolvedMaskTraining,
    trained: MaskTrainingResult,
    run: RunContext,
) -> Selection:
    """Return the trained selection, with its losses on some of the rows among the results.

    These are the losses of the trained model, and of the dense model's weights pruned by the same
    masks, and by `RANDOM_MASKS` random ones of the same sizes. Raises Stopped when `run.stop` says
    so in between.
    """
    ids = resolved.rows.some(EVAL_WINDOWS)
    arch = trained.plan.child(checkpoint.arch)

    def loss(weights: Reader, plan: Plan) -> float:
        if run.stop():
            raise Stopped("stopped, with all masks trained", "rerun the same command to resume")
        stream = LayerStream(surgery.PrunedModel(weights, plan, arch), run.compute, run.report)
        return float(sequence_losses(stream, ids).sum()) / ids[:, 1:].numel()

    own, parent = loss(trained.weights, trained.plan), loss(checkpoint, trained.plan)
    random = [
        loss(checkpoint, gates.plan_of(masks, checkpoint.arch))
        for masks in _random_masks(trained.masks, checkpoint.arch, resolved.seed)
    ]
    run.report.info(
        f"loss on {len(ids)} windows of the data: {own:.4f}; of the dense weights with these masks "
        f"{parent:.4f}, with random masks of the same sizes {sum(random) / RANDOM_MASKS:.4f} "
        f"({min(random):.4f} to {max(random):.4f} in {RANDOM_MASKS} draws)"
    )
    losses = {
        "learned": own,
        "parent_with_learned_masks": parent,
        "parent_with_random_masks": random,
    }
    results: dict[str, Any] = {
        "learned": {**trained.results, "judged_windows": len(ids), "loss": losses}
    }
    if resolved.trained is None:
        # a variant, which tables tell apart from the method
        results["method"] = f"{method.name}-frozen"
    return Selection(trained.plan, trained.weights, results=results)


def _random_masks(masks: MaskValues, arch: Arch, seed: int) -> list[dict[str, Tensor]]:
    """Return masks of the same sizes that keep units at random, `RANDOM_MASKS` times."""
    # another seed than that of log alpha at the start
    draw = torch.Generator().manual_seed(((seed << 8) + 1) % (1 << 63))
    return [
        {
            axis: gates.final_masks(
                torch.randn(z.shape, generator=draw), int((z != 0).sum(-1).max()), arch, axis
            )
            for axis, z in masks.items()
        }
        for _ in range(RANDOM_MASKS)
    ]
