"""Networks compiled by torch when training starts."""

from __future__ import annotations

from collections.abc import Sequence

from wae_lightning.lightning import Callback, LightningModule, Trainer

__all__ = ["CompileNetworks"]


class CompileNetworks(Callback):
    """Compiles some of a model's networks in place: the names of their weights stay as they are.

    Args:
        names: Attributes of the model that hold the networks.
        mode: ``torch.compile``'s mode; None: its default. Modes with CUDA graphs are refused: the graphs of two
            networks would overwrite each other's outputs between training and validation.

    Raises:
        ValueError: If the mode uses CUDA graphs.
    """

    def __init__(self, names: Sequence[str], mode: str | None = None) -> None:
        if mode in ("reduce-overhead", "max-autotune"):
            raise ValueError(
                f"compile: the mode {mode} uses CUDA graphs; expected default or max-autotune-no-cudagraphs"
            )
        self.names = tuple(names)
        self.mode = mode

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name in self.names:
            getattr(pl_module, name).compile(mode=self.mode)
