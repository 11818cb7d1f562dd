"""Every kind of picture file is read right or refused; files are written byte by byte where Pillow cannot."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from PIL.JpegImagePlugin import JpegImageFile

from datamodules.pictures import SUFFIXES, read_picture, rgb

SIZE = 24
ROWS, COLUMNS = np.mgrid[:SIZE, :SIZE]
GREY = (COLUMNS * 8 + ROWS * 2).clip(0, 255).astype(np.uint8)  # all corners differ, so that no turn goes unnoticed
COLOUR = np.stack([GREY, GREY[::-1], 255 - GREY], axis=-1)
ALPHA = np.where(COLUMNS < 8, 0, np.where(COLUMNS < 16, 128, 255)).astype(np.uint8)


def png(path: Path, depth: int, kind: int, samples: np.ndarray, **chunks: bytes) -> Path:
    """Writes a PNG as its specification says: ``samples`` (H, W, channels) as they are stored."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = samples.shape[:2]
    if depth < 8:
        bits = (samples.reshape(height, width, 1) >> np.arange(depth)[::-1]) & 1
        packed = np.packbits(bits.reshape(height, -1).astype(np.uint8), axis=1)
    else:
        packed = samples.astype(">u2" if depth == 16 else "u1")
    lines = b"".join(b"\0" + line.tobytes() for line in packed)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
        + b"".join(chunk(name.encode(), data) for name, data in chunks.items())
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )
    return path


def tiff(path: Path, samples: np.ndarray, photometric: int = 1, sample_format: int = 1, **more: int) -> Path:
    """Writes an uncompressed TIFF as its specification says, in the byte order of ``samples``, (H, W) or (H, W, C)."""
    order = ">" if samples.dtype.byteorder == ">" else "<"
    height, width, channels = (*samples.shape, 1)[:3]
    tags = {256: width, 257: height, 258: samples.dtype.itemsize * 8, 259: 1, 262: photometric, 273: 8}
    tags |= {277: channels, 278: height, 279: samples.nbytes, 339: sample_format}
    tags |= {int(name.removeprefix("tag")): value for name, value in more.items()}
    end = 8 + samples.nbytes
    lists = b""  # values of the tags that have one for each channel
    entries = struct.pack(f"{order}H", len(tags))
    for tag, value in sorted(tags.items()):
        if tag in (258, 339) and channels > 2:
            place = end + len(lists)
            lists += struct.pack(f"{order}{channels}H", *[value] * channels)
            entries += struct.pack(f"{order}HHII", tag, 3, channels, place)
        elif tag in (258, 339) and channels == 2:
            entries += struct.pack(f"{order}HHIHH", tag, 3, 2, value, value)
        else:
            entries += struct.pack(f"{order}HHII", tag, 4, 1, value)
    mark = b"MM\0*" if order == ">" else b"II*\0"
    head = mark + struct.pack(f"{order}I", end + len(lists))
    path.write_bytes(head + samples.tobytes() + lists + entries + bytes(4))
    return path


def saved(path: Path, pixels: np.ndarray | Image.Image, **options: object) -> Path:
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path, **options)
    return path


def read_grey(path: Path, **arguments: object) -> np.ndarray:
    [pixels] = read_picture(path, (1, SIZE, SIZE), **arguments)
    assert pixels.dtype == np.uint8
    return pixels.astype(int)


def read_colour(path: Path, **arguments: object) -> np.ndarray:
    return read_picture(path, (3, SIZE, SIZE), **arguments).transpose(1, 2, 0).astype(int)


def luma(colour: np.ndarray) -> np.ndarray:
    """ITU-R BT.601: 0.299 R + 0.587 G + 0.114 B."""
    return colour @ np.array([0.299, 0.587, 0.114])


def over(colour: np.ndarray, alpha: np.ndarray, below: int) -> np.ndarray:
    share = alpha / 255 if colour.ndim == 2 else alpha[..., None] / 255
    return colour * share + below * (1 - share)


WIDE = GREY.astype(np.uint16) * 257  # GREY in 16 bits
BARS = np.where(COLUMNS % 5 == 0, 255, 0).astype(np.uint8)

