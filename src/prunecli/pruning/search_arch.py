"""The library verb `search_arch`: of the shapes that a budget allows, the one with the lowest loss.

A method scores the dense parent once (one-shot statistics, also for sequential methods). Every
candidate is then the parent cut to its shape, in memory layer by layer, and its loss that of
held-out text: a shape is judged by what pruning to it does, not by its sizes. A method that trains
masks has a run of its own for every candidate.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, FiniteFloat

from prunecli.data import windows
from prunecli.data.rows import source_path
from prunecli.errors import InputError, NotANumber, UsageError
from prunecli.files import keeping, output, sidecar, unfinished
from prunecli.files.artefact import Artefact
from prunecli.files.claim import exclusive
from prunecli.files.keeping import Keeper, specs_of
from prunecli.files.sidecar import SidecarBuilder
from prunecli.files.tensorfile import Tensors
from prunecli.measuring import perplexity
from prunecli.methods import registry
from prunecli.methods._base import Method, Setting, domains_of
from prunecli.model import configs, memory
from prunecli.model.arch import FLOPS_TOKENS, Arch
from prunecli.model.checkpoint import Checkpoint, home
from prunecli.model.device import computable, settled
from prunecli.model.memory import MemoryNeed
from prunecli.pruning import grid, surgery
from prunecli.pruning.allocate import allocate
from prunecli.pruning.calibrate import (
    Required,
    collect_all,
    memory_need,
    required_statistics,
    share,
)
from prunecli.pruning.calibration import Calibration, open_scores, read_windows
from prunecli.pruning.grid import Budget
from prunecli.pruning.request import SCORES
from prunecli.pruning.score import score_model, score_options, scores_artefact
from prunecli.pruning.sizes import Sizes, check_supported, protected_layers, resolve_sizes
from prunecli.record import Record, limited
from prunecli.report import Report
from prunecli.settings import Amount, Data, Output, Result, RunContext
from prunecli.training.distributed import joined

if TYPE_CHECKING:
    import torch

    from prunecli.data.windows import Tokens
    from prunecli.pruning.mask_training import ResolvedMaskTraining

GRID, DEFAULT = "grid", "default"


@dataclass(frozen=True)
class SearchRequest(Record):
    """What to search: shapes of a model for a method, within one budget.

    Attributes:
        params, flops, ratio: the budget; one of them.
        multiple: what hidden and FFN sizes of the grid are multiples of; by default 128 at hidden
            4096, less below (pruning/grid.py). The shape of a bare `prune` has its own.
        data: the text of statistics, or that masks are trained on; `eval_data`: of losses.
        allow_overlap: accept that the two share text.
    """

    model: str
    method: str
    params: float | None = None
    flops: float | None = None
    ratio: float | None = None
    multiple: int | None = limited(None, least=1)
    options: Mapping[str, Any] = field(default_factory=dict)
    data: Data = Data()
    eval_data: Data = Data()
    allow_overlap: bool = False
    compat: bool = False


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

    def described(self, parent: Arch) -> dict[str, Any]:
        """Return what the results say of this shape beside its loss."""
        return {
            **{axis: self.arch.sizes[axis] for axis in ("layers", "hidden", "heads", "kv_heads")},
            "ffn": self.arch.ffn,
            "params": self.arch.total_params,
            "flops": self.arch.flops(FLOPS_TOKENS),
            "ratio": 1 - self.arch.block_params / parent.block_params,
            "container": self.arch.config["model_type"],
            "role": self.role,
        }


@dataclass(frozen=True)
class Search:
    """A request checked against a model: what is tried, and on what."""

    request: SearchRequest
    method: Method
    options: dict[str, Any]
    dense: Checkpoint
    budget: Budget
    multiple: int
    candidates: list[Candidate]

    @property
    def recorded(self) -> dict[str, Any]:
        """What decides the result beside the inputs."""
        return {
            "method": self.method.name,
            "options": self.options,
            "compat": "official" if self.request.compat else None,
            "budget": {"quantity": self.budget.quantity, "most": self.budget.most},
            "multiple": self.multiple,
            "candidates": [candidate.name for candidate in self.candidates],
        }


@exclusive
def search_arch(request: SearchRequest, run: RunContext = RunContext()) -> Result:
    """Search the shape of the lowest loss within a budget, and write it to OUT.json, for `--arch`.

    The shape that a bare `prune` takes for this budget is tried too. Losses that are done are kept
    in OUT.json.partial until all are. Results: `arch` (the sizes chosen), `candidates` by loss.
    `run.stop` is asked at every step of a run that trains masks.
    Under `torchrun`, which is not for methods that train masks, all processes call this and divide
    the rows of all data; the first one writes, and nothing is kept.
    Raises UsageError, InputError (no shape meets the budget, or the texts overlap), OutputExists,
    Stopped.
    """
    with joined(run) as run:
        return _search_arch(request, run)


def _search_arch(request: SearchRequest, run: RunContext) -> Result:
    run = computable(run)
    builder = SidecarBuilder("search-arch", run.output.argv)
    search = _resolve(request, run)
    dense = search.dense
    recorded = search.recorded
    expected: dict[str, Any] = {"candidates": [c.described(dense.arch) for c in search.candidates]}
    training = _resolve_training(search, run)
    if training is not None:
        recorded |= training.recorded
        expected |= training.expected(dense.arch.total_params)
    # masks are evaluated in the type that they are trained in
    compute = replace(run.compute, dtype=training.dtype) if training else run.compute
    run = replace(run, compute=settled(compute, dense))
    recorded["dtype"] = run.compute.dtype
    output.check_disk(run.output.path, expected.get("disk_bytes", 0))
    held_out = perplexity.read(dense, request.eval_data, run.report)
    calibration = _calibration(search, training, run.report)
    if not request.allow_overlap:
        perplexity.refuse_overlap(dense, held_out)
        _refuse_shared(calibration, held_out)
    calibration = share(calibration, _required(search), dense.arch, run.ranks)
    run = memory.within(run, lambda run: _memory_need(search, training, calibration, held_out, run))
    digest = dense.digest(run.report)
    of_held_out = sidecar.tokens_input("evaluation", held_out.meta, held_out.windows)
    artefact = Artefact(
        builder, "arch", recorded, [dense.as_input(digest), *calibration.inputs, of_held_out], run,
        parent=dense.sidecar, calibration=calibration.num_tokens,
        computed=memory.computed(dense.arch, run.compute, run.ranks.world),
        resumable=True,
    )  # fmt: skip
    need = _memory_need(search, training, calibration, held_out, run)
    told = {**recorded, **expected}
    if existing := run.ranks.of_first(lambda: need.settled(artefact, told, run.compute)):
        return existing
    with artefact.keeping() as keeper:
        folder = keeper.folder
        if training is not None:
            prune_to = _by_training(dense, training, run)
        else:
            prune_to = _by_scores(search, _scores(search, digest, calibration, folder, run))
        losses = {
            candidate.name: _try(candidate, prune_to, folder, held_out, run)
            for candidate in run.report.progress(
                search.candidates, "trying shapes", len(search.candidates), "shapes"
            )
        }
        results = _results(search, losses, calibration, held_out)
        result = artefact.write_json({}, results, keeper)
    _summarise(result.results["candidates"], run.report)
    return result


def _memory_need(
    search: Search,
    training: "ResolvedMaskTraining | None",
    calibration: Calibration,
    held_out: windows.Tokens,
    run: RunContext,
) -> MemoryNeed:
    """Return what the search holds in memory: the larger of scoring and trying the shapes."""
    rows, length = held_out.ids[run.ranks.share(len(held_out.ids))].shape
    trials = len(search.candidates)
    tried = memory.of_walk(search.dense, run.compute, rows, length, passes=trials)
    if training is not None:
        before = training.memory_need(search.dense.arch)
    else:
        before = memory_need(search.dense, calibration, _required(search), run)
    return max(before, tried, key=lambda need: need.total)


def _required(search: Search) -> Required:
    """Return the statistics that the method's scores are made of."""
    return required_statistics([search.method], search.request.compat)


