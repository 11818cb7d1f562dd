"""Quality of generated images: sharpness, and precision and recall on the features of any extractor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from wae_lightning.precision import in_float64, in_full_precision

__all__ = ["PrecisionRecall", "Sharpness"]


class Sharpness(Metric):
    """Mean over images of the variance of the Laplacian: blur lowers it.

    Images become grey by ITU-R 601 weights and pass through the filter [[0, 1, 0], [1, -4, 1], [0, 1, 0]] without
    padding; the variance is that over the pixels of one image. I. Tolstikhin et al., "Wasserstein auto-encoders", ICLR
    2018, section 4, give it for CelebA in [0, 1]. (Their code logs the least value of a batch, not the mean.)

    Example:
        >>> metric = Sharpness()
        >>> metric.update(torch.eye(4).view(1, 1, 4, 4))
        >>> metric.compute()
        tensor(9.)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros((), dtype=torch.float32), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, images: Tensor) -> None:
        """Adds images (B, 1 or 3, H, W), floats in [0, 1], at least 3 x 3.

        Raises:
            ValueError: If they have another shape, or are no floats.
        """
        fits = images.ndim == 4 and images.shape[1] in (1, 3) and min(images.shape[2:]) >= 3
        if not (fits and images.is_floating_point()):
            found = f"{tuple(images.shape)} of {str(images.dtype).removeprefix('torch.')}"
            raise ValueError(f"images must be floats (B, 1 or 3, H, W), at least 3 x 3, got {found}")
        weights = [1.0] if images.shape[1] == 1 else [0.299, 0.587, 0.114]
        images = in_full_precision(images)
        laplacian = images.new_tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])
        kernel = torch.stack([weight * laplacian for weight in weights]).unsqueeze(0)
        # a convolution may be rounded to TF32 or under autocast; a sum is not
        filtered = F.conv2d(images.float(), kernel.float()).flatten(1)
        self.total += filtered.var(1, correction=0).sum()
        self.count += len(images)

    def compute(self) -> Tensor:
        """The mean variance, a scalar."""
        return self.total / self.count


def _radii(features: Tensor, k: int) -> Tensor:
    """Distance of each row to its k-th nearest other row."""
    # k + 1: the nearest is the row itself
    parts = torch.split(features, 1000)
    return torch.cat([torch.cdist(part, features).kthvalue(k + 1, dim=1).values for part in parts])


def _share_inside(points: Tensor, centers: Tensor, radii: Tensor) -> Tensor:
    inside = [(torch.cdist(part, centers) <= radii).any(1) for part in torch.split(points, 1000)]
    return torch.cat(inside).double().mean().float()


class PrecisionRecall(Metric):
    """Improved precision and recall: how much of the samples looks real, and how much of the real data is sampled.

    A set of features spans balls around each of its points that reach to the k-th nearest other one. Precision is the
    share of sample features inside the balls of the real ones, recall that of real features inside the sample's.
    T. Kynkäänniemi et al., "Improved precision and recall metric for assessing generative models", NeurIPS 2019, with
    their k = 3. Values depend on the extractor and on both counts; the original has 50,000 of each.

    Args:
        k: Which neighbour sets the radius, at least 1.

    Raises:
        ValueError: If ``k`` is less than 1.

    Example:
        >>> metric = PrecisionRecall(k=1)
        >>> metric.update(torch.tensor([[0.0], [1.0]]), real=True)
        >>> metric.update(torch.tensor([[0.5], [9.0]]), real=False)
        >>> metric.compute()
        {'precision': tensor(0.5000), 'recall': tensor(1.)}
    """

    is_differentiable = False
    full_state_update = False
    real: list[Tensor]
    samples: list[Tensor]

    def __init__(self, k: int = 3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        self.k = k
        self.add_state("real", [], dist_reduce_fx="cat")
        self.add_state("samples", [], dist_reduce_fx="cat")

    def update(self, features: Tensor, real: bool) -> None:
        """Adds features (n, d) of real data or of samples."""
        (self.real if real else self.samples).append(in_float64(features))

    def compute(self) -> dict[str, Tensor]:
        """``precision`` and ``recall``, in [0, 1].

        Raises:
            ValueError: If one side has no more than k features, or one is not finite.
        """
        real, samples = dim_zero_cat(self.real), dim_zero_cat(self.samples)
        if min(len(real), len(samples)) <= self.k:
            raise ValueError(f"precision and recall need more than {self.k} features, got {len(real)}, {len(samples)}")
        if not (real.isfinite().all() and samples.isfinite().all()):
            raise ValueError("precision and recall take finite features, and some are not")
        return {
            "precision": _share_inside(samples, real, _radii(real, self.k)),
            "recall": _share_inside(real, samples, _radii(samples, self.k)),
        }
