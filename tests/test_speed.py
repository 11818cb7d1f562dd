"""What is done for speed changes no result."""

import copy
import datetime
import functools
import inspect
import json
import os
import platform
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from types import SimpleNamespace

import pytest
import torch
import train
from benchmarks import loaders
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import LambdaCallback, ModelCheckpoint
from pytorch_lightning.profilers import SimpleProfiler
from test_base import small, trainer
from torch.utils.data import DataLoader

from datamodules import CelebADataModule, HalfImageDataModule, MNISTDataModule
from datamodules.cached_images import ImagesOnDisk
from wae_lightning import WAEGAN, WAEMMD


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
import resource, sys, torch
from wae_lightning.allocator import keep_freed_memory
torch.set_num_threads(1)
print(keep_freed_memory() if sys.argv[1] == "kept" else False)
def step():
    parts = [torch.ones(2**19) for _ in range(8)]
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_freed_memory_is_used_again_without_asking_the_system():
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}

    def output_of(what, **more):
        command = [sys.executable, "-c", FAULTS, what]
        ran = subprocess.run(command, capture_output=True, text=True, check=True, env=environment | more)
        return ran.stdout.split()

    done, faults = output_of("kept")
    # five steps of 16 MB have 20,480 pages
    assert done == "True"
    assert int(faults) < 100
    # glibc's threshold at the start; it may raise it by itself, or not
    assert int(output_of("as it comes", MALLOC_MMAP_THRESHOLD_="131072")[1]) > 1000
    assert output_of("kept", MALLOC_TRIM_THRESHOLD_="1000000")[0] == "False"


class Noting(Callback):
    def __init__(self):
        self.calls = []

    def on_after_backward(self, *_):
        self.calls.append("own")


class NotingModel(WAEMMD):
    def on_after_backward(self):
        self.calls.append("model's")


def test_hooks_that_do_nothing_are_left_out_and_all_others_are_called(tmp_path):
    noting = Noting()
    given = LambdaCallback(on_before_backward=lambda *_: noting.calls.append("given"))
    for callback in (noting, given, Callback()):
        train.leave_out_empty_hooks(callback)
    # hooks of rarer moments are not worth it, and Lightning calls some of them without looking
    assert noting.on_train_batch_start is None
    assert given.on_after_backward is None
    assert callable(noting.on_save_checkpoint)
    assert callable(noting.on_exception)
    model = small(NotingModel)
    model.calls = noting.calls
    train.leave_out_empty_hooks(model)
    assert model.on_before_backward is None
    trainer(tmp_path, limit_train_batches=2, callbacks=[noting, given]).fit(model, MNISTDataModule())
    assert noting.calls == ["given", "own", "model's"] * 2


@pytest.mark.parametrize(
    ("arguments", "hidden"),
    [({}, True), ({"every_n_train_steps": 2}, False), ({"train_time_interval": datetime.timedelta(hours=1)}, False)],
)
def test_a_checkpoint_callback_is_asked_in_each_step_only_if_it_may_save_there(arguments, hidden):
    callback = ModelCheckpoint(**arguments)
    train.leave_out_empty_hooks(callback)
    assert (callback.on_train_batch_end is None) == hidden


@pytest.mark.parametrize(("flags", "expected"), [([], train.NoProfiler), (["--profiler=simple"], SimpleProfiler)])
def test_marks_for_a_profiler_cost_nothing_where_there_is_none(tmp_path, monkeypatch, flags, expected):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv[:1])
    run = train.Train(*train.with_full_names(["--accelerator=cpu", "--logger=false", *flags]))
    assert type(run.trainer.profiler) is expected


def test_batches_fetched_without_torchs_iterator_are_the_same_in_the_same_order():
    data = MNISTDataModule(batch_size=50)
    data.setup("fit")
    loader = data.train_dataloader()
    torch.manual_seed(0)
    own, state = [list(loader), list(loader)], torch.get_rng_state()
    torch.manual_seed(0)
    theirs = [list(DataLoader.__iter__(loader)), list(DataLoader.__iter__(loader))]
    assert torch.equal(torch.get_rng_state(), state)
    for passed, expected in zip(own, theirs, strict=True):
        assert len(passed) == len(expected) == 180
        for batch, expected_batch in zip(passed, expected, strict=True):
            assert all(map(torch.equal, batch, expected_batch))
    assert not torch.equal(own[0][0][1], own[1][0][1])


def test_lightning_sees_the_arguments_of_the_training_step():
    assert inspect.getfullargspec(WAEMMD.training_step).args == ["self", "batch", "batch_idx"]
    assert list(inspect.signature(small().training_step).parameters) == ["batch", "batch_idx"]


LOOK = """
import os, sys
sys.path.insert(0, sys.argv[1])
import torch, train
torch.cuda.is_available = lambda: sys.argv[2] == "True"
train.look_for_gpus_once()
print(os.environ["CUDA_VISIBLE_DEVICES"])
"""


@pytest.mark.parametrize("there_is_one", [True, False])
def test_gpus_are_hidden_only_where_there_are_none(there_is_one):
    command = [sys.executable, "-c", LOOK, os.path.dirname(train.__file__), str(there_is_one)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "0,3"}
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert ran.stdout.strip() == ("0,3" if there_is_one else "")


def test_the_benchmark_of_the_loaders_ends_also_after_two_threads_were_at_work():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.rand(1000, 1000) @ torch.rand(1000, 1000)
        with ProcessPoolExecutor(1, mp_context=get_context("fork")) as process:
            found = process.submit(loaders.start, MNISTDataModule, {"batch_size": 1000}).result(timeout=60)
    finally:
        torch.set_num_threads(threads)
    assert found["first batch s"] > 0


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


@pytest.mark.parametrize("every", [1, 4])
def test_steps_are_logged_when_the_logger_takes_them(tmp_path, every):
    seen = []
    model = small()
    log = model.log
    model.log = lambda name, *args, **kwargs: (seen.append((model.global_step, name)), log(name, *args, **kwargs))[1]
    trainer(tmp_path, limit_train_batches=6, limit_val_batches=0, log_every_n_steps=every).fit(model, MNISTDataModule())
    steps = sorted({step for step, name in seen if name == "train/cost"})
    # the first and the last step of an epoch always, and those whose number every_n divides
    assert steps == (list(range(6)) if every == 1 else [0, 3, 5])


def test_the_command_line_trains_with_two_processes(tmp_path):
    flags = ["--devices=2", "--strategy=ddp", "--accelerator=cpu", "--max_epochs=1", "--limit_train_batches=2"]
    flags += ["--limit_val_batches=1", "--limit_test_batches=1", "--enable_progress_bar=false"]
    run = subprocess.run(
        [sys.executable, train.__file__, "--config=mnist_wae_gan", *flags],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    folder = tmp_path / "runs" / "mnist_wae_gan" / "version_0"
    # the second process has the first one's flags, so it neither trains another config nor writes a run of its own
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["mnist_wae_gan"]
    assert json.loads((folder / "metrics.json").read_text())["steps"] == 2
    assert (folder / "samples.png").is_file()
