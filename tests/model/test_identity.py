"""What identifies a result: all that can change it is in its id, in the form that was used."""

import threading

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from prunecli import calibrate, evaluate, prune, score, search_arch, speed
from prunecli.errors import InputError, OutputExists
from prunecli.model import device as devices
from prunecli.model.checkpoint import Checkpoint
from prunecli.model.device import settled
from prunecli.settings import Amount, Compute, Data, Output, Timing

HALF = Amount(ratio=0.5)
VERBS = {
    "calibrate": lambda m, d, out, **more: calibrate(
        m, f"{out}.safetensors", methods=["flap"], data=d, **more
    ),
    "score": lambda m, d, out, **more: score(
        m, f"{out}.safetensors", method="llm-pruner", data=d, **more
    ),
    "prune": lambda m, d, out, **more: prune(m, out, method="wanda", amount=HALF, data=d, **more),
    "eval": lambda m, d, out, **more: evaluate(m, data=[d], out=f"{out}.json", **more),
    "search-arch": lambda m, d, out, **more: search_arch(
        m, f"{out}.json", method="wanda-sp", ratio=0.5, data=d,
        eval_data=d, allow_overlap=True, **more,
    ),
    "speed": lambda m, d, out, **more: speed(
        m, timing=Timing(("prefill",), warmup=0, rounds=1), seq_len=8, out=f"{out}.json", **more
    ),
}  # fmt: skip


@pytest.mark.parametrize("verb", list(VERBS))
def test_ids_are_made_of_the_type_that_was_used(verb, llama, calibration, tmp_path):
    """`auto` is float32 here: it makes what float32 makes, and not what bfloat16 does."""
    made = {
        dtype: VERBS[verb](
            str(llama), Data(calibration), str(tmp_path / dtype), compute=Compute(dtype=dtype)
        ).sidecar
        for dtype in ("auto", "float32", "bfloat16")
    }
    assert [record["options"]["dtype"] for record in made.values()] == [
        "float32", "float32", "bfloat16",
    ]  # fmt: skip
    assert made["auto"]["id"] == made["float32"]["id"] != made["bfloat16"]["id"]


@pytest.mark.parametrize("verb", list(VERBS))
def test_another_type_is_no_existing_result(verb, llama, calibration, tmp_path):
    given = (str(llama), Data(calibration), str(tmp_path / "out"))
    made = VERBS[verb](*given)
    again = VERBS[verb](*given, output=Output(skip_existing=True))
    assert again.sidecar == made.sidecar
    with pytest.raises(OutputExists, match="made from other inputs or options"):
        VERBS[verb](*given, output=Output(skip_existing=True), compute=Compute(dtype="bfloat16"))


def test_scores_that_depend_on_an_amount_are_those_of_it(llama, calibration, tmp_path):
    out = str(tmp_path / "s.safetensors")
    given = {"method": "minitron-depth", "data": Data(calibration)}
    score(str(llama), out, amount=Amount(layers=1), **given)
    with pytest.raises(OutputExists, match="made from other inputs or options"):
        score(
            str(llama), out, amount=Amount(layers=2), output=Output(skip_existing=True), **given
        )  # fmt: skip


def test_on_a_gpu_auto_is_the_type_of_the_checkpoint(tmp_path, monkeypatch):
    half = Checkpoint(str(tiny.make(tmp_path / "half", dtype=torch.bfloat16)))
    assert settled(Compute(), half) == Compute("cpu", "float32")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(devices, "_there", lambda device: device)
    assert settled(Compute(), half) == Compute("cuda", "bfloat16")
    assert settled(Compute(dtype="float32"), half) == Compute("cuda", "float32")
    assert settled(Compute(device="cpu"), half) == Compute("cpu", "float32")


def test_a_digest_does_not_depend_on_threads(tmp_path):
    """They hash tensors in any order. The first that is refused is named, and none is hashed on."""
    folder, before = tiny.make(tmp_path / "model"), torch.get_num_threads()
    found = {}
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found[threads] = Checkpoint(str(folder)).digest()
        assert found[1] == found[3]
        weights = load_file(folder / "model.safetensors")
        names = sorted(weights)
        for name in (names[-1], names[-2]):
            weights[name].view(-1)[0] = torch.nan
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(InputError, match=f"'{names[-2]}' has NaN or infinite weights"):
            Checkpoint(str(folder)).digest()
    finally:
        torch.set_num_threads(before)
    assert not [one for one in threading.enumerate() if one.name.startswith("ThreadPool")]
