"""Checkpoints that survive, and training that goes on from them in the middle of an epoch."""

import errno
import os
import signal
import threading
from datetime import timedelta

import pytest
import torch
from helpers import perceptrons, trainer

from datamodules.base import BatchDataModule
from datamodules.images import Images
from wae_lightning import WAEMMD
from wae_lightning.lightning import SIGTERMException
from wae_lightning.training.interruption import UNFINISHED, AtomicCheckpointIO, BackgroundCheckpointIO, LastCheckpoint


def test_a_checkpoint_is_written_and_replaced(tmp_path):
    path = tmp_path / "new folder" / "a.ckpt"
    for value in (1, 2):
        AtomicCheckpointIO().save_checkpoint({"a": torch.tensor(value)}, path)
        assert torch.load(path, weights_only=True) == {"a": torch.tensor(value)}
    assert [file.name for file in path.parent.iterdir()] == ["a.ckpt"]


@pytest.mark.parametrize("place", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_previous_checkpoint_and_nothing_else(tmp_path, monkeypatch, place):
    path = tmp_path / "a.ckpt"
    AtomicCheckpointIO().save_checkpoint({"a": 1}, path)

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if place == "write":
        monkeypatch.setattr("wae_lightning.training.interruption.Path.open", fail)
    else:
        monkeypatch.setattr(os, place, fail)
    with pytest.raises(
        OSError, match=r"a\.ckpt: the checkpoint cannot be written \(No space left.* previous one is kept"
    ):
        AtomicCheckpointIO().save_checkpoint({"a": 2}, path)
    monkeypatch.undo()
    assert torch.load(path, weights_only=True) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["a.ckpt"]


def test_the_previous_checkpoint_stands_until_the_next_one_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.ckpt"
    AtomicCheckpointIO().save_checkpoint({"a": 1}, path)
    seen = []
    fsync = os.fsync

    def look(file):
        seen.append(torch.load(path, weights_only=True))
        assert (tmp_path / UNFINISHED).stat().st_size > 0
        fsync(file)

    monkeypatch.setattr(os, "fsync", look)
    AtomicCheckpointIO().save_checkpoint({"a": 2}, path)
    assert seen == [{"a": 1}]


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    go_on, fsync = threading.Event(), os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (go_on.wait(60), fsync(file)))
    writer, weight, names = BackgroundCheckpointIO(), torch.zeros(2), ["a.ckpt", "b.ckpt"]
    for name in names:
        writer.save_checkpoint({"weight": weight, "names": names}, tmp_path / name)
        weight += 1
        names = [*names, name]
    assert not (tmp_path / "a.ckpt").exists()
    # a third one would be too many to keep in memory
    threading.Timer(0.2, go_on.set).start()
    writer.remove_checkpoint(tmp_path / "a.ckpt")
    assert go_on.is_set()
    assert torch.equal(writer.load_checkpoint(tmp_path / "b.ckpt", weights_only=True)["weight"], torch.ones(2))
    assert [file.name for file in tmp_path.iterdir()] == ["b.ckpt"]
    writer.teardown()
    writer.save_checkpoint({"a": 1}, tmp_path / "b.ckpt")
    writer.teardown()
    assert torch.load(tmp_path / "b.ckpt", weights_only=True) == {"a": 1}


@pytest.mark.parametrize("told_by", ["the next checkpoint", "the end of training"])
def test_a_checkpoint_that_cannot_be_written_meanwhile_is_told(tmp_path, monkeypatch, told_by):
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    epochs = 3 if told_by == "the next checkpoint" else 1
    fitting = trainer(tmp_path, max_epochs=epochs, callbacks=[LastCheckpoint()], enable_checkpointing=True)
    fitting.strategy.checkpoint_io = BackgroundCheckpointIO()
    with pytest.raises(
        OSError, match=r"last\.ckpt: the checkpoint cannot be written \(No space left on device\); make"
    ):
        fitting.fit(WAEMMD(**perceptrons()), Numbers())
    assert fitting.current_epoch < 3
    assert not list(tmp_path.rglob("*.ckpt")) + list(tmp_path.rglob("*.tmp"))


