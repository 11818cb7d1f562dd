"""Trains the digit classifier that the package ships (``wae_lightning/metrics/digit_classifier.pt``).

python experiments/reproduce/train_digit_classifier.py DIR   (DIR holds the full MNIST; about 8 minutes on two cores)

It sees the whole official training set, each image slightly rotated, scaled, sheared and shifted; the test set only
tells the accuracy that is printed at the end.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules import MNISTDataModule
from wae_lightning.checkpoints import read_plain
from wae_lightning.metrics.digit_classifier import WEIGHTS, DigitClassifier


def slightly_distorted(images: Tensor) -> Tensor:
    """Applies a random affine map near the identity to each image."""
    matrices = torch.eye(2, 3) + torch.randn(len(images), 2, 3) * torch.tensor([0.08, 0.08, 0.06])
    return F.grid_sample(images, F.affine_grid(matrices, list(images.shape), align_corners=False), align_corners=False)


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="folder that holds MNIST/raw")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="file of weights to write")
    arguments = parser.parse_args(given)
    torch.manual_seed(0)
    data = MNISTDataModule(arguments.root)
    data.setup("fit")
    images, labels = data.train_set.images, data.train_set.labels
    classifier = DigitClassifier().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=1e-3, weight_decay=0.01)
    steps = len(images) // 128
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps * arguments.epochs)
    for epoch in range(arguments.epochs):
        for rows in torch.randperm(len(images)).split(128)[:steps]:
            x = slightly_distorted(images[rows].float() / 255)
            loss = F.cross_entropy(classifier(x), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}: training loss {loss:.4f}", flush=True)
    out = arguments.out
    torch.save({name: tensor.half().contiguous() for name, tensor in classifier.state_dict().items()}, out)
    shipped = DigitClassifier()
    shipped.load_state_dict(read_plain(out))
    test = data.test_set
    with torch.no_grad():
        predicted = torch.cat([shipped.eval()(part.float() / 255).argmax(1) for part in test.images.split(1000)])
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB, {(predicted == test.labels).float().mean():.2%} on test")


if __name__ == "__main__":
    main()
