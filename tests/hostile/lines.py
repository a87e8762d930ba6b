"""Command lines over tiny inputs, for tests that disturb them, and what two results have in common.

In a line OUT is the output, WAY a number that changes it, KEPT a folder beside OUT that is kept,
and other words in capitals are inputs.
"""

import io
import json
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from forks import in_child

import prunecli
import tiny
from prunecli.cli import app
from prunecli.files import output

# command -> the name of its output, empty where it has none, and the line: a new one is added here
LINES = {
    "calibrate": (
        "o.safetensors", "calibrate --for flap --data TOKENS --nsamples WAY MODEL OUT"),
    "score": ("o.safetensors", "score --method flap --data TOKENS --nsamples WAY MODEL OUT"),
    "prune": ("o", "prune --method magnitude --ratio 0.WAY MODEL OUT"),
    "init": ("o", "init --like MODEL --seed WAY OUT"),
    "train": ("o", "train --data TOKENS --steps 6 --batch-size 2 --lr 1e-3 --save-every 2 "
              "--seed WAY MODEL OUT"),
    "tokenize": ("o", "tokenize --seq-len 16 --tokenizer READER --shard-tokens 64 --workers 1 "
                 "--tokens WAY00 TEXT OUT"),
    "search-arch": ("o.json", "search-arch --method minitron-width --ratio 0.2 --data TOKENS "
                    "--eval-data HELD --nsamples WAY --multiple 4 MODEL OUT"),
    "eval": ("o.json", "eval --data TOKENS --data HELD --nsamples WAY --out OUT MODEL"),
    "prune by data": (
        "o", "prune --method wanda --ratio 0.5 --data TOKENS --nsamples WAY MODEL OUT"),
    "prune --keep": (
        "o", "prune --method flap --ratio 0.2 --data TOKENS --nsamples WAY --keep KEPT MODEL OUT"),
    "prune --plan-only": ("o.json", "prune --method shortgpt --layers 3 --data TOKENS "
                          "--nsamples WAY --plan-only MODEL OUT"),
    "prune by training": ("o", "prune --method sheared-llama --layers 3 --hidden 36 --heads 3 "
                          "--ffn 40 --data TOKENS --tokens 128 --batch-size 2 --lr 1e-3 "
                          "--seed WAY MODEL OUT"),
    "prune --keep-wrapper": (
        "o", "prune --method magnitude --ratio 0.WAY --keep-wrapper WRAPPED OUT"),
    "prune --keep-wrapper by data": ("o", "prune --method wanda --ratio 0.5 --data TOKENS "
                                     "--nsamples WAY --keep-wrapper WRAPPED OUT"),
    "tokenize, trained": ("o", "tokenize --seq-len 16 --train-tokenizer 262 --workers 1 "
                          "--tokenizer KEPT --tokens WAY00 TEXT OUT"),
    "tokenize by two": ("o", "tokenize --seq-len 16 --tokenizer READER --shard-tokens 100000 "
                        "--workers 2 LONG OUT"),
    "eval of tasks": ("o.json", "eval --tasks own --include-path TASKS --out OUT READER"),
    "speed --out": ("o.json", "speed --flops-only --seq-len WAY0 --out OUT MODEL"),
    "table --html": ("o.html", "table --html OUT RUNS/WAY"),
    "table --plot": ("o.png", "table --reference paper --figure WAY --plot OUT"),
    "speed": ("", "speed --rounds 2 --seq-len 16 READER"),
    "check": ("", "check --deep PRUNED"),
    "methods": ("", "methods"),
    "families": ("", "families"),
}  # fmt: skip
# the eight commands that make what others read, each once
EIGHT = list(LINES)[:8]
# what is made depends on WAY
CHANGED = [name for name, (out, line) in LINES.items() if out and "WAY" in line]
TIMES = re.compile(rb'"tokens_per_second": [\d.]+')


