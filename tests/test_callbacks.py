"""Pictures of images and codes."""

import matplotlib.figure
import pytest
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_base import small, trainer

from datamodules import MNISTDataModule
from wae_lightning.callbacks import CodePictures, ImagePictures
from wae_lightning.callbacks.codes import most_deviating_directions


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


def test_codes_without_labels_are_drawn_too():
    assert isinstance(CodePictures().draw(torch.randn(10, 3), torch.randn(10, 3)), matplotlib.figure.Figure)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="columns must be at least 2, got 1"):
        ImagePictures(columns=1)
    with pytest.raises(ValueError, match="count must be at least 2, got 1"):
        CodePictures(count=1)
