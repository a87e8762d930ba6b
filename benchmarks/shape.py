#!/usr/bin/env python3
"""CPU seconds and peak anonymous memory of every method on layers of Llama-3.1-8B's shape.

    shape.py WORK [METHOD...]

Models of two and of four such layers with random weights in bfloat16 (7 GB), four windows of 512
tokens, float32, one thread, the installed command from its start to its end. The difference of two
layers is what a layer costs, the rest is for embedding, head and start-up; neither depends on how
many layers there are, but for methods that try out layers in turns, of which no sum of 32 is given.
"""

import shutil
import sys
from pathlib import Path

from cost import random_ids, random_model, watched

ROWS, LENGTH, LAYERS, WHOLE = 4, 512, (2, 4), 32
SHAPE = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "rope_theta": 500000.0,
    "max_position_embeddings": 8192, "dtype": "bfloat16",
}  # fmt: skip
HALF = ("--ratio", "0.5")
OF_LAYERS = ("--layers", "1")
PRUNE = {
    "magnitude": HALF,
    "flap": HALF,
    "minitron-width": HALF,
    "wanda-sp": HALF,
    "wanda": HALF,
    "wanda 2:4": ("--sparsity", "2:4"),
    "sparsegpt": HALF,
    "slicegpt-global": ("--ratio", "0.25"),
    "llm-pruner": HALF,
    "shortgpt": OF_LAYERS,
    "shortened-llama": OF_LAYERS,
    "minitron-depth": OF_LAYERS,
    "sleb": OF_LAYERS,
    "sheared-llama": ("--ffn", "7168", "--tokens", "2048", "--batch-size", "1"),
}
IN_TURNS = ("minitron-depth", "sleb")


def main(work: Path, names: tuple[str, ...]) -> None:
    shapes = {layers: {**SHAPE, "num_hidden_layers": layers} for layers in LAYERS}
    models = {layers: random_model(work / f"m{layers}", shapes[layers]) for layers in LAYERS}
    data = random_ids(work / "ids.safetensors", SHAPE["vocab_size"], ROWS, LENGTH)
    print("| run | a layer, s | the rest, s | 32 layers, min | peak GB |\n|---|---|---|---|---|")
    for name in names:
        seconds, peak = {}, 0.0
        for layers, model in models.items():
            out = str(work / "out")
            if name == "init":
                command = ["init", "--config", f"{model}.json", "--tokenizer", "none"]
            else:
                needs = [] if name == "magnitude" else ["--data", data]
                command = ["prune", "--method", name.split()[0], *PRUNE[name], *needs, model]
            line = ["prunecli", command[0], "--quiet", *command[1:], out]
            _, costs = watched(line, sample=True)
            seconds[layers], peak = costs["cpu"], max(peak, costs["anonymous"])
            shutil.rmtree(out)
        fewer, more = LAYERS
        layer = (seconds[more] - seconds[fewer]) / (more - fewer)
        rest = seconds[fewer] - fewer * layer
        whole = "" if name in IN_TURNS else f"{(rest + WHOLE * layer) / 60:.0f}"
        print(f"| {name} | {layer:.1f} | {rest:.0f} | {whole} | {peak / 1e9:.2f} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: shape.py WORK [METHOD...]")
    main(Path(sys.argv[1]), tuple(sys.argv[2:]) or ("init", *PRUNE))
