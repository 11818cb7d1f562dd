"""Encoders and decoders with the observed part of an image beside the hidden one, and features of that part."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wae_lightning.networks.convolutional import ConvDecoder, ConvEncoder, to_pixels
from wae_lightning.parts import Part
from wae_lightning.precision import full_float32, in_full_precision

__all__ = [
    "ConditionalConvDecoder",
    "ConditionalConvEncoder",
    "ConditionalMLPDecoder",
    "ConditionalMLPEncoder",
    "WhitenedPCA",
    "number_of_features",
]

Shape = Sequence[int]


def _check_sizes(**sizes: Sequence[int]) -> None:
    for name, values in sizes.items():
        if not len(values) or min(values) < 1:
            raise ValueError(f"{name} must be positive, got {tuple(values)}")


def _mlp(sizes: Sequence[int]) -> list[nn.Module]:
    """Linear layers with batch norm and ReLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes[:-1]):
        layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU(inplace=True)]
    return [*layers, nn.Linear(sizes[-2], sizes[-1])]


def _side_by_side(parts: Sequence[Tensor], layers: nn.Sequential) -> Tensor:
    """The parts (B, ...) as rows of numbers in the precision of the layers."""
    return torch.cat([part.flatten(1) for part in parts], dim=1).to(layers[0].weight.dtype)  # type: ignore[arg-type]


class ConditionalMLPEncoder(nn.Module, Part):
    """Fully connected encoder of one or several parts of an image, of any shape.

    Args:
        part_shapes: Shape of each part, for example ``[(1, 14, 28), (1, 14, 28)]``.
        latent_dim: Number of output features: d, or 2d for :class:`~wae_lightning.noise.GaussianNoise`.
        hidden: Units of the hidden layers.
        standardize: Standardise each output over the batch (batch norm without learned scale and shift), before
            the encoder noise, so that :class:`~wae_lightning.noise.FixedNoise` keeps its share of the code.

    Raises:
        ValueError: If a size is not positive.

    Example:
        >>> encoder = ConditionalMLPEncoder([(1, 14, 28), (1, 14, 28)])
        >>> encoder(torch.rand(5, 1, 14, 28), torch.rand(5, 1, 14, 28)).shape
        torch.Size([5, 8])
    """

    def __init__(
        self,
        part_shapes: Sequence[Shape] = ((1, 14, 28), (1, 14, 28)),
        latent_dim: int = 8,
        hidden: Sequence[int] = (512, 512),
        standardize: bool = False,
    ) -> None:
        super().__init__()
        _check_sizes(part_shapes=[size for shape in part_shapes for size in shape], latent_dim=[latent_dim])
        _check_sizes(hidden=hidden)
        layers = _mlp([sum(map(math.prod, part_shapes)), *hidden, latent_dim])
        if standardize:
            layers.append(nn.BatchNorm1d(latent_dim, affine=False))
        self.layers = nn.Sequential(*layers)

    def forward(self, *parts: Tensor) -> Tensor:
        """Maps the parts, each (B, *part_shape), to features (B, latent_dim)."""
        return self.layers(_side_by_side(parts, self.layers))  # type: ignore[no-any-return]


