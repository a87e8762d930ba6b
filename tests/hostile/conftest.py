"""What all tests of this folder share."""

from importlib import import_module

import lines
import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Compute with one thread, so that a forked child does not wait for those that it lacks."""
    # older versions of tokenizers say in every child that they do so by themselves
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
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
    return lines.inputs(tmp_path_factory.mktemp("inputs"))
