"""Pruned models of a real Llama, in other runtimes. Run by `make outside`; needs npm."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "runtimes" / "compare.py"
MODEL, RUNTIMES = os.environ.get("PRUNECLI_SMOLLM2"), os.environ.get("PRUNECLI_RUNTIMES")
pytestmark = [
    pytest.mark.outside,
    pytest.mark.skipif(not (MODEL and RUNTIMES), reason="needs a model and npm"),
]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    work = tmp_path_factory.mktemp("runtimes")
    command = [sys.executable, str(SCRIPT), "--json", str(MODEL), str(RUNTIMES), str(work)]
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