GREY_FILES = {
    "8 bit PNG": lambda at: saved(at / "a.png", GREY),
    "8 bit BMP": lambda at: saved(at / "a.bmp", GREY),
    "8 bit GIF": lambda at: saved(at / "a.gif", GREY),
    "8 bit PGM": lambda at: saved(at / "a.pgm", GREY),
    "8 bit TIFF": lambda at: saved(at / "a.tif", GREY),
    "LZW TIFF": lambda at: saved(at / "a.tif", GREY, compression="tiff_lzw"),
    "lossless WebP": lambda at: saved(at / "a.webp", GREY, lossless=True),
    "8 bit TIFF where white is 0": lambda at: tiff(at / "a.tif", 255 - GREY, photometric=0),
    "16 bit PNG": lambda at: png(at / "a.png", 16, 0, WIDE[..., None]),
    "16 bit TIFF": lambda at: tiff(at / "a.tif", WIDE.astype("<u2")),
    "16 bit TIFF of a Mac": lambda at: tiff(at / "a.tif", WIDE.astype(">u2")),
    "16 bit TIFF where white is 0": lambda at: tiff(at / "a.tif", (65535 - WIDE).astype("<u2"), photometric=0),
    "16 bit TIFF by Pillow": lambda at: saved(at / "a.tif", WIDE),
    "16 bit PGM": lambda at: saved(at / "a.pgm", WIDE),
    "12 bit PGM": lambda at: _pgm(at / "a.pgm", np.round(GREY / 255 * 4095), 4095),
    "16 bit JPEG 2000": lambda at: saved(at / "a.jp2", WIDE),
    "16 bit PNG with opaque alpha": lambda at: png(at / "a.png", 16, 4, np.stack([WIDE, WIDE * 0 + 65535], -1)),
    "16 bit RGB PNG": lambda at: png(at / "a.png", 16, 2, np.stack([WIDE] * 3, -1)),
    "16 bit RGB TIFF": lambda at: tiff(at / "a.tif", np.stack([WIDE] * 3, -1), photometric=2),
    "float TIFF": lambda at: tiff(at / "a.tif", (GREY / 255).astype("<f4"), sample_format=3),
    "float TIFF of a Mac": lambda at: tiff(at / "a.tif", (GREY / 255).astype(">f4"), sample_format=3),
    "float TIFF where white is 0": lambda at: tiff(at / "a.tif", (1 - GREY / 255).astype("<f4"), 0, sample_format=3),
    "float TIFF by Pillow": lambda at: saved(at / "a.tif", (GREY / 255).astype(np.float32)),
    "opaque LA": lambda at: saved(at / "a.png", Image.fromarray(GREY).convert("LA")),
    "palette": lambda at: saved(at / "a.png", Image.fromarray(GREY).convert("P")),
    "RGB": lambda at: saved(at / "a.png", np.stack([GREY] * 3, -1)),
    "with gamma": lambda at: png(at / "a.png", 8, 0, GREY[..., None], gAMA=struct.pack(">I", 100_000)),
}


def _pgm(path: Path, values: np.ndarray, white: int) -> Path:
    path.write_bytes(b"P5 %d %d %d\n" % (SIZE, SIZE, white) + values.astype(">u2").tobytes())
    return path


@pytest.mark.parametrize("kind", GREY_FILES)
def test_grey_is_the_same_from_every_kind_of_file(tmp_path: Path, kind: str) -> None:
    path = GREY_FILES[kind](tmp_path)
    assert np.abs(read_grey(path) - GREY).max() <= 1
    assert np.abs(read_colour(path) - GREY[..., None]).max() <= 1


def _indexed(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels).quantize(256, dither=Image.Dither.NONE)


COLOUR_FILES = {
    "PNG": (lambda at: saved(at / "a.png", COLOUR), 0),
    "PPM": (lambda at: saved(at / "a.ppm", COLOUR), 0),
    "TIFF": (lambda at: saved(at / "a.tif", COLOUR), 0),
    "BMP": (lambda at: saved(at / "a.bmp", COLOUR), 0),
    "JPEG": (lambda at: saved(at / "a.jpg", COLOUR, quality=100, subsampling=0), 8),
    "JPEG that keeps RGB": (lambda at: saved(at / "a.jpg", COLOUR, quality=100, keep_rgb=True), 8),
    "lossless WebP": (lambda at: saved(at / "a.webp", COLOUR, lossless=True), 0),
    "16 bit PNG": (lambda at: png(at / "a.png", 16, 2, COLOUR.astype(int) * 257), 0),
    "16 bit TIFF": (lambda at: tiff(at / "a.tif", COLOUR.astype("<u2") * 257, photometric=2), 0),
    "16 bit TIFF of a Mac": (lambda at: tiff(at / "a.tif", (COLOUR.astype(">u2") * 257).astype(">u2"), 2), 0),
    "CMYK TIFF": (lambda at: saved(at / "a.tif", Image.fromarray(COLOUR).convert("CMYK")), 1),
    "CMYK JPEG": (lambda at: saved(at / "a.jpg", Image.fromarray(COLOUR).convert("CMYK"), quality=100), 12),
    "YCbCr TIFF": (lambda at: saved(at / "a.tif", Image.fromarray(COLOUR).convert("YCbCr")), 3),
    "palette PNG": (lambda at: saved(at / "a.png", _indexed(COLOUR)), 16),
    "GIF": (lambda at: saved(at / "a.gif", _indexed(COLOUR)), 16),
    "opaque RGBA": (lambda at: saved(at / "a.png", np.dstack([COLOUR, ALPHA * 0 + 255])), 0),
}


