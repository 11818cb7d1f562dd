"""Mixtures of Gaussians fitted to codes by expectation maximisation, judged on codes that they have not seen."""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Mixture", "fit_mixture", "hold_out"]

COMPONENTS = (1, 5, 20, 50, 100, 200)
SHRINKAGES = (0.0, 0.03, 0.1, 0.3, 0.6, 1.0)
LEAST_VARIANCE = 1e-4
"""What is added to each variance, as a share of the codes' mean variance: covariances of few codes stay regular."""
ROUNDS = 30


class Mixture(NamedTuple):
    """k Gaussians in d dimensions, float64 on the CPU."""

    weights: Tensor
    """(k,), positive, of sum 1."""
    means: Tensor
    """(k, d)."""
    covariances: Tensor
    """(k, d, d), positive definite."""

    def log_prob(self, x: Tensor) -> Tensor:
        """The log-density, (n,), at points (n, d)."""
        return self._logs(x).logsumexp(0) - 0.5 * x.shape[1] * math.log(2 * math.pi)

    def shares(self, x: Tensor) -> Tensor:
        """The probability, (n, k), that each of points (n, d) is of each Gaussian."""
        return self._logs(x).softmax(0).T

    def _logs(self, x: Tensor) -> Tensor:
        """The logarithms, (k, n), of weight times density, but for a constant."""
        roots = torch.linalg.cholesky(self.covariances)
        logs = []
        for weight, mean, root in zip(self.weights, self.means, roots, strict=True):  # no (n, k, d) differences
            white = torch.linalg.solve_triangular(root, (x - mean).T, upper=False)
            logs.append(weight.log() - root.diagonal().log().sum() - 0.5 * white.square().sum(0))
        return torch.stack(logs)

    def is_regular(self) -> bool:
        """Whether all is finite and no covariance nearly singular, as those of a flow that was trained may be."""
        if not all(part.isfinite().all() for part in self):
            return False
        spread = torch.linalg.eigvalsh(self.covariances)
        return bool((spread[:, 0] > 1e-10 * spread[:, -1]).all())


def fit_mixture(codes: Tensor, validation: Tensor, most: int = 100, start: Mixture | None = None) -> Mixture:
    r"""Fits mixtures by expectation maximisation; returns the one with the best mean log-density on validation codes.

    Mixtures of 1, 5, 20, 50, 100 and 200 Gaussians are tried in this order, as long as more are better. Each starts
    from k-means; one more, beside them, from a mixture that is known already. Codes of many dimensions are few for a
    full covariance, so in each round each covariance is drawn towards their common mean,
    :math:`\Sigma_k(\alpha) = (1-\alpha)\,\Sigma_k + \alpha \sum_j w_j \Sigma_j`, and then towards a sphere,
    :math:`(1-\gamma)\,\Sigma_k(\alpha) + \gamma\,\mathrm{tr}\,\Sigma_k(\alpha)/d\;I` (J. Friedman, "Regularized
    discriminant analysis", JASA 1989), each with the one of six shares from 0 to 1 that suits the validation codes
    best. Rounds end when these gain no more.

    Args:
        codes: What is fitted to, (n, d), finite.
        validation: What decides, (m, d), finite.
        most: The most Gaussians.
        start: A mixture to start from as well, unless it has more Gaussians than there are codes.

    Raises:
        ValueError: If there are fewer than two codes, or no validation codes.
    """
    # importing it takes longer than all the rest of the package
    from sklearn.cluster import KMeans

    if len(codes) < 2 or not len(validation):
        raise ValueError(f"a mixture needs 2 codes and 1 to validate on, got {len(codes)} and {len(validation)}")
    codes, validation = (x.detach().cpu().double() for x in (codes, validation))
    best, best_score, last_score = None, -math.inf, -math.inf
    if start is not None and len(start.weights) <= len(codes) and start.is_regular():
        best, best_score = _maximised(codes, validation, start.shares(codes))
    for size in sorted({min(k, most) for k in COMPONENTS if min(k, most) <= max(1, len(codes) // 10)}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that fewer codes than clusters differ; the validation codes judge it
            nearest = KMeans(size, n_init=1, random_state=0).fit(codes.numpy()).labels_
        shares = F.one_hot(torch.from_numpy(nearest).long(), size).double()
        found, score = _maximised(codes, validation, shares)
        if score > best_score:
            best, best_score = found, score
        if score <= last_score:
            break
        last_score = score
    assert best is not None
    return best


def hold_out(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (n, d) to fit to, and those to judge by: every tenth, of fewer the last one."""
    held_out = torch.arange(len(codes)) % 10 == min(9, len(codes) - 1)
    return codes[~held_out], codes[held_out]


def _maximised(codes: Tensor, validation: Tensor, shares: Tensor) -> tuple[Mixture, float]:
    """The best mixture on the way from shares (n, k) of codes in Gaussians, and its mean log-density on validation."""
    best, best_score = _best_shrunken(codes, validation, shares)
    for _ in range(ROUNDS):
        found, score = _best_shrunken(codes, validation, best.shares(codes))
        if score <= best_score:
            break
        best, best_score = found, score
    return best, best_score


def _best_shrunken(codes: Tensor, validation: Tensor, shares: Tensor) -> tuple[Mixture, float]:
    counts = shares.sum(0)
    shares, counts = shares[:, counts > 1e-3], counts[counts > 1e-3]  # of a Gaussian without codes nothing is known
    means = shares.T @ codes / counts.unsqueeze(1)
    least = LEAST_VARIANCE * max(float(codes.var(0).mean()), 1e-12)
    covariances = torch.stack([
        ((codes - mean) * share.unsqueeze(1)).T @ (codes - mean) / count
        for mean, share, count in zip(means, shares.T, counts, strict=True)
    ]) + least * torch.eye(codes.shape[1], dtype=codes.dtype)  # fmt: skip
    weights = counts / counts.sum()
    common = torch.einsum("k,kij->ij", weights, covariances)
    found, _ = _best_between(covariances, common, Mixture(weights, means, covariances), validation)
    variances = found.covariances.diagonal(dim1=1, dim2=2).mean(1)
    spheres = variances[:, None, None] * torch.eye(codes.shape[1], dtype=codes.dtype)
    return _best_between(found.covariances, spheres, found, validation)


def _best_between(start: Tensor, end: Tensor, mixture: Mixture, validation: Tensor) -> tuple[Mixture, float]:
    """The best of a mixture with covariances on the way from some to others, and its score."""
    tried = [mixture._replace(covariances=torch.lerp(start, end, share)) for share in SHRINKAGES]
    scores = [float(one.log_prob(validation).mean()) for one in tried]
    best = max(range(len(tried)), key=scores.__getitem__)
    return tried[best], scores[best]
