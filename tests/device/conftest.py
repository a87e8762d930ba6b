"""The device that these tests compute on: a simulated one, or that of PRUNECLI_TEST_DEVICE."""

from pathlib import Path

import pytest
import simulated
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import backend_registration
from work import REAL, Work

from prunecli.model.device import device_of
from prunecli.settings import Compute

SIMULATED = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put these tests last: a process that has met the simulated device knows it ever after."""
    items.sort(key=lambda item: Path(__file__).parent in item.path.parents)


@pytest.fixture(scope="session")
def device() -> str:
    if REAL:
        return REAL
    if not SIMULATED:
        pytest.skip(f"torch {torch.__version__} has no devices in Python")
    return simulated.register()


@pytest.fixture
def counted(device) -> None:
    """Asked for by tests of what is copied, which only the simulated device tells."""
    if REAL:
        pytest.skip("only the simulated device counts copies")
    device_of(Compute(device=device))  # a device is tried once, by a copy


@pytest.fixture
def rel() -> float:
    """How near a float32 figure must be: with the CPU's kernels only sums are rounded otherwise."""
    return 1e-3 if REAL else 1e-5


@pytest.fixture(scope="session")
def work(tmp_path_factory) -> Work:
    return Work(tmp_path_factory.mktemp("work"))


@pytest.fixture(autouse=True)
def same_steps():
    """Have both devices take the same steps: the CPU has a fused attention of its own.

    Gradients of a real device are summed by a thread of its own, which torch starts for the devices
    that it knew at its first backward: the simulated one may have come later.
    """
    threads = torch.autograd.set_multithreading_enabled(REAL is not None)
    with sdpa_kernel(SDPBackend.MATH), threads:
        yield
