"""Shared fixtures: tiny checkpoints of every family, and tokens."""

import os
import signal

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

import tiny
from matrix import pytest_terminal_summary as pytest_terminal_summary
from prunecli.model import device
from prunecli.model.families import registry


def pytest_configure():
    """Let commands be interrupted: what a shell runs in the background inherits a deaf Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def quiet_few_threads():
    """Tests run side by side: one thread each unless asked, and no progress bars of libraries."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(tiny.THREADS)


@pytest.fixture(scope="session", autouse=True)
def bfloat16_as_it_is_asked_for():
    """Tests of bfloat16 are of its results, which a CPU without units for it has too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "has_bfloat16", lambda: True)
        yield


@pytest.fixture(autouse=True)
def families_that_transformers_has(request):
    """Skip a test of a family, by name, whose class the installed transformers lacks."""
    parameters = getattr(getattr(request.node, "callspec", None), "params", {})
    for value in parameters.values():
        if isinstance(value, str) and value in registry.names():
            tiny.need(value)


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Return a function from a family's name to a tiny checkpoint, made once."""
    root = tmp_path_factory.mktemp("models")

    def model(family: str):
        folder = root / family
        return folder if folder.exists() else tiny.make(folder, family)

    return model


@pytest.fixture(scope="session")
def llama(models):
    return models("llama")


@pytest.fixture(scope="session")
def calibration(tmp_path_factory):
    return tiny.tokens(tmp_path_factory.mktemp("tokens") / "c.safetensors", seed=1)


@pytest.fixture(scope="session", params=registry.names())
def family(request):
    return request.param