def _resolve(request: SearchRequest, run: RunContext) -> Search:
    """Return a request checked against its model; raise UsageError, InputError, OutputExists."""
    out = run.output.path
    if not out.endswith(".json"):
        raise UsageError(f"OUT '{out}' must end in .json")
    method = registry.get(request.method)
    if method.trains_masks and not run.ranks.alone:
        raise UsageError(
            f"a search that trains masks ('{method.name}') runs in one process",
            "run it without torchrun",
        )
    options = method.resolve(request.options)
    check_searchable(method, options)
    sources = (request.data.source, request.eval_data.source, *domains_of(options))
    read = [home(request.model), *map(source_path, sources)]
    output.check_path(out, run.output, read)
    dense = Checkpoint(request.model, run.report)
    check_supported(method, dense.arch)
    budget = grid.budget(dense.arch, request.params, request.flops, request.ratio)
    of_ratio = budget.quantity != "flops"
    beside = Setting(options, request.compat, of_ratio=of_ratio, group=dense.arch.group)
    method.refuse_idle(request.options, beside)
    multiple = request.multiple or grid.size_multiple(dense.arch)
    search = Search(request, method, options, dense, budget, multiple, [])
    return replace(search, candidates=_candidates(search, run.report))


def check_searchable(method: Method, options: Mapping[str, Any]) -> None:
    """Raise UsageError for a method, or options of all of its own, that leave no shape to choose.

    Layers of unequal sizes are no shape.
    """
    grid.check_searchable(method)
    if any(protected_layers(method, options)):
        raise UsageError("a search makes equal layers", "remove --protect")
    if str(options.get("structure")).startswith("AL"):
        raise UsageError("a search makes equal layers", "use --structure UL-UM or UL-MM")


