#!/usr/bin/env python3
"""How well every method's results agree over instruction sets and threads, as Markdown.

    tests/portable.sh 'avx512 avx2 default' '1 2' python benchmarks/agreement.py make MODEL WORK
    python benchmarks/agreement.py compare WORK

`make` prunes a model with every method, on few windows, and measures each result, all under the
current instruction set. Results stay in WORK, and a second run makes only what is missing.
`compare` compares the results with those of the first set.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from safetensors import safe_open

WINDOWS = ["--nsamples", "8", "--seq-len", "256"]
FEW = ["--nsamples", "2", "--seq-len", "128"]
# what each run is told; sheared-llama is left out: its masks are a run of training
RUNS = {
    "dense": [],
    "magnitude": ["--ratio", "0.5"],
    "wanda": ["--ratio", "0.5", *WINDOWS],
    "wanda 2:4": ["--sparsity", "2:4", *WINDOWS],
    "wanda 4:8": ["--sparsity", "4:8", *WINDOWS],
    "sparsegpt": ["--ratio", "0.5", *WINDOWS],
    "sparsegpt 2:4": ["--sparsity", "2:4", *WINDOWS],
    "flap": ["--ratio", "0.5", "--multiple", "1", *WINDOWS],
    "wanda-sp": ["--ratio", "0.5", "--multiple", "1", *WINDOWS],
    "minitron-width": ["--ratio", "0.5", "--multiple", "1", *WINDOWS],
    "minitron-depth": ["--ratio", "0.5", *FEW],
    "shortgpt": ["--ratio", "0.5", *WINDOWS],
    "shortened-llama": ["--ratio", "0.25", *FEW],
    "llm-pruner": ["--ratio", "0.5", "--multiple", "1", *FEW],
    "slicegpt-global": ["--ratio", "0.25", "--multiple", "1", *WINDOWS],
    "sleb": ["--layers", "27", *FEW],
}
MEASURED = ["--data", "builtin", "--nsamples", "8", "--seq-len", "256"]


def run(*arguments: str) -> dict:
    """Run prunecli; return the object that it prints."""
    done = subprocess.run(
        ["prunecli", *arguments, "--json"], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout)


def make(model: str, work: Path) -> None:
    """Prune and measure under this instruction set."""
    here = work / f"{os.environ['PRUNECLI_TEST_SET']}-{os.environ['PRUNECLI_TEST_THREADS']}"
    here.mkdir(parents=True, exist_ok=True)
    for name, options in RUNS.items():
        out = str(here / name.replace(" ", "-").replace(":", "-"))
        if name == "dense":
            folder = model
        else:
            method = name.split()[0]
            run("prune", "--method", method, *options, "--skip-existing", model, out)
            folder = out
        told = ["--out", f"{out}.json", "--skip-existing", "--allow-overlap"]
        run("eval", *MEASURED, *told, folder)


def masks(folder: Path) -> dict:
    """Return which block weights are not zero, of a model pruned in place; else what it kept."""
    record = json.loads((folder / "prunecli.json").read_text())
    if "kept" in record["results"]:
        # shapes are the same, so weights are where the same units stayed
        return {}
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = [name for name in file.keys() if ".layers." in name and "proj" in name]  # noqa: SIM118
        return {name: file.get_tensor(name) != 0 for name in names}


def agreement(one: Path, other: Path) -> tuple[str, str]:
    """Return the share of equal masks (of equal tensors, if cut), and the first other layer."""
    ours, theirs = masks(one), masks(other)
    if not ours:
        with (
            safe_open(one / "model.safetensors", "pt") as a,
            safe_open(other / "model.safetensors", "pt") as b,
        ):
            same = [bool((a.get_tensor(n) == b.get_tensor(n)).all()) for n in a.keys()]  # noqa: SIM118
        return "same bytes" if all(same) else f"{sum(same)} of {len(same)} tensors", ""
    total = sum(mask.numel() for mask in ours.values())
    off = {name: int((mask != theirs[name]).sum()) for name, mask in ours.items()}
    layers = sorted(int(name.split(".")[2]) for name, count in off.items() if count)
    share = 1 - sum(off.values()) / total
    return (f"{100 * share:.4f} %" if layers else "every bit"), (str(layers[0]) if layers else "")


def compare(work: Path) -> None:
    """Print a row per method and set."""
    first, *others = sorted(work.iterdir(), key=lambda x: ("avx512" not in x.name, x.name))
    print(f"| run | perplexity, {first.name} | set | perplexity | masks equal | first layer |")
    print("|---|---|---|---|---|---|")
    for name in RUNS:
        stem = name.replace(" ", "-").replace(":", "-")
        found = []
        for here in (first, *others):
            record = json.loads((here / f"{stem}.json").read_text())
            found.append(record["results"]["perplexity"])
        for here, perplexity in zip(others, found[1:], strict=True):
            equal = ("", "") if name == "dense" else agreement(first / stem, here / stem)
            told = f"{perplexity:.4f} ({perplexity / found[0] - 1:+.1e})"
            print(f"| {name} | {found[0]:.4f} | {here.name} | {told} | {equal[0]} | {equal[1]} |")


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(sys.argv[2], Path(sys.argv[3]))
    else:
        compare(Path(sys.argv[2]))
