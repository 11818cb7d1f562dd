"""Networks for pairs of images that lie over each other: conditions that are the picture itself, damaged or smaller."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wae_lightning.networks.convolutional import ConvEncoder, to_pixels
from wae_lightning.parts import Part

__all__ = ["AlignedConvEncoder", "UNetDecoder"]

Shape = Sequence[int]


def _resized(x: Tensor, size: Sequence[int]) -> Tensor:
    size = list(size)
    if list(x.shape[-2:]) == size:
        return x
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


class AlignedConvEncoder(nn.Module, Part):
    """A convolutional encoder that sees all parts at once, as channels of one picture of the last one's size.

    Args:
        part_shapes: (channels, height, width) of each part; sizes of the last one from 7 to 256.
        latent_dim: Number of output features: d, or 2d for :class:`~wae_lightning.noise.GaussianNoise`.
        width: Factor on the channel counts of :class:`ConvEncoder`.
        hidden: Units of a fully connected layer before the last.
        standardize: See :class:`ConditionalMLPEncoder`.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> encoder = AlignedConvEncoder([(3, 8, 8), (3, 32, 32)], latent_dim=16)
        >>> encoder(torch.rand(2, 3, 8, 8), torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 16])
    """

    def __init__(
        self,
        part_shapes: Sequence[Shape] = ((2, 28, 28), (1, 28, 28)),
        latent_dim: int = 8,
        width: float = 0.125,
        hidden: int = 256,
        standardize: bool = False,
    ) -> None:
        super().__init__()
        for shape in part_shapes:
            if len(shape) != 3 or min(shape) < 1:
                raise ValueError(f"part_shapes must be (channels, height, width) each, got {tuple(shape)}")
        self.size = tuple(part_shapes[-1][1:])
        whole = (sum(shape[0] for shape in part_shapes), *self.size)
        self.network = ConvEncoder(whole, latent_dim, width, hidden=(hidden,))
        self.standardize = nn.BatchNorm1d(latent_dim, affine=False) if standardize else None

    def forward(self, *parts: Tensor) -> Tensor:
        """Maps the parts, each (B, *part_shape), to features (B, latent_dim)."""
        code = self.network(torch.cat([_resized(part, self.size) for part in parts], dim=1))
        return code if self.standardize is None else self.standardize(code)  # type: ignore[no-any-return]


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.convolution(x)).relu()  # type: ignore[no-any-return]


class UNetDecoder(nn.Module, Part):
    """The condition, at ever smaller sizes, leads by skip connections to the output; the code joins in at each size.

    O. Ronneberger, P. Fischer, T. Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015,
    with the code's part as an offset of each channel, and at the smallest size as a map of its own.

    Args:
        latent_dim: d.
        target_shape: (channels, height, width) of the output, sizes from 16 to 256.
        observed_shape: The same of the condition; its size may be another: it is resized.
        channels: Channels at the full size, half, a quarter, and so on.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> decoder = UNetDecoder(16, target_shape=(3, 32, 32), observed_shape=(4, 32, 32))
        >>> decoder(torch.rand(2, 4, 32, 32), torch.randn(2, 16)).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(
        self,
        latent_dim: int = 8,
        target_shape: Shape = (1, 28, 28),
        observed_shape: Shape = (2, 28, 28),
        channels: Sequence[int] = (16, 32, 64, 64),
    ) -> None:
        super().__init__()
        for name, shape in (("target_shape", target_shape), ("observed_shape", observed_shape)):
            if len(shape) != 3 or min(shape) < 1:
                raise ValueError(f"{name} must be (channels, height, width), got {tuple(shape)}")
        if not len(channels) or min(channels) < 1 or latent_dim < 1:
            raise ValueError(f"latent_dim and channels must be positive, got {latent_dim} and {tuple(channels)}")
        if min(target_shape[1:]) < 2 ** (len(channels) - 1):
            raise ValueError(f"{len(channels)} sizes are too many for a target of {tuple(target_shape)}")
        self.target_shape = tuple(target_shape)
        levels = range(1, len(channels))
        self.first = _Block(observed_shape[0], channels[0])
        self.down = nn.ModuleList(_Block(a, b) for a, b in itertools.pairwise(channels))
        smallest = list(target_shape[1:])
        for _ in levels:
            smallest = [math.ceil(size / 2) for size in smallest]
        self.smallest = channels[-1], *smallest
        self.map = nn.Sequential(nn.Linear(latent_dim, math.prod(self.smallest)), nn.ReLU())
        self.bottom = _Block(2 * channels[-1], channels[-1])
        self.offsets = nn.ModuleList(nn.Linear(latent_dim, channels[level - 1]) for level in reversed(levels))
        self.up = nn.ModuleList(
            _Block(channels[level] + channels[level - 1], channels[level - 1]) for level in reversed(levels)
        )
        self.last = nn.Conv2d(channels[0], target_shape[0], 3, padding=1)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Maps conditions (B, *observed_shape) and codes (B, latent_dim) to images (B, *target_shape) in [0, 1]."""
        z = z.to(self.last.weight.dtype)
        skips = [self.first(_resized(x.to(z.dtype), self.target_shape[1:]))]
        for block in self.down:
            skips.append(block(F.avg_pool2d(skips[-1], 2, ceil_mode=True)))
        found = self.bottom(torch.cat([skips.pop(), self.map(z).unflatten(1, self.smallest)], dim=1))
        for block, offset in zip(self.up, self.offsets, strict=True):
            skip = skips.pop()
            wide = F.interpolate(found, list(skip.shape[-2:]), mode="nearest")
            found = block(torch.cat([wide, skip], dim=1)) + offset(z)[:, :, None, None]
        return to_pixels(self.last(found))
