"""The price of waiting for the disk: `prune` of a model of 1 GB, with fsync and without.

    python benchmarks/fsync.py [FOLDER]

Makes the model with random weights in a temporary folder (of FOLDER, to choose the disk), prunes it
by turns in either way, and prints the seconds of each run and the ratio of the medians.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONFIG = {
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 1024, "intermediate_size": 2816,
    "num_hidden_layers": 16, "num_attention_heads": 16, "num_key_value_heads": 16,
    "max_position_embeddings": 2048, "tie_word_embeddings": False,
}  # fmt: skip
ROUNDS = 3
RUN = "from prunecli.__main__ import main; main()"
WITHOUT = "import os; os.fsync = lambda handle: None; "


def run(before: str, *arguments: str) -> float:
    """Return the seconds of a command; the disk has nothing left to do when it begins."""
    subprocess.run(["sync"], check=True)
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", before + RUN, *arguments], check=True, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - start


def main() -> None:
    with tempfile.TemporaryDirectory(dir=next(iter(sys.argv[1:]), None)) as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(CONFIG))
        model, out = str(folder / "model"), str(folder / "out")
        run("", "init", "--quiet", "--config", str(folder / "config.json"), model)
        size = sum(file.stat().st_size for file in Path(model).iterdir())
        prune = ("prune", "--quiet", "--force", "--method", "magnitude", "--ratio", "0.5")
        seconds: dict[str, list[float]] = {"with": [], "without": []}
        for _ in range(ROUNDS):
            for how, before in (("with", ""), ("without", WITHOUT)):
                seconds[how].append(run(before, *prune, model, out))
        medians = {how: statistics.median(values) for how, values in seconds.items()}
        for how, values in seconds.items():
            print(f"{how} fsync: {', '.join(f'{value:.1f}' for value in values)} s")
        ratio = medians["with"] / medians["without"]
        print(f"{size / 1e9:.2f} GB: ratio of the medians {ratio:.3f}")


if __name__ == "__main__":
    main()
