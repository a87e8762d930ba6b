"""What stays of a model, and of which weights: out of a plan, scores, statistics, or learning.

Sequential methods walk the layers, each of which sees what the earlier ones will hold in OUT.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunecli import allocate, rotate
from prunecli.allocate import Sizes
from prunecli.errors import InputError
from prunecli.io import sidecar
from prunecli.io.checkpoint import Checkpoint, Reader
from prunecli.io.sidecar import Input
from prunecli.methods._base import Method
from prunecli.pipeline import (
    Source,
    TensorFile,
    Tensors,
    collect,
    layer_scores,
    merged,
    of_amount,
    open_source,
    open_stats,
    read_tokens,
    score_options,
    scores_of,
    write_scores,
    write_stats,
)
from prunecli.plan import Plan
from prunecli.report import Report
from prunecli.request import SCORES, STATS, Request, read_plan
from prunecli.settings import Compute, Output

if TYPE_CHECKING:
    import torch

    from prunecli.training.learning import Learned, Lesson


@dataclass(frozen=True)
class Decision:
    """What stays of which weights, the means that its biases need, and what else to report."""

    plan: Plan
    weights: Reader
    tensors: Tensors = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)


def learned(
    checkpoint: Checkpoint,
    sizes: Sizes,
    lesson: "Lesson",
    folder: Path,
    *,
    name: str,
    compute: Compute,
    report: Report,
    stop: Callable[[], bool],
) -> "Learned | None":
    """Learn what stays, with state and weights in `folder`, which the user knows as `name`.

    All processes of `torchrun` take part; the first one gets what was learned, the others None.
    Raises what `learning.learn` does.
    """
    from prunecli.training import learning, ranks

    with ranks.started(compute) as processes:
        processes.barrier()
        found = learning.learn(
            checkpoint, sizes, lesson, folder, processes,
            name=name, compute=compute, report=report, stop=stop,
        )  # fmt: skip
    return found if processes.first else None


def judged(
    method: Method,
    checkpoint: Checkpoint,
    lesson: "Lesson",
    found: "Learned",
    *,
    compute: Compute,
    report: Report,
    stop: Callable[[], bool],
) -> Decision:
    """Decide as it was learned, having looked how well that is; Stopped when `stop` says so."""
    from prunecli.training import learning

    losses = learning.judge(checkpoint, lesson, found, compute=compute, report=report, stop=stop)
    results: dict[str, Any] = {"learned": {**found.results, **losses}}
    if lesson.trained is None:
        # a variant is no run of the method, in tables neither
        results["method"] = f"{method.name}-frozen"
    return Decision(found.plan, found.weights, results=results)


@dataclass
class Decider:
    """Decides for one request to `prune`; `digest` is the model's."""

    request: Request
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

    def source(self) -> Source:
        """Return where statistics, scores or the plan come from; nothing is computed yet."""
        request, method = self.request, self.request.method
        plan_inputs: list[Input] = []
        seen: list[Input] = []
        if request.plan is not None:
            plan, made = read_plan(request.plan)
            if made is not None and made.inputs[0].digest != self.digest:
                raise InputError(f"the plan in '{request.plan}' was made from another model")
            content = sidecar.key("plan", plan.to_json(), [])
            plan_inputs = [Input(role="plan", id=made.id if made else None, digest=content)]
            # what the plan was decided on
            seen = [e for e in (made.inputs if made else []) if e.role == "calibration"]
            if not request.biased:
                return Source([*plan_inputs, *seen], sum(map(_tokens, seen)))
        if method is None or not method.needs:
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
        more = [entry for entry in seen if entry not in found.inputs]
        return Source(
            [*plan_inputs, *more, *found.inputs],
            found.calibration + sum(map(_tokens, more)),
            found.tensors,
            found.found,
        )

    def decide(self, source: Source, sizes: Sizes | None) -> Decision:
        """Return what stays, and out of which weights; `sizes` are None for a plan."""
        request, arch = self.request, self.checkpoint.arch
        if request.plan is not None and not request.biased:
            return Decision(read_plan(request.plan)[0], self.checkpoint)
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
                return Decision(read_plan(request.plan)[0], self.checkpoint, stats)
            scores = self._scores(source, skip, options)
        assert sizes is not None
        plan = allocate.plan(method, sizes, scores, arch, request.structure)
        weights: Reader = self.checkpoint
        if method.rotates:
            weights = rotate.Rotated(weights, scores["rotation"], sizes.hidden)
        return Decision(plan, weights, scores)

    def _stats(self, source: Source, skip: int | None) -> Tensors:
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
            output=self.output.beside,
            report=self.report,
        )
        return TensorFile(Path(path))

    def _scores(self, source: Source, skip: int | None, options: dict[str, Any]) -> Tensors:
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
            output=self.output.beside,
        )
        return TensorFile(Path(path))

    def _score_layerwise(
        self, source: Source, sizes: Sizes, options: dict[str, Any]
    ) -> "dict[str, torch.Tensor]":
        """Score units layer by layer, each on what its pruned predecessors give.

        Removed units are silenced by zeros in the columns that read them, which gives what the
        cut layers will give.
        """
        import torch

        from prunecli.stats import run

        arch = self.checkpoint.arch
        assert source.found is not None
        runner = run.Runner(self.checkpoint, self.compute, self.report)
        scores: dict[str, torch.Tensor] = {}
        for i, layer, stats in run.layerwise(
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
