"""The order of training batches: a function of (seed, epoch) with and without workers, and resumed exactly."""

import itertools

import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR

from datamodules import CelebADataModule, MNISTDataModule, ModelNet40DataModule
from datamodules.base import BatchDataModule, TensorRows
from datamodules.order import EpochOrder
from wae_lightning.lightning import Callback, LightningModule, Trainer, seed_everything

COUNT, SIZE, STEPS = 42, 4, 10  # the last two of each epoch are dropped


class Numbers(BatchDataModule):
    """The numbers 0 to 41."""

    def __init__(self, batch_size=SIZE, num_workers=0, count=COUNT):
        super().__init__(batch_size, num_workers)
        self.count = count

    def setup(self, stage="fit"):
        self.train_set = self.val_set = TensorRows(torch.arange(self.count), torch.zeros(self.count))


class Recorder(LightningModule):
    """Writes down batches and the random number that each step draws, saves its generator, and asks for the length."""

    def __init__(self, asks_length=False):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.asks_length = asks_length
        self.seen = []
        self.state = None

    def training_step(self, batch):
        self.seen.append((batch[0].flatten().tolist(), float(torch.rand(()))))
        return self.weight * 1.0

    def validation_step(self, batch):
        pass

    def on_save_checkpoint(self, checkpoint):
        checkpoint["generator"] = torch.get_rng_state()

    def on_load_checkpoint(self, checkpoint):
        self.state = checkpoint["generator"]

    def on_train_start(self):
        if self.state is not None:
            torch.set_rng_state(self.state)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        if not self.asks_length:
            return optimizer
        schedule = OneCycleLR(optimizer, 0.1, total_steps=int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class SaveAndStop(Callback):
    """Saves after a step, after a validation or after an epoch, and stops there."""

    def __init__(self, path, step, hook="on_train_batch_end"):
        self.path, self.step = path, step
        setattr(self, hook, self.save)

    def save(self, trainer, *_):
        if trainer.global_step == self.step and not trainer.sanity_checking:
            trainer.save_checkpoint(self.path)
            raise KeyError("stop")


def fit(folder, data, model, resume=None, callbacks=(), **flags):
    flags = {"max_epochs": 3, "devices": 1, "num_sanity_val_steps": 0} | flags
    Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **flags,
    ).fit(model, data, ckpt_path=resume, weights_only=True)
    return model.seen


# ---- the order ------------------------------------------------------------------------------------------------------


def rows(seed, epoch, count=COUNT):
    order = EpochOrder(range(count), seed)
    order.set_epoch(epoch)
    return list(order)


def test_the_order_is_a_permutation_that_seed_and_epoch_determine():
    assert sorted(rows(1, 2)) == list(range(COUNT))
    assert rows(1, 2) == rows(1, 2)
    orders = [tuple(rows(seed, epoch)) for seed in range(4) for epoch in range(4)]
    assert len(set(orders)) == 16


def test_every_row_is_as_likely_at_every_place():
    first = torch.tensor([rows(seed, epoch, 5)[0] for seed in range(40) for epoch in range(50)])
    assert (torch.bincount(first) / 2000 - 0.2).abs().max() < 0.04  # four standard deviations


