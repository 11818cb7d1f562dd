"""Trains and measures pythae's WAE on our networks: ``python experiments/pythae_results.py DIR``.

Needs ``pip install pythae==0.1.2``, no dependency of this package. Its trainer and its WAE_MMD with the inverse
multiquadric kernel run on the networks, training images and batch size of ``mnist_wae_mmd`` (the encoder without
its noise, which pythae's WAE does not have) for a given CPU time. Samples are decoded from N(0, I), as pythae does.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import train
from evaluate import compare, features_of, test_images
from mnist_results import commit, hardware
from pythae.data.datasets import BaseDataset
from pythae.models import WAE_MMD, WAE_MMD_Config
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from torch import Tensor, nn

from wae_lightning.metrics import DigitFeatures

HERE = Path(__file__).resolve().parent


class Encoder(BaseEncoder):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Any:
        return ModelOutput(embedding=self.network(x))


class Decoder(BaseDecoder):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, z: Tensor) -> Any:
        return ModelOutput(reconstruction=self.network(z))


@torch.no_grad()
def distances(decoder: nn.Module, encoder: nn.Module, latent_dim: int, data: Any, num_samples: int) -> dict[str, float]:
    """digits-FID and its kin of samples, and digits-FID of reconstructions."""
    extractor = DigitFeatures()
    generator = torch.Generator().manual_seed(0)
    real = features_of(test_images(data), extractor)
    codes = torch.randn(num_samples, latent_dim, generator=generator).split(500)
    drawn = compare(real, features_of(map(decoder, codes), extractor))
    reconstructed = features_of((decoder(encoder(images)) for images in test_images(data)), extractor)
    found = {f"{name}_digits_{num_samples // 1000}k": value for name, value in drawn.items()}
    return found | {"fid_digits_reconstructions": compare(real, reconstructed)["fid"]}


def rows_of(
    root: Path, reg_weight: float, seconds: list[float], seed: int, learning_rate: float
) -> Iterator[dict[str, Any]]:
    """One training, measured whenever its CPU time reaches one of ``seconds``."""
    flags = ["--config=mnist_wae_mmd", "--model.noise=null", "--model.encoder.latent_dim=16", f"--data.root={root}"]
    run = train.Train(train.with_full_names([*flags, f"--seed_everything={seed}"])[0], "pythae")
    data, model = run.datamodule, run.model
    data.prepare_data()
    data.setup("fit")
    images = data.train_set.images[data.train_set.rows].float() / 255
    settings = WAE_MMD_Config(
        input_dim=(1, 28, 28), latent_dim=model.latent_dim, kernel_choice="imq", reg_weight=reg_weight
    )
    wae = WAE_MMD(settings, Encoder(model.encoder), Decoder(model.decoder))
    options = BaseTrainerConfig(
        output_dir="pythae", per_device_train_batch_size=data.batch_size, no_cuda=True, learning_rate=learning_rate
    )
    trainer = BaseTrainer(wae, BaseDataset(images, torch.zeros(len(images))), None, options)
    trainer.prepare_training()
    epochs, spent = 0, 0.0
    for goal in sorted(seconds):
        # the last epoch may end some seconds late
        while spent + spent / max(epochs, 1) / 2 < goal:
            start = time.process_time()
            epochs += 1
            trainer.train_step(epochs)
            spent += time.process_time() - start
        wae.eval()
        measured = distances(model.decoder, model.encoder, model.latent_dim, data, 10_000)
        yield {"reg_weight": reg_weight, "seed": seed, "epochs": epochs, "cpu_seconds": round(spent, 1), **measured}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder that holds MNIST/raw")
    parser.add_argument("--reg_weights", type=float, nargs="+", default=[0.03, 10.0, 200.0], help="(0.03 10 200)")
    parser.add_argument("--seconds", type=float, nargs="+", default=[240.0], help="CPU times to measure at (240)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="(1e-3; pythae's default is 1e-4)")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "pythae.json", help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # CPU time is then the time of one core
    root, out = arguments.root.resolve(), arguments.out.resolve()
    rows: list[dict[str, Any]] = json.loads(out.read_text()) if out.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for reg_weight in arguments.reg_weights:
            for row in rows_of(root, reg_weight, arguments.seconds, arguments.seed, arguments.learning_rate):
                rows.append(
                    {"commit": commit(), "hardware": hardware(), "learning_rate": arguments.learning_rate, **row}
                )
                print(rows[-1], flush=True)
                out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
