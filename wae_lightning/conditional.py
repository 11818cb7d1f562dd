"""The conditional Wasserstein auto-encoder: draws y for a given x, in many plausible ways."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wae_lightning.base import WAE
from wae_lightning.costs import BinaryCrossEntropy, Cost
from wae_lightning.drawing import evaluation_mode, lines_between
from wae_lightning.joint_mmd import penalty_of_pairs
from wae_lightning.likelihood import ConditionalLikelihood
from wae_lightning.networks.conditional import (
    ConditionalMLPDecoder,
    ConditionalMLPEncoder,
    WhitenedPCA,
    number_of_features,
)
from wae_lightning.networks.flow import Flow, MixtureFlow
from wae_lightning.noise import EncoderNoise, FixedNoise
from wae_lightning.penalties import MMD, Penalty
from wae_lightning.precision import in_full_precision
from wae_lightning.priors import Normal, Prior
from wae_lightning.training.features import FitFeatures
from wae_lightning.training.inputs import check_counts, check_positive, check_shape, one_hot

__all__ = ["ConditionalWAE"]


class ConditionalWAE(ConditionalLikelihood, WAE):
    r"""Draws targets y given conditions x: an encoder E(x, y), a decoder G(x, z) and a prior of z.

    .. math:: \min_{E, G}\; E\, c(Y, G(X, Z)) + \lambda\, D(Q_{\varphi(X), Z},\; P_{\varphi(X)} \otimes P_Z)

    The second term makes the code follow the prior whatever x is, so that z tells nothing about x and every draw from
    the prior gives a plausible target for every x: the conditional form of I. Tolstikhin et al., "Wasserstein
    auto-encoders", ICLR 2018, eq. 4. The features φ(x) are fixed. If only the distribution of z is matched
    (``match="marginal"``), x may be encoded in z a second time, and targets with z from the prior contradict x.

    x may be a part of an image, one of low resolution, attributes, a label: anything of one shape. With ``num_classes``
    conditions are integers (B,), which the networks see as one-hot vectors; such vectors (B, num_classes) may be given
    in their place. Batches are ``(condition, target, ...)``; what follows serves measures and pictures only. Arguments
    that are not listed are those of :class:`~wae_lightning.base.WAE`.

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
        features: Network φ that maps x to (B, p), not trained. None: x itself, if it is a vector or a label; else the
            first 16 principal components, whitened, which are computed from the training set before the first step.
        flow: As in ``WAE``. With ``condition_features`` = p it is a map of codes given φ(x), so that draws for this x
            follow the codes of this x; ``match`` must then be ``joint``. A ``MixtureFlow`` takes labels only.
        condition_shape: Shape of one condition. The two defaults are upper and lower halves of MNIST's digits.
        target_shape: Shape of one target.
        num_classes: Number of labels, if conditions are labels; ``condition_shape`` is then ``(num_classes,)``.

    Raises:
        ValueError: If an argument is out of its range or two parts do not fit together.

    Example:
        >>> ConditionalWAE().complete(torch.rand(2, 1, 14, 28), 5).shape
        torch.Size([2, 5, 1, 14, 28])
        >>> ConditionalWAE(num_classes=10, target_shape=(1, 28, 28)).complete([3, 7], 5).shape
        torch.Size([2, 5, 1, 28, 28])
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
        flow: Flow | None = None,
        condition_shape: Sequence[int] = (1, 14, 28),
        target_shape: Sequence[int] = (1, 14, 28),
        num_classes: int | None = None,
        latent_dim: int | None = None,
        **kwargs: Any,
    ) -> None:
        if match not in ("joint", "marginal"):
            raise ValueError(f"match must be one of joint, marginal, got {match!r}")
        if num_classes is not None and num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        condition_shape = (num_classes,) if num_classes else tuple(condition_shape)
        target_shape = tuple(target_shape)
        check_positive(condition_shape=condition_shape, target_shape=target_shape)
        d = prior.latent_dim if prior is not None else 8 if latent_dim is None else latent_dim
        noise = FixedNoise(0.5) if noise is None else noise
        features_per_code = d * noise.features_per_dimension
        shapes, standardize = [condition_shape, target_shape], isinstance(noise, FixedNoise)
        if encoder is None:
            encoder = ConditionalMLPEncoder(shapes, features_per_code, standardize=standardize)
        super().__init__(
            encoder=encoder,
            decoder=ConditionalMLPDecoder(d, target_shape, condition_shape) if decoder is None else decoder,
            prior=Normal(d) if prior is None else prior,
            cost=BinaryCrossEntropy(scale=0.05) if cost is None else cost,
            penalty_weight=penalty_weight,
            noise=noise,
            flow=flow,
            latent_dim=latent_dim,
            **kwargs,
        )
        self.match: Literal["joint", "marginal"] = match
        self.condition_shape: tuple[int, ...] = condition_shape
        self.target_shape: tuple[int, ...] = target_shape
        self.num_classes = num_classes
        p = min(16, math.prod(condition_shape))
        if features is None:
            features = nn.Identity() if len(condition_shape) == 1 else WhitenedPCA(p, condition_shape)
        self.features = features.requires_grad_(False)
        p = number_of_features(features, condition_shape) if match == "joint" else 0
        p_of_flow = p if num_classes or not isinstance(flow, MixtureFlow) else 0
        if flow is not None and (found := flow.condition_features) not in (0, p_of_flow):
            raise ValueError(f"the flow must have condition_features {p_of_flow} or 0 with {match=}, got {found}")
        if match == "marginal":
            self.penalty = MMD() if penalty is None else penalty
            self.penalty.set_prior(self.prior)
        else:
            self.penalty = penalty_of_pairs(penalty, self.prior, p, classes=num_classes is not None)
        self._check_penalty()

    # ---- using the model --------------------------------------------------------------------------------------------

    def encode(self, x: Any, y: Tensor | None = None, noise: bool | None = None) -> Tensor:  # type: ignore[override]
        """Encodes what x does not tell of y.

        Args:
            x: Conditions (B, *condition_shape), or labels (B,).
            y: Targets (B, *target_shape).
            noise: Whether to draw from q(z | x, y) or to take its mean. None: draw in training mode only.

        Returns:
            Codes (B, latent_dim).

        Raises:
            ValueError: If ``y`` is missing, a shape is wrong, or a label is none.
        """
        if y is None:
            raise ValueError("encode needs the target, too: encode(x, y)")
        pair = self._pair(x, y)
        code = self._encode(pair, self.training if noise is None else noise)
        return code if self.flow is None else self._from_code(code, self._phi(pair[0]))

    def decode(self, x: Any, z: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Decodes codes (B, latent_dim), on any device, given conditions: targets (B, *target_shape).

        A code of one target with another condition transfers its style: ``decode(labels, encode(its_label, image))``.
        """
        if z is None:
            raise ValueError("decode needs the condition and the code: decode(x, z)")
        x, z = self._condition(x), self._codes(z)
        check_counts(x, z, "codes")
        if self.flow is not None:
            z = self.flow.inverse(z / self.prior.scale, *self._given(self._phi(x)))
        return self.decoder(x, z)  # type: ignore[no-any-return]

    def try_out(self) -> Tensor:
        x, z = torch.zeros(1, *self.condition_shape), torch.zeros(1, self.latent_dim)
        y = self.decoder(x, z)
        self._encode((x, y), noise=False)
        return y  # type: ignore[no-any-return]

    def forward(self, x: Any, y: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Reconstructs targets (B, *target_shape)."""
        return self.decode(x, self.encode(x, y))

    @torch.no_grad()
    def complete(self, x: Any, n: int = 1, z: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Draws ``n`` targets for each condition, each with another code from the prior, in evaluation mode.

        Args:
            x: Conditions (B, *condition_shape), or labels: int64 (B,) or a list of integers.
            n: How many targets for each, at least 1.
            z: Codes instead of draws from the prior: (n, latent_dim), the same for each x, or (B, n, latent_dim).
            generator: Source of the random numbers; None: the global one.

        Returns:
            Shape (B, n, *target_shape).

        Raises:
            ValueError: If ``n`` is not positive, a shape is wrong, or a label is none.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        x = self._condition(x)
        size, d = len(x), self.latent_dim
        if z is None:
            z = self.prior.sample(size * n, generator, self.device)
        elif z.shape not in ((n, d), (size, n, d)):
            raise ValueError(
                f"z must be ({n}, {d}) or ({size}, {n}, {d}) for {size} conditions and n = {n}, got {tuple(z.shape)}"
            )
        else:
            z = z.expand(size, n, d).reshape(size * n, d)
        with evaluation_mode(self):
            return self.decode(x.repeat_interleave(n, dim=0), z).view(size, n, *self.target_shape)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Not for this model: a sample needs a condition. Use :meth:`complete`."""
        raise ValueError("a ConditionalWAE samples given a condition only: use complete(x, n)")

    @torch.no_grad()
    def interpolate(self, x: Any, a: Tensor, b: Tensor, steps: int) -> Tensor:  # type: ignore[override]
        """Leads from one target to another of the same condition, on the straight line between their codes.

        Args:
            x: Conditions (B, *condition_shape), or labels (B,).
            a: Codes (B, latent_dim), or targets (B, *target_shape), which are encoded; what has the shape of codes is
                taken for codes.
            b: As many codes or targets.
            steps: Number of points on each line, both ends included, at least 2.

        Returns:
            Targets (steps, B, *target_shape).

        Raises:
            ValueError: If ``steps`` is less than 2, or the two batches differ in shape.
        """
        with evaluation_mode(self):
            start, end = (c if c.shape[1:] == (self.latent_dim,) else self.encode(x, c) for c in (a, b))
        return self.complete(x, steps, z=lines_between(start, end, steps, self.prior).transpose(0, 1)).transpose(0, 1)

    # ---- what a step computes ---------------------------------------------------------------------------------------

    def _condition(self, x: Any) -> Tensor:
        """Conditions as the networks see them: floats (B, *condition_shape), one-hot of labels."""
        if self.num_classes and not (isinstance(x, Tensor) and x.is_floating_point() and x.ndim == 2):
            x = one_hot(x, self.num_classes, self.device)
        check_shape("condition", x, self.condition_shape)
        return self.at_home(x)

    def _pair(self, x: Any, y: Tensor) -> tuple[Tensor, Tensor]:
        x = self._condition(x)
        check_shape("target", y, self.target_shape)
        check_counts(x, y, "targets")
        return x, self.at_home(y)

    def inputs_of(self, batch: Any) -> tuple[Tensor, Tensor]:
        """The conditions of a batch, as the networks see them, and its targets."""
        pair = batch[:2] if isinstance(batch, list | tuple) else ()
        if len(pair) < 2 or not all(isinstance(part, Tensor) for part in pair) or not pair[1].is_floating_point():
            raise ValueError(
                "a ConditionalWAE needs batches (condition, target, ...) of tensors, the targets floats, as "
                "HalfImageDataModule or LabelDataModule yield them"
            )
        return self._pair(*pair)

    def tensors_in_range(self, batch: Any) -> tuple[Tensor, ...]:
        x, y = self.inputs_of(batch)
        return (y, x) if x.ndim == y.ndim or self.num_classes else (y,)

    def _features(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return self.encoder(*(self.noise.on_input(part) if self.training else part for part in pair))  # type: ignore[no-any-return]

    def _phi(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return in_full_precision(self.features(in_full_precision(x)))

    def _from_code(self, code: Tensor, features: Tensor) -> Tensor:
        if self.flow is None:
            return code
        return self.prior.scale * self.flow.to_normal(code, *self._given(features))  # type: ignore[no-any-return]

    def _given(self, features: Tensor) -> tuple[Tensor, ...]:
        return (features,) if self.flow is not None and self.flow.condition_features else ()

    def compared(self, pair: tuple[Tensor, Tensor], code: Tensor) -> Tensor:
        """With ``match="joint"`` the features of x stand beside the codes, (n, d + p)."""
        code = in_full_precision(code)
        return code if self.match == "marginal" else torch.cat([code, self._phi(pair[0])], dim=1)

    def prior_like(self, compared: Tensor) -> Tensor:
        z_prior = super().prior_like(compared)
        return torch.cat([z_prior, compared[:, self.latent_dim :].detach()], dim=1)

    def _reconstruction(self, pair: tuple[Tensor, Tensor], code: Tensor) -> tuple[Tensor, Tensor]:
        return pair[1], self.decoder(pair[0], code)

    def configure_callbacks(self) -> list[Any]:
        pca = self.features if isinstance(self.features, WhitenedPCA) else None
        own = [FitFeatures(pca, lambda batch: self.inputs_of(batch)[0])] if pca is not None else []
        return [*super().configure_callbacks(), *own]

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> tuple[Tensor, Tensor]:
        """Returns codes (B, latent_dim) and reconstructions of the targets."""
        x, y = self.inputs_of(batch)
        z = self.encode(x, y)
        return z, self.decode(x, z)
