"""The library verb `search-arch`: of the shapes that a budget allows, the one with the least loss.

A method scores the dense parent once (one-pass statistics, also for sequential methods). Every
candidate is then the parent cut to its shape, in memory layer by layer, and its loss that of
held-out text: a shape is judged by what pruning to it does, not by its sizes. A method that learns
has a run of its own for every candidate.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunecli.data import windows
from prunecli.data.rows import source_path
from prunecli.errors import InputError, NotANumber, UsageError
from prunecli.files import output as place
from prunecli.files import sidecar
from prunecli.files.sidecar import SidecarBuilder
from prunecli.files.tensorfile import TensorFile, Tensors
from prunecli.measuring import perplexity
from prunecli.methods import registry
from prunecli.methods._base import Method, Setting, domains_of
from prunecli.model import configs
from prunecli.model.arch import FLOPS_TOKENS, Arch
from prunecli.model.checkpoint import Checkpoint
from prunecli.model.device import check_device, settled
from prunecli.pruning import allocate, grid, surgery
from prunecli.pruning.calibrate import collect, merged
from prunecli.pruning.calibration import Calibration, open_source, read_tokens
from prunecli.pruning.grid import Budget
from prunecli.pruning.request import SCORES
from prunecli.pruning.score import score_options, write_scores
from prunecli.pruning.sizes import Sizes, protected_layers, resolve_sizes
from prunecli.report import SILENT, Report
from prunecli.settings import BATCH_TOKENS, Amount, Compute, Data, Output, Result
from prunecli.training import world

if TYPE_CHECKING:
    from prunecli.pruning.mask_training import ResolvedMaskTraining
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


def search_arch(
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
) -> Result:
    """Search the shape of least loss within one budget and write it to OUT.json, for `--arch`.

    `multiple` is what hidden and FFN sizes are multiples of (128 at hidden 4096, less below). The
    shape that a bare `prune` takes for this budget is tried too. Losses that are done are kept in
    OUT.json.partial until all are. Results: `arch` (the sizes chosen), `candidates` by loss.
    `stop` is asked at every step of a run that learns, and ends the search with Stopped.
    Raises UsageError, InputError (no shape meets the budget, or the texts overlap), OutputExists.
    """
    compute, output = compute or Compute(), output or Output()
    check_device(compute)
    data, eval_data = data or Data(), eval_data or Data()
    recorder = SidecarBuilder("search-arch", output.argv)
    if not out.endswith(".json"):
        raise UsageError(f"OUT '{out}' must end in .json")
    if world.size() > 1:
        raise UsageError("a search runs in one process", "leave out torchrun")
    chosen = registry.get(method)
    settings = chosen.resolve(options or {})
    grid.searchable(chosen)
    _check_equal(chosen, settings)
    checkpoint = Checkpoint(model, report)
    sources = (data.source, eval_data.source, *domains_of(settings))
    read = [source_path(name) for name in sources]
    place.check_path(out, output, [checkpoint.folder, *read])
    budget = grid.budget(checkpoint.arch, params, flops, ratio)
    of_ratio, group = budget.quantity != "flops", checkpoint.arch.group
    chosen.refuse_idle(options or {}, Setting(settings, compat, of_ratio=of_ratio, group=group))
    step = multiple or grid.grain(checkpoint.arch)
    tried = _candidates(chosen, checkpoint.arch, budget, step, ratio, settings, report)
    resolved = {
        "method": method,
        "options": settings,
        "compat": "official" if compat else None,
        "budget": {"quantity": budget.quantity, "most": budget.most},
        "multiple": step,
        "candidates": [candidate.name for candidate in tried],
    }
    lesson = None
    expected: dict[str, Any] = {"candidates": [c.told(checkpoint.arch) for c in tried]}
    if chosen.learned:
        from prunecli.pruning import mask_training

        lesson = mask_training.prepare(checkpoint, data, settings, compute, report, compat)
        resolved |= lesson.recorded
        expected |= lesson.expected(checkpoint.arch.total_params)
    # a method that learns is measured in the type that it learns in
    compute = replace(compute, dtype=lesson.dtype) if lesson is not None else compute
    compute = settled(compute, checkpoint)
    resolved["dtype"] = compute.dtype
    place.check_disk(out, expected.get("disk_bytes", 0))
    held_out = perplexity.read(checkpoint, eval_data, report)
    source = Calibration([])
    if lesson is not None:
        source = Calibration(lesson.inputs, lesson.calibration_tokens)
    elif chosen.needs:
        source = read_tokens(checkpoint, data, report)
    if not allow_overlap:
        perplexity.refuse_overlap(checkpoint, held_out)
        _refuse_shared(source, held_out)
    digest = checkpoint.digest(report)
    inputs = [
        checkpoint.as_input(digest),
        *source.inputs,
        sidecar.tokens_input("evaluation", held_out.meta, held_out.windows),
    ]
    key = sidecar.content_id("arch", resolved, inputs)
    if same := place.existing_result(out, output, key):
        return same
    place.check_partial(out, key, restart)
    if output.dry_run:
        return Result(out, results={**resolved, **expected})
    with place.partial(out, key, restart) as folder:
        name = f"{out}.partial"
        if lesson is not None:
            child_of = _learning(checkpoint, lesson, name, compute, report, stop)
        else:
            scored = score_options(chosen, settings, compat)
            scores = _scores(chosen, checkpoint, digest, source, scored, folder, compute, report)
            child_of = _scoring(chosen, checkpoint, settings, scores)
        outcomes = {
            candidate.name: _outcome(candidate, child_of, folder, held_out, compute, report)
            for candidate in report.track(tried, "trying shapes", len(tried), "shapes")
        }
        results = _results(tried, outcomes, checkpoint.arch, budget, source, held_out)
        record = recorder.sidecar(
            "arch",
            resolved,
            inputs,
            outputs={},
            results=results,
            parent=checkpoint.sidecar,
            calibration=source.calibration,
            device=compute.device,
            dtype=compute.dtype,
            batch=BATCH_TOKENS,
        )
        place.write_json(out, record.text())
        place.remove(folder)
    best = results["candidates"][0]
    told = [entry["loss"] for entry in results["candidates"] if entry["loss"] is not None]
    report.note(
        f"{len(tried)} shapes: hidden {best['hidden']}, heads {best['heads']}, ffn {best['ffn']} "
        f"has the least loss, {told[0]:.4f}; the most is {told[-1]:.4f}"
    )
    return Result(out, record.dump(), results)


def _check_equal(method: Method, options: Mapping[str, Any]) -> None:
    """Raise UsageError for options that make layers of unequal sizes, which are no shape."""
    if any(protected_layers(method, options)):
        raise UsageError("a search makes equal layers", "leave out --protect")
    if str(options.get("structure")).startswith("AL"):
        raise UsageError("a search makes equal layers", "use --structure UL-UM or UL-MM")


def _candidates(
    method: Method,
    arch: Arch,
    budget: Budget,
    multiple: int,
    ratio: float | None,
    options: Mapping[str, Any],
    report: Report,
) -> list[Candidate]:
    """Return the shapes of the grid, and that of a bare `prune` where the budget is its kind."""
    biased = method.biased(options)
    found_grid = grid.candidates(method.axes, arch, budget, multiple, biased)
    for why in found_grid.refused:
        report.note(f"left out: {why}")
    found = [
        Candidate(Sizes(s.layers, s.hidden, s.kv_heads, s.ffn), s, GRID) for s in found_grid.shapes
    ]
    if budget.quantity != "flops":
        amount = Amount(ratio=ratio) if ratio is not None else Amount(params=budget.most)
        try:
            own = resolve_sizes(method, options, amount, arch)
            # a bare `prune` keeps what a ratio rounds to: up to one FFN channel more
            shape, narrower = (
                arch.child(hidden=own.hidden, kv_heads=own.kv_heads, ffn=ffn, biased=biased)
                for ffn in (own.ffn, max(1, own.ffn - 1))
            )
        except InputError as error:
            report.note(f"left out: the default shape, {error}")
        else:
            if budget.cost(narrower) <= budget.most:
                found.append(Candidate(own, shape, DEFAULT))
            else:
                report.note(
                    f"left out: the default shape, which has {budget.cost(shape):.0f} of "
                    f"{budget.most:.0f} {grid.UNITS[budget.quantity]}"
                )
    return _loadable(list({candidate.name: candidate for candidate in found}.values()), report)


def _loadable(found: list[Candidate], report: Report) -> list[Candidate]:
    """Return the shapes that transformers takes; raise InputError if it takes none."""
    kept = []
    for candidate in found:
        try:
            configs.transformers_config(candidate.arch.config)
        except InputError as error:
            report.note(f"left out: {candidate.name}, {error}")
            refused = error
        else:
            kept.append(candidate)
    if found and not kept:
        raise refused
    return kept


Child = Callable[[Candidate, Path], surgery.Child]


def _scoring(
    method: Method, checkpoint: Checkpoint, options: Mapping[str, Any], scores: Tensors
) -> Child:
    """Return a function that cuts the parent to a shape by its scores."""
    biased = method.biased(options)

    def child_of(candidate: Candidate, own: Path) -> surgery.Child:
        structure = options.get("structure")
        plan = allocate.plan(method, candidate.sizes, scores, checkpoint.arch, structure)
        return surgery.Child(checkpoint, plan, candidate.arch, scores, biased)

    return child_of


def _learning(
    checkpoint: Checkpoint,
    lesson: "ResolvedMaskTraining",
    name: str,
    compute: Compute,
    report: Report,
    stop: Callable[[], bool],
) -> Child:
    """Return a function that learns masks for a shape, with its state in a folder of its own."""

    def child_of(candidate: Candidate, own: Path) -> surgery.Child:
        from prunecli.pruning.mask_training import learned

        found = learned(
            checkpoint, candidate.sizes, lesson, own,
            name=name, compute=compute, report=report, stop=stop,
        )  # fmt: skip
        assert found is not None, "a search runs in one process"
        return surgery.Child(found.weights, found.plan, candidate.arch)

    return child_of


def _outcome(
    candidate: Candidate,
    child_of: Child,
    folder: Path,
    held_out: windows.Tokens,
    compute: Compute,
    report: Report,
) -> dict[str, Any]:
    """Return the loss of a shape, or why there is none; from its file if it was tried before."""
    file, own = folder / f"{candidate.name}.json", folder / candidate.name
    if not file.exists():
        own.mkdir(exist_ok=True)
        outcome: dict[str, Any] = {"loss": None}
        try:
            outcome["loss"] = _loss(child_of(candidate, own), held_out, compute, report)
        except NotANumber as error:
            # this shape will not do, others may
            outcome["failed"] = str(error)
            report.note(f"{candidate.name}: {error}")
        place.replace_text(file, json.dumps(outcome))
        place.remove(own)
    found: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return found


def _refuse_shared(source: Calibration, held_out: windows.Tokens) -> None:
    shared = perplexity.calibration_overlap(source.inputs, held_out)
    if not shared and source.found is not None:
        # the same text, in windows that begin elsewhere
        shared = windows.contamination(held_out.ids, source.found.ids)
    if shared:
        raise InputError(
            f"{shared} of {len(held_out.windows)} evaluation windows are calibrated on",
            "take other text for --eval-data, or --allow-overlap",
        )


def _scores(
    method: Method,
    checkpoint: Checkpoint,
    digest: str,
    source: Calibration,
    options: dict[str, Any],
    folder: Path,
    compute: Compute,
    report: Report,
) -> Tensors:
    """Return the dense parent's scores, kept in a file for the case that the search is stopped."""
    path = folder / SCORES

    def stats() -> Tensors:
        if source.found is None:
            return {}
        needs = method.needed(options["compat"])
        return merged(collect(checkpoint, source.found, needs, None, compute, report))

    if not sidecar.path_of(str(path)).exists():
        write_scores(
            str(path), checkpoint, digest, method, source, stats,
            skip=None, options=options, compute=compute, output=Output(force=True),
        )  # fmt: skip
    found = open_source(str(path), "scores", digest).tensors
    assert isinstance(found, TensorFile)
    return found


