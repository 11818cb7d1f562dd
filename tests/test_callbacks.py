"""Pictures of images and codes."""

import functools
from types import SimpleNamespace

import pytest
import torch
from helpers import small, trainer
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from datamodules import MNISTDataModule
from wae_lightning import WAEMMD
from wae_lightning.callbacks import CodePictures, Dashboard, ImagePictures, SampleQuality
from wae_lightning.callbacks.codes import most_deviating_directions
from wae_lightning.callbacks.pictures import beside_training, in_unit_range
from wae_lightning.lightning import LearningRateMonitor, TensorBoardLogger
from wae_lightning.networks import MixtureFlow
from wae_lightning.noise import EncoderNoise
from wae_lightning.penalties import MMD
from wae_lightning.priors import Normal


def test_pictures_have_the_right_images_in_the_right_places():
    model = small().eval()
    x = torch.rand(4, 1, 28, 28)
    pictures = ImagePictures(columns=2).draw(model, x)
    # two columns, padding of 2 around each image
    tile = lambda picture, row, column: picture[0, 2 + 30 * row : 30 + 30 * row, 2 + 30 * column : 30 + 30 * column]  # noqa: E731
    with torch.no_grad():
        reconstructions = model(x)
    torch.testing.assert_close(tile(pictures["reconstructions"], 0, 1), x[1, 0])
    torch.testing.assert_close(tile(pictures["reconstructions"], 1, 1), reconstructions[1, 0])
    torch.testing.assert_close(tile(pictures["reconstructions"], 2, 0), x[2, 0])
    torch.testing.assert_close(tile(pictures["interpolations"], 0, 0), reconstructions[0, 0])
    torch.testing.assert_close(tile(pictures["interpolations"], 0, 1), reconstructions[2, 0])
    torch.testing.assert_close(tile(pictures["samples"], 0, 0), model.sample(4, torch.Generator().manual_seed(0))[0, 0])
    assert torch.equal(ImagePictures(2).draw(model, x)["samples"], pictures["samples"])


def test_an_odd_number_of_images_is_filled_up_with_white():
    pictures = ImagePictures(columns=3).draw(small().eval(), torch.rand(4, 1, 28, 28))
    assert pictures["reconstructions"].shape == (3, 2 + 30 * 4, 2 + 30 * 3)
    assert (pictures["reconstructions"][:, 62:90, 62:90] == 1).all()


def test_the_directions_are_those_of_the_largest_deviation():
    d = 5
    rotation = torch.linalg.qr(torch.randn(d, d)).Q
    scales = torch.tensor([1.0, 3.0, 1.0, 0.1, 1.0])
    z = torch.randn(200_000, d) * scales @ rotation.T
    directions = most_deviating_directions(z, torch.randn(200_000, d))
    torch.testing.assert_close(directions.T @ directions, torch.eye(2))
    assert (directions[:, 0] @ rotation[:, 1]).abs() > 0.99
    assert (directions[:, 1] @ rotation[:, 3]).abs() > 0.9


def test_both_write_to_tensorboard_after_each_validation(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    callbacks = [ImagePictures(2), CodePictures(150)]
    trainer(tmp_path, logger=logger, callbacks=callbacks, max_epochs=2, limit_val_batches=2).fit(
        small(), MNISTDataModule()
    )
    assert {name: len(rows) for name, rows in callbacks[1].kept().items()} == {"codes": 150, "labels": 150}
    events = EventAccumulator(logger.log_dir).Reload()
    assert set(events.Tags()["images"]) == {"samples", "reconstructions", "interpolations", "codes"}
    # pictures and scalars of one validation stand at one step
    assert [image.step for image in events.Images("codes")] == [2, 5]
    assert [value.step for value in events.Scalars("val/cost")] == [2, 5]


class OwnValidation(WAEMMD):
    """A validation step that returns nothing, as most do."""

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)


def test_the_codes_shown_are_those_of_the_validation(tmp_path):
    encoded = []
    for cls in (WAEMMD, OwnValidation):
        model, pictures = small(cls, noise=EncoderNoise()), CodePictures(150)
        encode = model.encode
        model.encode = lambda x, noise=None, encode=encode: (encoded.append(len(x)), encode(x, noise))[1]
        logger = TensorBoardLogger(tmp_path)
        fitting = trainer(tmp_path, logger=logger, callbacks=[pictures], limit_val_batches=2)
        fitting.fit(model, data := MNISTDataModule())
        # only where the step does not hand them over, they are computed once more
        assert encoded == ([] if cls is WAEMMD else [100, 50])
        batches = [data.on_after_batch_transfer(batch, 0)[0] for batch in data.val_dataloader()][:2]
        model.eval()
        with torch.no_grad():
            expected = encode(torch.cat(batches)[:150])
        torch.testing.assert_close(pictures.kept()["codes"], expected, rtol=1e-4, atol=1e-4)


