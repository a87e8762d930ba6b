"""The library verb `prune`: from a request to a checkpoint.

Structured methods select what is kept: by scores, by a plan that is given, or by masks that are
trained; surgery carries that out tensor by tensor. Methods that set weights to zero replace the
block linears as they stream by. Either way the pruned tensors come as a stream, and one function
writes it.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunecli.errors import InputError
from prunecli.files import output, sidecar, world
from prunecli.files.artefact import Artefact
from prunecli.files.claim import claimed, exclusive
from prunecli.files.keeping import Keeper, specs_of
from prunecli.files.sidecar import Input, SidecarBuilder
from prunecli.files.tensorfile import TensorFile, Tensors
from prunecli.methods._base import Method
from prunecli.model import memory
from prunecli.model.arch import Arch
from prunecli.model.checkpoint import Checkpoint, Reader, home
from prunecli.model.device import computable, settled
from prunecli.model.memory import MemoryNeed
from prunecli.model.pattern import SparsityPattern
from prunecli.model.write import WriteSummary, size_results, write_tensors
from prunecli.pruning import surgery
from prunecli.pruning.allocate import allocate
from prunecli.pruning.calibrate import (
    collect_all,
    depends_on_amount,
    memory_need,
    required_statistics,
    share,
    statistics_artefact,
    write_statistics,
)
from prunecli.pruning.calibration import Calibration, open_scores, open_statistics, read_windows
from prunecli.pruning.masks import WeightMasker
from prunecli.pruning.plan import Selection, plan_results, read_plan
from prunecli.pruning.request import (
    PLAN,
    SCORES,
    STATS,
    PruneRequest,
    PruneTarget,
    ResolvedPrune,
    resolve,
    resolve_target,
)
from prunecli.pruning.rotate import Rotated
from prunecli.pruning.score import (
    score_model,
    score_options,
    score_sequentially,
    scores_artefact,
)
from prunecli.report import Report
from prunecli.settings import Result, RunContext
from prunecli.training.distributed import joined

if TYPE_CHECKING:
    from prunecli.model.checkpoint import Stream
    from prunecli.pruning.mask_training import ResolvedMaskTraining


@dataclass(frozen=True)
class Pruning:
    """What every step of one run of `prune` works on; `digest` is that of the dense model.

    `keeper` keeps what is done.
    """

    resolved: ResolvedPrune
    target: PruneTarget
    dense: Checkpoint
    digest: str
    run: RunContext
    keeper: Keeper

    @property
    def method(self) -> Method:
        """The method; there is one wherever scores are needed."""
        assert self.resolved.method is not None
        return self.resolved.method

    @property
    def num_removed(self) -> int | None:
        """How many layers are removed; None where a plan is carried out."""
        sizes = self.target.sizes
        return None if sizes is None else self.dense.arch.layers - sizes.layers

    def kept_file(self, name: str) -> RunContext:
        """Return the run with a file of `--keep` as its output."""
        path = f"{self.resolved.asked.keep}/{name}"
        return replace(self.run, output=self.run.output.for_intermediates(path))


@exclusive
def prune(request: PruneRequest, run: RunContext = RunContext()) -> Result:
    """Prune the model IN into the folder OUT (or, with `plan_only`, write the plan to OUT.json).

    Methods that train masks, and long runs of those that read DATA, keep what is done in
    OUT.partial and resume from there, unless `run.output.restart`. Under `torchrun`, which is for
    methods that read DATA, all processes call this and divide its rows, or train together; the
    first one writes. Those that divide rows keep nothing. Raises UsageError, InputError,
    OutputExists, PruneError, Stopped.
    """
    out = run.output.path
    kept = [f"{request.keep}/{name}" for name in (STATS, SCORES, PLAN) if request.keep]
    if any(output.lies_in(file, folder) for file in kept for folder in (request.model, out)):
        kept = []  # which is refused, without a lock there
    with claimed(run, *kept), joined(run) as run:
        return _prune(request, run)


def _prune(request: PruneRequest, run: RunContext) -> Result:
    run = computable(run)
    builder = SidecarBuilder("prune", run.output.argv)
    resolved = resolve(request, run.output)
    output.check_path(run.output.path, run.output, [home(request.model), *resolved.read])
    dense = Checkpoint(request.model, run.report)
    if request.keep is not None:
        output.check_kept(request.keep, resolved.kept, dense.folder, run.output.path)
    target = resolve_target(resolved, dense)
    for line in target.told:
        run.report.info(line)
    dense.companion_files(request.keep_wrapper)  # refused now or never
    training = _resolve_training(resolved, dense, run)
    # masks are evaluated in the type that they are trained in
    compute = replace(run.compute, dtype=training.dtype) if training else run.compute
    run = replace(run, compute=settled(compute, dense))
    expected = {
        **target.expected,
        **(training.expected(dense.arch.total_params) if training else {}),
    }
    around = dense.wrapper() if request.keep_wrapper else None
    num_bytes = 0 if request.plan_only else target.num_bytes + (around.num_bytes if around else 0)
    output.check_disk(run.output.path, expected.get("disk_bytes", 0) + num_bytes)
    pruning = Pruning(resolved, target, dense, dense.digest(run.report), run, Keeper(run))
    calibration = (
        Calibration(training.inputs, training.calibration_tokens)
        if training
        else open_calibration(pruning)
    )
    run = memory.within(run, lambda run: _need(replace(pruning, run=run), calibration, training))
    pruning = replace(pruning, run=run)
    artefact = _artefact(builder, pruning, calibration, training)
    need = _need(pruning, calibration, training)
    if existing := run.ranks.of_first(lambda: need.settled(artefact, expected, run.compute)):
        return existing
    if training is not None:
        return _train(pruning, training, artefact)
    with artefact.keeping() as keeper:
        pruning = replace(pruning, keeper=keeper)
        if target.pattern is not None:
            return _write_masked(pruning, target.pattern, calibration, artefact)
        return _write_selection(pruning, select(pruning, calibration), artefact)


def open_calibration(pruning: Pruning) -> Calibration:
    """Return where statistics, scores or the plan come from; nothing is computed yet."""
    asked, method = pruning.resolved.asked, pruning.resolved.method
    of_plan: list[Input] = []
    seen: list[Input] = []
    if asked.plan is not None:
        plan, record = read_plan(asked.plan)
        made_from = None if record is None else next(iter(record.inputs), None)
        if made_from is not None and made_from.digest != pruning.digest:
            raise InputError(
                f"the plan in '{asked.plan}' was made from another model",
                "make one of this model with `prunecli prune --plan-only`",
            )
        content = sidecar.content_id("plan", plan.to_json(), [])
        of_plan = [Input(role="plan", id=record.id if record else None, digest=content)]
        # what the plan was made on
        seen = [e for e in (record.inputs if record else []) if e.role == "calibration"]
        if not pruning.resolved.biased:
            return Calibration([*of_plan, *seen], sum(map(_num_tokens, seen)))
    if method is None or not method.needs:
        return Calibration([], tensors={})
    if asked.scores is not None:
        calibration = open_scores(asked.scores, pruning.dense.arch, pruning.digest, method)
        scored = sidecar.part(asked.scores, calibration.options, _Scored).options.compat
        if scored != asked.compat:
            raise InputError(
                f"'{asked.scores}' was scored {'with' if scored else 'without'} --compat official",
                "prune the same way, or score again",
            )
    elif asked.stats is not None:
        calibration = open_statistics(
            asked.stats, pruning.dense, pruning.digest, method, asked.compat
        )
    else:
        calibration = read_windows(pruning.dense, pruning.resolved.data, pruning.run.report)
        required = required_statistics([method], asked.compat)
        calibration = share(calibration, required, pruning.dense.arch, pruning.run.ranks)
    more = [entry for entry in seen if entry not in calibration.inputs]
    return replace(
        calibration,
        inputs=[*of_plan, *more, *calibration.inputs],
        num_tokens=calibration.num_tokens + sum(map(_num_tokens, more)),
    )


def select(pruning: Pruning, calibration: Calibration) -> Selection:
    """Return what is kept of which weights: as a plan says, or by scores."""
    resolved, sizes = pruning.resolved, pruning.target.sizes
    if resolved.asked.plan is not None:
        plan, _ = read_plan(resolved.asked.plan)
        means = collect(pruning, calibration) if resolved.biased else {}
        return Selection(plan, pruning.dense, means)
    assert sizes is not None, "without a plan an amount was given"
    options = score_options(pruning.method, resolved.options, resolved.asked.compat)
    if resolved.asked.scores is not None:
        scores = calibration.tensors or {}
    elif pruning.method.sequential and calibration.windows is not None:
        scores = score_sequentially(
            pruning.method, pruning.dense, calibration, sizes, options, pruning.run, pruning.keeper
        )
    else:
        scores = score(pruning, calibration, options)
    plan = allocate(pruning.method, sizes, scores, pruning.dense.arch, resolved.structure)
    weights: Reader = pruning.dense
    if pruning.method.rotates:
        weights = Rotated(weights, scores["rotation"], sizes.hidden)
    return Selection(plan, weights, scores)


def collect(pruning: Pruning, calibration: Calibration) -> Tensors:
    """Return the statistics that the method reads: of a file, or collected now."""
    if calibration.tensors is not None:
        return calibration.tensors
    assert calibration.windows is not None
    required = required_statistics([pruning.method], pruning.resolved.asked.compat)
    if STATS not in pruning.resolved.kept:
        return collect_all(
            pruning.dense, calibration.windows, required, pruning.num_removed, pruning.run,
            pruning.keeper,
        )  # fmt: skip
    num_removed = pruning.num_removed if depends_on_amount(pruning.method) else None
    artefact = statistics_artefact(
        pruning.dense, pruning.digest, calibration, required, num_removed, pruning.kept_file(STATS)
    )
    if not artefact.existing():
        write_statistics(artefact, pruning.dense, calibration, required, num_removed)
    return TensorFile(Path(artefact.path))


def score(pruning: Pruning, calibration: Calibration, options: dict[str, Any]) -> Tensors:
    """Return the scores of all units, on the dense model's statistics."""
    if SCORES not in pruning.resolved.kept:
        return score_model(pruning.method, pruning.dense, collect(pruning, calibration), options)
    num_removed = pruning.num_removed if depends_on_amount(pruning.method) else None
    artefact = scores_artefact(
        pruning.dense, pruning.digest, calibration, pruning.method, options, num_removed,
        pruning.kept_file(SCORES),
    )  # fmt: skip
    if not artefact.existing():
        statistics = collect(pruning, calibration)
        scores = score_model(pruning.method, pruning.dense, statistics, options)
        artefact.write_tensors([scores], specs_of(scores))
    return TensorFile(Path(artefact.path))


