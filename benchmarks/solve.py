#!/usr/bin/env python3
"""SparseGPT's solve of one matrix, ours and a reference loop in turns, as Markdown.

    OMP_NUM_THREADS=1 python benchmarks/solve.py [INPUTS...]

REFERENCE LOOP: the published algorithm as prunecli had it before, with the inverse U of a
triangular factor as a whole and one update of rank one of a block for each column. On 512 rows,
float32, at ratio 0.5. `CPU seconds` are medians of alternating rounds, the ratio that of rounds
side by side (least, greatest); `memory` is the peak beside the weights in matrices of INPUTS^2, the
Gram matrix included; `mask` the share of bits equal to those of the reference loop in float64.
"""

import subprocess
import sys
from pathlib import Path
from statistics import median
from time import process_time

import torch

from prunecli.methods import sparsegpt
from prunecli.methods._masks import drop_mask
from prunecli.model import memory
from prunecli.model.pattern import SparsityPattern

OUTPUTS, ROUNDS, HALF = 512, 5, SparsityPattern(0.5)
OPTIONS = {"block_size": 128, "damping": 0.01, "compat": False}


def reference(gram: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the pruned weight [O, I] of the reference loop, in the type of its inputs."""
    gram, weight, size = gram.clone(), weight.clone(), OPTIONS["block_size"]
    damping = OPTIONS["damping"] * gram.diagonal().mean()
    damped = gram + torch.diag(damping.expand(len(gram)))
    upper = torch.linalg.cholesky(damped.flip(0, 1)).flip(0, 1)
    identity = torch.eye(len(upper), dtype=upper.dtype)
    U = torch.linalg.solve_triangular(upper, identity, upper=True)
    for start in range(0, len(U), size):
        stop = min(start + size, len(U))
        block, U_block = weight[:, start:stop], U[start:stop, start:stop]
        drop = drop_mask((block / U_block.diagonal()).square(), HALF, "matrix")
        error = block.new_empty(stop - start, len(block))
        for j in range(stop - start):
            error[j] = block[:, j].masked_fill(~drop[:, j], 0) / U_block[j, j]
            block[:, j:].addr_(error[j], U_block[j, j:], alpha=-1)
            block[:, j].masked_fill_(drop[:, j], 0)
        weight[:, stop:].addmm_(error.T, U[start:stop, stop:], alpha=-1)
    return weight


def ours(gram: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the pruned weight [O, I] of prunecli."""
    return sparsegpt.sparsify(weight, sparsegpt.prepare({"gram": gram}, OPTIONS), HALF, OPTIONS)


def problem(inputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a Gram matrix of correlated inputs, as many tokens as inputs, and weights [O, I]."""
    draw = torch.Generator().manual_seed(inputs)
    mixed = torch.randn(inputs, inputs, generator=draw) / inputs**0.5
    X = torch.randn(inputs, inputs, generator=draw) @ mixed
    return X.T @ X, torch.randn(OUTPUTS, inputs, generator=draw)


def seconds(solve, gram: torch.Tensor, weight: torch.Tensor) -> float:
    """Return CPU seconds of one solve."""
    began = process_time()
    solve(gram, weight)
    return process_time() - began


def peak(solve: str, inputs: int) -> float:
    """Return what one solve holds at most beside the Gram matrix, in bytes."""
    # what the libraries take at first is none of it
    SOLVES[solve](*problem(256))
    gram, weight = problem(inputs)
    memory.heap().give_back()  # else a solve takes what was freed, and is not seen to
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmHWM")
    SOLVES[solve](gram, weight)
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """Return a figure of this process's memory in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(field))
    return int(line.split()[1]) * 1024


def peak_apart(solve: str, inputs: int) -> float:
    """Return the peak of one solve, Gram matrix included, in matrices of INPUTS^2."""
    line = [sys.executable, __file__, "peak", solve, str(inputs)]
    found = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout
    return 1 + float(found) / (4 * inputs**2)


SOLVES = {"reference": reference, "ours": ours}


def main(sizes: list[int]) -> None:
    """Print a row per size."""
    print("| inputs | solve | CPU seconds | ratio | memory | mask |")
    print("|---|---|---|---|---|---|")
    for inputs in sizes:
        gram, weight = problem(inputs)
        expected = reference(gram.double(), weight.double()) == 0
        rounds = []
        for number in range(ROUNDS + 1):
            order = list(SOLVES)[:: -1 if number % 2 else 1]
            took = {name: seconds(SOLVES[name], gram, weight) for name in order}
            # the first one warms up
            rounds += [took] if number else []
        ratios = [took["ours"] / took["reference"] for took in rounds]
        told = {
            "reference": "1",
            "ours": f"{median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
        }
        for name, solve in SOLVES.items():
            same = ((solve(gram, weight) == 0) == expected).double().mean()
            print(
                f"| {inputs} | {name} | {median(took[name] for took in rounds):.3f} | {told[name]} "
                f"| {peak_apart(name, inputs):.2f} | {100 * same:.4f} % |",
                flush=True,
            )


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["peak"]:
        print(peak(sys.argv[2], int(sys.argv[3])))
    else:
        main([int(inputs) for inputs in sys.argv[1:]] or [1024, 2048, 4096])
