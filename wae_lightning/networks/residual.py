"""Residual encoder and decoder for small pictures of any kind and size, made for few seconds of a CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wae_lightning.networks.convolutional import check_image_shape, into_range, widened
from wae_lightning.parts import Part

__all__ = ["ResidualDecoder", "ResidualEncoder"]


class _Block(nn.Module):
    """x + two 3 x 3 convolutions, each after batch norm and ReLU; at the start x alone (K. He et al., ECCV 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        nn.init.zeros_(self.layers[-1].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)  # type: ignore[no-any-return]


def _grid(image_shape: Sequence[int], channels: Sequence[int], patch: int) -> tuple[int, tuple[int, int], int]:
    """The images' channels, the size of the coarsest feature map, and by how much it is smaller than the image."""
    if patch < 1:
        raise ValueError(f"patch must be at least 1, got {patch}")
    image_channels, size = check_image_shape(image_shape)
    times = patch * 2 ** (len(channels) - 1)
    return image_channels, (math.ceil(size[0] / times), math.ceil(size[1] / times)), times


class ResidualEncoder(nn.Module, Part):
    """Patches of pixels become channels, then residual blocks at sizes that halve, then one linear layer.

    Nearly all arithmetic is done on maps of a quarter of the image's sides. Images whose sides no whole number of
    patches fills are continued beyond the right and the lower edge.

    Args:
        image_shape: (channels, height, width) of the input, sizes from 16 to 256 (parts of images down to 7).
        latent_dim: Number of output features: d, or 2d for :class:`~wae_lightning.noise.GaussianNoise`.
        width: Factor on all channel counts.
        channels: Channels at each size; the first size is that of the image by ``patch``.
        patch: Side of the patches of pixels.
        blocks: Residual blocks at each size.
        standardize: Standardise the features over the batch, as :class:`~wae_lightning.noise.FixedNoise` needs them.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> ResidualEncoder((3, 64, 64), latent_dim=128)(torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 128])
    """

    def __init__(
        self,
        image_shape: Sequence[int] = (3, 64, 64),
        latent_dim: int = 128,
        width: float = 1.0,
        channels: Sequence[int] = (32, 64, 128),
        patch: int = 4,
        blocks: int = 1,
        standardize: bool = False,
    ) -> None:
        super().__init__()
        self.image_shape = tuple(image_shape)
        channels = widened(channels, width)
        image_channels, coarsest, self.times = _grid(image_shape, channels, patch)
        layers: list[nn.Module] = [
            nn.PixelUnshuffle(patch),
            nn.Conv2d(image_channels * patch**2, channels[0], 3, padding=1),
        ]
        for i, count in enumerate(channels):
            if i:
                layers.append(nn.Conv2d(channels[i - 1], count, 4, stride=2, padding=1))
            layers += [_Block(count) for _ in range(blocks)]
        self.layers = nn.Sequential(*layers, nn.BatchNorm2d(channels[-1]), nn.ReLU(inplace=True), nn.Flatten())
        self.output = nn.Linear(channels[-1] * math.prod(coarsest), latent_dim)
        self.standardize = nn.BatchNorm1d(latent_dim, affine=False) if standardize else nn.Identity()
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (B, *image_shape) to features (B, latent_dim)."""
        below, right = (-size % self.times for size in self.image_shape[1:])
        x = x.to(self.output.weight.dtype)
        features = self.output(self.layers(F.pad(x, (0, right, 0, below), mode="replicate")))
        return self.standardize(features)  # type: ignore[no-any-return]


class ResidualDecoder(nn.Module, Part):
    """A linear layer, residual blocks at sizes that double, then channels become patches of pixels.

    Sizes double by ``PixelShuffle``, whose patches do not overlap; so there is no checkerboard of uneven overlaps (A.
    Odena et al., "Deconvolution and checkerboard artifacts", Distill 2016), and a last convolution at full size smooths
    what borders of patches are left.

    Args:
        latent_dim: d, number of input features.
        image_shape: (channels, height, width) of the output, sizes from 16 to 256 (parts of images down to 7).
        width: Factor on all channel counts.
        channels: Channels at each size, the largest size first, which is that of the image by ``patch``.
        patch: Side of the patches of pixels.
        blocks: Residual blocks at each size.
        output_range: Least and largest value of the output, which passes through a sigmoid; None: no activation.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> ResidualDecoder(128, (3, 64, 64))(torch.randn(2, 128)).shape
        torch.Size([2, 3, 64, 64])
    """

    def __init__(
        self,
        latent_dim: int = 128,
        image_shape: Sequence[int] = (3, 64, 64),
        width: float = 1.0,
        channels: Sequence[int] = (32, 64, 128),
        patch: int = 4,
        blocks: int = 1,
        output_range: tuple[float, float] | None = (0.0, 1.0),
    ) -> None:
        super().__init__()
        self.output_range = output_range
        channels = widened(channels, width)
        image_channels, coarsest, _ = _grid(image_shape, channels, patch)
        self.size = tuple(image_shape[1:])
        self.input = nn.Linear(latent_dim, channels[-1] * math.prod(coarsest))
        layers: list[nn.Module] = [nn.Unflatten(1, (channels[-1], *coarsest))]
        for i in reversed(range(len(channels))):
            layers += [_Block(channels[i]) for _ in range(blocks)]
            if i:
                layers += [nn.Conv2d(channels[i], 4 * channels[i - 1], 3, padding=1), nn.PixelShuffle(2)]
        self.layers = nn.Sequential(
            *layers,
            nn.BatchNorm2d(channels[0]),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels[0], 8 * patch**2, 3, padding=1),
            nn.PixelShuffle(patch),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, image_channels, 3, padding=1),
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, z: Tensor) -> Tensor:
        """Maps codes (B, latent_dim) to images (B, *image_shape) in ``output_range``, in float32 or float64."""
        y = self.layers(self.input(z.to(self.input.weight.dtype)))
        return into_range(y[:, :, : self.size[0], : self.size[1]], self.output_range)
