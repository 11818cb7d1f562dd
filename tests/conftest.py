"""What several test files use."""

import functools
import gc
import os
import sys
from pathlib import Path

import pytest
import torch

collect_ignore = ["either_lightning.py"]  # a script that tests run
# A small machine is fastest, and results are the same everywhere, with one thread; child processes inherit it.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
# child processes test this checkout, not the package that is installed
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH")])
)


def pytest_collection_finish() -> None:
    """Garbage collections, of which Lightning asks for many, need not look at all that was imported."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed() -> None:
    """A test of a random estimate passes every time or fails every time."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _few_shapes(monkeypatch) -> None:
    """The point clouds for those who have none, of which all take two seconds to make."""
    monkeypatch.setattr("datamodules.modelnet40._SHAPES_PER_CLASS", {"train": 25, "test": 8})


@pytest.fixture
def full_data() -> Path:
    """The folder of the full data sets, named by WAE_LIGHTNING_DATA; tests that use it are marked ``full_data``."""
    folder = os.environ.get("WAE_LIGHTNING_DATA")
    if not folder:
        pytest.skip("WAE_LIGHTNING_DATA does not name the folder of the full data sets")
    return Path(folder)


@pytest.fixture(scope="session")
def few_digits(tmp_path_factory) -> Path:
    """A root of 1,000 training and 300 test digits: measures of all bundled ones take ten times as long."""
    from helpers import write_idx

    from datamodules.mnist import BUNDLED_DIGITS, read_digits

    root = tmp_path_factory.mktemp("few")
    for part, stem, count in (("train", "train", 1000), ("test", "t10k", 300)):
        images, labels = read_digits(BUNDLED_DIGITS, part)
        write_idx(root / f"MNIST/raw/{stem}-images-idx3-ubyte", images[:count, 0])
        write_idx(root / f"MNIST/raw/{stem}-labels-idx1-ubyte", labels[:count])
    return root


@pytest.fixture
def quick_measures(monkeypatch) -> None:
    """Evaluations draw few lines of pictures, and less for the prior's moments: that takes most of their time."""
    from wae_lightning.evaluation import codes, lines

    for module, name, few in ((lines, "LINES", 4), (lines, "STEPS", 6), (lines, "DIRECTIONS", 3)):
        monkeypatch.setattr(module, name, few)
    monkeypatch.setattr(codes, "PRIOR_DRAWS", 100_000)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Trains three steps of a config with train.py, once for all tests, and returns its last checkpoint."""
    from wae_lightning.cli import train

    @functools.cache
    def checkpoint(config: str, *flags: str) -> Path:
        folder = tmp_path_factory.mktemp(config)
        before, arguments = os.getcwd(), sys.argv
        os.chdir(folder)
        try:
            steps = ["--max_epochs=1", "--limit_train_batches=3", "--limit_val_batches=2", "--limit_test_batches=1"]
            train.main([f"--config={config}", *steps, "--enable_progress_bar=false", "--log_every_n_steps=1", *flags])
        finally:
            os.chdir(before)
            sys.argv = arguments
        return folder / "runs" / config / "version_0" / "checkpoints" / "last.ckpt"

    return checkpoint
