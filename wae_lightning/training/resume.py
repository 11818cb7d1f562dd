"""Resumed training that draws the random numbers that the uninterrupted run would have drawn."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed

from wae_lightning.lightning import Callback, LightningModule, Trainer, WeightAveraging
from wae_lightning.memory import CodeMemory

__all__ = ["ExactResume"]


class ExactResume(Callback):
    """Saves the state of the random number generators of all processes in checkpoints, and goes on from it.

    A run that starts afresh on several processes gives each one random numbers of its own.
    """

    def __init__(self) -> None:
        self._states: list[dict[str, Any]] | None = None
        self._trained = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        states: list[Any] = [_random_state(pl_module.device)]
        if trainer.world_size > 1:
            states *= trainer.world_size
            torch.distributed.all_gather_object(states, states[0])
        checkpoint["random_states"] = states
        # a callback that averages the weights saves its own copy of the model, which remembers nothing
        for name, module in pl_module.named_modules():
            if isinstance(module, CodeMemory):
                checkpoint["state_dict"][f"{name}._extra_state"] = module.get_extra_state()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == "fit":
            self._states = checkpoint.get("random_states")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._trained = True
        states, self._states = self._states, None
        if states is not None and len(states) == trainer.world_size:
            _restore(states[trainer.global_rank], pl_module.device)
            loop = trainer.fit_loop
            # Lightning has begun the epoch's pass over the loader already, with the random numbers before these; a
            # loader that draws its order from them must begin anew, unless it goes on in the middle of a pass, or ends
            # that epoch once more. There is no public way to say so.
            if not (loop.restarted_mid_epoch or loop.restarted_on_epoch_end):
                iter(loop._data_fetcher)  # type: ignore[arg-type]
        elif trainer.global_rank > 0:
            torch.manual_seed(int(torch.randint(2**31, ())) + trainer.global_rank)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning leaves out the training of a run that had ended, and with it what puts averaged weights in place
        for callback in [] if self._trained else trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, WeightAveraging):
                callback.on_train_end(trainer, pl_module)
        self._trained = False


def _random_state(device: torch.device) -> dict[str, Any]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _restore(state: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
