"""Mutated files before the real command: what it says to each is a documented line, or success.

`world` makes one of every kind of artefact, tiny and real. `COMMANDS` says which command reads
which of them. A `Trial` is one of these commands on one mutated file; `run` tries it here, in this
process, through the same function as the installed command, and `installed` through that.
"""

import copy
import gzip
import io
import json
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import pyarrow
import pyarrow.parquet
import safetensors
import torch
from safetensors.torch import load_file, save_file

import prunecli
import tiny
from prunecli.cli import app
from prunecli.data import shards
from prunecli.errors import InputError, Stopped
from prunecli.files import seal
from prunecli.files.sidecar import Input, content_id
from prunecli.settings import Amount, Data

SIZES = {
    "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip
STATUSES = (0, 2, 3, 4, 5, 75)
FAILED = 1  # documented as well, for what is no fault of a file: a loss that is none
LONGEST = 500  # characters of an error line
PATIENCE = 10  # seconds
MEMORY = 1 << 30  # bytes
UNKNOWN = ("internal error", "--verbose shows where", "cannot be checked:", "Traceback", "panicked")
TEXTS = {
    "a.txt": "Some text of its own, and more of it. " * 30,
    "a.jsonl": "".join(f'{{"text": "line {i} is a line of text", "n": {i}}}\n' for i in range(40)),
    "a.json": json.dumps([{"text": f"item {i} is an item of text"} for i in range(40)]),
}
MASK_TRAINING = {"batch_size": 2, "tokens": 64.0}


# artefacts: made once


def world(root: Path) -> Path:
    """Make one of every artefact in a folder, and return it."""
    config = root / "config.json"
    config.write_text(json.dumps(tiny.config_of("llama", **SIZES)))
    prunecli.init(f"{root}/in", config=str(config))
    (root / "in" / "generation_config.json").write_text('{"do_sample": true, "top_k": 5}')
    shutil.copytree(root / "in", root / "shards")
    _shard(root / "shards")
    ids = tiny.tokens(root / "ids.safetensors", rows=6, length=16, seed=3)
    held = tiny.tokens(root / "held.safetensors", rows=2, length=16, seed=9)
    data: dict[str, Any] = {"data": Data(ids)}
    model, half = f"{root}/in", Amount(ratio=0.5)
    prunecli.calibrate(model, f"{root}/stats.safetensors", methods=["flap"], **data)
    prunecli.score(model, f"{root}/scores.safetensors", method="minitron-width", **data)
    by_scores: dict[str, Any] = {"method": "minitron-width", "amount": half}
    scores = f"{root}/scores.safetensors"
    prunecli.prune(model, f"{root}/plan.json", scores=scores, plan_only=True, **by_scores)
    prunecli.prune(model, f"{root}/pruned", scores=scores, **by_scores)
    prunecli.prune(model, f"{root}/sparse", method="magnitude", amount=half)
    prunecli.evaluate(f"{root}/pruned", data=[held], out=f"{root}/eval.json")
    prunecli.speed(model, flops_only=True, out=f"{root}/speed.json")
    prunecli.search_arch(
        model, f"{root}/arch.json", method="minitron-width", ratio=0.3, multiple=4, **data,
        eval_data=Data(held),
    )  # fmt: skip
    _texts(root)
    rows: dict[str, Any] = {"tokenizer": model, "seq_len": 16, "workers": 1}
    prunecli.tokenize(f"{root}/a.jsonl", f"{root}/rows", shard_tokens=256, **rows)
    prunecli.train(f"{root}/in", f"{root}/trained", data=f"{root}/rows", steps=2, batch_size=2)
    _states(root, ids)
    options = {"ratio": 0.5, "method": "magnitude"}
    (root / "options.json").write_text(json.dumps(options))
    (root / "options.yaml").write_text("prune:\n  ratio: 0.5\n  method: magnitude\n")
    (root / "options.toml").write_text('[prune]\nratio = 0.5\nmethod = "magnitude"\n')
    return root


def _shard(folder: Path) -> None:
    """Turn the weights of a folder into two shards with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "prunecli.json").unlink()
    record = json.loads((folder / "config.json").read_text())
    record.pop("prunecli", None)
    (folder / "config.json").write_text(json.dumps(record))
    names, files = sorted(tensors), [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    for file, half in zip(files, halves, strict=True):
        save_file({name: tensors[name] for name in half}, folder / file, {"format": "pt"})
    index = {name: file for file, half in zip(files, halves, strict=True) for name in half}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def _texts(root: Path) -> None:
    """Write the text in every format and every compression."""
    for name, text in TEXTS.items():
        (root / name).write_text(text)
        (root / f"{name}.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
        zstd = pyarrow.Codec("zstd").compress(text.encode(), asbytes=True)
        (root / f"{name}.zst").write_bytes(zstd)
    table = pyarrow.table({"text": [f"row {i} has a text" for i in range(40)], "n": range(40)})
    pyarrow.parquet.write_table(table, root / "a.parquet")


def _states(root: Path, ids: str) -> None:
    """Leave the states of runs that were stopped."""
    model = f"{root}/in"
    training: dict[str, Any] = {"data": f"{root}/rows", "batch_size": 2}
    data: dict[str, Any] = {"data": Data(ids)}
    for stopped in (
        lambda: prunecli.train(
            model, f"{root}/t", steps=4, save_every=1, stop=tiny.stop_after(3), **training
        ),
        lambda: prunecli.train(
            model, f"{root}/sweep", steps=4, sweep_steps=1, lr="sweep", stop=tiny.stop_after(3),
            **training,
        ),
        lambda: prunecli.prune(
            model, f"{root}/masks", method="sheared-llama", amount=Amount(ratio=0.5), **data,
            options=MASK_TRAINING, stop=tiny.stop_after(2),
        ),
        lambda: prunecli.search_arch(
            model, f"{root}/found.json", method="sheared-llama", ratio=0.3, multiple=4, **data,
            options=MASK_TRAINING, eval_data=Data(f"{root}/held.safetensors:ids"),
            stop=tiny.stop_after(4),
        ),
    ):  # fmt: skip
        with suppress(Stopped):
            stopped()
            raise AssertionError("it was not stopped")
    _stopped_tokenize(root)


def _stopped_tokenize(root: Path) -> None:
    """Leave the state of a `tokenize` that ended after its first shard."""
    source, good = root / "b.jsonl", TEXTS["a.jsonl"].encode()
    request: dict[str, Any] = {"tokenizer": f"{root}/in", "seq_len": 16, "workers": 1}
    source.write_bytes(good[:-3] + b"xx\n")
    with small_batches(), suppress(InputError):
        prunecli.tokenize(str(source), f"{root}/cut", shard_tokens=64, **request)
        raise AssertionError("the last line is bad")
    source.write_bytes(good)


@contextmanager
def small_batches() -> Iterator[None]:
    """Let `tokenize` finish shards, and so have a state, after little text."""
    before, shards.BATCH = shards.BATCH, 200
    try:
        yield
    finally:
        shards.BATCH = before


# what is tried: commands, and what each of them reads

DATA = "--data {}/ids.safetensors:ids"
ROWS = "--data {}/rows --batch-size 2"
MASKS = f"--method sheared-llama {DATA} --batch-size 2"
COMMANDS: dict[str, tuple[str, str]] = {
    "check": ("check {}/in", "in"),
    "check shards": ("check {}/shards", "shards"),
    "check deep": ("check --deep {}/sparse {}/pruned", "sparse pruned"),
    "check files": (
        "check --deep {}/stats.safetensors {}/scores.safetensors {}/plan.json {}/arch.json "
        "{}/eval.json {}/speed.json {}/rows",
        "stats.safetensors scores.safetensors plan.json arch.json eval.json speed.json rows",
    ),
    "prune": ("prune --method magnitude --ratio 0.5 {}/in {}/out", "in"),
    "prune shards": ("prune --method magnitude --sparsity 2:4 {}/shards {}/out", "shards"),
    "prune again": ("prune --method magnitude --ratio 0.5 {}/pruned {}/out", "pruned"),
    "prune by stats": (
        "prune --method flap --ratio 0.5 --stats {}/stats.safetensors {}/in {}/out",
        "stats.safetensors in",
    ),
    "prune by scores": (
        "prune --method minitron-width --ratio 0.5 --scores {}/scores.safetensors {}/in {}/out",
        "scores.safetensors in",
    ),
    "prune by plan": ("prune --plan {}/plan.json {}/in {}/out", "plan.json plan.json in"),
    "prune by arch": (
        f"prune --method minitron-width --arch {{}}/arch.json {DATA} --dry-run {{}}/in {{}}/out",
        "arch.json arch.json in ids.safetensors",
    ),
    "prune by text": (
        "prune --method wanda --ratio 0.5 --data {}/a.txt --nsamples 2 --seq-len 16 {}/in {}/out",
        "a.txt in",
    ),
    "prune by json options": ("prune --config {}/options.json {}/in {}/out", "options.json +in"),
    "prune by yaml options": ("prune --config {}/options.yaml {}/in {}/out", "options.yaml +in"),
    "prune by toml options": ("prune --config {}/options.toml {}/in {}/out", "options.toml +in"),
    "calibrate": (
        f"calibrate --for wanda {DATA} {{}}/in {{}}/out.safetensors", "in ids.safetensors"
    ),
    "score": (
        "score --method flap --stats {}/stats.safetensors {}/in {}/out.safetensors",
        "stats.safetensors +in",
    ),
    "eval": (f"eval {DATA} {{}}/in", "in ids.safetensors"),
    "eval pruned": (
        "eval --data {}/held.safetensors:ids --out {}/out.json {}/pruned",
        "pruned held.safetensors",
    ),
    "eval text": ("eval --data {}/a.jsonl --nsamples 2 --seq-len 16 {}/in", "a.jsonl in"),
    "speed": ("speed --flops-only {}/in", "in"),
    "speed of sparse": ("speed --flops-only --base {}/in {}/sparse", "sparse +in"),
    "init like": ("init --like {}/pruned {}/out", "pruned"),
    "init masks": ("init --like {}/sparse --masks keep {}/out", "sparse"),
    "init config": ("init --config {}/config.json {}/out", "config.json"),
    "train": (f"train {ROWS} --steps 1 {{}}/in {{}}/out", "in rows"),
    "train sparse": (f"train {ROWS} --steps 1 {{}}/sparse {{}}/out", "sparse rows"),
    "train plan": (f"train {ROWS} --steps 2 --dry-run {{}}/pruned {{}}/out", "pruned rows"),
    "train on": (
        f"train {ROWS} --steps 1 --allow-overlap {{}}/trained {{}}/out", "trained rows"
    ),
    "train resumed": (
        f"train {ROWS} --steps 4 --save-every 1 {{}}/in {{}}/t", "t.partial +in +rows"
    ),
    "sweep resumed": (
        f"train {ROWS} --steps 4 --sweep-steps 1 --lr sweep {{}}/in {{}}/sweep",
        "sweep.partial +in +rows",
    ),
    "masks resumed": (
        f"prune {MASKS} --tokens 64 --ratio 0.5 {{}}/in {{}}/masks",
        "masks.partial +in +ids.safetensors",
    ),
    "search resumed": (
        f"search-arch {MASKS} --tokens 64 --ratio 0.3 --multiple 4 "
        "--eval-data {}/held.safetensors:ids {}/in {}/found.json",
        "found.json.partial +in +ids.safetensors +held.safetensors",
    ),
    "tokenize resumed": (
        "tokenize --tokenizer {}/in --seq-len 16 --workers 1 --shard-tokens 64 {}/b.jsonl {}/cut",
        "cut.partial +b.jsonl +in",
    ),
    **{
        f"tokenize {name}": (
            f"tokenize --tokenizer {{}}/in --seq-len 16 --workers 1 {{}}/{name} {{}}/out",
            f"{name} {name} in",
        )
        for name in (*TEXTS, "a.jsonl.gz", "a.txt.zst", "a.json.gz", "a.jsonl.zst", "a.parquet")
    },
    "table": (
        "table {}/pruned {}/eval.json {}/speed.json {}/trained",
        "pruned eval.json eval.json speed.json trained",
    ),
    "table of a folder": ("table --format csv {}/in {}/sparse {}/pruned", "sparse pruned in"),
    "advice": (
        "table --advise {}/pruned {}/eval.json {}/trained",
        "pruned eval.json trained",
    ),
    "report": (
        "table --html {}/out.html {}/pruned {}/eval.json {}/trained {}/arch.json",
        "pruned eval.json trained arch.json",
    ),
}  # fmt: skip


# how files are mutated

ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 2**31, 2**63, -(2**63), 10**30, 10**299, 0.5, -0.5, 1e308,
    1e-320, float("nan"), float("inf"), "", "x", "\ud800", "\x1b[31m", "../../x", "x" * 3000, "\0",
    "1", [], [1], [[]], [None], ["x"], [-1], [1.5], [10**20], ["x", 1, None], {}, {"a": 1},
    {"": None},
)  # fmt: skip
DEEP = 50_000
DUPLICATE = "\u0000twice"


def mutated(content: bytes, name: str, others: list[bytes], draw: random.Random) -> bytes:
    """Return a file's content with one to three faults in it, of the kinds its format can have."""
    kinds: list[Callable[[bytes, random.Random], bytes]] = [_bytes, _bytes]
    if name.endswith((".json", ".jsonl")):
        kinds += [_json] * 10
    if name.endswith(".safetensors"):
        kinds += [_header] * 6 + [_tensors] * 4
    if name.endswith((".gz", ".zst")):
        kinds += [_packed(name)] * 6
    if draw.random() < 0.03:
        return draw.choice([b"", b"{}", b"[]", b"\0" * 100, *others])
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        content = draw.choice(kinds)(content, draw)
    return content


def _bytes(content: bytes, draw: random.Random) -> bytes:
    data, place = bytearray(content), draw.randrange(len(content) + 1)
    kind = draw.randrange(6)
    if kind == 0 or not data:
        return content[:place]
    if kind == 1:
        data[place:place] = bytes(draw.randrange(256) for _ in range(draw.choice((1, 8, 100))))
    elif kind == 2:
        del data[place : place + draw.choice((1, 8, 100))]
    elif kind == 3:
        data += data[place:]
    else:
        for _ in range(draw.choice((1, 1, 4, 16))):
            # beginnings hold what describes the rest
            most = len(data) if draw.random() < 0.5 else min(len(data), 64)
            data[draw.randrange(most)] ^= 1 << draw.randrange(8)
    return bytes(data)


def _json(content: bytes, draw: random.Random) -> bytes:
    """Change one value of a JSON text, or of one of its lines."""
    with suppress(ValueError, RecursionError):
        return _resealed(json.loads(content), draw)
    lines = content.splitlines(keepends=True)
    with suppress(ValueError, RecursionError, IndexError):
        place = draw.randrange(len(lines))
        lines[place] = _changed(json.loads(lines[place]), draw).encode() + b"\n"
    return b"".join(lines)


def _resealed(record: Any, draw: random.Random) -> bytes:
    """Change one value; half the time with ids and digests that are right for what it is then."""
    text = _changed(record, draw)
    with suppress(Exception):
        changed = json.loads(text)
        if draw.random() < 0.5 and {"schema", "run", "history"} <= changed.keys():
            step = changed["history"][-1]
            step["options"], step["inputs"] = changed["options"], changed["inputs"]
            inputs = [Input.model_validate(one) for one in changed["inputs"]]
            made = content_id(changed["kind"], changed["options"], inputs)
            changed["id"] = step["id"] = made
            changed["run"].pop("digest", None)
            changed["run"]["digest"] = seal.of_record(changed)
            text = json.dumps(changed)
    return text.encode()


def _changed(record: Any, draw: random.Random) -> str:
    """Return JSON of a value in which one is another, is gone, twice there, or very deep."""
    record = copy.deepcopy(record)
    holders = [one for one in _holders(record) if one]
    if not holders:
        return json.dumps(draw.choice(ODD))
    holder = draw.choice(holders)
    key = draw.choice(list(holder if isinstance(holder, dict) else range(len(holder))))
    kind = draw.randrange(9)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[draw.choice(("x", key + "x", key.upper(), "\ud800", "__class__"))] = holder.pop(key)
    elif kind == 2 and isinstance(holder, dict):
        holder[DUPLICATE] = holder[key]
        return json.dumps(record).replace(json.dumps(DUPLICATE), json.dumps(key))
    elif kind == 3 and isinstance(holder, list):
        holder[:] = draw.choice((holder[::-1], holder * 2, holder[:key], [holder]))
    elif kind == 4 and draw.random() < 0.3:
        holder[key] = DUPLICATE
        deep = draw.choice(("[]", '{"a":}'))
        half = len(deep) // 2 if deep == "[]" else 5
        nested = deep[:half] * DEEP + "1" * (deep != "[]") + deep[half:] * DEEP
        return json.dumps(record).replace(json.dumps(DUPLICATE), nested)
    elif kind == 5 and type(holder[key]) in (int, float):
        holder[key] = draw.choice(
            (-holder[key], holder[key] * 1000, holder[key] + 1, holder[key] / 3)
        )
    else:
        holder[key] = draw.choice(ODD)
    return json.dumps(record)


def _holders(value: Any) -> Iterator[Any]:
    """Yield every list and object in a value."""
    if isinstance(value, dict | list):
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _holders(inner)


def _header(content: bytes, draw: random.Random) -> bytes:
    """Change the header of a safetensors file, and its length with it."""
    with suppress(ValueError, RecursionError, struct.error):
        (length,) = struct.unpack("<Q", content[:8])
        text = _changed(json.loads(content[8 : 8 + length]), draw).encode()
        return struct.pack("<Q", len(text)) + text + content[8 + length :]
    return content


def _tensors(content: bytes, draw: random.Random) -> bytes:
    """Change one tensor of a safetensors file, which is a sound one before and after."""
    try:
        tensors = safetensors.torch.load(content)
        name = draw.choice(list(tensors))
    except Exception:
        return content
    tensor = tensors[name]
    kind = draw.randrange(8)
    if kind == 0:
        del tensors[name]
    elif kind == 1:
        tensors[draw.choice((f"{name}x", "x", "model.layers.7.x", "layers.99.x"))] = tensor.clone()
    elif kind == 2:
        tensors[name] = tensor.reshape(-1).clone()
    elif kind == 3:
        tensors[name] = tensor.to(
            draw.choice((torch.float64, torch.int8, torch.bool, torch.bfloat16))
        )
    elif kind == 4:
        tensors[name] = tensor[: len(tensor) // 2].clone() if tensor.dim() else tensor[None].clone()
    elif kind == 5 and tensor.is_floating_point():
        tensors[name] = torch.full_like(tensor, draw.choice((float("nan"), float("inf"), -1e30, 0)))
    elif kind == 6 and not tensor.is_floating_point():
        # a type that does not hold it wraps around
        value = torch.tensor(draw.choice((-1, 10**4, 258))).to(tensor.dtype)
        tensors[name] = value.expand_as(tensor).clone()
    else:
        tensors[name] = torch.empty(0, *tensor.shape[1:], dtype=tensor.dtype)
    return safetensors.torch.save(tensors, {"format": "pt"})


def _packed(name: str) -> Callable[[bytes, random.Random], bytes]:
    """Return the mutation of what a compressed file holds."""

    def change(content: bytes, draw: random.Random) -> bytes:
        try:
            if name.endswith(".gz"):
                inner = gzip.decompress(content)
            else:
                inner = pyarrow.CompressedInputStream(io.BytesIO(content), "zstd").read()
        except Exception:
            return content
        inner = (_json if ".json" in name else _bytes)(inner, draw)
        if name.endswith(".gz"):
            return gzip.compress(inner, 1, mtime=0)
        return pyarrow.Codec("zstd").compress(inner, asbytes=True)

    return change


# one trial


@dataclass
class Trial:
    """A command on files one of which is mutated: `seed` says which command, file and fault."""

    seed: int
    command: str
    argv: list[str]
    file: str


@dataclass
class Outcome:
    """What a command did: its exit status, what it said, how long it took.

    `grown` is by how many bytes the peak of its memory lies above the start, `weights` how often it
    opened a file to read tensors.
    """

    status: int
    stderr: str
    stdout: str
    seconds: float
    grown: int = 0
    weights: int = 0

    def faults(self) -> list[str]:
        """Return what it must not have done."""
        found = []
        errors = [line for line in self.stderr.splitlines() if "prunecli: error:" in line]
        if self.status not in (*STATUSES, FAILED):
            found.append(f"exit status {self.status}")
        found += [word for word in UNKNOWN if word in self.stderr + self.stdout]
        if self.status == FAILED and not errors:
            found.append("it failed without a word")
        if self.status not in (0, 3) and len(errors) != 1:
            found.append(f"{len(errors)} error lines")
        if any(len(line) > LONGEST for line in self.stderr.splitlines()):
            found.append("a long line")
        if stray := [line for line in self.stderr.splitlines() if not _is_talk(line)]:
            found.append(f"on stderr: {stray[0]}")
        if self.seconds > PATIENCE:
            found.append(f"{self.seconds:.0f} s")
        if self.grown > MEMORY:
            found.append(f"{self.grown / 1e6:.0f} MB")
        return found


def _is_talk(line: str) -> bool:
    # transformers warns in its own name
    return line.startswith(("prunecli: ", "[transformers]", "  ")) or "Warning" in line


class Hang(BaseException):
    """A command took longer than it may."""


def trial(artefacts: Path, work: Path, seed: int) -> Trial:
    """Put what a command reads into the folder `work`, one file of it mutated."""
    draw = random.Random(seed)
    command = draw.choice(list(COMMANDS))
    targets = _laid_out(artefacts, work, command)
    target = draw.choice(targets)
    files = [target] if target.is_file() else sorted(f for f in target.rglob("*") if f.is_file())
    chosen = draw.choice(files).relative_to(artefacts)
    others = [f.read_bytes() for f in sorted(artefacts.glob(f"*{chosen.suffix}")) if f.is_file()]
    path = work / chosen
    path.write_bytes(mutated(path.read_bytes(), path.name, others, draw))
    return Trial(seed, command, _arguments(command, work), str(chosen))


def untouched(artefacts: Path, work: Path, command: str) -> Trial:
    """Put what a command reads into the folder `work`, as it is."""
    _laid_out(artefacts, work, command)
    return Trial(0, command, _arguments(command, work), "")


def _arguments(command: str, work: Path) -> list[str]:
    line = COMMANDS[command][0]
    return line.format(*[work] * line.count("{}")).split()


def _laid_out(artefacts: Path, work: Path, command: str) -> list[Path]:
    """Copy what a command reads into the folder `work`; return what may be mutated of it."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    targets = []
    for name in COMMANDS[command][1].split():
        source = artefacts / name.lstrip("+")
        for part in (source, source.with_name(source.name + ".json")):
            if part.is_dir():
                shutil.copytree(part, work / part.name, dirs_exist_ok=True)
            elif part.exists():
                shutil.copy(part, work / part.name)
            if part.exists() and not name.startswith("+"):
                targets.append(part)
    return targets


@contextmanager
def _watched(outcome: Outcome) -> Iterator[None]:
    """Count how often weights are opened in the block, and end what hangs."""

    real_open = safetensors.safe_open

    def opened(*args: Any, **kwargs: Any) -> Any:
        outcome.weights += 1
        return real_open(*args, **kwargs)

    def late(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE + 1)
    safetensors.safe_open = opened
    try:
        yield
    finally:
        safetensors.safe_open = real_open
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(one: Trial) -> Outcome:
    """Run the command of a trial in this process, as the installed command does."""
    outcome = Outcome(-1, "", "", 0.0)
    before = os.dup(2), sys.argv, sys.stdout, sys.stderr, signal.getsignal(signal.SIGTERM)
    rested = _memory(reset=True)
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace")
    with TemporaryFile("w+", errors="replace", buffering=1) as err:
        os.dup2(err.fileno(), 2)  # libraries that are not Python's write there
        sys.argv, sys.stdout, sys.stderr = ["prunecli", *one.argv], out, err
        started = time.perf_counter()
        try:
            with _watched(outcome), small_batches():
                app.main()
        except SystemExit as end:
            outcome.status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException as error:
            outcome.stderr = f"Traceback: {type(error).__name__}: {error}"
        finally:
            outcome.seconds = time.perf_counter() - started
            err.flush()
            os.dup2(before[0], 2)
            os.close(before[0])
            _, sys.argv, sys.stdout, sys.stderr, handler = before
            signal.signal(signal.SIGTERM, handler)
            err.seek(0)
            outcome.stderr += err.read()
            out.seek(0)
            outcome.stdout = out.read()
    outcome.grown = _memory() - rested
    return outcome


def installed(one: Trial) -> Outcome:
    """Run the command of a trial as the installed command, in a process of its own."""
    command = Path(sys.executable).with_name("prunecli")
    started = time.perf_counter()
    try:
        ended = subprocess.run(
            [command, *one.argv], capture_output=True, text=True, errors="replace",
            timeout=30 * PATIENCE,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Outcome(-1, "Traceback: it hangs", "", time.perf_counter() - started)
    # a new process spends seconds on imports before it reads anything
    return Outcome(ended.returncode, ended.stderr, ended.stdout, 0.0)


def _memory(reset: bool = False) -> int:
    """Return the peak of this process's resident memory in bytes; with `reset` it begins anew.

    Only Linux tells.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
    return int(found[1]) * 1024 if found else 0


@dataclass
class Count:
    """What many trials came to."""

    runs: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    by_command: Counter[str] = field(default_factory=Counter)
    weights: int = 0
    slowest: float = 0.0
    largest: int = 0
    bad: list[str] = field(default_factory=list)

    def add(self, one: Trial, outcome: Outcome) -> None:
        """Take what a trial came to."""
        self.runs += 1
        self.statuses[outcome.status] += 1
        self.by_command[one.command] += 1
        self.weights += outcome.weights > 0
        self.slowest = max(self.slowest, outcome.seconds)
        self.largest = max(self.largest, outcome.grown)
        if faults := outcome.faults():
            last = (outcome.stderr or outcome.stdout).strip().splitlines()[-1:]
            self.bad.append(f"seed {one.seed}, {one.command}, {one.file}: {faults} {last}")

    def told(self) -> str:
        """Return the counts in a line."""
        statuses = ", ".join(f"{status}: {n}" for status, n in sorted(self.statuses.items()))
        return (
            f"{self.runs} inputs, of which {self.weights} reached the weights; exit status "
            f"{statuses}; slowest {self.slowest:.1f} s, memory at most {self.largest / 1e6:.0f} MB "
            f"above the start; {len(self.bad)} faults"
        )