class ConditionalMLPDecoder(nn.Module, Part):
    """Fully connected decoder from a code, and from the observed part if there is one, to a part of an image.

    Args:
        latent_dim: d.
        target_shape: Shape of the output.
        observed_shape: Shape of the observed part; None: there is none, the decoder takes the code alone.
        hidden: Units of the hidden layers.

    Raises:
        ValueError: If a size is not positive.

    Example:
        >>> decoder = ConditionalMLPDecoder(8, target_shape=(1, 14, 28), observed_shape=(1, 14, 28))
        >>> decoder(torch.rand(5, 1, 14, 28), torch.randn(5, 8)).shape
        torch.Size([5, 1, 14, 28])
    """

    def __init__(
        self,
        latent_dim: int = 8,
        target_shape: Shape = (1, 14, 28),
        observed_shape: Shape | None = None,
        hidden: Sequence[int] = (512, 512),
    ) -> None:
        super().__init__()
        _check_sizes(latent_dim=[latent_dim], target_shape=target_shape, hidden=hidden)
        observed = 0 if observed_shape is None else math.prod(observed_shape)
        self.layers = nn.Sequential(*_mlp([latent_dim + observed, *hidden, math.prod(target_shape)]))
        self.target_shape = tuple(target_shape)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Maps (observed, z), or z alone, to images (B, *target_shape) in [0, 1]."""
        return to_pixels(self.layers(_side_by_side(inputs, self.layers))).unflatten(1, self.target_shape)  # type: ignore[no-any-return, no-untyped-call]


def _features_of(shape: Shape, hidden: int, width: float, kernel_size: int) -> nn.Module:
    return nn.Identity() if len(shape) == 1 else ConvEncoder(shape, hidden, width, kernel_size)


class ConditionalConvEncoder(nn.Module, Part):
    """One convolutional network for each part of an image, then fully connected layers for all of them.

    Args:
        part_shapes: (channels, height, width) of each part, sizes from 7 to 256, or (features,) of one that is a
            vector, such as a label, and goes into the fully connected layers as it is.
        latent_dim: Number of output features: d, or 2d for :class:`~wae_lightning.noise.GaussianNoise`.
        width: Factor on the channel counts of :class:`ConvEncoder`.
        kernel_size: Side of the kernels.
        hidden: Units of the layer that joins the parts.
        standardize: See :class:`ConditionalMLPEncoder`.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> encoder = ConditionalConvEncoder([(3, 32, 64), (3, 32, 64)], latent_dim=64)
        >>> encoder(torch.rand(2, 3, 32, 64), torch.rand(2, 3, 32, 64)).shape
        torch.Size([2, 64])
    """

    def __init__(
        self,
        part_shapes: Sequence[Shape] = ((1, 14, 28), (1, 14, 28)),
        latent_dim: int = 8,
        width: float = 0.125,
        kernel_size: int = 4,
        hidden: int = 256,
        standardize: bool = False,
    ) -> None:
        super().__init__()
        _check_sizes(latent_dim=[latent_dim], hidden=[hidden])
        self.parts = nn.ModuleList(_features_of(shape, hidden, width, kernel_size) for shape in part_shapes)
        inputs = sum(shape[0] if len(shape) == 1 else hidden for shape in part_shapes)
        layers: list[nn.Module] = [nn.ReLU(inplace=True), nn.Linear(inputs, latent_dim)]
        if standardize:
            layers.append(nn.BatchNorm1d(latent_dim, affine=False))
        self.output = nn.Sequential(*layers)

    def forward(self, *parts: Tensor) -> Tensor:
        """Maps the parts, each (B, *part_shape), to features (B, latent_dim)."""
        features = [network(part) for network, part in zip(self.parts, parts, strict=True)]
        return self.output(torch.cat([part.to(features[-1].dtype) for part in features], dim=1))  # type: ignore[no-any-return]


class ConditionalConvDecoder(nn.Module, Part):
    """Convolutional features of the observed part, beside the code, into a convolutional decoder.

    Args:
        latent_dim: d.
        target_shape: (channels, height, width) of the output, sizes from 7 to 256.
        observed_shape: The same of the observed part, or (features,) of a vector, which stands beside the code as it
            is; None: there is none, the decoder takes the code alone.
        width: Factor on the channel counts of :class:`ConvEncoder` and :class:`ConvDecoder`.
        kernel_size: Side of the kernels.
        hidden: Number of features of the observed part.
        fully_connected: Units of layers between code and convolutions; none: the code goes into the convolutions as
            it is.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> decoder = ConditionalConvDecoder(64, target_shape=(3, 32, 64), observed_shape=(3, 32, 64))
        >>> decoder(torch.rand(2, 3, 32, 64), torch.randn(2, 64)).shape
        torch.Size([2, 3, 32, 64])
    """

    def __init__(
        self,
        latent_dim: int = 8,
        target_shape: Shape = (1, 14, 28),
        observed_shape: Shape | None = None,
        width: float = 0.125,
        kernel_size: int = 4,
        hidden: int = 256,
        fully_connected: Sequence[int] = (),
    ) -> None:
        super().__init__()
        _check_sizes(latent_dim=[latent_dim], hidden=[hidden])
        self.observed = None if observed_shape is None else _features_of(observed_shape, hidden, width, kernel_size)
        inputs = latent_dim
        if observed_shape is not None:
            inputs += observed_shape[0] if len(observed_shape) == 1 else hidden
        self.decoder = ConvDecoder(
            inputs, target_shape, width, kernel_size, last_stride=2, hidden=tuple(fully_connected)
        )

    def forward(self, *inputs: Tensor) -> Tensor:
        """Maps (observed, z), or z alone, to images (B, *target_shape) in [0, 1]."""
        *observed, z = inputs
        if self.observed is not None:
            features = self.observed(*observed).relu()
            z = torch.cat([features, z.to(features.dtype)], dim=1)
        return self.decoder(z)  # type: ignore[no-any-return]


class WhitenedPCA(nn.Module, Part):
    """Fixed features: the first principal components of the observed parts, each scaled to variance 1, in float32.

    Args:
        num_features: How many components.
        input_shape: Shape of the inputs.

    Raises:
        ValueError: If there are no components, more than input dimensions, or it is called before ``fit``.

    Example:
        >>> features = WhitenedPCA(2, (1, 3, 3))
        >>> features.fit(torch.rand(50, 1, 3, 3))
        >>> features(torch.rand(4, 1, 3, 3)).shape
        torch.Size([4, 2])
    """

    mean: Tensor
    components: Tensor

    def __init__(self, num_features: int = 16, input_shape: Shape = (1, 14, 28)) -> None:
        super().__init__()
        dimensions = math.prod(input_shape)
        if not 1 <= num_features <= dimensions:
            raise ValueError(f"num_features must lie between 1 and the {dimensions} pixels, got {num_features}")
        self.num_features = num_features
        self.register_buffer("mean", torch.zeros(dimensions))
        self.register_buffer("components", torch.zeros(dimensions, num_features))

    @property
    def fitted(self) -> bool:
        """Whether ``fit`` was called, now or before the checkpoint was written."""
        return bool(self.components.any())

    def fit(self, x: Tensor) -> None:
        """Finds the components of inputs (n, *input_shape).

        Components of (almost) no variance stay 0 instead of being blown up, as do those that few inputs do not have: n
        inputs have at most n - 1.

        Raises:
            ValueError: If there are no two different inputs.
        """
        x = in_full_precision(x).flatten(1)
        if not (x != x[:1]).any():
            raise ValueError(f"principal components need at least 2 different training inputs, all {len(x)} are alike")
        mean = x.mean(0)
        self.mean.copy_(mean)
        # random starting vectors, always the same ones, leave the global generator alone
        with torch.random.fork_rng(devices=[]), full_float32(x.device), full_float32(torch.device("cpu")):
            torch.manual_seed(0)
            rank = min(2 * self.num_features + 8, *x.shape)
            _, values, directions = torch.pca_lowrank((x - mean).cpu(), rank, center=False, niter=6)
        std = values[: self.num_features] / math.sqrt(len(x) - 1)
        directions = directions[:, : self.num_features]
        self.components.zero_()[:, : len(std)].copy_(torch.where(std > 1e-4 * std[0], directions / std, 0))

    def forward(self, x: Tensor) -> Tensor:
        """Maps inputs (B, *input_shape) to features (B, num_features)."""
        if not torch.compiler.is_compiling() and x.device.type == "cpu" and not self.fitted:
            raise ValueError("WhitenedPCA has not seen data: call fit(x), or train the model")
        with full_float32(x.device):
            x, mean, components = (in_full_precision(part) for part in (x, self.mean, self.components))
            return (x.flatten(1) - mean) @ components


def number_of_features(features: nn.Module, input_shape: Shape) -> int:
    """How many features p a network (B, *input_shape) -> (B, p) puts out."""
    if isinstance(features, WhitenedPCA):
        return features.num_features
    with torch.no_grad():
        return int(features(torch.zeros(2, *input_shape)).shape[1])
