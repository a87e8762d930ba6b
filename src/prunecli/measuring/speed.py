"""The library verb `speed`: how fast models are, side by side."""

from collections.abc import Sequence
from typing import Any

from prunecli.errors import InputError, UsageError, suggest
from prunecli.files import output as place
from prunecli.files import sidecar
from prunecli.files.sidecar import SidecarBuilder
from prunecli.measuring.costs import CPU_TOKENS, QUANTITIES, Model, _density, counted
from prunecli.model.arch import FLOPS_TOKENS
from prunecli.model.device import check_device, settled
from prunecli.report import SILENT, Report
from prunecli.settings import Compute, Output, Result, Timing


def speed(
    model: str,
    *,
    base: str | None = None,
    timing: Timing | None = None,
    seq_len: int | None = None,
    sparsity: str | None = None,
    flops_only: bool = False,
    official: bool = False,
    out: str | None = None,
    compute: Compute | None = None,
    output: Output | None = None,
    report: Report = SILENT,
) -> Result:
    """Count and measure one model, beside `base` if given; with `out`, write the sidecar there.

    Results: `params` and `params_by_group`, `flops` of one forward over `flops_tokens` tokens and
    `flops_train` of a training step, `kv_bytes_per_token`; unless `flops_only` (which needs no
    weights) also `measured`: seconds and tokens per second of each quantity, median and spread over
    the rounds, `peak_bytes`, and with a base the `speedup`.
    `sparsity` counts the block linears as that sparse; without it the sidecar tells. `official`
    counts a sparse model as the paper prints it: every multiplication times the density.
    Raises InputError or UsageError before anything is loaded.
    """
    compute, output, timing = compute or Compute(), output or Output(), timing or Timing()
    if not flops_only:
        check_device(compute)
    recorder = SidecarBuilder("speed", output.argv)
    for name in timing.quantities:
        if name not in QUANTITIES:
            raise UsageError(f"unknown quantity '{name}'{suggest(name, list(QUANTITIES))}")
    if not timing.quantities and not flops_only:
        raise UsageError("nothing to time", f"--measure takes {', '.join(QUANTITIES)}")
    found = [Model.open(path, flops_only) for path in ([base] if base else []) + [model]]
    if out is not None:
        place.check_place(out, output, [one.folder for one in found])
    length = seq_len or FLOPS_TOKENS
    timed = _timed_length(found, seq_len)
    density = found[-1].density() if sparsity is None else _density(sparsity)
    results = counted(found[-1].arch, density, length, official)
    if base is not None:
        theirs = counted(found[0].arch, found[0].density(), length, official)
        results["base"] = theirs
        results["flops_ratio"] = theirs["flops"] / results["flops"]
    roles = ["base"] * bool(base) + ["model"]
    inputs = [one.as_input(role, report) for one, role in zip(found, roles, strict=True)][::-1]
    options: dict[str, Any] = {"seq_len": length, "sparsity": sparsity, "official": official}
    if not flops_only:
        options |= {**timing.__dict__, "quantities": list(timing.quantities)}
        from prunecli.measuring import timing as clock

        timed_on = found[-1].checkpoint
        assert timed_on is not None, "only counts need no weights"
        # base and model in one type, that of the model
        compute = settled(compute, timed_on)
        options |= {"device": clock.name_of(compute), "threads": clock.threads(compute)}
        options["dtype"] = compute.dtype
    key = sidecar.key("speed", options, inputs)
    if out is not None and (same := place.same_already(out, output, key)):
        return Result(model, same.sidecar, same.results)
    if output.dry_run:
        return Result(model, results=results)
    device = "none"
    if not flops_only:
        measured = clock.measure(found, timed, timing, compute, report)
        device = measured.pop("device")
        results["measured"] = measured
    record = recorder.sidecar(
        "speed",
        options,
        inputs,
        outputs={},
        results=results,
        parent=found[-1].record,
        device=device,
        dtype=options.get("dtype"),
    )
    if out is not None:
        place.write_json(out, record.text())
    return Result(model, record.dump(), results)


def _timed_length(found: Sequence[Model], seq_len: int | None) -> int:
    """Return how many tokens to time: those asked for, or what every model has positions for."""
    least = min(one.arch.max_positions for one in found)
    if seq_len is None:
        return min(CPU_TOKENS, least)
    timed = [one for one in found if one.checkpoint is not None]
    if timed and seq_len > least:
        raise InputError(
            f"--seq-len {seq_len} is too long: a model here has {least} positions",
            "lower it, or count only: --flops-only",
        )
    return seq_len
