"""The Wasserstein auto-encoder: an encoder, a decoder, a prior, a cost and a penalty, and what they are trained for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from wae_lightning.costs import Cost, SquaredError
from wae_lightning.drawing import evaluation_mode, lines_between, through_codes_or_z
from wae_lightning.loading import RecordedModel
from wae_lightning.memory import CodeMemory
from wae_lightning.networks import ConvDecoder, ConvEncoder, Flow, MixtureFlow
from wae_lightning.noise import EncoderNoise, FixedNoise, GaussianNoise
from wae_lightning.penalties import MMD, Adversarial, Penalty
from wae_lightning.precision import in_full_precision
from wae_lightning.priors import Normal, Prior
from wae_lightning.refinement import check_refine_steps, refine_codes
from wae_lightning.steps import Steps
from wae_lightning.training.inputs import check_image_shape, check_shape, input_of
from wae_lightning.training.optimizers import LRSchedulerCallable, OptimizerCallable

__all__ = ["WAE"]

REMEMBERED_CODES = 10_000
FLOW_CODES = 200  # the least that a flow learns from in one step


class WAE(RecordedModel, Steps):
    r"""Wasserstein auto-encoder.

    Minimises :math:`E\, c(X, G(Z)) + \lambda\, D(Q_Z, P_Z)`: a reconstruction cost plus a penalty on the difference
    between the distribution of the codes and the prior. I. Tolstikhin, O. Bousquet, S. Gelly, B. Schoelkopf,
    "Wasserstein auto-encoders", ICLR 2018, eq. 4.

    A step computes named terms, each in float32: ``cost``, ``penalty``, with a flow ``flow_loss``, and whatever a
    subclass adds. Each is logged under ``train/``, ``val/`` and ``test/``, beside ``loss`` = cost + penalty_weight ·
    penalty. With several validation or test loaders the names of the second one end in ``/dataloader_idx_1``.

    Args:
        encoder: Network (B, \*input) -> (B, d), or (B, 2d) with ``GaussianNoise``. None: ``ConvEncoder``.
        decoder: Network (B, d) -> (B, \*input). None: ``ConvDecoder`` with ``last_stride=2``.
        prior: Distribution of the codes. None: N(0, I) in ``latent_dim`` dimensions.
        cost: c. None: 0.05 · squared error, as in the authors' code.
        penalty: D. None: the MMD with the inverse multiquadric kernel.
        penalty_weight: λ, 0 or more.
        optimizer: Makes the optimizer from the parameters. None: Adam with learning rate 1e-3.
        lr_scheduler: Makes a learning-rate scheduler from the optimizer. ``OneCycleLR`` may be left without
            ``total_steps``: it then gets the number of steps of the run.
        lr_interval: Whether the scheduler steps after each ``epoch`` or after each ``step``; ``OneCycleLR`` always does
            the latter, ``ReduceLROnPlateau`` always the former, watching ``val/loss``.
        noise: How codes are drawn from the encoder's output. None: deterministic.
        standardize_codes: Standardise each latent dimension over the batch (batch norm without learned scale and
            shift), so that codes have the mean and the variance of a normal prior by construction. It comes before
            :class:`~wae_lightning.noise.FixedNoise`, whose share then stays, and after any other noise.
        pretrain_steps: At most so many steps of Adam that match mean and covariance of the codes to those of the prior
            before training, as in the authors' code (theirs: 200). It stops earlier once the two mean squared errors
            add up to less than 0.1.
        gather_codes: With several processes: compute the penalty on the codes of all of them, not on each one's own.
        code_queue: Number of past codes that join each batch in the penalty, for a better estimate with small batches.
            No gradient flows into them; the gradient of the present codes is scaled so that λ keeps its meaning.
        flow: Invertible network between the encoder's and decoder's own codes and z, which follows the prior; the prior
            must then be ``Normal``. It is trained by maximum likelihood on the codes, in the same step but without a
            gradient into the encoder: it minimises the Kullback-Leibler divergence of Q_Z from P_Z and costs the
            reconstruction nothing, since it cancels out of decoder(encoder(x)). ``encode`` and ``decode`` speak of z.
            ``penalty`` acts on the encoder's own codes.
        fit_flow: After how many epochs, and after the last (0: only then), a ``MixtureFlow`` is also fitted to codes
            of the training data, see :class:`~wae_lightning.training.FitFlow`. None: never.
        flow_noise: Standard deviation of the noise on the codes that the flow is trained on, positive: without it,
            the likelihood of a finite set has no bound.
        compile: Compile encoder and decoder with ``torch.compile`` when training starts; a string is its mode (not one
            with CUDA graphs). Needs a C++ compiler.
        image_shape: (channels, height, width) for the encoder or decoder that is left None.
        latent_dim: d for a prior that is left None; None means 8.
        input_range: Least and largest value of the inputs, (0, 1) or (-1, 1), which the default decoder keeps to, or
            None: any finite numbers. Batches are checked.
        input_key: Where the input lies in a batch that is a dictionary. Batches may also be a tensor, or a tuple or
            list that begins with the input.

    Raises:
        ValueError: If an argument is out of its range or two parts do not fit together.

    Example:
        >>> model = WAE(latent_dim=4)
        >>> model.encode(torch.rand(2, 1, 28, 28)).shape, model.sample(3).shape
        (torch.Size([2, 4]), torch.Size([3, 1, 28, 28]))
    """

    def __init__(
        self,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        prior: Prior | None = None,
        cost: Cost | None = None,
        penalty: Penalty | None = None,
        penalty_weight: float = 10.0,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
        noise: EncoderNoise | None = None,
        standardize_codes: bool = False,
        pretrain_steps: int = 0,
        gather_codes: bool = False,
        code_queue: int = 0,
        flow: Flow | None = None,
        flow_noise: float = 0.1,
        fit_flow: int | None = None,
        compile: bool | str | None = False,
        image_shape: Sequence[int] = (1, 28, 28),
        latent_dim: int | None = None,
        input_range: tuple[float, float] | None = (0.0, 1.0),
        input_key: str | int = "image",
    ) -> None:
        super().__init__()
        self.record_arguments()
        if not (penalty_weight >= 0 and math.isfinite(penalty_weight)):
            raise ValueError(f"penalty_weight must be 0 or more and finite, got {penalty_weight}")
        counts = ("pretrain_steps", pretrain_steps), ("code_queue", code_queue), ("fit_flow", fit_flow or 0)
        for name, count in counts:
            if count < 0:
                raise ValueError(f"{name} must be 0 or more, got {count}")
        if prior is not None and latent_dim not in (None, prior.latent_dim):
            raise ValueError(f"latent_dim is {latent_dim}, but the prior has {prior.latent_dim} dimensions")
        self.prior = Normal(8 if latent_dim is None else latent_dim) if prior is None else prior
        if standardize_codes and not isinstance(self.prior, Normal):
            raise ValueError(f"standardize_codes needs a Normal prior, got {type(self.prior).__name__}")
        d = self.prior.latent_dim
        if not flow_noise > 0:
            raise ValueError(f"flow_noise must be positive, got {flow_noise}")
        if flow is not None and (not isinstance(self.prior, Normal) or flow.dim != d):
            raise ValueError(f"the flow must have {d} dimensions and the prior be Normal, like z")
        if fit_flow is not None and not isinstance(flow, MixtureFlow):
            raise ValueError(f"fit_flow needs a MixtureFlow, got {type(flow).__name__}; without one, it is null (None)")
        self.input_range = None if input_range is None else (float(input_range[0]), float(input_range[1]))
        self.input_key = input_key
        self.noise = EncoderNoise() if noise is None else noise
        # a network may be empty, and then counts as false
        if encoder is None:
            encoder = ConvEncoder(image_shape, d * self.noise.features_per_dimension)
        if decoder is None:
            decoder = ConvDecoder(d, image_shape, last_stride=2, output_range=self.input_range)
        self.encoder, self.decoder = encoder, decoder
        self.standardize = nn.BatchNorm1d(d, affine=False) if standardize_codes else None
        self.flow = flow
        self.flow_noise = flow_noise
        self.fit_flow = fit_flow
        self.cost = SquaredError(scale=0.05) if cost is None else cost
        self.penalty = MMD() if penalty is None else penalty
        self.penalty.set_prior(self.prior)
        self.penalty_weight = penalty_weight
        self.make_optimizer = optimizer
        self.make_lr_scheduler = lr_scheduler
        self.lr_interval = lr_interval
        self.pretrain_steps = pretrain_steps
        self.gather_codes = gather_codes
        self.code_queue = code_queue
        self.compile_mode = compile or False
        self.memory = CodeMemory(max(REMEMBERED_CODES, code_queue))
        self._check_penalty()

    def _check_penalty(self) -> None:
        name = type(self.penalty).__name__
        if isinstance(self.penalty, Adversarial):
            self.automatic_optimization = False
            if self.gather_codes or self.code_queue:
                raise ValueError(f"gather_codes and code_queue are for penalties that compare samples, not {name}")
        if self.penalty.codes_per_input > 1 and not isinstance(self.noise, GaussianNoise):
            raise ValueError(f"{name} needs a Gaussian encoder, noise=GaussianNoise(); got {type(self.noise).__name__}")

    # ---- using the model --------------------------------------------------------------------------------------------

    @property
    def latent_dim(self) -> int:
        """Number of latent dimensions d."""
        return self.prior.latent_dim

    def encode(self, x: Tensor, noise: bool | None = None, refine_steps: int = 0) -> Tensor:
        """Encodes inputs.

        Args:
            x: Inputs (B, *input).
            noise: Whether to draw from the encoder's distribution or to take its mean. None: draw in training mode
                only. Without encoder noise there is no difference.
            refine_steps: By how many steps of gradient descent each code is then moved to where it reconstructs better
                in evaluation mode, see :func:`~wae_lightning.refinement.refine_codes`: 10 or 20 do most of it. No
                gradient flows through them.

        Returns:
            Codes (B, latent_dim).

        Raises:
            ValueError: If the encoder puts out another number of features than the prior and the noise need, or
                ``refine_steps`` is no number of steps.
        """
        code = self._refined(x, self._encode(x, self.training if noise is None else noise), refine_steps)
        return self._from_code(code, code[:, self.latent_dim :])

    def decode(self, z: Tensor) -> Tensor:
        """Decodes codes (B, latent_dim), on any device, to outputs (B, *output) on the model's.

        Raises:
            ValueError: If the codes have another shape.
        """
        z = self._codes(z)
        return self._decode(z if self.flow is None else self.flow.inverse(z / self.prior.scale))

    def _codes(self, z: Tensor) -> Tensor:
        check_shape("codes", z, (self.latent_dim,))
        return self.at_home(z)

    def at_home(self, x: Tensor) -> Tensor:
        """The same numbers on the model's device, in its floating-point type."""
        return x.to(device=self.device, dtype=self.dtype)  # type: ignore[arg-type]

    def forward(self, x: Tensor, refine_steps: int = 0) -> Tensor:
        """Reconstructs inputs (B, *input); ``refine_steps`` as in :meth:`encode`."""
        return self._decode(self._refined(x, self._encode(x, self.training), refine_steps))

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Decodes ``n`` draws from the prior, in evaluation mode.

        Args:
            n: How many, at least 1.
            generator: Source of the random numbers; None: the global one.

        Returns:
            Shape (n, *output), on the device of the model.

        Raises:
            ValueError: If ``n`` is not positive.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        with evaluation_mode(self):
            return self.decode(self.prior.sample(n, generator, self.device))

    @torch.no_grad()
    def interpolate(self, a: Tensor, b: Tensor, steps: int, through: Literal["codes", "z"] = "codes") -> Tensor:
        """Decodes points on the straight lines between two batches of codes (on a sphere: projected onto it).

        Args:
            a: Inputs (B, *input), or codes (B, latent_dim); what has the shape of codes is taken for codes.
            b: As many inputs or codes.
            steps: Number of points on each line, both ends included, at least 2.
            through: With a flow: straight in the encoder's own ``codes``, the evener way, or in ``z``, as priors draw.

        Returns:
            Shape (steps, B, *output).

        Raises:
            ValueError: If ``steps`` is less than 2 or the two batches differ in shape.
        """
        with evaluation_mode(self):
            start, end = (x if x.shape[1:] == (self.latent_dim,) else self.encode(x) for x in (a, b))
            start, end, decode = through_codes_or_z(self, start, end, through)
            decoded = decode(lines_between(start, end, steps, self.prior).flatten(0, 1))
        return decoded.view(steps, len(a), *decoded.shape[1:])

    @torch.no_grad()
    def training_codes(self) -> Tensor:
        """The codes of the latest 10,000 or so training examples as the encoder drew them, (n, latent_dim).

        They are part of a checkpoint, so that a mixture can be fitted to them where the training data is not at hand.

        Raises:
            ValueError: If the model has not been trained, or its checkpoint holds codes of another kind.
        """
        if not len(self.memory):
            raise ValueError("the model holds no training codes: it, or the checkpoint it is from, was not trained")
        rows = self.memory.all().to(self.device)
        codes, features = rows[:, : self.latent_dim], rows[:, self.latent_dim :]
        if codes.shape[1] < self.latent_dim or not rows.isfinite().all():
            raise ValueError(
                f"the training codes must be {self.latent_dim} finite numbers each: the checkpoint is damaged"
            )
        return self._from_code(codes, features)

    def _features(self, x: Any) -> Tensor:
        return self.encoder(self.noise.on_input(x) if self.training else x)  # type: ignore[no-any-return]

    def _encode(self, x: Any, noise: bool, codes_per_input: int = 1) -> Tensor:
        """The encoder's own codes, (B · codes_per_input, d)."""
        features = self._features(x)
        expected = self.latent_dim * self.noise.features_per_dimension
        if features.shape[1:] != (expected,):
            raise ValueError(
                f"the encoder must put out (B, {expected}) for {self.latent_dim} latent dimensions with "
                f"{type(self.noise).__name__}, got {tuple(features.shape)}"
            )
        if codes_per_input > 1:
            features = features.repeat_interleave(codes_per_input, dim=0)
        # a fixed share of noise is one of codes of variance 1: after it, a larger output of the encoder would shrink it
        before = isinstance(self.noise, FixedNoise)
        if self.standardize is not None and before:
            features = self.standardize(features)
        code = self.noise(features) if noise else self.noise.mean(features)
        if self.standardize is not None and not before:
            code = self.standardize(code)
        if isinstance(self.prior, Normal) and (self.standardize is not None or isinstance(self.noise, FixedNoise)):
            code = self.prior.scale * code  # both make codes of variance 1
        return self.prior.project(code)

    def _refined(self, x: Any, code: Tensor, steps: int) -> Tensor:
        """The encoder's own codes (B, d), moved by ``steps`` steps to where they cost less."""
        check_refine_steps(steps)
        if steps == 0:
            return code
        with evaluation_mode(self), torch.inference_mode(False):
            x = apply_to_collection(x, Tensor, Tensor.clone)  # a tensor of inference mode could not be differentiated
            return refine_codes(
                code, lambda c: self._costs(*self._reconstruction(x, self.at_home(c))), steps, self.prior
            )

    def _from_code(self, code: Tensor, features: Tensor) -> Tensor:
        """Maps the encoder's own codes (n, d) to z; ``features`` (n, p) stand beside them in what is compared."""
        return code if self.flow is None else self.prior.scale * self.flow.to_normal(code)

    def _decode(self, code: Tensor) -> Tensor:
        """Decodes the encoder's own codes, from which a flow cancels out."""
        return self.decoder(code)  # type: ignore[no-any-return]

    def try_out(self) -> Tensor:
        """Decodes a code of zeros, and encodes what comes of it; returns what was decoded, (1, *output)."""
        x = self._decode(torch.zeros(1, self.latent_dim))
        self._encode(x, noise=False)
        return x

    # ---- what a step computes ---------------------------------------------------------------------------------------

    def inputs_of(self, batch: Any) -> Any:
        """The input in a batch, (B, *input), in the model's floating-point type.

        Raises:
            ValueError: If there is none, or its shape is not the encoder's.
        """
        x = input_of(batch, self.input_key)
        if hasattr(self.encoder, "image_shape"):
            check_image_shape(x, self.encoder.image_shape)
        return x.to(self.dtype) if x.is_floating_point() else x

    def draw_codes(self, x: Any) -> Tensor:
        return self._encode(x, noise=True, codes_per_input=self.penalty.codes_per_input)

    def compared(self, x: Any, code: Tensor) -> Tensor:
        return in_full_precision(code)

    def prior_like(self, compared: Tensor) -> Tensor:
        return self.prior.sample(len(compared), device=compared.device).to(compared.dtype)

    def terms(self, x: Any, code: Tensor) -> dict[str, Tensor]:
        terms = {"cost": self._mean_cost(*self._reconstruction(x, code[:: self.penalty.codes_per_input]))}
        if self.flow is not None:
            rows = self.compared(x, code).detach()
            if self.training:
                # the codes of the last batches are nearly those of the present encoder
                rows = torch.cat([rows, self.memory.latest(FLOW_CODES - len(rows), like=rows)])
            codes, features = rows[:, : self.latent_dim], rows[:, self.latent_dim :]
            noisy = codes + self.flow_noise * torch.randn_like(codes)
            given = (features,) if self.flow.condition_features else ()
            terms["flow_loss"] = self.flow.loss(noisy, *given)
        return terms

    def _reconstruction(self, x: Any, code: Tensor) -> tuple[Tensor, Tensor]:
        """What the cost compares: what shall come out of the decoder, and what does."""
        return x, self._decode(code)

    def _mean_cost(self, target: Tensor, reconstruction: Tensor) -> Tensor:
        return self._costs(target, reconstruction).mean()

    def _costs(self, target: Tensor, reconstruction: Tensor) -> Tensor:
        """What each reconstruction costs, (B,), in float32 also under autocast."""
        with torch.autocast(target.device.type, enabled=False):
            cost: Tensor = self.cost(in_full_precision(target), in_full_precision(reconstruction))
        numbers = isinstance(cost, Tensor) and cost.is_floating_point()
        if not numbers or cost.shape != target.shape[:1]:
            found = f"shape {tuple(cost.shape)}" if numbers else f"{getattr(cost, 'dtype', type(cost).__name__)}"
            raise ValueError(
                f"a cost gives one number for each of the {len(target)} examples, shape ({len(target)},), as "
                f"SquaredError does; {type(self.cost).__name__} gave {found}"
            )
        return cost

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> tuple[Tensor, Tensor]:
        """Returns codes (B, latent_dim) and reconstructions of the inputs."""
        code = self._encode(self.inputs_of(batch), noise=False)
        return self._from_code(code, code[:, self.latent_dim :]), self._decode(code)
