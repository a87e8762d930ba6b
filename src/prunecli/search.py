"""The library verb `search-arch`: of the shapes that a budget allows, the one with the least loss.

A method scores the dense parent once (one-pass statistics, also for sequential methods). Every
candidate is then the parent cut to its shape, in memory layer by layer, and its loss that of
held-out text: a shape is judged by what pruning to it does, not by its sizes. A method that learns
has a run of its own for every candidate.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunecli import allocate, shapes, surgery
from prunecli.allocate import Sizes
from prunecli.arch import Arch
from prunecli.deciding import learned
from prunecli.errors import InputError, UsageError
from prunecli.evaluation import perplexity
from prunecli.io import output as place
from prunecli.io import sidecar
from prunecli.io.checkpoint import Checkpoint
from prunecli.io.sidecar import Recorder
from prunecli.methods import registry
from prunecli.methods._base import Method
from prunecli.pipeline import (
    Source,
    TensorFile,
    Tensors,
    check_device,
    collect,
    merged,
    open_source,
    read_tokens,
    score_options,
    write_scores,
)
from prunecli.report import SILENT, Report
from prunecli.settings import Amount, Compute, Data, Made, Output
from prunecli.shapes import Budget
from prunecli.training import world
from prunecli.writing import FLOPS_TOKENS

if TYPE_CHECKING:
    from prunecli.io.tokens import Tokens

SCORES = "scores.safetensors"
GRID, DEFAULT = "grid", "default"


@dataclass(frozen=True)
class Candidate:
    """A shape to try: sizes, the model's shape, and whether a bare `prune` would take it."""

    sizes: Sizes
    arch: Arch
    role: str

    @property
    def name(self) -> str:
        """A file name of its own."""
        return f"{self.sizes.hidden}-{self.sizes.kv_heads}-{self.sizes.ffn}"

    def told(self, parent: Arch) -> dict[str, Any]:
        """Return what the result says of this shape beside its loss."""
        return {
            **{axis: self.arch.sizes[axis] for axis in ("layers", "hidden", "heads", "kv_heads")},
            "ffn": self.arch.ffn,
            "params": self.arch.total_params,
            "flops": self.arch.flops(FLOPS_TOKENS),
            "ratio": 1 - self.arch.block_params / parent.block_params,
            "container": self.arch.config["model_type"],
            "role": self.role,
        }


def search(
    model: str,
    out: str,
    *,
    method: str,
    params: float | None = None,
    flops: float | None = None,
    ratio: float | None = None,
    multiple: int | None = None,
    options: Mapping[str, Any] | None = None,
    data: Data | None = None,
    eval_data: Data | None = None,
    allow_overlap: bool = False,
    compat: bool = False,
    restart: bool = False,
    compute: Compute | None = None,
    output: Output | None = None,
    report: Report = SILENT,
    stop: Callable[[], bool] = lambda: False,
) -> Made:
    """Search the shape of least loss within one budget and write it to OUT.json, for `--arch`.

    `multiple` is what hidden and FFN sizes are multiples of (128 at hidden 4096, less below). The
    shape that a bare `prune` takes for this budget is tried too. Losses that are done are kept in
    OUT.json.partial until all are. Results: `arch` (the sizes chosen), `candidates` by loss.
    `stop` is asked at every step of a run that learns, and ends the search with Stopped.
    Raises UsageError, InputError (no shape meets the budget, or the texts overlap), OutputExists.
    """
    compute, output = compute or Compute(), output or Output()
    recorder = Recorder("search-arch", output.argv)
    if not out.endswith(".json"):
        raise UsageError(f"OUT '{out}' must end in .json")
    if world.size() > 1:
        raise UsageError("a search runs in one process", "leave out torchrun")
    chosen = registry.get(method)
    settings = chosen.resolve(options or {})
    shapes.searchable(chosen)
    checkpoint = Checkpoint(model)
    place.check_place(out, output, [checkpoint.folder])
    budget = shapes.budget(checkpoint.arch, params, flops, ratio)
    step = multiple or shapes.grain(checkpoint.arch)
    biased = chosen.compensates and settings["bias"] == "keep"
    tried = _candidates(chosen, checkpoint.arch, budget, step, ratio, settings, biased)
    resolved = {
        "method": method,
        "options": settings,
        "compat": "official" if compat else None,
        "budget": {"quantity": budget.quantity, "most": budget.most},
        "multiple": step,
        "candidates": [candidate.name for candidate in tried],
        "dtype": compute.dtype,
    }
    if output.dry_run:
        told = [candidate.told(checkpoint.arch) for candidate in tried]
        return Made(out, results={**resolved, "candidates": told})
    check_device(compute)
    held_out = perplexity.read(checkpoint, eval_data or Data(), report)
    if not allow_overlap:
        perplexity.refuse_overlap(checkpoint, held_out)
    source, lesson = Source([]), None
    if chosen.learned:
        from prunecli.training import learning

        lesson = learning.prepare(checkpoint, data or Data(), settings, report)
        source = Source(lesson.inputs, lesson.tokens)
        resolved["steps"] = lesson.steps
        place.check_disk(out, lesson.expected(checkpoint.arch.total_params)["disk_bytes"])
    elif chosen.needs:
        source = read_tokens(checkpoint, data or Data(), report)
    if not allow_overlap:
        _refuse_shared(source, held_out)
    digest = checkpoint.digest(report)
    inputs = [
        checkpoint.as_input(digest),
        *source.inputs,
        sidecar.tokens_input("evaluation", held_out.meta, held_out.windows),
    ]
    key = sidecar.key("arch", resolved, inputs)
    if same := place.same_already(out, output, key):
        return same
    with place.partial(out, key, restart) as folder:
        if lesson is None:
            scored = score_options(chosen, settings, compat)
            scores = _scores(chosen, checkpoint, digest, source, scored, folder, compute, report)

        def child_of(candidate: Candidate, own: Path) -> surgery.Child:
            if lesson is not None:
                found = learned(
                    checkpoint, candidate.sizes, lesson, own,
                    compute=compute, report=report, stop=stop,
                )  # fmt: skip
                assert found is not None
                return surgery.Child(found.weights, found.plan, candidate.arch)
            plan = allocate.plan(
                chosen, candidate.sizes, scores, checkpoint.arch, settings.get("structure")
            )
            return surgery.Child(checkpoint, plan, candidate.arch, scores, biased)

        losses: dict[str, float] = {}
        for candidate in report.track(tried, "trying shapes", len(tried), "shapes"):
            file, own = folder / f"{candidate.name}.json", folder / candidate.name
            if not file.exists():
                own.mkdir(exist_ok=True)
                loss = _loss(child_of(candidate, own), held_out, compute, report)
                place.replace_text(file, json.dumps(loss))
                place.remove(own)
            losses[candidate.name] = json.loads(file.read_text("utf-8"))
        results = _results(tried, losses, checkpoint.arch, budget, source, held_out)
        record = recorder.sidecar(
            "arch",
            resolved,
            inputs,
            outputs={},
            results=results,
            parent=checkpoint.sidecar,
            calibration=source.calibration,
            device=compute.device,
        )
        place.write_json(out, record.text())
        place.remove(folder)
    best = results["candidates"][0]
    report.note(
        f"{len(tried)} shapes: hidden {best['hidden']}, heads {best['heads']}, ffn {best['ffn']} "
        f"has the least loss, {best['loss']:.4f}; the most is "
        f"{results['candidates'][-1]['loss']:.4f}"
    )
    return Made(out, record.dump(), results)


