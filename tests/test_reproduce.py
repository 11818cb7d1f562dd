"""The scripts behind RESULTS run on tiny data, and what they write is what an independent computation finds."""

import json
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import evaluate
import figures
import make_bundled_digits
import mnist_results
import numpy as np
import pytest
import pythae_results
import torch
import train
import train_digit_classifier
from test_mnist import write_idx

from datamodules import MNISTDataModule
from datamodules.mnist import BUNDLED_DIGITS, read_digits
from wae_lightning import WAEMMD
from wae_lightning.metrics import DigitFeatures
from wae_lightning.metrics.digit_classifier import DigitClassifier


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Some of the bundled digits in the files of the full set."""
    folder = tmp_path_factory.mktemp("set")
    for part, stem, count in (("train", "train", 600), ("test", "t10k", 200)):
        images, labels = read_digits(BUNDLED_DIGITS, part)
        write_idx(folder / "MNIST" / "raw" / f"{stem}-images-idx3-ubyte", images[:count].reshape(-1, 28, 28))
        write_idx(folder / "MNIST" / "raw" / f"{stem}-labels-idx1-ubyte", labels[:count])
    return folder


def in_this_process(monkeypatch, script, keep=lambda: None):
    """Lets a script call train.py and evaluate.py without the seconds of an import."""
    called = []

    def run(command, cwd=".", **_):
        path = Path(command[1])
        assert path.is_file()
        called.append(path.name)
        with monkeypatch.context() as here:
            here.chdir(cwd)
            here.setattr(sys, "argv", [str(path)])
            {"train.py": train.main, "evaluate.py": evaluate.main}[path.name](command[2:])
            keep()

    monkeypatch.setattr(script, "subprocess", SimpleNamespace(run=run, DEVNULL=None, CalledProcessError=OSError))
    return called


def frechet_distance(a, b):
    """Heusel et al., eq. 6: tr (CD)^½ is the sum of the singular values of C^½ D^½, the roots by eigenvectors."""
    a, b = (x.double().numpy() for x in (a, b))
    roots = []
    for x in (a, b):
        values, vectors = np.linalg.eigh(np.cov(x, rowvar=False))
        roots.append(vectors * values.clip(0) ** 0.5 @ vectors.T)
    c, d = roots
    shared = np.linalg.svd(c @ d, compute_uv=False).sum()
    return np.square(a.mean(0) - b.mean(0)).sum() + np.trace(c @ c) + np.trace(d @ d) - 2 * shared


def digits_of(root):
    data = MNISTDataModule(root)
    data.setup("test")
    return data.test_set.images[data.test_set.rows].float() / 255


def test_the_rows_of_mnist(root, tmp_path, monkeypatch, capsys):
    models = []

    def keep():
        (checkpoint,) = Path().glob("runs/*/version_0/checkpoints/last.ckpt")
        models.append(WAEMMD.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True).eval())

    called = in_this_process(monkeypatch, mnist_results, keep)
    out = tmp_path / "rows.json"
    row = "WAE-MMD, 8 latent units"
    small = ["--model.encoder.width=0.1", "--model.decoder.width=0.1", "--accelerator=cpu"]
    monkeypatch.setitem(mnist_results.ROWS, row, [*mnist_results.ROWS[row], *small])
    flags = ["--rows", row, "--epochs=1", "--num_samples=200", f"--out={out}"]
    mnist_results.main([str(root), "--seeds", "1", *flags])
    assert called == ["train.py", "evaluate.py"]
    found = json.loads(out.read_text())[f"{row}, 1 epochs"]
    assert found["flags"] == mnist_results.ROWS[row]
    (of_seed_1,) = found["runs"]
    assert of_seed_1["seed"] == 1
    # a tenth of the 600 images is kept for validation
    assert of_seed_1["steps"] == 5
    assert not {name for name in of_seed_1 if name.endswith("10k")}
    model, images, features = models[0], digits_of(root), DigitFeatures()
    with torch.no_grad():
        decoded = model(images)
        expected = frechet_distance(features(images), features(decoded))
    assert of_seed_1["fid_digits_reconstructions"] == pytest.approx(expected, rel=1e-3)
    squared = (decoded - images).square().flatten(1).mean(1)
    assert of_seed_1["psnr"] == pytest.approx(float(-10 * squared.mean().log10()), abs=0.3)
    # a second run of a seed takes the first one's place; another seed has a place of its own
    mnist_results.keep(out, row, 1, of_seed_1 | {"psnr": 3.0})
    mnist_results.keep(out, row, 1, of_seed_1 | {"psnr": 5.0, "seed": 0})
    runs = json.loads(out.read_text())[f"{row}, 1 epochs"]["runs"]
    assert [run["psnr"] for run in runs] == [5.0, 3.0]
    assert mnist_results.summary(runs)["psnr"] == pytest.approx({"mean": 4.0, "std": 2**0.5})
    mnist_results.main([f"--out={out}", f"--plot={tmp_path / 'fid.png'}"])
    assert (tmp_path / "fid.png").stat().st_size > 1000


class Stub(SimpleNamespace):
    """What the script uses of pythae's model: two networks, their mean squared error."""

    def eval(self):
        self.encoder.eval()
        self.decoder.eval()


