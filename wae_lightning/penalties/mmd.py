"""Penalties that compare codes and prior in pairs: the maximum mean discrepancy and its relatives."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from wae_lightning.kernels import InverseMultiquadric, Kernel, NegativeDistance, squared_distances
from wae_lightning.penalties.penalty import Penalty
from wae_lightning.precision import in_float64
from wae_lightning.priors import Prior

__all__ = ["MMD", "EnergyDistance", "MMDPlusPlus", "mmd", "mmd_test"]


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

    Example:
        >>> import torch
        >>> from wae_lightning.kernels import RBF
        >>> mmd(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [1.0]]), RBF(bandwidth=1.0))
        tensor(-0.3935)
    """
    n, m = len(z), len(z_prior)
    if n < 2 or m < 2:
        raise ValueError(f"the unbiased MMD needs at least 2 codes of each kind, got {n} and {m}: raise the batch size")
    kernel = kernel.fitted(z, z_prior)
    if n + m <= 512:
        # all pairs at once: with few codes it is the number of operations that takes time
        pooled = torch.cat([z, z_prior])
        values = kernel.of_squared_distances(squared_distances(pooled, pooled))
        return (values * _weights_of_pairs(n, m, values.dtype, values.device)).sum()
    within = kernel.of_squared_distances(squared_distances(z, z))
    within_prior = kernel.of_squared_distances(squared_distances(z_prior, z_prior))
    across = kernel.of_squared_distances(squared_distances(z, z_prior))
    return mean_off_diagonal(within) + mean_off_diagonal(within_prior) - 2 * across.mean()


