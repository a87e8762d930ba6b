"""Agreement with the official implementations on SmolLM2-135M.

PRUNECLI_GOLDEN names the folder of their results (tokens.safetensors, visible.json and packed
masks), PRUNECLI_SMOLLM2 the model as examples/demo/smollm2.py makes it.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from prunecli import evaluate, prune
from prunecli.settings import Amount, Data, Output

GOLDEN = os.environ.get("PRUNECLI_GOLDEN")
pytestmark = [
    pytest.mark.golden,
    pytest.mark.skipif(GOLDEN is None, reason="PRUNECLI_GOLDEN is not set"),
]


@pytest.fixture(scope="module", autouse=True)
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> str:
    built = Path(__file__).resolve().parents[2] / "build" / "smollm2"
    folder = os.environ.get("PRUNECLI_SMOLLM2", str(built))
    assert Path(folder).is_dir(), f"no model in {folder}: `make golden` makes it"
    return folder


@pytest.fixture(scope="module")
def expected() -> dict:
    return json.loads((Path(GOLDEN) / "visible.json").read_text())


def tokens(name: str, rows: int | None = None) -> Data:
    return Data(f"{GOLDEN}/tokens.safetensors:{name}", nsamples=rows)


def perplexity(folder) -> float:
    return evaluate(str(folder), data=[tokens("eval_last16")]).results["perplexity"]


def agreement(folder, masks: str) -> float:
    """Return the share of mask bits (1 = kept) that are the same."""
    same = total = 0
    with (
        safe_open(Path(GOLDEN) / masks, "pt") as golden,
        safe_open(Path(folder) / "model.safetensors", "pt") as ours,
    ):
        for name in golden.keys():  # noqa: SIM118 (safe_open is no dictionary)
            kept = ours.get_tensor(name).ne(0).flatten().numpy()
            bits = np.unpackbits(golden.get_tensor(name).numpy().ravel())[: kept.size]
            same += int((bits.astype(bool) == kept).sum())
            total += kept.size
    return same / total


def test_dense(model, expected):
    found = evaluate(model, data=[tokens("eval_last16")]).results
    assert found["perplexity"] == pytest.approx(expected["dense"]["ppl_last16"], rel=1e-4)
    windows = found["data"][0]["window_losses"]
    assert windows == pytest.approx(expected["dense"]["per_window_nll"], rel=1e-4)


def test_wanda(model, expected, tmp_path):
    out = tmp_path / "wanda"
    prune(
        model,
        str(out),
        method="wanda",
        amount=Amount(ratio=0.5),
        data=tokens("calib_small"),
    )
    assert agreement(out, "wanda_unstructured.masks.safetensors") >= 0.9999
    reference = expected["wanda_unstructured_small"]["ppl_last16"]
    assert perplexity(out) == pytest.approx(reference, rel=1e-3)


def test_first_layer_of_sparsegpt(model, tmp_path):
    """Only layer 0 is compared, so only layer 0 is kept and pruned."""
    plan = tmp_path / "first.json"
    plan.write_text(json.dumps({"keep": {"layers": [0]}}))
    prune(model, str(tmp_path / "first"), plan=str(plan))
    prune(
        str(tmp_path / "first"),
        str(tmp_path / "out"),
        method="sparsegpt",
        amount=Amount(ratio=0.5),
        data=tokens("calib_small"),
        compat=True,
        output=Output(),
    )
    masks = "sparsegpt_unstructured_layer0.masks.safetensors"
    assert agreement(tmp_path / "out", masks) >= 0.999


def test_every_block_of_minitron_depth(model, expected, tmp_path):
    made = prune(
        model,
        str(tmp_path / "depth"),
        method="minitron-depth",
        amount=Amount(layers=15),
        data=tokens("calib_small", 8),
        keep=str(tmp_path / "kept"),
    )
    reference = expected["minitron_depth_k15"]
    with safe_open(tmp_path / "kept" / "stats.safetensors", "pt") as file:
        losses = file.get_tensor("skip_loss.15").tolist()
    assert losses == pytest.approx(reference["loss_per_start"], rel=1e-3)
    start = reference["best_start"]
    assert made.results["removed_layers"] == list(range(start, start + 15))