class StubTrainer:
    made: ClassVar = []

    def __init__(self, model, train_dataset, eval_dataset, training_config):
        self.model, self.data, self.flags = model, train_dataset, training_config
        self.made.append(self)

    def prepare_training(self):
        networks = [self.model.encoder, self.model.decoder]
        self.optimizer = torch.optim.SGD([p for network in networks for p in network.parameters()], 1e-3)

    def train_step(self, epoch):
        x = self.data.images[: self.flags.per_device_train_batch_size]
        reconstruction = self.model.decoder(self.model.encoder(x).embedding).reconstruction
        (reconstruction - x).square().mean().backward()
        self.optimizer.step()


@pytest.fixture
def pythae(monkeypatch):
    """pythae's names, where it is not installed: a stand-in with the same calls."""
    names = {
        "data.datasets": {"BaseDataset": lambda images, labels: SimpleNamespace(images=images)},
        "models": {
            "WAE_MMD": lambda settings, encoder, decoder: Stub(settings=settings, encoder=encoder, decoder=decoder),
            "WAE_MMD_Config": SimpleNamespace,
        },
        "models.base.base_utils": {"ModelOutput": SimpleNamespace},
        "models.nn": {"BaseEncoder": torch.nn.Module, "BaseDecoder": torch.nn.Module},
        "trainers": {"BaseTrainer": StubTrainer, "BaseTrainerConfig": SimpleNamespace},
    }
    for name, members in names.items():
        parts = ["pythae", *name.split(".")]
        for length in range(1, len(parts) + 1):
            full = ".".join(parts[:length])
            if full not in sys.modules or not hasattr(sys.modules[full], "stub"):
                monkeypatch.setitem(sys.modules, full, ModuleType(full))
                sys.modules[full].stub = True
        vars(sys.modules[".".join(parts)]).update(members)
    monkeypatch.setattr(StubTrainer, "made", [])


@torch.no_grad()
def test_the_rows_of_pythae(root, tmp_path, monkeypatch, pythae):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pythae_results.py"])
    out = tmp_path / "rows.json"
    flags = ["--reg_weights", "3", "--seconds", "0.001", "--num_samples=500", f"--out={out}"]
    with torch.enable_grad():
        pythae_results.main([str(root), *flags])
    (row,) = json.loads(out.read_text())
    (trainer,) = StubTrainer.made
    assert (row["reg_weight"], row["learning_rate"], row["epochs"]) == (3, 1e-3, 1)
    assert (trainer.model.settings.reg_weight, trainer.model.settings.latent_dim) == (3, 16)
    assert trainer.flags.per_device_train_batch_size == 200
    encoder, decoder = trainer.model.encoder.network.eval(), trainer.model.decoder.network.eval()
    images, features = digits_of(root), DigitFeatures()
    real = features(images)
    expected = frechet_distance(real, features(decoder(encoder(images))))
    assert row["fid_digits_reconstructions"] == pytest.approx(expected, rel=1e-3)
    drawn = features(decoder(torch.randn(500, 16, generator=torch.Generator().manual_seed(0))))
    assert row["fid_digits_500"] == pytest.approx(frechet_distance(real, drawn), rel=1e-3)


