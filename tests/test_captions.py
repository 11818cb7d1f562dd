"""Pictures are large enough to see and say what is on them."""

import numpy as np
import pytest
from PIL import Image

from wae_lightning.captions import GAP, LINE, WIDTH, Caption, present

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 70, 3), dtype=np.uint8))


@pytest.mark.parametrize(("scale", "expected"), [(None, 13), (1, 1), (3, 3)])
def test_each_pixel_becomes_a_square(scale, expected):
    found = np.asarray(present(NOISE, scale=scale))
    assert np.array_equal(found, np.asarray(NOISE).repeat(expected, 0).repeat(expected, 1))
    assert scale or found.shape[1] >= WIDTH


def test_a_picture_that_is_large_stays_as_it_is():
    large = NOISE.resize((WIDTH, 300))
    assert np.array_equal(np.asarray(present(large)), np.asarray(large))


def test_words_stand_beside_the_picture_and_not_on_it():
    caption = Caption("A title", ["image", "model"] * 2, ["1", "2"])
    page = np.asarray(present(NOISE, caption, scale=10))
    left = page.shape[1] - 700
    assert page.shape[0] == 200 + 2 * LINE
    assert np.array_equal(page[2 * LINE :, left:], np.asarray(NOISE).repeat(10, 0).repeat(10, 1))
    dark = (page < 100).all(2)
    assert dark[:LINE].any()  # the title
    assert dark[LINE : 2 * LINE, left:].any()
    margin = dark[2 * LINE :, : left - GAP // 2]
    # one name in the middle of each of four rows
    assert [bool(margin[50 * i + 10 : 50 * i + 40].any()) for i in range(4)] == [True] * 4
    assert not any(margin[50 * i - 3 : 50 * i + 3].any() for i in range(1, 4))


def test_a_long_title_is_not_cut():
    page = np.asarray(present(NOISE, Caption("W" * 80), scale=1))
    assert not (page[:LINE, -GAP // 2 :] < 255).any()
    assert page.shape[1] > 700