@functools.lru_cache(maxsize=8)
def _weights_of_pairs(n: int, m: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The factors of the kernel's values in :func:`mmd`, (n + m, n + m)."""
    with torch.inference_mode(False):
        weights = torch.full((n + m, n + m), -1 / (n * m), dtype=dtype, device=device)
        weights[:n, :n] = 1 / (n * (n - 1))
        weights[n:, n:] = 1 / (m * (m - 1))
        return weights.fill_diagonal_(0)


def mmd_test(
    z: Tensor, z_prior: Tensor, kernel: Kernel, permutations: int = 1000, generator: torch.Generator | None = None
) -> tuple[float, float]:
    """Tests whether codes and draws from the prior may have one distribution.

    The rows of both samples are shuffled and divided anew ``permutations`` times; the p-value is the share of
    divisions, the given one counted, whose :func:`mmd` is at least the given one's. A. Gretton et al., "A kernel
    two-sample test", JMLR 2012, section 5. It takes memory for (n + m)² numbers in float64.

    Args:
        z: Codes of shape (n, d), n at least 2.
        z_prior: Draws from the prior of shape (m, d), m at least 2.
        kernel: The kernel; a median heuristic is fitted once, to both samples.
        permutations: How many divisions are tried, at least 1.
        generator: Source of the random numbers; None: the global one.

    Returns:
        The estimate of the squared MMD and the p-value.

    Raises:
        ValueError: As for :func:`mmd`, and if ``permutations`` is less than 1.
    """
    if permutations < 1:
        raise ValueError(f"permutations must be at least 1, got {permutations}")
    z, z_prior = in_float64(z), in_float64(z_prior)
    kernel = kernel.fitted(z, z_prior)
    given = float(mmd(z, z_prior, kernel))
    n, m = len(z), len(z_prior)
    pooled = torch.cat([z, z_prior])
    matrix = kernel.of_squared_distances(squared_distances(pooled, pooled))
    diagonal = matrix.diagonal()
    rows = torch.stack([torch.randperm(n + m, generator=generator)[:n] for _ in range(permutations)])
    first = torch.zeros(permutations, n + m, dtype=matrix.dtype).scatter_(1, rows, 1.0).to(matrix.device)
    # sums over all pairs of the first part, of both parts together, and of the whole
    within_first = ((first @ matrix) * first).sum(1)
    of_first = first @ matrix.sum(1)
    across = of_first - within_first
    within_second = matrix.sum() - of_first - across
    estimates = (within_first - first @ diagonal) / (n * (n - 1)) - 2 * across / (n * m)
    estimates += (within_second - diagonal.sum() + first @ diagonal) / (m * (m - 1))
    as_large = int((estimates >= given - 1e-12).sum())
    return given, (as_large + 1) / (permutations + 1)


def mean_off_diagonal(matrix: Tensor) -> Tensor:
    """The mean of a square matrix (n, n) without its diagonal."""
    n = len(matrix)
    return (matrix.sum() - matrix.diagonal().sum()) / (n * (n - 1))


class MMD(Penalty):
    """Unbiased squared maximum mean discrepancy, see :func:`mmd`.

    Args:
        kernel: None: the inverse multiquadric kernel with the seven scales of the authors' code.

    Example:
        >>> import torch
        >>> from wae_lightning.priors import Normal
        >>> _ = torch.manual_seed(0)
        >>> penalty = MMD()
        >>> penalty.set_prior(Normal(4))  # the model does this
        >>> z_prior = torch.randn(500, 4)
        >>> bool(penalty(torch.randn(500, 4) + 1, z_prior) > 10 * penalty(torch.randn(500, 4), z_prior).abs())
        True
    """

    def __init__(self, kernel: Kernel | None = None) -> None:
        super().__init__()
        self.kernel = InverseMultiquadric() if kernel is None else kernel

    def set_prior(self, prior: Prior) -> None:
        self.kernel.set_expected_squared_distance(prior.expected_squared_distance)

    def forward(self, z: Tensor, z_prior: Tensor) -> Tensor:
        return mmd(z, z_prior, self.kernel)


class EnergyDistance(MMD):
    r"""Unbiased energy distance :math:`2 E\|z - z'\| - E\|z_1 - z_2\| - E\|z'_1 - z'_2\|`.

    G. Szekely, M. Rizzo, "Energy statistics", Journal of Statistical Planning and Inference 2013. It is the MMD of the
    kernel :math:`-\|x - y\|`: it has no bandwidth and pulls codes from any distance.
    """

    def __init__(self) -> None:
        super().__init__(NegativeDistance())


class MMDPlusPlus(Penalty):
    """MMD between the prior and the codes of the whole data set, from several codes of each input of a batch.

    The code distribution of N inputs is a mixture of N encoder distributions. Two independent draws from it belong to
    the same input with probability 1/N; a batch of n inputs has such pairs far too often (or, with one code each and
    the diagonal left out, never). Here pairs of codes of different inputs have the weight (N-1)/N and pairs of
    different codes of one input the weight 1/N, which makes the estimate unbiased: ``mmd++`` of the authors' code
    (github.com/tolstikhin/wae). It needs an encoder with Gaussian noise.

    Args:
        dataset_size: N, the number of training examples, at least 2.
        codes_per_input: Codes of each input, at least 2; the authors use 10.
        kernel: None: inverse multiquadric with the authors' scales 1 and 1/N.

    Raises:
        ValueError: If an argument is out of its range, or the codes are not those of at least 2 inputs.
    """

    def __init__(self, dataset_size: int, codes_per_input: int = 10, kernel: Kernel | None = None) -> None:
        super().__init__()
        if dataset_size < 2:
            raise ValueError(f"dataset_size must be at least 2, got {dataset_size}")
        if codes_per_input < 2:
            raise ValueError(f"codes_per_input must be at least 2, got {codes_per_input}")
        self.dataset_size = dataset_size
        self.codes_per_input = codes_per_input
        self.kernel = InverseMultiquadric(scales=(1.0, 1.0 / dataset_size)) if kernel is None else kernel

    def set_prior(self, prior: Prior) -> None:
        self.kernel.set_expected_squared_distance(prior.expected_squared_distance)

    def forward(self, z: Tensor, z_prior: Tensor) -> Tensor:
        k = self.codes_per_input
        n = len(z) // k
        if len(z) != n * k or n < 2:
            raise ValueError(
                f"MMDPlusPlus expected {k} codes for each of at least 2 inputs, got {len(z)}: batch size and "
                f"code_queue must give a multiple of codes_per_input={k}, and at least {2 * k} codes"
            )
        kernel = self.kernel.fitted(z, z_prior)
        within = kernel.of_squared_distances(squared_distances(z, z))
        # (n, k, n, k) -> the n blocks of codes of one input
        blocks = within.view(n, k, n, k).diagonal(dim1=0, dim2=2)
        of_one_input = (blocks.sum() - within.diagonal().sum()) / (n * k * (k - 1))
        of_two_inputs = (within.sum() - blocks.sum()) / (n * (n - 1) * k * k)
        within_prior = kernel.of_squared_distances(squared_distances(z_prior, z_prior))
        across = kernel.of_squared_distances(squared_distances(z, z_prior))
        share = 1 / self.dataset_size
        return (1 - share) * of_two_inputs + share * of_one_input + mean_off_diagonal(within_prior) - 2 * across.mean()
