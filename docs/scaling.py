#!/usr/bin/env python3
"""The page on cost and memory at scale, from the library's own functions: `make docs` writes it."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from prunecli.files.tensorfile import Spec
from prunecli.methods import registry
from prunecli.model import memory
from prunecli.model.arch import Arch
from prunecli.model.checkpoint import Reader
from prunecli.pruning.calibrate import (
    memory_need,
    required_statistics,
    statistics_bytes,
)
from prunecli.pruning.calibration import Calibration
from prunecli.settings import BATCH_TOKENS, Compute, RunContext

WINDOWS, LENGTH = 128, 2048
RATIO = 0.25  # of the layers, for methods that must know how many go
TOKENS, TRAINED = 50_000_000_000, 4096  # of retraining, and per window there
RANKS = 8
CPU, GPU, DISK = 1e12, 4e14, 2e9  # FLOP/s, FLOP/s, bytes/s
HALF = 0.6  # of a product, where only one half of a symmetric matrix is computed (docs/cost.md)
# hidden, layers, heads, KV heads, FFN, tied: of Llama 3.2 1B and Llama 3.1 8B, 70B, 405B
PARENTS = {
    "1B": (2048, 16, 32, 8, 8192, True),
    "8B": (4096, 32, 32, 8, 14336, False),
    "70B": (8192, 80, 64, 8, 28672, False),
    "405B": (16384, 126, 128, 8, 53248, False),
}


class Described(Reader):
    """A checkpoint in bfloat16 of which only the shape is known."""

    def __init__(self, sizes: tuple[int, int, int, int, int, bool]) -> None:
        hidden, layers, heads, kv_heads, ffn, tied = sizes
        self.arch = Arch({
            "model_type": "llama", "hidden_size": hidden, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": kv_heads,
            "intermediate_size": ffn, "vocab_size": 128256, "tie_word_embeddings": tied,
            "max_position_embeddings": 131072, "dtype": "bfloat16",
        })  # fmt: skip
        self.specs = {
            name: Spec("BF16", tensor.shape) for name, tensor in self.arch.tensors().items()
        }

    def tensor(self, name: str) -> torch.Tensor:
        """Return nothing: there are no weights."""
        raise NotImplementedError(name)


class Cost(NamedTuple):
    """What one run takes: FLOPs, bytes of weights that are read, and bytes held at its peak."""

    flops: float
    read: float
    held: int
    on_disk: int


PARENT = {name: Described(sizes) for name, sizes in PARENTS.items()}


def of_method(name: str, dense: Any) -> Cost:
    """Return the cost of `prune` by a method on WINDOWS x LENGTH tokens."""
    method, arch = registry.get(name), dense.arch
    required = required_statistics([method], False)
    if not required:
        return Cost(0, dense.num_bytes, 0, 0)
    removed = round(RATIO * arch.layers)
    ids = torch.empty(WINDOWS, LENGTH, dtype=torch.int32, device="meta")
    windows: Any = SimpleNamespace(ids=ids)
    calibration = Calibration([], ids.numel(), windows=windows)

    def need(buffer: str) -> memory.MemoryNeed:
        run = RunContext(compute=Compute("cpu", "float32", buffer))
        return memory_need(dense, calibration, required, run, removed, method.sequential)

    flops, walks = need("ram").flops, 2 if "gradients" in need("ram").device else 1
    if (streams := need("ram").device.get("streams")) is not None:
        # layers are loaded once for as many rows as are tried together, in each round
        of_all = (arch.layers + 1) * ids.numel() * arch.hidden * 4
        rounds = removed if any(one.name == "greedy_skip" for one in required) else 1
        walks = rounds * -(-of_all // streams)
    if any(one.name == "gram" for one in required):
        width_squares = statistics_bytes(required, arch, 0) // 4
        flops += 2 * HALF * ids.numel() * width_squares * arch.layers
    return Cost(flops, dense.num_bytes * (1 + walks), need("ram").total, need("disk").total)


def bottleneck(cost: Cost, rate: float) -> str:
    """Return what takes longer: computing, or reading the weights."""
    return "reading" if cost.read / DISK > cost.flops / rate else "computing"


def hours(seconds: float) -> str:
    """Return a time in words."""
    for size, unit in ((365.25 * 86400, "years"), (86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.2g} s"


def gigabytes(size: float) -> str:
    """Return a number of bytes in GB."""
    return f"{size / 1e9:.2g}" if size < 1e11 else f"{size / 1e9:.0f}"


def table(head: list[str], rows: list[list[str]]) -> Iterator[str]:
    """Yield the lines of a table."""
    yield from (f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def pruning() -> Iterator[str]:
    """Yield the tables of `prune`, one for each parent."""
    methods = [registry.get(name) for name in registry.names()]
    # the parents have no experts
    names = [one.name for one in methods if not one.trains_masks and "experts" not in one.axes]
    for parent, dense in PARENT.items():
        yield f"\n### {parent}: {dense.arch.total_params / 1e9:.2f}B parameters, " + (
            f"{gigabytes(dense.num_bytes)} GB in bfloat16"
        )
        rows = []
        for name in names:
            cost = of_method(name, dense)
            rows.append([
                f"`{name}`", f"{cost.flops:.1e}" if cost.flops else "0",
                hours(max(cost.flops / CPU, cost.read / DISK)), bottleneck(cost, CPU),
                hours(max(cost.flops / GPU, cost.read / DISK)), bottleneck(cost, GPU),
                gigabytes(cost.held), gigabytes(cost.on_disk),
            ])  # fmt: skip
        head = ["method", "FLOPs", "CPU", "bottleneck", "GPU", "bottleneck", "GB", "GB, on disk"]
        yield from table(head, rows)


def training() -> Iterator[str]:
    """Yield the table of `train`."""
    rows = []
    for parent, dense in PARENT.items():
        arch = dense.arch
        flops = memory.training_flops(arch, TOKENS, TRAINED)
        states = memory.STATE_BYTES * arch.total_params
        held = memory.activations(arch, TRAINED, 2, recompute=True)
        rows.append([
            parent, f"{flops:.1e}", hours(flops / GPU), hours(flops / GPU / RANKS),
            gigabytes(states), gigabytes(states / RANKS), gigabytes(held),
        ])  # fmt: skip
    head = ["parent", "FLOPs", "one GPU", "8 GPUs", "states, GB", "a rank of 8", "activations"]
    yield from table(head, rows)


def others() -> Iterator[str]:
    """Yield the table of the commands that pass over a model once, or not at all."""
    rows = []
    for parent, dense in PARENT.items():
        arch, size = dense.arch, dense.num_bytes
        walk = memory.of_walk(dense, Compute("cpu", "float32"), WINDOWS, LENGTH)
        rows.append([
            parent, f"{walk.flops:.1e}", hours(walk.flops / CPU), hours(walk.flops / GPU),
            hours(size / DISK), gigabytes(walk.total),
            gigabytes(arch.kv_bytes_per_token(2) * LENGTH),
        ])  # fmt: skip
    head = ["parent", "FLOPs", "CPU", "GPU", "reading or writing once", "GB", "KV cache, GB"]
    yield from table(head, rows)


def page() -> str:
    """Return docs/scaling.md."""
    lines = [
        "# Cost at scale",
        "`docs/scaling.py` writes this page from the functions by which prunecli estimates its own "
        "runs.",
        "Nothing here was measured. [cost](cost.md) compares such estimates with peaks that were, "
        "and the",
        "times of small runs. Parents have the shapes of Llama 3.2 1B and Llama 3.1 8B, 70B and "
        "405B.",
        "",
        f"Times are FLOPs divided by {CPU / 1e12:g} TFLOP/s (float32, a server's CPU) or "
        f"{GPU / 1e12:g} TFLOP/s (bfloat16, a",
        f"GPU), or the bytes of weights divided by {DISK / 1e9:g} GB/s where that takes longer; "
        "the column beside names",
        "which. So they are lower bounds: real runs reach a part of such rates. Weights that are "
        "in the",
        "system's cache are read faster. Left out are solves, comparisons, and the logits of "
        "candidates.",
        "",
        "## prune, calibrate, score",
        f"On {WINDOWS} windows of {LENGTH} tokens. `prune` on DATA takes as much as `calibrate`, "
        "`score` and surgery",
        f"together. Methods that try out blocks of layers remove {RATIO:.0%} of them. GB are in "
        "float32 on a CPU,",
        "beside the program with its libraries and the pages of the mapped file; the last column "
        "is for",
        "`--buffer disk`. No figure but that of hidden states, and of the gradients' states, grows "
        "with the number",
        f"of layers. A batch is {BATCH_TOKENS} tokens or one window.",
        *pruning(),
        "",
        "What grows fastest is SparseGPT's Gram matrix of the FFN's channels, with the square of "
        "their number.",
        "`sleb` runs the model for every layer in every round: its FLOPs grow with the cube of the "
        "depth.",
        "",
        "## eval, speed, init, tokenize, check, table",
        f"One pass over {WINDOWS} windows of {LENGTH} tokens, as `eval` makes for each `--data`. "
        "`check --deep` reads",
        "weights once, `init` writes them once. `speed` loads the whole model; its cache is for "
        f"one sequence of {LENGTH}",
        "tokens. Tasks of `eval` load the whole model too. `tokenize`, `table`, `log` and `check` "
        "without `--deep`",
        "do not depend on the parent's size.",
        "",
        *others(),
        "",
        "## train",
        f"On {TOKENS / 1e9:g}B tokens in windows of {TRAINED}. It is a model of the parent's size; "
        "one that was pruned",
        "to a half takes half. States are weights, gradients and two moments in float32. "
        "Activations are of",
        "one window, with `--activation-checkpointing`.",
        "",
        *training(),
        "",
        "## What 8 GPUs change",
        "| command | with 8 GPUs | bottleneck then |",
        "|---|---|---|",
        "| `train` | an eighth of the time, and of the states on each | from 70B on, the states of "
        "one rank |",
        "| `prune --method sheared-llama` | the same, for its masks | the same |",
        "| `calibrate`, `score`, `prune` by other methods, `search-arch`, `eval` of text | an "
        "eighth of the rows each, and so of forward passes and hidden states; of a layer's inputs "
        "each solves some | reading: all read all weights |",
        "| `tokenize`, `init`, `check`, `table`, `log` | nothing: they use no GPU | CPU or disk |",
    ]
    return "\n".join(lines) + "\n"