def _candidates(
    method: Method,
    arch: Arch,
    budget: Budget,
    multiple: int,
    ratio: float | None,
    options: Mapping[str, Any],
    biased: bool,
) -> list[Candidate]:
    """Return the shapes of the grid, and that of a bare `prune` where the budget is its kind."""
    found = [
        (Sizes(s.layers, s.hidden, s.kv_heads, s.ffn), GRID)
        for s in shapes.candidates(method.axes, arch, budget, multiple)
    ]
    if budget.quantity != "flops":
        amount = Amount(ratio=ratio) if ratio is not None else Amount(params=budget.most)
        own = allocate.sizes(method, options, amount, arch)
        if any(own.untouched):
            raise UsageError("a search makes equal layers", "leave out --protect")
        found.append((own, DEFAULT))
    made: dict[str, Candidate] = {}
    for size, role in found:
        child = arch.child(hidden=size.hidden, kv_heads=size.kv_heads, ffn=size.ffn, biased=biased)
        candidate = Candidate(size, child, role)
        made[candidate.name] = candidate
    return list(made.values())


def _refuse_shared(source: Source, held_out: "Tokens") -> None:
    shared = perplexity.calibrated(source.inputs, held_out)
    if shared:
        raise InputError(
            f"{shared} of {len(held_out.windows)} evaluation windows are calibrated on",
            "take other text for --eval-data, or --allow-overlap",
        )


def _scores(
    method: Method,
    checkpoint: Checkpoint,
    digest: str,
    source: Source,
    options: dict[str, Any],
    folder: Path,
    compute: Compute,
    report: Report,
) -> Tensors:
    """Return the dense parent's scores, kept in a file for the case that the search is stopped."""
    path = folder / SCORES
    if not sidecar.path_of(str(path)).exists():
        stats: Tensors = {}
        if source.found is not None:
            needs = method.needed(options["compat"])
            stats = merged(collect(checkpoint, source.found, needs, None, compute, report))
        write_scores(
            str(path), checkpoint, digest, method, source, stats,
            options=options, output=Output(force=True),
        )  # fmt: skip
    found = open_source(str(path), "scores", digest).tensors
    assert isinstance(found, TensorFile)
    return found


def _loss(child: surgery.Child, held_out: "Tokens", compute: Compute, report: Report) -> float:
    """Return the mean loss in nats per token; raise PruneError if it is no number."""
    from prunecli.stats import run
    from prunecli.stats.removals import sequence_losses

    losses = sequence_losses(run.Runner(child, compute, report), held_out.ids)
    loss: float = perplexity.result(held_out, losses.tolist())["loss"]
    return loss


def _results(
    tried: list[Candidate],
    losses: Mapping[str, float],
    parent: Arch,
    budget: Budget,
    source: Source,
    held_out: "Tokens",
) -> dict[str, Any]:
    ranked = sorted(tried, key=lambda candidate: losses[candidate.name])
    best = ranked[0].told(parent)
    return {
        "arch": {axis: best[axis] for axis in ("layers", "hidden", "heads", "kv_heads", "ffn")},
        "loss": losses[ranked[0].name],
        "budget": {"quantity": budget.quantity, "most": budget.most},
        "candidates": [{**c.told(parent), "loss": losses[c.name]} for c in ranked],
        "calibration_tokens": source.calibration,
        "evaluation_tokens": held_out.ids.shape[0] * (held_out.ids.shape[1] - 1),
    }
