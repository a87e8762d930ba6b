"""The library verb `score`: from statistics to importances.

`score_model` hands every layer's weights and statistics to the method's formula, `score_layer`;
`score_sequentially` does so on the outputs of layers that are pruned already.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from prunecli.errors import InputError, UsageError
from prunecli.files.artefact import Artefact
from prunecli.files.claim import exclusive
from prunecli.files.keeping import Keeper, specs_of
from prunecli.files.sidecar import SidecarBuilder
from prunecli.files.tensorfile import Spec, Tensors
from prunecli.methods import registry
from prunecli.methods._base import LayerView, Method, Setting
from prunecli.model import memory
from prunecli.model.checkpoint import Checkpoint
from prunecli.model.device import computable, settled
from prunecli.pruning.allocate import best
from prunecli.pruning.calibrate import (
    collect_all,
    memory_need,
    num_removed_layers,
    required_statistics,
    share,
)
from prunecli.pruning.calibration import (
    Calibration,
    check_scores,
    check_tensor_file,
    open_statistics,
    read_windows,
)
from prunecli.pruning.sizes import Sizes, check_supported
from prunecli.record import Record
from prunecli.settings import Amount, Data, Result, RunContext
from prunecli.training.distributed import joined

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ScoreRequest(Record):
    """What to score: by which method, from a file of statistics or from text.

    `amount` is for methods that try out what they remove, where statistics are yet to be collected.
    """

    model: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    data: Data = Data()
    amount: Amount = Amount()
    stats: str | None = None
    compat: bool = False


@exclusive
def score(request: ScoreRequest, run: RunContext = RunContext()) -> Result:
    """Turn statistics into importances, higher = keep, one vector per axis and layer.

    Without `stats` they are collected from DATA first; what is done of that is kept in OUT.partial,
    and the next run goes on from there, unless `run.output.restart`. Raises UsageError for methods
    that score inside `prune`, InputError for unusable files, OutputExists, Stopped. Under
    `torchrun` all processes call this and divide the rows of DATA; the first one writes, and
    nothing is kept.
    """
    with joined(run) as run:
        return _score(request, run)


def _score(request: ScoreRequest, run: RunContext) -> Result:
    run = computable(run)
    method = registry.get(request.method)
    options = _check(request, method)
    check_tensor_file(run.output, request.model)
    dense = Checkpoint(request.model, run.report)
    check_supported(method, dense.arch)
    beside = Setting(options, request.compat, group=dense.arch.group)
    method.refuse_idle(request.options, beside)
    if request.stats is not None and request.amount != Amount():
        raise UsageError("with --stats the amount is known already", "leave it out")
    num_removed = None
    if request.stats is None:
        num_removed = num_removed_layers([method], request.amount, dense.arch)
    run = replace(run, compute=settled(run.compute, dense))
    digest = dense.digest(run.report)
    required = required_statistics([method], request.compat)
    calibration = share(
        _calibration(request, method, dense, digest, run), required, dense.arch, run.ranks
    )
    run = memory.within(
        run, lambda run: memory_need(dense, calibration, required, run, num_removed)
    )
    used = score_options(method, options, request.compat)
    artefact = scores_artefact(dense, digest, calibration, method, used, num_removed, run)
    need = memory_need(dense, calibration, required, run, num_removed)
    settled_by = partial(need.settled, artefact, artefact.options, run.compute)
    if existing := run.ranks.of_first(settled_by):
        return existing
    with artefact.keeping() as keeper:
        statistics = calibration.tensors
        if calibration.windows is not None:
            statistics = collect_all(dense, calibration.windows, required, num_removed, run, keeper)
        scores = score_model(method, dense, statistics or {}, used)
        return artefact.write_tensors([scores], specs_of(scores), keeper)


def score_options(method: Method, options: Mapping[str, Any], compat: bool) -> dict[str, Any]:
    """Return the options that a score depends on."""
    used = {o.name: options[o.name] for o in method.options if o.stage == "score"}
    return {**used, "compat": compat}


def scores_artefact(
    dense: Checkpoint,
    digest: str,
    calibration: Calibration,
    method: Method,
    options: dict[str, Any],
    num_removed: int | None,
    run: RunContext,
) -> Artefact:
    """Return the file of scores that a step makes, or finds made already.

    What statistics depend on is recorded where they are made of tokens; a file of them says so
    itself.
    """
    collected = calibration.windows is not None
    of_windows = {"skip": num_removed, "dtype": run.compute.dtype} if collected else {}
    return Artefact(
        SidecarBuilder("score", run.output.argv), "scores",
        {"method": method.name, "options": options, **of_windows},
        [dense.as_input(digest), *calibration.inputs], run, calibration=calibration.num_tokens,
        computed=memory.computed(dense.arch, run.compute, run.ranks.world),
        resumable=collected,
    )  # fmt: skip


def score_model(
    method: Method, dense: Checkpoint, statistics: Tensors, options: Mapping[str, Any]
) -> "dict[str, torch.Tensor]":
    """Return the scores of a whole model, with the means [I] that its compensation needs.

    Raises InputError where statistics of a file make them NaN.
    Names: `layers` [L] or `blocks.k`, or `ffn.i` [F], `kv_heads.i` [K], `experts.i` [E] and
    `hidden` [D].
    """
    arch = dense.arch
    if method.score_layers is not None:
        by_layer = {
            f"{need.name}.{i}": statistics[f"{arch.point(i, point)}.{need.name}"]
            for need in method.needs
            for point in need.points
            if point != "model"
            for i in range(arch.layers)
        }
        # a file may hold what other methods read too
        wanted = tuple(need.name for need in method.needs if need.points == ("model",))
        of_model = {name: statistics[name] for name in statistics if name.startswith(wanted)}
        layer_scores: dict[str, torch.Tensor] = method.score_layers(
            {**by_layer, **of_model}, options
        )
        check_scores(layer_scores, statistics)
        return layer_scores
    scores: dict[str, torch.Tensor] = {}
    for i in range(arch.layers):
        memory.release()
        for axis, values in score_layer(method, dense, i, statistics, options).items():
            if axis == "hidden":
                scores[axis] = scores[axis] + values if axis in scores else values
            else:
                scores[f"{axis}.{i}"] = values
        if method.compensates:
            for module in arch.compensated_in(i):
                name = f"{arch.prefix(i)}{module}:in.mean"
                scores[name] = statistics[name]
    check_scores(scores, statistics)
    return scores


class _OfLayer(dict[str, "torch.Tensor"]):
    """What a layer has; a formula that asks for what it has not is refused by name."""

    def __init__(self, own: "dict[str, torch.Tensor]", reads: str, layer: str) -> None:
        super().__init__(own)
        self._reads, self._layer = reads, layer

    def __missing__(self, key: str) -> "torch.Tensor":
        raise InputError(
            f"{self._reads} '{key}', which {self._layer} has not", "use another method"
        )


def score_layer(
    method: Method, dense: Checkpoint, i: int, statistics: Tensors, options: Mapping[str, Any]
) -> "dict[str, torch.Tensor]":
    """Return the scores of the units of layer `i`: the method's formula on what it may see.

    None where the layer has no units of the method's axes.
    """
    arch = dense.arch
    units = {{"heads": "kv_heads"}.get(axis, axis) for axis in method.axes}
    units = {axis for axis in units if axis == "hidden" or i in arch.ranked(axis)}
    if not units:
        return {}
    weights = {
        point: dense.tensor(f"{arch.prefix(i)}{arch.module(point)}.weight")
        for point in ("o", "down")
        if arch.module(point) in arch.compensated_in(i)
    }
    stats = {
        f"{point}.{name}": tensor
        for point in ("q", "o", "gate", "down", "block", "experts")
        if (place := arch.point(i, point)) is not None
        for name, tensor in at_point(statistics, place).items()
    }
    reader = f"'{method.name}' reads", f"layer {i} of this '{arch.family.name}'"
    view = LayerView(
        weights=_OfLayer(weights, *reader),
        stats=_OfLayer(stats, *reader),
        kv_heads=arch.size("kv_heads", i),
        experts=arch.experts,
        index=i,
    )
    assert method.score is not None
    scores: dict[str, torch.Tensor] = method.score(view, options)
    return {axis: values for axis, values in scores.items() if axis in units}


def score_sequentially(
    method: Method,
    dense: Checkpoint,
    calibration: Calibration,
    sizes: Sizes,
    options: Mapping[str, Any],
    run: RunContext,
    keeper: Keeper,
) -> "dict[str, torch.Tensor]":
    """Score units layer by layer, each on the outputs of its pruned predecessors.

    Removed units are silenced by zeros in the columns that read them, which gives what the cut
    layers will give.
    """
    import torch

    from prunecli.model.stream import LayerStream, put
    from prunecli.pruning.stats import _hooks

    arch = dense.arch
    assert calibration.windows is not None
    stream = LayerStream(dense, run.compute, run.report, keeper)
    required = method.needed(bool(options["compat"]))
    specs = {
        f"{axis}.{i}": Spec("F64", (arch.size(axis, i),))
        for axis in ("kv_heads", "ffn")
        for i in arch.ranked(axis)
    }
    scores = keeper.remembered("scores", specs)
    for i, layer, statistics in _hooks.layerwise(stream, calibration.windows.ids, required):
        on_cpu = {name: value.cpu() for name, value in statistics.items()}
        of_layer = score_layer(method, dense, i, on_cpu, options)
        scores |= {f"{axis}.{i}": values.double() for axis, values in of_layer.items()}
        kept = {
            point: (
                best(of_layer[axis], getattr(sizes, axis) * arch.times(axis, i)),
                arch.size(axis, i),
            )
            for point, axis in (("o", "kv_heads"), ("down", "ffn"))
            if axis in of_layer
        }
        for point, (units, total) in kept.items():
            linear = layer.get_submodule(arch.module(point))
            weight: torch.Tensor = linear.weight.detach()  # type: ignore[operator]
            columns = weight.view(len(weight), total, -1)  # [D, units, channels of a unit]
            removed = torch.ones(total, dtype=torch.bool, device=weight.device)
            removed[list(units)] = False
            silenced = columns.masked_fill(removed[:, None], 0).view_as(weight)
            put(linear, silenced, run.compute)
    keeper.check_whole(scores, specs)
    return scores


def at_point(statistics: Tensors, point: str) -> "dict[str, torch.Tensor]":
    """Return the statistics of one point, by their own names."""
    start = point + "."
    return {name[len(start) :]: statistics[name] for name in statistics if name.startswith(start)}


def _check(request: ScoreRequest, method: Method) -> dict[str, Any]:
    """Return all options of the method; raise UsageError for what has no scores of its own."""
    name = method.name
    if method.unit == "weights":
        raise UsageError(f"'{name}' scores weights inside prune", "use `prunecli prune`")
    if method.trains_masks:
        raise UsageError(f"'{name}' trains its masks inside prune", "use `prunecli prune`")
    if method.sequential and request.stats is None:
        raise UsageError(
            f"'{name}' is sequential: prune scores each layer on pruned predecessors",
            "use `prunecli prune`, or --stats for the one-shot variant, on dense activations",
        )
    options = method.resolve(request.options)
    for option in method.options:
        value = request.options.get(option.name, option.default)
        if option.stage != "score" and value != option.default:
            raise UsageError(
                f"{option.flag} {value} does not affect scores", "remove it, and give it to prune"
            )
    return options


def _calibration(
    request: ScoreRequest, method: Method, dense: Checkpoint, digest: str, run: RunContext
) -> Calibration:
    """Return what is scored: a file of statistics, windows, or nothing where none is read."""
    if request.stats is not None:
        return open_statistics(request.stats, dense, digest, method, request.compat)
    if not method.needs:
        return Calibration([], tensors={})
    return read_windows(dense, request.data, run.report)