def colored(picture):
    """Where a picture is neither white nor grey: the codes and nothing else."""
    picture = picture.int()
    return (picture.amax(0) - picture.amin(0)) > 60


def test_codes_are_drawn_where_they_are():
    torch.manual_seed(0)
    prior = torch.randn(1000, 2)
    # far right and far up in the plane, nowhere else
    z = torch.tensor([[3.0, 0.0]] * 50 + [[0.0, 2.0]] * 50)
    directions = most_deviating_directions(z, prior)
    limit = 1.1 * prior.abs().max()
    picture = CodePictures().draw(z, prior)
    assert picture.shape == (3, 900, 900)
    assert picture.dtype == torch.uint8
    for point in z[[0, 99]] @ directions:
        # the axes reach from 9 % to 97 % of the width, from 7 % to 94 % of the height
        column = 900 * (0.09 + 0.88 * (point[0] / limit + 1) / 2)
        row = 900 * (1 - 0.07 - 0.87 * (point[1] / limit + 1) / 2)
        assert colored(picture)[int(row) - 1 : int(row) + 2, int(column) - 1 : int(column) + 2].all()
    legend = colored(picture)[:144, 666:].sum()
    assert 0 < colored(picture).sum() - legend < 324  # two dots
    # again: what was drawn before is gone, and with labels other colors come
    assert torch.equal(CodePictures().draw(z, prior), picture)
    labelled = CodePictures().draw(z, prior, torch.tensor([2] * 50 + [3] * 50))
    assert not torch.equal(labelled, picture)
    assert torch.equal(labelled, CodePictures().draw(z, prior, torch.tensor([12] * 50 + [13] * 50)))


def test_the_scale_is_the_priors_until_codes_lie_outside():
    prior, z = torch.randn(1000, 3), torch.randn(100, 3)
    frame = lambda z: CodePictures().draw(z, prior)[:, 846:]  # the numbers below the plot  # noqa: E731
    assert torch.equal(frame(0.5 * z), frame(0.3 * z))
    assert not torch.equal(frame(10 * z), frame(0.3 * z))
    assert colored(CodePictures().draw(100 * z, prior))[72:828, 90:666].sum() > 324


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="columns must be at least 2, got 1"):
        ImagePictures(columns=1)
    with pytest.raises(ValueError, match="count must be at least 2, got 1"):
        CodePictures(count=1)


def events_of(checkpoint):
    accumulator = EventAccumulator(str(checkpoint.parents[1]), size_guidance={"tensors": 0, "images": 0})
    return accumulator.Reload()


def test_the_dashboards_pages_are_in_the_event_files(trained):
    checkpoint = trained("mnist_wae_gan")
    events = events_of(checkpoint)
    scalars = set(events.Tags()["scalars"])
    assert {"train/cost", "train/penalty", "val/cost", "val/penalty", "val/loss", "test/cost"} <= scalars
    assert {"samples", "reconstructions", "interpolations", "codes"} <= set(events.Tags()["images"])

    (layout_event,) = events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(layout_event.tensor_proto.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for category in layout.category for chart in category.chart}
    assert [category.title for category in layout.category] == ["objective", "critic", "flow"]
    assert charts["penalty D(Q_Z, P_Z)"] == ["train/penalty", "val/penalty"]
    assert charts["cost + penalty_weight · penalty"] == ["train/loss", "val/loss"]
    shown = [tag for tags in charts.values() for tag in tags]
    assert len(shown) == len(set(shown))
    # each chart has a curve, and each curve of training or validation has a chart
    assert all(scalars & set(tags) for tags in charts.values())
    assert {tag for tag in scalars if tag.startswith(("train/", "val/"))} <= set(shown)

    metadata = events.SummaryMetadata("_hparams_/session_start_info")
    start = plugin_data_pb2.HParamsPluginData.FromString(metadata.plugin_data.content).session_start_info
    assert start.hparams["model"].string_value == "WAEGAN"
    assert start.hparams["penalty_weight"].number_value == 0.02
    assert start.hparams["penalty"].string_value == "Adversarial"
    assert start.hparams["prior"].string_value == "Normal"
    experiment = plugin_data_pb2.HParamsPluginData.FromString(
        events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    ).experiment
    assert "test/cost" in {info.name.tag for info in experiment.metric_infos}


