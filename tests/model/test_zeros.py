"""Zeros as sidecars claim them: contradictions are refused, what was written is counted."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from prunecli import check, init, prune, train
from prunecli.errors import InputError, PruneError, UsageError
from prunecli.measuring.costs import SizedModel
from prunecli.methods import registry
from prunecli.methods._masks import drop_mask
from prunecli.model.arch import Arch
from prunecli.model.pattern import SparsityPattern
from prunecli.model.sparsity import Census
from prunecli.settings import Amount, Data, Output

METHODS = ("magnitude", "wanda", "sparsegpt")


def crowded(folder: Path | str, keep: int, group: int) -> int:
    """Return how many groups of a folder's block matrices break a pattern, by the plainest loop."""
    broken = 0
    for name, weight in load_file(Path(folder) / "model.safetensors").items():
        if "proj" in name and weight.dim() == 2:
            for row in weight.tolist():
                for start in range(0, len(row), group):
                    broken += sum(x != 0 for x in row[start : start + group]) > keep
    return broken


def zeros(folder: Path) -> int:
    """Return how many zeros a folder's block matrices have."""
    tensors = load_file(folder / "model.safetensors")
    return sum(int((t == 0).sum()) for name, t in tensors.items() if "proj" in name)


@pytest.fixture
def sparse(llama, tmp_path) -> Path:
    out = tmp_path / "sparse"
    prune(str(llama), str(out), method="magnitude", amount=Amount(sparsity="2:4"))
    return out


def rewritten(folder: Path, out: Path, name: str) -> Path:
    """Return a copy with no zeros in one matrix, whose sidecar has the digest of what it holds."""
    from prunecli.model.checkpoint import Checkpoint

    shutil.copytree(folder, out)
    tensors = load_file(out / "model.safetensors")
    tensors[name][:] = 1
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    record = tiny.sidecar(out)
    record["outputs"]["digest"] = Checkpoint(str(out)).digest()
    record["results"]["nonzero"] = sum(int(t.count_nonzero()) for t in tensors.values())
    (out / "prunecli.json").write_text(json.dumps(record))
    return out


@pytest.mark.parametrize("size", [10, 3, 2, 6])
@pytest.mark.parametrize("dry", [False, True])
def test_a_block_cuts_no_group(llama, calibration, tmp_path, size, dry) -> None:
    with pytest.raises(UsageError, match=f"--block-size {size} cuts the groups of --sparsity 2:4"):
        prune(
            str(llama), str(tmp_path / "o"), method="sparsegpt", amount=Amount(sparsity="2:4"),
            options={"block_size": size}, data=Data(calibration), output=Output(dry_run=dry),
        )  # fmt: skip
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [0, -4])
def test_a_block_has_columns(llama, calibration, tmp_path, size) -> None:
    with pytest.raises(UsageError, match="expected at least 1"):
        prune(
            str(llama), str(tmp_path / "o"), method="sparsegpt", amount=Amount(ratio=0.5),
            options={"block_size": size}, data=Data(calibration),
        )  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sparsity", ["2:4", "4:8", "1:2", "7:8"])
def test_every_pattern_holds(llama, calibration, tmp_path, method, sparsity) -> None:
    options = {"block_size": 16} if method == "sparsegpt" else {}
    out, (keep, group) = tmp_path / "o", map(int, sparsity.split(":"))
    made = prune(
        str(llama), str(out), method=method, amount=Amount(sparsity=sparsity), options=options,
        data=Data(calibration),
    )  # fmt: skip
    assert crowded(out, keep, group) == 0
    assert made.results["granularity"] == f"weights, {sparsity}"
    assert made.results["ratio"] == pytest.approx(1 - keep / group)
    assert check(str(out), deep=True) == []


def test_a_width_that_m_does_not_divide(llama, tmp_path) -> None:
    with pytest.raises(InputError, match="48 inputs, not a multiple of 5"):
        prune(
            str(llama),
            str(tmp_path / "o"),
            method="magnitude",
            amount=Amount(sparsity="2:5"),
        )
    assert not list(tmp_path.iterdir())


