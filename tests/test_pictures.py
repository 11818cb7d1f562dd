"""Which examples the picture callbacks keep, and where their pictures go."""

import csv
import io

import numpy as np
import pytest
import torch
from helpers import pl
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_base import small, trainer
from torch.utils.data import DataLoader, TensorDataset

from wae_lightning import WAEMMD, PointNetWAE
from wae_lightning.callbacks import CodePictures, ImagePictures, PointCloudPictures, log_picture
from wae_lightning.callbacks.pictures import in_unit_range, run_folder, write_png
from wae_lightning.lightning import CSVLogger, Logger, TensorBoardLogger
from wae_lightning.networks.pointnet import FullyConnectedDecoder

IMAGES = torch.rand(20, 1, 28, 28, generator=torch.Generator().manual_seed(1))


def read(file):
    with Image.open(file) as image:
        return np.array(image)


class Kept(ImagePictures):
    """Notes what it draws."""

    def draw(self, model, inputs):
        self.inputs = inputs
        return super().draw(model, inputs)


class Named(WAEMMD):
    """Takes batches as a dict with a name of its own for the input."""

    def __init__(self, **arguments):
        super().__init__(input_key="pixels", **arguments)


class Inverted(WAEMMD):
    """Says itself what the inputs of a batch are."""

    def inputs_of(self, batch):
        return 1 - batch["pixels"]


def loader(kind, images=IMAGES, batch_size=3):
    labels = torch.arange(len(images)) % 10
    rows = {
        "tensor": images,
        "tuple": TensorDataset(images, labels),
        "dict": [{"pixels": image, "label": label} for image, label in zip(images, labels, strict=True)],
    }
    return DataLoader(rows[kind], batch_size)


@pytest.mark.parametrize(
    ("kind", "cls", "expected"),
    [
        ("tensor", WAEMMD, IMAGES[:4]),
        ("tuple", WAEMMD, IMAGES[:4]),
        ("dict", Named, IMAGES[:4]),
        ("dict", Inverted, 1 - IMAGES[:4]),
    ],
    ids=["tensor", "tuple", "dict", "inputs_of"],
)
def test_the_first_examples_are_kept_of_any_batch(kind, cls, expected, tmp_path):
    pictures, codes = Kept(columns=2), CodePictures(5)
    trainer(tmp_path, callbacks=[pictures, codes], limit_val_batches=4).fit(small(cls), loader(kind), loader(kind))
    # four images from two batches of three
    assert torch.equal(pictures.inputs, expected)
    kept = codes.kept()
    assert len(kept["codes"]) == 5
    assert kept.keys() == ({"codes"} if kind == "tensor" else {"codes", "labels"})
    assert kept.get("labels", torch.arange(5)).tolist() == [0, 1, 2, 3, 4]


def test_of_several_validation_loaders_the_first_is_drawn(tmp_path):
    pictures, codes = Kept(columns=2), CodePictures(15)
    loaders = [loader("tuple"), loader("tuple", 1 - IMAGES[:6])]
    fitting = trainer(tmp_path, callbacks=[pictures, codes], limit_val_batches=1.0)
    fitting.fit(small(), loader("tuple"), loaders)
    assert torch.equal(pictures.inputs, IMAGES[:4])
    assert codes.kept()["labels"].tolist() == [*range(10), *range(5)]


def test_nothing_is_drawn_in_the_sanity_check_or_a_trial_run(tmp_path):
    pictures = Kept(columns=2)
    trainer(tmp_path, callbacks=[pictures], max_epochs=0, num_sanity_val_steps=2).fit(
        small(), loader("tuple"), loader("tuple")
    )
    trainer(tmp_path, callbacks=[pictures], fast_dev_run=True).fit(small(), loader("tuple"), loader("tuple"))
    assert not hasattr(pictures, "inputs")
    assert not list(tmp_path.rglob("*.png"))


def test_point_sets_that_change_their_size_are_drawn(tmp_path):
    sizes = [torch.rand(3, 20, 3), torch.rand(3, 30, 3), torch.rand(3, 20, 3)]
    sets = DataLoader(sizes, batch_size=None)
    model = PointNetWAE(
        latent_dim=3,
        decoder=FullyConnectedDecoder(3, 16),
    )
    pictures = PointCloudPictures(columns=2, every_n_epochs=1)
    logger = TensorBoardLogger(tmp_path)
    trainer(tmp_path, logger=logger, callbacks=[pictures, CodePictures(9)], limit_val_batches=3).fit(model, sets, sets)
    assert pictures.kept()["inputs"].shape == (6, 20, 3)
    tags = EventAccumulator(logger.log_dir).Reload().Tags()
    assert {"samples", "reconstructions", "interpolations", "codes"} <= set(tags["images"])
    meshes = {f"{name}/turnable_VERTEX" for name in ("samples", "inputs", "reconstructions", "interpolations")}
    assert meshes <= set(tags["tensors"])


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "bf16-mixed"])
def test_pictures_are_drawn_in_half_precision(precision, tmp_path):
    fitting = trainer(tmp_path, precision=precision, callbacks=[Kept(columns=2), CodePictures(9)])
    fitting.validate(small(), loader("tuple"), verbose=False)
    for name in ("samples", "reconstructions", "interpolations", "codes"):
        assert read(tmp_path / f"{name}.png").std() > 5, name
    # the same as in full precision, but for rounding
    model = small()
    full = trainer(tmp_path / "full", callbacks=[ImagePictures(2)])
    half = trainer(tmp_path / "half", callbacks=[ImagePictures(2)], precision=precision)
    for run in (full, half):
        run.validate(model, loader("tuple"), verbose=False)
        model.float()
    for name in ("samples", "reconstructions"):
        pair = [read(tmp_path / run / f"{name}.png").astype(float) for run in ("full", "half")]
        assert np.abs(pair[0] - pair[1]).mean() < 3, name


