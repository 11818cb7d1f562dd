"""The Wasserstein auto-encoder: an encoder, a decoder, a prior, a cost and a penalty, and how they are trained."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import itertools
import math
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import fsspec
import torch
import torch.distributed
import torch.distributed.nn.functional
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from wae_lightning.checkpoints import check_classes
from wae_lightning.costs import Cost, SquaredError
from wae_lightning.finite import first_bad_module, first_bad_weights
from wae_lightning.lightning import LightningModule
from wae_lightning.networks import ConvDecoder, ConvEncoder, Flow
from wae_lightning.noise import EncoderNoise, GaussianNoise
from wae_lightning.penalties import MMD, Penalty
from wae_lightning.penalties.adversarial import Adversarial, LRSchedulerCallable, OptimizerCallable
from wae_lightning.priors import Normal, Prior, Sphere

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["WAE"]

REMEMBERED_CODES = 10_000
FLOW_CODES = 200  # the least that a flow learns from in one step
_PLAIN = (bool, int, float, str, type(None))


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(type(key) is str and _is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    # neither an enum's member nor NumPy's number, which count as strings and floats but are objects in a checkpoint
    return type(value) in _PLAIN


def in_full_precision(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class WAE(LightningModule):
    r"""Wasserstein auto-encoder.

    Minimises :math:`E\, c(X, G(Z)) + \lambda\, D(Q_Z, P_Z)`: a reconstruction cost plus a penalty on the difference
    between the distribution of the codes and the prior. I. Tolstikhin, O. Bousquet, S. Gelly, B. Schoelkopf,
    "Wasserstein auto-encoders", ICLR 2018, eq. 4.

    Batches are a tensor, or a tuple or list whose first element is the input, (B, \*input), floats in [0, 1]. Cost and
    penalty are computed in float32 also under mixed precision. Logged are ``cost`` and ``penalty`` under ``train/``
    (every ``log_every_n_steps`` of the trainer, and at an epoch's first and last step), ``val/`` and ``test/``, and for
    the latter two ``loss`` = cost + penalty_weight · penalty.

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
            shift), so that codes have the mean and the variance of a normal prior by construction.
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
            ``penalty`` acts on the encoder's own codes in training; in validation and test it is that of z.
        flow_noise: Standard deviation of the noise on the codes that the flow is trained on, positive: without it,
            the likelihood of a finite set has no bound.
        compile: Compile encoder and decoder with ``torch.compile`` when training starts; a string is its mode, such as
            ``reduce-overhead`` (CUDA graphs, for small networks on a GPU). Needs a C++ compiler.
        image_shape: (channels, height, width) for the encoder or decoder that is left None.
        latent_dim: d for a prior that is left None; None means 8.

    Raises:
        ValueError: If an argument is out of its range or two parts do not fit together.

    Example:
        >>> model = WAE(latent_dim=4)
        >>> model.encode(torch.rand(2, 1, 28, 28)).shape, model.sample(3).shape
        (torch.Size([2, 4]), torch.Size([3, 1, 28, 28]))
    """

    prior: Prior
    cost: Cost
    penalty: Penalty
    lr: float | None = None
    """Learning rate that replaces the one of ``optimizer``; this is where Lightning's learning-rate finder puts its."""

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
        compile: bool | str = False,
        image_shape: Sequence[int] = (1, 28, 28),
        latent_dim: int | None = None,
    ) -> None:
        super().__init__()
        with warnings.catch_warnings():
            # Lightning warns of modules among the hyper-parameters; they are dropped two lines below
            warnings.filterwarnings("ignore", message=".*is an instance of `nn.Module`")
            self.save_hyperparameters()
        self._keep_plain_hyperparameters()

        if not (penalty_weight >= 0 and math.isfinite(penalty_weight)):
            raise ValueError(f"penalty_weight must be 0 or more and finite, got {penalty_weight}")
        for name, count in (("pretrain_steps", pretrain_steps), ("code_queue", code_queue)):
            if count < 0:
                raise ValueError(f"{name} must be 0 or more, got {count}")
        if prior is not None and latent_dim not in (None, prior.latent_dim):
            raise ValueError(f"latent_dim is {latent_dim}, but the prior has {prior.latent_dim} dimensions")
        self.prior = prior or Normal(8 if latent_dim is None else latent_dim)
        if standardize_codes and not isinstance(self.prior, Normal):
            raise ValueError(f"standardize_codes needs a Normal prior, got {type(self.prior).__name__}")
        d = self.prior.latent_dim
        if not flow_noise > 0:
            raise ValueError(f"flow_noise must be positive, got {flow_noise}")
        if flow is not None and (not isinstance(self.prior, Normal) or flow.dim != d):
            raise ValueError(f"the flow must have {d} dimensions and the prior be Normal, like z")
        self.noise = noise or EncoderNoise()
        self.encoder = encoder or ConvEncoder(image_shape, d * self.noise.features_per_dimension)
        self.decoder = decoder or ConvDecoder(d, image_shape, last_stride=2)
        self.standardize = nn.BatchNorm1d(d, affine=False) if standardize_codes else None
        self.flow = flow
        self.flow_noise = flow_noise
        self.cost = cost or SquaredError(scale=0.05)
        self.penalty = penalty or MMD()
        self.penalty.set_prior(self.prior)
        self.penalty_weight = penalty_weight
        self.make_optimizer = optimizer
        self.make_lr_scheduler = lr_scheduler
        self.lr_interval = lr_interval
        self.pretrain_steps = pretrain_steps
        self.gather_codes = gather_codes
        self.code_queue = code_queue
        self.compile_mode = compile
        self._queue = torch.empty(0, d)
        self._accumulated_codes: list[Tensor] = []
        self._latest: deque[Tensor] = deque()
        self._latest_count = 0
        self._flow_values: dict[str, Tensor] = {}
        self._unchecked_terms: list[tuple[Tensor, Tensor]] = []
        self._evaluated: list[tuple[int, dict[str, Tensor]]] = []
        self._taken_from_trainer: tuple[Any, int] | None = None
        self._rng_state: Tensor | None = None
        self._rng_state_cuda: Tensor | None = None
        self._check_penalty()

    def _check_penalty(self) -> None:
        name = type(self.penalty).__name__
        if isinstance(self.penalty, Adversarial):
            self.automatic_optimization = False
            if self.gather_codes or self.code_queue:
                raise ValueError(f"gather_codes and code_queue are for penalties that compare samples, not {name}")
        if self.penalty.codes_per_input > 1 and not isinstance(self.noise, GaussianNoise):
            raise ValueError(f"{name} needs a Gaussian encoder, noise=GaussianNoise(); got {type(self.noise).__name__}")

    def _keep_plain_hyperparameters(self) -> None:
        """Drops what is not a number, a string or a class_path dictionary: checkpoints must load as plain data."""
        for stored in (vars(self)["_hparams"], vars(self)["_hparams_initial"]):
            for name in [name for name, value in stored.items() if not _is_plain(value)]:
                del stored[name]

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        strict: bool | None = None,
        weights_only: bool | None = True,
        **arguments: Any,
    ) -> Self:
        """Loads a model that ``train.py``, or any trainer, has saved; it needs no argument but the path.

        A checkpoint is read as plain data. It may name classes that you have imported, your own ones included, and
        nothing else: see :func:`wae_lightning.checkpoints.check_classes`.

        Args:
            checkpoint_path: A path, a URL, or an open binary file.
            map_location: Device, or torch's other ways to name one.
            hparams_file: YAML or CSV file to take instead of the hyper-parameters in the checkpoint.
            strict: Whether the weights must be exactly those of the model; None: the model's own choice.
            weights_only: False also unpickles objects, which can run any code: only for files that you trust.
            **arguments: Arguments of the model, to take instead of what the checkpoint says.

        Raises:
            ValueError: If the checkpoint names a class that is not imported, or not a part of a model.
        """
        name = "the checkpoint"
        if not hasattr(checkpoint_path, "read"):
            name = str(checkpoint_path)
            # what is checked must be what is loaded
            with fsspec.open(name, "rb") as file:
                checkpoint_path = io.BytesIO(file.read())
        start = checkpoint_path.tell()
        checkpoint = torch.load(checkpoint_path, map_location="meta", weights_only=weights_only)
        checkpoint_path.seek(start)
        for part in ("hyper_parameters", "hparams", "module_arguments"):  # the last two: old versions of Lightning
            stored = dict(checkpoint.get(part, {}))
            try:
                check_classes({key: value for key, value in stored.items() if key not in arguments})
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        return super().load_from_checkpoint(
            checkpoint_path,
            map_location=map_location,
            hparams_file=hparams_file,
            strict=strict,
            weights_only=weights_only,
            **arguments,
        )

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning notes in it which hook runs, some forty times a step, and a module searches its weights for the name
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    # ---- using the model --------------------------------------------------------------------------------------------

    @property
    def latent_dim(self) -> int:
        """Number of latent dimensions d."""
        return self.prior.latent_dim

    def encode(self, x: Tensor, noise: bool | None = None) -> Tensor:
        """Encodes inputs.

        Args:
            x: Inputs (B, *input).
            noise: Whether to draw from the encoder's distribution or to take its mean. None: draw in training mode
                only. Without encoder noise there is no difference.

        Returns:
            Codes (B, latent_dim).

        Raises:
            ValueError: If the encoder puts out another number of features than the prior and the noise need.
        """
        return self._from_code(self._encode(x, self.training if noise is None else noise))

    def _features(self, x: Any) -> Tensor:
        return self.encoder(self.noise.on_input(x) if self.training else x)  # type: ignore[no-any-return]

    def _encode(self, x: Any, noise: bool, codes_per_input: int = 1) -> Tensor:
        features = self._features(x)
        expected = self.latent_dim * self.noise.features_per_dimension
        if features.shape[1:] != (expected,):
            raise ValueError(
                f"the encoder must put out (B, {expected}) for {self.latent_dim} latent dimensions with "
                f"{type(self.noise).__name__}, got {tuple(features.shape)}"
            )
        if codes_per_input > 1:
            features = features.repeat_interleave(codes_per_input, dim=0)
        z = self.noise(features) if noise else self.noise.mean(features)
        if self.standardize is not None:
            z = self.prior.scale * self.standardize(z)
        return self.prior.project(z)

    def decode(self, z: Tensor) -> Tensor:
        """Decodes codes (B, latent_dim) to outputs (B, *output)."""
        return self._decode(z if self.flow is None else self.flow.inverse(z / self.prior.scale))

    def _from_code(self, code: Tensor) -> Tensor:
        """Maps the encoder's own codes to z."""
        return code if self.flow is None else self.prior.scale * self.flow(code)[0]

    def _decode(self, code: Tensor) -> Tensor:
        """Decodes the encoder's own codes, from which a flow cancels out."""
        return self.decoder(code)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Reconstructs inputs (B, *input)."""
        return self._decode(self._encode(x, self.training))

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Decodes ``n`` draws from the prior.

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
        return self.decode(self.prior.sample(n, generator, self.device))

    @torch.no_grad()
    def interpolate(self, a: Tensor, b: Tensor, steps: int) -> Tensor:
        """Decodes points on the straight lines between two batches of codes (on a sphere: projected onto it).

        Args:
            a: Inputs (B, *input), or codes (B, latent_dim).
            b: As many inputs or codes.
            steps: Number of points on each line, both ends included, at least 2.

        Returns:
            Shape (steps, B, *output).

        Raises:
            ValueError: If ``steps`` is less than 2 or the two batches differ in shape.
        """
        if steps < 2:
            raise ValueError(f"steps must be at least 2, got {steps}")
        if a.shape != b.shape:
            raise ValueError(f"a and b must have one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
        start, end = (x if x.shape[1:] == (self.latent_dim,) else self.encode(x) for x in (a, b))
        weights = torch.linspace(0, 1, steps, device=start.device).view(-1, 1, 1)
        lines = torch.lerp(start.expand(steps, -1, -1), end.expand(steps, -1, -1), weights)
        if isinstance(self.prior, Sphere):
            lines = self.prior.project(lines.flatten(0, 1)).view_as(lines)
        decoded = self.decode(lines.flatten(0, 1))
        return decoded.view(steps, len(a), *decoded.shape[1:])

    @torch.no_grad()
    def training_codes(self) -> Tensor:
        """The codes of the latest 10,000 or so training examples as the encoder drew them, (n, latent_dim).

        They are part of a checkpoint, so that a mixture can be fitted to them where the training data is not at hand.

        Raises:
            ValueError: If the model has not been trained.
        """
        if not self._latest:
            raise ValueError("the model holds no training codes: it, or the checkpoint it is from, was not trained")
        return self._from_code(torch.cat(tuple(self._latest)))

    # ---- training ---------------------------------------------------------------------------------------------------

    def _input(self, batch: Any) -> Any:
        x = batch[0] if isinstance(batch, list | tuple) else batch
        if not isinstance(x, Tensor):
            raise ValueError(f"a batch must be a tensor, or a tuple that begins with one, got {type(x).__name__}")
        return x.to(self.dtype) if x.is_floating_point() else x

    def _check_range(self, x: Any) -> None:
        if not x.is_floating_point() or not x.min() >= 0 or not x.max() <= 1:
            raise ValueError(
                f"the input must be floats in [0, 1], like the decoder's output; got {x.dtype} in "
                f"[{x.min():.4g}, {x.max():.4g}]"
            )

    def _check_batch_size(self, batch: Any) -> None:
        first = batch[0] if isinstance(batch, list | tuple) else batch
        alone = len(first) * self.penalty.codes_per_input < 2 and not self.code_queue
        if alone and not isinstance(self.penalty, Adversarial):
            name = type(self.penalty).__name__
            raise ValueError(f"{name} needs at least 2 codes in a batch, got {len(first)}: raise the batch size")

    def _codes_and_cost(self, x: Any) -> tuple[Tensor, Tensor]:
        """Returns what the penalty is of, in full precision, and the mean cost.

        These are the encoder's own codes in training, and z at other times; ``codes_per_input`` in a row for each
        input.
        """
        several = self.penalty.codes_per_input
        code = self._encode(x, noise=True, codes_per_input=several)
        reconstruction = self._decode(code[::several])
        with torch.autocast(x.device.type, enabled=False):
            cost = self.cost(in_full_precision(x), in_full_precision(reconstruction)).mean()
        code = in_full_precision(code)
        if not self.training:
            return self._from_code(code), cost
        return code, cost if self.flow is None else self._with_gradient_for_flow(self.flow, code, cost)

    def _with_gradient_for_flow(self, flow: Flow, code: Tensor, cost: Tensor) -> Tensor:
        # the codes of the last batches are nearly those of the present encoder
        codes = torch.cat([code.detach(), *self._codes_of_last_batches(FLOW_CODES - len(code))])
        loss: Tensor = -flow.log_prob(codes + self.flow_noise * torch.randn_like(codes)).mean() / self.latent_dim
        self._flow_values["train/flow_loss"] = value = loss.detach()
        # the flow has parameters of its own: only the gradient joins the cost, its value stays the reconstruction's
        return cost + loss - value

    def _prior_like(self, z: Tensor) -> Tensor:
        return self.prior.sample(len(z), device=z.device).to(z.dtype)

    def _penalty(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            return self.penalty(z, self._prior_like(z))  # type: ignore[no-any-return]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        x = self._input(batch)
        if batch_idx == 0 and self.current_epoch == 0:
            self._check_range(x)
            self._check_batch_size(batch)
        z, cost = self._codes_and_cost(x)
        self._remember(z)
        if isinstance(self.penalty, Adversarial):
            self._train_with_critic(self.penalty, z, cost, batch_idx)
            return None
        penalty = self._penalty(self._with_other_codes(z))
        self._unchecked_terms.append((cost.detach(), penalty.detach()))
        self._log_step({"train/cost": cost, "train/penalty": penalty})
        return cost + self.penalty_weight * penalty

    # Lightning looks at it before every step, and inspect would build it anew each time
    training_step.__signature__ = inspect.signature(training_step)  # type: ignore[attr-defined]

    def _log_step(self, values: dict[str, Tensor]) -> None:
        """Logs a training step's values, cost and penalty also to the progress bar, if the logger will take them.

        Lightning's bookkeeping takes as long for each value as a small layer, so it is left out where nobody reads it.
        """
        trainer: Any = self.trainer
        loop, every = trainer.fit_loop.epoch_loop, trainer.log_every_n_steps
        logged = every and (loop._batches_that_stepped + 1) % every == 0  # as Lightning counts
        if logged or loop.batch_idx == 0 or loop.batch_progress.is_last_batch:
            for name, value in (self._flow_values | values).items():
                self.log(name, value.detach(), prog_bar=name in ("train/cost", "train/penalty"))

    def _remember(self, z: Tensor) -> None:
        # on a GPU a copy: with CUDA graphs the next step overwrites z
        self._latest.append(z.detach().clone() if z.is_cuda else z.detach())
        self._latest_count += len(z)
        if self._latest_count - len(self._latest[0]) >= REMEMBERED_CODES:
            self._latest_count -= len(self._latest.popleft())

    def _codes_of_last_batches(self, count: int) -> Iterator[Tensor]:
        for batch in reversed(self._latest):
            if count <= 0:
                return
            yield batch[-count:].to(self.device)
            count -= len(batch)

    def _with_other_codes(self, z: Tensor) -> Tensor:
        """Joins the codes of the other processes and the past codes to those of this batch."""
        if self.gather_codes and self.trainer.world_size > 1:
            z = torch.cat(torch.distributed.nn.functional.all_gather(z.contiguous()))  # type: ignore[no-untyped-call]
        if not self.code_queue:
            return z
        past = self._queue.to(z)
        self._queue = torch.cat([z.detach(), past])[: self.code_queue]
        # of n + q codes only n follow the encoder; unscaled, they would get n / (n + q) of the penalty's gradient
        excess = len(past) / len(z)
        return torch.cat([z + excess * (z - z.detach()), past])

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        # not at each step: it waits for the device
        trainer: Any = self.trainer
        if len(self._unchecked_terms) >= (trainer.log_every_n_steps or 50) or trainer.is_last_batch:
            self._check_terms(batch)

    def _check_terms(self, batch: Any = None) -> None:
        """Stops the run if the cost or the penalty of a step since the last check is not finite."""
        # a gradient scaler leaves out the steps whose gradient overflows; that is trouble only if it never ends
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        if not self._unchecked_terms or (scaled and batch is None):
            return
        terms, self._unchecked_terms = self._unchecked_terms, []
        values = torch.stack([torch.stack(pair).float() for pair in terms]).cpu()
        bad = ~values.isfinite()
        stop = bool(bad.any(1).all() if scaled else bad.any())
        if not self.trainer.strategy.reduce_boolean_decision(stop, all=False):
            return
        first = int(bad.any(1).int().argmax())
        step = self.trainer.fit_loop.total_batch_idx + 2 - len(terms) + first
        cost, penalty = values[first].tolist()
        names = " and ".join(name for name, is_bad in zip(("cost", "penalty"), bad[first], strict=True) if is_bad)
        raise FloatingPointError(
            f"training step {step}: {names or 'a loss in another process'} not finite (cost {cost:.4g}, penalty "
            f"{penalty:.4g}); first bad module: {self._first_bad_module(batch)}. The checkpoint before it is kept. Try "
            "a lower learning rate, --gradient_clip_val 1, or --detect_anomaly true to see where it begins"
        )

    def _first_bad_module(self, batch: Any) -> str:
        if batch is None:
            return first_bad_weights(self) or "unknown, the weights are finite"
        x = self._input(batch)
        if not all(bool(part.isfinite().all()) for part in (x if isinstance(x, tuple) else (x,))):
            return "none, the batch itself is bad"

        def run() -> None:
            z, _ = self._codes_and_cost(x)
            self._penalty(z)

        return first_bad_module(self, run) or "none, the numbers of this batch are finite"

    def _evaluation_terms(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns what the penalty is of and the terms of a validation or test batch."""
        z, cost = self._codes_and_cost(self._input(batch))
        terms = {"cost": cost}
        # a last batch of one image has no unbiased penalty; it counts for the cost only
        if len(z) > 1:
            terms["penalty"] = self._penalty(z)
            terms["loss"] = cost + self.penalty_weight * terms["penalty"]
        return z, terms

    def _evaluation_step(self, stage: str, batch: Any, batch_idx: int, batches: float) -> dict[str, Tensor]:
        z, terms = self._evaluation_terms(batch)
        if batch_idx == 0:
            self._evaluated = []
        self._evaluated.append((len(z), terms))
        # once for all batches, where their number is known: Lightning takes as long to log three values as for a layer
        if not batch_idx + 1 < batches < math.inf:
            self._log_evaluated(stage)
        return {"codes": z[:: self.penalty.codes_per_input, : self.latent_dim]}

    def _log_evaluated(self, stage: str) -> None:
        evaluated, self._evaluated = self._evaluated, []
        for name in ("cost", "penalty", "loss"):
            found = [(count, terms[name]) for count, terms in evaluated if name in terms]
            if found:
                counts, values = zip(*found, strict=True)
                of_all = torch.stack(values)
                mean = (of_all * of_all.new_tensor(counts)).sum() / sum(counts)
                self.log(f"{stage}/{name}", mean, on_step=False, on_epoch=True, batch_size=sum(counts), sync_dist=True)

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Returns the ``codes`` z of the batch, (B, latent_dim), for callbacks."""
        trainer = self.trainer
        batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        return self._evaluation_step("val", batch, batch_idx, batches[0])

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Returns the ``codes`` z of the batch, (B, latent_dim), for callbacks."""
        return self._evaluation_step("test", batch, batch_idx, self.trainer.num_test_batches[0])

    def predict_step(self, batch: Any, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Returns codes (B, latent_dim) and reconstructions of the inputs."""
        code = self._encode(self._input(batch), noise=False)
        return self._from_code(code), self._decode(code)

    # ---- training against a critic: two optimizers, by hand ---------------------------------------------------------

    def _train_with_critic(self, penalty: Adversarial, z: Tensor, cost: Tensor, batch_idx: int) -> None:
        """One step of Algorithm 1: the auto-encoder's update, then the critic's on the same codes."""
        weight = self.penalty_weight
        with torch.autocast(z.device.type, enabled=False):
            encoder_loss = penalty(z, self._prior_like(z))
            critic_loss, accuracies = penalty.critic_loss(z.detach(), self._prior_like(z))
        # One backward pass serves both: the losses have no trainable parameter in common (the critic is a constant in
        # the encoder's, the codes are one in the critic's), so neither gradient touches the other's network. And
        # every parameter gets its gradient in it, as DistributedDataParallel demands.
        accumulated = self.trainer.accumulate_grad_batches
        self.manual_backward((cost + weight * (encoder_loss + critic_loss)) / accumulated)
        self._unchecked_terms.append((cost.detach(), encoder_loss.detach()))
        values = {"train/cost": cost, "train/penalty": encoder_loss, "train/critic_loss": critic_loss}
        self._log_step(values | accuracies)

        self._accumulated_codes.append(z.detach())
        if (batch_idx + 1) % accumulated == 0 or self.trainer.is_last_batch:
            codes = torch.cat(self._accumulated_codes)
            self._accumulated_codes.clear()
            self._step_both_optimizers(penalty, codes)
            self._step_lr_schedulers("step")
        if self.trainer.is_last_batch:
            self._step_lr_schedulers("epoch")

    def _step_both_optimizers(self, penalty: Adversarial, codes: Tensor) -> None:
        optimizers: Any = self.optimizers()
        autoencoder, critic = optimizers
        # the trainer's global_step, and with it max_steps, counts the auto-encoder's updates only
        critic._on_before_step = critic._on_after_step = _do_nothing
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        with _one_update(scaler):
            autoencoder.step()
            critic.step()
        autoencoder.zero_grad()
        critic.zero_grad()
        for _ in range(penalty.steps - 1):
            with torch.autocast(codes.device.type, enabled=False):
                loss = self.penalty_weight * penalty.critic_loss(codes, self._prior_like(codes))[0]
            # not manual_backward: DistributedDataParallel would wait for the auto-encoder's gradients
            (loss if scaler is None else scaler.scale(loss)).backward()
            self._average_gradients(penalty.parameters())
            critic.step()
            critic.zero_grad()

    def _average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Averages gradients over all processes where DistributedDataParallel does not."""
        if self.trainer.world_size > 1:
            for parameter in parameters:
                if parameter.grad is not None:
                    torch.distributed.all_reduce(parameter.grad)
                    parameter.grad /= self.trainer.world_size

    def _step_lr_schedulers(self, interval: str) -> None:
        count = self.global_step if interval == "step" else self.current_epoch + 1
        for config in self.trainer.lr_scheduler_configs:
            on_plateau = isinstance(config.scheduler, ReduceLROnPlateau)
            if config.interval == interval and not on_plateau and count % config.frequency == 0:
                self.lr_scheduler_step(config.scheduler, None)

    def on_train_epoch_end(self) -> None:
        if self.automatic_optimization:
            return
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, ReduceLROnPlateau):
                monitor = _watched_by(config.scheduler)
                if monitor not in self.trainer.callback_metrics:
                    known = ", ".join(self.trainer.callback_metrics)
                    raise ValueError(f"ReduceLROnPlateau watches {monitor!r}, but only {known} are logged")
                self.lr_scheduler_step(config.scheduler, self.trainer.callback_metrics[monitor])

    def configure_callbacks(self) -> list[Any]:
        # Lightning refuses clipping and accumulation with manual optimization, although training_step does both. It
        # looks right after this hook; `setup`, the next one, gives the trainer its settings back.
        if not self.automatic_optimization:
            self._taken_from_trainer = (self.trainer.gradient_clip_val, self.trainer.accumulate_grad_batches)
            self.trainer.gradient_clip_val, self.trainer.accumulate_grad_batches = None, 1
        return []

    def setup(self, stage: str) -> None:
        if self._taken_from_trainer is not None:
            self.trainer.gradient_clip_val, self.trainer.accumulate_grad_batches = self._taken_from_trainer
            self._taken_from_trainer = None

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        # With manual optimization Lightning does not clip by itself. Gradients are already unscaled here.
        if not self.automatic_optimization and self.trainer.gradient_clip_val:
            self.clip_gradients(optimizer, self.trainer.gradient_clip_val, self.trainer.gradient_clip_algorithm)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        if gradient_clip_val:  # without one Lightning would look at each step again how to clip
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    # ---- optimizers, and what surrounds training --------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        if not isinstance(self.penalty, Adversarial):
            return self._optimizer(
                self.parameters(), self.make_optimizer, self.make_lr_scheduler, self.lr_interval, self.lr
            )
        of_critic = set(self.penalty.parameters())
        autoencoder = [parameter for parameter in self.parameters() if parameter not in of_critic]
        configs = (
            self._optimizer(autoencoder, self.make_optimizer, self.make_lr_scheduler, self.lr_interval, self.lr),
            self._optimizer(
                self.penalty.parameters(),
                self.penalty.make_optimizer,
                self.penalty.make_lr_scheduler,
                self.penalty.lr_interval,
            ),
        )
        for name, config in zip(("autoencoder", "critic"), configs, strict=True):
            if "lr_scheduler" in config:
                config["lr_scheduler"]["name"] = f"lr-{name}"
        return configs

    def _optimizer(
        self,
        parameters: Iterable[nn.Parameter],
        make_optimizer: OptimizerCallable | None,
        make_lr_scheduler: LRSchedulerCallable | None,
        lr_interval: str,
        lr: float | None = None,
    ) -> dict[str, Any]:
        optimizer = (make_optimizer or functools.partial(torch.optim.Adam, lr=1e-3))(parameters)
        if lr is not None:
            for group in optimizer.param_groups:
                group["lr"] = lr
        if make_lr_scheduler is None:
            return {"optimizer": optimizer}
        scheduler: Any
        if _needs_total_steps(make_lr_scheduler):
            steps = self.trainer.estimated_stepping_batches
            if math.isinf(steps):
                raise ValueError("OneCycleLR needs the length of the run: set max_epochs or max_steps, or total_steps")
            scheduler = make_lr_scheduler(optimizer, total_steps=int(steps))  # type: ignore[call-arg]
        else:
            scheduler = make_lr_scheduler(optimizer)
        config: dict[str, Any] = {"scheduler": scheduler, "interval": lr_interval}
        if isinstance(scheduler, OneCycleLR):
            config["interval"] = "step"
        elif isinstance(scheduler, ReduceLROnPlateau):
            config["interval"] = "epoch"
            if self.automatic_optimization:
                config["monitor"] = _watched_by(scheduler)
        return {"optimizer": optimizer, "lr_scheduler": config}

    def on_fit_start(self) -> None:
        if self.trainer.world_size > 1 and self.penalty.codes_per_input > 1:
            raise ValueError(
                f"{type(self.penalty).__name__} runs in one process only, the trainer has {self.trainer.world_size}"
            )

    def _compile_networks(self) -> None:
        # in place: the names of the weights, and with them the checkpoints, stay as they are
        mode = self.compile_mode if isinstance(self.compile_mode, str) else None
        for network in (self.encoder, self.decoder):
            network.compile(mode=mode)

    def on_train_start(self) -> None:
        if self.compile_mode:
            self._compile_networks()
        self._accumulated_codes = []
        self._unchecked_terms = []
        fit_loop: Any = self.trainer.fit_loop
        if fit_loop.restarted_mid_epoch and fit_loop._combined_loader_states_to_load:
            # a schedule that needs the length of the run had the loaders made before their state was known
            fit_loop._load_combined_loader_states()
            iter(fit_loop._data_fetcher)
        if self._rng_state is not None:
            torch.set_rng_state(self._rng_state.cpu())
            if self._rng_state_cuda is not None and self.device.type == "cuda":
                torch.cuda.set_rng_state(self._rng_state_cuda.cpu(), self.device)
            self._rng_state = None
            # Lightning has already begun the epoch's pass over the data, with the state before: begin it anew, unless
            # it goes on in the middle of one, or ends that epoch once more (as with max_steps) and then begins anew
            if not (fit_loop.restarted_mid_epoch or fit_loop.restarted_on_epoch_end):
                iter(fit_loop._data_fetcher)
        if self.global_rank > 0:
            # every process draws its own noise and its own codes from the prior
            torch.manual_seed(int(torch.randint(2**31, ())) + self.global_rank)
        if self.pretrain_steps and self.global_step == 0:
            self._pretrain_encoder()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._trainer is not None and self.trainer.state.fn == "fit":
            self._check_terms()
        if bad := first_bad_weights(self):
            raise FloatingPointError(
                f"step {self.global_step}: {bad} is not finite, so no checkpoint is written; the one before it is kept"
            )
        # with these, a resumed run draws what the uninterrupted one would have drawn
        checkpoint["rng_state"] = torch.get_rng_state()
        if self.device.type == "cuda":
            checkpoint["rng_state_cuda"] = torch.cuda.get_rng_state(self.device)
        if self.code_queue:
            checkpoint["code_queue"] = self._queue
        if self._latest:
            checkpoint["training_codes"] = torch.cat(tuple(self._latest))
            checkpoint["training_code_counts"] = [len(codes) for codes in self._latest]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._trainer is not None and self._trainer.state.fn == "fit":
            self._rng_state = checkpoint.get("rng_state")
            self._rng_state_cuda = checkpoint.get("rng_state_cuda")
        self._queue = checkpoint.get("code_queue", self._queue)
        if "training_codes" in checkpoint:
            self._latest = deque(checkpoint["training_codes"].split(checkpoint.get("training_code_counts", 100)))
            self._latest_count = len(checkpoint["training_codes"])
        # a resumed run may be longer: its one-cycle schedule has the length of the new run, at the step of the old
        for state in checkpoint.get("lr_schedulers", []):
            if "_schedule_phases" in state:
                del state["_schedule_phases"], state["total_steps"]

    def _pretrain_encoder(self) -> None:
        """Matches mean and covariance of the codes to the prior's before the first step of training."""
        optimizer = torch.optim.Adam(self.encoder.parameters(), lr=1e-3)
        loader: Any = self.trainer.train_dataloader
        batches = itertools.chain.from_iterable(itertools.repeat(loader))
        for batch in itertools.islice(batches, self.pretrain_steps):
            on_device = self.trainer.strategy.batch_to_device(batch, self.device, dataloader_idx=0)
            z, _ = self._codes_and_cost(self._input(on_device))
            loss = moment_mismatch(z, self._prior_like(z))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._average_gradients(self.encoder.parameters())
            optimizer.step()
            if self.trainer.strategy.reduce(loss.detach()) < 0.1:
                break


