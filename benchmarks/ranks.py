#!/usr/bin/env python3
"""Two processes beside one: ranks.py MODEL TOKENS.safetensors:NAME [METHOD...]

The same run of `prune` (half of every block) in one process and in two under torchrun, in turns,
each process with one thread. The seconds are those of the verb, as the sidecar has them: start-up
and joining are left out, checking the input and writing are not. CPU seconds are those of all
processes, start-up included. `ROUNDS=5` pairs each; the JSON on stdout has the median of
the ratios and their spread.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

METHODS = ("wanda", "sparsegpt", "flap")
ROUNDS = int(os.environ.get("ROUNDS", "3"))
BIN = Path(sys.executable).parent
LAUNCHERS = {1: [], 2: [str(BIN / "torchrun"), "--standalone", "--nproc_per_node=2"]}


def cpu_seconds() -> float:
    """Return the CPU seconds of all processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def prune(model: str, data: str, method: str, processes: int) -> dict[str, float]:
    """Return the seconds and CPU seconds of one run."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        out, before = f"{folder}/out", cpu_seconds()
        line = f"prune --quiet --method {method} --ratio 0.5 --data {data} {model} {out}"
        subprocess.run(
            [*LAUNCHERS[processes], str(BIN / "prunecli"), *line.split()],
            env=environment, stdout=subprocess.DEVNULL, check=True,
        )  # fmt: skip
        record = json.loads(Path(out, "prunecli.json").read_text())
        return {"seconds": record["run"]["seconds"], "cpu": cpu_seconds() - before}


def main() -> None:
    """Print the ratios of every method."""
    model, data, *methods = sys.argv[1:]
    for method in methods or METHODS:
        pairs = []
        for turn in range(ROUNDS):
            order = (1, 2) if turn % 2 == 0 else (2, 1)
            runs = {count: prune(model, data, method, count) for count in order}
            pairs.append([runs[1], runs[2]])
        ratios = {
            name: sorted(two[name] / one[name] for one, two in pairs) for name in ("seconds", "cpu")
        }
        told = {
            "method": method, "rounds": ROUNDS, "pairs": pairs,
            **{f"{name}_ratio": statistics.median(found) for name, found in ratios.items()},
            **{f"{name}_spread": [found[0], found[-1]] for name, found in ratios.items()},
        }  # fmt: skip
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
