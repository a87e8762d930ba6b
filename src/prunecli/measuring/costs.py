"""What a model costs, counted: parameters, FLOPs, bytes of its cache."""

import json
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from prunecli.errors import InputError, UsageError
from prunecli.files import sidecar
from prunecli.files.sidecar import Input, Sidecar
from prunecli.model.arch import Arch
from prunecli.model.checkpoint import Checkpoint
from prunecli.model.sparsity import claimed
from prunecli.report import Report

QUANTITIES = ("prefill", "decode", "train")
CPU_TOKENS = 512
KV_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


class _Results(sidecar.Part):
    nonzero: int | None = None


@dataclass(frozen=True)
class SizedModel:
    """What is known of a model without its weights; `checkpoint` is None if it has none."""

    path: str
    arch: Arch
    record: Sidecar | None
    checkpoint: Checkpoint | None

    @classmethod
    def open(cls, path: str, counted: bool = False) -> "SizedModel":
        """Open a folder; raise InputError if it is none, or has no weights and is not `counted`.

        `counted` means that the weights are not needed.
        """
        if counted and not path.startswith("hf:"):
            return cls(path, Arch.read(path), sidecar.read_if_any(path), None)
        checkpoint = Checkpoint(path)
        return cls(path, checkpoint.arch, checkpoint.sidecar, checkpoint)

    @property
    def pattern(self) -> str | None:
        """The sparsity that its sidecar records, as in `--sparsity`; None for a dense model."""
        return claimed(self.record.results) if self.record else None

    def density(self) -> float:
        """Return the share of block-linear weights that are not zero, by its sidecar.

        Raises InputError where it records what cannot be.
        """
        results = self.record.results if self.record else {}
        nonzero = sidecar.part(self.path, results, _Results).nonzero
        zeros = 0 if nonzero is None else self.arch.total_params - nonzero
        if not 0 <= zeros <= self.arch.block_params:
            raise InputError(
                f"the sidecar of '{self.path}' records {nonzero} non-zero weights of "
                f"{self.arch.total_params}",
                "make it again",
            )
        return 1 - zeros / self.arch.block_params

    def as_input(self, role: str, report: Report) -> Input:
        """Return the model as an input: by its weights, or where only counted by its config."""
        if self.checkpoint is not None:
            return self.checkpoint.as_input(self.checkpoint.digest(report), role)
        text = json.dumps(self.arch.config, sort_keys=True)
        digest = sha256(text.encode()).hexdigest()
        return Input(role=role, id=self.record.id if self.record else None, digest=digest)


def count_costs(arch: Arch, density: float, length: int, official: bool = False) -> dict[str, Any]:
    """Return parameters, FLOPs of `length` tokens and bytes of cache per token of an architecture.

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
        **arch.active_counts(),
    }


def density_of(sparsity: str) -> float:
    """Return the share of weights that a pattern N:M or a fraction of zeros leaves."""
    kept, colon, of = sparsity.partition(":")
    try:
        density = int(kept) / int(of) if colon else 1 - float(sparsity)
    except (ValueError, ZeroDivisionError):
        density = -1.0
    if not 0 < density <= 1:
        raise UsageError(f"--sparsity '{sparsity}': expected N:M or a fraction of zeros in [0,1)")
    return density
