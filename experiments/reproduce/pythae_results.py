"""Trains and measures pythae's WAE on our networks: ``python experiments/reproduce/pythae_results.py DIR``.

Needs ``pip install pythae==0.1.2``, no dependency of this package. Its trainer and its WAE_MMD with the inverse
multiquadric kernel run on the networks, training images and batch size of ``mnist_wae_mmd`` (the encoder without
its noise, which pythae's WAE does not have) for a given CPU time. Samples are decoded from N(0, I), as pythae does
unless told otherwise, and from what its samplers fit to the codes of the training images afterwards.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pythae_trainer import pythae_trainer
from records import EXPERIMENTS, commit, hardware, write_json
from torch import Tensor

from wae_lightning.cli.flags import complete_flags
from wae_lightning.cli.train import Train
from wae_lightning.evaluation.images import Comparison, choose_features, format_count, read_test_images

SAMPLERS = ("N(0, I)", "mixture of 10", "mixture of 50", "MAF")


def sampler_of(name: str, model: Any, images: Tensor) -> Any:
    """One of pythae's samplers, fitted to the codes of images; its MAF in 10 epochs at a learning rate of 1e-3."""
    from pythae.samplers import (
        GaussianMixtureSampler,
        GaussianMixtureSamplerConfig,
        MAFSampler,
        MAFSamplerConfig,
        NormalSampler,
    )
    from pythae.trainers import BaseTrainerConfig

    if name == "N(0, I)":
        return NormalSampler(model)
    if name == "MAF":
        sampler = MAFSampler(model, MAFSamplerConfig())
        how = BaseTrainerConfig("pythae", num_epochs=10, learning_rate=1e-3, per_device_train_batch_size=200)
        sampler.fit(images, training_config=how)
        return sampler
    sampler = GaussianMixtureSampler(model, GaussianMixtureSamplerConfig(n_components=int(name.split()[-1])))
    sampler.fit(images)
    return sampler


def rows_of(
    root: Path,
    reg_weight: float,
    seconds: list[float],
    seed: int,
    learning_rate: float,
    num_samples: int,
    samplers: list[str],
) -> Iterator[dict[str, Any]]:
    """One training, measured by each sampler whenever its CPU time reaches one of ``seconds``."""
    flags = ["--config=mnist_wae_mmd", "--model.noise=null", "--model.encoder.latent_dim=16", f"--data.root={root}"]
    run = Train(complete_flags([*flags, f"--seed_everything={seed}"])[0], "pythae")
    data, model = run.datamodule, run.model
    data.prepare_data()
    data.setup("fit")
    images = data.train_set.images[data.train_set.rows].float() / 255
    networks = model.encoder, model.decoder, model.latent_dim
    trainer = pythae_trainer(*networks, images, data.batch_size, reg_weight, learning_rate)
    comparison = Comparison(read_test_images(data), choose_features("digits", (1, 28, 28), None))
    epochs, spent = 0, 0.0
    for goal in sorted(seconds):
        # the last epoch may end some seconds late
        while spent + spent / max(epochs, 1) / 2 < goal:
            start = time.process_time()
            epochs += 1
            trainer.train_step(epochs)
            spent += time.process_time() - start
        trainer.model.eval()
        with torch.no_grad():
            reconstructed = (model.decoder(model.encoder(x)) for x in read_test_images(data))
            measured = comparison.measure(reconstructed, only_distances=True)
        known = {"reg_weight": reg_weight, "seed": seed, "seconds": goal, "epochs": epochs}
        known |= {f"{name}_reconstructions": value for name, value in measured.items()}
        for name in samplers:
            start = time.process_time()
            sampler = sampler_of(name, trainer.model, images)
            fitting = time.process_time() - start
            torch.manual_seed(0)
            measured = comparison.measure(sampler.sample(num_samples).split(500))
            measured = {f"{key}_{format_count(num_samples)}": value for key, value in measured.items()}
            yield known | {"sampler": name, "cpu_seconds": round(spent + fitting, 1), **measured}


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder that holds MNIST/raw")
    parser.add_argument("--reg_weights", type=float, nargs="+", default=[0.03, 10.0, 200.0], help="(0.03 10 200)")
    parser.add_argument("--seconds", type=float, nargs="+", default=[240.0], help="CPU times to measure at (240)")
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS), choices=SAMPLERS, help="(all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="(0)")
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="(1e-3; pythae's default is 1e-4)")
    parser.add_argument("--num_samples", type=int, default=10_000, help="(10000)")
    parser.add_argument("--out", type=Path, default=EXPERIMENTS / "results" / "pythae.json", help="JSON file to write")
    arguments = parser.parse_args(given)
    torch.set_num_threads(1)  # CPU time is then the time of one core
    root, out = arguments.root.resolve(), arguments.out.resolve()
    rows: list[dict[str, Any]] = json.loads(out.read_text()) if out.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # pythae writes into the working directory
        for reg_weight, seed in itertools.product(arguments.reg_weights, arguments.seeds):
            how = seed, arguments.learning_rate, arguments.num_samples, arguments.samplers
            for row in rows_of(root, reg_weight, arguments.seconds, *how):
                known = {"commit": commit(), "hardware": hardware(), "learning_rate": arguments.learning_rate}
                rows.append(known | row)
                print(rows[-1], flush=True)
                write_json(out, rows)


if __name__ == "__main__":
    main()
