"""The conditional Wasserstein auto-encoder: completes an image from a part of it, in many plausible ways."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wae_lightning.base import WAE
from wae_lightning.callbacks.completion_measures import MeasureCompletions
from wae_lightning.costs import BinaryCrossEntropy, Cost
from wae_lightning.drawing import evaluation_mode, lines_between
from wae_lightning.image_parts import ImageParts, Observed
from wae_lightning.joint_mmd import penalty_of_pairs
from wae_lightning.likelihood import CompletionLikelihood
from wae_lightning.networks.conditional import (
    ConditionalMLPDecoder,
    ConditionalMLPEncoder,
    WhitenedPCA,
    number_of_features,
)
from wae_lightning.noise import EncoderNoise, FixedNoise
from wae_lightning.penalties import MMD, Penalty
from wae_lightning.precision import in_full_precision
from wae_lightning.priors import Normal, Prior
from wae_lightning.training.features import FitFeatures

__all__ = ["ConditionalWAE"]


class ConditionalWAE(CompletionLikelihood, WAE):
    r"""Completes an image x from an observed part of it: an encoder E(x, y), a decoder G(x, z) and a prior of z.

    .. math:: \min_{E, G}\; E\, c(Y, G(X, Z)) + \lambda\, D(Q_{\varphi(X), Z},\; P_{\varphi(X)} \otimes P_Z)

    The second term makes the code follow the prior whatever x is, so that z tells nothing about x and every draw from
    the prior gives a plausible target for every x: the conditional form of I. Tolstikhin et al., "Wasserstein
    auto-encoders", ICLR 2018, eq. 4. The features φ(x) are fixed. If only the distribution of z is matched
    (``match="marginal"``), x may be encoded in z a second time, and completions with z from the prior contradict x.

    Batches are ``(observed, target, ...)``, floats in [0, 1]; a third element are labels, which serve the test only.
    The test measures completions, see :class:`~wae_lightning.callbacks.MeasureCompletions`. Arguments that are not
    listed are those of :class:`~wae_lightning.base.WAE`.

    Args:
        encoder: Network (x, y) -> (B, d), or (B, 2d) with ``GaussianNoise``. None: two hidden layers of 512 and
            standardised outputs.
        decoder: Network (x, z) -> (B, \*target_shape) with values in [0, 1]. None: two hidden layers of 512.
        prior: Distribution of the codes. None: N(0, I) in ``latent_dim`` dimensions.
        cost: c. None: 0.05 · binary cross-entropy.
        penalty: D. With ``match="joint"`` it compares rows (z, φ(x)), and :class:`MMD <wae_lightning.penalties.MMD>`
            becomes :class:`JointMMD <wae_lightning.joint_mmd.JointMMD>` with its kernel. None: a critic, or the MMD
            where ``match`` is ``marginal``.
        penalty_weight: λ.
        noise: How codes are drawn from the encoder's output. None: ``FixedNoise(0.5)``.
        match: ``joint`` or ``marginal``.
        features: Network φ that maps x to (B, p), not trained. None: the first 16 principal components, whitened, which
            are computed from the training set before the first step.
        image_shape: (channels, height, width) of whole images.
        observed: Which part is observed, as in ``HalfImageDataModule``: ``top``, ``bottom``, ``left``, ``right``,
            ``1_quadrant``, ``2_quadrants`` or ``3_quadrants``.
        fraction: Share of the height or width that is observed.
        likelihood_images: So many test images serve for the likelihoods, the slowest measures.
        latent_dim: d for a prior that is left None; None means 8.
        **kwargs: See :class:`~wae_lightning.base.WAE`.

    Raises:
        ValueError: If an argument is out of its range or two parts do not fit together.

    Example:
        >>> model = ConditionalWAE().eval()
        >>> x = torch.rand(2, 1, 14, 28)
        >>> model.complete(x, 5).shape, model.join(x.unsqueeze(1), model.complete(x, 5)).shape
        (torch.Size([2, 5, 1, 14, 28]), torch.Size([2, 5, 1, 28, 28]))
    """

    def __init__(
        self,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        prior: Prior | None = None,
        cost: Cost | None = None,
        penalty: Penalty | None = None,
        penalty_weight: float = 4.0,
        noise: EncoderNoise | None = None,
        match: Literal["joint", "marginal"] = "joint",
        features: nn.Module | None = None,
        image_shape: Sequence[int] = (1, 28, 28),
        observed: Observed = "top",
        fraction: float = 0.5,
        likelihood_images: int = 2000,
        latent_dim: int | None = None,
        **kwargs: Any,
    ) -> None:
        if match not in ("joint", "marginal"):
            raise ValueError(f"match must be joint or marginal, got {match!r}")
        if kwargs.get("flow") is not None:
            raise ValueError("a conditional model has no flow: it would have to depend on the observed part")
        if likelihood_images < 0:
            raise ValueError(f"likelihood_images must be 0 or more, got {likelihood_images}")
        parts = ImageParts(image_shape, observed, fraction)
        d = prior.latent_dim if prior is not None else 8 if latent_dim is None else latent_dim
        noise = noise or FixedNoise(0.5)
        shapes = [parts.observed_shape, parts.target_shape]
        features_per_code = d * noise.features_per_dimension
        standardize = isinstance(noise, FixedNoise)
        super().__init__(
            encoder=encoder or ConditionalMLPEncoder(shapes, features_per_code, standardize=standardize),
            decoder=decoder or ConditionalMLPDecoder(d, parts.target_shape, parts.observed_shape),
            prior=prior or Normal(d),
            cost=cost or BinaryCrossEntropy(scale=0.05),
            penalty_weight=penalty_weight,
            noise=noise,
            image_shape=image_shape,
            latent_dim=latent_dim,
            **kwargs,
        )
        self.match: Literal["joint", "marginal"] = match
        self.parts = parts
        self.likelihood_images = likelihood_images
        features = features or WhitenedPCA(min(16, math.prod(parts.observed_shape)), parts.observed_shape)
        self.features = features.requires_grad_(False)
        if match == "marginal":
            self.penalty = penalty or MMD()
            self.penalty.set_prior(self.prior)
        else:
            self.penalty = penalty_of_pairs(penalty, self.prior, number_of_features(features, parts.observed_shape))
        self._check_penalty()

    # ---- using the model --------------------------------------------------------------------------------------------

    def encode(self, x: Tensor, y: Tensor | None = None, noise: bool | None = None) -> Tensor:  # type: ignore[override]
        """Encodes what completes an observed part.

        Args:
            x: Observed parts (B, *observed_shape).
            y: Hidden parts (B, *target_shape).
            noise: Whether to draw from q(z | x, y) or to take its mean. None: draw in training mode only.

        Returns:
            Codes (B, latent_dim).

        Raises:
            ValueError: If ``y`` is missing or a shape is wrong.
        """
        if y is None:
            raise ValueError("encode needs the hidden part, too: encode(x, y)")
        self._check_parts(x, y)
        return self._encode((x, y), self.training if noise is None else noise)

    def decode(self, x: Tensor, z: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Decodes codes to hidden parts.

        Args:
            x: Observed parts (B, *observed_shape).
            z: Codes (B, latent_dim), on any device.

        Returns:
            Hidden parts (B, *target_shape). Where the target is no rectangle, they are 0 outside of it.
        """
        if z is None:
            raise ValueError("decode needs the observed part and the code: decode(x, z)")
        return self._in_target(self.decoder(self.at_home(x), self.at_home(z)))

    def try_out(self) -> Tensor:
        x = torch.zeros(1, *self.parts.observed_shape)
        y = self._in_target(self.decoder(x, torch.zeros(1, self.latent_dim)))
        self._encode((x, y), noise=False)
        return y

    def _in_target(self, y: Tensor) -> Tensor:
        if self.parts.target_shape == self.parts.image_shape:
            y = y.masked_fill(self.parts.mask_on(y.device), 0)
        return y

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Reconstructs hidden parts (B, *target_shape) from both parts."""
        return self.decode(x, self.encode(x, y))

    @torch.no_grad()
    def complete(
        self, x: Tensor, n: int = 1, z: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Completes each observed part ``n`` times, each time with another code from the prior, in evaluation mode.

        Args:
            x: Observed parts (B, *observed_shape).
            n: How many completions of each, at least 1.
            z: Codes instead of draws from the prior: (n, latent_dim), the same for each x, or (B, n, latent_dim).
            generator: Source of the random numbers; None: the global one.

        Returns:
            Hidden parts (B, n, *target_shape).

        Raises:
            ValueError: If ``n`` is not positive, or a shape is wrong.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        self._check_parts(x)
        size, d = len(x), self.latent_dim
        if z is None:
            z = self.prior.sample(size * n, generator, self.device)
        elif z.shape not in ((n, d), (size, n, d)):
            raise ValueError(
                f"z must be ({n}, {d}) or ({size}, {n}, {d}) for {size} observed parts and n = {n}, "
                f"got {tuple(z.shape)}"
            )
        else:
            z = z.expand(size, n, d).reshape(size * n, d)
        with evaluation_mode(self):
            return self.decode(x.repeat_interleave(n, dim=0), z).view(size, n, *self.parts.target_shape)

    def join(self, x: Tensor, y: Tensor) -> Tensor:
        """Puts observed and hidden parts together to whole images, see :meth:`ImageParts.join`.

        The leading dimensions are broadcast: ``join(x.unsqueeze(1), complete(x, n))`` are (B, n, C, H, W).
        """
        return self.parts.join(x, y)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Not for this model: a sample needs an observed part. Use :meth:`complete`."""
        raise ValueError("a ConditionalWAE samples given an observed part only: use complete(x, n)")

    @torch.no_grad()
    def interpolate(self, x: Tensor, a: Tensor, b: Tensor, steps: int) -> Tensor:  # type: ignore[override]
        """Leads from one completion to another of the same observed part, on the straight line between their codes.

        Args:
            x: Observed parts (B, *observed_shape).
            a: Codes (B, latent_dim), or hidden parts (B, *target_shape), which are encoded.
            b: As many codes or hidden parts.
            steps: Number of points on each line, both ends included, at least 2.

        Returns:
            Hidden parts (steps, B, *target_shape).

        Raises:
            ValueError: If ``steps`` is less than 2, or the two batches differ in shape.
        """
        with evaluation_mode(self):
            start, end = (c if c.shape[1:] == (self.latent_dim,) else self.encode(x, c) for c in (a, b))
        return self.complete(x, steps, z=lines_between(start, end, steps, self.prior).transpose(0, 1)).transpose(0, 1)

    # ---- what a step computes ---------------------------------------------------------------------------------------

    def _check_parts(self, x: Tensor, y: Tensor | None = None) -> None:
        for name, part, shape in (("observed", x, self.parts.observed_shape), ("hidden", y, self.parts.target_shape)):
            if part is not None and part.shape[1:] != shape:
                wanted = ", ".join(map(str, shape))
                raise ValueError(f"the {name} part must be of shape (B, {wanted}), got {tuple(part.shape)}")

    def inputs_of(self, batch: Any) -> tuple[Tensor, Tensor]:
        """The observed and the hidden parts of a batch."""
        pair = batch[:2] if isinstance(batch, list | tuple) else ()
        if len(pair) < 2 or not all(isinstance(part, Tensor) and part.is_floating_point() for part in pair):
            raise ValueError(
                "a ConditionalWAE needs batches (observed part, hidden part, ...) of float images, as "
                "HalfImageDataModule yields them"
            )
        self._check_parts(*pair)
        return pair[0].to(self.dtype), pair[1].to(self.dtype)

    def _features(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return self.encoder(*(self.noise.on_input(part) if self.training else part for part in pair))  # type: ignore[no-any-return]

    def compared(self, pair: tuple[Tensor, Tensor], code: Tensor) -> Tensor:
        """With ``match="joint"`` the features of x stand beside the codes, (n, d + p)."""
        code = in_full_precision(code)
        if self.match == "marginal":
            return code
        with torch.autocast(code.device.type, enabled=False):
            return torch.cat([code, in_full_precision(self.features(in_full_precision(pair[0])))], dim=1)

    def prior_like(self, compared: Tensor) -> Tensor:
        z_prior = super().prior_like(compared)
        return torch.cat([z_prior, compared[:, self.latent_dim :].detach()], dim=1)

    def terms(self, pair: tuple[Tensor, Tensor], code: Tensor) -> dict[str, Tensor]:
        completion = self.decode(pair[0], code[:: self.penalty.codes_per_input])
        return {"cost": self._mean_cost(pair[1], completion)}

    def configure_callbacks(self) -> list[Any]:
        callbacks = [*super().configure_callbacks(), MeasureCompletions(self.likelihood_images)]
        if isinstance(self.features, WhitenedPCA):
            callbacks.append(FitFeatures(self.features, lambda batch: self.inputs_of(batch)[0]))
        return callbacks

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> tuple[Tensor, Tensor]:
        """Returns codes (B, latent_dim) and reconstructions of the hidden parts."""
        x, y = self.inputs_of(batch)
        z = self.encode(x, y)
        return z, self.decode(x, z)
