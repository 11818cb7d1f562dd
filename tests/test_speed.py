"""What is done for speed changes no result."""

import copy
import functools
import json
import logging
import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import benchmark
import pytest
import tables
import torch
from benchmarks import parts, training
from benchmarks.turns import Options
from helpers import small, trainer

from datamodules import CelebADataModule, HalfImageDataModule, MNISTDataModule
from datamodules.cached_images import ImagesOnDisk
from wae_lightning import WAEGAN, WAEMMD
from wae_lightning.cli.train import main
from wae_lightning.training import allocator


class Costs(torch.nn.Module):
    """A cost that remembers all its values."""

    def __init__(self):
        super().__init__()
        self.values = []

    def forward(self, target, reconstruction):
        cost = (target - reconstruction).square().flatten(1).sum(1)
        self.values.append(cost.mean().item())
        return cost


def costs(folder, cls=WAEMMD, data=None, change=lambda model: model, trainer_arguments=None, **arguments):
    torch.manual_seed(0)
    model = change(small(cls, cost=Costs(), **arguments))
    flags = {"limit_train_batches": 6, "limit_val_batches": 0, **(trainer_arguments or {})}
    trainer(folder, **flags).fit(model, data or MNISTDataModule(batch_size=32))
    return torch.tensor(model.cost.values)


@pytest.mark.parametrize("cls", [WAEMMD, WAEGAN])
def test_fused_adam_trains_alike(tmp_path, cls):
    losses = [
        costs(tmp_path, cls, optimizer=functools.partial(torch.optim.Adam, lr=1e-3, fused=fused))
        for fused in (False, True)
    ]
    assert len(losses[0]) == 6
    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-3)


def test_channels_last_trains_alike(tmp_path):
    def contiguous(model):
        return model.to(memory_format=torch.contiguous_format)

    losses = [costs(tmp_path, change=change) for change in (copy.copy, contiguous)]
    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-3)


def test_bfloat16_trains_nearly_alike(tmp_path):
    full, mixed = (
        costs(tmp_path, trainer_arguments={"precision": precision}) for precision in ("32-true", "bf16-mixed")
    )
    # bfloat16 has 8 bits of mantissa
    torch.testing.assert_close(full, mixed, rtol=2e-2, atol=0)
    assert not torch.equal(full, mixed)


FAULTS = """
import importlib.util, resource, sys, numpy
spec = importlib.util.spec_from_file_location("allocator", sys.argv[2])  # without what the package imports
allocator = importlib.util.module_from_spec(spec)
spec.loader.exec_module(allocator)
print(allocator.keep_freed_memory() if sys.argv[1] == "kept" else False)
def step():
    parts = [numpy.ones(2**18) for _ in range(8)]
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_freed_memory_is_used_again_without_asking_the_system(monkeypatch):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}

    def output_of(what, **more):
        command = [sys.executable, "-c", FAULTS, what, allocator.__file__]
        ran = subprocess.run(command, capture_output=True, text=True, check=True, env=environment | more)
        return ran.stdout.split()

    done, faults = output_of("kept")
    # five steps of 16 MB have 20,480 pages
    assert done == "True"
    assert int(faults) < 100
    # glibc's threshold at the start; it may raise it by itself, or not
    assert int(output_of("as it comes", MALLOC_MMAP_THRESHOLD_="131072")[1]) > 1000
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    assert not allocator.keep_freed_memory()


def test_training_rounds_tiny_numbers_to_zero(tmp_path, monkeypatch):
    """A processor takes many times as long for them, and an optimizer's moments are full of them late in a run."""
    monkeypatch.chdir(tmp_path)
    if not torch.set_flush_denormal(False):
        pytest.skip("this processor cannot")
    tiny = []
    monkeypatch.setattr(WAEMMD, "on_train_end", lambda model: tiny.append(torch.full((1,), 1e-38).div(10).item()))
    for before in (False, True):  # as it was, it is afterwards
        torch.set_flush_denormal(before)
        try:
            main(["--config=mnist_wae_mmd", "--fast_dev_run=true", "--accelerator=cpu"])
            assert (torch.full((1,), 1e-38).div(10).item() == 0) is before
        finally:
            torch.set_flush_denormal(False)
    assert tiny == [0, 0]


@pytest.fixture
def little(monkeypatch):
    """Benchmarks of small networks, 50 images at a time; loggers are as before."""
    flags = [
        "--data.batch_size=50",
        "--model.encoder.width=0.02",
        "--model.decoder.width=0.02",
        "--trainer.callbacks=[]",
    ]
    for module in (parts, training):
        monkeypatch.setattr(module, "run_of", lambda *a, run_of=training.run_of: run_of(*a, *flags))
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.mark.usefixtures("little")
def test_the_quick_benchmark_says_what_the_docs_and_tables_say(tmp_path, capsys, monkeypatch):
    out = tmp_path / "speed.json"
    benchmark.main(["--quick", "--sections", "training", "cache", "mmd", "sampling", f"--out={out}"])
    found = json.loads(out.read_text())
    assert list(found) == ["machine", "training", "cache", "mmd", "sampling"]
    assert found["machine"]["quick"]
    for config in ("mnist_wae_mmd", "mnist_wae_gan"):
        ours = found["training"][f"{config}, lightning"]["images/s"]
        for other in ("bare loop", "plain Lightning"):
            row = found["training"][f"{config}, {other}"]
            # one is the quotient of medians, one the median of quotients, of two turns
            assert row["lightning/this"] == pytest.approx(ours / row["images/s"], rel=0.5)
    # 4 bytes for each of n², d differences: the first array of the form that broadcasts
    assert found["mmd"]["n 1000, d 64, broadcasting"]["MB"] > 256
    assert found["mmd"]["n 1000, d 64, ours"]["MB"] < 100
    assert 0 < found["mmd"]["n 100, d 8, ours"]["absolute error"] < 1e-5
    printed = capsys.readouterr().out
    assert all(f"\n{section}: " in printed for section in ("training", "cache", "mmd", "sampling"))
    assert all(row["s"] > 0.01 for row in found["cache"].values())
    left_out = {"mnist_wae_mmd without its flow, lightning": {"images/s": 1.0}}
    monkeypatch.setattr(tables, "load", lambda name: {"training": found["training"] | left_out})
    ours, bare = found["training"]["mnist_wae_mmd, lightning"], found["training"]["mnist_wae_mmd, bare loop"]
    speed, ratio = f"{ours['images/s']:.0f}", f"{bare['lightning/this']:.2f}"
    assert f"| mnist_wae_mmd | {speed}, {speed} | {ratio}, {ratio} |" in tables.training()
    # sections that the file has already are kept
    benchmark.main(["--quick", "--sections", "sampling", f"--out={out}"])
    assert json.loads(out.read_text())["training"] == found["training"]