def test_the_bundled_digits_are_a_sample_of_the_full_set(root, tmp_path, capsys):
    out = tmp_path / "digits.h5"
    make_bundled_digits.main([str(root), "--train=40", "--test=15", f"--out={out}"])
    for part, stem, count in (("train", "train", 40), ("test", "t10k", 15)):
        raw = root / "MNIST" / "raw"
        whole = np.frombuffer((raw / f"{stem}-images-idx3-ubyte").read_bytes()[16:], np.uint8).reshape(-1, 784)
        labels = (raw / f"{stem}-labels-idx1-ubyte").read_bytes()[8:]
        images, of_images = read_digits(out, part)
        places = [int((whole == image).all(1).argmax()) for image in images.reshape(-1, 784).numpy()]
        assert len(set(places)) == count == len(images)
        assert [labels[place] for place in places] == of_images.tolist()
        # drawn from the whole set, not its beginning
        assert max(places) > 2 * count
    assert capsys.readouterr().out == f"{out}: {out.stat().st_size / 1e6:.2f} MB\n"


@torch.no_grad()
def test_the_digit_classifier_is_trained_and_its_accuracy_is_that_of_the_file(root, tmp_path, capsys):
    out = tmp_path / "classifier.pt"
    with torch.enable_grad():
        train_digit_classifier.main([str(root), "--epochs=4", f"--out={out}"])
    weights = torch.load(out, weights_only=True)
    assert {weight.dtype for weight in weights.values() if weight.is_floating_point()} == {torch.float16}
    classifier = DigitClassifier()
    classifier.load_state_dict({name: weight.float() for name, weight in weights.items()})
    labels = np.frombuffer((root / "MNIST/raw/t10k-labels-idx1-ubyte").read_bytes()[8:], np.uint8)
    right = (classifier.eval()(digits_of(root)).argmax(1).numpy() == labels).mean()
    assert right > 0.2
    (printed,) = re.findall(r"([\d.]+)% on test", capsys.readouterr().out)
    assert float(printed) == pytest.approx(100 * right, abs=0.006)


def test_figures_trains_the_models_it_is_not_given(root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    called = in_this_process(monkeypatch, figures)
    small = ["--max_epochs=1", "--limit_train_batches=2", "--limit_val_batches=1", "--limit_test_batches=1"]
    flags = [*small, "--model.encoder.width=0.1", "--model.decoder.width=0.1", f"--data.root={root}"]
    figures.main(["2", f"--out={tmp_path / 'figure.png'}", *flags])
    assert called == ["train.py"] * 2
    runs = [str(path.relative_to(tmp_path)) for path in tmp_path.glob("runs/**/last.ckpt")]
    assert sorted(runs) == [
        f"runs/figures/{config}/version_0/checkpoints/last.ckpt" for config in ("mnist_wae_gan", "mnist_wae_mmd")
    ]
    assert (tmp_path / "figure.png").is_file()


class Grey(torch.nn.Module):
    def __init__(self, level):
        super().__init__()
        self.level = torch.nn.Parameter(torch.tensor(level))

    def forward(self, z):
        return self.level.expand(len(z), 1, 28, 28)


def test_each_model_stands_under_its_own_name():
    data = MNISTDataModule()
    models = [WAEMMD(decoder=Grey(level)).eval() for level in (0.25, 0.75)]
    figure = figures.draw(2, models, data)
    for name, level in (("WAE-MMD", 0.25), ("WAE-GAN", 0.75)):
        for part in ("reconstructions", "interpolations", "samples"):
            (axes,) = (axes for axes in figure.axes if axes.get_title() == f"{name}: {part}")
            pixels = np.asarray(axes.images[0].get_array())
            assert (pixels == level).mean() > 0.3
            assert (pixels == 1 - level).mean() < 0.05
    assert len(figure.axes) == 6
