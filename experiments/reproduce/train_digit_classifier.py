"""Trains a digit classifier that the package ships, ``wae_lightning/metrics/digit_classifier.pt``; --twin: the other.

python experiments/reproduce/train_digit_classifier.py DIR   (DIR holds the full MNIST; about 8 minutes on two cores)

It sees the whole official training set, each image slightly rotated, scaled, sheared and shifted; the test set only
tells the accuracy that is printed at the end. The twin (about 5 minutes of one core) sees a quarter of the images so;
the others are moved by whole pixels, which leaves them as sharp as they are, and a third of these is blurred. It learns
the class and how far the image was blurred.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur

from datamodules import MNISTDataModule
from wae_lightning.checkpoints import read_plain
from wae_lightning.metrics import DigitClassifier, DigitClassifierTwin


def slightly_distorted(images: Tensor) -> Tensor:
    """Applies a random affine map near the identity to each image."""
    matrices = torch.eye(2, 3) + torch.randn(len(images), 2, 3) * torch.tensor([0.08, 0.08, 0.06])
    return F.grid_sample(images, F.affine_grid(matrices, list(images.shape), align_corners=False), align_corners=False)


def shifted(images: Tensor) -> Tensor:
    """Moves all images by the same whole pixels, at most two: they stay as sharp as they are."""
    right, down = torch.randint(-2, 3, (2,)).tolist()
    return images.roll((down, right), (2, 3))


def loss_of(classifier: DigitClassifier, images: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the classes and, for the twin, the error of the blur's standard deviation in pixels."""
    if not isinstance(classifier, DigitClassifierTwin):
        return F.cross_entropy(classifier(slightly_distorted(images)), labels)
    distorted, *sharp, blurred = images.chunk(4)
    sigmas = torch.empty(2).uniform_(0.2, 1.5)
    soft = [gaussian_blur(part, 7, float(sigma)) for part, sigma in zip(shifted(blurred).chunk(2), sigmas, strict=True)]
    features = classifier.features(torch.cat([slightly_distorted(distorted), *map(shifted, sharp), *soft]))
    sharpness = [torch.zeros(len(part)) for part in sharp]
    blur = torch.cat([*sharpness, *(sigma.expand(len(part)) for part, sigma in zip(soft, sigmas, strict=True))])
    found = classifier.blur(features[len(distorted) :]).squeeze(1)
    return F.cross_entropy(classifier.output(features), labels) + F.l1_loss(found, blur)


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="folder that holds MNIST/raw")
    parser.add_argument("--twin", action="store_true", help="train the second one")
    parser.add_argument("--epochs", type=int, help="(8; the twin: 5)")
    parser.add_argument("--out", type=Path, help="file of weights to write")
    arguments = parser.parse_args(given)
    kind = DigitClassifierTwin if arguments.twin else DigitClassifier
    epochs, out = arguments.epochs or (5 if arguments.twin else 8), arguments.out or kind.weights
    torch.manual_seed(int(arguments.twin))
    data = MNISTDataModule(arguments.root)
    data.setup("fit")
    images, labels = data.train_set.images, data.train_set.labels
    classifier = kind().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=1e-3, weight_decay=0.01)
    steps = len(images) // 128
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps * epochs)
    for epoch in range(epochs):
        for rows in torch.randperm(len(images)).split(128)[:steps]:
            loss = loss_of(classifier, images[rows].float() / 255, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}: training loss {loss:.4f}", flush=True)
    torch.save({name: tensor.half().contiguous() for name, tensor in classifier.state_dict().items()}, out)
    shipped = kind()
    shipped.load_state_dict(read_plain(out))
    test = data.test_set
    with torch.no_grad():
        predicted = torch.cat([shipped.eval()(part.float() / 255).argmax(1) for part in test.images.split(1000)])
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB, {(predicted == test.labels).float().mean():.2%} on test")


if __name__ == "__main__":
    main()
