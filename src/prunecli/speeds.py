"""The library verb `speed`: what a model costs, counted from its shape and measured on a device.

Counts need only a config.json (arch.py); times are those of stock transformers, always taken beside
a base in the same process (clock.py), so that a speedup is a ratio from one run.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from prunecli.arch import Arch
from prunecli.errors import InputError, UsageError, suggest
from prunecli.io import output as place
from prunecli.io import sidecar
from prunecli.io.checkpoint import Checkpoint
from prunecli.io.sidecar import Input, Recorder, Sidecar
from prunecli.pipeline import check_device, settled
from prunecli.report import SILENT, Report
from prunecli.settings import Compute, Made, Output, Timing
from prunecli.sparsity import claimed
from prunecli.writing import FLOPS_TOKENS

QUANTITIES = ("prefill", "decode", "train")
CPU_TOKENS = 512
KV_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Model:
    """What is known of a model without its weights; `checkpoint` is None if it has none."""

    path: str
    arch: Arch
    record: Sidecar | None
    checkpoint: Checkpoint | None

    @classmethod
    def open(cls, path: str, counted: bool) -> "Model":
        """Open a folder; raise InputError if it is none, or has no weights and is not `counted`."""
        if counted and not path.startswith("hf:"):
            return cls(path, Arch.read(path), sidecar.read_if_any(path), None)
        checkpoint = Checkpoint(path)
        return cls(path, checkpoint.arch, checkpoint.sidecar, checkpoint)

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.checkpoint.folder if self.checkpoint else Path(self.path)

    @property
    def pattern(self) -> str | None:
        """The sparsity that its sidecar claims, as in `--sparsity`; None for a dense model."""
        return claimed(self.record.results) if self.record else None

    def density(self) -> float:
        """Return the share of block-linear weights that are not zero, by its sidecar."""
        nonzero = self.record.results.get("nonzero") if self.record else None
        if nonzero is None:
            return 1.0
        return 1 - (self.arch.total_params - int(nonzero)) / self.arch.block_params

    def as_input(self, role: str, report: Report) -> Input:
        """Return the model as an input: by its weights, or where only counted by its config."""
        if self.checkpoint is not None:
            found = self.checkpoint.as_input(self.checkpoint.digest(report))
            return found.model_copy(update={"role": role})
        text = json.dumps(self.arch.config, sort_keys=True)
        digest = sha256(text.encode()).hexdigest()
        return Input(role=role, id=self.record.id if self.record else None, digest=digest)


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
) -> Made:
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
    recorder = Recorder("speed", output.argv)
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
        from prunecli import clock

        timed_on = found[-1].checkpoint
        assert timed_on is not None, "only counts need no weights"
        # base and model in one type, that of the model
        compute = settled(compute, timed_on)
        options |= {"device": clock.name_of(compute), "threads": clock.threads(compute)}
        options["dtype"] = compute.dtype
    key = sidecar.key("speed", options, inputs)
    if out is not None and (same := place.same_already(out, output, key)):
        return Made(model, same.sidecar, same.results)
    if output.dry_run:
        return Made(model, results=results)
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
    return Made(model, record.dump(), results)


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


def counted(arch: Arch, density: float, length: int, official: bool = False) -> dict[str, Any]:
    """Return parameters, FLOPs of `length` tokens and bytes of cache per token of a shape.

    `density` is the share of block-linear weights that are not zero.
    """
    zeros = round((1 - density) * arch.block_params)
    flops = arch.flops(length, density)
    if official:
        # Table 9's sparse rows halve attention and output head as well
        flops = round(density * arch.flops(length))
    dtype = str(arch.config.get("dtype") or arch.config.get("torch_dtype") or "float32")
    return {
        "params": arch.total_params,
        "nonzero": arch.total_params - zeros,
        "params_by_group": arch.params(),
        "sizes": arch.sizes,
        "density": density,
        "flops": flops,
        # the backward pass multiplies once for the inputs and once for the weights
        "flops_train": 3 * flops,
        "flops_tokens": length,
        "kv_bytes_per_token": arch.kv_bytes_per_token(KV_BYTES.get(dtype, 4)),
    }


def _density(sparsity: str) -> float:
    """Return the share of weights that a pattern N:M or a fraction of zeros leaves."""
    kept, colon, of = sparsity.partition(":")
    try:
        density = int(kept) / int(of) if colon else 1 - float(sparsity)
    except (ValueError, ZeroDivisionError):
        density = -1.0
    if not 0 < density <= 1:
        raise UsageError(f"--sparsity '{sparsity}': expected N:M or a fraction of zeros in [0,1)")
    return density
