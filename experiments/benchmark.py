"""Measures training throughput against a bare PyTorch loop: ``python experiments/benchmark.py``.

Lightning (the config as train.py runs it, with logging, pictures and checkpoints) and a bare loop over the same
networks, batch size and loss, with the data as one float tensor, take turns; the medians are compared. Lightning's
first epoch, in which much is set up, does not count.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import train
from pytorch_lightning import Callback
from torch import Tensor

from wae_lightning import WAE
from wae_lightning.penalties.adversarial import Adversarial


class EpochTimes(Callback):
    """Notes for each epoch how long its training batches took, and how long it took with all that surrounds them."""

    def __init__(self) -> None:
        self.training: list[float] = []
        self.whole: list[float] = []

    def on_train_epoch_start(self, *_: Any) -> None:
        self.start = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.is_last_batch:
            self.training.append(time.perf_counter() - self.start)

    def on_train_epoch_end(self, *_: Any) -> None:
        self.whole.append(time.perf_counter() - self.start)


def lightning_epoch(config: str, root: str | None, batches: int) -> tuple[float, float, Any]:
    """Trains for two epochs and returns seconds of the second: its batches, and all of it; and the command line."""
    flags = [f"--config={config}", "--max_epochs=2", f"--limit_train_batches={batches}", "--enable_model_summary=false"]
    flags += [f"--data.root={root}"] if root else []
    run = train.Train(*train.with_full_names(flags))
    times = EpochTimes()
    # first, so that the other callbacks' work lies between its two marks
    run.trainer.callbacks.insert(0, times)
    run.trainer.fit(run.model, run.datamodule)
    return times.training[1], times.whole[1], run


def bare_epoch(model: WAE, images: Tensor, batch_size: int, batches: int) -> float:
    """The same training in plain PyTorch; returns its seconds."""
    model = copy.deepcopy(model).train()
    penalty, weight = model.penalty, model.penalty_weight
    of_critic = set(penalty.parameters())
    optimizer = torch.optim.Adam([p for p in model.parameters() if p not in of_critic], lr=1e-3)
    critic_optimizer = torch.optim.Adam(penalty.parameters(), lr=1e-3) if of_critic else None
    start = time.perf_counter()
    for rows in torch.randperm(len(images)).split(batch_size)[:batches]:
        x = images[rows]
        z = model._encode(x, noise=True)
        cost = model.cost(x, model.decode(z)).mean()
        loss = cost + weight * penalty(z, model.prior.sample(len(z)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if critic_optimizer is not None:
            assert isinstance(penalty, Adversarial)
            critic_loss, _ = penalty.critic_loss(z.detach(), model.prior.sample(len(z)))
            critic_optimizer.zero_grad()
            (weight * critic_loss).backward()
            critic_optimizer.step()
    return time.perf_counter() - start


def compare(config: str, root: str | None, batches: int, rounds: int) -> dict[str, float]:
    """Takes turns and returns the medians of images per second."""
    lightning, whole, bare = [], [], []
    for _ in range(rounds):
        seconds, seconds_whole, run = lightning_epoch(config, root, batches)
        data = run.datamodule
        batch_size = data.batch_size
        count = min(batches, len(data.train_set) // batch_size) * batch_size
        images = data.train_set.images[data.train_set.rows].float() / 255
        bare_epoch(run.model, images, batch_size, 5)
        bare.append(count / bare_epoch(run.model, images, batch_size, batches))
        lightning.append(count / seconds)
        whole.append(count / seconds_whole)
    return {
        "lightning_images_per_second": statistics.median(lightning),
        "lightning_with_validation_pictures_checkpoints": statistics.median(whole),
        "bare_loop_images_per_second": statistics.median(bare),
        "ratio": statistics.median(a / b for a, b in zip(lightning, bare, strict=True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", nargs="+", default=["mnist_wae_mmd", "mnist_wae_gan"], help="configs of images")
    parser.add_argument("--data.root", dest="root", help="folder of the full set; without it: the bundled digits")
    parser.add_argument("--batches", type=int, default=270, help="training batches of each epoch (270)")
    parser.add_argument("--rounds", type=int, default=5, help="how often the two take turns (5)")
    parser.add_argument("--threads", type=int, help="threads of PyTorch (its own choice)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    sys.argv = sys.argv[:1]
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    root = str(Path(arguments.root).resolve()) if arguments.root else None
    out = arguments.out.resolve() if arguments.out else None
    results: dict[str, Any] = {
        "device": f"CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
    }
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for config in arguments.config:
            results[config] = compare(config, root, arguments.batches, arguments.rounds)
        os.chdir("/")
    for config in arguments.config:
        print(f"\n{config} ({results['device']}; {results['versions']})")
        for name, value in results[config].items():
            print(f"  {name:48} {value:10.3f}" if name == "ratio" else f"  {name:48} {value:10.0f}")
    if out:
        out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
