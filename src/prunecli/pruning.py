"""The library verb `prune`: from a request to a checkpoint.

Structured methods make a plan, which surgery carries out tensor by tensor; methods that set
weights to zero replace the block linears as they stream by. Either way a child's tensors come as
a stream, and one function writes it. Sequential methods walk the layers, each of which sees what
the earlier ones will hold in OUT.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunecli import allocate, rotate, surgery
from prunecli.allocate import Sizes
from prunecli.arch import Arch
from prunecli.errors import InputError, UsageError
from prunecli.io import output as place
from prunecli.io import sidecar
from prunecli.io.checkpoint import Checkpoint, Reader
from prunecli.io.sidecar import Input, Recorder, Sidecar
from prunecli.methods import registry
from prunecli.methods._base import Pattern
from prunecli.pipeline import (
    Source,
    TensorFile,
    Tensors,
    at_point,
    check_device,
    collect,
    layer_scores,
    merged,
    open_source,
    open_stats,
    read_tokens,
    score_options,
    scores_of,
    with_recipe,
    write_scores,
    write_stats,
)
from prunecli.plan import Plan
from prunecli.report import SILENT, Report
from prunecli.request import Prepared, Request, plan_results, prepare, read_plan, scored_with
from prunecli.settings import Amount, Compute, Data, Made, Output
from prunecli.writing import Written, size_results, write_tensors

if TYPE_CHECKING:
    import torch
    from torch import nn

    from prunecli.training.learning import Lesson


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
) -> Made:
    """Prune the model IN into the folder OUT (or, with `plan_only`, write the plan to OUT.json).

    Give `method` and `amount`, or `plan`. `stats` or `scores` skip the steps before them; a plan
    together with a method takes its biases from statistics. `keep` is a folder for the files of
    the steps between. Methods that learn keep their state in OUT.partial and go on from there,
    unless `restart`; `stop` is asked at every step, and ends them with Stopped.
    Raises UsageError, InputError, OutputExists, PruneError.
    """
    compute, output = compute or Compute(), output or Output()
    recorder = Recorder("prune", output.argv)
    data, chosen, settings = data or Data(), None, dict(options or {})
    if method is not None:
        chosen = registry.get(method)
        data, settings = with_recipe(chosen, recipe, data, settings)
        if scores is not None:
            settings = {**scored_with(scores, chosen, settings), **settings}
        settings = chosen.resolve(settings)
    elif settings or recipe:
        raise UsageError("method options and recipes need a --method")
    request = Request(
        chosen, settings, amount or Amount(), data, stats, scores, plan, plan_only, keep, compat
    )
    request.check(out)
    if restart and not (chosen and chosen.learned):
        raise UsageError("--restart is for methods that learn", "there is nothing to resume")
    checkpoint = Checkpoint(model)
    place.check_place(out, output, [checkpoint.folder])
    prepared = prepare(request, checkpoint)
    if output.dry_run:
        return Made(out, results=prepared.expected)
    check_device(compute)
    if not plan_only:
        place.check_disk(out, prepared.bytes)
    digest = checkpoint.digest(report)
    work = Work(request, checkpoint, digest, compute, report, stop)
    source = work.source()
    lesson = work.lesson(source)
    inputs = [checkpoint.as_input(digest), *source.inputs, *(lesson.inputs if lesson else [])]
    kind: sidecar.Kind = "plan" if plan_only else "checkpoint"
    resolved = {**prepared.options, "dtype": compute.dtype}
    key = sidecar.key(kind, resolved, inputs)
    if same := place.same_already(out, output, key):
        return same

    def record(outputs: dict[str, Any], results: dict[str, Any]) -> Sidecar:
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
        )

    state = place.partial(out, key, restart) if lesson else nullcontext(Path())
    with state as folder:
        made = work.make(prepared, source, lesson, out, folder, record)
        if lesson:
            place.remove(folder)
    return made


@dataclass(frozen=True)
class Decision:
    """What stays of which weights, the means that its biases need, and what else to report."""

    plan: Plan
    weights: Reader
    tensors: Tensors = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)


@dataclass
class Work:
    """The expensive steps of one `prune`, each a stream or a decision."""

    request: Request
    checkpoint: Checkpoint
    digest: str
    compute: Compute
    report: Report
    stop: Callable[[], bool]

    def source(self) -> Source:
        """Return where statistics, scores or the plan come from; nothing is computed yet."""
        request, method = self.request, self.request.method
        plan_inputs: list[Input] = []
        if request.plan is not None:
            plan, made = read_plan(request.plan)
            if made is not None and made.inputs[0].digest != self.digest:
                raise InputError(f"the plan in '{request.plan}' was made from another model")
            content = sidecar.key("plan", plan.to_json(), [])
            plan_inputs = [Input(role="plan", id=made.id if made else None, digest=content)]
            if not request.biased:
                return Source(plan_inputs)
        if method is None or not (method.needs or method.learned):
            return Source([], tensors={})
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
        return Source([*plan_inputs, *found.inputs], found.calibration, found.tensors, found.found)

    def sparsified(self, source: Source, pattern: Pattern) -> "Iterator[tuple[str, torch.Tensor]]":
        """Yield every tensor, block linears with zeros; weights after their update."""
        import torch

        from prunecli.stats import run

        checkpoint, method, arch = self.checkpoint, self.request.method, self.checkpoint.arch
        assert method is not None
        walk: Iterator[tuple[int, nn.Module | None, Tensors]]
        if source.found is not None:
            runner = run.Runner(checkpoint, self.compute, self.report)
            walk = iter(run.layerwise(runner, source.found.ids, method.needed(self.request.compat)))
        else:
            layers = self.report.track(range(arch.layers), "pruning", arch.layers, "layers")
            walk = ((i, None, source.tensors or {}) for i in layers)
        device = run.device_of(self.compute)
        done = set()
        for i, layer, stats in walk:
            for modules in arch.family.inputs:
                point = f"model.layers.{i}.{modules[0]}:in"
                factor = self._factor({k: v.to(device) for k, v in at_point(stats, point).items()})
                for module in modules:
                    name = f"model.layers.{i}.{module}.weight"
                    parent = checkpoint.tensor(name)
                    pruned = self._sparsify(parent.to(device).float(), factor, pattern)
                    stored = pruned.to(parent.dtype)
                    if layer is not None:
                        live = layer.get_submodule(module)
                        exact = pruned if self.request.compat else stored
                        weight = exact.to(live.weight.dtype)  # type: ignore[arg-type]
                        live.weight = torch.nn.Parameter(weight, requires_grad=False)
                    done.add(name)
                    yield name, stored.cpu()
        for name in checkpoint.specs.keys() - done:
            yield name, checkpoint.tensor(name)

    def _factor(self, stats: Tensors) -> Any:
        method = self.request.method
        assert method is not None
        if method.prepare is None:
            return None
        factor = method.prepare(stats, {**self.request.options, "compat": self.request.compat})
        if isinstance(factor, dict) and int(factor.get("retries", 0)):
            self.report.note(f"damping was raised tenfold {int(factor['retries'])} times")
        return factor

    def _sparsify(self, weight_OI: "torch.Tensor", factor: Any, pattern: Pattern) -> "torch.Tensor":
        method = self.request.method
        assert method is not None and method.sparsify is not None
        options = {**self.request.options, "compat": self.request.compat}
        pruned: torch.Tensor = method.sparsify(weight_OI, factor, pattern, options)
        return pruned

    def make(
        self,
        prepared: Prepared,
        source: Source,
        lesson: "Lesson | None",
        out: str,
        folder: Path,
        record: Callable[[dict[str, Any], dict[str, Any]], Sidecar],
    ) -> Made:
        """Make OUT: a checkpoint, or the plan of one."""
        checkpoint, arch, report = self.checkpoint, self.checkpoint.arch, self.report
        if prepared.pattern is not None:
            made_of: Reader = checkpoint
            stream = self.sparsified(source, prepared.pattern)
            shape: dict[str, Any] = {}
        else:
            decision = self.decide(source, prepared.sizes, lesson, folder)
            decided = decision.plan
            decided.check(arch)
            child = decided.child(decision.weights.arch, self.request.biased)
            if arch.couples_heads and child.heads < arch.heads:
                report.note(
                    f"a norm of '{arch.family.name}' runs over all heads together: removing some "
                    "changes the scale of the others, which no score accounts for"
                )
            shape = {**plan_results(decided, arch, child), **decision.results}
            if self.request.plan_only:
                made = record({"params": child.total_params}, {**shape, **decided.to_json()})
                place.write_json(out, made.text())
                return Made(out, made.dump(), made.results)
            made_of = surgery.Child(
                decision.weights, decided, child, decision.tensors, self.request.biased
            )
            stream = made_of.stream()
        child = made_of.arch
        if child.family is not arch.family:
            report.note(
                f"written as '{child.config['model_type']}', which computes the same: "
                f"'{arch.config['model_type']}' cannot hold this shape in transformers"
            )
        with place.staged(out) as temporary:
            written = _write(temporary, checkpoint, made_of, stream)
            results = {**_results(arch, child, written), **shape}
            made = record({"digest": written.digest, "params": child.total_params}, results)
            written.finish(made, checkpoint.tag_along())
        _summarise(made.results, report)
        return Made(out, made.dump(), made.results)

    def lesson(self, source: Source) -> "Lesson | None":
        """Return how a learned method will train, None for the others."""
        method = self.request.method
        if method is None or not method.learned:
            return None
        from prunecli.training import learning

        assert source.found is not None
        data, options = self.request.data, self.request.options
        others = [
            read_tokens(self.checkpoint, replace(data, source=name), self.report)
            for name in options["domains"].split(",")
            if name
        ]
        source.inputs += [entry for other in others for entry in other.inputs]
        source.calibration += sum(other.calibration for other in others)
        domains = [source.found, *(other.found for other in others if other.found is not None)]
        return learning.prepare(domains, options, data.seed, self.report)

    def decide(
        self, source: Source, sizes: Sizes | None, lesson: "Lesson | None", folder: Path
    ) -> Decision:
        """Return what stays, and out of which weights."""
        request, method, arch = self.request, self.request.method, self.checkpoint.arch
        if request.plan is not None and not request.biased:
            return Decision(read_plan(request.plan)[0], self.checkpoint)
        assert method is not None
        if lesson is not None:
            from prunecli.training.learning import learn

            assert sizes is not None
            learned = learn(
                self.checkpoint, sizes, lesson, folder,
                compute=self.compute, report=self.report, stop=self.stop,
            )  # fmt: skip
            return Decision(learned.plan, learned.weights, results={"learned": learned.results})
        skip = None if sizes is None else arch.layers - sizes.layers
        options = score_options(method, request.options, request.compat)
        if request.scores is not None:
            scores = source.tensors or {}
        elif source.found is not None and method.sequential and request.plan is None:
            assert sizes is not None
            scores = self._score_layerwise(source, sizes, options)
        else:
            stats = source.tensors if source.tensors is not None else self._collect(source, skip)
            if request.plan is not None:
                return Decision(read_plan(request.plan)[0], self.checkpoint, stats)
            scores = scores_of(method, self.checkpoint, stats, options)
            self._keep_scores(source, stats, options)
        assert sizes is not None
        plan = allocate.plan(method, sizes, scores, arch, request.structure)
        weights: Reader = self.checkpoint
        if method.rotates:
            weights = rotate.Rotated(weights, scores["rotation"], sizes.hidden)
        return Decision(plan, weights, scores)

    def _collect(self, source: Source, skip: int | None) -> Tensors:
        method = self.request.method
        assert method is not None and source.found is not None
        needs = method.needed(self.request.compat)
        if self.request.keep is None:
            return merged(
                collect(self.checkpoint, source.found, needs, skip, self.compute, self.report)
            )
        path = f"{self.request.keep}/stats.safetensors"
        write_stats(
            path,
            self.checkpoint,
            self.digest,
            [method],
            source,
            skip=skip if any(need.points == ("model",) for need in needs) else None,
            compat=self.request.compat,
            compute=self.compute,
            output=Output(force=True),
            report=self.report,
        )
        return TensorFile(Path(path))

    def _keep_scores(self, source: Source, stats: Tensors, options: dict[str, Any]) -> None:
        method = self.request.method
        if self.request.keep is not None and method is not None:
            write_scores(
                f"{self.request.keep}/scores.safetensors",
                self.checkpoint,
                self.digest,
                method,
                source,
                stats,
                options=options,
                output=Output(force=True),
            )

    def _score_layerwise(
        self, source: Source, sizes: Sizes, options: dict[str, Any]
    ) -> "dict[str, torch.Tensor]":
        """Score units layer by layer, each on what its pruned predecessors give.

        Removed units are silenced by zeros in the columns that read them, which gives what the
        cut layers will give.
        """
        from prunecli.stats import run

        method, arch = self.request.method, self.checkpoint.arch
        assert method is not None and source.found is not None
        runner = run.Runner(self.checkpoint, self.compute, self.report)
        scores: dict[str, torch.Tensor] = {}
        for i, layer, stats in run.layerwise(
            runner, source.found.ids, method.needed(self.request.compat)
        ):
            found = layer_scores(method, self.checkpoint, i, stats, options)
            scores |= {f"{axis}.{i}": values for axis, values in found.items()}
            kept = {
                "o": (allocate.best(found["kv_heads"], sizes.kv_heads), arch.kv_heads),
                "down": (allocate.best(found["ffn"], sizes.ffn), arch.ffn),
            }
            for point, (units, total) in kept.items():
                weight = layer.get_submodule(arch.module(point)).weight
                columns = weight.data.view(len(weight.data), total, -1)  # type: ignore[operator,arg-type]
                gone = [unit for unit in range(total) if unit not in set(units)]
                columns[:, gone] = 0
        return scores


def _write(
    folder: Path,
    checkpoint: Checkpoint,
    child: Reader,
    stream: "Iterator[tuple[str, torch.Tensor]]",
) -> Written:
    """Write the child's tensors as they come, stored and sharded as the parent's."""
    specs = {name: child.specs[name] for name in child.arch.tensors()}
    shards = [checkpoint.shard(surgery.stored_beside(name, checkpoint)) for name in specs]
    return write_tensors(folder, child.arch, specs, shards, stream)


def _results(parent: Arch, child: Arch, written: Written) -> dict[str, Any]:
    """Return what every pruned checkpoint reports."""
    before = parent.total_params
    embedding, old = (a.params()["embedding"] + a.params()["head"] for a in (child, parent))
    return {
        "ratio": 1 - written.block_nonzero / parent.block_params,
        "ratio_total": 1 - written.nonzero / before,
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
