"""The library verb `prune`: from a request to a checkpoint.

Structured methods make a plan, which surgery carries out tensor by tensor; methods that set
weights to zero replace the block linears as they stream by. Either way a child's tensors come as
a stream, and one function writes it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunecli.errors import InputError, UsageError
from prunecli.files import output as place
from prunecli.files import sidecar
from prunecli.files.sidecar import Input, Kind, Sidecar, SidecarBuilder
from prunecli.files.tensorfile import TensorFile, Tensors
from prunecli.methods import registry
from prunecli.methods._base import Method
from prunecli.model.arch import Arch
from prunecli.model.checkpoint import Checkpoint, Reader
from prunecli.model.device import check_device, settled
from prunecli.model.pattern import SparsityPattern
from prunecli.model.write import WriteSummary, size_results, write_tensors
from prunecli.pruning import allocate, rotate, surgery
from prunecli.pruning.calibrate import collect, merged, of_amount, write_stats
from prunecli.pruning.calibration import Calibration, open_source, open_stats, read_tokens
from prunecli.pruning.masks import Sparsifier
from prunecli.pruning.plan import Selection, plan_results, read_plan
from prunecli.pruning.request import (
    PLAN,
    SCORES,
    STATS,
    PruneRequest,
    planned_with,
    prepare,
    scored_with,
    with_recipe,
)
from prunecli.pruning.score import layer_scores, score_options, scores_of, write_scores
from prunecli.pruning.sizes import Sizes
from prunecli.report import SILENT, Report
from prunecli.settings import BATCH_TOKENS, Amount, Compute, Data, Output, Result
from prunecli.training import world

if TYPE_CHECKING:
    import torch

Record = Callable[[Kind, dict[str, Any], dict[str, Any]], Sidecar]


def prune(
    model: str,
    out: str,
    *,
    method: str | None = None,
    amount: Amount | None = None,
    options: Mapping[str, Any] | None = None,
    data: Data | None = None,
    recipe: str | None = None,
    stats: str | None = None,
    scores: str | None = None,
    plan: str | None = None,
    plan_only: bool = False,
    keep: str | None = None,
    compat: bool = False,
    compute: Compute | None = None,
    output: Output | None = None,
    restart: bool = False,
    report: Report = SILENT,
    stop: Callable[[], bool] = lambda: False,
) -> Result:
    """Prune the model IN into the folder OUT (or, with `plan_only`, write the plan to OUT.json).

    Give `method` and `amount`, or `plan`. `stats` or `scores` skip the steps before them; a plan
    together with a method takes its biases from statistics. `keep` is a folder for the files of
    the steps between: statistics, scores, plan. Methods that learn keep their state in OUT.partial
    and go on from there, unless `restart`; `stop` is asked at every step, and ends them with
    Stopped. Under `torchrun`, which is for them alone, all processes call this; the first one
    writes.
    Raises UsageError, InputError, OutputExists, PruneError.
    """
    compute, output = compute or Compute(), output or Output()
    check_device(compute)
    recorder = SidecarBuilder("prune", output.argv)
    data, chosen, settings = data or Data(), None, dict(options or {})
    if method is not None:
        chosen = registry.get(method)
        if plan is not None:
            settings = planned_with(plan, chosen, settings)
        read = not (stats or scores)
        if plan is not None:
            read = read and chosen.biased({"bias": "keep", **settings})
        data, settings = with_recipe(
            chosen, recipe, data, settings, decided=plan is not None, read=read
        )
        if scores is not None:
            settings = {**scored_with(scores, chosen, settings), **settings}
        settings = chosen.resolve(settings)
    elif settings or recipe:
        raise UsageError("method options and recipes need a --method")
    request = PruneRequest(
        chosen, settings, amount or Amount(), data, stats, scores, plan, plan_only, keep, compat,
        given=dict(options or {}),
    )  # fmt: skip
    request.check(out)
    learns = chosen is not None and chosen.learned
    if restart and not learns:
        raise UsageError("--restart is for methods that learn", "there is nothing to resume")
    if world.size() > 1 and not learns:
        raise UsageError("only methods that learn run in several processes", "leave out torchrun")
    checkpoint = Checkpoint(model, report)
    place.check_path(out, output, [checkpoint.folder, *request.read])
    if keep is not None:
        place.check_kept(keep, request.kept, checkpoint.folder, out)
    prepared = prepare(request, checkpoint)
    checkpoint.companion_files()  # refused now or never
    lesson, expected = None, prepared.expected
    resolved = dict(prepared.options)
    if learns:
        from prunecli.pruning import mask_training

        lesson = mask_training.prepare(checkpoint, data, settings, compute, report, compat)
        expected = {**expected, **lesson.expected(checkpoint.arch.total_params)}
        resolved |= lesson.recorded
    # a method that learns is judged in the type that it learns in
    compute = replace(compute, dtype=lesson.dtype) if lesson is not None else compute
    compute = settled(compute, checkpoint)
    resolved["dtype"] = compute.dtype
    place.check_disk(out, expected.get("disk_bytes", 0) + (0 if plan_only else prepared.bytes))
    digest = checkpoint.digest(report)
    decider = Decider(request, checkpoint, digest, compute, output, report)
    source = (
        decider.source()
        if lesson is None
        else Calibration(lesson.inputs, lesson.calibration_tokens)
    )
    inputs = [checkpoint.as_input(digest), *source.inputs]
    key = sidecar.content_id("plan" if plan_only else "checkpoint", resolved, inputs)
    if same := place.existing_result(out, output, key):
        return same
    if PLAN in request.kept:
        place.existing_result(
            f"{keep}/{PLAN}",
            output.for_intermediates(""),
            sidecar.content_id("plan", resolved, inputs),
        )
    if learns:
        place.check_partial(out, key, restart)
    if output.dry_run:
        return Result(out, results=expected)

    def record(kind: Kind, outputs: dict[str, Any], results: dict[str, Any]) -> Sidecar:
        return recorder.sidecar(
            kind,
            resolved,
            inputs,
            outputs=outputs,
            results={"method": method, "granularity": prepared.granularity, **results},
            parent=checkpoint.sidecar,
            calibration=source.calibration,
            trained=lesson.trained if lesson else None,
            device=compute.device,
            dtype=compute.dtype,
            batch=BATCH_TOKENS,
            ranks=world.size(),
        )

    if prepared.pattern is not None:
        sparsifier = Sparsifier(request, checkpoint, prepared.pattern, compute, report)
        return _sparse(out, sparsifier, source, record)
    if lesson is None:
        return _cut(out, decider.decide(source, prepared.sizes), decider, record)
    assert chosen is not None and prepared.sizes is not None
    from prunecli.pruning.mask_training import judged, learned

    with ExitStack() as stack:
        folder = place.partial_of(out)
        if world.is_first():
            stack.enter_context(place.partial(out, key, restart))
        found = learned(
            checkpoint, prepared.sizes, lesson, folder,
            name=f"{out.rstrip('/')}.partial", compute=compute, report=report, stop=stop,
        )  # fmt: skip
        if found is None:
            return Result(out)
        decision = judged(
            chosen, checkpoint, lesson, found, compute=compute, report=report, stop=stop
        )
        made = _cut(out, decision, decider, record)
        place.remove(folder)
    return made


def _sparse(out: str, sparsifier: Sparsifier, source: Calibration, record: Record) -> Result:
    """Write a checkpoint with weights set to zero."""
    checkpoint = sparsifier.checkpoint

    def results() -> dict[str, Any]:
        return {"damped": sparsifier.damped} if sparsifier.damped else {}

    stream = sparsifier.stream(source)
    return _write(
        out, checkpoint, checkpoint, stream, results, record, sparsifier.report, sparsifier.pattern
    )


def _cut(out: str, decision: Selection, decider: "Decider", record: Record) -> Result:
    """Carry out a decision: a checkpoint, or the plan alone."""
    request, checkpoint, report = decider.request, decider.checkpoint, decider.report
    arch, plan = checkpoint.arch, decision.plan
    plan.check(arch)
    shape = plan.child(decision.weights.arch, request.biased)
    if arch.couples_heads and shape.heads < arch.heads:
        report.note(
            f"a norm of '{arch.family.name}' runs over all heads together: removing some "
            "changes the scale of the others, which no score accounts for"
        )
    results = {**plan_results(plan, arch, shape), **decision.results}
    kept = record("plan", {"params": shape.total_params}, {**results, **plan.to_json()})
    if request.plan_only:
        place.write_json(out, kept.text())
        return Result(out, kept.dump(), kept.results)
    if PLAN in request.kept:
        place.write_json(f"{request.keep}/{PLAN}", kept.text())
    child = surgery.Child(decision.weights, plan, shape, decision.tensors, request.biased)
    if shape.family is not arch.family:
        report.note(
            f"written as '{shape.config['model_type']}', which computes the same: "
            f"'{arch.config['model_type']}' cannot hold this shape in transformers"
        )
    return _write(out, checkpoint, child, child.stream(), lambda: results, record, report)


def _write(
    out: str,
    checkpoint: Checkpoint,
    child: Reader,
    stream: "Iterator[tuple[str, torch.Tensor]]",
    results: Callable[[], dict[str, Any]],
    record: Record,
    report: Report,
    pattern: SparsityPattern | None = None,
) -> Result:
    """Write the child's tensors as they come, stored and sharded as the parent's."""
    specs = {name: child.specs[name] for name in child.arch.tensors()}
    shards = [checkpoint.shard(surgery.stored_beside(name, checkpoint)) for name in specs]
    with place.staged(out) as temporary:
        written = write_tensors(temporary, child.arch, specs, shards, stream, pattern)
        made = record(
            "checkpoint",
            {"digest": written.digest, "params": child.arch.total_params},
            {**_results(checkpoint.arch, child.arch, written), **results()},
        )
        written.finish(made, checkpoint.companion_files())
    _summarise(made.results, report)
    return Result(out, made.dump(), made.results)


def _results(parent: Arch, child: Arch, written: WriteSummary) -> dict[str, Any]:
    """Return what every pruned checkpoint reports."""
    before = parent.total_params
    embedding, old = (a.params()["embedding"] + a.params()["head"] for a in (child, parent))
    return {
        "ratio": 1 - written.census.block_nonzero / parent.block_params,
        "ratio_total": 1 - written.census.nonzero / before,
        "ratio_embedding": 1 - embedding / old,
        **size_results(child, written),
    }


def _summarise(results: dict[str, Any], report: Report) -> None:
    report.note(
        f"block ratio {results['ratio']:.4f} (total {results['ratio_total']:.4f}, embedding "
        f"{results['ratio_embedding']:.4f}), {results['params']} parameters, "
        f"{results['nonzero']} non-zero, {results['flops'] / 1e12:.4f} TFLOPs per "
        f"{results['flops_tokens']} tokens"
    )


@dataclass
class Decider:
    """Decides for one request to `prune`; `digest` is the model's."""

    request: PruneRequest
    checkpoint: Checkpoint
    digest: str
    compute: Compute
    output: Output
    report: Report

    @property
    def method(self) -> Method:
        """The method; there is one wherever scores are needed."""
        assert self.request.method is not None
        return self.request.method

    def source(self) -> Calibration:
        """Return where statistics, scores or the plan come from; nothing is computed yet."""
        request, method = self.request, self.request.method
        plan_inputs: list[Input] = []
        seen: list[Input] = []
        if request.plan is not None:
            plan, made = read_plan(request.plan)
            if made is not None and made.inputs[0].digest != self.digest:
                raise InputError(f"the plan in '{request.plan}' was made from another model")
            content = sidecar.content_id("plan", plan.to_json(), [])
            plan_inputs = [Input(role="plan", id=made.id if made else None, digest=content)]
            # what the plan was decided on
            seen = [e for e in (made.inputs if made else []) if e.role == "calibration"]
            if not request.biased:
                return Calibration([*plan_inputs, *seen], sum(map(_tokens, seen)))
        if method is None or not method.needs:
            return Calibration([], tensors={})
        if request.scores is not None:
            found = open_source(request.scores, "scores", self.digest)
            scored = (found.options or {})["options"]["compat"]
            if scored != request.compat:
                raise InputError(
                    f"'{request.scores}' was scored {'with' if scored else 'without'} "
                    "--compat official",
                    "prune the same way, or score again",
                )
        elif request.stats is not None:
            found = open_stats(request.stats, self.checkpoint, self.digest, method, request.compat)
        else:
            found = read_tokens(self.checkpoint, request.data, self.report)
        more = [entry for entry in seen if entry not in found.inputs]
        return Calibration(
            [*plan_inputs, *more, *found.inputs],
            found.calibration + sum(map(_tokens, more)),
            found.tensors,
            found.found,
        )

    def decide(self, source: Calibration, sizes: Sizes | None) -> Selection:
        """Return what stays, and out of which weights; `sizes` are None for a plan."""
        request, arch = self.request, self.checkpoint.arch
        if request.plan is not None and not request.biased:
            return Selection(read_plan(request.plan)[0], self.checkpoint)
        method = self.method
        skip = None if sizes is None else arch.layers - sizes.layers
        options = score_options(method, request.options, request.compat)
        if request.scores is not None:
            scores = source.tensors or {}
        elif source.found is not None and method.sequential and request.plan is None:
            assert sizes is not None
            scores = self._score_layerwise(source, sizes, options)
        else:
            if request.plan is not None:
                stats = self._stats(source, skip)
                return Selection(read_plan(request.plan)[0], self.checkpoint, stats)
            scores = self._scores(source, skip, options)
        assert sizes is not None
        plan = allocate.plan(method, sizes, scores, arch, request.structure)
        weights: Reader = self.checkpoint
        if method.rotates:
            weights = rotate.Rotated(weights, scores["rotation"], sizes.hidden)
        return Selection(plan, weights, scores)

    def _stats(self, source: Calibration, skip: int | None) -> Tensors:
        if source.tensors is not None:
            return source.tensors
        assert source.found is not None
        needs = self.method.needed(self.request.compat)
        if STATS not in self.request.kept:
            return merged(
                collect(self.checkpoint, source.found, needs, skip, self.compute, self.report)
            )
        path = f"{self.request.keep}/{STATS}"
        write_stats(
            path,
            self.checkpoint,
            self.digest,
            [self.method],
            source,
            skip=skip if of_amount(self.method) else None,
            compat=self.request.compat,
            compute=self.compute,
            output=self.output.for_intermediates(""),
            report=self.report,
        )
        return TensorFile(Path(path))

    def _scores(self, source: Calibration, skip: int | None, options: dict[str, Any]) -> Tensors:
        if SCORES not in self.request.kept:
            return scores_of(self.method, self.checkpoint, self._stats(source, skip), options)
        path = f"{self.request.keep}/{SCORES}"
        write_scores(
            path,
            self.checkpoint,
            self.digest,
            self.method,
            source,
            lambda: self._stats(source, skip),
            skip=skip if of_amount(self.method) else None,
            options=options,
            compute=self.compute,
            output=self.output.for_intermediates(""),
        )
        return TensorFile(Path(path))

    def _score_layerwise(
        self, source: Calibration, sizes: Sizes, options: dict[str, Any]
    ) -> "dict[str, torch.Tensor]":
        """Score units layer by layer, each on what its pruned predecessors give.

        Removed units are silenced by zeros in the columns that read them, which gives what the
        cut layers will give.
        """
        import torch

        arch = self.checkpoint.arch
        assert source.found is not None
        from prunecli.model import stream
        from prunecli.pruning.stats import _hooks

        runner = stream.LayerStream(self.checkpoint, self.compute, self.report)
        scores: dict[str, torch.Tensor] = {}
        for i, layer, stats in _hooks.layerwise(
            runner, source.found.ids, self.method.needed(self.request.compat)
        ):
            stats = {name: value.cpu() for name, value in stats.items()}
            found = layer_scores(self.method, self.checkpoint, i, stats, options)
            scores |= {f"{axis}.{i}": values for axis, values in found.items()}
            kept = {
                "o": (allocate.best(found["kv_heads"], sizes.kv_heads), arch.kv_heads),
                "down": (allocate.best(found["ffn"], sizes.ffn), arch.ffn),
            }
            for point, (units, total) in kept.items():
                weight = layer.get_submodule(arch.module(point)).weight
                columns = weight.data.view(len(weight.data), total, -1)  # type: ignore[operator,arg-type]
                gone = torch.ones(total, dtype=torch.bool)
                gone[list(units)] = False
                columns.masked_fill_(gone.to(columns.device)[:, None], 0)
        return scores


def _tokens(entry: Input) -> int:
    """Return how many tokens a calibration input has."""
    told = entry.model_extra or {}
    return int(told["nsamples"]) * int(told["seq_len"])
