"""The Wasserstein auto-encoder: an encoder, a decoder, a prior, a cost and a penalty, and how they are trained."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from wae_lightning.costs import Cost, SquaredError
from wae_lightning.networks import ConvDecoder, ConvEncoder
from wae_lightning.noise import EncoderNoise
from wae_lightning.penalties import MMD, Penalty
from wae_lightning.priors import Normal, Prior

__all__ = ["WAE"]

OptimizerCallable = Callable[[Iterable[Any]], Optimizer]
LRSchedulerCallable = Callable[[Optimizer], LRScheduler | ReduceLROnPlateau]

_PLAIN = (bool, int, float, str, type(None))


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)


def _in_full_precision(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class WAE(LightningModule):
    r"""Wasserstein auto-encoder.

    Minimises :math:`E\, c(X, G(Z)) + \lambda\, D(Q_Z, P_Z)`: a reconstruction cost plus a penalty on the difference
    between the distribution of the codes and the prior. I. Tolstikhin, O. Bousquet, S. Gelly, B. Schoelkopf,
    "Wasserstein auto-encoders", ICLR 2018, eq. 4.

    Batches are a tensor, or a tuple or list whose first element is the input, (B, \*input), floats in [0, 1]. Cost and
    penalty are computed in float32 also under mixed precision. Logged: ``train/``, ``val/`` and ``test/`` ``loss``,
    ``cost`` and ``penalty``, where loss = cost + penalty_weight · penalty.

    Args:
        encoder: Network (B, \*input) -> (B, d), or (B, 2d) with ``GaussianNoise``. None: ``ConvEncoder``.
        decoder: Network (B, d) -> (B, \*input). None: ``ConvDecoder``.
        prior: Distribution of the codes. None: N(0, I) in ``latent_dim`` dimensions.
        cost: c. None: 0.05 · squared error, as in the authors' code.
        penalty: D. None: the MMD with the inverse multiquadric kernel.
        penalty_weight: λ, 0 or more.
        optimizer: Makes the optimizer from the parameters. None: Adam with learning rate 1e-3.
        lr_scheduler: Makes a learning-rate scheduler from the optimizer. ``OneCycleLR`` may be left without
            ``total_steps``: it then gets the number of steps of the run.
        lr_interval: Whether the scheduler steps after each ``epoch`` or each ``step`` (``OneCycleLR``: always ``step``).
        noise: How codes are drawn from the encoder's output. None: deterministic.
        standardize_codes: Standardise each latent dimension over the batch (batch norm without learned scale and
            shift), so that codes have the mean and the variance of a normal prior by construction.
        pretrain_steps: At most so many steps of Adam that match mean and covariance of the codes to those of the prior
            before training, as in the authors' code (theirs: 200). It stops earlier once the two mean squared errors
            add up to less than 0.1.
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
        if pretrain_steps < 0:
            raise ValueError(f"pretrain_steps must be 0 or more, got {pretrain_steps}")
        if prior is not None and latent_dim not in (None, prior.latent_dim):
            raise ValueError(f"latent_dim is {latent_dim}, but the prior has {prior.latent_dim} dimensions")
        self.prior = prior or Normal(8 if latent_dim is None else latent_dim)
        if standardize_codes and not isinstance(self.prior, Normal):
            raise ValueError(f"standardize_codes needs a Normal prior, got {type(self.prior).__name__}")
        d = self.prior.latent_dim
        self.noise = noise or EncoderNoise()
        self.encoder = encoder or ConvEncoder(image_shape, d * self.noise.features_per_dimension)
        self.decoder = decoder or ConvDecoder(d, image_shape)
        self.standardize = nn.BatchNorm1d(d, affine=False) if standardize_codes else None
        self.cost = cost or SquaredError(scale=0.05)
        self.penalty = penalty or MMD()
        self.penalty.set_prior(self.prior)
        self.penalty_weight = penalty_weight
        self.make_optimizer = optimizer
        self.make_lr_scheduler = lr_scheduler
        self.lr_interval = lr_interval
        self.pretrain_steps = pretrain_steps

    def _keep_plain_hyperparameters(self) -> None:
        """Drops what is not a number, a string or a class_path dictionary: checkpoints must load as plain data."""
        for stored in (self._hparams, self._hparams_initial):
            for name in [name for name, value in stored.items() if not _is_plain(value)]:
                del stored[name]

    # ---- using the model ---------------------------------------------------------------------------------------------

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
        draw = self.training if noise is None else noise
        if self.training:
            x = self.noise.on_input(x)
        features = self.encoder(x)
        expected = self.latent_dim * self.noise.features_per_dimension
        if features.shape[1:] != (expected,):
            raise ValueError(
                f"the encoder must put out (B, {expected}) for {self.latent_dim} latent dimensions with "
                f"{type(self.noise).__name__}, got {tuple(features.shape)}"
            )
        z = self.noise(features) if draw else self.noise.mean(features)
        if self.standardize is not None:
            z = self.prior.scale * self.standardize(z)
        return self.prior.project(z)

    def decode(self, z: Tensor) -> Tensor:
        """Decodes codes (B, latent_dim) to outputs (B, *output)."""
        return self.decoder(z)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Reconstructs inputs (B, *input)."""
        return self.decode(self.encode(x))

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
        if type(self.prior).__name__ == "Sphere":
            lines = self.prior.project(lines.flatten(0, 1)).view_as(lines)
        return self.decode(lines.flatten(0, 1)).unflatten(0, (steps, len(a)))

    # ---- training ----------------------------------------------------------------------------------------------------

    def _input(self, batch: Any) -> Tensor:
        x = batch[0] if isinstance(batch, list | tuple) else batch
        if not isinstance(x, Tensor):
            raise ValueError(f"a batch must be a tensor, or a tuple that begins with one, got {type(x).__name__}")
        return x

    def _check_range(self, x: Tensor) -> None:
        if not x.is_floating_point() or not x.min() >= 0 or not x.max() <= 1:
            raise ValueError(
                f"the input must be floats in [0, 1], like the decoder's output; got {x.dtype} in "
                f"[{x.min():.4g}, {x.max():.4g}]"
            )

    def _codes_and_terms(self, x: Tensor, noise: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the codes, a draw from the prior of the same shape, and the mean cost."""
        z = self.encode(x, noise=noise)
        reconstruction = self.decode(z)
        with torch.autocast(x.device.type, enabled=False):
            cost = self.cost(_in_full_precision(x), _in_full_precision(reconstruction)).mean()
        z = _in_full_precision(z)
        return z, self.prior.sample(len(z), device=z.device).to(z.dtype), cost

    def _penalty(self, z: Tensor, z_prior: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            return self.penalty(z, z_prior)  # type: ignore[no-any-return]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = self._input(batch)
        if batch_idx == 0 and self.current_epoch == 0:
            self._check_range(x)
        z, z_prior, cost = self._codes_and_terms(x, noise=True)
        penalty = self._penalty(z, z_prior)
        loss = cost + self.penalty_weight * penalty
        self.log_dict({"train/cost": cost.detach(), "train/penalty": penalty.detach()}, prog_bar=True)
        return loss

    def _evaluation_step(self, stage: str, batch: Any) -> None:
        x = self._input(batch)
        z, z_prior, cost = self._codes_and_terms(x, noise=True)
        terms = {"cost": cost}
        # a last batch of one image has no unbiased penalty; it counts for the cost only
        if len(z) > 1:
            terms["penalty"] = self._penalty(z, z_prior)
            terms["loss"] = cost + self.penalty_weight * terms["penalty"]
        self.log_dict(
            {f"{stage}/{name}": value for name, value in terms.items()},
            on_step=False,
            on_epoch=True,
            batch_size=len(z),
            sync_dist=True,
        )

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluation_step("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluation_step("test", batch)

    def predict_step(self, batch: Any, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Returns codes (B, latent_dim) and reconstructions (B, *input)."""
        z = self.encode(self._input(batch))
        return z, self.decode(z)

    def configure_optimizers(self) -> Any:
        return self._optimizer_config(self.parameters(), self.make_optimizer, self.make_lr_scheduler, self.lr_interval)

    def _optimizer_config(
        self,
        parameters: Iterable[nn.Parameter],
        make_optimizer: OptimizerCallable | None,
        make_lr_scheduler: LRSchedulerCallable | None,
        lr_interval: str,
    ) -> dict[str, Any]:
        optimizer = (make_optimizer or functools.partial(torch.optim.Adam, lr=1e-3))(parameters)
        if make_lr_scheduler is None:
            return {"optimizer": optimizer}
        scheduler: Any
        if _needs_total_steps(make_lr_scheduler):
            steps = self.trainer.estimated_stepping_batches
            if math.isinf(steps):
                raise ValueError("OneCycleLR needs the length of the run: set max_epochs or max_steps, or total_steps")
            scheduler, lr_interval = make_lr_scheduler(optimizer, total_steps=int(steps)), "step"  # type: ignore[call-arg]
        else:
            scheduler = make_lr_scheduler(optimizer)
            if isinstance(scheduler, OneCycleLR):
                lr_interval = "step"
        config: dict[str, Any] = {"scheduler": scheduler, "interval": lr_interval}
        if isinstance(scheduler, ReduceLROnPlateau):
            config["monitor"] = getattr(scheduler, "monitor", "val/loss")
        return {"optimizer": optimizer, "lr_scheduler": config}

    def on_train_start(self) -> None:
        if self.pretrain_steps and self.global_step == 0:
            self._pretrain_encoder()

    def _pretrain_encoder(self) -> None:
        """Matches mean and covariance of the codes to the prior's before the first step of training."""
        optimizer = torch.optim.Adam(self.encoder.parameters(), lr=1e-3)
        batches: Iterable[Any] = ()
        with torch.enable_grad():
            for step in range(self.pretrain_steps):
                if step % max(int(self.trainer.num_training_batches), 1) == 0:
                    batches = iter(self.trainer.train_dataloader)  # type: ignore[arg-type]
                batch = self.trainer.strategy.batch_to_device(next(batches), self.device)  # type: ignore[call-overload]
                assert self.trainer.datamodule is not None
                batch = self.trainer.datamodule.on_after_batch_transfer(batch, 0)  # type: ignore[attr-defined]
                z = self.encode(self._input(batch), noise=True)
                loss = moment_mismatch(z, self.prior.sample(len(z), device=z.device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if loss.item() < 0.1:
                    break


def moment_mismatch(z: Tensor, z_prior: Tensor) -> Tensor:
    """Mean squared error of the mean plus that of the covariance of two samples of codes, (n, d) and (m, d)."""
    mean_error = (z.mean(0) - z_prior.mean(0)).square().mean()
    return mean_error + (z.T.cov() - z_prior.T.cov()).square().mean()


def _needs_total_steps(make_lr_scheduler: LRSchedulerCallable) -> bool:
    """Whether this is OneCycleLR, alone or in a partial (as LightningCLI makes them), without its length."""
    if not isinstance(make_lr_scheduler, functools.partial):
        return make_lr_scheduler is OneCycleLR
    made = OneCycleLR in (make_lr_scheduler.func, *make_lr_scheduler.args)
    length = ("total_steps", "epochs", "steps_per_epoch")
    return made and all(make_lr_scheduler.keywords.get(name) is None for name in length)
