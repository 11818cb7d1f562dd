"""Priors of the codes: they own the latent dimension and its scale."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F

from wae_lightning.parts import Part
from wae_lightning.precision import in_full_precision

__all__ = ["Normal", "Prior", "Sphere", "Uniform"]


class Prior(Part, ABC):
    """The distribution P_Z that the codes shall follow.

    Args:
        latent_dim: Number of latent dimensions d, at least 1.
        scale: Its scale, from 1e-15 to 1e15, so that squares of codes fit into float32; each class says what it scales.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(self, latent_dim: int = 8, scale: float = 1.0) -> None:
        if latent_dim < 1:
            raise ValueError(f"latent_dim must be at least 1, got {latent_dim}")
        if not (scale > 0 and math.isfinite(scale)):
            raise ValueError(f"scale of the prior must be positive and finite, got {scale}")
        if not 1e-15 <= scale <= 1e15:
            raise ValueError(
                f"scale of the prior must lie between 1e-15 and 1e15, or squares of codes overflow float32; got {scale}"
            )
        self.latent_dim = latent_dim
        self.scale = scale

    @property
    @abstractmethod
    def expected_squared_distance(self) -> float:
        """E‖z - z'‖² for two independent draws."""

    @abstractmethod
    def _sample_unscaled(self, n: int, generator: torch.Generator | None, device: torch.device) -> Tensor: ...

    def sample(
        self, n: int, generator: torch.Generator | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        """Draws codes.

        Args:
            n: How many.
            generator: Source of the random numbers; None: the global one of the device.
            device: Where the codes shall lie; with a generator of another device they are drawn there and moved.

        Returns:
            float32 of shape (n, latent_dim).
        """
        target = torch.device(device or "cpu")
        drawn_on = target if generator is None else generator.device
        return self.scale * self._sample_unscaled(n, generator, drawn_on).to(target)

    def project(self, z: Tensor) -> Tensor:
        """Maps what an encoder puts out, (B, latent_dim), into the support of the prior, in float32 where it rounds."""
        return z

    def into_support(self, z: Tensor) -> Tensor:
        """Brings codes (B, latent_dim) that have been moved back into the support; what lies in it stays.

        Raises:
            ValueError: If the class has a ``project`` of its own and does not say this.
        """
        if type(self).project is not Prior.project:
            raise ValueError(f"{type(self).__name__} must have into_support, as it has project, for codes to be moved")
        return z

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density at ``z`` of shape (n, latent_dim): shape (n,).

        Raises:
            NotImplementedError: If this prior has no density with respect to volume, or a constant one.
        """
        raise NotImplementedError(f"{type(self).__name__} has no log-density that could serve as a logit")


class Normal(Prior):
    """N(0, scale² I): E‖z - z'‖² = 2 d scale².

    Example:
        >>> Normal(8).sample(3).shape, Normal(8, scale=2.0).expected_squared_distance
        (torch.Size([3, 8]), 64.0)
    """

    @property
    def expected_squared_distance(self) -> float:
        return 2.0 * self.latent_dim * self.scale**2

    def _sample_unscaled(self, n: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        return torch.randn(n, self.latent_dim, generator=generator, device=device, dtype=torch.float32)

    def log_prob(self, z: Tensor) -> Tensor:
        constant = self.latent_dim * (math.log(self.scale) + 0.5 * math.log(2 * math.pi))
        return -0.5 * (in_full_precision(z) / self.scale).square().sum(1) - constant


class Uniform(Prior):
    """Uniform on the cube [-scale, scale]^d: E‖z - z'‖² = 2 d scale² / 3.

    The encoder's output passes through tanh. (The authors' code takes d, not 2d/3, as the kernel's constant.)

    Example:
        >>> Uniform(3).project(torch.tensor([[0.0, 100.0, -100.0]]))
        tensor([[ 0.,  1., -1.]])
    """

    @property
    def expected_squared_distance(self) -> float:
        return 2.0 * self.latent_dim * self.scale**2 / 3.0

    def _sample_unscaled(self, n: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        return 2 * torch.rand(n, self.latent_dim, generator=generator, device=device, dtype=torch.float32) - 1

    def project(self, z: Tensor) -> Tensor:
        return self.scale * torch.tanh(in_full_precision(z))

    def into_support(self, z: Tensor) -> Tensor:
        return z.clamp(-self.scale, self.scale)


class Sphere(Prior):
    """Uniform on the sphere of radius scale in d dimensions: E‖z - z'‖² = 2 scale².

    The encoder's output is divided by its norm.

    Example:
        >>> Sphere(2, scale=5.0).project(torch.tensor([[3.0, 4.0], [30.0, 40.0]]))
        tensor([[3., 4.],
                [3., 4.]])
    """

    @property
    def expected_squared_distance(self) -> float:
        return 2.0 * self.scale**2

    def _sample_unscaled(self, n: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        return F.normalize(torch.randn(n, self.latent_dim, generator=generator, device=device, dtype=torch.float32))

    def project(self, z: Tensor) -> Tensor:
        return self.scale * F.normalize(in_full_precision(z))

    def into_support(self, z: Tensor) -> Tensor:
        return self.project(z / self.scale)
