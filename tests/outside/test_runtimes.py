"""Pruned models of a real Llama, in other runtimes. Run by `make outside`; needs npm."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "benchmarks" / "runtimes"
MODEL, RUNTIMES = os.environ.get("PRUNECLI_SMOLLM2"), os.environ.get("PRUNECLI_RUNTIMES")
pytestmark = [
    pytest.mark.outside,
    pytest.mark.skipif(not (MODEL and RUNTIMES), reason="needs a model and npm"),
]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("runtimes")


@pytest.fixture(scope="module")
def rows(work):
    script = str(SCRIPTS / "compare.py")
    command = [sys.executable, script, "--json", str(MODEL), str(RUNTIMES), str(work)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=1800)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_six_models_are_read(rows):
    assert len({row["model"] for row in rows}) == 6
    assert {row["class"] for row in rows} == {"LlamaForCausalLM", "MistralForCausalLM"}


def test_float32_computes_the_same(rows):
    for row in (row for row in rows if row["type"] == "f32"):
        # float32 has 24 bits: sums of 576 products in another order agree to 1e-4 of a logit
        assert row["apart"] < 1e-3, row
        assert row["greedy"], row


def test_q8_0_costs_its_rounding_and_no_more(rows):
    for row in (row for row in rows if row["type"] == "q8_0"):
        # two roundings of the same kind; a wrong permutation or a lost bias costs whole nats
        assert 0 < row["apart"] < 4 * row["rounding alone"], row


def test_an_imatrix_of_our_statistics_is_one(rows, work, tmp_path):
    """The quantizer errs less where inputs are large, in every matrix."""
    sys.path[:0] = [str(SCRIPTS), str(Path(RUNTIMES) / "gguf-py")]
    import gguf
    from compare import convert
    from quantize import importances

    assert {row["type"] for row in rows} == {"f32", "q8_0", "q4_k_m"}
    whole, plain, stats = (tmp_path / name for name in ("f32", "plain", "weighted.safetensors"))
    convert("f32", work / "width", Path(RUNTIMES), whole)
    convert("q4_k_m", work / "width", Path(RUNTIMES), tmp_path / "weighted")
    command = [sys.executable, str(SCRIPTS / "quantize.py"), str(RUNTIMES), str(whole), str(plain)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)

    def tensors(path):
        found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
        kinds = {tensor.tensor_type.name for tensor in found.values()}
        values = {n: gguf.quants.dequantize(t.data, t.tensor_type) for n, t in found.items()}
        return values, kinds

    (exact, _), (without, kinds), (weighted, same) = map(
        tensors, (whole, plain, tmp_path / "weighted")
    )
    assert "Q4_K" in kinds and kinds == same
    for name, weight in importances(str(stats)).items():
        plain_error, weighted_error = (
            float((weight * (made[name] - exact[name]).astype("float64") ** 2).sum())
            for made in (without, weighted)
        )
        assert weighted_error < plain_error, name
