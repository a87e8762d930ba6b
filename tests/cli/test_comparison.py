"""The thin slice of the paper's question through the real command: parent, child, twin, table."""

import csv
import io
import json
from pathlib import Path

import pytest

import tiny


@pytest.fixture
def call(run):
    def done(*line: str) -> str:
        ended = run(*line)
        assert ended.code == 0, ended.err
        return ended.out

    return done


def test_pruned_against_scratch(call, run, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = "\n".join(f"Line {i} of a text that repeats itself." for i in range(3000))
    Path("text.txt").write_text(text)
    line = "tokenize --train-tokenizer 320 --seq-len 32 --workers 1 text.txt rows/"
    assert call(*line.split()) == "rows/\n"
    config = tiny.config_of("llama", vocab_size=320, initializer_range=0.02)
    Path("c.json").write_text(json.dumps(config))
    train = "train --quiet --batch-size 8 --lr 1e-2"
    for line in (
        "init --config c.json --tokenizer rows random",
        f"{train} --data rows:0:160 random parent",
        "prune --method flap --ratio 0.5 --data rows:300:308 --bias drop parent p",
        "init --like p s",
        f"{train} --data rows:160:240 p pt",
        f"{train} --data rows:160:240 --seed 7 s st",
        f"{train} --data rows:160:241 --batch-size 3 s odd",
        f"{train} --data rows:0:240 s whole",
        f"{train} --data rows:160:240 --steps 11 --repeat s more",
    ):
        call(*line.split())
    models = ["pt", "st", "odd", "whole", "more"]
    for model in models:
        call(*f"eval --data rows:320:340 --out {model}.json {model}".split())
    found = [*models, *(f"{model}.json" for model in models)]
    pairs = json.loads(call("table", "--layout", "pairs", "--json", *found))["results"]
    settings = {row["scratch"]: row["setting"] for row in pairs}
    assert settings == {
        "st": "S_N vs P_M-R_N",
        "odd": None,
        "whole": "S_{M+N} vs P_M-R_N",
        "more": None,
    }
    for row in pairs:
        assert (row["difference"] is None) == (row["setting"] is None)
        assert (row["matched"] == "yes") == (row["setting"] is not None)
        assert row["method"] == "flap" and row["pruned"] == "pt"
    assert "160:241" in next(row["why"] for row in pairs if row["scratch"] == "odd")
    rows = {
        row["model"]: row
        for row in csv.DictReader(io.StringIO(call("table", "--format", "csv", *found)))
    }
    assert rows["pt"]["matched"] == "st, whole"
    assert rows["pt"]["trained"] == str(240 * 32) and rows["st"]["trained"] == str(80 * 32)
    assert rows["odd"]["matched"] == ""
    assert rows["st"]["method"] == "scratch"
    # what was trained on is not evaluated on, and the tokenizers must agree
    ended = run("eval", "--data", "rows:200:210", "pt")
    assert ended.code == 4 and "trained on" in ended.err
    call(
        *[
            "tokenize",
            "--train-tokenizer",
            "300",
            "--seq-len",
            "32",
            "--workers",
            "1",
            "text.txt",
            "other",
        ]
    )
    ended = run(*["train", "--data", "other", "--steps", "1", "p", "x"])
    assert ended.code == 4 and "another tokenizer" in ended.err
    call("check", "--deep", "pt", "st", "parent")
