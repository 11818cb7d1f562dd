"""Pictures for people: large enough to see, with words that say what is what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

__all__ = ["WIDTH", "Caption", "present"]

WIDTH = 900
"""Pixels that a picture is wide at least, unless another scale is asked for."""
LETTERS, LINE, GAP = 16, 26, 8  # pixels


class Caption(NamedTuple):
    """What is written beside a picture: above it, and beside its rows and columns, all of one size."""

    title: str = ""
    rows: Sequence[str] = ()
    columns: Sequence[str] = ()


def present(picture: Image.Image, caption: Caption | None = None, scale: int | None = None) -> Image.Image:
    """Enlarges a picture, and writes beside it what it shows.

    Args:
        picture: Any picture.
        caption: What is written; None: nothing.
        scale: How many pixels wide one becomes, at least 1; None: as many as make the picture ``WIDTH`` wide.
    """
    title, rows, columns = caption or Caption()
    scale = scale or -(-WIDTH // picture.width)
    large = picture.convert("RGB").resize((scale * picture.width, scale * picture.height), Image.Resampling.NEAREST)
    font = ImageFont.load_default(LETTERS)
    left = round(max(map(font.getlength, rows), default=-2 * GAP)) + 2 * GAP
    top = LINE * (bool(title) + bool(columns))
    width = max(left + large.width, round(font.getlength(title)) + 2 * GAP if title else 0)
    page = Image.new("RGB", (width, top + large.height), "white")
    page.paste(large, (left, top))
    pen = ImageDraw.Draw(page)
    pen.text((GAP, LINE / 2), title, "black", font, anchor="lm")
    for i, name in enumerate(rows):
        pen.text((left - GAP, top + large.height * (i + 0.5) / len(rows)), name, "black", font, anchor="rm")
    for i, name in enumerate(columns):
        pen.text((left + large.width * (i + 0.5) / len(columns), top - LINE / 2), name, "black", font, anchor="mm")
    return page