def test_drawing_changes_neither_weights_nor_the_random_state(tmp_path):
    class Own(WAEMMD):
        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)  # hands no codes over: they are drawn once more

    after = []
    for callbacks in ([], [ImagePictures(2), CodePictures(9)]):
        torch.manual_seed(0)
        model = small(Own)
        trainer(tmp_path, callbacks=callbacks, max_epochs=2).fit(model, loader("tuple"), loader("tuple"))
        after.append([*model.parameters(), *model.buffers(), torch.get_rng_state()])
    assert all(torch.equal(a, b) for a, b in zip(*after, strict=True))


@pytest.mark.parametrize(("given", "low", "high"), [((0, 1), 0.0, 1.0), ((-1, 1), -1.0, 1.0), (None, -3.0, 5.0)])
def test_images_of_any_range_are_shown_from_black_to_white(given, low, high):
    model = small()
    model.input_range = given
    x = torch.linspace(low, high, 9)
    torch.testing.assert_close(in_unit_range(model, x), torch.linspace(0, 1, 9))


# ---- where pictures go -----------------------------------------------------------------------------------------------

PICTURE = torch.rand(3, 9, 7, generator=torch.Generator().manual_seed(2))
BYTES = PICTURE.mul(255).round().byte().permute(1, 2, 0).numpy()


class CometLogger(Logger):
    """What Comet's logger and its experiment promise."""

    def __init__(self):
        self.images = []

    name, version = "project", "key"

    @property
    def experiment(self):
        return self

    def log_image(self, image_data, name=None, overwrite=False, image_format="png", step=None):
        assert isinstance(image_data, np.ndarray)
        self.images.append((name, step, image_data))

    def log_metrics(self, metrics, step=None): ...

    def log_hyperparams(self, params, *args, **kwargs): ...


class TheirComet(CometLogger):
    """A user's subclass."""


def test_tensorboard_and_comet_and_no_png(tmp_path):
    board, comet = TensorBoardLogger(tmp_path), TheirComet()
    log_picture(trainer(tmp_path, logger=[board, comet, CSVLogger(tmp_path)]), "name", PICTURE, 3)
    board.experiment.flush()
    (image,) = EventAccumulator(board.log_dir).Reload().Images("name")
    assert image.step == 3
    assert np.array_equal(read(io.BytesIO(image.encoded_image_string)), BYTES)
    ((name, step, pixels),) = comet.images
    assert (name, step) == ("name", 3)
    assert np.array_equal(pixels, BYTES)
    assert not list(tmp_path.rglob("*.png"))


def test_other_loggers_and_none_leave_png_files_in_the_runs_folder(tmp_path):
    logger = CSVLogger(tmp_path, name="name", version="mine")
    callbacks = [Kept(columns=2), CodePictures(9)]
    trainer(tmp_path, logger=logger, callbacks=callbacks).fit(small(), loader("tuple"), loader("tuple"))
    names = {"samples.png", "reconstructions.png", "interpolations.png", "codes.png"}
    assert {path.name for path in (tmp_path / "name/mine").glob("*.png*")} == names
    assert list(csv.reader((tmp_path / "name/mine/metrics.csv").open()))
    trainer(tmp_path / "none", callbacks=callbacks).fit(small(), loader("tuple"), loader("tuple"))
    assert {path.name for path in (tmp_path / "none").iterdir()} == names


def test_a_picture_that_is_not_finite_is_written(tmp_path):
    write_png(tmp_path / "new/picture.png", torch.tensor([float("nan"), 0.5, float("inf")]).expand(3, 2, 3))
    # 300 times as large
    assert read(tmp_path / "new/picture.png")[0, ::300, 0].tolist() == [0, 128, 255]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["picture.png"]


def fit_and_test(tmp_path, logger):
    arguments = {"callbacks": [ImagePictures(2), CodePictures(9)], "limit_test_batches": 1, "log_every_n_steps": 1}
    runs = trainer(tmp_path, logger=logger, **arguments)
    model = small()
    runs.fit(model, loader("tuple"), loader("tuple"))
    runs.test(model, loader("tuple"), verbose=False)
    found = {path.name for path in run_folder(runs).glob("*.png")}
    assert found == {"samples.png", "reconstructions.png", "interpolations.png", "codes.png"}
    return run_folder(runs)


def test_weights_and_biases_takes_pictures(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folders = []
    for _ in range(2):
        logger = pl.loggers.WandbLogger(project="digits", save_dir=tmp_path, offline=True)
        logged = []
        log = logger.experiment.log
        monkeypatch.setattr(
            logger.experiment, "log", lambda row, log=log, logged=logged: (logged.append(row), log(row))
        )
        folders.append(fit_and_test(tmp_path, logger))
        wandb.finish()
        pictures = [row for row in logged if "samples" in row]
        assert [row["trainer/global_step"] for row in pictures] == [2]
        assert [row["trainer/global_step"] for row in logged if "val/cost" in row] == [2]
        files = {path.name.split("_")[0] for path in tmp_path.glob("wandb/offline-run-*/files/media/images/*.png")}
        assert files == {"samples", "reconstructions", "interpolations", "codes"}
    # no run's files replace another's
    assert folders[0] != folders[1]
    assert read(next(tmp_path.glob("wandb/offline-run-*/files/media/images/samples_*.png"))).shape == (62, 62, 3)