def test_a_broken_pattern_is_not_written(llama, tmp_path, monkeypatch) -> None:
    """Whatever a formula does, what would be recorded is counted on the tensors."""
    wrong = replace(registry.get("magnitude"), sparsify=lambda weight, *rest: weight)
    monkeypatch.setattr(registry, "get", lambda name: wrong)
    with pytest.raises(PruneError, match=r"nothing was written: '.*q_proj.*' breaks 2:4"):
        prune(
            str(llama),
            str(tmp_path / "o"),
            method="magnitude",
            amount=Amount(sparsity="2:4"),
        )
    assert not list(tmp_path.iterdir())


def test_check_counts_the_pattern(sparse, tmp_path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    wrong = rewritten(sparse, tmp_path / "wrong", name)
    assert check(str(wrong)) == []
    _, broken, ratio = check(str(wrong), deep=True)  # its sidecar was changed too
    groups = crowded(wrong, 2, 4)
    assert groups == 80 * 48 // 4
    assert broken == f"the sidecar records 2:4, but '{name}' breaks 2:4 in {groups} groups"
    assert "a ratio of 0.5, but 0.4" in ratio
    with pytest.raises(InputError, match="masks do not fit"):
        init(str(tmp_path / "twin"), like=str(wrong))


@pytest.mark.parametrize("claim", ["none", "0.7", "null"])
def test_check_counts_what_is_told(sparse, claim) -> None:
    record = tiny.sidecar(sparse)
    record["results"]["nonzero"] += 1
    record["results"]["ratio"] = claim
    if claim == "none":
        del record["results"]["ratio"]
    else:
        record["results"]["ratio"] = json.loads(claim)
    (sparse / "prunecli.json").write_text(json.dumps(record))
    changed, nonzero, ratio = check(str(sparse), deep=True)
    assert "prunecli.json was changed after it was written" in changed
    told = record["results"]["nonzero"]
    assert nonzero == f"the sidecar records {told} non-zero weights, found {told - 1}"
    assert ratio.endswith("but 0.5000 of block weights are zero")


def test_check_names_a_count_that_is_none(sparse) -> None:
    record = tiny.sidecar(sparse)
    record["results"]["ratio"] = "half"
    (sparse / "prunecli.json").write_text(json.dumps(record))
    (problem,) = check(str(sparse), deep=True)
    assert "ratio: Input should be a valid number" in problem


def test_a_rest_of_a_row_is_a_group() -> None:
    arch = Arch(tiny.config_of("llama"))
    name = "model.layers.0.mlp.up_proj.weight"
    found = Census(arch, SparsityPattern.of_groups("2:5"))
    weight = torch.zeros(80, 48)
    weight[0, 45:48] = weight[1, :3] = weight[2, 3:7] = 1  # in groups of 3, 3, and 2 and 2
    assert found.add(name, weight) == 10
    assert found.broken == {name: 2}


def test_groups_that_are_wider_than_a_row() -> None:
    """A row counts as one group, whatever number a sidecar records: memory is not filled up."""
    arch = Arch(tiny.config_of("llama"))
    found = Census(arch, SparsityPattern.of_groups("1:999999999"))
    name = "model.layers.0.mlp.up_proj.weight"
    values = torch.zeros(80, 48)
    values[1, :2] = 1
    found.add(name, values)
    assert found.broken == {name: 1} and found.nonzero == 2


@pytest.mark.parametrize("text", ["4:2", "0:4", "2:2", "2:4:8", "2", "", "-1:4", "a:b", "٢:٤"])
def test_no_pattern(text) -> None:
    assert SparsityPattern.of_groups(text) is None


@pytest.mark.parametrize(
    ("ratio", "weights", "gone"), [(0.29, 100, 29), (0.57, 100, 57), (0.5, 7, 3), (0.1, 30, 3)]
)
@pytest.mark.parametrize("scope", ["row", "matrix"])
def test_a_ratio_is_what_it_is_written_as(ratio, weights, gone, scope) -> None:
    """Products of floats are below 29 and 57, which are whole."""
    score = torch.rand(1, weights, generator=torch.Generator().manual_seed(0))
    assert int(drop_mask(score, SparsityPattern(ratio), scope).sum()) == gone


def test_training_keeps_the_claim_with_the_zeros(sparse, calibration, tmp_path) -> None:
    settings = {"data": calibration, "steps": 2, "batch_size": 4, "lr": "1e-2", "weight_decay": 0.1}
    kept = train(str(sparse), str(tmp_path / "kept"), **settings)
    assert kept.results["granularity"] == "weights, 2:4" and kept.results["ratio"] == 0.5
    assert crowded(tmp_path / "kept", 2, 4) == 0
    assert check(str(tmp_path / "kept"), deep=True) == []
    assert SizedModel.open(str(tmp_path / "kept"), False).pattern == "2:4"


def test_training_without_the_zeros_claims_none(sparse, calibration, tmp_path) -> None:
    settings = {"data": calibration, "steps": 2, "batch_size": 4, "lr": "1e-2", "masks": "drop"}
    dense = train(str(sparse), str(tmp_path / "dense"), **settings)
    assert dense.results["granularity"] is None
    assert dense.results["ratio"] == pytest.approx(0, abs=1e-3)
    assert dense.results["ratio_total"] == pytest.approx(0, abs=1e-3)
    assert check(str(tmp_path / "dense"), deep=True) == []
    assert SizedModel.open(str(tmp_path / "dense"), False).pattern is None


def test_other_zeros_make_another_claim(llama, calibration, tmp_path) -> None:
    """IN is 2:4, what is held are fewer zeros: those are what OUT claims."""
    fewer, sparse = tmp_path / "fewer", tmp_path / "sparse"
    prune(str(llama), str(fewer), method="magnitude", amount=Amount(ratio=0.3))
    prune(str(fewer), str(sparse), method="magnitude", amount=Amount(sparsity="2:4"))
    settings = {"data": calibration, "steps": 2, "batch_size": 4, "lr": "1e-2", "masks": str(fewer)}
    made = train(str(sparse), str(tmp_path / "o"), **settings)
    assert made.results["granularity"] == "weights, unstructured"
    assert made.results["ratio"] == pytest.approx(0.3, abs=1e-3)
    assert made.results["held"]["zeros"] == zeros(fewer) == zeros(tmp_path / "o")
    assert crowded(tmp_path / "o", 2, 4) > 0
    assert check(str(tmp_path / "o"), deep=True) == []


def test_few_zeros_that_are_claimed_are_held(llama, calibration, tmp_path) -> None:
    """One in two thousand weights: fewer than chance may give, but the sidecar tells of them."""
    out = tmp_path / "p"
    prune(str(llama), str(out), method="magnitude", amount=Amount(ratio=0.0008))
    settings = {"data": calibration, "steps": 2, "batch_size": 4, "lr": "1e-2"}
    made = train(str(out), str(tmp_path / "o"), **settings)
    before, after = (load_file(folder / "model.safetensors") for folder in (out, tmp_path / "o"))
    gone = 0
    for name in before:
        if "proj" in name:
            assert torch.equal(before[name] == 0, after[name] == 0)
            gone += int((before[name] == 0).sum())
    assert made.results["held"]["zeros"] == gone > 0


@pytest.mark.parametrize("masks", ["keep", "drop"])
def test_twins(sparse, tmp_path, masks) -> None:
    made = init(str(tmp_path / "t"), like=str(sparse), masks=masks)
    kept = masks == "keep"
    assert made.results["granularity"] == ("weights, 2:4" if kept else None)
    assert made.results["ratio"] == (0.5 if kept else 0)
    assert made.results["method"] == "scratch"
    assert (crowded(tmp_path / "t", 2, 4) == 0) == kept
    assert check(str(tmp_path / "t"), deep=True) == []
    assert SizedModel.open(str(tmp_path / "t"), False).pattern == ("2:4" if kept else None)