@pytest.mark.parametrize("kind", COLOUR_FILES)
def test_colour_is_the_same_from_every_kind_of_file(tmp_path: Path, kind: str) -> None:
    write, tolerance = COLOUR_FILES[kind]
    path = write(tmp_path)
    assert np.abs(read_colour(path) - COLOUR).max() <= tolerance
    assert np.abs(read_grey(path) - luma(COLOUR)).max() <= tolerance + 1


def test_lab_becomes_rgb(tmp_path: Path) -> None:
    """L, a, b of pure red, by its definition (D50): 54.3, 80.8, 69.9; and of mid-grey: 53.6, 0, 0."""
    pixels = np.full((SIZE, SIZE, 3), (round(54.3 * 2.55), 81, 70))
    pixels[:, 12:] = round(53.6 * 2.55), 0, 0
    lab = tiff(tmp_path / "lab.tif", pixels.astype(np.int8).view(np.uint8), photometric=8)
    found = read_colour(lab)
    assert np.abs(found[:, :12] - (255, 0, 0)).max() <= 6
    assert np.abs(found[:, 12:] - 128).max() <= 4


def test_black_and_white(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(BARS).convert("1"))
    assert (read_grey(path) == BARS).all()
    fax = saved(tmp_path / "a.tif", Image.fromarray(BARS).convert("1"), compression="group4")
    assert (read_grey(fax) == BARS).all()
    # resized, it has greys: a fifth of each pixel is white
    [small] = read_picture(saved(tmp_path / "b.png", Image.fromarray(BARS[:, :20]).convert("1")), (1, 6, 4), "stretch")
    assert 30 < small.mean() < 70
    assert len(np.unique(small)) > 2


# --- transparency ---


def _with_hidden(colour: np.ndarray) -> np.ndarray:
    """Puts colours that nobody may see under the transparent pixels."""
    colour = colour.copy()
    colour[ALPHA == 0] = 77 if colour.ndim == 2 else (255, 0, 255)
    return colour


def _paletted(at: Path) -> Path:
    """PNG's own way: a palette whose first entries have an alpha each."""
    indices = np.where(ALPHA == 0, 0, np.where(ALPHA == 128, 1, 2))
    palette = bytes([255, 0, 255, 10, 20, 200, 200, 20, 10])
    return png(at / "a.png", 8, 3, indices[..., None], PLTE=palette, tRNS=bytes([0, 128]))


_PALETTE_COLOURS = np.where(ALPHA[..., None] == 255, (200, 20, 10), (10, 20, 200))
_KEYED = np.where(ALPHA == 0, 77, np.maximum(GREY, 78)).astype(np.uint8)  # grey whose 77 is transparent
_KEYED_ALPHA = np.where(ALPHA == 0, 0, 255)
_KEYED_COLOUR = np.dstack([_KEYED, _KEYED, 255 - _KEYED])


def _key(*values: int) -> bytes:
    return struct.pack(f">{len(values)}H", *values)


