"""HalfImageDataModule against slices written by hand, and the laws of cutting and joining."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from datamodules import CelebADataModule, HalfImageDataModule, MNISTDataModule
from datamodules.images import ImageDataModule, Images

NAMES = ("top", "bottom", "left", "right", "1_quadrant", "2_quadrants", "3_quadrants")


class Noise(ImageDataModule):
    """Random images of any shape, as a foreign image data module would give them."""

    def __init__(self, shape: tuple[int, int, int] = (3, 6, 8), batch_size: int = 4) -> None:
        super().__init__(batch_size, num_workers=0)
        self.shape = shape

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.shape

    def setup(self, stage: str = "fit") -> None:
        images = torch.randint(1, 256, (12, *self.shape), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
        self.train_set = self.val_set = self.test_set = Images(images, torch.arange(12))


def expected_mask(observed: str, height: int, width: int, high: int, wide: int) -> np.ndarray:
    """Independent reference: the first quadrant is bottom left, then top left, top right (Pyro's CVAE example)."""
    mask = np.zeros((height, width), dtype=bool)
    if observed == "top":
        mask[:high] = True
    elif observed == "bottom":
        mask[-high:] = True
    elif observed == "right":
        mask[:, -wide:] = True
    else:
        mask[-high:, :wide] = True
        if observed != "1_quadrant":
            mask[:, :wide] = True
        if observed == "3_quadrants":
            mask[:-high] = True
    return mask


def test_halves_of_digits_are_what_slices_give() -> None:
    whole = MNISTDataModule(batch_size=50)
    whole.setup("fit")
    images, labels = next(iter(whole.val_dataloader()))
    expected = {
        "top": (images[:, :, :14], images[:, :, 14:]),
        "bottom": (images[:, :, 14:], images[:, :, :14]),
        "left": (images[..., :14], images[..., 14:]),
        "right": (images[..., 14:], images[..., :14]),
        "2_quadrants": (images[..., :14], images[..., 14:]),
    }
    for name, (observed, target) in expected.items():
        halves = HalfImageDataModule(observed=name, batch_size=50)
        halves.setup("fit")
        on_device = halves.on_after_batch_transfer(next(iter(halves.val_dataloader())), 0)
        assert torch.equal(on_device[2], labels)
        assert on_device[0].dtype == on_device[1].dtype == torch.float32
        assert torch.equal(on_device[0], observed.float() / 255)
        assert torch.equal(on_device[1], target.float() / 255)
        assert on_device[0].is_contiguous()
        assert halves.condition_shape == tuple(observed.shape[1:])
        assert halves.target_shape == tuple(target.shape[1:])


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(NAMES),
    height=st.integers(2, 9),
    width=st.integers(2, 9),
    channels=st.sampled_from([1, 3]),
    fraction=st.floats(0.05, 0.95),
)
def test_cut_and_join_give_the_image_back(name: str, height: int, width: int, channels: int, fraction: float) -> None:
    high, wide = round(height * fraction), round(width * fraction)
    if not (0 < high < height and 0 < wide < width):
        with pytest.raises(ValueError, match="fraction must leave both parts"):
            HalfImageDataModule(Noise((channels, height, width)), name, fraction)
        return
    halves = HalfImageDataModule(Noise((channels, height, width)), name, fraction)
    mask = expected_mask(name, height, width, high, wide)
    assert np.array_equal(halves.mask.numpy(), mask[None])
    images = torch.rand(5, channels, height, width) + 0.1
    observed, target = halves.split(images)
    assert observed.shape == (5, *halves.condition_shape)
    assert target.shape == (5, *halves.target_shape)
    assert torch.equal(halves.join(observed, target), images)
    # each part holds its own pixels, in order, and nothing of the other
    for part, own in (observed, mask), (target, ~mask):
        values = part.numpy()[part.numpy() != 0].reshape(5, channels, -1)
        np.testing.assert_array_equal(values, images.numpy()[:, :, own])


