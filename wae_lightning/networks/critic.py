"""The latent critic."""

from __future__ import annotations

import itertools

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from wae_lightning.parts import Part

__all__ = ["Critic"]


class Critic(nn.Module, Part):
    """Fully connected ReLU network on codes with one logit: high for draws from the prior.

    The default is that of Tolstikhin et al., "Wasserstein auto-encoders" (ICLR 2018): four hidden layers of 512.

    Args:
        latent_dim: Number of input features.
        width: Units of each hidden layer.
        layers: Number of hidden layers.
        normalize: Divide each weight matrix by its largest singular value (T. Miyato et al., "Spectral normalization
            for generative adversarial networks", ICLR 2018).

    Raises:
        ValueError: If a size is not positive.

    Example:
        >>> import torch
        >>> Critic(latent_dim=8)(torch.randn(5, 8)).shape
        torch.Size([5])
    """

    def __init__(self, latent_dim: int = 8, width: int = 512, layers: int = 4, normalize: bool = False) -> None:
        super().__init__()
        for name, size in (("latent_dim", latent_dim), ("width", width), ("layers", layers)):
            if size < 1:
                raise ValueError(f"{name} of the critic must be at least 1, got {size}")
        sizes = [latent_dim] + [width] * layers
        modules: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(sizes):
            modules += [nn.Linear(inputs, outputs), nn.ReLU(inplace=True)]
        modules.append(nn.Linear(width, 1))
        if normalize:
            modules = [spectral_norm(module) if isinstance(module, nn.Linear) else module for module in modules]
        self.layers = nn.Sequential(*modules)

    def forward(self, z: Tensor) -> Tensor:
        """Maps codes (n, latent_dim) to logits (n,)."""
        return self.layers(z).squeeze(1)  # type: ignore[no-any-return]