def test_what_should_have_been_replaced_stays_and_once_it_is_told_writing_goes_on(tmp_path, monkeypatch):
    writer, asked = BackgroundCheckpointIO(), threading.Event()
    writer.save_checkpoint({"a": 1}, tmp_path / "old.ckpt")
    writer.wait()

    def fail(_):
        assert asked.wait(10)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(os, "fsync", fail)
        writer.save_checkpoint({"a": 2}, tmp_path / "new.ckpt")
        writer.remove_checkpoint(tmp_path / "old.ckpt")  # before the failure
        asked.set()
        with pytest.raises(OSError, match=r"new\.ckpt: the checkpoint cannot be written"):
            writer.wait()
    assert [file.name for file in tmp_path.iterdir()] == ["old.ckpt"]
    writer.save_checkpoint({"a": 3}, tmp_path / "new.ckpt")
    writer.remove_checkpoint(tmp_path / "old.ckpt")
    writer.teardown()
    assert [file.name for file in tmp_path.iterdir()] == ["new.ckpt"]


def test_a_checkpoint_is_written_after_so_much_time(tmp_path, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("wae_lightning.training.interruption.time.monotonic", lambda: float(next(clock)))
    last, steps = LastCheckpoint(interval=timedelta(seconds=3)), []
    flags = {"limit_train_batches": 10, "limit_val_batches": 0, "enable_checkpointing": True}
    fitting = trainer(tmp_path, callbacks=[last], **flags)
    monkeypatch.setattr(fitting, "save_checkpoint", lambda *_, **__: steps.append(fitting.global_step))
    fitting.fit(WAEMMD(**perceptrons()), Numbers())
    # each step looks at the clock once, each checkpoint once more; the end of the epoch writes its own
    assert steps == [3, 6, 9, 10]


class Numbers(BatchDataModule):
    """The numbers 0 to 39 as pictures of one pixel."""

    def __init__(self, batch_size=4, num_workers=0):
        super().__init__(batch_size, num_workers)

    def setup(self, stage="fit"):
        x = torch.arange(40, dtype=torch.uint8).view(40, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
        self.train_set = self.val_set = self.test_set = Images(x, torch.arange(40))

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch[0].float() / 255, batch[1]


# ---- signals --------------------------------------------------------------------------------------------------------


class SignalsItself(WAEMMD):
    """Gets a signal in one call of a hook."""

    at = None

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.calls = {"training_step": 0, "validation_step": 0}

    def _count(self, name):
        self.calls[name] += 1
        if self.at is not None and self.at[:2] == (name, self.calls[name]):
            os.kill(os.getpid(), self.at[2])

    def training_step(self, batch, batch_idx):
        self._count("training_step")
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self._count("validation_step")
        super().validation_step(batch, batch_idx)


def fit(folder, at=None, resume=False, every_n_steps=None, **arguments):
    """Trains three epochs of ten steps and returns the model."""
    torch.manual_seed(0)
    model = SignalsItself(**perceptrons(), code_queue=6)
    model.at = at
    arguments = {"max_epochs": 3, "limit_train_batches": 10, "limit_val_batches": 2} | arguments
    fitted = trainer(folder, enable_checkpointing=True, callbacks=[LastCheckpoint(every_n_steps)], **arguments)
    fitted.strategy.checkpoint_io = AtomicCheckpointIO()
    fitted.fit(model, Numbers(), ckpt_path=folder / "checkpoints" / "last.ckpt" if resume else None, weights_only=True)
    return model


def assert_same(a, b):
    for name, weight in a.named_parameters():
        assert torch.equal(weight, b.get_parameter(name)), name
    assert torch.equal(a.training_codes(), b.training_codes())


MOMENTS = [
    ("training_step", 1, {}),
    ("training_step", 14, {}),
    ("training_step", 10, {}),  # the last step before the validation
    ("training_step", 30, {}),  # the last one of all
    ("validation_step", 5, {}),  # two are of the sanity check
    ("training_step", 5, {"val_check_interval": 5}),
    ("validation_step", 3, {"val_check_interval": 5}),
    ("training_step", 13, {"accumulate_grad_batches": 4}),
    # not with max_epochs, too: Lightning counts the epoch at whose end it goes on twice when there is a max_steps
    ("training_step", 14, {"max_steps": 25, "max_epochs": -1}),
    ("training_step", 10, {"max_steps": 25, "max_epochs": -1}),
]


@pytest.mark.parametrize(("hook", "call", "arguments"), MOMENTS, ids=str)
def test_a_signal_ends_training_between_two_steps_and_it_goes_on_exactly(tmp_path, hook, call, arguments):
    whole = fit(tmp_path / "whole", **arguments)
    number = signal.SIGINT if call % 2 else signal.SIGTERM
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(SIGTERMException):
        fit(tmp_path, (hook, call, number), **arguments)
    assert handlers == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    assert_same(fit(tmp_path, resume=True, **arguments), whole)


@pytest.mark.parametrize("call", [8, 11, 20, 22])
def test_a_killed_run_goes_on_exactly_from_a_checkpoint_within_an_epoch(tmp_path, call):
    class Killed(BaseException):
        pass

    def die(*_):
        raise Killed

    before = signal.signal(signal.SIGUSR1, die)  # stands in for SIGKILL: nothing is saved
    with pytest.raises(Killed):
        fit(tmp_path, ("training_step", call, signal.SIGUSR1), every_n_steps=3)
    signal.signal(signal.SIGUSR1, before)
    step = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert call - 4 < step < call
    assert_same(fit(tmp_path, resume=True, every_n_steps=3), fit(tmp_path / "whole", every_n_steps=3))


def test_a_signal_in_the_check_before_the_first_step_writes_nothing(tmp_path):
    with pytest.raises(SIGTERMException):
        fit(tmp_path, ("validation_step", 1, signal.SIGTERM))
    assert not (tmp_path / "checkpoints").exists()


def test_a_signal_in_the_test_of_a_run_that_goes_on_from_its_end_writes_nothing(tmp_path):
    fit(tmp_path)
    path = tmp_path / "checkpoints" / "last.ckpt"
    before = path.read_bytes()
    fitting = trainer(tmp_path, callbacks=[LastCheckpoint()], enable_checkpointing=True, max_epochs=3)
    model = WAEMMD(**perceptrons(), code_queue=6)
    model.test_step = lambda *_: os.kill(os.getpid(), signal.SIGTERM)
    fitting.fit(model, Numbers(), ckpt_path=path, weights_only=True)
    with pytest.raises(SIGTERMException):
        fitting.test(model, Numbers())
    assert path.read_bytes() == before


def test_a_second_signal_stops_at_once_and_writes_nothing(tmp_path):
    class Impatient(SignalsItself):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            if self.calls["training_step"] == 14:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
            return loss

    model = Impatient(**perceptrons())
    with pytest.raises(SystemExit) as stop:
        trainer(
            tmp_path, enable_checkpointing=True, callbacks=[LastCheckpoint()], max_epochs=3, limit_train_batches=10
        ).fit(model, Numbers())
    assert not isinstance(stop.value, SIGTERMException)
    assert torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 10


def test_an_error_in_a_step_leaves_the_last_checkpoint_as_it_is(tmp_path):
    class Breaks(SignalsItself):
        def _count(self, name):
            super()._count(name)
            if self.calls["training_step"] == 14:
                raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        trainer(
            tmp_path, enable_checkpointing=True, callbacks=[LastCheckpoint()], max_epochs=3, limit_train_batches=10
        ).fit(Breaks(**perceptrons()), Numbers())
    assert torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 10


def test_a_checkpoint_takes_the_place_of_another_at_once(tmp_path):
    path, kept = tmp_path / "last.ckpt", tmp_path / "kept"
    AtomicCheckpointIO().save_checkpoint({"number": 1}, path)
    os.link(path, kept)  # whoever has the old file open still sees it
    AtomicCheckpointIO().save_checkpoint({"number": 2}, path)
    assert [torch.load(file, weights_only=True)["number"] for file in (kept, path)] == [1, 2]
