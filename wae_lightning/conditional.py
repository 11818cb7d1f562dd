"""The conditional Wasserstein auto-encoder: completes an image from a part of it, in many plausible ways."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wae_lightning.base import WAE, in_full_precision
from wae_lightning.costs import BinaryCrossEntropy, Cost
from wae_lightning.image_parts import ImageParts, Observed
from wae_lightning.joint_mmd import JointMMD
from wae_lightning.metrics.completion import (
    CodeDependence,
    CompletionMetrics,
    binary_cross_entropy,
    negative_log_likelihood,
)
from wae_lightning.metrics.digit_classifier import DigitClassifier
from wae_lightning.networks.conditional import ConditionalMLPDecoder, ConditionalMLPEncoder, WhitenedPCA
from wae_lightning.networks.critic import Critic
from wae_lightning.noise import EncoderNoise, FixedNoise, GaussianNoise
from wae_lightning.penalties import MMD, Adversarial, CramerWold, Penalty
from wae_lightning.priors import Normal, Prior, Sphere

__all__ = ["ConditionalWAE"]


class _CodesAndFeatures(Prior):
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


class ConditionalWAE(WAE):
    r"""Completes an image x from an observed part of it: an encoder E(x, y), a decoder G(x, z) and a prior of z.

    .. math:: \min_{E, G}\; E\, c(Y, G(X, Z)) + \lambda\, D(Q_{\varphi(X), Z},\; P_{\varphi(X)} \otimes P_Z)

    The second term makes the code follow the prior whatever x is, so that z tells nothing about x and every draw from
    the prior gives a plausible target for every x: the conditional form of I. Tolstikhin et al., "Wasserstein
    auto-encoders", ICLR 2018, eq. 4. The features φ(x) are fixed. If only the distribution of z is matched
    (``match="marginal"``), x may be encoded in z a second time, and completions with z from the prior contradict x.

    ``mode="report"`` is the model of the course report: E(x) → z → y. The code is a function of x, there is no other
    source of variety, so each x has one completion only, an average of the possible ones.

    Batches are ``(observed, target, ...)``, floats in [0, 1]; a third element are labels, which serve the test only.
    Logged at the test, beside cost and penalty: the measures of :class:`CompletionMetrics
    <wae_lightning.metrics.CompletionMetrics>` on ten completions, those of :class:`CodeDependence
    <wae_lightning.metrics.CodeDependence>`, and on at most ``likelihood_images`` images in nats ``nll_prior`` (Monte
    Carlo over 100 codes from the prior) and, if q(z | x, y) has a density, ``nll`` (importance-weighted, 100 codes from
    it) and ``negative_elbo``. If the attribute ``label_net`` is set to a calibrated classifier of observed parts, (B,
    \*observed_shape) -> logits, the agreement and the label entropy that it would reach stand beside. Arguments that
    are not listed are those of :class:`~wae_lightning.base.WAE`.

    Args:
        encoder: Network (x, y) -> (B, d), or (B, 2d) with ``GaussianNoise``; of x alone in mode ``report``. None: two
            hidden layers of 512, and in mode ``conditional`` standardised outputs.
        decoder: Network (x, z) -> (B, \*target_shape) with values in [0, 1]; of z alone in mode ``report``. None: two
            hidden layers of 512.
        prior: Distribution of the codes. None: N(0, I) in ``latent_dim`` dimensions.
        cost: c. None: 0.05 · binary cross-entropy.
        penalty: D. With ``match="joint"`` it compares rows (z, φ(x)), and :class:`MMD <wae_lightning.penalties.MMD>`
            becomes :class:`JointMMD <wae_lightning.joint_mmd.JointMMD>` with its kernel. None: a critic, or the MMD
            where ``match`` is ``marginal``.
        penalty_weight: λ.
        noise: How codes are drawn from the encoder's output. None: ``FixedNoise(0.5)``, and none in mode ``report``.
        mode: ``conditional`` or ``report``.
        match: ``joint`` or ``marginal``. None: ``joint``, and ``marginal`` in mode ``report``.
        features: Network φ that maps x to (B, p), not trained. None: the first 16 principal components, whitened, which
            are computed from the training set before the first step.
        image_shape: (channels, height, width) of whole images.
        observed: Which part is observed, as in ``HalfImageDataModule``: ``top``, ``bottom``, ``left``, ``right``,
            ``1_quadrant``, ``2_quadrants`` or ``3_quadrants``.
        fraction: Share of the height or width that is observed.
        likelihood_images: At most so many test images serve for the likelihoods, the slowest measures.
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
        mode: Literal["conditional", "report"] = "conditional",
        match: Literal["joint", "marginal"] | None = None,
        features: nn.Module | None = None,
        image_shape: Sequence[int] = (1, 28, 28),
        observed: Observed = "top",
        fraction: float = 0.5,
        likelihood_images: int = 2000,
        latent_dim: int | None = None,
        **kwargs: Any,
    ) -> None:
        if mode not in ("conditional", "report"):
            raise ValueError(f"mode must be conditional or report, got {mode!r}")
        report = mode == "report"
        match = match or ("marginal" if report else "joint")
        if match not in ("joint", "marginal"):
            raise ValueError(f"match must be joint or marginal, got {match!r}")
        if report and match == "joint":
            raise ValueError("match must be marginal in mode report: a code that is a function of x depends on x")
        if kwargs.get("flow") is not None:
            raise ValueError("a conditional model has no flow: it would have to depend on the observed part")
        if likelihood_images < 0:
            raise ValueError(f"likelihood_images must be 0 or more, got {likelihood_images}")
        parts = ImageParts(image_shape, observed, fraction)
        d = prior.latent_dim if prior is not None else 8 if latent_dim is None else latent_dim
        noise = noise or (EncoderNoise() if report else FixedNoise(0.5))
        seen = [parts.observed_shape] if report else [parts.observed_shape, parts.target_shape]
        super().__init__(
            encoder=encoder
            or ConditionalMLPEncoder(seen, d * noise.features_per_dimension, standardize=isinstance(noise, FixedNoise)),
            decoder=decoder or ConditionalMLPDecoder(d, parts.target_shape, None if report else parts.observed_shape),
            prior=prior or Normal(d),
            cost=cost or BinaryCrossEntropy(scale=0.05),
            penalty_weight=penalty_weight,
            noise=noise,
            image_shape=image_shape,
            latent_dim=latent_dim,
            **kwargs,
        )
        self.mode: Literal["conditional", "report"] = mode
        self.match: Literal["joint", "marginal"] = match
        self.parts = parts
        self.likelihood_images = likelihood_images
        self.features = (features or _principal_components(parts.observed_shape)).requires_grad_(False)
        self.label_net: nn.Module | None = None
        self._use_penalty(penalty)
        self._completion_metrics: CompletionMetrics | None = None
        self._code_dependence: CodeDependence | None = None

    def _use_penalty(self, penalty: Penalty | None) -> None:
        p = _number_of_features(self.features, self.parts.observed_shape)
        if self.match == "marginal":
            self.penalty = penalty or MMD()
            self.penalty.set_prior(self.prior)
        else:
            if isinstance(penalty, MMD):
                penalty = JointMMD(penalty.kernel)
            log_prior = isinstance(penalty, Adversarial) and penalty.log_prior
            if log_prior or isinstance(penalty, CramerWold):
                name = "log_prior" if log_prior else "CramerWold"
                raise ValueError(f"{name} knows the density of codes alone: use it with match='marginal'")
            self.penalty = penalty or Adversarial(Critic(self.latent_dim + p, width=256))
            joint = isinstance(self.penalty, JointMMD)
            self.penalty.set_prior(self.prior if joint else _CodesAndFeatures(self.prior, p))
            if self.penalty.codes_per_input > 1:
                raise ValueError(f"{type(self.penalty).__name__} compares codes only: use it with match='marginal'")
            self._queue = torch.empty(0, self.latent_dim + p)
        self._check_penalty()

    # ---- using the model --------------------------------------------------------------------------------------------

    def encode(self, x: Tensor, y: Tensor | None = None, noise: bool | None = None) -> Tensor:  # type: ignore[override]
        """Encodes what completes an observed part.

        Args:
            x: Observed parts (B, *observed_shape).
            y: Hidden parts (B, *target_shape); not used in mode ``report``.
            noise: Whether to draw from q(z | x, y) or to take its mean. None: draw in training mode only.

        Returns:
            Codes (B, latent_dim).

        Raises:
            ValueError: If ``y`` is missing or a shape is wrong.
        """
        self._check_part("the observed part", x, self.parts.observed_shape)
        if self.mode == "conditional":
            if y is None:
                raise ValueError("encode needs the hidden part, too: encode(x, y)")
            self._check_part("the hidden part", y, self.parts.target_shape)
        return self._encode((x, y), self.training if noise is None else noise)

    def decode(self, x: Tensor, z: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Decodes codes to hidden parts.

        Args:
            x: Observed parts (B, *observed_shape).
            z: Codes (B, latent_dim). In mode ``report`` they are the only argument: ``decode(z)``.

        Returns:
            Hidden parts (B, *target_shape). Where the target is no rectangle, they are 0 outside of it.
        """
        if self.mode == "report":
            y = self.decoder(x if z is None else z)
        else:
            if z is None:
                raise ValueError("decode needs the observed part and the code: decode(x, z)")
            y = self.decoder(x, z)
        if self.parts.target_shape == self.parts.image_shape:
            y = y.masked_fill(self.parts.mask.to(y.device), 0)
        return y  # type: ignore[no-any-return]

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Reconstructs hidden parts (B, *target_shape) from both parts (in mode ``report`` from x alone)."""
        return self.decode(x, self.encode(x, y))

    @torch.no_grad()
    def complete(
        self, x: Tensor, n: int = 1, z: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Completes each observed part ``n`` times, each time with another code from the prior.

        In mode ``report`` the code is E(x), and the n completions are equal.

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
        self._check_part("the observed part", x, self.parts.observed_shape)
        size, d = len(x), self.latent_dim
        if self.mode == "report":
            if z is not None:
                raise ValueError("in mode report the code is E(x): complete takes no z")
            return self.decode(x, self.encode(x)).unsqueeze(1).expand(-1, n, -1, -1, -1)
        if z is None:
            z = self.prior.sample(size * n, generator, self.device)
        elif z.shape not in ((n, d), (size, n, d)):
            raise ValueError(
                f"z must be ({n}, {d}) or ({size}, {n}, {d}) for {size} observed parts and n = {n}, "
                f"got {tuple(z.shape)}"
            )
        else:
            z = z.expand(size, n, d).reshape(size * n, d)
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
            ValueError: If ``steps`` is less than 2, the two batches differ in shape, or in mode ``report``.
        """
        if self.mode == "report":
            raise ValueError("in mode report there is one completion only, and nothing to interpolate")
        if steps < 2:
            raise ValueError(f"steps must be at least 2, got {steps}")
        if a.shape != b.shape:
            raise ValueError(f"a and b must have one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
        start, end = (c if c.shape[1:] == (self.latent_dim,) else self.encode(x, c) for c in (a, b))
        weights = torch.linspace(0, 1, steps, device=start.device).view(-1, 1)
        lines = torch.lerp(start.unsqueeze(1), end.unsqueeze(1), weights)
        if isinstance(self.prior, Sphere):
            lines = self.prior.project(lines.flatten(0, 1)).view_as(lines)
        return self.complete(x, steps, z=lines).transpose(0, 1)

    def posterior(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor] | None:
        """Mean and standard deviation of the Gaussian q(z | x, y), each (B, latent_dim).

        Returns:
            None if q has no density (without noise, with input noise or implicit noise) or the prior is not normal.
        """
        random = isinstance(self.noise, FixedNoise | GaussianNoise)
        if not random or not isinstance(self.prior, Normal) or self.standardize is not None or self.mode == "report":
            return None
        features = self._features((x, y))
        mean = self.noise.mean(features)
        if isinstance(self.noise, GaussianNoise):
            return mean, self.noise.variance(features).sqrt()
        assert isinstance(self.noise, FixedNoise)
        return mean, torch.full_like(mean, self.noise.std)

    @torch.no_grad()
    def log_weights(self, x: Tensor, y: Tensor, n: int, prior: bool = False) -> Tensor:
        """Draws codes for each pair and returns their log importance weights, in nats.

        These are log p(y | x, z) + log p(z) - log q(z | x, y) at z from q, or log p(y | x, z) at z from the prior. For
        p(y | x, z) the pixels are independent Bernoulli variables with the decoder's output as means. The mean over the
        draws from q is the evidence lower bound.

        Args:
            x: Observed parts (B, *observed_shape).
            y: Hidden parts (B, *target_shape).
            n: How many codes, at least 1.
            prior: Draw from the prior, not from q.

        Returns:
            Shape (B, n).

        Raises:
            ValueError: If q has no density, and ``prior`` is False.
        """
        if prior:
            return -binary_cross_entropy(y.flatten(1), self.complete(x, n).flatten(2))
        posterior = self.posterior(x, y)
        if posterior is None:
            raise ValueError("q(z | x, y) has no density: noise must be FixedNoise or GaussianNoise, the prior normal")
        mean, std = (parameter.unsqueeze(1) for parameter in posterior)
        epsilon = torch.randn(len(x), n, self.latent_dim, device=x.device)
        z = mean + std * epsilon
        log_likelihood = -binary_cross_entropy(y.flatten(1), self.complete(x, n, z=z).flatten(2))
        log_q = -(0.5 * epsilon.square() + std.log() + 0.5 * math.log(2 * math.pi)).sum(2)
        return log_likelihood + self.prior.log_prob(z.flatten(0, 1)).view_as(log_q) - log_q

    # ---- training ---------------------------------------------------------------------------------------------------

    def _check_part(self, name: str, part: Tensor, shape: Sequence[int]) -> None:
        if part.shape[1:] != tuple(shape):
            wanted = ", ".join(map(str, shape))
            raise ValueError(f"{name} must be of shape (B, {wanted}), got {tuple(part.shape)}")

    def _input(self, batch: Any) -> tuple[Tensor, Tensor]:
        pair = batch[:2] if isinstance(batch, list | tuple) else ()
        if len(pair) < 2 or not all(isinstance(part, Tensor) and part.is_floating_point() for part in pair):
            raise ValueError(
                "a ConditionalWAE needs batches (observed part, hidden part, ...) of float images, as "
                "HalfImageDataModule yields them"
            )
        self._check_part("the observed part", pair[0], self.parts.observed_shape)
        self._check_part("the hidden part", pair[1], self.parts.target_shape)
        return pair[0].to(self.dtype), pair[1].to(self.dtype)

    def _check_range(self, pair: tuple[Tensor, Tensor]) -> None:
        for part in pair:
            super()._check_range(part)

    def _features(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        seen = pair[:1] if self.mode == "report" else pair
        return self.encoder(*(self.noise.on_input(part) if self.training else part for part in seen))  # type: ignore[no-any-return]

    def _codes_and_cost(self, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """As in the base class; with ``match="joint"`` the features of x stand beside the codes, (n, d + p)."""
        x, y = pair
        several = self.penalty.codes_per_input
        z = self._encode(pair, noise=True, codes_per_input=several)
        completion = self.decode(x, z[::several])
        with torch.autocast(x.device.type, enabled=False):
            cost = self.cost(in_full_precision(y), in_full_precision(completion)).mean()
            z = in_full_precision(z)
            if self.match == "joint":
                z = torch.cat([z, self.features(in_full_precision(x))], dim=1)
        return z, cost

    def _prior_like(self, z: Tensor) -> Tensor:
        z_prior = super()._prior_like(z)
        return torch.cat([z_prior, z[:, self.latent_dim :].detach()], dim=1)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if isinstance(self.features, WhitenedPCA) and not self.features.fitted:
            self.features.fit(self._observed_parts(10_000))
            for buffer in self.features.buffers():
                # the processes have seen different images
                buffer.copy_(self.trainer.strategy.broadcast(buffer))

    def _observed_parts(self, count: int) -> Tensor:
        """The first observed parts of the training set, without a trace in the random number generator."""
        self.trainer.fit_loop.setup_data()
        found: list[Tensor] = []
        with torch.random.fork_rng(devices=[]):
            for batch in self.trainer.train_dataloader or []:
                on_device = self.trainer.strategy.batch_to_device(batch, self.device, dataloader_idx=0)
                found.append(self._input(on_device)[0])
                if sum(map(len, found)) >= count:
                    break
        return torch.cat(found)

    def predict_step(self, batch: Any, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Returns codes (B, latent_dim) and reconstructions of the hidden parts."""
        x, y = self._input(batch)
        z = self.encode(x, y)
        return z, self.decode(x, z)

    # ---- the test ---------------------------------------------------------------------------------------------------

    def on_test_start(self) -> None:
        images = getattr(getattr(self.trainer, "datamodule", None), "images", None)
        digits = self.parts.image_shape == (1, 28, 28) and getattr(images, "variant", "mnist") == "mnist"
        classifier = DigitClassifier.pretrained() if digits else None
        self._completion_metrics = CompletionMetrics(self.parts.mask, classifier).to(self.device)
        self._code_dependence = CodeDependence().to(self.device)

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        outputs = super().test_step(batch, batch_idx)
        x, y = self._input(batch)
        labels = batch[2] if len(batch) > 2 and batch[2].ndim == 1 else None
        assert self._completion_metrics is not None
        assert self._code_dependence is not None
        completed = self.join(x.unsqueeze(1), self.complete(x, 10))
        probabilities = None if self.label_net is None else self.label_net(x).softmax(1)
        self._completion_metrics.update(self.join(x, y), completed, labels, probabilities)
        if not isinstance(self.features, WhitenedPCA) or self.features.fitted:
            self._code_dependence.update(self.features(x), self.encode(x, y, noise=True))
        if batch_idx * len(x) < self.likelihood_images:
            likelihoods = {"nll_prior": negative_log_likelihood(self.log_weights(x, y, 100, prior=True))}
            if self.posterior(x, y) is not None:
                weights = self.log_weights(x, y, 100)
                likelihoods |= {"nll": negative_log_likelihood(weights), "negative_elbo": -weights.mean(1)}
            self.log_dict(
                {f"test/{name}": value.mean() for name, value in likelihoods.items()},
                on_step=False,
                on_epoch=True,
                batch_size=len(x),
                sync_dist=True,
            )
        return outputs

    def on_test_epoch_end(self) -> None:
        assert self._completion_metrics is not None
        assert self._code_dependence is not None
        results = self._completion_metrics.compute()
        if self._code_dependence.update_count:
            results |= self._code_dependence.compute()
        self.log_dict({f"test/{name}": value for name, value in results.items()})
        # they hold a classifier that has no place in a checkpoint
        self._completion_metrics = self._code_dependence = None


def _principal_components(observed_shape: Sequence[int]) -> WhitenedPCA:
    return WhitenedPCA(min(16, math.prod(observed_shape)), observed_shape)


def _number_of_features(features: nn.Module, observed_shape: Sequence[int]) -> int:
    if isinstance(features, WhitenedPCA):
        return features.num_features
    with torch.no_grad():
        return int(features(torch.zeros(2, *observed_shape)).shape[1])
