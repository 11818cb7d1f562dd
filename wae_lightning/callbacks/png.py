"""Pictures in TensorBoard, written fast."""

from __future__ import annotations

import io
from typing import Any

import torch
from PIL import Image
from torch import Tensor

__all__ = ["add_png"]


def add_png(writer: Any, name: str, picture: Tensor, step: int, colors: int | None = None) -> None:
    """Does what ``SummaryWriter.add_image`` does, in half the time and, for grey or few colors, half the bytes.

    TensorBoard's checksum is computed byte by byte in Python, so a grey picture gets one channel instead of three.

    Args:
        writer: A ``SummaryWriter``.
        name: Tag of the picture.
        picture: Shape (3, height, width), uint8 or floats in [0, 1].
        step: Where it stands in the sequence of its tag.
        colors: Reduce a drawing to so many colors, at most 256; None: all of them.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary

    grey = bool((picture[0] == picture[1]).all() and (picture[0] == picture[2]).all())
    pixels = (picture if picture.dtype == torch.uint8 else picture.mul(255).clamp(0, 255).byte()).cpu()
    image = Image.fromarray((pixels[0] if grey else pixels.permute(1, 2, 0)).numpy())
    if colors is not None and not grey:
        image = image.quantize(colors, Image.Quantize.FASTOCTREE)
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=3)
    height, width = picture.shape[1:]
    encoded = Summary.Image(
        height=height, width=width, colorspace=1 if grey else 3, encoded_image_string=file.getvalue()
    )
    writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=name, image=encoded)]), step)
