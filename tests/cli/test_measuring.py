"""eval, speed and table as a shell sees them: stdout, stderr, exit statuses, files."""

import csv
import io
import json
import os
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import tiny


@pytest.fixture
def pruned(run, llama, calibration, tmp_path):
    """A 2:4 model and its evaluation, in one folder."""
    runs = tmp_path / "runs"
    ended = run(
        *("prune", "--method", "wanda", "--sparsity", "2:4", "--data", calibration),
        *(str(llama), str(runs / "p")),
    )
    assert ended.code == 0, ended.err
    data = tiny.tokens(tmp_path / "e.safetensors", seed=5)
    assert run("eval", "--data", data, "--out", str(runs / "e.json"), str(runs / "p")).code == 0
    return runs


def test_reference_needs_no_input(run):
    ended = run("table", "--layout", "table16", "--reference", "paper", "--format", "csv")
    assert ended.code == 0 and ended.err == ""
    rows = list(csv.DictReader(io.StringIO(ended.out)))
    assert len(rows) == 24 + 16
    assert rows[0]["method"] == "minitron-depth" and rows[0]["ppl_wikitext103"] == "9.30"


def test_json_of_table(run):
    ended = run("table", "--layout", "table9", "--reference", "paper", "--json")
    found = json.loads(ended.out)["results"]
    assert found[0]["params"] == 8_030_261_248


def test_counts_from_a_config_alone(run, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(tiny.config_of("llama")))
    ended = run("speed", "--flops-only", "--seq-len", "2048", "--json", str(tmp_path))
    assert ended.code == 0 and ended.err == ""
    made = json.loads(ended.out)
    assert made["path"] == str(tmp_path)
    assert made["results"]["flops_tokens"] == 2048 and made["results"]["flops"] > 0


def test_speed_from_stdin_beside_a_base(run, llama, pruned):
    ended = run(
        *("speed", "--base", str(llama), "--measure", "prefill", "--rounds", "2", "-"),
        stdin=str(pruned / "p") + "\n",
    )
    assert ended.code == 0, ended.err
    assert "2:4 kernels need a CUDA device" in ended.err
    assert ended.out.splitlines()[0].split()[0] == "model" and "prefill" in ended.out


def test_weights_changed_after_the_sidecar_are_named(run, pruned):
    weights = pruned / "p" / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.norm.weight"] += 1
    save_file(tensors, weights, metadata={"format": "pt"})
    later = time.time() + 5
    os.utime(weights, (later, later))
    ended = run("table", str(pruned))
    assert ended.code == 0
    assert "its weights are not those of its sidecar (digest)" in ended.out


def test_a_touched_but_equal_file_is_no_change(run, pruned):
    later = time.time() + 5
    os.utime(pruned / "p" / "model.safetensors", (later, later))
    assert "not those of its sidecar" not in run("table", str(pruned)).out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["table"], 2, "no sidecars given"),
        (["table", "--layout", "table61", "--reference", "paper"], 2, "did you mean 'table6'"),
        (["table", "--layout", "pairs", "--reference", "paper"], 2, "has no rows of the paper"),
        (["table", "--reference", "paper", "--plot", "x.gif"], 2, "ending in .png or .svg or .pdf"),
        (["table", "--reference", "paper", "--html", "x.txt"], 2, "ending in .html"),
        (["table", "--reference", "paper", "--budget", "5"], 2, "--budget belongs to --advise"),
        (["table", "--reference", "paper", "--advise", "--plot", "x.svg"], 2, "prints advice only"),
        (["speed", "--measure", ",", "x"], 2, "nothing to time"),
        (["table", "none"], 4, "no such file or folder"),
        (["speed", "none"], 4, "none"),
        (["speed", "--flops-only", "none"], 4, "none"),
        (["eval", "--suite", "papers", "x"], 2, "unknown value 'papers'"),
        (["eval", "--limit", "3", "x"], 2, "belong to --tasks"),
    ],
)
def test_bad_requests(run, tmp_path, monkeypatch, arguments, code, said):
    monkeypatch.chdir(tmp_path)
    ended = run(*arguments)
    assert ended.code == code and said in ended.err and ended.out == ""
    assert len(ended.err.splitlines()) <= 3 and not list(tmp_path.iterdir())


def test_figures_and_reports_are_files(run, tmp_path):
    plot, report = str(tmp_path / "f.svg"), str(tmp_path / "r.html")
    arguments = ("table", "--layout", "table16", "--reference", "paper")
    ended = run(*arguments, "--plot", plot, "--html", report)
    assert ended.code == 0 and ended.out.splitlines() == [plot, report]
    assert Path(plot).read_text().startswith("<?xml")
    again = run(*arguments, "--plot", plot)
    assert again.code == 5 and "exists" in again.err
    assert run(*arguments, "--plot", plot, "--force").code == 0


def test_advice(run):
    ended = run("table", "--advise", "--reference", "paper", "--budget", "100e9", "--json")
    found = json.loads(ended.out)["results"]
    assert found["verdict"] == "prune" and len(found["cases"]) == 12
    told = run("table", "--advise", "--reference", "paper", "--budget", "100e9").out
    assert told.startswith("Recommendation: prune (by DCLM loss")


def test_noise_is_a_column_of_its_own(run, llama, tmp_path) -> None:
    data = tiny.tokens(tmp_path / "t.safetensors", rows=2)
    once, thrice = (
        run("eval", "--data", data, *more, str(llama)) for more in ((), ("--repeat", "3"))
    )
    assert (once.code, thrice.code) == (0, 0), thrice.err
    assert "noise" not in once.out
    heading, _, row = thrice.out.splitlines()
    assert heading.split()[-1] == "noise" and row.split()[-1] == "0.0e+00"


def test_active_parameters_are_told(models, run):
    """Beside those of a dense model, which are all active."""
    ended = run("speed", "--flops-only", str(models("llama")), str(models("qwen3-moe")))
    lines = [line.split() for line in ended.out.splitlines()]
    assert "active" in lines[0]
    from prunecli.model.arch import Arch

    arch = Arch.read(models("qwen3-moe"))
    assert str(arch.active_params) in ended.out
    assert any("router" in line for line in lines)


def test_an_evaluation_tells_them_too(models, run, tmp_path):
    """Of a model that prunecli did not make, whose table has nothing else to read them from."""
    from prunecli.model.arch import Arch

    ids, out = tiny.tokens(tmp_path / "ids.safetensors"), str(tmp_path / "e.json")
    model = str(models("qwen3-moe"))
    assert run("eval", "--data", ids, "--out", out, model).code == 0
    (row,) = json.loads(run("table", "--format", "json", out).out)
    assert row["active"] == Arch.read(model).active_params < row["params"]