def test_settings_stand_first_also_where_they_were_left_at_the_default(tmp_path):
    logger = TensorBoardLogger(tmp_path, default_hp_metric=False)
    rates = functools.partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.02)
    model = small(lr_scheduler=rates, noise=EncoderNoise())
    callbacks = [Dashboard(), LearningRateMonitor(), SampleQuality(num_samples=20)]
    fitting = trainer(tmp_path, logger=logger, callbacks=callbacks, log_every_n_steps=1, limit_test_batches=1)
    fitting.fit(model, data := MNISTDataModule())
    fitting.test(model, data, verbose=False)
    expected = {
        "model": "WAEMMD",
        "penalty": "MMD",
        "penalty_weight": 10.0,
        "prior": "Normal",
        "latent_dim": 4,
        "cost": "SquaredError",
        "noise": "EncoderNoise",
        "flow": "none",
        "lr": 0.02,
    }
    settings = callbacks[0].settings(model)
    assert dict(list(settings.items())[: len(expected)]) == expected
    events = EventAccumulator(logger.log_dir, size_guidance={"tensors": 0}).Reload()
    metadata = events.SummaryMetadata("_hparams_/session_start_info")
    start = plugin_data_pb2.HParamsPluginData.FromString(metadata.plugin_data.content).session_start_info
    shown = {name: value.string_value or value.number_value for name, value in start.hparams.items()}
    assert expected.items() <= shown.items()

    (layout_event,) = events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(layout_event.tensor_proto.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for category in layout.category for chart in category.chart}
    (rate,) = charts["learning rate"]
    (quality,) = charts["Fréchet distance of digits"]
    assert {rate, quality} <= set(events.Tags()["scalars"])


def test_what_a_config_says_of_a_part_stands_among_the_other_settings():
    model = SimpleNamespace(penalty=MMD(), penalty_weight=2.0)
    given = {"kernel": {"class_path": "RBF"}}
    model.hparams_initial = {"penalty": {"class_path": "MMD", "init_args": given}, "penalty_weight": 2.0, "_x": 1}
    settings = Dashboard().settings(model)
    assert settings == {
        "model": "SimpleNamespace",
        "penalty": "MMD",
        "penalty_weight": 2.0,
        "penalty/init_args": given,
    }


def test_the_projector_gets_codes_with_labels_and_pictures(trained):
    run = trained("mnist_wae_gan").parents[1]
    (tensors,) = run.glob("*/codes/tensors.tsv")
    codes = [line.split("\t") for line in tensors.read_text().splitlines()]
    labels = tensors.with_name("metadata.tsv").read_text().split()
    assert len(codes) == len(labels) == 200  # one batch
    assert all(len(code) == 16 for code in codes)
    assert set(labels) <= set("0123456789")
    with Image.open(tensors.with_name("sprite.png")) as sheet:
        assert sheet.size == (15 * 28, 15 * 28)
    assert "sprite.png" in (run / "projector_config.pbtxt").read_text()


def test_point_clouds_are_in_the_mesh_plugin(trained):
    flags = ["--model.num_points=64", "--model.decoder.num_points=64", "--data.num_points=64", "--max_epochs=1"]
    pictures = ["--trainer.callbacks=PointCloudPictures", "--trainer.callbacks.every_n_epochs=1"]
    flags += ["--model.encoder.channels=[8]", "--model.decoder.hidden=[8]", "--model.flow=null"]
    checkpoint = trained("modelnet40_pointnet", *flags, *pictures, "--check_val_every_n_epoch=1")
    tensors = events_of(checkpoint).Tags()["tensors"]
    assert {"samples/turnable_VERTEX", "reconstructions/turnable_VERTEX"} <= set(tensors)


def test_pictures_have_the_range_of_the_inputs():
    images = torch.tensor([-1.0, -0.5, 0.0, 1.0, 1.5]).view(1, 1, 1, 5)
    model = SimpleNamespace(input_range=(-1, 1))
    assert in_unit_range(model, images).flatten().tolist() == [0, 0.25, 0.5, 1, 1]
    assert in_unit_range(SimpleNamespace(input_range=None), images).flatten().tolist() == pytest.approx(
        [0, 0.2, 0.4, 0.8, 1]
    )


def test_the_codes_shown_are_behind_the_flow(tmp_path):
    model, pictures = small(noise=EncoderNoise(), flow=MixtureFlow(4, 3), prior=Normal(4, 2.0)), CodePictures(50)
    loader = torch.utils.data.DataLoader(torch.rand(60, 1, 28, 28), 30)
    trainer(tmp_path, callbacks=[pictures], limit_val_batches=2).fit(model, loader, loader)
    model.eval()
    with torch.no_grad():
        inputs = torch.cat(list(loader))[:50]
        torch.testing.assert_close(pictures.kept()["codes"], model.encode(inputs), rtol=1e-4, atol=1e-4)


def test_a_shift_of_the_codes_is_a_deviation():
    z = torch.randn(20_000, 4) + torch.tensor([0.0, 0.0, 3.0, 0.0])
    directions = most_deviating_directions(z, torch.randn(20_000, 4))
    assert directions[2, 0].abs() > 0.99


def test_what_is_computed_beside_training_gives_the_random_state_back(tmp_path):
    model = small()
    before = torch.get_rng_state()
    with beside_training(trainer(tmp_path), model):
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