def test_the_loaders_are_measured(few_digits, tmp_path):
    out = tmp_path / "speed.json"
    flags = [f"--data.root={few_digits}", f"--celeba_root={tmp_path}", f"--modelnet40_root={tmp_path}"]
    benchmark.main(["--quick", "--sections", "loaders", *flags, f"--out={out}"])
    rows = json.loads(out.read_text())["loaders"]
    ours, halves, others = ("MNIST", "MNIST halves", "MNIST, torchvision, 0 workers")
    assert set(rows) == {ours, halves, others, "ModelNet40 shapes", "ModelNet40 shapes, cloud by cloud, 0 workers"}
    assert all(row["examples/s"] > 100 for row in rows.values())
    faster = rows[ours]["examples/s"] / rows[others]["examples/s"]
    assert rows[others]["ours is faster by"] == pytest.approx(faster, rel=1e-3)


@pytest.mark.usefixtures("little")
def test_no_section_begins_when_time_is_up(capsys):
    benchmark.main(["--quick", "--minutes=1e-9"])
    printed = capsys.readouterr().out
    assert printed.count("not measured: 1e-09 minutes are over") == len(benchmark.SECTIONS) - len(benchmark.ON_A_GPU)


@pytest.mark.usefixtures("little")
def test_precision_compares_what_is_alike():
    """Here on the CPU, where float32 and TF32 are one thing; only a GPU runs all of it."""
    rows = training.precision(Options(torch.device("cpu"), quick=True))
    for mode in ("float32", "TF32", "bf16-mixed"):
        row = rows[f"mnist_wae_mmd, {mode}"]
        # a CPU without units for bfloat16 multiplies such matrices more slowly than it trains
        assert 0 < row["share of matmul rate"] < (1 if mode == "float32" else float("inf"))
        assert row["lightning/bare loop"] > 0
    late = training.precision(Options(torch.device("cpu"), quick=True, deadline=0))
    assert late["mnist_wae_mmd, float32"] == {"not measured": "time was up"}


class MovedDigits(MNISTDataModule):
    """Digits moved to a device, which happens to be the one where they were."""

    def setup(self, stage="fit"):
        super().setup(stage)
        for name in ("train_set", "val_set", "test_set"):
            setattr(self, name, getattr(self, name).to(torch.device("cpu")))


def test_resident_images_train_exactly_alike(tmp_path):
    moved = MovedDigits(batch_size=32)
    assert torch.equal(costs(tmp_path, data=moved), costs(tmp_path, data=MNISTDataModule(batch_size=32)))
    # they keep no row of the validation set
    assert len(moved.train_set.images) == len(moved.train_set) == 9000


@pytest.mark.parametrize("module", [MNISTDataModule, HalfImageDataModule])
def test_resident_images_lie_on_the_device_and_nowhere_else(tmp_path, monkeypatch, module):
    data = module(batch_size=32, on_device=True)
    data.trainer = trainer(tmp_path)
    # a device that every machine has, without arithmetic
    monkeypatch.setattr(type(data.trainer.strategy), "root_device", torch.device("meta"))
    data.setup("fit")
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        for part in loader.dataset.__getitems__([1, 2]):
            assert part.device.type == "meta"
            assert len(part) == 2
    images = getattr(data, "images", data)
    assert images.train_set.images.shape == (9000, 1, 28, 28)
    assert {images.train_set.images.dtype, images.val_set.images.dtype} == {torch.uint8}


def test_without_a_gpu_images_stay_where_they_are(tmp_path):
    data = MNISTDataModule()
    data.trainer = trainer(tmp_path)
    data.setup("fit")
    before = data.train_set
    assert data.train_dataloader().dataset is before


def test_workers_cannot_reach_a_device():
    with pytest.raises(ValueError, match="on_device needs num_workers 0, got 2"):
        MNISTDataModule(num_workers=2, on_device=True)


def test_a_set_on_disk_cannot_lie_on_a_device(tmp_path, monkeypatch):
    data = CelebADataModule(tmp_path, on_device=True)
    data.trainer = trainer(tmp_path)
    monkeypatch.setattr(type(data.trainer.strategy), "root_device", torch.device("meta"))
    cache = SimpleNamespace(shape=(3, 3, 64, 64))
    data.train_set = ImagesOnDisk(cache, torch.zeros(3), torch.arange(3))
    with pytest.raises(ValueError, match=r"on_device needs the images in memory.*memory_budget"):
        data.train_dataloader()
