"""Holes, low resolution and colours: pairs of any images, the networks for them, and generate.py with a user's mask."""

import numpy as np
import pytest
import torch
from PIL import Image
from test_half_images import Noise

from datamodules import (
    DownscaledDataModule,
    HalfImageDataModule,
    ImageFolderDataModule,
    MaskedDataModule,
    MNISTDataModule,
)
from wae_lightning.cli import generate
from wae_lightning.cli.load import load_data
from wae_lightning.metrics import CompletionMetrics
from wae_lightning.pairs import Downscaled, Masked


def test_holes_are_boxes_of_the_sides_that_are_asked_anywhere():
    pairs = Masked((3, 40, 60), smallest=0.2, largest=0.5)
    whole = torch.rand(500, 3, 40, 60)
    x, y = pairs.split(whole, anew=True)
    assert torch.equal(y, whole)
    hole = pairs.hidden(x)
    for axis, size in ((2, 40), (3, 60)):
        across = hole.any(5 - axis)[:, 0]
        length, first = across.sum(1), across.int().argmax(1)
        assert (length.min(), length.max()) == (0.2 * size, 0.5 * size)
        assert (first.min() == 0) & ((first + length).max() == size)
        assert (across.int().diff(dim=1).abs().sum(1) <= 2).all()
    rows, columns = hole.any(3, keepdim=True), hole.any(2, keepdim=True)
    assert torch.equal(hole, rows & columns)
    assert torch.equal(x[:, :3], whole * ~hole)
    assert torch.equal(x[:, 3:], (~hole).float())
    # what is known is kept bit by bit
    joined = pairs.join(x.unsqueeze(1), torch.rand(500, 2, 3, 40, 60))
    assert torch.equal(joined * ~hole.unsqueeze(1), (whole * ~hole).unsqueeze(1).expand_as(joined))
    assert (pairs.show(x)[hole.expand_as(whole)] == 0.5).all()


def test_fixed_holes_belong_to_the_image_and_spread_like_random_ones():
    pairs = Masked((1, 28, 28))
    images = torch.rand(400, 1, 28, 28).mul(255).round() / 255
    holes = pairs.hidden(pairs.split(images)[0])
    assert torch.equal(holes.flip(0), pairs.hidden(pairs.split(images.flip(0))[0]))
    for numbers in (holes, pairs.hidden(pairs.split(images, anew=True)[0])):
        share = numbers.float().mean()
        assert share == pytest.approx(0.4**2, abs=0.02)
        middle = numbers.float().mean(0)[0, 4:-4, 4:-4]
        assert middle.min() > 0.05
        assert len(numbers.flatten(1).unique(dim=0)) > 300


def test_holes_are_drawn_anew_in_training_only():
    data = MaskedDataModule(MNISTDataModule(batch_size=10))
    data.setup()
    batch = next(iter(data.val_dataloader()))
    first, second = (data.on_after_batch_transfer(batch, 0)[0] for _ in range(2))
    assert torch.equal(first, second)

    class Training:
        training = True

    data.trainer = Training()
    data.images.trainer = data.trainer
    first, second = (data.on_after_batch_transfer(batch, 0)[0] for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("flag", ["root", "images.root"])
def test_a_checkpoint_takes_the_folder_of_the_images_under_both_names(tmp_path, flag):
    data = MaskedDataModule(ImageFolderDataModule(tmp_path / "gone", image_size=16), smallest=0.2)
    path = tmp_path / "some.ckpt"
    torch.save({"state_dict": {}, "datamodule_hyper_parameters": dict(data.hparams)}, path)
    found = load_data(path, {flag: str(tmp_path / "here")})
    assert (found.images.root, found.images.image_size) == (tmp_path / "here", 16)
    assert found.pairs.smallest == 0.2


def test_low_resolution_is_the_mean_of_squares():
    pairs = Downscaled((1, 8, 12), 4)
    images = torch.rand(2, 1, 8, 12)
    x, y = pairs.split(images)
    assert x.shape == (2, 1, 2, 3)
    assert x[1, 0, 1, 2] == pytest.approx(float(images[1, 0, 4:, 8:].mean()), abs=1e-6)
    assert torch.equal(y, images)
    assert torch.equal(pairs.show(x)[:, :, 4:, 8:], x[:, :, 1:, 2:].expand(2, 1, 4, 4))
    assert pairs.hidden(x).all()


@pytest.mark.parametrize("make", [HalfImageDataModule, MaskedDataModule, DownscaledDataModule])
def test_the_figure_shows_condition_target_and_whole(make):
    data = make(Noise((3, 16, 16)))
    data.setup()
    figure = data.plot(data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0))
    assert [axes.get_title() for axes in figure.axes] == ["condition", "target", "whole"]