def _resolve_training(
    resolved: ResolvedPrune, dense: Checkpoint, run: RunContext
) -> "ResolvedMaskTraining | None":
    """Return the training of masks that this request means, if it means one."""
    if not resolved.trains_masks:
        return None
    from prunecli.pruning.mask_training import resolve_mask_training

    return resolve_mask_training(
        dense, resolved.data, resolved.options, run.compute, run.report, resolved.asked.compat
    )


def _need(
    pruning: Pruning, calibration: Calibration, training: "ResolvedMaskTraining | None"
) -> MemoryNeed:
    """Return what the run holds in memory; nothing where tensors only stream by."""
    if training is not None:
        return training.memory_need(pruning.dense.arch)
    method = pruning.resolved.method
    if method is None:
        return MemoryNeed()
    required = required_statistics([method], pruning.resolved.asked.compat)
    return memory_need(
        pruning.dense, calibration, required, pruning.run, pruning.num_removed, method.sequential
    )


def _artefact(
    builder: SidecarBuilder,
    pruning: Pruning,
    calibration: Calibration,
    training: "ResolvedMaskTraining | None",
) -> Artefact:
    """Return what will be at OUT; raise OutputExists where a kept file is that of another run."""
    run, resolved = pruning.run, pruning.resolved
    options = {**pruning.target.options, **(training.recorded if training else {})}
    artefact = Artefact(
        builder,
        "plan" if resolved.asked.plan_only else "checkpoint",
        {**options, "dtype": run.compute.dtype},
        [pruning.dense.as_input(pruning.digest), *calibration.inputs],
        run,
        parent=pruning.dense.sidecar,
        calibration=calibration.num_tokens,
        trained=training.trained if training else None,
        computed=memory.computed(pruning.dense.arch, run.compute, world.size()),
        resumable=training is not None or calibration.windows is not None,
    )
    if PLAN in resolved.kept and not artefact.existing():
        replace(artefact, kind="plan", run=pruning.kept_file(PLAN)).existing()
    return artefact


