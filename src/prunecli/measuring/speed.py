"""The library verb `speed`: what models cost and how fast they are, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from prunecli.errors import InputError, UsageError, suggest
from prunecli.files import output
from prunecli.files.artefact import Artefact
from prunecli.files.claim import exclusive
from prunecli.files.sidecar import Computed, SidecarBuilder
from prunecli.measuring.costs import (
    CPU_TOKENS,
    QUANTITIES,
    SizedModel,
    count_costs,
    density_of,
)
from prunecli.model.arch import FLOPS_TOKENS
from prunecli.model.checkpoint import home
from prunecli.model.device import check_device, settled
from prunecli.record import Record
from prunecli.settings import Result, RunContext, Timing


@dataclass(frozen=True)
class SpeedRequest(Record):
    """What to count of a model, and to time unless `flops_only`; beside `base` if there is one.

    `sparsity` (N:M or a fraction of zeros) is that of the block linears, by default the sidecar's.
    `official` counts a sparse model as the paper prints it: every multiplication times the density.
    `seq_len` is in tokens, by default 2048 to count and at most 512 to time.
    """

    model: str
    base: str | None = None
    timing: Timing = field(default_factory=Timing)
    seq_len: int | None = None
    sparsity: str | None = None
    flops_only: bool = False
    official: bool = False


@exclusive
def speed(request: SpeedRequest, run: RunContext = RunContext()) -> Result:
    """Count and time one model, beside a base if asked; with an OUT, write the sidecar there.

    Results: `params` and `params_by_group`, `flops` of one forward over `flops_tokens` tokens and
    `flops_train` of a training step, `kv_bytes_per_token`; unless `flops_only` (which needs no
    weights) also `measured`: seconds and tokens per second of each quantity, median and spread over
    the rounds, `peak_bytes`, and with a base the `speedup`.
    Raises InputError, UsageError or OutputExists before anything is loaded.
    """
    if not request.flops_only:
        check_device(run.compute)
    builder = SidecarBuilder("speed", run.output.argv)
    _check(request)
    # the last is the model, the one before it its base
    paths = [request.base] if request.base else []
    paths.append(request.model)
    if run.output.path:
        output.check_path(run.output.path, run.output, [*map(home, paths)])
    models = [SizedModel.open(path, request.flops_only) for path in paths]
    length = None if request.flops_only else _timed_length(models, request.seq_len)
    results = _counts(request, models)
    roles = ("base", "model")[-len(models) :]
    inputs = [one.as_input(role, run.report) for one, role in zip(models, roles, strict=True)]
    if models[-1].checkpoint is not None and not request.flops_only:
        # base and model in one type, that of the model
        run = replace(run, compute=settled(run.compute, models[-1].checkpoint))
    options = _options(request, run)
    artefact = Artefact(
        builder,
        "speed",
        options,
        inputs[::-1],
        run,
        parent=models[-1].record,
        computed=Computed("none", options.get("dtype")),
        label=request.model,
    )
    if done := artefact.settled(results):
        return done
    if length is not None:
        from prunecli.measuring import timing

        measured = timing.measure(models, length, request.timing, run.compute, run.report)
        artefact = replace(artefact, computed=Computed(measured.pop("device"), options["dtype"]))
        results["measured"] = measured
    return artefact.write_json({}, results)


def _check(request: SpeedRequest) -> None:
    for name in request.timing.quantities:
        if name not in QUANTITIES:
            raise UsageError(f"unknown quantity '{name}'{suggest(name, list(QUANTITIES))}")
    if not request.timing.quantities and not request.flops_only:
        raise UsageError("nothing to time", f"--measure takes {', '.join(QUANTITIES)}")


def _timed_length(models: Sequence[SizedModel], seq_len: int | None) -> int:
    """Return how many tokens to time: those asked for, or what every model has positions for."""
    positions = min(one.arch.max_positions for one in models)
    if seq_len is None:
        return min(CPU_TOKENS, positions)
    if seq_len > positions:
        raise InputError(
            f"--seq-len {seq_len} is too long: a model here has {positions} positions",
            "lower it, or count only: --flops-only",
        )
    return seq_len


def _counts(request: SpeedRequest, models: Sequence[SizedModel]) -> dict[str, Any]:
    """Return what is counted of the model, and beside it of the base."""
    model, length = models[-1], request.seq_len or FLOPS_TOKENS
    density = model.density() if request.sparsity is None else density_of(request.sparsity)
    counts = count_costs(model.arch, density, length, request.official)
    if request.base is not None:
        base = models[0]
        counts["base"] = count_costs(base.arch, base.density(), length, request.official)
        counts["flops_ratio"] = counts["base"]["flops"] / counts["flops"]
    return counts


def _options(request: SpeedRequest, run: RunContext) -> dict[str, Any]:
    """Return what the id depends on beside the inputs."""
    options: dict[str, Any] = {
        "seq_len": request.seq_len or FLOPS_TOKENS,
        "sparsity": request.sparsity,
        "official": request.official,
    }
    if request.flops_only:
        return options
    from prunecli.measuring import timing

    return {
        **options,
        **vars(request.timing),
        "quantities": list(request.timing.quantities),
        "device": timing.name_of(run.compute),
        "threads": timing.threads(run.compute),
        "dtype": run.compute.dtype,
    }
