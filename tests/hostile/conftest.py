"""What all tests of this folder share."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Compute with one thread, so that a forked child does not wait for those that it lacks."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
