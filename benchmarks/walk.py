#!/usr/bin/env python3
"""Peak anonymous memory of pruning a model whose layers have 64 experts of 1 GB in all.

    walk.py WORK [METHOD...]

Two layers of random weights in bfloat16 (2.2 GB, and as much again for a while), 8 windows of 64
tokens, one thread. Prints what a run takes beside the program and its libraries, with hidden states
and pruned weights in a file and in memory, and what `--dry-run` says of it.
"""

import shutil
import sys
from pathlib import Path

from cost import child, random_ids, random_model

METHODS = ("wanda", "reap")
ROWS, LENGTH = 8, 64
SHAPE = {
    "model_type": "qwen3_moe", "vocab_size": 1024, "hidden_size": 2048, "num_hidden_layers": 2,
    "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 64,
    "num_experts_per_tok": 8, "moe_intermediate_size": 1280, "norm_topk_prob": True,
    "max_position_embeddings": LENGTH, "dtype": "bfloat16",
}  # fmt: skip
PROGRAM = """
import torch, prunecli, prunecli.pruning, prunecli.model.stream
import transformers.models.qwen3_moe.modeling_qwen3_moe
torch.set_num_threads(1)
torch.randn(512, 512) @ torch.randn(512, 512)
"""
PRUNE = """
import sys, torch
torch.set_num_threads(1)
from prunecli import prune
model, data, out, method, buffer = sys.argv[1:]
asked = {"method": method, "ratio": 0.5, "data": data, "buffer": buffer}
estimate = prune(model, out, dry_run=True, **asked).results["memory_bytes"]
prune(model, out, **asked)
print(estimate)
"""


def main(work: Path, methods: tuple[str, ...]) -> None:
    model = random_model(work / "model", SHAPE)
    data = random_ids(work / "ids.safetensors", SHAPE["vocab_size"], ROWS, LENGTH)
    program = child(PROGRAM, sample=True)["anonymous"]
    print(f"the program: {program / 1e6:.0f} MB\n")
    print("| method | --buffer | peak MB | estimate MB |\n|---|---|---|---|", flush=True)
    for method in methods:
        for buffer in ("disk", "ram"):
            out = work / f"{method}-{buffer}"
            run = child(PRUNE, model, data, str(out), method, buffer, sample=True)
            peak, estimate = run["anonymous"] - program, run["out"]
            print(f"| {method} | {buffer} | {peak / 1e6:.0f} | {estimate / 1e6:.0f} |", flush=True)
            shutil.rmtree(out)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: walk.py WORK [METHOD...]")
    main(Path(sys.argv[1]), tuple(sys.argv[2:]) or METHODS)
