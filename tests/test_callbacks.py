"""Pictures of images and codes."""

import io

import pytest
import torch
from helpers import small, trainer
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from datamodules import MNISTDataModule
from wae_lightning import WAEMMD
from wae_lightning.callbacks import CodePictures, ImagePictures
from wae_lightning.callbacks.codes import most_deviating_directions
from wae_lightning.callbacks.png import add_png
from wae_lightning.noise import EncoderNoise


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
    assert len(callbacks[1]._codes) == 2
    assert sum(map(len, callbacks[1]._labels)) == 150
    events = EventAccumulator(logger.log_dir).Reload()
    assert set(events.Tags()["images"]) == {"samples", "reconstructions", "interpolations", "codes"}
    assert [image.step for image in events.Images("codes")] == [0, 1]


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
        torch.testing.assert_close(torch.cat(pictures._codes), expected, rtol=1e-4, atol=1e-4)


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
    assert picture.shape == (3, 500, 500)
    assert picture.dtype == torch.uint8
    for point in z[[0, 99]] @ directions:
        # the axes reach from 9 % to 97 % of the width, from 7 % to 94 % of the height
        column = 500 * (0.09 + 0.88 * (point[0] / limit + 1) / 2)
        row = 500 * (1 - 0.07 - 0.87 * (point[1] / limit + 1) / 2)
        assert colored(picture)[int(row) - 1 : int(row) + 2, int(column) - 1 : int(column) + 2].all()
    legend = colored(picture)[:80, 370:].sum()
    assert 0 < colored(picture).sum() - legend < 100  # two dots
    # again: what was drawn before is gone, and with labels other colors come
    assert torch.equal(CodePictures().draw(z, prior), picture)
    labelled = CodePictures().draw(z, prior, torch.tensor([2] * 50 + [3] * 50))
    assert not torch.equal(labelled, picture)
    assert torch.equal(labelled, CodePictures().draw(z, prior, torch.tensor([12] * 50 + [13] * 50)))


def test_the_scale_is_the_priors_until_codes_lie_outside():
    prior, z = torch.randn(1000, 3), torch.randn(100, 3)
    frame = lambda z: CodePictures().draw(z, prior)[:, 470:]  # the numbers below the plot  # noqa: E731
    assert torch.equal(frame(0.5 * z), frame(0.3 * z))
    assert not torch.equal(frame(10 * z), frame(0.3 * z))
    assert colored(CodePictures().draw(100 * z, prior))[40:460, 50:370].sum() > 100


def test_pngs_hold_what_was_given(tmp_path):
    grey, color = torch.rand(1, 9, 7).expand(3, -1, -1), torch.rand(3, 9, 7)
    drawing = torch.randint(2, (1, 9, 7)) * torch.tensor([200, 100, 0]).view(3, 1, 1)
    logger = TensorBoardLogger(tmp_path)
    for name, picture, colors in (("grey", grey, None), ("color", color, None), ("drawing", drawing.byte(), 4)):
        add_png(logger.experiment, name, picture, 3, colors)
        logger.experiment.add_image(f"{name} of TensorBoard", picture, 3)
    logger.experiment.flush()
    events = EventAccumulator(logger.log_dir).Reload()
    for name, mode in (("grey", "L"), ("color", "RGB"), ("drawing", "P")):
        own, theirs = (events.Images(tag)[0] for tag in (name, f"{name} of TensorBoard"))
        assert (own.step, own.width, own.height) == (theirs.step, theirs.width, theirs.height) == (3, 7, 9)
        image, expected = (Image.open(io.BytesIO(found.encoded_image_string)) for found in (own, theirs))
        assert image.mode == mode
        assert image.convert("RGB").tobytes() == expected.tobytes()


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
    shown = {tag for tags in charts.values() for tag in tags}
    # every curve that a chart promises was logged
    assert shown <= scalars

    metadata = events.SummaryMetadata("_hparams_/session_start_info")
    start = plugin_data_pb2.HParamsPluginData.FromString(metadata.plugin_data.content).session_start_info
    assert start.hparams["model"].string_value == "WAEGAN"
    assert start.hparams["penalty_weight"].number_value == 0.1
    experiment = plugin_data_pb2.HParamsPluginData.FromString(
        events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    ).experiment
    assert "test/cost" in {info.name.tag for info in experiment.metric_infos}


def test_the_projector_gets_codes_with_labels_and_pictures(trained):
    run = trained("mnist_wae_gan").parents[1]
    (tensors,) = run.glob("*/codes/tensors.tsv")
    codes = [line.split("\t") for line in tensors.read_text().splitlines()]
    labels = tensors.with_name("metadata.tsv").read_text().split()
    assert len(codes) == len(labels) == 1000
    assert all(len(code) == 16 for code in codes)
    assert set(labels) <= set("0123456789")
    with Image.open(tensors.with_name("sprite.png")) as sheet:
        assert sheet.size == (32 * 28, 32 * 28)
    assert "sprite.png" in (run / "projector_config.pbtxt").read_text()


def test_point_clouds_are_in_the_mesh_plugin(trained):
    flags = ["--model.num_points=64", "--model.decoder.num_points=64", "--data.num_points=64", "--max_epochs=1"]
    pictures = ["--trainer.callbacks=PointCloudPictures", "--trainer.callbacks.every_n_epochs=1"]
    checkpoint = trained("modelnet40_pointnet", *flags, *pictures, "--check_val_every_n_epoch=1")
    tensors = events_of(checkpoint).Tags()["tensors"]
    assert {"samples/turnable_VERTEX", "reconstructions/turnable_VERTEX"} <= set(tensors)