def _train(pruning: Pruning, training: "ResolvedMaskTraining", artefact: Artefact) -> Result:
    """Train masks with their state in OUT.partial, and carry out what they say."""
    from prunecli.pruning.mask_training import evaluate_masks, train_masks

    sizes = pruning.target.sizes
    assert sizes is not None, "masks are trained for given sizes"
    with ExitStack() as stack:
        folder = output.partial_of(artefact.path)
        if world.is_first():
            stack.enter_context(artefact.partial())
        name = f"{artefact.path.rstrip('/')}.partial"
        trained = train_masks(pruning.dense, sizes, training, folder, name, pruning.run)
        if trained is None:  # another process writes
            return Result(artefact.path)
        selection = evaluate_masks(pruning.method, pruning.dense, training, trained, pruning.run)
        result = _write_selection(pruning, selection, artefact)
        output.discard(folder)
    return result


def _write_masked(
    pruning: Pruning, pattern: SparsityPattern, calibration: Calibration, artefact: Artefact
) -> Result:
    """Write a checkpoint with weights set to zero."""
    options = {**pruning.resolved.options, "compat": pruning.resolved.asked.compat}
    masker = WeightMasker(
        pruning.method, options, pattern, pruning.dense, pruning.run, pruning.keeper
    )
    stream = masker.stream(calibration)
    if not pruning.run.ranks.is_main:
        for _ in stream:
            pass  # a layer is pruned by all processes
        return Result(artefact.path)

    def results() -> dict[str, Any]:
        return {"damped": masker.damping_retries} if masker.damping_retries else {}

    return _write(pruning, pruning.dense, stream, results, artefact, pattern)