def test_measures_look_at_the_hole_of_each_image():
    images, completed = torch.rand(3, 1, 12, 12), torch.rand(3, 2, 1, 12, 12)
    hidden = torch.zeros(3, 1, 12, 12, dtype=torch.bool)
    for i in range(3):
        hidden[i, :, i : i + 4, 2 : 7 + i] = True
    kept = torch.where(hidden.unsqueeze(1), completed, images.unsqueeze(1))
    metrics = CompletionMetrics()
    metrics.update(images, kept, hidden=hidden)
    found = metrics.compute()
    errors = [
        [float((one[h] - y[h]).square().mean()) for one in c] for y, c, h in zip(images, kept, hidden, strict=True)
    ]
    assert found["mse"] == pytest.approx(np.mean(errors), rel=1e-4)
    assert found["psnr"] == pytest.approx(np.mean(-10 * np.log10(errors)), rel=1e-4)

    def edges(image):
        p = np.pad(image, 1, mode="edge")
        return np.abs(p[:-2, 1:-1] + p[2:, 1:-1] + p[1:-1, :-2] + p[1:-1, 2:] - 4 * image)

    real = [edges(y[0].numpy())[h[0].numpy()].mean() for y, h in zip(images, hidden, strict=True)]
    ours = [
        np.mean([edges(one[0].numpy())[h[0].numpy()].mean() for one in c]) for c, h in zip(kept, hidden, strict=True)
    ]
    assert found["sharpness_ratio"] == pytest.approx(np.mean(ours) / np.mean(real), rel=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Masked((1, 8, 8), 0.5, 0.3), "holes need 0 < smallest <= largest < 1, got 0.5 and 0.3"),
        (lambda: Masked((8, 8)), "image_shape must be"),
        (lambda: Downscaled((1, 28, 28), 3), "divide the height and the width of 28 x 28 images, got 3"),
        (lambda: Downscaled((1, 28, 28), 1), "factor must be at least 2"),
        (lambda: MaskedDataModule(MaskedDataModule()), "images must be a data module of whole images"),
    ],
)
def test_arguments_that_do_not_fit(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.fixture(scope="module")
def inpainting(trained):
    return trained(
        "mnist_inpainting", "--data.batch_size=10", "--model.decoder.hidden=[8]", "--model.encoder.hidden=[8]"
    )


@pytest.fixture
def picture(tmp_path):
    pixels = np.full((100, 60), 200, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def test_generate_fills_the_hole_that_a_user_names(inpainting, picture, tmp_path):
    # the middle 60 x 60 of 60 x 100 pixels become 28 x 28: y from 20, and a factor of 28 / 60
    flags = ["--what", "completion", "--mask", "15,35,30,30", "--num_samples", "3", "--out", str(tmp_path / "a.npz")]
    generate.main([str(inpainting), "--inputs", str(picture), *flags])
    with np.load(tmp_path / "a.npz") as file:
        image, given, *answers = file["samples"]
    assert np.allclose(image, 200 / 255)
    hole = given[0] == 0.5
    assert hole[7:21, 7:21].all()
    assert hole.sum() == 14 * 14
    assert len(answers) == 3
    for answer in answers:
        assert np.array_equal(answer[0][~hole], image[0][~hole])
        assert not np.allclose(answer[0][hole], image[0][hole], atol=1e-3)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ("50,0,20,20", "it lies outside of .*picture.png, which has 60 x 100 pixels"),
        ("0,0,10,10", "it lies outside of the middle of .*picture.png, which is all that the model sees"),
        ("1,2,3", "expected x,y,w,h in pixels"),
        ("1,2,0,3", "expected x,y,w,h in pixels"),
        ("a,2,1,3", "expected x,y,w,h in pixels"),
    ],
)
def test_masks_that_do_not_fit(inpainting, picture, tmp_path, capsys, mask, message):
    with pytest.raises(SystemExit) as stop:
        generate.main([str(inpainting), "--what", "completion", "--inputs", str(picture), "--mask", mask])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert __import__("re").search(message, line), line


def test_pairs_of_a_strange_checkpoint_are_refused(inpainting, picture, tmp_path, capsys):
    content = torch.load(inpainting, weights_only=True)
    for pairs, message in (
        ({"class_path": "os.system", "init_args": {}}, "no part of wae_lightning"),
        ({"class_path": "wae_lightning.pairs.Masked", "init_args": {"image_shape": [1, 9999, 9999]}}, "other shapes"),
        ({"class_path": "wae_lightning.priors.Normal", "init_args": {}}, "condition_shape"),
        ("Masked", "does not say how its data module made pairs"),
    ):
        content["datamodule_hyper_parameters"]["_pairs"] = pairs
        torch.save(content, tmp_path / "strange.ckpt")
        with pytest.raises(SystemExit):
            generate.main([str(tmp_path / "strange.ckpt"), "--what", "completion", "--inputs", str(picture)])
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
