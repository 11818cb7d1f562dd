"""What several test files use."""

import os
from pathlib import Path

import pytest
import torch

# A small machine is fastest, and results are the same everywhere, with one thread; child processes inherit it.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    """A test of a random estimate passes every time or fails every time."""
    torch.manual_seed(0)


@pytest.fixture
def full_data() -> Path:
    """The folder of the full data sets, named by WAE_LIGHTNING_DATA; tests that use it are marked ``full_data``."""
    folder = os.environ.get("WAE_LIGHTNING_DATA")
    if not folder:
        pytest.skip("WAE_LIGHTNING_DATA does not name the folder of the full data sets")
    return Path(folder)
