#!/usr/bin/env python3
"""What an experiment costs, from `prunecli table --layout table9 --json` on stdin.

    prunecli table --layout table9 --reference paper --json | cost.py --seq-len T \
        --parent-rows M --retrain-rows N [--seeds S]

Training takes three times the FLOPs of a forward pass (arXiv 2606.14150, Appendix F). A forward
pass has 2048 tokens there. Longer rows cost more per token, because of attention.
"""

import argparse
import json
import sys

FORWARD_TOKENS = 2048


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("seq-len", "parent-rows", "retrain-rows"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--seeds", type=int, default=1)
    given = parser.parse_args()
    before, after = (n * given.seq_len for n in (given.parent_rows, given.retrain_rows))
    total = 0.0
    print(f"{'run':<44}{'parameters':>14}{'tokens':>12}{'FLOPs':>12}")

    def line(run: str, params: int, tokens: int, tflops: float, times: int) -> None:
        nonlocal total
        flops = 3 * tflops * 1e12 / FORWARD_TOKENS * tokens * times
        total += flops
        print(f"{run:<44}{params:>14}{tokens:>12.3g}{flops:>12.3g}")

    for row in json.load(sys.stdin)["results"]:
        name = f"{row['method']} {row['ratio']:.3g}"
        cost = (row["nonzero"], row["tflops_exact"])
        if row["initialization"] in ("base", "scratch"):
            line(f"parent ({name})", cost[0], before, cost[1], 1)
            continue
        for kind, tokens in (("pruned", after), ("scratch", after), ("whole", before + after)):
            line(f"{kind} {name}", cost[0], tokens, cost[1], given.seeds)
    print(f"{'all, longest budget':<44}{'':>26}{total:>12.3g}")


if __name__ == "__main__":
    main()
