"""How a model of named terms is trained and evaluated by Lightning."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed.nn.functional
from torch import Tensor

from wae_lightning.lightning import LightningModule
from wae_lightning.memory import CodeMemory
from wae_lightning.networks import Flow
from wae_lightning.penalties import Adversarial, Penalty
from wae_lightning.priors import Prior
from wae_lightning.training import (
    BorrowedFlags,
    CompileNetworks,
    ExactResume,
    FitFlow,
    MatchMoments,
    StepSchedulers,
    StopAtBadNumbers,
)
from wae_lightning.training.inputs import CheckInputs
from wae_lightning.training.optimizers import LRSchedulerCallable, OptimizerCallable, configure
from wae_lightning.training.two_optimizers import CriticFirst

__all__ = ["Steps"]


class Steps(LightningModule, ABC):
    """The steps of training and evaluation, and what surrounds them, for a model that says what its terms are.

    A step draws codes, computes the terms, logs each under its name, and descends their weighted sum. With an
    ``Adversarial`` penalty there are two optimizers: see :class:`~wae_lightning.training.two_optimizers.CriticFirst`.
    What surrounds a step are callbacks, which the model brings by ``configure_callbacks``; so a subclass may have hooks
    of its own.
    """

    penalty: Penalty
    penalty_weight: float
    flow: Flow | None
    fit_flow: int | None
    prior: Prior
    memory: CodeMemory
    noise: Any
    encoder: Any
    standardize: Any
    input_range: tuple[float, float] | None
    make_optimizer: OptimizerCallable | None
    make_lr_scheduler: LRSchedulerCallable | None
    lr_interval: str
    pretrain_steps: int
    gather_codes: bool
    code_queue: int
    compile_mode: bool | str
    lr: float | None = None
    """Learning rate that replaces the one of ``optimizer``; this is where Lightning's learning-rate finder puts its."""

    def __init__(self) -> None:
        super().__init__()
        self._critic_first = CriticFirst()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Callbacks that a subclass brings join the model's own, without which it would train another way."""
        super().__init_subclass__(**kwargs)
        own = cls.__dict__.get("configure_callbacks")
        if own is not None:
            cls.configure_callbacks = _joined(cls, own)  # type: ignore[method-assign, assignment]

    # ---- what the model says ----------------------------------------------------------------------------------------

    @abstractmethod
    def inputs_of(self, batch: Any) -> Any:
        """The input in a batch."""

    @abstractmethod
    def draw_codes(self, x: Any) -> Tensor:
        """Draws the encoder's own codes, (n, d): ``penalty.codes_per_input`` in a row for each input."""

    @abstractmethod
    def compared(self, x: Any, code: Tensor) -> Tensor:
        """What the penalty compares with draws from the prior, in full precision: the codes (n, d)."""

    @abstractmethod
    def prior_like(self, compared: Tensor) -> Tensor:
        """As many draws from the prior."""

    @abstractmethod
    def terms(self, x: Any, code: Tensor) -> dict[str, Tensor]:
        """The terms of a batch beside the penalty: ``cost``, and with a flow ``flow_loss``, scalars.

        Args:
            x: The inputs, as ``inputs_of`` gives them.
            code: Their codes, as ``draw_codes`` gives them.
        """

    @abstractmethod
    def _from_code(self, code: Tensor, features: Tensor) -> Tensor:
        """Maps the encoder's own codes (n, d) to z; ``features`` (n, p) stand beside them in what is compared."""

    @property
    @abstractmethod
    def latent_dim(self) -> int:
        """Number of latent dimensions d."""

    def tensors_in_range(self, batch: Any) -> tuple[Tensor, ...]:
        """The tensors of a batch that ``input_range`` holds for."""
        x = self.inputs_of(batch)
        return x if isinstance(x, tuple) else (x,)

    def term_weights(self) -> dict[str, float]:
        """The weights that the terms have in ``loss``, by name; a term without a weight is no part of it."""
        return {"cost": 1.0, "penalty": self.penalty_weight}

    # ---- a step -----------------------------------------------------------------------------------------------------

    def penalty_of(self, compared: Tensor) -> Tensor:
        """The penalty of codes (n, d), a scalar."""
        with torch.autocast(compared.device.type, enabled=False):
            return self.penalty(compared, self.prior_like(compared))  # type: ignore[no-any-return]

    def objective(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of the terms, a scalar; of a flow's loss, for parameters of its own, only the gradient."""
        loss = torch.stack([weight * terms[name] for name, weight in self.term_weights().items()]).sum()
        return loss if "flow_loss" not in terms else loss + terms["flow_loss"] - terms["flow_loss"].detach()

    def log_terms(self, stage: str, terms: Mapping[str, Tensor], suffix: str = "", **options: Any) -> None:
        """Logs terms, and the loss that is made of them."""
        values = {name: value.detach() for name, value in terms.items()}
        if "penalty" in values:
            values["loss"] = self.objective(values)
        values = {f"{stage}/{name}{suffix}": value for name, value in values.items()}
        self.log_dict(values, add_dataloader_idx=False, **options)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        self._check_number(batch)
        if not self.automatic_optimization:
            return self._critic_first.step(self, batch, batch_idx)
        x = self.inputs_of(batch)
        code = self.draw_codes(x)
        compared = self._gathered(self.compared(x, code))
        terms = self.terms(x, code)
        terms["penalty"] = self.penalty_of(self._with_past_codes(compared))
        self.log_terms("train", terms)
        self.memory.remember(compared)
        return self.objective(terms)

    def _check_number(self, batch: Any) -> None:
        name = type(self.penalty).__name__
        codes = len(self.tensors_in_range(batch)[0]) * self.penalty.codes_per_input
        alone = not isinstance(self.penalty, Adversarial) and not self.code_queue
        if codes < 2 and (alone or self.standardize is not None):
            raise ValueError(
                f"{name if alone else 'standardize_codes'} needs at least 2 codes in a batch, got {codes}: raise the "
                "batch size, or let the loader drop_last a batch that is too small; one example alone is too few"
            )
        if self.trainer.world_size > 1 and self.penalty.codes_per_input > 1:
            raise ValueError(f"{name} runs in one process only, the trainer has {self.trainer.world_size}")

    def _gathered(self, codes: Tensor) -> Tensor:
        """The codes of all processes, if they are to be compared together, with gradient."""
        if not self.gather_codes or self.trainer.world_size == 1:
            return codes
        return torch.cat(torch.distributed.nn.functional.all_gather(codes.contiguous()))  # type: ignore[no-untyped-call]

    def _with_past_codes(self, codes: Tensor) -> Tensor:
        """Joins past codes to those of this batch."""
        # of whole inputs, where the penalty wants several codes of each
        past = self.memory.latest(self.code_queue - self.code_queue % self.penalty.codes_per_input, like=codes)
        # of n + q codes only n follow the encoder; unscaled, they would get n / (n + q) of the penalty's gradient
        excess = len(past) / len(codes)
        return torch.cat([codes + excess * (codes - codes.detach()), past]) if len(past) else codes

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Returns the ``codes`` z of the batch, (B, latent_dim), for callbacks."""
        return self._evaluation_step("val", batch, dataloader_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Returns the ``codes`` z of the batch, (B, latent_dim), for callbacks."""
        return self._evaluation_step("test", batch, dataloader_idx)

    def _evaluation_step(self, stage: str, batch: Any, dataloader_idx: int) -> dict[str, Tensor]:
        x = self.inputs_of(batch)
        code = self.draw_codes(x)
        compared = self.compared(x, code)
        terms = self.terms(x, code)
        # a last batch of one image has no unbiased penalty, but a critic's; it counts for the other terms only
        if len(compared) > 1 or isinstance(self.penalty, Adversarial):
            terms["penalty"] = self.penalty_of(compared)
        codes, features = code[:: self.penalty.codes_per_input], compared[:: self.penalty.codes_per_input]
        suffix = f"/dataloader_idx_{dataloader_idx}" if dataloader_idx else ""
        self.log_terms(stage, terms, suffix, on_step=False, on_epoch=True, batch_size=len(codes), sync_dist=True)
        return {"codes": self._from_code(codes[:, : self.latent_dim].float(), features[:, self.latent_dim :])}

    # ---- what surrounds a step --------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list[Any]:
        """What surrounds a step; a subclass's own callbacks join these."""

        def codes_and_draws(batch: Any) -> tuple[Tensor, Tensor]:
            x = self.inputs_of(batch)
            compared = self.compared(x, self.draw_codes(x))
            return compared, self.prior_like(compared)

        def own_codes(batch: Any) -> Tensor:
            x = self.inputs_of(batch)
            return self.compared(x, self.draw_codes(x))

        def run(batch: Any) -> None:
            x = self.inputs_of(batch)
            code = self.draw_codes(x)
            self.terms(x, code)
            self.penalty_of(self.compared(x, code))

        callbacks: list[Any] = [
            CheckInputs(self.tensors_in_range, self.input_range),
            StopAtBadNumbers(run),
            StepSchedulers(),
            ExactResume(),
        ]
        if self.flow is not None:
            callbacks.append(FitFlow(self.flow, self.memory, own_codes, self.fit_flow, self.prior.scale))
        if not self.automatic_optimization:
            callbacks.append(BorrowedFlags(self.trainer))
        if self.pretrain_steps:
            callbacks.append(MatchMoments(self.encoder, codes_and_draws, self.pretrain_steps))
        if self.compile_mode:
            mode = self.compile_mode if isinstance(self.compile_mode, str) else None
            callbacks.append(CompileNetworks(("encoder", "decoder"), mode))
        return callbacks

    def configure_optimizers(self) -> Any:
        penalty, trainer = self.penalty, self.trainer
        made = self.make_optimizer, self.make_lr_scheduler, self.lr_interval, trainer, self.lr
        if not isinstance(penalty, Adversarial):
            return configure(self.parameters(), *made)
        of_critic = set(penalty.parameters())
        autoencoder = [parameter for parameter in self.parameters() if parameter not in of_critic]
        made_critic = penalty.make_optimizer, penalty.make_lr_scheduler, penalty.lr_interval, trainer, None
        return (
            configure(autoencoder, *made, name="lr-autoencoder"),
            configure(list(penalty.parameters()), *made_critic, name="lr-critic"),
        )


def _joined(cls: type[Steps], own: Callable[[Any], Any]) -> Callable[[Any], list[Any]]:
    def configure_callbacks(self: Steps) -> list[Any]:
        brought = own(self)
        brought = list(brought) if isinstance(brought, Sequence) else [brought] if brought else []
        types = {type(callback) for callback in brought}
        models: Any = super(cls, self).configure_callbacks()
        return [*brought, *(callback for callback in models if type(callback) not in types)]

    return configure_callbacks
