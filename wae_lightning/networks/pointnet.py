"""PointNet encoder and three decoders for point sets (B, N, 3), whose rows have no order."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wae_lightning.parts import Part
from wae_lightning.precision import full_float32, in_full_precision

__all__ = ["FoldingDecoder", "FullyConnectedDecoder", "PointNetClassifier", "PointNetEncoder", "SeedDecoder", "TNet"]

_BOX = 6  # features of a bounding box
_LEAST_WITH_BOX = 2 * _BOX + 1  # where half of the features are variances, those of the box are still means
_THINNEST = 0.1  # least side of a box, as a share of the largest


def _check_positive(**numbers: int | Sequence[int]) -> None:
    for name, value in numbers.items():
        values = [value] if isinstance(value, int) else list(value)
        if not values or min(values) < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def _has_box(box: bool, latent_dim: int) -> bool:
    """Whether a network treats the bounding box by itself: if it shall, and if there is room for it."""
    if box and latent_dim < _LEAST_WITH_BOX:
        warnings.warn(f"box needs latent_dim {_LEAST_WITH_BOX} or more and is left out, got {latent_dim}", stacklevel=4)
        return False
    return box


def _mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers with ReLU between them; on (B, N, C) the same for each point."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


class _MaxPooledMLP(nn.Module):
    """One multi-layer perceptron for all points, then the maximum over the points: (B, N, C) -> (B, sizes[-1]).

    In training a pass without gradient finds, for each output, the point that attains the maximum; the pass with
    gradient runs on those points only (the critical points of C. Qi et al., 2017). Output and gradient are the same,
    and it takes a fraction of the time when there are more points than outputs.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.mlp = _mlp(sizes)
        self.outputs = sizes[-1]

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.shape[1] > self.outputs:
            with torch.no_grad():
                critical = self.mlp(x).max(1).indices
            x = x.gather(1, critical.unsqueeze(2).expand(-1, -1, x.shape[2]))
        return self.mlp(x).amax(1)  # type: ignore[no-any-return]