def _loss(
    child: surgery.Child, held_out: windows.Tokens, compute: Compute, report: Report
) -> float:
    """Return the mean loss in nats per token; raise NotANumber if it is none."""
    from prunecli.model.stream import LayerStream, sequence_losses

    losses = sequence_losses(LayerStream(child, compute, report), held_out.ids)
    loss: float = perplexity.result(held_out, losses.tolist())["loss"]
    return loss


def _results(
    tried: list[Candidate],
    outcomes: Mapping[str, dict[str, Any]],
    parent: Arch,
    budget: Budget,
    source: Calibration,
    held_out: windows.Tokens,
) -> dict[str, Any]:
    def loss(candidate: Candidate) -> float:
        found = outcomes[candidate.name]["loss"]
        return inf if found is None else float(found)

    ranked = sorted(tried, key=loss)
    if loss(ranked[0]) == inf:
        raise NotANumber(f"no shape has a loss: {outcomes[ranked[0].name]['failed']}")
    best = ranked[0].told(parent)
    return {
        "arch": {axis: best[axis] for axis in ("layers", "hidden", "heads", "kv_heads", "ffn")},
        "loss": loss(ranked[0]),
        "budget": {"quantity": budget.quantity, "most": budget.most},
        "candidates": [{**c.told(parent), **outcomes[c.name]} for c in ranked],
        "calibration_tokens": source.calibration,
        "evaluation_tokens": held_out.ids.shape[0] * (held_out.ids.shape[1] - 1),
    }
