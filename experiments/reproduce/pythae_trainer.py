"""pythae's trainer on networks of ours; needs ``pip install pythae==0.1.2``, no dependency of this package."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["pythae_trainer"]


def pythae_trainer(
    encoder: nn.Module,
    decoder: nn.Module,
    latent_dim: int,
    images: Tensor,
    batch_size: int,
    reg_weight: float = 10.0,
    learning_rate: float = 1e-3,
) -> Any:
    """pythae's trainer, ready to train its WAE_MMD with the inverse multiquadric kernel on our networks."""
    from pythae.data.datasets import BaseDataset
    from pythae.models import WAE_MMD, WAE_MMD_Config
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    class Encoder(BaseEncoder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = encoder

        def forward(self, x: Tensor) -> Any:
            return ModelOutput(embedding=self.network(x))

    class Decoder(BaseDecoder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = decoder

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.network(z))

    settings = WAE_MMD_Config(
        input_dim=tuple(images.shape[1:]), latent_dim=latent_dim, kernel_choice="imq", reg_weight=reg_weight
    )
    options = BaseTrainerConfig(
        output_dir="pythae",
        per_device_train_batch_size=batch_size,
        no_cuda=images.device.type == "cpu",
        learning_rate=learning_rate,
    )
    data = BaseDataset(images.cpu(), torch.zeros(len(images)))
    trainer = BaseTrainer(WAE_MMD(settings, Encoder(), Decoder()), data, None, options)
    trainer.prepare_training()
    return trainer
