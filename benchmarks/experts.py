#!/usr/bin/env python3
"""Methods that remove experts, at half of them, on a Qwen3-MoE of 3.5 million parameters.

    experts.py TEXT WORK [--json]

TEXT is a folder that `examples/study/corpus.py definitions TEXT` has filled. The model is trained
in WORK, on 1.6 million tokens, or fewer if STEPS says so. Each of three seeds draws other windows
to calibrate on, and other random experts. Prints the losses on held-out text, and of how many
layers the ids that went are those of a naive loop: the whole model in float64 as stock transformers
runs it, and each token by itself through its experts. What WORK has already is not made again.
"""

import json
import os
import sys
from collections.abc import Callable
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import prunecli
from prunecli.methods import registry
from prunecli.model.arch import Arch
from prunecli.model.stock import InDouble

SEQ_LEN, BATCH, SEEDS = 128, 8, (0, 1, 2)
ROWS = 12800
STEPS = int(os.environ.get("STEPS", ROWS // BATCH))
WINDOWS, HELD_OUT = 32, 128
STUDENT = 4.303  # 95 % of Student's t with two degrees of freedom lie within
SHAPE = {
    "model_type": "qwen3_moe", "vocab_size": 1024, "hidden_size": 128, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "num_experts": 16,
    "num_experts_per_tok": 2, "moe_intermediate_size": 128, "norm_topk_prob": True,
    "router_aux_loss_coef": 0.01, "max_position_embeddings": SEQ_LEN,
    "tie_word_embeddings": True, "dtype": "float32",
}  # fmt: skip
AGAIN = {"skip_existing": True}
METHODS = [name for name in registry.names() if registry.get(name).axes == ("experts",)]
# what a naive loop finds, by the method that goes by it: of each layer and expert, over its tokens
NAIVE: dict[str, Callable[[list[float]], float]] = {
    "reap": lambda added: sum(added) / max(1, len(added)),
    "expert-frequency": len,
}


def train(text: Path, work: Path) -> Path:
    """Return the model, trained on rows of the text; beside it lie rows to calibrate on."""
    work.mkdir(parents=True, exist_ok=True)
    (work / "shape.json").write_text(json.dumps(SHAPE))
    rows, vocab = work / "rows", SHAPE["vocab_size"]
    prunecli.tokenize(
        text / "definitions-train.jsonl", rows, SEQ_LEN, train_tokenizer=vocab,
        tokens=ROWS * SEQ_LEN, **AGAIN,
    )  # fmt: skip
    for part in ("calibration", "test"):
        prunecli.tokenize(
            text / f"definitions-{part}.jsonl", work / part, SEQ_LEN, tokenizer=str(rows), **AGAIN
        )
    prunecli.init(work / "random", config=str(work / "shape.json"), tokenizer=str(rows), **AGAIN)
    prunecli.train(
        work / "random", work / "parent", rows, steps=STEPS, batch_size=BATCH, lr="3e-3", **AGAIN
    )
    return work / "parent"


def draw(work: Path, seed: int) -> Path:
    """Return a file of `ids` [WINDOWS, SEQ_LEN], other calibration windows for every seed."""
    path = work / f"draw-{seed}.safetensors"
    if path.exists():
        return path
    shards = sorted((work / "calibration").glob("rows-*.safetensors"))
    rows = torch.cat([tensor for shard in shards for tensor in load_file(shard).values()])
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:WINDOWS]
    save_file({"ids": rows[chosen].int()}, path)
    return path


def prune(parent: Path, out: Path, name: str, seed: int, ids: Path) -> list[list[int]]:
    """Prune half of the experts; return the ids of those that went, layer by layer."""
    method, half = registry.get(name), SHAPE["num_experts"] // 2
    words = {"data": f"{ids}:ids"} if method.needs else {}
    drawn = any(option.name == "draw" for option in method.options)
    kept = Path(f"{out}-kept")
    prunecli.prune(
        parent, out, method=name, experts=half, keep=str(kept),
        options={"draw": seed} if drawn else {}, **words, **AGAIN,
    )  # fmt: skip
    plan = json.loads((kept / "plan.json").read_text())["results"]["keep"]
    return [sorted({*range(2 * half)} - {*stay}) for stay in plan["experts"]]


def loss(model: Path, work: Path) -> dict:
    """Return the results of `eval` on rows of held-out text."""
    held_out = f"{work / 'test'}:0:{HELD_OUT}"
    return prunecli.evaluate(model, Path(f"{model}.json"), data=held_out, **AGAIN).results


def routed(model: Any, ids: torch.Tensor) -> list[list[tuple]]:
    """Return what the routers read and gave of every row, layer by layer."""
    seen: list[list[tuple]] = [[] for _ in model.model.layers]

    def observe(layer: int) -> Callable[..., None]:
        return lambda router, inputs, out: seen[layer].append((inputs[0].flatten(0, -2), *out[1:]))

    for i, layer in enumerate(model.model.layers):
        layer.mlp.gate.register_forward_hook(observe(i))
    with torch.no_grad(), InDouble():
        for row in ids.long():
            model(row[None])
    return seen


@torch.no_grad()
def added(parent: Path, ids: torch.Tensor) -> list[list[list[float]]]:
    """Return what every expert of every layer adds to each of its tokens, in float64.

    That is the router's weight times the norm of the output.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        parent, dtype=torch.float64, experts_implementation="eager"
    ).eval()
    found = [[[] for _ in range(SHAPE["num_experts"])] for _ in model.model.layers]
    for of_layer, rows, layer in zip(found, routed(model, ids), model.model.layers, strict=True):
        experts = layer.mlp.experts
        for states, weights, chosen in rows:
            for x, shares, some in zip(states, weights.tolist(), chosen.tolist(), strict=True):
                for e, share in zip(some, shares, strict=True):
                    gate, up = (experts.gate_up_proj[e] @ x).chunk(2)
                    out = experts.down_proj[e] @ (torch.nn.functional.silu(gate) * up)
                    of_layer[e].append(share * out.norm().item())
    return found


def lowest(scores: list[float]) -> list[int]:
    """Return the half that scores lowest."""
    return sorted(sorted(range(len(scores)), key=lambda e: scores[e])[: len(scores) // 2])


def naive(parent: Path, ids: Path, file: Path) -> dict[str, list[list[int]]]:
    """Return the ids that a naive loop removes, by method and layer; kept in a file."""
    if not file.exists():
        by_loop = added(parent, load_file(ids)["ids"])
        gone = {
            name: [lowest([score(one) for one in layer]) for layer in by_loop]
            for name, score in NAIVE.items()
        }
        file.write_text(json.dumps(gone))
    return json.loads(file.read_text())


def generate(model: Path) -> str:
    """Return what stock transformers makes of a pruned model and the beginning of an entry."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    stock = AutoModelForCausalLM.from_pretrained(model)
    assert stock.config.num_experts == SHAPE["num_experts"] // 2
    ids = tokenizer("music: ", return_tensors="pt").input_ids
    with torch.no_grad():
        made = stock.generate(ids, max_new_tokens=24, do_sample=False, pad_token_id=0)
    return tokenizer.decode(made[0])


def measure(text: Path, work: Path) -> dict:
    """Return losses by method and seed, agreement with the naive loop, sizes, and texts."""
    parent = train(text, work)
    dense = loss(parent, work)
    found = {name: {"losses": [], "layers_equal": 0, "layers": 0} for name in METHODS}
    for seed in SEEDS:
        ids = draw(work, seed)
        expected = naive(parent, ids, work / f"naive-{seed}.json")
        for name, of_method in found.items():
            out = work / f"{name}-{seed}"
            gone = prune(parent, out, name, seed, ids)
            of_method["losses"].append(loss(out, work)["loss"])
            if name in NAIVE:
                pairs = list(zip(gone, expected[name], strict=True))
                of_method["layers_equal"] += sum(one == other for one, other in pairs)
                of_method["layers"] += len(pairs)
    for name, of_method in found.items():
        losses = of_method["losses"]
        of_method["mean"] = mean(losses)
        of_method["interval"] = STUDENT * stdev(losses) / sqrt(len(losses))
        of_method["text"] = generate(work / f"{name}-{SEEDS[0]}")
    shapes = [Arch.read(one) for one in (parent, work / f"{METHODS[0]}-0")]
    return {
        "dense": dense["loss"], "steps": STEPS, "methods": found,
        "params": [one.total_params for one in shapes],
        "active_params": [one.active_params for one in shapes],
    }  # fmt: skip


def main(text: Path, work: Path, as_json: bool) -> None:
    """Print a row per method, or all as JSON."""
    torch.set_num_threads(1)
    results = measure(text, work)
    if as_json:
        print(json.dumps(results, indent=1))
        return
    print("| method | loss | of each seed | layers as by the naive loop |\n|---|---|---|---|")
    print(f"| none | {results['dense']:.3f} | | |")
    for name, of_method in results["methods"].items():
        losses = ", ".join(f"{one:.3f}" for one in of_method["losses"])
        equal = "{layers_equal} of {layers}".format(**of_method) if of_method["layers"] else ""
        value = f"{of_method['mean']:.3f} +- {of_method['interval']:.3f}"
        print(f"| {name} | {value} | {losses} | {equal} |")
    for what in ("params", "active_params"):
        print("\n{}: {} -> {}".format(what, *results[what]))
    for name, of_method in results["methods"].items():
        print(f"\n{name}: {of_method['text']!r}")


if __name__ == "__main__":
    given = [one for one in sys.argv[1:] if one != "--json"]
    if len(given) != 2:
        sys.exit("usage: experts.py TEXT WORK [--json]")
    main(Path(given[0]), Path(given[1]), "--json" in sys.argv)
