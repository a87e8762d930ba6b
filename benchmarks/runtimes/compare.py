#!/usr/bin/env python3
"""Pruned models in llama.cpp and ONNX Runtime: `compare.py MODEL RUNTIMES WORK`.

MODEL is a checkpoint folder, RUNTIMES is what `get.sh` made. Every model below is pruned, converted
by the runtime's own script, and read by it. Compared are the log probabilities of a text's tokens
(how far they are apart, on average) and the tokens that follow it greedily. What Q8_0 costs is told
from errors by rounding alike in transformers: llama.cpp rounds the weights when it converts, and
the inputs of every product when it multiplies. Q4_K_M is made by llama.cpp's quantizer, with
statistics of `prunecli calibrate` as imatrix. Prints Markdown, or one JSON object per row with
`--json`.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

TEXT = "The capital of France is Paris. Water boils at one hundred degrees, and freezes at"
FOLLOWING = 10
BLOCK = 32
# sizes that Q8_0 takes: its blocks are 32 weights
MODELS = {
    "dense": "",
    "2:4": "--method wanda --sparsity 2:4",
    "depth": "--method shortgpt --layers 24",
    "width": "--method minitron-width --hidden 512 --ffn 1280",
    "flap, biases": "--method flap --heads 6 --ffn 1280",
    "flap, no biases": "--method flap --heads 6 --ffn 1280 --bias drop",
}
DATA = "--nsamples 4 --seq-len 64"
READINGS = (
    ("llama.cpp", "f32"),
    ("llama.cpp", "q8_0"),
    ("llama.cpp", "q4_k_m"),
    ("ONNX Runtime", "f32"),
)
HERE = Path(__file__).parent


def rounded(values: Any) -> Any:
    """Return float32 values as Q8_0 holds them: blocks of 32 with eight bits each, and a scale."""
    blocks = values.float().unflatten(-1, (-1, BLOCK))
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    inverse = (1 / scale).nan_to_num(posinf=0)
    steps = (blocks * inverse).abs().add(0.5).floor() * blocks.sign()  # halves go away from zero
    return (steps * scale.half().float()).flatten(-2)


def round_as_q8(model: Any) -> None:
    """Round every matrix whose rows are whole blocks, and the inputs of its products."""
    from torch import nn

    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)) and module.weight.shape[1] % BLOCK == 0:
            module.weight.data = rounded(module.weight.data)
            if isinstance(module, nn.Linear):
                module.register_forward_pre_hook(lambda _, inputs: (rounded(inputs[0]),))


def stock(folder: Path, kind: str) -> dict[str, Any]:
    """What transformers computes: the text's tokens, log probabilities, what follows."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(folder)(TEXT, return_tensors="pt")["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if kind == "q8_0":
        round_as_q8(model)
    with torch.no_grad():
        logits = model(tokens).logits[0, :-1].double()
        all_tokens = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=FOLLOWING,
            do_sample=False,
        )
    logprobs = logits.log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0]
    return {
        "tokens": tokens[0].tolist(),
        "logprobs": logprobs.tolist(),
        "greedy": all_tokens[0, tokens.shape[1] :].tolist(),
    }


def with_runtimes(runtimes: Path) -> dict[str, str]:
    """Return the environment in which Python finds what `get.sh` has installed."""
    python = os.pathsep.join([str(runtimes / "python"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": python}


def convert(kind: str, folder: Path, runtimes: Path, made: Path) -> None:
    """Write the folder as a GGUF by llama.cpp's converter and, for Q4_K_M, by its quantizer."""
    whole = made.with_name(f"{made.name}-whole") if kind == "q4_k_m" else made
    converter = [sys.executable, str(runtimes / "convert_hf_to_gguf.py"), str(folder)]
    options = ["--outtype", "f32" if kind == "q4_k_m" else kind, "--outfile", str(whole)]
    quiet = {"check": True, "stderr": subprocess.DEVNULL}
    subprocess.run([*converter, *options], env=with_runtimes(runtimes), **quiet)
    if kind == "q4_k_m":
        stats = made.with_name(f"{made.name}.safetensors")
        calibrate = f"prunecli calibrate --for wanda {DATA} --skip-existing".split()
        subprocess.run([*calibrate, str(folder), str(stats)], stdout=subprocess.DEVNULL, **quiet)
        quantizer = [sys.executable, str(HERE / "quantize.py"), str(runtimes)]
        subprocess.run([*quantizer, str(whole), str(made), str(stats)], **quiet)
        whole.unlink()


def read(runtime: str, kind: str, folder: Path, tokens: list[int], runtimes: Path) -> Any:
    """What a runtime computes from the folder, converted to one type of weights."""
    converted = folder.with_name(f"{folder.name}-{kind}")
    rest = [json.dumps(tokens), str(FOLLOWING)]
    if runtime == "llama.cpp":
        convert(kind, folder, runtimes, converted)
        command = ["node", str(runtimes / "llamacpp.mjs"), str(converted), *rest]
    else:
        script = str(HERE / "onnx_genai.py")
        command = [sys.executable, script, str(folder), str(converted), *rest]
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    done = subprocess.run(command, check=True, env=with_runtimes(runtimes), **piped)
    shutil.rmtree(converted) if converted.is_dir() else converted.unlink()
    return json.loads(done.stdout)


def compare(name: str, model: Path, runtimes: Path, work: Path) -> list[dict[str, Any]]:
    """Prune one model; return a row for each type of weights."""
    folder = work / "".join(c if c.isalnum() else "-" for c in name)
    if MODELS[name]:
        options = f"{MODELS[name]} {DATA}".split()
        command = ["prunecli", "prune", *options, "--skip-existing", str(model), str(folder)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    elif not folder.exists():
        folder.symlink_to(model.resolve())
    exact = stock(folder, "f32")
    rows = []
    for runtime, kind in READINGS:
        got = read(runtime, kind, folder, exact["tokens"], runtimes)
        rows.append(
            {"model": name, "runtime": runtime, "type": kind, "apart": apart(got, exact)}
            | {
                "rounding alone": rounding(folder, kind, exact),
                "greedy": got["greedy"] == exact["greedy"],
            }
            | {"class": json.loads((folder / "config.json").read_text())["architectures"][0]}
        )
    return rows


def rounding(folder: Path, kind: str, exact: dict[str, Any]) -> float | None:
    """Return how far rounding alone takes transformers; None where it is not done here."""
    return None if kind == "q4_k_m" else apart(stock(folder, kind), exact)


def apart(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Return how far two readings' log probabilities are apart, on average."""
    pairs = list(zip(one["logprobs"], other["logprobs"], strict=True))
    return sum(abs(a - b) for a, b in pairs) / len(pairs)


def main() -> None:
    """Print a row per model and type."""
    arguments = [a for a in sys.argv[1:] if a != "--json"]
    model, runtimes, work = map(Path, arguments)
    work.mkdir(parents=True, exist_ok=True)
    as_table = "--json" not in sys.argv
    if as_table:
        print("| model | class | runtime | weights | apart | by rounding alone | greedy tokens |")
        print("|---|---|---|---|---|---|---|")
    for name in MODELS:
        for row in compare(name, model, runtimes, work):
            cells = [name, row["class"], row["runtime"], row["type"], f"{row['apart']:.1g}"]
            alone = row["rounding alone"]
            cells += [
                "" if alone is None else f"{alone:.1g}",
                "equal" if row["greedy"] else "other",
            ]
            print(f"| {' | '.join(cells)} |" if as_table else json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
