"""What all tests of this folder share."""

import json
from importlib import import_module

import pytest
import torch
from commands import NEW, OLD

import prunecli
import tiny


@pytest.fixture(autouse=True)
def one_thread():
    """Compute with one thread, so that a forked child does not wait for those that it lacks."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# what children would otherwise import again and again
HEAVY = ("pruning.mask_training", "training.trainer", "training.state", "measuring.timing")


@pytest.fixture(scope="session")
def words(tmp_path_factory) -> dict[str, str]:
    """What the words in capitals of the commands stand for."""
    pytest.importorskip("matplotlib.pyplot")
    for module in HEAVY:
        import_module(f"prunecli.{module}")
    root = tmp_path_factory.mktemp("inputs")
    model = tiny.make(root / "model", num_hidden_layers=4)
    (root / "config.json").write_text(json.dumps(tiny.config_of("llama", vocab_size=300)))
    prunecli.init(str(root / "reader"), config=str(root / "config.json"), tokenizer="bytes")
    (root / "t.txt").write_text("the cat sat on the mat and looked at the sea. " * 20)
    for way in (OLD, NEW):
        out = str(root / "runs" / way / "e.json")
        prunecli.evaluate(
            str(model), data=[tiny.tokens(root / "w.safetensors", rows=int(way))], out=out
        )
    return {
        "MODEL": str(model), "READER": str(root / "reader"), "TEXT": str(root / "t.txt"),
        "TOKENS": tiny.tokens(root / "t.safetensors", rows=16, length=16, seed=1),
        "HELD": tiny.tokens(root / "h.safetensors", rows=4, length=16, seed=2),
        "RUNS": str(root / "runs"),
    }  # fmt: skip