class TNet(nn.Module, Part):
    """Predicts a matrix (B, dim, dim) from a point set (B, N, dim); the identity at the start.

    C. Qi et al., "PointNet: Deep learning on point sets for 3D classification and segmentation", CVPR 2017.

    Args:
        dim: Number of coordinates or features of a point.
        channels: Sizes of the layers before the maximum over the points.
        hidden: Sizes of the layers after it.
    """

    def __init__(
        self, dim: int = 3, channels: Sequence[int] = (64, 128, 1024), hidden: Sequence[int] = (512, 256)
    ) -> None:
        super().__init__()
        _check_positive(dim=dim, channels=channels, hidden=hidden)
        self.dim = dim
        self.points = _MaxPooledMLP([dim, *channels])
        self.output = _mlp([channels[-1], *hidden, dim * dim])
        last = self.output[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        with torch.no_grad():
            last.bias.copy_(torch.eye(dim).flatten())

    def forward(self, x: Tensor) -> Tensor:
        """Maps point sets (B, N, dim) to matrices (B, dim, dim)."""
        return self.output(self.points(x).relu()).unflatten(1, (self.dim, self.dim))  # type: ignore[no-any-return]


class PointNetEncoder(nn.Module, Part):
    """One multi-layer perceptron for all points, the maximum over the points, then fully connected layers.

    C. Qi et al., "PointNet", CVPR 2017. The output does not depend on the order of the points, and any number of them
    is welcome. Batch norm comes after the maximum only: faster than at each point, and at least as good here.

    Args:
        latent_dim: Number of output features: d, or 2d for :class:`~wae_lightning.noise.GaussianNoise`.
        channels: Sizes of the layers before the maximum. PointNet's: 64, 64, 64, 128, 1024.
        hidden: Sizes of the layers between the maximum and the output.
        input_transform: Multiply the points by a matrix that a :class:`TNet` predicts.
        feature_transform: The same for the features after the first layer.
        standardize: Standardise each output over the batch (batch norm without learned scale and shift), before
            the encoder noise, so that :class:`~wae_lightning.noise.FixedNoise` keeps its share of the code.
        box: Encode the bounding box by itself: the first six outputs are the logarithms of its half sizes and
            its middle, standardised, and the network sees the points in [-1, 1]³. Sizes that are less than 0.1 of the
            largest count as that, so that thin sides are not blown up. For a decoder with ``box``. Where ``latent_dim``
            is less than 13, six are too many, and the box is encoded with the rest, with a warning.

    Raises:
        ValueError: If a size is not positive.

    Example:
        >>> PointNetEncoder(latent_dim=16)(torch.rand(2, 500, 3)).shape
        torch.Size([2, 16])
    """

    def __init__(
        self,
        latent_dim: int = 128,
        channels: Sequence[int] = (64, 128, 256),
        hidden: Sequence[int] = (256,),
        input_transform: bool = False,
        feature_transform: bool = False,
        standardize: bool = False,
        box: bool = False,
    ) -> None:
        super().__init__()
        _check_positive(latent_dim=latent_dim, channels=channels)
        self.box = nn.BatchNorm1d(_BOX, affine=False) if _has_box(box, latent_dim) else None
        if self.box is not None:
            latent_dim -= _BOX
        if any(size < 1 for size in hidden):
            raise ValueError(f"hidden must be at least 1, got {tuple(hidden)}")
        self.input_transform = TNet(3) if input_transform else None
        self.first: nn.Module | None = None
        self.feature_transform: TNet | None = None
        sizes = [3, *channels]
        if feature_transform:
            self.first = nn.Sequential(nn.Linear(3, channels[0]), nn.ReLU(inplace=True))
            self.feature_transform = TNet(channels[0])
            sizes = sizes[1:] if len(channels) > 1 else [channels[0], channels[0]]
        self.feature_transforms: Tensor | None = None
        self.points = _MaxPooledMLP(sizes)
        layers: list[nn.Module] = [nn.BatchNorm1d(sizes[-1]), nn.ReLU(inplace=True)]
        features = sizes[-1]
        for size in hidden:
            layers += [nn.Linear(features, size), nn.BatchNorm1d(size), nn.ReLU(inplace=True)]
            features = size
        layers.append(nn.Linear(features, latent_dim))
        if standardize:
            layers.append(nn.BatchNorm1d(latent_dim, affine=False))
        self.output = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Maps point sets (B, N, 3) to features (B, latent_dim)."""
        dtype: torch.dtype = self.points.mlp[-1].weight.dtype  # type: ignore[assignment]
        box: tuple[Tensor, ...] = ()
        if self.box is not None:
            x = in_full_precision(x)
            low, high = x.amin(1), x.amax(1)
            size, middle = (high - low) / 2, (high + low) / 2
            size = torch.maximum(size, _THINNEST * size.amax(1, keepdim=True)).clamp(min=1e-6)
            x = (x - middle.unsqueeze(1)) / size.unsqueeze(1)
            box = (self.box(torch.cat([size.log(), middle], 1).to(dtype)),)
        x = x.to(dtype)
        if self.input_transform is not None:
            x = x @ self.input_transform(x)
        if self.first is not None and self.feature_transform is not None:
            x = self.first(x)
            self.feature_transforms = self.feature_transform(x)
            x = x @ self.feature_transforms
        return torch.cat([*box, self.output(self.points(x))], 1)

    def orthogonality(self) -> Tensor:
        """½ ‖A Aᵀ - I‖² of the feature transforms A of the last batch, its mean; 0 without that transform.

        PointNet adds 0.001 times this to the loss.
        """
        if self.feature_transforms is None:
            return next(self.parameters()).new_zeros(())
        a = in_full_precision(self.feature_transforms)
        with full_float32(a.device):
            excess = a @ a.transpose(1, 2) - torch.eye(a.shape[1], device=a.device, dtype=a.dtype)
            return 0.5 * excess.square().sum((1, 2)).mean()


class PointNetClassifier(nn.Module, Part):
    """PointNet for classification: (B, N, 3) -> logits (B, num_classes).

    Args:
        num_classes: Number of classes.
        channels: Sizes of the layers before the maximum over the points.
        hidden: Sizes of the layers after it.
        dropout: Probability of dropout before the output.
    """

    def __init__(
        self,
        num_classes: int = 40,
        channels: Sequence[int] = (64, 128, 256),
        hidden: Sequence[int] = (128,),
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        self.features = PointNetEncoder(hidden[-1], channels, hidden[:-1])
        self.output = nn.Sequential(
            nn.BatchNorm1d(hidden[-1]), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden[-1], num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps point sets (B, N, 3) to logits (B, num_classes)."""
        return self.output(self.features(x))  # type: ignore[no-any-return]


class FullyConnectedDecoder(nn.Module, Part):
    """Fully connected layers that put out all coordinates at once: (B, d) -> (B, num_points, 3).

    P. Achlioptas et al., "Learning representations and generative models for 3D point clouds", ICML 2018.

    Args:
        latent_dim: d.
        num_points: Number of points.
        hidden: Sizes of the layers between.
        box: Put the points into the bounding box that the first six features tell, see :class:`PointNetEncoder`; not
            where ``latent_dim`` is less than 13.

    Raises:
        ValueError: If a size is not positive.

    Example:
        >>> FullyConnectedDecoder(16, num_points=500)(torch.randn(2, 16)).shape
        torch.Size([2, 500, 3])
    """

    def __init__(
        self,
        latent_dim: int = 128,
        num_points: int = 2048,
        hidden: Sequence[int] = (256, 512),
        box: bool = False,
    ) -> None:
        super().__init__()
        _check_positive(latent_dim=latent_dim, num_points=num_points, hidden=hidden)
        self.num_points = num_points
        self.box = nn.Linear(_BOX, _BOX) if _has_box(box, latent_dim) else None
        if self.box is not None:
            with torch.no_grad():
                # about the mean and deviation that the boxes of clouds in the unit sphere have
                self.box.weight.copy_(torch.tensor([0.5, 0.5, 0.5, 0.1, 0.1, 0.1]).diag())
                self.box.bias.copy_(torch.tensor([-0.7, -0.7, -0.7, 0.0, 0.0, 0.0]))
        self.layers = _mlp([latent_dim, *hidden, 3 * num_points])

    def forward(self, z: Tensor) -> Tensor:
        """Maps codes (B, latent_dim) to point sets (B, num_points, 3)."""
        layers_out = self.layers(z.to(self.layers[-1].weight.dtype))  # type: ignore[arg-type]
        points: Tensor = in_full_precision(layers_out).unflatten(1, (self.num_points, 3))  # type: ignore[no-untyped-call]
        if self.box is None:
            return points
        with full_float32(z.device):
            code, weight, bias = map(in_full_precision, (z[:, :_BOX], self.box.weight, self.box.bias))
            box: Tensor = F.linear(code.to(weight.dtype), weight, bias).unsqueeze(1)
            # a code far from all others makes a large cloud, not an infinite one
            return points * box[:, :, :3].clamp(max=10).exp() + box[:, :, 3:]


class _PointwiseMLP(nn.Module):
    """A multi-layer perceptron for each point on [features of the set, features of the point].

    The first layer is computed separately for set and point and then added: the same as after concatenation, without
    copying the set's features to each point.
    """

    def __init__(self, set_features: int, point_features: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.of_set = nn.Linear(set_features, hidden[0])
        self.of_point = nn.Linear(point_features, hidden[0], bias=False)
        self.rest = _mlp([*hidden, 3])

    def forward(self, z: Tensor, points: Tensor) -> Tensor:
        z, points = (x.to(self.of_set.weight.dtype) for x in (z, points))
        return in_full_precision(self.rest((self.of_set(z).unsqueeze(1) + self.of_point(points)).relu()))


class SeedDecoder(nn.Module, Part):
    """One multi-layer perceptron for all points, on the code and the point's own seed: (B, d) -> (B, num_points, 3).

    This is the head of PointNet for segmentation (C. Qi et al., CVPR 2017) as a decoder, with a seed for each point in
    the place of its local features.

    Args:
        latent_dim: d.
        num_points: Number of points.
        hidden: Sizes of the layers. PointNet's: 512, 256, 128, 128.
        seed_dim: Number of features of a seed.
        seeds: ``learned``, or ``fixed`` at their random start.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> SeedDecoder(16, num_points=500)(torch.randn(2, 16)).shape
        torch.Size([2, 500, 3])
    """

    def __init__(
        self,
        latent_dim: int = 128,
        num_points: int = 2048,
        hidden: Sequence[int] = (256, 128, 64),
        seed_dim: int = 16,
        seeds: Literal["learned", "fixed"] = "learned",
    ) -> None:
        super().__init__()
        _check_positive(latent_dim=latent_dim, num_points=num_points, hidden=hidden, seed_dim=seed_dim)
        if seeds not in ("learned", "fixed"):
            raise ValueError(f"seeds must be 'learned' or 'fixed', got {seeds!r}")
        self.seeds = nn.Parameter(torch.randn(num_points, seed_dim), requires_grad=seeds == "learned")
        self.mlp = _PointwiseMLP(latent_dim, seed_dim, hidden)

    def forward(self, z: Tensor) -> Tensor:
        """Maps codes (B, latent_dim) to point sets (B, num_points, 3)."""
        return self.mlp(z, self.seeds)  # type: ignore[no-any-return]


class FoldingDecoder(nn.Module, Part):
    """Folds square sheets into a surface: (B, d) -> (B, num_points, 3).

    With one patch and two folds: Y. Yang et al., "FoldingNet", CVPR 2018. With more patches, each with layers of its
    own, and one fold: T. Groueix et al., "AtlasNet", CVPR 2018.

    Args:
        latent_dim: d.
        num_points: Number of points, shared out evenly among the patches.
        hidden: Sizes of the layers of each fold.
        patches: Number of sheets.
        folds: Each fold after the first takes the points of the one before.
        spread: ``grid`` puts the points of a sheet evenly, always alike; ``random`` draws them anew for each set, as a
            scanner would.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> FoldingDecoder(16, num_points=500, patches=4, folds=1)(torch.randn(2, 16)).shape
        torch.Size([2, 500, 3])
    """

    def __init__(
        self,
        latent_dim: int = 128,
        num_points: int = 2048,
        hidden: Sequence[int] = (128, 128),
        patches: int = 1,
        folds: int = 2,
        spread: Literal["grid", "random"] = "grid",
    ) -> None:
        super().__init__()
        _check_positive(latent_dim=latent_dim, num_points=num_points, hidden=hidden, patches=patches, folds=folds)
        if spread not in ("grid", "random"):
            raise ValueError(f"spread must be 'grid' or 'random', got {spread!r}")
        self.spread = spread
        self.shares = [num_points // patches + (i < num_points % patches) for i in range(patches)]
        self.patches = nn.ModuleList(
            nn.ModuleList(_PointwiseMLP(latent_dim, 2 if fold == 0 else 3, hidden) for fold in range(folds))
            for _ in range(patches)
        )

    def _sheet(self, n: int, sets: int, like: Tensor) -> Tensor:
        """Points of the square [-1, 1]², (1, n, 2) or (sets, n, 2)."""
        if self.spread == "random":
            return 2 * torch.rand(sets, n, 2, device=like.device, dtype=like.dtype) - 1
        # the first n points of the rows of a square grid, the last row spread out
        rows = math.ceil(math.sqrt(n))
        i = torch.arange(n, device=like.device)
        row = i * rows // n
        start, end = ((r * n + rows - 1) // rows for r in (row, row + 1))
        grid = torch.stack([(row + 0.5) / rows, (i - start + 0.5) / (end - start)], dim=1)
        return (2 * grid - 1).to(like.dtype).unsqueeze(0)

    def forward(self, z: Tensor) -> Tensor:
        """Maps codes (B, latent_dim) to point sets (B, num_points, 3)."""
        patches = []
        for folds, n in zip(self.patches, self.shares, strict=True):
            points = self._sheet(n, z.shape[0], z)
            for fold in folds:  # type: ignore[attr-defined]
                points = fold(z, points)
            patches.append(points)
        return torch.cat(patches, dim=1)
