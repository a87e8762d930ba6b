"""No command reads, writes, imports, runs or calls what it does not need, on a hostile checkpoint.

In forked children of this process, and, in the long form, as the command from its first import on.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import audit
import pytest
import torch
from forks import in_child
from safetensors.torch import save_file
from test_code import CHOICES

import tiny
from prunecli import init, prune
from prunecli.cli import app

TEXT = "No byte is lost, and none is added. " * 20
# by name, with the files of `place` for {..}; each writes into {out} only
COMMANDS = {
    "calibrate": "calibrate --for flap --data {ids} {model} {out}/s.safetensors",
    "score": "score --method shortgpt --data {ids} {model} {out}/s.safetensors",
    "prune": "prune --method magnitude --ratio 0.5 {model} {out}/o",
    "prune-data": "prune --method sparsegpt --sparsity 2:4 --data {ids} {model} {out}/o",
    "prune-text": "prune --method flap --ratio 0.4 --nsamples 4 --seq-len 16 --data {text} "
    "--keep {out}/k {model} {out}/o",
    "prune-slice": "prune --method slicegpt-global --ratio 0.3 --data {ids} {model} {out}/o",
    "prune-masks": "prune --method sheared-llama --layers 3 --hidden 36 --heads 3 --ffn 40 "
    "--tokens 256 --batch-size 4 --data {ids} {model} {out}/o",
    "search-arch": "search-arch --method flap --ratio 0.4 --multiple 4 --bias drop --data {ids} "
    "--eval-data {held} {model} {out}/a.json",
    "init": "init --like {model} --tokenizer {model} {out}/o",
    "tokenize": "tokenize --tokenizer {model} --seq-len 16 --workers 1 {text} {out}/rows",
    "tokenize-workers": "tokenize --tokenizer {model} --seq-len 16 --workers 2 {text} {out}/rows",
    "train": "train --data {ids} --steps 2 --batch-size 4 --lr 1e-3 {model} {out}/o",
    "eval": "eval --data {ids} --out {out}/e.json {model}",
    "eval-text": "eval --data {text} --seq-len 16 --out {out}/e.json {model}",
    "eval-tasks": "eval --tasks own --include-path {tasks} --limit 2 --out {out}/e.json {model}",
    "speed": "speed --measure prefill --rounds 1 --warmup 0 --seq-len 8 --out {out}/s.json {model}",
    "speed-flops": "speed --flops-only --out {out}/s.json {model}",
    "table": "table --html {out}/t.html {runs}",
    "check": "check --deep {model} {runs}/half",
    "log": "log {runs}/half",
    "log-commands": "log --commands {runs}/half",
    "methods": "methods flap",
    "families": "families",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> dict[str, Path]:
    """Return what commands are given: a checkpoint that asks for code in every way, rows, text."""
    root = tmp_path_factory.mktemp("audit")
    (root / "c.json").write_text(json.dumps(tiny.config_of("llama", vocab_size=300)))
    init(str(root / "model"), config=str(root / "c.json"), seed=3, tokenizer="bytes")
    prune(str(root / "model"), str(root / "runs" / "half"), method="magnitude", ratio=0.5)
    for file in (root / "model").glob("*.json"):
        content = json.loads(file.read_text())
        if file.name == "config.json":
            content = {k: v for k, v in content.items() if "prunecli" not in k} | CHOICES
        elif file.name == "tokenizer_config.json":
            content |= {"auto_map": {"AutoTokenizer": [None, "evil.Tokenizer"]}, "eos_token": "!"}
        elif file.name != "tokenizer.json":
            continue
        file.write_text(json.dumps(content))
    (root / "model" / "evil.py").write_text("raise SystemExit('ran')\n")
    (root / "model" / "prunecli.json").unlink()  # somebody else's model
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "someone/other", "r": 1}
    (root / "model" / "adapter_config.json").write_text(json.dumps(adapter))
    save_file({"x": torch.zeros(1)}, root / "model" / "adapter_model.safetensors")
    (root / "text.txt").write_text(TEXT)
    tasks = root / "tasks"
    tasks.mkdir()
    rows = [{"q": "a b", "choices": ["c", "d e"], "gold": 0}] * 3
    (tasks / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "own", "dataset_path": "json", "test_split": "test", "metric_list": [
            {"metric": "acc"}], "output_type": "multiple_choice", "doc_to_text": "{{q}}",
        "dataset_kwargs": {"data_files": {"test": str(tasks / "rows.jsonl")}},
        "doc_to_choice": "choices", "doc_to_target": "gold", "metadata": {"version": 1},
    }  # fmt: skip
    (tasks / "own.yaml").write_text(json.dumps(task))
    ids = tiny.tokens(root / "ids.safetensors", rows=32, length=16)
    held = tiny.tokens(root / "held.safetensors", seed=9)
    return {"model": root / "model", "ids": Path(ids), "held": Path(held), "tasks": tasks,
            "text": root / "text.txt", "runs": root / "runs"}  # fmt: skip


def words(name: str, place: dict[str, Path], out: Path) -> list[str]:
    return COMMANDS[name].format(out=out, **place).split()


def folders(place: dict[str, Path], tmp_path: Path) -> dict[str, list[str]]:
    """Return what may be read and written: what the command names, and folders for the rest."""
    made = [tmp_path / name for name in ("out", "home", "tmp")]
    for folder in made:
        folder.mkdir()
    return {
        "reads": [str(path).partition(":")[0] for path in place.values()],
        "writes": [str(x) for x in made],
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_but_what_it_needs(name, place, tmp_path, capfd):
    allowed = folders(place, tmp_path)

    def work() -> None:
        os.environ.update(HOME=str(tmp_path / "home"), TMPDIR=str(tmp_path / "tmp"))
        tempfile.tempdir = None
        os.chdir(tmp_path / "out")
        sys.argv = ["prunecli", *words(name, place, tmp_path / "out")]
        # where its cache is was decided when a test imported it
        loaded = sys.modules.get("datasets")
        caches = [str(loaded.config.HF_DATASETS_CACHE)] if loaded else []
        audit.Watch(tuple(allowed["reads"]), (*allowed["writes"], *caches)).begin()
        try:
            app.main()
        except SystemExit as ended:
            os._exit(int(ended.code or 0))

    status = in_child(work)
    assert status == 0, capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_but_what_it_needs_from_its_first_import(name, place, tmp_path):
    allowed = folders(place, tmp_path)
    line = [audit.__file__, json.dumps(allowed), *words(name, place, tmp_path / "out")]
    # Python keeps what it compiled of an installed package beside it: no doing of the command's
    own = {"PYTHONDONTWRITEBYTECODE": "1"}
    own |= {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp")}
    # torch tells children by this where its first process put compiled kernels
    others = {key: value for key, value in os.environ.items() if key != "TORCHINDUCTOR_CACHE_DIR"}
    ended = subprocess.run(
        [sys.executable, *line], capture_output=True, text=True, cwd=tmp_path / "out",
        env={**others, **own},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr


def imports_evil(folder: Path) -> None:
    sys.path.insert(0, str(folder))
    __import__("evil")


@pytest.mark.parametrize(
    "deed",
    [
        lambda _: Path("/etc/passwd").read_text(),
        lambda folder: (folder / "new").write_text("x"),
        lambda folder: (folder / "old").rename(folder / "new"),
        lambda folder: (folder / "old").unlink(),
        lambda _: socket.create_connection(("127.0.0.1", 9), timeout=1),
        lambda _: socket.getaddrinfo("example.org", 80),
        lambda _: subprocess.run(["true"]),
        lambda _: os.system("true"),
        imports_evil,
    ],
)
def test_the_watch_sees(deed, tmp_path, capfd):
    """What a checkpoint could want, each done on purpose, and tried to be kept quiet."""
    (tmp_path / "old").write_text("x")
    (tmp_path / "evil.py").write_text("")

    def work() -> None:
        audit.Watch((), ()).begin()
        try:
            deed(tmp_path)
        except BaseException:
            os._exit(0)

    assert in_child(work) == audit.STATUS
    assert capfd.readouterr().err.startswith("watch: ")
