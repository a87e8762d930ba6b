#!/usr/bin/env python3
"""What pruning costs, as ratios of one run: cost.py MODEL TOKENS.safetensors:NAME [METHOD...]

Each method's CPU seconds are divided by those of a plain transformers forward over the same
windows (decoder layers, no output head), measured before and after it, on one thread and in
float32. Of methods that go layer by layer it prints what they cannot avoid, too. Peak resident and
anonymous memory are those of a process of its own. ROUNDS (3) is how
often; PEER names the Python of an environment with llm-compressor, which then prunes in turns
(`peer.py`). The last line is all of it as JSON. Then peak anonymous memory on two random Llamas of
8 and of 32 layers of 20 MB: what streaming keeps independent of depth; not with PEER.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

METHODS = (
    "magnitude", "wanda", "sparsegpt", "flap", "wanda-sp", "minitron-width", "shortgpt",
)  # fmt: skip
ROUNDS = int(os.environ.get("ROUNDS", "3"))
PEER = os.environ.get("PEER")
PEER_METHODS = ("wanda", "sparsegpt")
BY_LAYER = ("wanda", "sparsegpt", "wanda-sp")
HERE = Path(__file__).parent


def stock(model: str, data: str) -> tuple[Any, Any]:
    """Return the decoder layers of transformers' own class, and windows of ids."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    path, name = data.rsplit(":", 1)
    ids = load_file(path)[name].long()
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval().model, ids


def taken(work: Callable[[], object]) -> float:
    """Return the CPU seconds of some work."""
    start = time.process_time()
    work()
    return time.process_time() - start


def passed(body: Any, ids: Any) -> float:
    """Return the CPU seconds of one forward of every window."""
    import torch

    with torch.no_grad():
        body(ids[:1], use_cache=False)
        return taken(lambda: [body(row[None], use_cache=False) for row in ids])


def forward(model: str, data: str) -> None:
    """Print the CPU seconds of one forward of every window through stock decoder layers."""
    print(passed(*stock(model, data)))


def floor(model: str, data: str, method: str) -> None:
    """Print the CPU seconds of what a method that goes layer by layer cannot avoid.

    Two passes: the first needs no down_proj, the second not the last layer.
    """
    body, ids = stock(model, data)
    solved = solving(body, ids.numel()) if method == "sparsegpt" else 0.0
    last = body.layers.pop(-1)
    second = passed(body, ids)
    body.layers.append(last)
    for layer in body.layers:
        layer.mlp.down_proj.forward = lambda hidden: hidden
        layer.mlp.register_forward_hook(lambda module, args, out: args[0])
    print(passed(body, ids) + second + solved)


def solving(body: Any, tokens: int) -> float:
    """Return the CPU seconds of SparseGPT's products, by matrices of random numbers.

    Of each layer a half of the Gram matrices [n, n] of what its linears read, their Cholesky
    factors, and of each linear a half of the product [rows, n] @ [n, n] that its sweep is.
    """
    import torch

    parts = dict(body.layers[0].named_modules())
    linears = {name.split(".")[-1]: part for name, part in parts.items() if "_proj" in name}
    read = [linears[name].in_features for name in ("q_proj", "o_proj", "gate_proj", "down_proj")]
    seconds = 0.0
    for n in read:
        inputs = torch.randn(tokens, n)
        seconds += taken(lambda x=inputs: x.T @ x) / 2
        gram = inputs.T @ inputs
        seconds += taken(lambda h=gram: torch.linalg.cholesky(h))
    for linear in linears.values():
        weight = linear.weight.detach()
        factor = torch.randn(weight.shape[1], weight.shape[1])
        seconds += taken(lambda w=weight, r=factor: w @ r) / 2
    return seconds * len(body.layers)


def child(code: str, *arguments: str, sample: bool = False) -> dict[str, float]:
    """Run Python code in a process of its own; return the number it prints last, and its costs."""
    return printed([sys.executable, "-c", code, *arguments], sample)


def printed(command: list[str], sample: bool) -> dict[str, float]:
    """Run a command; return the number it prints last, and its costs."""
    text, costs = watched(command, sample)
    return {"out": float(text.split()[-1]) if text.strip() else 0.0, **costs}


