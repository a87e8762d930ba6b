#!/usr/bin/env python3
"""Every method at one block ratio on a real model: perplexity, seconds, peak memory, as Markdown.

    python benchmarks/methods.py MODEL WORK [METHOD...]

Calibrates and evaluates on the built-in text, one command after another. Results stay in
WORK, and a second run makes only what is missing.
"""

import json
import subprocess
import sys
from pathlib import Path

from prunecli.methods import registry

RATIO = "0.25"
# what keeps a run within minutes on two cores; everything else is at its default
SIZES = {
    "llm-pruner": ["--nsamples", "8"],
    "shortened-llama": ["--nsamples", "8"],
    "minitron-depth": ["--nsamples", "8"],
    "sleb": ["--nsamples", "4"],
    "sheared-llama": ["--nsamples", "300", "--tokens", str(300 * 512), "--batch-size", "1"],
}


def run(*arguments: str) -> dict:
    """Run prunecli; return the object that it prints."""
    done = subprocess.run(
        ["prunecli", *arguments, "--json"], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout)


def main() -> None:
    """Print a row per method."""
    model, work, *wanted = sys.argv[1:]
    rows = [("none", run("eval", "--allow-overlap", model)["results"], None, "")]
    for name in wanted or registry.names():
        out = str(Path(work, name))
        sizes = SIZES.get(name, [])
        made = run(
            "prune",
            "--method",
            name,
            "--ratio",
            RATIO,
            "--multiple",
            "1",
            *sizes,
            "--skip-existing",
            model,
            out,
        )
        measured = run("eval", "--allow-overlap", out)["results"]
        rows.append((name, measured, made["sidecar"], " ".join(sizes)))
    print("| method | ratio | non-zero | perplexity | seconds | peak MB | options |")
    print("|---|---|---|---|---|---|---|")
    for name, measured, record, sizes in rows:
        ratio = record["results"]["ratio"] if record else 0
        seconds = f"{record['run']['seconds']:.0f}" if record else ""
        peak = f"{record['run']['peak_bytes'] / 1e6:.0f}" if record else ""
        params = record["results"]["nonzero"] if record else measured["params"]
        print(
            f"| {name} | {ratio:.3f} | {params} | {measured['perplexity']:.2f} | {seconds} | "
            f"{peak} | {sizes} |"
        )


if __name__ == "__main__":
    main()
