#!/usr/bin/env python3
"""What an experiment costs, from `prunecli table --layout table9 --json` on stdin.

    prunecli table --layout table9 --reference paper --json | cost.py --seq-len T \
        --parent-rows M [--flops-per-second F --unit NAME] RUN...

A run is KIND.METHOD-RATIO.ROWS.SEED. Training takes three times the FLOPs of a forward pass (arXiv
2606.14150, Appendix F), and a teacher those of its own. A forward pass has 2048 tokens there.
Longer rows cost more per token, because of attention. Zeros save no time in training, so sparse
models take the hours of dense ones.
"""

import argparse
import json
import sys
from collections import Counter
from typing import Any

FORWARD_TOKENS = 2048
HOUR = 3600


def named(row: dict[str, Any]) -> str:
    """Return what the Makefile calls a row of Table 9: METHOD-RATIO, or METHOD-2to4."""
    if "name" in row:
        return str(row["name"]).rpartition(".")[0]
    if row["method"].endswith("-2:4"):
        return str(row["method"]).replace("-2:4", "-2to4")
    return f"{row['method'].removesuffix('-unstructured')}-{row['ratio']:.4g}"


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("seq-len", "parent-rows"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--flops-per-second", type=float, help="of one unit")
    parser.add_argument("--unit", default="core", help="what computes as fast as that")
    parser.add_argument("runs", nargs="*")
    given = parser.parse_args()
    rows = json.load(sys.stdin)["results"]
    sizes = {named(row): row for row in rows}
    parent = next((row for row in rows if row["initialization"] == "base"), None)
    if parent is None:  # a parent is one from which something was pruned
        print("the cost is known once there are a parent and pruned models")
        return
    before = given.parent_rows * given.seq_len
    # runs that differ in seeds only are one line
    lines = Counter(run.rpartition(".")[0] for run in given.runs if run.count(".") > 2)
    hours = f"{given.unit}-hours" if given.flops_per_second else ""
    print(f"{'run':<44}{'parameters':>14}{'tokens':>12}{'FLOPs':>12}  {hours}")
    total = dense = 0.0

    def line(run: str, row: dict[str, Any], tokens: int, times: int) -> None:
        nonlocal total, dense
        forward = 1e12 / FORWARD_TOKENS * tokens * times
        teacher = parent["tflops_exact"] * forward if run.startswith("taught ") else 0.0
        flops = 3 * row["tflops_exact"] * forward + teacher
        whole = row if row["nonzero"] == row["params"] else parent
        real = 3 * whole["tflops_exact"] * forward + teacher
        total, dense = total + flops, dense + real
        print(f"{run:<44}{row['nonzero']:>14}{tokens:>12.3g}{flops:>12.3g}" + spent(real))

    def spent(flops: float) -> str:
        return f"{flops / given.flops_per_second / HOUR:>12.4g}" if hours else ""

    line("parent", parent, before, 1)
    for run, seeds in lines.items():
        kind, _, rest = run.partition(".")
        name, _, budget = rest.rpartition(".")
        if name not in sizes:
            print(f"{run:<44}{'not in the table':>14}")
            continue
        after = int(budget) * given.seq_len
        share = parent["tflops_exact"] / sizes[name]["tflops_exact"]
        tokens = {"whole": before + after, "compute": round(before * share) + after}
        method, _, ratio = name.rpartition("-")
        line(f"{kind} {method} {ratio}", sizes[name], tokens.get(kind, after), seeds)
    print(f"{'all':<44}{'':>26}{total:>12.3g}" + spent(dense))


if __name__ == "__main__":
    main()
