"""Likelihoods of targets under a conditional model."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from wae_lightning.lightning import LightningModule
from wae_lightning.metrics.completion import binary_cross_entropy
from wae_lightning.noise import FixedNoise, GaussianNoise
from wae_lightning.priors import Normal

__all__ = ["ConditionalLikelihood"]


class ConditionalLikelihood(LightningModule, ABC):
    """The density q(z | x, y) of a conditional model's codes, and what it says of log p(y | x)."""

    cost: Any
    noise: Any
    prior: Any
    standardize: Any
    flow: Any
    latent_dim: int
    input_range: tuple[float, float] | None

    @abstractmethod
    def _features(self, pair: tuple[Tensor, Tensor]) -> Tensor: ...

    @abstractmethod
    def _condition(self, x: Any) -> Tensor: ...

    @abstractmethod
    def _phi(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def _given(self, features: Tensor) -> tuple[Tensor, ...]: ...

    @abstractmethod
    def _from_code(self, code: Tensor, features: Tensor) -> Tensor: ...

    @abstractmethod
    def complete(self, x: Any, n: int = 1, z: Tensor | None = None) -> Tensor:
        """Draws targets."""

    def posterior(self, x: Any, y: Tensor) -> tuple[Tensor, Tensor] | None:
        """Mean and standard deviation of the Gaussian q(z | x, y), each (B, latent_dim).

        Returns:
            None if q has no density (without noise, with input noise or implicit noise) or the prior is not normal.
        """
        random = isinstance(self.noise, FixedNoise | GaussianNoise)
        if not random or not isinstance(self.prior, Normal) or self.standardize is not None:
            return None
        features = self._features((self._condition(x), y))
        mean = self.noise.mean(features)
        if isinstance(self.noise, GaussianNoise):
            return mean, self.noise.variance(features).sqrt()
        assert isinstance(self.noise, FixedNoise)
        return self.prior.scale * mean, torch.full_like(mean, self.prior.scale * self.noise.std)

    @torch.no_grad()
    def log_weights(self, x: Any, y: Tensor, n: int, prior: bool = False) -> Tensor:
        """Draws codes for each pair and returns their log importance weights, in nats.

        These are log p(y | x, z) + log p(z) - log q(z | x, y) at z from q, or log p(y | x, z) at z from the prior. For
        p(y | x, z) the pixels are independent Bernoulli variables with the decoder's output as means, or what the cost
        takes it for. The mean over the draws from q is the evidence lower bound.

        Args:
            x: Conditions (B, *condition_shape), or labels.
            y: Targets (B, *target_shape).
            n: How many codes, at least 1.
            prior: Draw from the prior, not from q.

        Returns:
            Shape (B, n).

        Raises:
            ValueError: If q has no density, and ``prior`` is False, or the targets do not lie in [0, 1].
        """
        if self.input_range != (0, 1):
            raise ValueError(f"likelihoods are of pixels in [0, 1], and the model's input_range is {self.input_range}")
        x = self._condition(x)
        if prior:
            return -binary_cross_entropy(y.flatten(1), self.cost.mean(self.complete(x, n)).flatten(2))
        posterior = self.posterior(x, y)
        if posterior is None:
            raise ValueError("q(z | x, y) has no density: noise must be FixedNoise or GaussianNoise, the prior normal")
        mean, std = (parameter.unsqueeze(1) for parameter in posterior)
        epsilon = torch.randn(len(x), n, self.latent_dim, device=x.device)
        z = mean + std * epsilon
        log_q = -(0.5 * epsilon.square() + std.log() + 0.5 * math.log(2 * math.pi)).sum(2)
        codes = z.flatten(0, 1)
        if self.flow is None:
            log_prior: Tensor = self.prior.log_prob(codes)
        else:  # q is a density of the encoder's own codes, and so is the flow's
            features = self._phi(x).repeat_interleave(n, dim=0)
            log_prior = self.flow.log_prob(codes, *self._given(features))
            z = self._from_code(codes, features).view_as(z)
        log_likelihood = -binary_cross_entropy(y.flatten(1), self.cost.mean(self.complete(x, n, z=z)).flatten(2))
        log_prior = log_prior.view_as(log_q)
        return log_likelihood + log_prior - log_q