def _candidates(search: Search, report: Report) -> list[Candidate]:
    """Return the shapes of the grid, and that of a bare `prune` where the budget is its kind."""
    biased = search.method.biased(search.options)
    shapes, unsupported = grid.candidates(
        search.method.axes, search.dense.arch, search.budget, search.multiple, biased
    )
    for why in unsupported:
        report.info(f"left out: {why}")
    candidates = [Candidate(Sizes(s.layers, s.hidden, s.kv_heads, s.ffn), s, GRID) for s in shapes]
    if search.budget.quantity != "flops":
        candidates += _default(search, report)
    by_name = {candidate.name: candidate for candidate in candidates}
    return _loadable(list(by_name.values()), report)


def _default(search: Search, report: Report) -> list[Candidate]:
    """Return the shape that a bare `prune` takes for this budget, where it keeps to it."""
    arch, budget, ratio = search.dense.arch, search.budget, search.request.ratio
    params = budget.most if ratio is None else None
    amount = Amount(ratio=ratio, params=params)
    biased = search.method.biased(search.options)
    try:
        sizes = resolve_sizes(search.method, search.options, amount, arch)
        # a bare `prune` keeps what a ratio rounds to: up to one FFN channel more
        shape, narrower = (
            arch.child(hidden=sizes.hidden, kv_heads=sizes.kv_heads, ffn=ffn, biased=biased)
            for ffn in (sizes.ffn, max(1, sizes.ffn - 1))
        )
    except InputError as error:
        report.info(f"left out: the default shape, {error}")
        return []
    if budget.cost(narrower) <= budget.most:
        return [Candidate(sizes, shape, DEFAULT)]
    report.info(
        f"left out: the default shape, which has {budget.cost(shape):.0f} of {budget.most:.0f} "
        f"{grid.UNITS[budget.quantity]}"
    )
    return []


def _loadable(candidates: list[Candidate], report: Report) -> list[Candidate]:
    """Return the shapes that transformers takes; raise InputError if it takes none."""
    kept = []
    for candidate in candidates:
        try:
            configs.transformers_config(candidate.arch.config)
        except InputError as error:
            report.info(f"left out: {candidate.name}, {error}")
            refused = error
        else:
            kept.append(candidate)
    if candidates and not kept:
        raise refused
    return kept


def _resolve_training(search: Search, run: RunContext) -> "ResolvedMaskTraining | None":
    """Return the training of masks that every candidate has, if the method trains them."""
    if not search.method.trains_masks:
        return None
    from prunecli.pruning.mask_training import resolve_mask_training

    request = search.request
    return resolve_mask_training(
        search.dense, request.data, search.options, run.compute, run.report, request.compat
    )


def _calibration(
    search: Search, training: "ResolvedMaskTraining | None", report: Report
) -> Calibration:
    """Return what scores are made of, or masks trained on; nothing where none is read."""
    if training is not None:
        return Calibration(training.inputs, training.calibration_tokens)
    if search.method.needs:
        return read_windows(search.dense, search.request.data, report)
    return Calibration([])


def _refuse_shared(calibration: Calibration, held_out: "Tokens") -> None:
    """Raise InputError if held-out text is that of the statistics too."""
    shared = perplexity.calibration_overlap(calibration.inputs, held_out)
    if not shared and calibration.windows is not None:
        # the same text, in windows that begin elsewhere
        shared = windows.contamination(held_out.ids, calibration.windows.ids)
    if shared:
        raise InputError(
            f"{shared} of {len(held_out.windows)} evaluation windows are calibrated on",
            "choose other text for --eval-data, or use --allow-overlap",
        )


PruneTo = Callable[[Candidate, Path | None], surgery.PrunedModel]


def _by_scores(search: Search, scores: Tensors) -> PruneTo:
    """Return a function that cuts the parent to a shape by its scores."""
    biased = search.method.biased(search.options)

    def prune_to(candidate: Candidate, state: Path | None) -> surgery.PrunedModel:
        plan = allocate(
            search.method, candidate.sizes, scores, search.dense.arch,
            search.options.get("structure"),
        )  # fmt: skip
        return surgery.PrunedModel(search.dense, plan, candidate.arch, scores, biased)

    return prune_to


