"""The library verb `score`: from statistics to importances."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from prunecli.errors import UsageError
from prunecli.files.artefact import write_tensor_file as _write
from prunecli.files.sidecar import SidecarBuilder
from prunecli.files.tensorfile import (
    Tensors,
)
from prunecli.methods import registry
from prunecli.methods._base import LayerView, Method, Setting
from prunecli.model import memory
from prunecli.model.checkpoint import Checkpoint
from prunecli.model.device import check_device, settled
from prunecli.pruning.calibrate import collect, merged, skipped
from prunecli.pruning.calibration import Calibration, check_file, open_stats, read_tokens
from prunecli.report import SILENT, Report
from prunecli.settings import Amount, Compute, Data, Output, Result

if TYPE_CHECKING:
    import torch


def write_scores(
    out: str,
    checkpoint: Checkpoint,
    digest: str,
    method: Method,
    source: Calibration,
    stats: Callable[[], Tensors],
    *,
    skip: int | None,
    options: dict[str, Any],
    compute: Compute,
    output: Output,
) -> Result:
    """Score a model by its statistics, into a file; they are asked for if it is not there yet.

    What statistics depend on is recorded where they come from tokens; a file of them says so
    itself.
    """
    of_tokens = {"skip": skip, "dtype": compute.dtype} if source.found is not None else {}
    return _write(
        out,
        lambda: iter([scores_of(method, checkpoint, stats(), options)]),
        SidecarBuilder("score", output.argv),
        output,
        kind="scores",
        options={"method": method.name, "options": options, **of_tokens},
        inputs=[checkpoint.as_input(digest), *source.inputs],
        calibration=source.calibration,
        compute=compute,
    )


def score(
    model: str,
    out: str,
    *,
    method: str,
    options: Mapping[str, Any] | None = None,
    data: Data | None = None,
    amount: Amount | None = None,
    stats: str | None = None,
    compat: bool = False,
    compute: Compute | None = None,
    output: Output | None = None,
    report: Report = SILENT,
) -> Result:
    """Turn statistics into importances, higher = keep, one vector per axis and layer.

    Without `stats` they are collected from D first. Raises UsageError for methods that score
    inside `prune`, InputError for unusable files, OutputExists.
    """
    compute, output, amount = compute or Compute(), output or Output(), amount or Amount()
    check_device(compute)
    chosen = registry.get(method)
    if chosen.unit == "weights":
        raise UsageError(f"'{method}' scores weights inside prune", "use `prunecli prune`")
    if chosen.learned:
        raise UsageError(f"'{method}' learns what stays inside prune", "use `prunecli prune`")
    if chosen.sequential and stats is None:
        raise UsageError(
            f"'{method}' is sequential: prune scores each layer on pruned predecessors",
            "use `prunecli prune`, or --stats for the knowing one-pass variant",
        )
    resolved = chosen.resolve(options or {})
    _refuse_later(chosen, options or {})
    settings = score_options(chosen, resolved, compat)
    checkpoint = Checkpoint(model, report)
    chosen.refuse_idle(options or {}, Setting(resolved, compat, group=checkpoint.arch.group))
    check_file(out, output, checkpoint)
    if stats is not None and amount != Amount():
        raise UsageError("with --stats the amount is known already", "leave it out")
    skip = None if stats is not None else skipped([chosen], amount, checkpoint)
    compute = settled(compute, checkpoint)
    digest = checkpoint.digest(report)
    if stats is not None:
        source = open_stats(stats, checkpoint, digest, chosen, compat)
    elif not chosen.needs:
        source = Calibration([], tensors={})
    else:
        source = read_tokens(checkpoint, data or Data(), report)

    def tensors() -> Tensors:
        if source.tensors is not None:
            return source.tensors
        assert source.found is not None
        needs = chosen.needed(compat)
        return merged(collect(checkpoint, source.found, needs, skip, compute, report))

    return write_scores(
        out, checkpoint, digest, chosen, source, tensors,
        skip=skip, options=settings, compute=compute, output=output,
    )  # fmt: skip


def _refuse_later(method: Method, given: Mapping[str, Any]) -> None:
    """Raise UsageError for options that scores do not depend on."""
    for option in method.options:
        value = given.get(option.name, option.default)
        if option.stage != "score" and value != option.default:
            raise UsageError(
                f"{option.flag} {value} has no part in scores", "leave it out, and give it to prune"
            )


def score_options(method: Method, options: dict[str, Any], compat: bool) -> dict[str, Any]:
    """Return the options that a score depends on."""
    used = {o.name: options[o.name] for o in method.options if o.stage == "score"}
    return {**used, "compat": compat}


def scores_of(
    method: Method, checkpoint: Checkpoint, stats: Tensors, options: Mapping[str, Any]
) -> "dict[str, torch.Tensor]":
    """Return the scores of a whole model, with the means that its compensation needs."""
    arch = checkpoint.arch
    if method.score_layers is not None:
        by_layer = {
            f"{need.name}.{i}": stats[f"{arch.point(i, point)}.{need.name}"]
            for need in method.needs
            for point in need.points
            if point != "model"
            for i in range(arch.layers)
        }
        # a file may hold what other methods read too
        wanted = tuple(need.name for need in method.needs if need.points == ("model",))
        whole = {name: stats[name] for name in stats if wanted and name.startswith(wanted)}
        found: dict[str, torch.Tensor] = method.score_layers({**by_layer, **whole}, options)
        return found
    scores: dict[str, torch.Tensor] = {}
    for i in range(arch.layers):
        memory.release()
        for axis, values in layer_scores(method, checkpoint, i, stats, options).items():
            if axis == "hidden":
                scores[axis] = scores[axis] + values if axis in scores else values
            else:
                scores[f"{axis}.{i}"] = values
        if method.compensates:
            for point in ("o", "down"):
                name = f"{arch.point(i, point)}.mean"
                scores[name] = stats[name]
    return scores


def layer_scores(
    method: Method, checkpoint: Checkpoint, i: int, stats: Tensors, options: Mapping[str, Any]
) -> "dict[str, torch.Tensor]":
    """Return the scores of the units of layer `i`."""
    arch = checkpoint.arch
    view = LayerView(
        weights={
            point: checkpoint.tensor(f"model.layers.{i}.{arch.module(point)}.weight")
            for point in ("o", "down")
        },
        stats={
            f"{point}.{name}": tensor
            for point in ("q", "o", "gate", "down", "block")
            for name, tensor in at_point(stats, arch.point(i, point)).items()
        },
        kv_heads=arch.kv_heads,
    )
    assert method.score is not None
    scores: dict[str, torch.Tensor] = method.score(view, options)
    return scores


def at_point(stats: Tensors, point: str) -> "dict[str, torch.Tensor]":
    """Return the statistics of one point, by their own names."""
    start = point + "."
    return {name[len(start) :]: stats[name] for name in stats if name.startswith(start)}
