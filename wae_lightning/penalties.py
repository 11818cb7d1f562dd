"""Penalties D(z, z_prior): how far the codes are from the prior."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from wae_lightning.kernels import InverseMultiquadric, Kernel, squared_distances
from wae_lightning.priors import Prior

__all__ = ["MMD", "Penalty", "mmd"]


class Penalty(nn.Module, ABC):
    """A divergence between two samples of codes, which the encoder descends."""

    def set_prior(self, prior: Prior) -> None:
        """Tells the penalty which prior it is used with; the model calls this once, when it is built."""

    @abstractmethod
    def forward(self, z: Tensor, z_prior: Tensor) -> Tensor:
        """Compares codes (n, d) with draws from the prior (m, d): a scalar."""


def mmd(z: Tensor, z_prior: Tensor, kernel: Kernel) -> Tensor:
    r"""Estimates the squared maximum mean discrepancy without bias.

    .. math::
        \frac{1}{n(n-1)} \sum_{i \ne j} k(z_i, z_j) + \frac{1}{m(m-1)} \sum_{i \ne j} k(z'_i, z'_j)
        - \frac{2}{nm} \sum_{i,j} k(z_i, z'_j)

    I. Tolstikhin et al., "Wasserstein auto-encoders", ICLR 2018, Algorithm 2; A. Gretton et al., JMLR 2012, eq. 3.
    Being unbiased, the estimate is negative about half of the time once the two distributions agree.

    Args:
        z: Codes of shape (n, d), n at least 2.
        z_prior: Draws from the prior of shape (m, d), m at least 2; n and m may differ.
        kernel: The kernel k.

    Returns:
        A scalar.

    Raises:
        ValueError: If one of the samples has fewer than two rows, or the latent dimensions differ.
    """
    n, m = len(z), len(z_prior)
    if n < 2 or m < 2:
        raise ValueError(f"the unbiased MMD needs at least 2 codes of each kind, got {n} and {m}: raise the batch size")
    kernel = kernel.fitted(z, z_prior)
    within = kernel.of_squared_distances(squared_distances(z, z))
    within_prior = kernel.of_squared_distances(squared_distances(z_prior, z_prior))
    across = kernel.of_squared_distances(squared_distances(z, z_prior))
    return (
        (within.sum() - within.diagonal().sum()) / (n * (n - 1))
        + (within_prior.sum() - within_prior.diagonal().sum()) / (m * (m - 1))
        - 2 * across.mean()
    )


class MMD(Penalty):
    """Unbiased squared maximum mean discrepancy, see :func:`mmd`.

    Args:
        kernel: None: the inverse multiquadric kernel with the seven scales of the authors' code.
    """

    def __init__(self, kernel: Kernel | None = None) -> None:
        super().__init__()
        self.kernel = kernel or InverseMultiquadric()

    def set_prior(self, prior: Prior) -> None:
        self.kernel.set_expected_squared_distance(prior.expected_squared_distance)

    def forward(self, z: Tensor, z_prior: Tensor) -> Tensor:
        return mmd(z, z_prior, self.kernel)