def _write_selection(pruning: Pruning, selection: Selection, artefact: Artefact) -> Result:
    """Carry out a selection: write a checkpoint, or the plan alone; the first process does."""
    if not pruning.run.ranks.is_main:
        return Result(artefact.path)
    resolved, arch, plan, report = (
        pruning.resolved,
        pruning.dense.arch,
        selection.plan,
        pruning.run.report,
    )
    plan.check(arch)
    shape = plan.child(selection.weights.arch, resolved.biased)
    if arch.norm_spans_heads and shape.heads < arch.heads:
        report.info(
            f"a norm of '{arch.family.name}' runs over all heads together: removing some "
            "changes the scale of the others, which no score accounts for"
        )
    results = {**_described(pruning), **plan_results(plan, arch, shape), **selection.results}
    of_plan = {"params": shape.total_params}, {**results, **plan.to_json()}
    if resolved.asked.plan_only:
        return artefact.write_json(*of_plan, pruning.keeper)
    if PLAN in resolved.kept:
        replace(artefact, kind="plan", run=pruning.kept_file(PLAN)).write_json(*of_plan)
    pruned = surgery.PrunedModel(selection.weights, plan, shape, selection.tensors, resolved.biased)
    if shape.family is not arch.family:
        report.info(
            f"saved as model_type '{shape.config['model_type']}' (equivalent), because "
            f"transformers' '{arch.config['model_type']}' does not support this architecture"
        )
    return _write(pruning, pruned, pruned.stream(), lambda: results, artefact)


def _write(
    pruning: Pruning,
    pruned: Reader,
    stream: "Stream",
    results: Callable[[], dict[str, Any]],
    artefact: Artefact,
    pattern: SparsityPattern | None = None,
) -> Result:
    """Write the pruned tensors as they come, stored and sharded as the dense ones.

    `results` are asked for when all are written.
    """
    dense, kept = pruning.dense, pruning.resolved.asked.keep_wrapper
    around = dense.wrapper() if kept else None
    specs = {name: pruned.specs[name] for name in pruned.arch.tensors()}
    shards = [dense.shard(surgery.dtype_source(name, dense)) for name in specs]
    with pruning.keeper.staged() as folder:
        written = write_tensors(
            folder, pruned.arch, specs, shards, stream, pruning.keeper, pattern, around
        )
        record = artefact.sidecar(
            {
                "digest": written.digest,
                "params": pruned.arch.total_params,
                **({"wrapper": written.around()} if around else {}),
            },
            {**_described(pruning), **_size_results(dense.arch, pruned.arch, written), **results()},
        )
        written.finish(record, dense.companion_files(kept), artefact.path, dense.folder)
    _summarise(dense.arch, record.results, pruning.run.report)
    return artefact.result(record)


def _described(pruning: Pruning) -> dict[str, Any]:
    """Return what the results of every pruned model, and of every plan, begin with."""
    method = pruning.resolved.method
    name = method.name if method else None
    return {"method": name, "granularity": pruning.target.granularity}


def _size_results(dense: Arch, pruned: Arch, written: WriteSummary) -> dict[str, Any]:
    """Return what every pruned checkpoint reports of its size."""
    embedding, before = (a.params()["embedding"] + a.params()["head"] for a in (pruned, dense))
    return {
        "ratio": 1 - written.census.block_nonzero / dense.block_params,
        "ratio_total": 1 - written.census.nonzero / dense.total_params,
        "ratio_embedding": 1 - embedding / before,
        "params_before": dense.total_params,
        **size_results(pruned, written),
    }


def _summarise(dense: Arch, results: dict[str, Any], report: Report) -> None:
    report.info(
        f"pruned {results['ratio']:.2%} of block weights ({results['ratio_total']:.2%} of all): "
        f"{dense.total_params} -> {results['nonzero']} non-zero parameters, "
        f"{results['flops'] / 1e12:.4f} TFLOPs per {results['flops_tokens']} tokens"
    )


class _Compat(sidecar.Part):
    compat: bool


class _Scored(sidecar.Part):
    options: _Compat


class _Windows(sidecar.Part):
    nsamples: int
    seq_len: int


def _num_tokens(entry: Input) -> int:
    """Return how many tokens a calibration input has."""
    recorded = sidecar.part("the plan", entry.model_extra, _Windows)
    return recorded.nsamples * recorded.seq_len
