#!/usr/bin/env python3
"""Sizes at ratio 0.5 with and without multiples, for every method that cuts hidden or FFN sizes.

    multiples.py MODEL WORK [METHOD...]

Prints Markdown as it goes: sizes, achieved ratio, perplexity on the built-in evaluation text, and
how many matrices llama.cpp's Q8_0 takes (rows of a multiple of 32). Where the default multiple
gives the exact sizes, there is one row. WINDOWS and LENGTH (8 and 256) are those of both texts.
What WORK has already is not done again; weights are deleted once they are evaluated.
"""

import os
import sys
from pathlib import Path

import prunecli
from prunecli.methods import registry
from prunecli.model.arch import Arch
from prunecli.pruning.sizes import BLOCK, resolve_sizes
from prunecli.settings import Amount

RATIO = 0.5
WINDOWS, LENGTH = (int(os.environ.get(name, n)) for name, n in (("WINDOWS", 8), ("LENGTH", 256)))
# masks are trained too briefly to be good ones: one window a step, weights as they are
TRAINING = {"sheared-llama": {"batch_size": 1, "tokens": 16 * LENGTH, "freeze_weights": True}}


def row(model: str, work: Path, name: str, multiple: int | None) -> str:
    folder, loss = work / f"{name}-{multiple}", work / f"{name}-{multiple}.json"
    again = {"skip_existing": True, "nsamples": WINDOWS, "seq_len": LENGTH}
    if not loss.exists():
        prunecli.prune(
            model, folder, method=name, ratio=RATIO, multiple=multiple,
            options=TRAINING.get(name, {}), **again,
        )  # fmt: skip
        prunecli.evaluate(folder, loss, **again)
        for file in folder.glob("*.safetensors"):
            file.unlink()
    arch = Arch.read(folder)
    matrices = [one.shape for one in arch.tensors().values() if len(one.shape) == 2]
    taken = sum(shape[1] % BLOCK == 0 for shape in matrices)
    ratio = 1 - arch.block_params / Arch.read(model).block_params
    measured = prunecli.table([loss]).rows[0]
    return (
        f"| {name} | {multiple or 'default'} | {arch.hidden}, {arch.heads}, {arch.ffn} | "
        f"{ratio:.4f} | {float(measured['perplexity']):.2f} | {taken} of {len(matrices)} |"
    )


def main(model: str, work: Path, names: list[str]) -> None:
    work.mkdir(exist_ok=True)
    print("| method | multiple | hidden, heads, FFN | ratio | perplexity | Q8_0 takes |")
    print("|---|---|---|---|---|---|", flush=True)
    for name in names or registry.names():
        method = registry.get(name)
        if not {"hidden", "ffn"} & set(method.axes):
            continue
        sizes = resolve_sizes(method, method.resolve({}), Amount(ratio=RATIO), Arch.read(model))
        for multiple in (None, 1) if sizes.least > 1 else (None,):
            print(row(model, work, name, multiple), flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: multiples.py MODEL WORK [METHOD...]")
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