def _by_training(dense: Checkpoint, training: "ResolvedMaskTraining", run: RunContext) -> PruneTo:
    """Return a function that trains masks for a shape, with its state in a folder of its own."""

    def prune_to(candidate: Candidate, state: Path | None) -> surgery.PrunedModel:
        from prunecli.pruning.mask_training import train_masks

        assert state is not None, "one process keeps states"
        name = f"{run.output.path}.partial"
        trained = train_masks(dense, candidate.sizes, training, state, name, run)
        assert trained is not None, "a search runs in one process"
        return surgery.PrunedModel(trained.weights, trained.plan, candidate.arch)

    return prune_to


def _scores(
    search: Search, digest: str, calibration: Calibration, folder: Path | None, run: RunContext
) -> Tensors:
    """Return the dense parent's scores, kept in a file for the case that the search is stopped."""
    options = score_options(search.method, search.options, search.request.compat)

    def scored() -> "dict[str, torch.Tensor]":
        statistics: Tensors = {}
        if calibration.windows is not None:
            statistics = collect_all(
                search.dense, calibration.windows, _required(search), None, run, Keeper(run)
            )
        return score_model(search.method, search.dense, statistics, options)

    if folder is None:
        return scored()
    path = str(folder / SCORES)
    if not sidecar.path_of(path).exists():
        to_file = replace(run, output=Output(path, force=True))
        artefact = scores_artefact(
            search.dense, digest, calibration, search.method, options, None, to_file
        )
        scores = scored()
        artefact.write_tensors([scores], specs_of(scores))
    with unfinished.refusals():
        return dict(open_scores(path, search.dense.arch, digest, search.method).tensors or {})


def _try(
    candidate: Candidate,
    prune_to: PruneTo,
    folder: Path | None,
    held_out: "Tokens",
    run: RunContext,
) -> dict[str, Any]:
    """Return the loss of a shape, or why there is none; from its file if it was tried before."""
    file, state = folder and folder / f"{candidate.name}.json", folder and folder / candidate.name

    def tried() -> dict[str, Any]:
        if state is not None:
            state.mkdir(exist_ok=True)
        outcome: dict[str, Any] = {"loss": None}
        try:
            outcome["loss"] = _loss(prune_to(candidate, state), held_out, run)
        except NotANumber as error:
            # this shape will not do, others may
            outcome["failed"] = str(error)
            run.report.info(f"{candidate.name}: {error}")
        return outcome

    outcome = keeping.result(file, tried, _Tried, run.report)
    if state is not None:
        output.remove(state)
    return outcome


class _Tried(BaseModel):
    """What a shape came to: its loss, or why it has none."""

    model_config = ConfigDict(extra="forbid")
    loss: FiniteFloat | None
    failed: str = ""


def _loss(pruned: surgery.PrunedModel, held_out: "Tokens", run: RunContext) -> float:
    """Return the mean loss in nats per token; raise NotANumber if it is none."""
    from prunecli.model.stream import LayerStream, sequence_losses

    stream = LayerStream(pruned, run.compute, run.report, Keeper(run))
    losses = sequence_losses(stream, held_out.ids)
    loss: float = perplexity.result(held_out, losses.tolist())["loss"]
    return loss


def _results(
    search: Search,
    losses: Mapping[str, dict[str, Any]],
    calibration: Calibration,
    held_out: "Tokens",
) -> dict[str, Any]:
    """Return the sizes of the lowest loss and all candidates; raise NotANumber if none has one."""

    def loss(candidate: Candidate) -> float:
        value = losses[candidate.name]["loss"]
        return inf if value is None else value

    parent, budget = search.dense.arch, search.budget
    ranked = sorted(search.candidates, key=loss)
    if loss(ranked[0]) == inf:
        why = losses[ranked[0].name].get("failed", "")
        raise NotANumber(f"no shape has a loss: {why}")
    best = ranked[0].described(parent)
    return {
        "arch": {axis: best[axis] for axis in ("layers", "hidden", "heads", "kv_heads", "ffn")},
        "loss": loss(ranked[0]),
        "budget": {"quantity": budget.quantity, "most": budget.most},
        "candidates": [{**c.described(parent), **losses[c.name]} for c in ranked],
        "calibration_tokens": calibration.num_tokens,
        "evaluation_tokens": held_out.ids.shape[0] * (held_out.ids.shape[1] - 1),
    }


def _summarise(candidates: list[dict[str, Any]], report: Report) -> None:
    best = candidates[0]
    losses = [entry["loss"] for entry in candidates if entry["loss"] is not None]
    report.info(
        f"{len(candidates)} shapes: hidden {best['hidden']}, heads {best['heads']}, ffn "
        f"{best['ffn']} has the lowest loss, {losses[0]:.4f}; the highest is {losses[-1]:.4f}"
    )