@pytest.mark.parametrize("name", NAMES)
def test_join_takes_many_completions_and_keeps_gradients(name: str) -> None:
    halves = HalfImageDataModule(Noise(), name)
    observed, target = halves.split(torch.rand(4, 3, 6, 8))
    completions = torch.rand(4, 7, *halves.target_shape, requires_grad=True)
    whole = halves.join(observed[:, None], completions)
    assert whole.shape == (4, 7, 3, 6, 8)
    for b in range(4):
        for n in range(7):
            assert torch.equal(whole[b, n], halves.join(observed[b], completions[b, n]))
            # the observed pixels are untouched
            assert torch.equal(whole[b, n] * halves.mask, halves.join(observed, target)[b] * halves.mask)
    whole.sum().backward()
    assert completions.grad is not None
    assert completions.grad.sum() == 28 * 3 * int((~halves.mask).sum())


@pytest.mark.parametrize("name", ["1_quadrant", "3_quadrants"])
def test_l_shaped_part_is_a_whole_image_with_zeros(name: str) -> None:
    halves = HalfImageDataModule(Noise(), name)
    observed, target = halves.split(torch.ones(2, 3, 6, 8))
    l_shaped, mask = (target, ~halves.mask) if name == "1_quadrant" else (observed, halves.mask)
    assert torch.equal(l_shaped, mask.expand(2, 3, 6, 8).float())
    rectangle = observed if name == "1_quadrant" else target
    assert rectangle.shape == (2, 3, 3, 4)


def test_no_second_copy_in_memory() -> None:
    halves = HalfImageDataModule(Noise())
    halves.setup("fit")
    assert halves.train_set is halves.images.train_set
    halves.test_set = "moved"
    assert halves.images.test_set == "moved"


def test_both_parts_get_the_same_augmentation() -> None:
    class Mirrored(Noise):
        def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
            images, labels = super().on_after_batch_transfer(batch, dataloader_idx)
            return images.flip(-1), labels

    halves = HalfImageDataModule(Mirrored(), "left")
    halves.setup("fit")
    batch = next(iter(halves.test_dataloader()))
    observed, target, _ = halves.on_after_batch_transfer(batch, 0)
    whole = batch[0].float() / 255
    assert torch.equal(halves.join(observed, target), whole.flip(-1))


def test_arguments_of_the_default_digits(tmp_path: Path) -> None:
    halves = HalfImageDataModule(root=tmp_path, batch_size=7, num_workers=0)
    assert isinstance(halves.images, MNISTDataModule)
    assert halves.batch_size == halves.images.batch_size == 7
    assert halves.images.root == tmp_path
    assert HalfImageDataModule().batch_size == 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"observed": "middle"}, "observed must be one of top, bottom"),
        ({"fraction": 0.01}, "fraction must leave both parts of a 28 x 28 image at least one pixel wide, got 0.01"),
        ({"fraction": 1.0}, "fraction must be between 0 and 1, got 1.0"),
        ({"fraction": float("nan")}, "fraction must be"),
        ({"images": Noise(), "batch_size": 3, "root": "data"}, "root and batch_size: give this to Noise"),
        ({"images": HalfImageDataModule()}, "images must be a data module of whole images"),
        ({"images": "data", "batch_size": 3}, "whole images, got a str; a folder of MNIST is root='data'"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HalfImageDataModule(**arguments)


def test_checkpoint_of_another_cut_warns() -> None:
    state = HalfImageDataModule(CelebADataModule(crop=148), "left").state_dict()
    with pytest.warns(UserWarning, match="observed = 'left'; this HalfImageDataModule has 'top'"):
        HalfImageDataModule(CelebADataModule(crop=148)).load_state_dict(state)


def test_plot_shows_the_parts_and_the_whole(tmp_path: Path) -> None:
    halves = HalfImageDataModule(Noise(), "left")
    halves.setup("fit")
    batch = halves.on_after_batch_transfer(next(iter(halves.train_dataloader())), 0)
    figure = halves.plot(batch)
    assert [axes.get_title() for axes in figure.axes] == ["condition", "target", "whole"]
    whole = figure.axes[2].images[0].get_array()[1:7, 1:9]
    np.testing.assert_allclose(whole, halves.join(*batch[:2])[0].permute(1, 2, 0), atol=1e-6)
    figure.savefig(tmp_path / "figure.png")


def test_names_are_those_of_the_whole_images() -> None:
    class Named(Noise):
        def names(self, part: str) -> list[str]:
            return [f"{part}{number}" for number in range(12)]

    assert HalfImageDataModule(Named()).names("val")[:2] == ["val0", "val1"]
    assert HalfImageDataModule(Noise()).names("val") is None