def watched(command: list[str], sample: bool) -> tuple[str, dict[str, float]]:
    """Run a command; return what it prints, its CPU seconds and its peaks of memory in bytes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )
    peak, ended = [0], threading.Event()

    def watch() -> None:
        # to ask whether it has ended would take its status from who waits for it
        while not ended.wait(0.005):
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                return
            for line in status.splitlines():
                if line.startswith("RssAnon"):
                    peak[0] = max(peak[0], int(line.split()[1]) * 1024)

    watcher = threading.Thread(target=watch)
    if sample:
        watcher.start()
    text = process.stdout.read() if process.stdout else b""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    ended.set()
    if sample:
        watcher.join()
    if process.returncode:
        sys.exit(f"failed: {command}")
    return text.decode(), {
        "cpu": usage.ru_utime + usage.ru_stime,
        "rss": usage.ru_maxrss * 1024,
        "anonymous": peak[0],
    }


PRUNE = """
import sys, time, torch
torch.set_num_threads(1)
from prunecli import prune
from prunecli.settings import Amount, Data
import prunecli.model.stream, prunecli.pruning.prune, transformers.models.llama.modeling_llama
model, data, out, method = sys.argv[1:]
start = time.process_time()
prune(model, out, method=method, amount=Amount(ratio=0.5, multiple=1), data=Data(data))
print(time.process_time() - start)
"""
FORWARD = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import cost; "


def main(model: str, data: str, methods: tuple[str, ...]) -> None:
    run_forward = FORWARD + "cost.forward(*sys.argv[1:])"
    run_floor = FORWARD + "cost.floor(*sys.argv[1:])"
    print(f"{'method':16}{'by':16}{'x forward':>10}{'spread':>12}{'RSS MB':>8}{'anonymous':>11}")
    rows = []
    with tempfile.TemporaryDirectory() as work:
        for method in methods:
            programs = {"prunecli": [sys.executable, "-c", PRUNE]}
            if PEER and method in PEER_METHODS:
                programs["llm-compressor"] = [PEER, str(HERE / "peer.py")]
            ratios: dict[str, list[float]] = {name: [] for name in programs}
            rss, anonymous = dict.fromkeys(programs, 0.0), dict.fromkeys(programs, 0.0)
            before = child(run_forward, model, data)["out"]
            for i in range(ROUNDS):
                for name, program in programs.items():
                    out = f"{work}/{method}-{name}-{i}"
                    run = printed([*program, model, data, out, method], sample=True)
                    after = child(run_forward, model, data)["out"]
                    ratios[name].append(run["out"] / ((before + after) / 2))
                    rss[name] = max(rss[name], run["rss"] / 1e6)
                    anonymous[name] = max(anonymous[name], run["anonymous"] / 1e6)
                    before = after
            if method in BY_LAYER:
                least = child(run_floor, model, data, method)["out"]
                after = child(run_forward, model, data)["out"]
                print(f"{method:16}{'cannot avoid':16}{2 * least / (before + after):10.2f}")
            for name, found in ratios.items():
                spread, median = f"{min(found):.2f}-{max(found):.2f}", statistics.median(found)
                print(
                    f"{method:16}{name:16}{median:10.2f}{spread:>12}{rss[name]:8.0f}"
                    f"{anonymous[name]:11.0f}",
                    flush=True,
                )
                rows.append({"method": method, "by": name, "forwards": found,
                             "rss_mb": rss[name], "anonymous_mb": anonymous[name]})  # fmt: skip
        if not PEER:
            depth(work, methods)
    print(json.dumps(rows))


def random_model(folder: Path, shape: dict[str, Any]) -> str:
    """Return a model of random weights with this config.json, made once."""
    from prunecli import init

    folder.parent.mkdir(parents=True, exist_ok=True)
    config = folder.with_suffix(".json")
    config.write_text(json.dumps(shape))
    init(folder, config=config, tokenizer="none", skip_existing=True)
    return str(folder)


def random_ids(file: Path, vocab: int, rows: int, length: int) -> str:
    """Return windows of random ids, made once."""
    import torch
    from safetensors.torch import save_file

    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"ids": torch.randint(vocab, (rows, length), dtype=torch.int32)}, file)
    return f"{file}:ids"


def depth(work: str, methods: tuple[str, ...]) -> None:
    """Print peak anonymous memory at 8 and at 32 layers of 20 MB (float32)."""
    data = random_ids(Path(work, "ids.safetensors"), 1024, 8, 256)
    shape = {
        "model_type": "llama", "hidden_size": 640, "intermediate_size": 2048,
        "num_attention_heads": 10, "num_key_value_heads": 5, "vocab_size": 1024,
        "max_position_embeddings": 512, "dtype": "float32",
    }  # fmt: skip
    for layers in (8, 32):
        random_model(Path(work, f"m{layers}"), {**shape, "num_hidden_layers": layers})
    print(f"\n{'method':16}{'8 layers MB':>13}{'32 layers MB':>14}{'ratio':>8}")
    for method in methods:
        peaks = [
            child(
                PRUNE,
                f"{work}/m{layers}",
                data,
                f"{work}/{method}-m{layers}",
                method,
                sample=True,
            )["anonymous"]
            / 1e6
            for layers in (8, 32)
        ]
        print(f"{method:16}{peaks[0]:13.0f}{peaks[1]:14.0f}{peaks[1] / peaks[0]:8.3f}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: cost.py MODEL TOKENS.safetensors:NAME [METHOD...]")
    main(sys.argv[1], sys.argv[2], tuple(sys.argv[3:]) or METHODS)
