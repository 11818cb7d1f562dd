"""The maximum mean discrepancy of codes together with what they shall not depend on."""

from __future__ import annotations

import torch
from torch import Tensor

from wae_lightning.kernels import RBF, InverseMultiquadric, Kernel, squared_distances
from wae_lightning.networks.critic import Critic
from wae_lightning.penalties import MMD, Adversarial, CramerWold, Penalty
from wae_lightning.priors import Prior

__all__ = ["CodesAndFeatures", "JointMMD", "joint_mmd", "penalty_of_pairs"]


def joint_mmd(z: Tensor, z_prior: Tensor, features: Tensor, kernel: Kernel, feature_kernel: Kernel) -> Tensor:
    r"""Estimates the squared MMD between (φ(X), Z) and (φ(X), Z'), Z' ~ P_Z independent of X, with a product kernel.

    .. math::
        \frac{1}{n(n-1)} \sum_{i \ne j} k_x(\varphi_i, \varphi_j)
        \left[ k_z(z_i, z_j) + k_z(z'_i, z'_j) - 2 k_z(z_i, z'_j) \right]

    It is unbiased, so it may be negative, and 0 in expectation exactly if Z follows the prior whatever φ(X) is (for
    characteristic kernels). With :math:`k_x = 1` it is the MMD of Z alone. Product kernels and independence: A. Gretton
    et al., "Measuring statistical dependence with Hilbert-Schmidt norms", ALT 2005.

    Args:
        z: Codes (n, d), n at least 2.
        z_prior: As many draws from the prior, (n, d).
        features: φ of the inputs that the codes belong to, (n, p).
        kernel: k_z.
        feature_kernel: k_x.

    Returns:
        A scalar.

    Raises:
        ValueError: If there are fewer than two codes, or the three differ in number.
    """
    n = len(z)
    if n < 2:
        raise ValueError(f"the unbiased MMD needs at least 2 codes, got {n}: raise the batch size")
    if not n == len(z_prior) == len(features):
        raise ValueError(f"one draw and one feature for each code: got {n}, {len(z_prior)} and {len(features)}")
    kernel = kernel.fitted(z, z_prior)
    difference = (
        kernel.of_squared_distances(squared_distances(z, z))
        + kernel.of_squared_distances(squared_distances(z_prior, z_prior))
        - 2 * kernel.of_squared_distances(squared_distances(z, z_prior))
    )
    weighted: Tensor = feature_kernel(features, features) * difference
    return (weighted.sum() - weighted.diagonal().sum()) / (n * (n - 1))


class JointMMD(Penalty):
    """The MMD of codes and features of the inputs with a product kernel, see :func:`joint_mmd`.

    It is called on rows (z, φ(x)), as :class:`~wae_lightning.conditional.ConditionalWAE` makes them.

    Args:
        kernel: k_z. None: the inverse multiquadric kernel with the seven scales of the authors' code.
        feature_kernel: k_x. None: Gaussian, its bandwidth the median distance of the batch.
    """

    def __init__(self, kernel: Kernel | None = None, feature_kernel: Kernel | None = None) -> None:
        super().__init__()
        self.kernel = InverseMultiquadric() if kernel is None else kernel
        self.feature_kernel = RBF() if feature_kernel is None else feature_kernel
        self.latent_dim = 0

    def set_prior(self, prior: Prior) -> None:
        self.kernel.set_expected_squared_distance(prior.expected_squared_distance)
        self.latent_dim = prior.latent_dim

    def forward(self, z: Tensor, z_prior: Tensor) -> Tensor:
        """Compares (z, φ(x)) with (z', φ(x)), both (n, d + p), the last p columns the same."""
        d = self.latent_dim
        return joint_mmd(z[:, :d], z_prior[:, :d], z[:, d:], self.kernel, self.feature_kernel)


class CodesAndFeatures(Prior):
    """P_Z beside features of the inputs, as the critic and the like see it: rows (z, φ(x))."""

    def __init__(self, prior: Prior, num_features: int) -> None:
        super().__init__(prior.latent_dim + num_features, prior.scale)
        self.prior = prior
        self.num_features = num_features

    @property
    def expected_squared_distance(self) -> float:
        # whitened features have variance 1
        return self.prior.expected_squared_distance + 2.0 * self.num_features

    def _sample_unscaled(self, n: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        raise NotImplementedError("features come from inputs, not from a prior")


def penalty_of_pairs(penalty: Penalty | None, prior: Prior, num_features: int, classes: bool = False) -> Penalty:
    """Makes a penalty compare rows (z, φ(x)), of ``num_features`` features, with draws from the prior beside the same.

    Args:
        penalty: None: a critic; an ``MMD`` becomes a ``JointMMD`` with its kernel.
        prior: The prior of z.
        num_features: p, the number of features.
        classes: Whether features are one-hot vectors of classes: then k_x of the ``JointMMD`` is 1 within a class and
            0 between classes, so that it adds up the MMD of each class, weighted by its share squared.

    Raises:
        ValueError: If the penalty is for codes alone.
    """
    if isinstance(penalty, MMD):
        penalty = JointMMD(penalty.kernel, RBF(bandwidth=0.1) if classes else None)
    log_prior = isinstance(penalty, Adversarial) and penalty.log_prior
    if log_prior or isinstance(penalty, CramerWold):
        name = "log_prior" if log_prior else "CramerWold"
        raise ValueError(f"{name} knows the density of codes alone: use it with match='marginal'")
    if penalty is None:
        penalty = Adversarial(Critic(prior.latent_dim + num_features, width=256))
    penalty.set_prior(prior if isinstance(penalty, JointMMD) else CodesAndFeatures(prior, num_features))
    if penalty.codes_per_input > 1:
        raise ValueError(f"{type(penalty).__name__} compares codes only: use it with match='marginal'")
    return penalty