TRANSPARENT_FILES = {
    "RGBA": (lambda at: saved(at / "a.png", np.dstack([_with_hidden(COLOUR), ALPHA])), COLOUR, ALPHA),
    "16 bit RGBA": (
        lambda at: png(at / "a.png", 16, 6, np.dstack([_with_hidden(COLOUR), ALPHA]).astype(int) * 257),
        COLOUR,
        ALPHA,
    ),
    "RGBA WebP": (
        lambda at: saved(at / "a.webp", np.dstack([_with_hidden(COLOUR), ALPHA]), lossless=True, exact=True),
        COLOUR,
        ALPHA,
    ),
    "RGBA TIFF": (
        lambda at: tiff(at / "a.tif", np.dstack([_with_hidden(COLOUR), ALPHA]), photometric=2, tag338=2),
        COLOUR,
        ALPHA,
    ),
    "LA": (lambda at: png(at / "a.png", 8, 4, np.dstack([_with_hidden(GREY), ALPHA])), GREY, ALPHA),
    "16 bit LA": (
        lambda at: png(at / "a.png", 16, 4, np.dstack([_with_hidden(GREY), ALPHA]).astype(int) * 257),
        GREY,
        ALPHA,
    ),
    "palette with alphas": (_paletted, _PALETTE_COLOURS, ALPHA),
    "grey with a key": (lambda at: png(at / "a.png", 8, 0, _KEYED[..., None], tRNS=_key(77)), _KEYED, _KEYED_ALPHA),
    "16 bit grey with a key": (
        lambda at: png(at / "a.png", 16, 0, _KEYED[..., None].astype(int) * 257, tRNS=_key(77 * 257)),
        _KEYED,
        _KEYED_ALPHA,
    ),
    "RGB with a key": (
        lambda at: png(at / "a.png", 8, 2, _KEYED_COLOUR, tRNS=_key(77, 77, 178)),
        _KEYED_COLOUR,
        _KEYED_ALPHA,
    ),
    "16 bit RGB with a key": (
        lambda at: png(
            at / "a.png", 16, 2, _KEYED_COLOUR.astype(int) * 257, tRNS=_key(*np.multiply((77, 77, 178), 257))
        ),
        _KEYED_COLOUR,
        _KEYED_ALPHA,
    ),
    "GIF with a key": (
        lambda at: saved(at / "a.gif", Image.fromarray(_KEYED), transparency=77),
        _KEYED,
        _KEYED_ALPHA,
    ),
}


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_key_of_few_bits(tmp_path: Path, depth: int) -> None:
    """The transparent grey of a PNG counts in its own bits: here it is the lightest."""
    lightest = 2**depth - 1
    pixels = np.where(COLUMNS < 8, lightest, np.where(COLUMNS < 16, lightest // 2, 0))
    path = png(tmp_path / "a.png", depth, 0, pixels, tRNS=_key(lightest))
    expected = np.where(COLUMNS < 8, 128, pixels * 255 // lightest)
    assert np.abs(read_grey(path, background="#808080") - expected).max() <= 1


@pytest.mark.parametrize("kind", TRANSPARENT_FILES)
@pytest.mark.parametrize(("background", "below"), [(None, 255), ("white", 255), ("black", 0), ("#808080", 128)])
def test_transparency_is_composed_over_the_background(
    tmp_path: Path, kind: str, background: str | None, below: int
) -> None:
    write, colour, alpha = TRANSPARENT_FILES[kind]
    path = write(tmp_path)
    expected = over(colour, alpha, below)
    found = read_colour(path, background=background)
    assert np.abs(found - (expected if expected.ndim == 3 else expected[..., None])).max() <= 1.5
    grey = read_grey(path, background=background)
    assert np.abs(grey - (luma(expected) if expected.ndim == 3 else expected)).max() <= 1.5


def test_ink_of_any_colour_can_be_seen(tmp_path: Path) -> None:
    """A stroke on nothing: white if it could not be seen on white, all else on white; a background given is kept."""
    ink = ALPHA[:, ::-1]
    for value, below in ((0, 255), (255, 0), (250, 0), (128, 255)):
        path = saved(tmp_path / "a.png", np.dstack([np.full((SIZE, SIZE, 3), value, np.uint8), ink]))
        assert np.abs(read_grey(path) - over(np.full((SIZE, SIZE), value), ink, below)).max() <= 1
    white = saved(tmp_path / "b.png", np.dstack([np.full((SIZE, SIZE, 3), 255, np.uint8), ink]))
    assert (read_grey(white, background="white") == 255).all()
    nothing = saved(tmp_path / "c.png", np.zeros((SIZE, SIZE, 4), np.uint8))
    assert (read_grey(nothing) == 255).all()


def test_colours_hidden_under_transparency_do_not_come_out_by_resizing(tmp_path: Path) -> None:
    hidden = np.zeros((100, 100, 4), np.uint8)
    hidden[..., 0] = 255  # red, all transparent
    hidden[40:60, 40:60] = 0, 0, 255, 255
    path = saved(tmp_path / "a.png", hidden)
    found = read_picture(path, (3, 25, 25), background="black")
    assert found[0].max() == 0
    assert found[2].max() > 250


# --- turned, large, moving ---


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
def test_pictures_are_upright(tmp_path: Path, orientation: int, ending: str) -> None:
    """Row 0 and column 0 of what is stored lie, by the EXIF standard: 1 top left, 2 top right, 3 bottom right ..."""
    stored = {  # what must be stored so that the upright picture is GREY
        1: GREY,
        2: GREY[:, ::-1],
        3: GREY[::-1, ::-1],
        4: GREY[::-1],
        5: GREY.T,
        6: GREY.T[::-1],
        7: GREY.T[::-1, ::-1],
        8: GREY.T[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"jpg": {"quality": 100}, "webp": {"lossless": True}}.get(ending, {})
    path = saved(tmp_path / f"a.{ending}", np.ascontiguousarray(stored), exif=exif, **options)
    assert np.abs(read_grey(path) - GREY).max() <= 8


def test_the_first_frame_of_moving_pictures(tmp_path: Path) -> None:
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    for ending, options in (("gif", {}), ("png", {}), ("webp", {"lossless": True}), ("tif", {})):
        path = tmp_path / f"a.{ending}"
        frames[0].save(path, save_all=True, append_images=frames[1:], **options)
        assert np.abs(read_grey(path) - GREY).max() <= 1


def test_resizing_does_not_alias(tmp_path: Path) -> None:
    """Stripes of one pixel become an even grey, also where a JPEG is decoded at a part of its size."""
    stripes = np.tile(np.array([[0], [255]], np.uint8), (400, 800))
    for name in "a.png", "a.jpg":
        [pixels] = read_picture(saved(tmp_path / name, stripes), (1, 50, 50))
        assert np.abs(pixels[2:-2].astype(int) - 127.5).max() < 8


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_crops(tmp_path: Path, ending: str) -> None:
    """A picture 400 wide and 200 high whose left half is black and whose right half is white but for a red frame."""
    pixels = np.zeros((200, 400, 3), np.uint8)
    pixels[:, 200:] = 255
    pixels[:, :50] = pixels[:, 350:] = 255, 0, 0
    path = saved(tmp_path / f"a.{ending}", pixels)

    def thirds(crop: object, background: str | None = None) -> np.ndarray:
        return read_picture(path, (3, 40, 40), crop, background).astype(int)

    centre = thirds("centre")  # columns 100 to 300
    assert centre[:, :, :18].max() < 20
    assert centre[:, :, 22:].min() > 235
    stretch = thirds("stretch")  # an eighth of it, 5 columns, is red at either side
    assert np.abs(stretch[:, :, [0, 1, 38, 39]] - np.array([255, 0, 0])[:, None, None]).max() < 30
    assert stretch[:, :, 8:18].max() < 20
    pad = thirds("pad", "#00ff00")  # 40 x 20 in the middle
    assert (pad[:, [0, 9, 30, 39]] == np.array([0, 255, 0])[:, None, None]).all()
    assert np.abs(pad[:, 12:28] - stretch[:, 12:28]).max() < 40
    assert (thirds("pad")[:, 0] == 255).all()
    square = thirds(100)  # columns 150 to 250
    assert square[:, :, :18].max() < 20
    assert square[:, :, 22:].min() > 235


def test_thin_pictures_can_be_padded(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", np.zeros((1000, 1), np.uint8))
    [pixels] = read_picture(path, (1, 20, 20), "pad")
    assert (pixels == 0).sum() == 20
    assert read_picture(path, (1, 20, 20)).max() == 0


def test_padding_of_a_transparent_picture_goes_on_with_what_is_under_it(tmp_path: Path) -> None:
    ink = np.zeros((10, 20, 4), np.uint8)
    ink[:, 8:12] = 255
    [pixels] = read_picture(saved(tmp_path / "a.png", ink), (1, 20, 20), "pad")
    assert pixels[0].max() == pixels[10, 0] == 0
    assert pixels[10, 10] == 255


# --- what is refused ---


def refused(path: Path, match: str) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        read_grey(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


FLOATS = (GREY / 255).astype("<f4")


@pytest.mark.parametrize(
    ("pixels", "options", "message"),
    [
        (FLOATS * 255, {"sample_format": 3}, r"expected .* floats in \[0, 1\], found floats from 0 to 230"),
        (FLOATS - 1, {"sample_format": 3}, "found floats from -1 to "),
        (FLOATS * np.float32("nan"), {"sample_format": 3}, "found floats from nan to nan"),
        (GREY.astype("<i4"), {"sample_format": 2}, "found 32-bit integers"),
        (GREY.astype("<i2"), {"sample_format": 2}, "found 32-bit integers|found 16-bit"),
        (GREY.astype("<u4") << 16, {}, "found 32-bit integers"),
        (np.stack([FLOATS] * 3, -1), {"sample_format": 3, "photometric": 2}, "not a picture that can be read"),
    ],
)
def test_numbers_of_unknown_range_are_refused(tmp_path: Path, pixels: np.ndarray, options: dict, message: str) -> None:
    refused(tiff(tmp_path / "a.tif", pixels, **options), message)


@pytest.mark.parametrize("ending", ["png", "jpg", "gif", "bmp", "tif", "webp", "ppm", "jp2"])
def test_truncated_files_are_refused(tmp_path: Path, ending: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 50, 3), dtype=np.uint8)
    path = saved(tmp_path / f"a.{ending}", noise)
    content = path.read_bytes()
    for share in (0.6, 0.9):
        path.write_bytes(content[: int(len(content) * share)])
        refused(path, "not a complete picture|not a picture that can be read")
    path.write_bytes(b"")
    refused(path, "not a picture that can be read .*begins with b''")


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("Hello, world")
    refused(tmp_path / "a.png", r"a.png: not a picture that can be read \(expected PNG, .*begins with b'Hello, w'")
    # Pillow reads EPS by starting Ghostscript
    eps = io.BytesIO()
    Image.fromarray(COLOUR).save(eps, "EPS")
    (tmp_path / "b.jpg").write_bytes(eps.getvalue())
    refused(tmp_path / "b.jpg", "not a picture that can be read .*begins with b'%!PS-Ado'")


@pytest.mark.parametrize(("width", "height"), [(10_000, 10_000), (30_000, 30_000), (2_000_000_000, 1)])
def test_pictures_that_would_fill_the_memory_are_refused(tmp_path: Path, width: int, height: int) -> None:
    path = png(tmp_path / "a.png", 8, 0, np.zeros((1, 1, 1)))
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    refused(path, r"expected a picture of at most 89,478,485 pixels, found more")


def test_other_mistakes_have_their_own_words(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_grey(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match=r"1 channel \(grey\) or 3 \(RGB\), got 4"):
        read_picture(tmp_path / "a.png", (4, 8, 8))
    refused_crop = saved(tmp_path / "a.png", GREY)
    with pytest.raises(ValueError, match="24 x 24 pixels are too few for a crop of 25"):
        read_picture(refused_crop, (1, 8, 8), 25)
    for colour in ("whitish", "#12", ""):
        with pytest.raises(ValueError, match="expected a colour such as white or #ff8800, got"):
            rgb(colour)


def test_every_ending_is_of_a_format_that_is_read() -> None:
    Image.init()
    known = Image.registered_extensions()
    assert {ending for ending in SUFFIXES if ending not in known} <= {".heic", ".heif", ".avif"}


@pytest.mark.parametrize("crop", ["centre", "stretch", "pad"])
def test_a_large_jpeg_is_decoded_at_less_than_its_size(tmp_path, monkeypatch, crop):
    """Against all of it, decoded as a PNG: letters have the sharpest edges."""
    page = Image.new("RGB", (500, 400), "white")
    ImageDraw.Draw(page).multiline_text((10, 10), "Sharp edges\nof letters", "navy", font_size=90)
    page.save(tmp_path / "a.jpg", quality=95)
    with Image.open(tmp_path / "a.jpg") as whole:
        whole.convert("RGB").save(tmp_path / "a.png")
    drafts = []
    draft = JpegImageFile.draft
    monkeypatch.setattr(JpegImageFile, "draft", lambda self, *size: drafts.append(draft(self, *size)) or drafts[-1])
    for channels in (1, 3):
        small, exact = (
            read_picture(tmp_path / name, (channels, 64, 64), crop).astype(int) for name in ("a.jpg", "a.png")
        )
        assert abs(small - exact).max() <= 32
        assert abs(small - exact).mean() < 1.5
    assert len(drafts) == 2
    assert drafts[0][1][2:] == (125, 100)
    # a crop of so many pixels is exact: CelebA's
    small, exact = (read_picture(tmp_path / name, (3, 64, 64), 300) for name in ("a.jpg", "a.png"))
    assert np.array_equal(small, exact)
    assert len(drafts) == 2