@pytest.mark.parametrize("processes", [2, 5, 50])
def test_shards_are_disjoint_but_for_those_that_fill_up(monkeypatch, processes):
    monkeypatch.setattr("datamodules.order.rank_and_processes", lambda: (rank, processes))
    shards = []
    for number in range(processes):
        rank = number
        shards.append(rows(3, 1))
    assert {len(shard) for shard in shards} == {-(-COUNT // processes)}
    together = [row for round_ in zip(*shards, strict=True) for row in round_]
    monkeypatch.undo()
    assert together == [row for row, _ in zip(itertools.cycle(rows(3, 1)), together, strict=False)]


@pytest.mark.parametrize("workers", [0, 2])
def test_passes_differ_repeat_and_leave_the_generator_alone(workers):
    def passes(seed):
        seed_everything(seed)
        data = Numbers(num_workers=workers)
        data.setup()
        loader = data.train_dataloader()
        before = torch.get_rng_state()
        found = [[row for batch, _ in loader for row in batch.tolist()] for _ in range(3)]
        assert torch.equal(torch.get_rng_state(), before)
        assert all(len(set(row)) == len(row) == STEPS * SIZE for row in found)
        return found

    first = passes(7)
    assert first == passes(7)
    assert first[0] != first[1] != first[2] != first[0]
    assert first[0] != passes(8)[0]


def test_an_epoch_is_the_same_whatever_was_before(tmp_path):
    seed_everything(3)
    whole = fit(tmp_path, Numbers(), Recorder())
    seed_everything(3)
    data = Numbers()
    data.setup()
    loader = data.train_dataloader()
    loader.sampler.set_epoch(2)
    assert [batch.tolist() for batch, _ in loader] == [batch for batch, _ in whole[2 * STEPS :]]


def test_the_set_is_seen_in_order_when_it_shall_be_overfitted(tmp_path):
    apart = Numbers()
    apart.setup()
    for data in (Numbers(), apart.train_dataloader()):
        seen = fit(tmp_path, data, Recorder(), overfit_batches=2, max_epochs=2)
        assert [batch for batch, _ in seen] == [[0, 1, 2, 3], [4, 5, 6, 7]] * 2


# ---- going on -------------------------------------------------------------------------------------------------------

MOMENTS = [
    ("on_train_batch_end", 3, {}),
    ("on_train_batch_end", STEPS, {}),
    ("on_train_batch_end", STEPS + 1, {}),
    ("on_train_batch_end", 2 * STEPS + 7, {}),
    ("on_validation_end", STEPS, {}),
    ("on_validation_end", STEPS + 5, {"val_check_interval": 5}),
    ("on_train_epoch_end", STEPS, {}),
    ("on_train_epoch_end", 2 * STEPS, {}),
    ("on_train_batch_end", 8, {"limit_train_batches": 6}),
    ("on_train_epoch_end", 6, {"limit_train_batches": 6}),
    ("on_train_batch_end", STEPS + 4, {"reload_dataloaders_every_n_epochs": 1}),
    ("on_train_batch_end", STEPS + 4, {"max_epochs": -1, "max_steps": 25}),
    ("on_train_epoch_end", STEPS, {"max_epochs": -1, "max_steps": 25}),
]


@pytest.mark.parametrize(
    ("hook", "step", "flags", "workers", "asks_length"),
    [*((*moment, 0, True) for moment in MOMENTS), *((*moment, 2, False) for moment in MOMENTS[3::5])],
    ids=str,
)
def test_a_run_goes_on_with_the_same_batches_and_draws(tmp_path, hook, step, flags, asks_length, workers):
    seed_everything(5)
    whole = fit(tmp_path, Numbers(num_workers=workers), Recorder(asks_length), **flags)
    path = tmp_path / "stopped.ckpt"
    seed_everything(5)
    model = Recorder(asks_length)
    with pytest.raises(KeyError, match="stop"):
        fit(tmp_path, Numbers(num_workers=workers), model, callbacks=[SaveAndStop(path, step, hook)], **flags)
    assert model.seen == whole[:step]
    seed_everything(99)  # the seed of the run is in the checkpoint
    rest = fit(tmp_path, Numbers(num_workers=workers), Recorder(asks_length), resume=path, **flags)
    assert rest == whole[step:]


def stopped(folder, data, step=STEPS + 3, hook="on_train_batch_end"):
    seed_everything(5)
    with pytest.raises(KeyError, match="stop"):
        fit(folder, data, Recorder(), callbacks=[SaveAndStop(folder / "stopped.ckpt", step, hook)])
    return folder / "stopped.ckpt"


def test_workers_may_change_in_the_middle_of_an_epoch(tmp_path):
    path = stopped(tmp_path, Numbers())
    seed_everything(5)
    whole = fit(tmp_path, Numbers(), Recorder())
    assert fit(tmp_path, Numbers(num_workers=2), Recorder(), resume=path) == whole[STEPS + 3 :]


@pytest.mark.parametrize("data", [{"batch_size": 20}, {"batch_size": 1}, {"count": 30}])
@pytest.mark.parametrize("asks_length", [False, True])
def test_other_batches_in_the_middle_of_an_epoch_are_refused(tmp_path, data, asks_length):
    path = stopped(tmp_path, Numbers())
    model = Recorder(asks_length)
    with pytest.raises(
        ValueError, match="after batch 3 with batch_size = 4, batches_per_epoch = 10, processes = 1, and"
    ):
        fit(tmp_path, Numbers(**data), model, resume=path)
    assert not model.seen


@pytest.mark.parametrize("size", [2, 21])
def test_another_batch_size_after_the_last_step_of_an_epoch_is_refused(tmp_path, size):
    # Lightning has not yet counted that step, and would begin the next epoch in its middle
    path = stopped(tmp_path, Numbers(), STEPS)
    model = Recorder()
    with pytest.raises(ValueError, match=f"after batch {STEPS} with batch_size = 4, .*cannot go on with batch_size ="):
        fit(tmp_path, Numbers(batch_size=size), model, resume=path)
    assert not model.seen
    seed_everything(5)
    whole = fit(tmp_path, Numbers(), Recorder())
    assert fit(tmp_path, Numbers(), Recorder(), resume=path) == whole[STEPS:]


@pytest.mark.parametrize("hook", ["on_train_epoch_end", "on_validation_end"])
@pytest.mark.parametrize("size", [2, 21])
def test_another_batch_size_from_the_end_of_an_epoch_on(tmp_path, hook, size):
    path = stopped(tmp_path, Numbers(), STEPS, hook)
    seen = fit(tmp_path, Numbers(batch_size=size), Recorder(), resume=path)
    assert [len(batch) for batch, _ in seen] == [size] * (COUNT // size) * 2


def test_a_checkpoint_that_is_only_tested_does_not_move_the_next_run(tmp_path):
    path = stopped(tmp_path, Numbers(), 3)
    data = Numbers()
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.validate(Recorder(), data, ckpt_path=path, verbose=False, weights_only=True)
    assert len(fit(tmp_path, data, Recorder(), max_epochs=1)) == STEPS


def test_another_pass_does_not_move_the_place(tmp_path):
    class Looks(Recorder):
        """Passes over the loader before training and within it."""

        def on_train_start(self):
            super().on_train_start()
            next(iter(self.trainer.train_dataloader))

        def training_step(self, batch):
            next(iter(self.trainer.train_dataloader))
            return super().training_step(batch)

    seed_everything(5)
    whole = fit(tmp_path, Numbers(), Looks())
    seed_everything(5)
    assert whole == fit(tmp_path, Numbers(), Recorder())
    path = tmp_path / "stopped.ckpt"
    seed_everything(5)
    with pytest.raises(KeyError):
        fit(tmp_path, Numbers(), Looks(), callbacks=[SaveAndStop(path, 13)])
    assert fit(tmp_path, Numbers(), Looks(), resume=path) == whole[13:]


class TwoProcesses(Recorder):
    def __init__(self, folder, asks_length=False, stop=None):
        super().__init__(asks_length)
        self.folder, self.stop = folder, stop

    def on_train_batch_end(self, *_):
        torch.save([batch for batch, _ in self.seen], self.folder / f"{self.global_rank}.pt")
        if self.trainer.global_step == self.stop:
            self.trainer.save_checkpoint(self.folder / "stopped.ckpt")
            self.trainer.should_stop = True


@pytest.mark.parametrize("workers", [0, 2])
def test_two_processes_go_on_with_their_shards(tmp_path, workers):
    flags = {"devices": 2, "strategy": "ddp_fork"}

    def seen(name, stop=None, resume=None):
        folder = tmp_path / name
        folder.mkdir()
        fit(folder, Numbers(num_workers=workers), TwoProcesses(folder, True, stop), resume, **flags)
        return [torch.load(folder / f"{rank}.pt") for rank in range(2)]

    seed_everything(5)
    whole = seen("whole")
    steps = COUNT // 2 // SIZE
    for epoch in range(3):
        shards = [{row for batch in rank[epoch * steps : (epoch + 1) * steps] for row in batch} for rank in whole]
        assert not shards[0] & shards[1]
        assert [len(shard) for shard in shards] == [steps * SIZE] * 2
    seed_everything(5)
    stopped = seen("stopped", stop=8)
    assert stopped == [rank[:8] for rank in whole]
    seed_everything(99)
    assert seen("resumed", resume=tmp_path / "stopped/stopped.ckpt") == [rank[8:] for rank in whole]
    with pytest.raises(ValueError, match=r"processes = 2, and cannot go on with batch_size = 4, .*processes = 1:"):
        fit(tmp_path, Numbers(), Recorder(), resume=tmp_path / "stopped/stopped.ckpt")


# ---- what is drawn for a batch --------------------------------------------------------------------------------------


class Pictures(Recorder):
    """Keeps the batches as they reach the model."""

    def training_step(self, batch):
        self.seen.append([part.clone() for part in batch])
        return self.weight * 1.0


def augmented(name, workers, tmp_path):
    if name == "clouds":
        return ModelNet40DataModule(
            source="shapes",
            classes=["chair"],
            num_points=16,
            batch_size=4,
            num_workers=workers,
            rotate=True,
            jitter=0.1,
        )
    if name == "faces":
        from test_celeba import draw_celeba

        root = tmp_path / "set"
        return CelebADataModule(root if root.exists() else draw_celeba(root, 32), 4, workers, flip=True, shift=3)
    return MNISTDataModule(batch_size=2000, num_workers=workers)


@pytest.mark.parametrize("name", ["clouds", "faces", "digits"])
def test_random_subsets_and_flips_do_not_depend_on_workers(tmp_path, name):
    runs = []
    for workers in (0, 2):
        seed_everything(5)
        runs.append(fit(tmp_path, augmented(name, workers, tmp_path), Pictures(), max_epochs=2))
    assert len(runs[0]) == len(runs[1]) > 4
    assert all(
        torch.equal(one, other)
        for ones, others in zip(*runs, strict=True)
        for one, other in zip(ones, others, strict=True)
    )
    assert not torch.equal(runs[0][0][0], runs[0][1][0])
    path = tmp_path / "stopped.ckpt"
    step = len(runs[0]) // 2 + 1
    for workers in (0, 2):
        seed_everything(5)
        data = augmented(name, workers, tmp_path)
        with pytest.raises(KeyError):
            fit(tmp_path, data, Pictures(), callbacks=[SaveAndStop(path, step)], max_epochs=2)
        rest = fit(tmp_path, augmented(name, workers, tmp_path), Pictures(), resume=path, max_epochs=2)
        assert len(rest) == len(runs[0]) - step
        assert all(torch.equal(one[0], other[0]) for one, other in zip(rest, runs[0][step:], strict=True))


def test_a_subset_of_points_is_new_in_each_batch_though_the_set_is_one_cloud():
    data = ModelNet40DataModule(source="shapes", classes=["chair"], num_points=16, batch_size=1)
    data.setup()
    data.train_set.rows = data.train_set.rows[:1]
    loader = data.train_dataloader()
    clouds = [points for _ in range(5) for points, _ in loader]
    assert len({tuple(cloud.flatten().tolist()) for cloud in clouds}) == 5