def inputs(root: Path) -> dict[str, str]:
    """Make what the words in capitals stand for."""
    model = tiny.make(root / "model")
    (root / "c.json").write_text(json.dumps(tiny.config_of("llama", vocab_size=300)))
    prunecli.init(str(root / "reader"), config=str(root / "c.json"), seed=3, tokenizer="bytes")
    settings = root / "reader" / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "eos_token": "!"}))
    text = "\n\n".join(f"The {n}th cat sat on mat {n * n}, the dog ran." for n in range(60))
    (root / "text.txt").write_text(text)
    rows = [json.dumps({"text": text * 80}) for _ in range(48)]
    (root / "long.jsonl").write_text("\n".join(rows))
    prunecli.prune(str(model), str(root / "p"), method="magnitude", ratio=0.5)
    for rows in (1, 3):
        read = tiny.tokens(root / f"w{rows}.safetensors", rows=rows)
        prunecli.evaluate(str(model), data=[read], out=str(root / "runs" / str(rows) / "e.json"))
    _task(root / "tasks")
    return {
        "MODEL": str(model),
        "TOKENS": tiny.tokens(root / "tokens.safetensors", rows=12, seed=1),
        "HELD": tiny.tokens(root / "held.safetensors", seed=2),
        "READER": str(root / "reader"),
        "TEXT": str(root / "text.txt"),
        "LONG": str(root / "long.jsonl"),
        "TASKS": str(root / "tasks"),
        "RUNS": str(root / "runs"),
        "PRUNED": str(root / "p"),
        "WRAPPED": str(_wrapped(root / "wrapped")),
    }


def _wrapped(folder: Path) -> Path:
    """Write a multimodal model, in several files."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
             "num_attention_heads": 2, "image_size": 28, "patch_size": 14}  # fmt: skip
    config = AutoConfig.for_model(
        "llava",
        text_config=tiny.config_of("llama"),
        vision_config={**tower, "model_type": "clip_vision_model"},
        image_token_index=258,
    )
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder, max_shard_size="200KB")
    return folder


def _task(folder: Path) -> None:
    """Write a task of lm-eval with two choices; JSON is YAML."""
    folder.mkdir()
    items = [{"query": f"cat {n}", "choices": ["sat", "ran"], "gold": n % 2} for n in range(12)]
    (folder / "own.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    record = {
        "task": "own", "dataset_path": "json", "test_split": "test",
        "dataset_kwargs": {"data_files": {"test": str(folder / "own.jsonl")}},
        "output_type": "multiple_choice", "doc_to_text": "{{query}}",
        "doc_to_choice": "choices", "doc_to_target": "gold", "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    (folder / "own.yaml").write_text(json.dumps(record))


def line(name: str, words: dict[str, str], folder: Path, way: int, *more: str) -> list[str]:
    """Return the arguments of a command whose output goes into `folder`."""
    out, text = LINES[name]
    known = {**words, "OUT": str(folder / out), "KEPT": str(folder / "kept"), "WAY": str(way)}
    pattern = re.compile("|".join(known))
    quiet = [] if name in ("check", "methods", "families") else ["--quiet"]
    arguments = [pattern.sub(lambda found: known[found[0]], word) for word in text.split()]
    return [arguments[0], *quiet, *more, *arguments[1:]]


def as_program(arguments: list[str], talk: Path, before: Callable = lambda: None) -> None:
    """Be the program: run a command line, say all to `talk`, and end with its status."""
    status = 70
    with talk.open("w") as said:
        sys.stdout, sys.stderr = io.StringIO(), said
        sys.argv = ["prunecli", *arguments]
        try:
            before()
            app.main()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        finally:
            said.flush()
            os._exit(status)


def run(arguments: list[str], talk: Path, before: Callable = lambda: None) -> int:
    """Return the exit status of a command line, run in a child that is this process as it is."""
    return in_child(lambda: as_program(arguments, talk, before))


def names(folder: Path) -> set[str]:
    """Return the names in a folder."""
    return {path.name for path in folder.iterdir()}


def made(folder: Path, name: str) -> dict[str, object]:
    """Return what the output of a command consists of, but for what equal runs do not share."""
    path = folder / LINES[name][0]
    files = [path, path.with_name(path.name + ".json")]
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    found: dict[str, object] = {}
    for file in filter(Path.is_file, files):
        content: object = TIMES.sub(b"", file.read_bytes())
        if file.suffix == ".json":
            with suppress(ValueError):  # it may be torn
                content = json.loads(content)
                content.pop("run", None)
        found[file.relative_to(folder).as_posix()] = content
    return found


def without_exchange() -> None:
    """Be a system that has no renameat2."""
    output._exchange = lambda one, other: False
