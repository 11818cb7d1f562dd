"""The course report's model of half images, for comparison with :class:`~wae_lightning.conditional.ConditionalWAE`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wae_lightning.conditional import ConditionalWAE
from wae_lightning.networks.conditional import ConditionalMLPDecoder, ConditionalMLPEncoder
from wae_lightning.noise import EncoderNoise
from wae_lightning.priors import Prior

__all__ = ["ReportWAE"]


class ReportWAE(ConditionalWAE):
    r"""E(x) -> z -> y: completes a part of an image from a code of the other part alone.

    A course report of 2018 re-implemented WAEs and completed lower halves of digits this way. The code is a function of
    x and there is no other source of variety, so each x has one completion only, an average of the possible ones.

    Args:
        encoder: Network x -> (B, d). None: two hidden layers of 512.
        decoder: Network z -> (B, \*target_shape) with values in [0, 1]. None: two hidden layers of 512.
        prior: Distribution of the codes. None: N(0, I) in ``latent_dim`` dimensions.
        penalty_weight: λ.
        noise: How codes are drawn from the encoder's output. None: deterministic.
        condition_shape: Shape of observed parts.
        target_shape: Shape of hidden parts.
        latent_dim: d for a prior that is left None; None means 8.
        **kwargs: See :class:`~wae_lightning.conditional.ConditionalWAE`; the codes are matched alone
            (``match="marginal"``).

    Raises:
        ValueError: If an argument is out of its range or two parts do not fit together.

    Example:
        >>> ReportWAE().complete(torch.rand(2, 1, 14, 28), 5).shape
        torch.Size([2, 5, 1, 14, 28])
    """

    def __init__(
        self,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        prior: Prior | None = None,
        penalty_weight: float = 10.0,
        noise: EncoderNoise | None = None,
        condition_shape: Sequence[int] = (1, 14, 28),
        target_shape: Sequence[int] = (1, 14, 28),
        latent_dim: int | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs.pop("match", "marginal") != "marginal":
            raise ValueError("match must be marginal for ReportWAE: a code that is a function of x depends on x")
        for name in ("flow", "num_classes"):
            if kwargs.get(name) is not None:
                raise ValueError(f"ReportWAE takes no {name}: its code is a function of an observed part")
        noise = EncoderNoise() if noise is None else noise
        d = prior.latent_dim if prior is not None else 8 if latent_dim is None else latent_dim
        if encoder is None:
            encoder = ConditionalMLPEncoder([condition_shape], d * noise.features_per_dimension)
        super().__init__(
            encoder=encoder,
            decoder=ConditionalMLPDecoder(d, target_shape) if decoder is None else decoder,
            prior=prior,
            penalty_weight=penalty_weight,
            noise=noise,
            match="marginal",
            condition_shape=condition_shape,
            target_shape=target_shape,
            latent_dim=latent_dim,
            **kwargs,
        )

    def encode(self, x: Tensor, y: Tensor | None = None, noise: bool | None = None) -> Tensor:  # type: ignore[override]
        """Encodes observed parts (B, *condition_shape): codes (B, latent_dim)."""
        x = self._condition(x)
        return self._encode((x, x), self.training if noise is None else noise)

    def _features(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return super()._features(pair[:1])  # type: ignore[arg-type]

    def try_out(self) -> Tensor:
        x = torch.zeros(1, *self.condition_shape)
        self._encode((x, x), noise=False)
        return self.decoder(torch.zeros(1, self.latent_dim))  # type: ignore[no-any-return]

    def decode(self, x: Tensor, z: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Decodes codes, the last argument, to hidden parts (B, *target_shape)."""
        return self.decoder(self.at_home(x if z is None else z))  # type: ignore[no-any-return]

    def _reconstruction(self, pair: tuple[Tensor, Tensor], code: Tensor) -> tuple[Tensor, Tensor]:
        return pair[1], self.decoder(code)

    @torch.no_grad()
    def complete(
        self, x: Tensor, n: int = 1, z: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """The one completion of each observed part (B, *condition_shape), n times: (B, n, *target_shape)."""
        if z is not None:
            raise ValueError("the code of ReportWAE is E(x): complete takes no z")
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        return self.decode(self.encode(x, noise=False)).unsqueeze(1).expand(-1, n, -1, -1, -1)

    @torch.no_grad()
    def interpolate(self, x: Tensor, a: Tensor, b: Tensor, steps: int) -> Tensor:  # type: ignore[override]
        """Not for this model."""
        raise ValueError("ReportWAE has one completion only, and nothing to interpolate")

    def posterior(self, x: Tensor, y: Tensor) -> None:
        """None: q(z | x, y) is no density of z given both parts."""
