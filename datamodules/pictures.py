"""Reads any picture file as 8-bit pixels of one size, or says in one sentence why it cannot."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageCms, ImageColor, ImageOps, UnidentifiedImageError

__all__ = ["SUFFIXES", "Crop", "is_grey", "read_picture", "rgb"]

Crop = Literal["centre", "stretch", "pad"]

# Pillow knows more formats; among them are some that start other programs (EPS) or have no mark to know them by (TGA).
_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = tuple(
    f".{ending}"
    for ending in (
        *("apng", "avif", "bmp", "dib", "gif", "heic", "heif", "ico", "j2k", "jfif", "jp2", "jpe", "jpeg", "jpg"),
        *("mpo", "pbm", "pcx", "pgm", "png", "pnm", "ppm", "tif", "tiff", "webp"),
    )
)
"""Endings, in lower case, by which a file is taken for a picture."""

# A JPEG is decoded at 1/2, 1/4 or 1/8 of its size, if that is no less than so many times the wanted size.
# What comes of it differs from all of it by less than 1.5 of 255 on average and by up to 32 at the edges of letters, in
# photographs by half a level and up to 5.
_REDUCING_GAP = 1.5
_FAINT = 32  # grey levels between the darkest and the lightest pixel, below which a picture is as good as empty


def read_picture(
    path: Path,
    shape: tuple[int, int, int],
    crop: Crop | int = "centre",
    background: str | None = None,
    exact: bool = False,
) -> np.ndarray:
    """Reads a picture of any kind, upright, as 8-bit pixels of one size.

    16 bits are scaled to 8 and floats in [0, 1] to 255; the orientation that a camera noted is applied; CMYK, Lab,
    palettes and the like become RGB, or grey by ITU-R 601. Of several frames or pages the first is read. Resizing is
    by Pillow's Lanczos filter, so that no detail is aliased.

    Args:
        path: The file; PNG, JPEG, WebP, TIFF, GIF, BMP and what else Pillow opens without another program.
        shape: (channels, height, width) of the result; 1 channel is grey, 3 are RGB.
        crop: ``centre`` cuts the largest box of the wanted shape out of the middle, ``stretch`` takes the whole
            picture, ``pad`` takes it unstretched and fills the rest with the background. A number is the side of a
            square in pixels, cut out of the middle.
        background: Colour under transparent pixels and around padded pictures, as ``white``, ``#ff8800`` or another of
            CSS. None: white, but black under a picture that could not be seen on white, such as white ink.
        exact: Decode all of a JPEG, also where a half or a quarter of it in each direction is enough; so it is done
            with a crop of so many pixels, too.

    Returns:
        uint8 of that shape.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not such a picture, is damaged, or has too many pixels or too few.
        OSError: If the file cannot be opened.
    """
    channels, height, width = shape
    if channels not in (1, 3):
        raise ValueError(f"pictures have 1 channel (grey) or 3 (RGB), got {channels}")
    Image.init()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd notes in a file whose pixels are sound
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=[name for name in _FORMATS if name in Image.OPEN]) as file:
                if file.format == "JPEG" and not exact and not isinstance(crop, int):
                    side = round(_REDUCING_GAP * max(height, width))
                    file.draft("L" if channels == 1 else "RGB", (side, side))
                picture = _in_8_bits(file, path)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(
            f"{path}: expected a picture of at most {Image.MAX_IMAGE_PIXELS:,} pixels, found more "
            "(PIL.Image.MAX_IMAGE_PIXELS is the limit)"
        ) from None
    except UnidentifiedImageError:
        with path.open("rb") as raw:
            start = raw.read(8)
        raise ValueError(
            f"{path}: not a picture that can be read (expected PNG, JPEG, WebP, TIFF, GIF, BMP or the like, found a "
            f"file that begins with {start!r})"
        ) from None
    except Exception as error:  # Pillow's decoders have no common exception for damaged files
        if getattr(error, "errno", None) is not None or str(error).startswith(f"{path}: "):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: not a complete picture ({reason})") from None
    if isinstance(crop, int):
        if min(picture.size) < crop:
            raise ValueError(f"{path}: {picture.width} x {picture.height} pixels are too few for a crop of {crop}")
        left, top = round((picture.width - crop) / 2), round((picture.height - crop) / 2)
        picture = picture.crop((left, top, left + crop, top + crop))
    picture = _fitted(picture, (width, height), crop, background or "white")
    if picture.mode == "RGBA":
        picture = _composed(picture, background)
    pixels = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def is_grey(picture: Image.Image) -> bool:
    """Whether an open file holds a picture without colours, by its mode or its palette, transparent or not."""
    if picture.mode in ("P", "PA"):
        used = np.unique(np.asarray(picture.getchannel(0) if picture.mode == "PA" else picture))
        colours = np.array(picture.getpalette() or []).reshape(-1, 3)[used]
        return bool((colours == colours[:, :1]).all())
    return picture.mode in ("1", "L", "LA", "La", "F") or picture.mode.startswith("I")


def rgb(colour: str) -> tuple[int, int, int]:
    """The three bytes of a colour that CSS knows, such as ``white`` or ``#ff8800``; raises ValueError for others."""
    try:
        red, green, blue, *_ = ImageColor.getrgb(colour)
    except (ValueError, AttributeError):
        raise ValueError(f"expected a colour such as white or #ff8800, got {colour!r}") from None
    return red, green, blue


