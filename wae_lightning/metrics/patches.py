"""Distance between two sets of images by their small patches at each scale; it sees blur and needs no network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from wae_lightning.precision import full_float32, in_full_precision
from wae_lightning.sorting import in_order

__all__ = ["PatchDistance", "laplacian_pyramid", "sliced_wasserstein"]

SMALLEST = 16


def _smooth(images: Tensor, factor: float = 1.0) -> Tensor:
    """Binomial filter of five taps, mirrored at the border; by sums, since a convolution may be rounded to TF32."""
    for dim in (2, 3):
        padding = (2, 2, 0, 0) if dim == 3 else (0, 0, 2, 2)
        parts = F.pad(images, padding, mode="reflect").unfold(dim, 5, 1)
        images = (parts * (images.new_tensor([1, 4, 6, 4, 1]) * (factor / 16))).sum(-1)
    return images


def laplacian_pyramid(images: Tensor) -> list[Tensor]:
    """Splits images into scales: what each halving of the resolution loses, and at last what is left.

    P. Burt and E. Adelson, "The Laplacian pyramid as a compact image code", 1983. A scale of at least 16 pixels on its
    shorter side is halved.

    Args:
        images: (B, C, H, W).

    Returns:
        The scales, the finest first: (B, C, H, W), (B, C, ⌈H/2⌉, ⌈W/2⌉), ...
    """
    scales = []
    while min(images.shape[2:]) >= SMALLEST:
        coarse = _smooth(images)[:, :, ::2, ::2]
        spread = torch.zeros_like(images)
        spread[:, :, ::2, ::2] = coarse
        scales.append(images - _smooth(spread, factor=2.0))
        images = coarse
    return [*scales, images]


def sliced_wasserstein(x: Tensor, y: Tensor, directions: Tensor) -> Tensor:
    """Mean over directions of the Wasserstein-1 distance between two projected sets of equal size.

    N. Bonneel et al., "Sliced and Radon Wasserstein barycenters of measures", 2015.

    Args:
        x: Points (n, d).
        y: Points (n, d).
        directions: Vectors of length 1, (d, k).

    Returns:
        A scalar in float32.
    """
    with full_float32(x.device):
        gaps = [
            (in_order(x @ part, 0) - in_order(y @ part, 0)).abs().mean(0) for part in torch.split(directions, 32, dim=1)
        ]
    return torch.cat(gaps).mean()


class PatchDistance(Metric):
    """Sliced Wasserstein distance between patches of the Laplacian pyramids of real and of generated images.

    T. Karras et al., "Progressive growing of GANs", ICLR 2018, section 5: at each scale, random 7 x 7 patches of both
    sets are compared along random directions. The finest scale sees blur and noise, the coarsest the arrangement.
    Three things are smaller or stricter here: a pyramid goes on below 16 pixels once, so that small images have two
    scales; 16 patches of an image and 128 directions are drawn, not 128 and 512; and both sets are normalised by the
    mean and standard deviation of each channel of the *real* patches, so that a loss of contrast counts, too.

    Values compare for equal numbers of images only: the floor, real images against real ones, falls with the number.

    Args:
        patches: Patches of each image and scale, at least 1.
        directions: Directions at each scale, at least 1.
        seed: Seed of both draws.
        reset_real: Whether ``reset`` forgets the real images, too.

    Raises:
        ValueError: If ``patches`` or ``directions`` is less than 1.

    Example:
        >>> metric = PatchDistance()
        >>> metric.update(torch.rand(50, 1, 28, 28), real=True)
        >>> metric.update(torch.rand(50, 1, 28, 28), real=False)
        >>> list(metric.compute())
        ['mean', '28x28', '14x14']
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    real: list[Tensor]
    samples: list[Tensor]
    shapes: list[Tensor]
    size = 7
    """Height and width of a patch, in pixels."""
    smallest = SMALLEST
    """Least height and width of an image, in pixels."""

    def __init__(
        self, patches: int = 16, directions: int = 128, seed: int = 0, reset_real: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if patches < 1 or directions < 1:
            raise ValueError(f"patches and directions must be at least 1, got {patches} and {directions}")
        self.patches, self.directions, self.seed, self.reset_real = patches, directions, seed, reset_real
        self.add_state("real", [], dist_reduce_fx="cat")
        self.add_state("samples", [], dist_reduce_fx="cat")
        # (C, H, W) of the images of each call, which processes and merged metrics share like the patches
        self.add_state("shapes", [], dist_reduce_fx="cat")
        self._shape: tuple[int, ...] | None = None
        self._generators = {side: torch.Generator().manual_seed(seed) for side in (True, False)}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Not for this metric: one call has images of one side only. Use :meth:`update` and :meth:`compute`."""
        raise NotImplementedError("one call has images of one side only: use update and compute")

    def update(self, images: Tensor, real: bool) -> None:
        """Adds images (B, C, H, W), floats, at least 16 x 16.

        Raises:
            ValueError: If they have another shape, or another one than those before, or are no floats.
        """
        if images.ndim != 4 or min(images.shape[2:]) < SMALLEST or not images.is_floating_point():
            found = f"{tuple(images.shape)} of {str(images.dtype).removeprefix('torch.')}"
            raise ValueError(f"images must be floats (B, C, H, W), at least 16 x 16, got {found}")
        if self._shape not in (None, images.shape[1:]):
            raise ValueError(
                f"images must be of one shape (C, H, W), got {tuple(images.shape[1:])} after {self._shape}"
            )
        self._shape = tuple(images.shape[1:])
        pyramid = laplacian_pyramid(in_full_precision(images).float())
        # image by image, so that it does not matter how they come in batches
        places = torch.rand(len(images), len(pyramid), 2, self.patches, generator=self._generators[real])
        described = [self._cut_out(scale, places[:, number]) for number, scale in enumerate(pyramid)]
        (self.real if real else self.samples).append(torch.stack(described, dim=1))
        self.shapes.append(torch.tensor([self._shape], device=images.device))

    def _cut_out(self, images: Tensor, places: Tensor) -> Tensor:
        """Patches of images (B, C, H, W) at places (B, 2, patches) in [0, 1): (B · patches, C, 49)."""
        count, channels, height, width = images.shape
        room = torch.tensor([height, width]).view(2, 1) - self.size + 1
        top, left = (places * room).long().to(images.device)[..., None, None].unbind(1)
        steps = torch.arange(self.size, device=images.device)
        pixels = ((top + steps[:, None]) * width + left + steps).flatten(1).unsqueeze(1).expand(-1, channels, -1)
        found = images.flatten(2).gather(2, pixels).view(count, channels, self.patches, self.size**2)
        return found.transpose(1, 2).flatten(0, 1)

    def compute(self) -> dict[str, Tensor]:
        """The distance at each scale, named by its size in pixels, and their ``mean``.

        If the sets are of different size, as many patches as the smaller one has are drawn from the larger.

        Raises:
            ValueError: If one side has no images, or processes had images of different shapes.
        """
        if not (len(self.real) and len(self.samples)):  # tensors, once several processes have joined theirs
            raise ValueError("the patch distance needs real images and samples, and one of them is missing")
        shapes = torch.unique(dim_zero_cat(self.shapes), dim=0).tolist()
        if len(shapes) > 1:
            raise ValueError(f"images must be of one shape (C, H, W), got {' and '.join(map(str, shapes))}")
        _, height, width = shapes[0]
        real, samples = dim_zero_cat(self.real), dim_zero_cat(self.samples)
        generator = torch.Generator().manual_seed(self.seed)
        count = min(len(real), len(samples))
        real, samples = (
            x if len(x) == count else x[torch.randperm(len(x), generator=generator)[:count].to(x.device)]
            for x in (real, samples)
        )
        found = {}
        for number in range(real.shape[1]):
            x, y = real[:, number], samples[:, number]
            mean, deviation = x.mean((0, 2), keepdim=True), x.std((0, 2), keepdim=True).clamp(min=1e-8)
            x, y = (((side - mean) / deviation).flatten(1) for side in (x, y))
            directions = F.normalize(torch.randn(x.shape[1], self.directions, generator=generator), dim=0)
            found[f"{height}x{width}"] = sliced_wasserstein(x, y, directions.to(x.device))
            height, width = (height + 1) // 2, (width + 1) // 2
        return {"mean": torch.stack(list(found.values())).mean(), **found}

    def reset(self) -> None:
        """Forgets the samples, and with ``reset_real`` the real images."""
        real, shapes = list(self.real), list(self.shapes)  # the lists themselves are emptied
        super().reset()
        self._generators[False].manual_seed(self.seed)
        if self.reset_real:
            self._generators[True].manual_seed(self.seed)
            self._shape = None
        else:
            self.real, self.shapes = real, shapes[: len(real)]
