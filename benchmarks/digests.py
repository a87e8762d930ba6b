#!/usr/bin/env python3
"""What a list of commands over all methods and families writes, as digests that two trees share.

    python benchmarks/digests.py make FILE.json     (with the prunecli that is on the path)
    python benchmarks/digests.py compare BEFORE.json AFTER.json

A restructuring must leave every byte as it is: tensors, configs, and sidecars without `run`, which
holds times, and logs without speeds. Runs on tiny random models, in a minute or two.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

TINY = {
    "num_hidden_layers": 4,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 259,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
SPEED = "tokens_per_second"  # in the log of a training run
# what some families cannot do without
OF_FAMILY = {
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16},
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16},
    "olmo2": {"num_attention_heads": 6},
    "olmo3": {"num_attention_heads": 6, "sliding_window": 16},
}
FAMILIES = [
    "gemma2",
    "gemma3_text",
    "granite",
    "llama",
    "mistral",
    "olmo2",
    "olmo3",
    "phi3",
    "qwen2",
    "qwen3",
    "seed_oss",
    "smollm3",
]
WINDOWS = ["--data", "builtin", "--nsamples", "4", "--seq-len", "32"]
WIDTH = [*WINDOWS, "--ratio", "0.4", "--multiple", "1"]
DEPTH = [*WINDOWS, "--layers", "3"]
METHODS = {
    "flap": WIDTH,
    "flap --structure AL-AM": WIDTH,
    "flap --bias drop": WIDTH,
    "llm-pruner": WIDTH,
    "minitron-width": WIDTH,
    "wanda-sp": WIDTH,
    "slicegpt-global": WIDTH,
    "minitron-depth": DEPTH,
    "shortened-llama --protect 0,0": DEPTH,
    "shortgpt": DEPTH,
    "sleb": DEPTH,
    "magnitude": ["--ratio", "0.5"],
    "wanda": [*WINDOWS, "--ratio", "0.5"],
    "sparsegpt": [*WINDOWS, "--sparsity", "2:4"],
}
KEEPS = ["flap", "llm-pruner", "minitron-width", "minitron-depth", "shortgpt", "sleb"]


def commands() -> list[tuple[str, str]]:
    """Return (command, what it writes); models come before what reads them."""
    made = [(f"init --config {name}.json --tokenizer bytes {name}", name) for name in FAMILIES]
    for name in FAMILIES:
        out = f"narrow-{name}"
        made.append((f"prune --method wanda-sp {' '.join(WIDTH)} {name} {out}", out))
    for name, options in METHODS.items():
        out = name.replace(" ", "")
        keep = [f"--keep kept-{out}"] if name in KEEPS else []
        line = " ".join(["prune --method", name, *options, *keep, "llama", out])
        made.append((line, f"{out} kept-{out}" if keep else out))
    windows = " ".join(WINDOWS)
    held_out = "--data builtin:evaluation --nsamples 4 --seq-len 32"
    made += [
        (f"calibrate --for flap,wanda,sparsegpt {windows} llama s.safetensors", "s.safetensors"),
        ("score --method wanda-sp --stats s.safetensors llama sc.safetensors", "sc.safetensors"),
        ("prune --method wanda --stats s.safetensors --ratio 0.5 llama from-stats", "from-stats"),
        ("prune --method flap --scores kept-flap/scores.safetensors --ratio 0.3"
         " --multiple 1 llama from-scores", "from-scores"),
        (f"prune --method minitron-width --plan-only {' '.join(WIDTH)} llama p.json", "p.json"),
        ("prune --plan p.json llama from-plan", "from-plan"),
        (f"search-arch --method minitron-width --ratio 0.4 {windows} --multiple 16"
         " llama a.json", "a.json"),
        ("tokenize --seq-len 32 --tokenizer llama --tokens 20000 builtin rows", "rows"),
        ("train --data rows --steps 6 --batch-size 4 --lr 1e-3 --save-every 3 flap trained",
         "trained"),
        ("train --data rows --steps 4 --batch-size 4 --lr 1e-3 wanda trained-sparse",
         "trained-sparse"),
        ("train --data rows --steps 4 --batch-size 4 --teacher llama minitron-width kd",
         "kd"),
        ("prune --method sheared-llama --data rows --tokens 640 --batch-size 4 --ratio 0.3"
         " --multiple 1 llama sheared", "sheared"),
        ("init --like trained twin", "twin"),
        (f"eval {held_out} --out e1.json trained", "e1.json"),
        (f"eval {held_out} --out e2.json wanda", "e2.json"),
    ]  # fmt: skip
    return made


def contents(path: Path) -> bytes:
    """Return what must not differ of a file."""
    content = path.read_bytes()
    if path.suffix == ".jsonl":
        lines = [json.loads(line) for line in content.splitlines()]
        steps = [{k: v for k, v in line.items() if k != SPEED} for line in lines]
        return json.dumps(steps).encode()
    if path.suffix != ".json":
        return content
    told = json.loads(content)
    if isinstance(told, dict):
        told.pop("run", None)
        for step in told.get("history", []):
            step.pop("run", None)
    return json.dumps(told, sort_keys=True).encode()


def digests(folder: Path, names: str) -> dict[str, str]:
    """Return the digest of every file under these names."""
    files: list[Path] = []
    for name in names.split():
        path = folder / name
        beside = path.with_name(f"{path.name}.json")
        files += sorted(path.rglob("*")) if path.is_dir() else [path]
        files += [beside] if beside.is_file() else []
    return {
        str(file.relative_to(folder)): hashlib.sha256(contents(file)).hexdigest()
        for file in files
        if file.is_file()
    }


def make(out: str) -> None:
    """Run every command and write what it gave."""
    found: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for family in FAMILIES:
            config = {"model_type": family, **TINY, **OF_FAMILY.get(family, {})}
            (folder / f"{family}.json").write_text(json.dumps(config))
        for line, names in commands():
            done = subprocess.run(
                ["prunecli", *line.split()], cwd=folder, capture_output=True, text=True
            )
            print(done.returncode, line, flush=True)
            if done.returncode:
                print(done.stderr, flush=True)
            found[line] = {"status": done.returncode, **digests(folder, names)}
    Path(out).write_text(json.dumps(found, indent=1) + "\n")


def compare(before: str, after: str) -> int:
    """Print what differs; return the exit status."""
    old, new = (json.loads(Path(path).read_text()) for path in (before, after))
    differ = [line for line in {**old, **new} if old.get(line) != new.get(line)]
    for line in differ:
        one, other = old.get(line, {}), new.get(line, {})
        files = [name for name in {**one, **other} if one.get(name) != other.get(name)]
        print(f"differs: {line}: {', '.join(sorted(files))}")
    total = sum(len(found) - 1 for found in new.values())
    print(f"{len(new)} commands, {total} files, {len(differ)} commands differ")
    return int(bool(differ))


if __name__ == "__main__":
    if sys.argv[1:2] == ["make"] and len(sys.argv) == 3:
        make(sys.argv[2])
    elif sys.argv[1:2] == ["compare"] and len(sys.argv) == 4:
        sys.exit(compare(*sys.argv[2:]))
    else:
        sys.exit(__doc__)
