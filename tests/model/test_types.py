"""Compute types on a CPU: bfloat16 where it has units for it, float32 where it has none."""

import pytest
import torch
from safetensors.torch import load_file

import tiny
from prunecli import calibrate, evaluate, prune, train
from prunecli.methods import registry
from prunecli.model import device
from prunecli.model.checkpoint import Checkpoint
from prunecli.model.device import computable, has_bfloat16
from prunecli.model.stream import LayerStream
from prunecli.pruning.calibrate import required_statistics
from prunecli.pruning.stats._hooks import LayerRun
from prunecli.settings import Amount, Compute, Data, RunContext

NARROW = Compute("cpu", "bfloat16")


@pytest.fixture
def without_units(monkeypatch):
    monkeypatch.setattr(device, "has_bfloat16", lambda: False)


def test_what_torch_says_of_the_cpu(monkeypatch):
    for told, expected in (
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True, "avx512_bf16": False}, True),
        ({"bf16": True}, True),  # of Arm
        ({"avx512_f": True, "avx512_bf16": False, "cpu_name": "bf16"}, False),
        ({}, False),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda told=told: told, raising=False)
        assert has_bfloat16.__wrapped__() is expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    for expected in (True, False):
        monkeypatch.setattr(
            torch.cpu, "_is_avx512_bf16_supported", lambda expected=expected: expected
        )
        assert has_bfloat16.__wrapped__() is expected


@pytest.mark.usefixtures("without_units")
def test_without_units_it_is_float32_and_said_so(llama, calibration, tmp_path):
    """One line, and the result of a run in float32: to the byte, and by its id."""
    runs = {
        "prune": lambda out, **how: prune(
            str(llama), out, method="wanda", amount=Amount(ratio=0.5), data=Data(calibration), **how
        ),
        "calibrate": lambda out, **how: calibrate(
            str(llama), out + ".safetensors", methods=["wanda"], data=Data(calibration), **how
        ),
        "eval": lambda out, **how: evaluate(
            str(llama), data=[Data(calibration)], out=out + ".json", **how
        ),
        "train": lambda out, **how: train(
            str(llama), out, calibration, steps=1, batch_size=2, lr="1e-3", **how
        ),
    }
    for name, run in runs.items():
        told = tiny.Told()
        wide = run(str(tmp_path / f"{name}-wide"), compute=Compute("cpu", "float32"))
        made = run(str(tmp_path / name), compute=NARROW, report=told)
        assert [note for note in told.notes if "bfloat16" in note] == [
            "this CPU has no units for bfloat16 and is slower with it: computing in float32"
        ]
        assert made.sidecar["id"] == wide.sidecar["id"], name
        assert made.sidecar["run"]["dtype"] == "float32"
    assert tiny.same(tmp_path / "prune", tmp_path / "prune-wide")


def test_nothing_is_said_where_there_is_nothing_to_say(monkeypatch):
    told = tiny.Told()
    for has, compute in ((True, NARROW), (False, Compute()), (False, Compute("cpu", "float32"))):
        monkeypatch.setattr(device, "has_bfloat16", lambda has=has: has)
        run = RunContext(compute=compute, report=told)
        assert computable(run) is run
    assert not told.notes


def test_statistics_are_wide_whatever_computes(llama, calibration):
    dense = Checkpoint(str(llama))
    stream, ids = LayerStream(dense, NARROW), load_file(calibration.rpartition(":")[0])["ids"]
    methods = [registry.get(name) for name in ("sparsegpt", "wanda", "flap", "shortgpt")]
    hidden = stream.embed(ids)
    assert hidden.dtype == torch.bfloat16
    with torch.no_grad():
        run = LayerRun(stream, 0, stream.layer(0), hidden, ids)
        found = run.statistics(required_statistics(methods, False))
    assert {one.dtype for one in found.values()} == {torch.float32, torch.float64, torch.int64}
