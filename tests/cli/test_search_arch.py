"""search-arch and learned methods as commands."""

import json

import pytest

import tiny


@pytest.fixture
def folders(llama, tmp_path):
    texts = [tiny.tokens(tmp_path / f"{n}.safetensors", seed=n) for n in (1, 2)]
    return str(llama), *texts, tmp_path


def test_the_papers_candidates_need_no_model(run, monkeypatch):
    monkeypatch.setenv("PRUNECLI_RATIO", "0.5")
    ended = run("search-arch", "--paper", "--format", "csv")
    assert ended.code == 0 and ended.err == ""
    header, *rows = (line.split(",") for line in ended.out.splitlines())
    assert header[:7] == ["table", "method", "ratio", "hidden", "heads", "kv_heads", "ffn"]
    assert len(rows) == 12 + 5 + 10
    by_name = [dict(zip(header, row, strict=False)) for row in rows]
    assert all(row["ffn"] == row["ffn_rule"] for row in by_name if row["table"] in "67")
    chosen = next(row for row in by_name if row["table"] == "6" and row["heads"] == "20")
    assert (chosen["params"], chosen["flops"]) == ("4507045888", "17683470876672")
    assert len(json.loads(run("search-arch", "--paper", "--json").out)["results"]) == 27
    assert run("search-arch", "--paper", "in/", "out.json").code == 2
    assert run("search-arch", "--paper", "--ratio", "0.5").code == 2
    assert run("search-arch").code == 2


def test_found_and_pruned(run, folders):
    model, data, held_out, tmp_path = folders
    out = str(tmp_path / "arch.json")
    search = ["search-arch", "--method", "minitron-width", "--ratio", "0.4", "--multiple", "4"]
    search += ["--data", data, "--eval-data", held_out]
    ended = run(*search, "--json", model, out)
    assert ended.code == 0
    made = json.loads(ended.out)
    assert made["path"] == out and made["sidecar"]["kind"] == "arch"
    assert run(*search, model, out).code == 5
    assert run(*search, "--skip-existing", model, out).out == out + "\n"
    child = str(tmp_path / "child")
    ended = run(
        "prune", "--method", "minitron-width", "--data", data, "--arch", "-", "--json", model,
        child, stdin=out,
    )  # fmt: skip
    assert ended.code == 0
    sizes = json.loads(ended.out)["results"]["sizes"]
    found = made["results"]["arch"]
    assert {axis: sizes[axis] for axis in found} == found
    assert run("check", "--deep", child).code == 0


def test_a_method_that_learns(run, folders):
    model, data, _, tmp_path = folders
    out = str(tmp_path / "out")
    ended = run(
        "prune", "--method", "sheared-llama", "--ratio", "0.4", "--tokens", "1024",
        "--batch-size", "4", "--freeze-weights", "--data", data, model, out,
    )  # fmt: skip
    assert ended.code == 0 and ended.out == out + "\n"
    assert "with random masks of the same sizes" in ended.err
    assert tiny.sidecar(out)["results"]["learned"]["variant"] == "masks alone, weights frozen"
    refused = run("prune", "--method", "flap", "--freeze-weights", "--ratio", "0.4", model, "x")
    assert refused.code == 2 and "it belongs to sheared-llama" in refused.err