def _in_8_bits(file: Image.Image, path: Path) -> Image.Image:
    """The first frame, upright, as L or RGB, or as RGBA if any of it may be transparent."""
    raw_mode = str(getattr(file, "tile", ""))
    white_is_zero = file.format == "TIFF" and getattr(file, "tag_v2", {}).get(262) == 0
    picture = ImageOps.exif_transpose(file)
    transparent = picture.info.get("transparency")
    numbers = {"I": "32-bit integers, whose white nobody knows", "F": "floats"}.get(picture.mode, "")
    if picture.mode == "I" and file.format in ("PNG", "PPM"):  # Pillow's way to keep 16 bits of these
        numbers = ""
    if picture.mode.startswith("I") and not numbers:
        values = np.asarray(picture).astype(np.int64)
        grey = _grey((values + 128) // 257, white_is_zero)
        if not isinstance(transparent, int):
            return grey
        alpha = Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))
        return Image.merge("RGBA", (grey, grey, grey, alpha))
    if picture.mode == "F":
        values = np.asarray(picture)
        low, high = values.min(), values.max()  # NaN if any is
        if low >= 0 and high <= 1:
            return _grey((values * 255).round(), white_is_zero)
        numbers = f"floats from {low:.4g} to {high:.4g}"
    if numbers:
        raise ValueError(f"{path}: expected pixels of 8 or 16 bits or floats in [0, 1], found {numbers}")
    if picture.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(picture, lab, srgb, outputMode="RGB")  # type: ignore[return-value]
    # Pillow makes 8 bits of each pixel, but leaves the one transparent colour of a PNG in the bits of the file
    if picture.mode == "RGB" and isinstance(transparent, tuple) and "RGB;16" in raw_mode:
        picture.info["transparency"] = tuple(value >> 8 for value in transparent)
    if picture.mode == "L" and isinstance(transparent, int):
        picture.info["transparency"] = transparent * (85 if "L;2" in raw_mode else 17 if "L;4" in raw_mode else 1)
    if transparent is not None or picture.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        return picture.convert("RGBA")
    return picture.convert("L" if picture.mode in ("1", "L") else "RGB")


def _grey(values: np.ndarray, white_is_zero: bool) -> Image.Image:
    """A grey picture of values from 0 to 255."""
    return Image.fromarray((255 - values if white_is_zero else values).astype(np.uint8))


def _fitted(picture: Image.Image, size: tuple[int, int], crop: Crop | int, colour: str) -> Image.Image:
    """Makes a picture (width, height) large."""
    if crop == "centre":
        return ImageOps.fit(picture, size, Image.Resampling.LANCZOS)
    if crop != "pad":
        return picture.resize(size, Image.Resampling.LANCZOS)
    scale = min(size[0] / picture.width, size[1] / picture.height)
    inner = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    # around a transparent picture all is transparent: what it is composed over later goes on to the edge
    padded = Image.new("RGBA", size) if picture.mode == "RGBA" else Image.new("RGB", size, rgb(colour))
    left, top = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    padded.paste(picture.resize(inner, Image.Resampling.LANCZOS), (left, top))
    return padded


def _composed(picture: Image.Image, background: str | None) -> Image.Image:
    """Lays an RGBA picture over a colour; what no one shall see, the colour of transparent pixels, is gone."""

    def over(colour: str) -> Image.Image:
        below = Image.new("RGB", picture.size, rgb(colour))
        below.paste(picture, mask=picture.getchannel("A"))
        return below

    if background is not None:
        return over(background)
    on_white, on_black = over("white"), over("black")
    dark, light = on_white.convert("L").getextrema()
    return on_black if light - dark < _FAINT and on_black.getbbox() is not None else on_white  # type: ignore[operator]