def moment_mismatch(z: Tensor, z_prior: Tensor) -> Tensor:
    """Mean squared error of the mean plus that of the covariance of two samples of codes, (n, d) and (m, d)."""
    mean_error = (z.mean(0) - z_prior.mean(0)).square().mean()
    return mean_error + (z.T.cov() - z_prior.T.cov()).square().mean()


def _needs_total_steps(make_lr_scheduler: LRSchedulerCallable) -> bool:
    """Whether this is OneCycleLR, alone or in a partial (as LightningCLI makes them), without its length."""
    made: Any = make_lr_scheduler
    if not isinstance(made, functools.partial):
        return made is OneCycleLR
    length = ("total_steps", "epochs", "steps_per_epoch")
    return OneCycleLR in (made.func, *made.args) and all(made.keywords.get(name) is None for name in length)


def _watched_by(scheduler: ReduceLROnPlateau) -> str:
    # Lightning's own subclass, for the command line, carries a name
    return str(getattr(scheduler, "monitor", "val/loss"))


def _do_nothing() -> None:
    pass


@contextlib.contextmanager
def _one_update(scaler: Any) -> Iterator[None]:
    """Lets a gradient scaler update its scale once after several optimizers, as it must, not after each.

    Lightning calls ``update`` in every step; the second optimizer would then unscale by another factor than its
    gradients were scaled with.
    """
    if scaler is None:
        yield
        return
    update, scaler.update = scaler.update, _do_nothing
    try:
        yield
    finally:
        scaler.update = update
    scaler.update()
