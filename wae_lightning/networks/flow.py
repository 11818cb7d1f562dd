"""Normalizing flows: invertible maps between codes and a normal prior."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wae_lightning.mixtures import Mixture, fit_mixture, hold_out
from wae_lightning.parts import Part
from wae_lightning.precision import full_float32, in_float64, in_full_precision

__all__ = ["CouplingFlow", "Flow", "MixtureFlow"]


class Flow(Part, nn.Module, ABC):
    """An invertible map of points (B, d) that shall take codes to N(0, I).

    Results are float32 (float64 if the weights are), also under autocast, TF32 and with weights in half precision.

    Args:
        dim: Number of dimensions d, at least 2.
        condition_features: Number p of features that the map depends on, or 0.

    Raises:
        ValueError: If ``dim`` is too small.
    """

    def __init__(self, dim: int, condition_features: int = 0) -> None:
        super().__init__()
        if dim < 2:
            raise ValueError(f"a flow needs at least 2 dimensions, got {dim}")
        if condition_features < 0:
            raise ValueError(f"condition_features must be 0 or more, got {condition_features}")
        self.dim = dim
        self.condition_features = condition_features

    @abstractmethod
    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Maps points (B, d), given features (B, p), to (B, d); also returns log |det| of the Jacobian, (B,)."""

    @abstractmethod
    def inverse(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """Maps (B, d) back."""

    def to_normal(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """What ``forward`` maps points (B, d) to, (B, d), without the determinant."""
        return (self(x) if condition is None else self(x, condition))[0]  # type: ignore[no-any-return]

    def loss(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """What the flow descends on points (B, d), a scalar for each dimension: here the negative log-density."""
        return -(self.log_prob(x) if condition is None else self.log_prob(x, condition)).mean() / self.dim

    def _check(self, x: Tensor, condition: Tensor | None) -> None:
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"the flow takes points (B, {self.dim}), got {tuple(x.shape)}")
        found = 0 if condition is None else condition.shape[1]
        if found != self.condition_features:
            raise ValueError(f"the flow takes {self.condition_features} features of a condition, got {found}")

    def _result(self, x: Tensor, given: Tensor) -> Tensor:
        # first the type, then the device, which may have no float64
        return x.to(torch.promote_types(next(self.parameters()).dtype, torch.float32)).to(given.device)

    def log_prob(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """The log-density, (B,), at points (B, d) of what the inverse makes of draws from N(0, I)."""
        z, log_determinant = self(x) if condition is None else self(x, condition)
        log_prob: Tensor = log_determinant - 0.5 * (z.square() + math.log(2 * math.pi)).sum(1)
        return log_prob


def like(x: Tensor, weight: Tensor) -> Tensor:
    """A weight in the precision of the points."""
    return in_float64(weight) if x.dtype == torch.float64 else in_full_precision(weight)


class _Coupling(nn.Module):
    """Shifts and scales one half of the dimensions by functions of the other half, and of a condition."""

    def __init__(self, dim: int, hidden: int, condition_features: int) -> None:
        super().__init__()
        self.kept = dim // 2
        changed = dim - self.kept
        self.network = nn.Sequential(
            nn.Linear(self.kept + condition_features, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 2 * changed),
        )
        last = self.network[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def shift_and_log_scale(self, kept: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        kept = kept if condition is None else torch.cat([kept, condition.to(kept)], dim=1)
        # in the precision of the points, and where they are
        for layer in self.network:
            if isinstance(layer, nn.Linear):
                weight, bias = (x if x.dtype == kept.dtype else like(kept, x) for x in (layer.weight, layer.bias))
                kept = F.linear(kept, weight, bias)
            else:
                kept = layer(kept)
        shift, log_scale = kept.chunk(2, dim=1)
        # a factor of at most e^1.5 for each layer keeps codes far from the data from blowing up
        return shift, 1.5 * torch.tanh(log_scale / 1.5)

    def forward(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        kept, changed = x[:, : self.kept], x[:, self.kept :]
        shift, log_scale = self.shift_and_log_scale(kept, condition)
        return torch.cat([kept, (changed + shift) * log_scale.exp()], dim=1), log_scale.sum(1)

    def inverse(self, z: Tensor, condition: Tensor | None) -> Tensor:
        kept, changed = z[:, : self.kept], z[:, self.kept :]
        shift, log_scale = self.shift_and_log_scale(kept, condition)
        return torch.cat([kept, changed * (-log_scale).exp() - shift], dim=1)


class CouplingFlow(Flow):
    """Affine coupling layers with fixed permutations of the dimensions between them. At the start it only permutes.

    L. Dinh, J. Sohl-Dickstein, S. Bengio, "Density estimation using Real NVP", ICLR 2017. The inverse, and without
    gradients the map itself, are computed in float64: layers of large weights multiply rounding errors, in float32 by
    more than 10⁶. So each is exact but for the rounding of its result to float32, which the other may still blow up.

    Args:
        dim: Number of dimensions d, at least 2.
        layers: Number of coupling layers.
        hidden: Units of the two hidden layers of each.
        condition_features: Number p of features on which shifts and scales depend, too; 0: none.

    Raises:
        ValueError: If a size is too small.

    Example:
        >>> flow = CouplingFlow(4)
        >>> x = torch.randn(3, 4)
        >>> z, log_determinant = flow(x)
        >>> torch.allclose(flow.inverse(z), x, atol=1e-5), log_determinant.shape
        (True, torch.Size([3]))
    """

    orders: Tensor

    def __init__(self, dim: int = 8, layers: int = 8, hidden: int = 128, condition_features: int = 0) -> None:
        super().__init__(dim, condition_features)
        if layers < 1 or hidden < 1:
            raise ValueError(f"a flow needs at least 1 layer and 1 hidden unit, got {layers}, {hidden}")
        self.couplings = nn.ModuleList(_Coupling(dim, hidden, condition_features) for _ in range(layers))
        # the same ones for every model, whatever the seed
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("orders", torch.stack([torch.randperm(dim, generator=generator) for _ in range(layers)]))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check(x, condition)
        given = in_full_precision(x)
        with full_float32(x.device):
            x = given if torch.is_grad_enabled() else in_float64(given)
            x = x.to(torch.promote_types(x.dtype, next(self.parameters()).dtype))
            log_determinant = x.new_zeros(x.shape[0])
            for coupling, order in zip(self.couplings, self.orders, strict=True):
                x, of_layer = coupling(x[:, order.to(x.device)], condition)
                log_determinant = log_determinant + of_layer
        return self._result(x, given), self._result(log_determinant, given)

    def inverse(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        self._check(z, condition)
        with full_float32(z.device):
            x = in_float64(z)
            for coupling, order in zip(reversed(self.couplings), self.orders.flip(0), strict=True):
                x = coupling.inverse(x, condition)[:, order.argsort().to(x.device)]  # type: ignore[operator]
        return self._result(x, z)


class MixtureFlow(Flow):
    r"""The map that takes a mixture of Gaussians to N(0, I) one coordinate after the other.

    :math:`z_i = \Phi^{-1}\big(F_i(x_i \mid x_1, \dots, x_{i-1})\big)` with the mixture's own conditional distribution
    functions F: M. Rosenblatt, "Remarks on a multivariate transformation", Annals of Mathematical Statistics 1952. The
    conditionals of a mixture are mixtures, so both z and the density have closed forms; the inverse finds one root for
    each coordinate. Codes that fall into clusters are no mixture's but nearly so, and it learns them much faster than
    layers that only shift and scale.

    Distribution functions and roots are computed in float64, on the CPU where the device has none. For |z| up to 12,
    ``forward(inverse(z))`` is z to 10⁻⁹ with weights in float64, and in float32, to which x itself is rounded, to
    5·10⁻⁵ + 5·10⁻⁶ r, where r is the ratio of the components' distances to their standard deviations.

    Args:
        dim: Number of dimensions d, at least 2.
        components: Number of Gaussians, each with a full covariance.
        condition_features: Number p of labels, if each is to have ``components`` Gaussians of its own; conditions are
            then one-hot vectors. 0: none.

    Raises:
        ValueError: If an argument is too small.

    Example:
        >>> flow = MixtureFlow(4, components=3)
        >>> x = torch.randn(3, 4)
        >>> z, log_determinant = flow(x)
        >>> torch.allclose(flow.inverse(z), x, atol=1e-5), log_determinant.shape
        (True, torch.Size([3]))
    """

    def __init__(self, dim: int = 8, components: int = 50, condition_features: int = 0) -> None:
        super().__init__(dim, condition_features)
        if components < 1:
            raise ValueError(f"components must be at least 1, got {components}")
        self.components = components
        components *= max(condition_features, 1)
        self.weight_logits = nn.Parameter(torch.zeros(components))
        self.means = nn.Parameter(torch.randn(components, dim))
        # the inverse of the covariance's Cholesky root: its diagonal by logarithms, and what is below
        self.log_diagonal = nn.Parameter(torch.zeros(components, dim))
        self.below = nn.Parameter(torch.zeros(components, dim, dim))

    def _of(self, label: int) -> list[Tensor]:
        """The parameters of the Gaussians of one label."""
        return [parameter[label * self.components :][: self.components] for parameter in self.parameters()]

    @torch.no_grad()
    def mixture(self, label: int = 0) -> Mixture:
        """The Gaussians that it consists of, or those of one label."""
        logits, means, log_diagonal, below = (in_float64(x).cpu() for x in self._of(label))
        inverse = below.tril(-1) + torch.diag_embed(log_diagonal.exp())
        root = torch.linalg.solve_triangular(inverse, torch.eye(self.dim, dtype=inverse.dtype), upper=False)
        return Mixture(logits.softmax(0), means.clone(), root @ root.mT)

    @torch.no_grad()
    def set_mixture(self, mixture: Mixture, label: int = 0) -> None:
        """Takes a mixture of at most as many Gaussians as it has; if of fewer, heavy ones are there several times.

        Raises:
            ValueError: If it has more, or lies in other dimensions.
        """
        k, dim = mixture.means.shape
        if k > self.components or dim != self.dim:
            raise ValueError(f"{k} Gaussians in {dim} dimensions do not fit into {self.components} in {self.dim}")
        copies = torch.ones(k)
        for _ in range(self.components - k):
            copies[(mixture.weights / copies).argmax()] += 1
        which = torch.arange(k).repeat_interleave(copies.long())
        root = torch.linalg.inv(torch.linalg.cholesky(mixture.covariances))[which]
        weights = (mixture.weights / copies)[which].log()
        found = weights, mixture.means[which], root.diagonal(dim1=1, dim2=2).log(), root.tril(-1)
        for parameter, value in zip(self._of(label), found, strict=True):
            parameter.copy_(value)

    @torch.no_grad()
    def fit(self, codes: Tensor, validation: Tensor) -> bool:
        """Fits the mixture, or that of each label, to codes by :func:`~wae_lightning.mixtures.fit_mixture`.

        It stays as it is if its mean log-density on the validation codes is the better one.

        Args:
            codes: What it is fitted to, (n, d), or with conditions (n, d + p): codes beside one-hot vectors.
            validation: What decides, (m, d) or (m, d + p). For a label that is not among them, every tenth of its
                codes does. A label with fewer than three codes is left as it is.

        Returns:
            Whether anything changed.
        """
        changed = False
        for label in range(max(self.condition_features, 1)):
            own, seen, condition = codes, validation, None
            if self.condition_features:
                own, seen = (x[x[:, self.dim + label] > 0.5] for x in (codes, validation))
                if len(own) < 3:
                    continue
                if not len(seen):
                    own, seen = hold_out(own)
                own, seen, condition = own[:, : self.dim], seen[:, : self.dim], seen[:, self.dim :]
            fitted = fit_mixture(own, seen, self.components, start=self.mixture(label))
            own_density, density = self.log_prob(seen, condition).mean(), fitted.log_prob(seen.cpu().double()).mean()
            if not float(own_density) >= float(density):  # also if it is no number
                self.set_mixture(fitted, label)
                changed = True
        return changed

    def _log_weights(self, logits: Tensor, n: int, condition: Tensor | None) -> Tensor:
        """Logarithms of the weights that the Gaussians have for each of n points, (n, k): those of other labels 0."""
        if condition is None:
            return logits.log_softmax(0).expand(n, -1)
        # elsewhere, where to look would make the host wait, the result is NaN
        on_cpu = condition.device.type == "cpu" and not torch.compiler.is_compiling()
        if on_cpu and not (one_hot := condition.amax(1) >= 0.5).all():
            found = [round(float(entry), 3) for entry in condition[~one_hot][0]]
            raise ValueError(f"a MixtureFlow takes labels, as one-hot vectors, for conditions, got {str(found)[:100]}")
        others = condition.repeat_interleave(self.components, dim=1) < 0.5
        return logits.masked_fill(others, -torch.inf).log_softmax(1)

    def _whitened(self, x: Tensor) -> Tensor:
        """Points as each component sees them, (B, k, d): coordinate i is standard normal given those before it."""
        means, log_diagonal, below = map(in_full_precision, (self.means, self.log_diagonal, self.below))
        root = below.tril(-1) + torch.diag_embed(log_diagonal.exp())
        # (x - mean) root', multiplied out: one matrix product, no (B, k, d) differences
        shift = torch.einsum("kd,ked->ke", means, root)
        return torch.addmm(-shift.flatten(), x.to(means.dtype), root.flatten(0, 1).T).view(len(x), *shift.shape)

    def log_prob(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        self._check(x, condition)
        with full_float32(x.device):
            squares = self._whitened(x).square().sum(2)
            weight_logits, log_diagonal = in_full_precision(self.weight_logits), in_full_precision(self.log_diagonal)
            constants = self._log_weights(weight_logits, len(x), condition) + log_diagonal.sum(1)
            return (constants - 0.5 * squares).logsumexp(1) - 0.5 * self.dim * math.log(2 * math.pi)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check(x, condition)
        with full_float32(x.device):
            white = self._whitened(x)
            weight_logits, log_diagonal = in_full_precision(self.weight_logits), in_full_precision(self.log_diagonal)
            # a component's weight times its density of the coordinates before i, for i up to d
            log_density = log_diagonal - 0.5 * (white.square() + math.log(2 * math.pi))
            log_weights = self._log_weights(weight_logits, len(x), condition).unsqueeze(2)
            log_weights = torch.cat([log_weights, log_density], dim=2).cumsum(2)
            lower, upper = _tails(in_float64(log_weights[:, :, :-1].softmax(1)), in_float64(white))
            # from the smaller of the two tails, whose rounding errors are the smaller ones
            tail = torch.minimum(lower, upper)
            z = torch.where(lower < upper, 1.0, -1.0) * torch.special.ndtri(tail)
            log_normal = -0.5 * (z.square() + math.log(2 * math.pi)).sum(1)
            log_determinant = in_float64(log_weights[:, :, -1].logsumexp(1)) - log_normal
        return self._result(z, x), self._result(log_determinant, x)

    def inverse(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        self._check(z, condition)
        given = z
        with full_float32(z.device):
            z = in_float64(z)
            log_weights = self._log_weights(in_float64(self.weight_logits), len(z), condition)
            means, slopes, below = in_float64(self.means), in_float64(self.log_diagonal).exp(), in_float64(self.below)
            x = z.new_empty(len(z), 0)
            for i in range(self.dim):
                # component k sees x_i as slope · x_i + offset
                slope = slopes[:, i]
                offset = (x.unsqueeze(1) - means[:, :i]).mul(below[:, i, :i]).sum(2) - slope * means[:, i]
                weights = log_weights.softmax(1)
                x_i = _root(weights, slope, offset, z[:, i])
                white = slope * x_i.unsqueeze(1) + offset
                log_weights = log_weights + slope.log() - 0.5 * white.square()
                x = torch.cat([x, x_i.unsqueeze(1)], dim=1)
        return self._result(x, given)


def _below(x: Tensor) -> Tensor:
    """The standard normal distribution function, exact in the lower tail (``torch.special.ndtr`` is not)."""
    return 0.5 * torch.erfc(-math.sqrt(0.5) * x)


def _tails(weights: Tensor, white: Tensor) -> tuple[Tensor, Tensor]:
    """What a mixture has below and above: Σ_k weights_k Φ(±white_k), the sum over dimension 1, in float64.

    Kept away from 0 and 1, which weights that sum to 1 + 10⁻¹⁶ may even exceed: there the normal quantile has no value.
    """
    lower, upper = _unlimited_tails(weights, white)
    return lower.clamp(1e-300, 1 - 1e-16), upper.clamp(1e-300, 1 - 1e-16)


def _unlimited_tails(weights: Tensor, white: Tensor) -> tuple[Tensor, Tensor]:
    if white.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return _exact_tails(weights, white)
    # takes a quarter of the time, and keeps nine digits where both tails are large, as nearly all codes' are
    whole, difference = weights.sum(1), white.mul(math.sqrt(0.5)).erf_().mul_(weights).sum(1)
    lower, upper = 0.5 * (whole + difference), 0.5 * (whole - difference)
    far = torch.minimum(lower, upper) <= 1e-6
    if far.any():
        lower[far], upper[far] = _exact_tails(weights.movedim(1, -1)[far], white.movedim(1, -1)[far])
    return lower, upper


def _exact_tails(weights: Tensor, white: Tensor) -> tuple[Tensor, Tensor]:
    lower, upper = ((weights * _below(side)).sum(1) for side in (white, -white))
    return lower, upper


def _root(weights: Tensor, slope: Tensor, offset: Tensor, z: Tensor) -> Tensor:
    """Solves Σ_k weights_k Φ(slope_k x + offset_k) = Φ(z) for x, (B,): Newton's method between shrinking bounds."""

    def z_and_derivative(x: Tensor) -> tuple[Tensor, Tensor]:
        white = slope * x.unsqueeze(1) + offset
        lower, upper = _tails(weights, white)
        # from the tail on z's own side, whose rounding errors are the smaller ones
        z_of_x = torch.where(z > 0, -1.0, 1.0) * torch.special.ndtri(torch.where(z > 0, upper, lower))
        return z_of_x, (
            weights * slope * (0.5 * (z_of_x.unsqueeze(1) - white) * (z_of_x.unsqueeze(1) + white)).exp()
        ).sum(1)

    with torch.no_grad():
        # the quantiles of the components enclose that of the mixture
        quantiles = (z.unsqueeze(1) - offset) / slope
        low, high = quantiles.min(1).values, quantiles.max(1).values
        x = (weights * quantiles).sum(1)
        for step in range(100):
            z_of_x, derivative = z_and_derivative(x)
            # the step after the loop squares what is left of the error
            if (((z_of_x - z).abs() < 1e-9 * (1 + z.abs())) | (high - low < 1e-14 * (1 + x.abs()))).all():
                break
            low, high = torch.where(z_of_x < z, x, low), torch.where(z_of_x > z, x, high)
            newton = x - (z_of_x - z) / derivative
            # between far and narrow clusters Newton's steps may creep along: then every other one halves the interval
            trusted = (newton >= low) & (newton <= high) & (step < 10 or step % 2 == 0)
            x = torch.where(trusted, newton, 0.5 * (low + high))
    # one more step, which carries the derivatives of the root; between far clusters that of z may underflow
    z_of_x, derivative = z_and_derivative(x)
    return x - (z_of_x - z) / derivative.detach().clamp(min=1e-6)
