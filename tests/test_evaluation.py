"""The measures as functions: what they need of a data module, and values computed anew."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from datamodules import MNISTDataModule, ModelNet40DataModule
from wae_lightning import WAEMMD, ConditionalWAE, PointNetWAE
from wae_lightning.cli import evaluate as command
from wae_lightning.cli import train
from wae_lightning.evaluation import clouds, evaluate, images
from wae_lightning.lightning import LightningDataModule
from wae_lightning.networks import ConvDecoder, ConvEncoder, FullyConnectedDecoder, PointNetClassifier, PointNetEncoder

OWN_DATA = """
import torch
from torch.utils.data import DataLoader, TensorDataset
from wae_lightning.lightning import LightningDataModule

class Stripes(LightningDataModule):
    '''Batches of float images, and nothing else that our data modules have.'''

    def __init__(self, batch_size: int = 20) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.batch_size = batch_size

    def setup(self, stage=None):
        widths = torch.arange(80) % 6 + 1
        images = (torch.arange(28) // widths[:, None] % 2).float()[:, None, None].expand(-1, 1, 28, 28)
        self.sets = {"train": TensorDataset(images[:60], widths[:60]), "test": TensorDataset(images[60:], widths[60:])}

    def train_dataloader(self):
        return DataLoader(self.sets["train"], self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.sets["test"], self.batch_size)

    test_dataloader = val_dataloader
"""
CONFIG = """
model:
  class_path: wae_lightning.WAEMMD
  init_args: {latent_dim: 4}
data:
  class_path: strange_stripes.Stripes
"""


def no_inception(weights):
    raise ValueError("no weights here")


def small_model():
    encoder, decoder = ConvEncoder((1, 28, 28), 4, width=0.02), ConvDecoder(4, (1, 28, 28), width=0.02)
    return WAEMMD(latent_dim=4, encoder=encoder, decoder=decoder).eval()


def test_a_model_of_ones_own_data_module_is_trained_and_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "strange_stripes.py").write_text(OWN_DATA)
    (tmp_path / "my.yaml").write_text(CONFIG)
    train.main(["--config=my.yaml", "--max_epochs=1", "--enable_progress_bar=false"])
    run = "runs/my/version_0"
    # stripes are no digits, though they have their shape: that classifier is for those who ask for it
    monkeypatch.setattr(images, "InceptionFeatures", no_inception)
    command.main([run, "--import", "strange_stripes", "--num_samples=12"])
    printed = capsys.readouterr().out
    assert "no weights here. FID, KID, precision and recall are left out." in printed
    assert "psnr" in printed
    assert "_digits_" not in printed
    flags = ["--num_samples=12", "--data.batch_size=5", "--features=digits"]
    command.main([run, "--import", "strange_stripes", *flags])
    printed = capsys.readouterr().out
    assert "A mixture of 50 does not fit to 12 codes: its rows are left out." in printed
    assert "fid_digits_12_mixture_of_10_fitted_to_codes" in printed
    with pytest.raises(SystemExit):
        command.main([run, "--data.batchsize=5", "--import", "strange_stripes"])
    assert "--data.batchsize: Stripes takes batch_size" in capsys.readouterr().err


def test_measuring_leaves_the_data_module_as_it_was():
    data = MNISTDataModule(batch_size=77)
    model = small_model()
    results = evaluate(model, data, num_samples=30)
    assert data.batch_size == 77
    x = data.test_set.images.float() / 255
    with torch.no_grad():
        expected = (model(x) - x).square().mean().item()
    assert results["mse"] == pytest.approx(expected, rel=1e-4)
    assert evaluate(model, data, num_samples=30) == results


@pytest.mark.parametrize(
    ("content", "weights", "expected"),
    [("digits", None, "digits"), (None, None, None), ("digits", "weights.pth", "inception"), ("shirts", None, None)],
)
def test_only_digits_are_compared_by_the_digit_classifier(monkeypatch, content, weights, expected):
    monkeypatch.setattr(images, "InceptionFeatures", lambda weights: no_inception(weights) if weights is None else 1)
    assert images.choose_features("auto", (1, 28, 28), weights, content)[0] == expected


def test_what_cannot_be_measured_is_said():
    with pytest.raises(ValueError, match="num_samples must be at least 2, got 1"):
        evaluate(small_model(), MNISTDataModule(), num_samples=1)
    for model in (PointNetWAE(latent_dim=4), ConditionalWAE(latent_dim=4)):
        with pytest.raises(ValueError, match=r"name their folder with --data.root DIR"):
            evaluate(model.eval(), None)
    with pytest.raises(ValueError, match="the model holds no training codes"):
        evaluate(small_model(), None, num_samples=2)


def squared_distances(a, b):
    return ((a[:, None, :] - b[None, :, :]) ** 2).sum(-1)


def test_clouds_are_measured_as_defined(tmp_path, monkeypatch):
    monkeypatch.setattr(clouds, "SET_POINTS", 32)
    monkeypatch.setattr(clouds, "EMD_CLOUDS", 4)
    monkeypatch.setattr(clouds, "EMD_POINTS", 16)
    data = ModelNet40DataModule(num_points=48, source="shapes", classes=["box", "lamp"])
    data.setup("fit")
    for name, count in (("train_set", 90), ("test_set", 12)):
        part = getattr(data, name)
        rows = torch.linspace(0, len(part.points) - 1, count).long()
        setattr(data, name, SimpleNamespace(points=part.points[rows], labels=part.labels[rows]))
    monkeypatch.setattr(data, "setup", lambda stage: None)
    judge = PointNetClassifier(len(data.class_names))
    torch.save(judge.state_dict(), tmp_path / "judge.pt")
    model = PointNetWAE(
        latent_dim=4,
        num_points=48,
        encoder=PointNetEncoder(4, [16, 16], [8]),
        decoder=FullyConnectedDecoder(4, 48, [16]),
    ).eval()
    results = evaluate(model, data, classifier=tmp_path / "judge.pt")
    target = data.test_set.points[:, :48]
    with torch.no_grad():
        found = model(target)
    distances = [squared_distances(a, b) for a, b in zip(target.numpy(), found.numpy(), strict=True)]
    chamfer = np.mean([d.min(0).mean() + d.min(1).mean() for d in distances])
    assert results["CD x1e3"] == pytest.approx(1e3 * chamfer, rel=1e-3)
    with torch.no_grad():
        codes = model.encode(data.train_set.points[:, :48])
    assert results["codes: mean square per dimension"] == pytest.approx(codes.square().mean().item(), rel=0.05)
    assert {"prior: 1-NNA-CD", "prior: MMD-CD x1e3", "mixture of 32 fitted to the codes: COV-CD"} <= results.keys()
    # each of the two sets has one cloud for each test cloud
    assert results["prior: COV-CD"] * 12 == pytest.approx(round(results["prior: COV-CD"] * 12))


def test_only_the_test_clouds_are_turned(monkeypatch):
    seen = []

    class Judge:
        def update(self, codes, labels, train):
            seen.append((train, codes))

        def compute(self):
            return 0.0

    monkeypatch.setattr(clouds, "LinearSVMAccuracy", Judge)
    part = torch.randn(3, 5, 3)
    data = type("Data", (LightningDataModule,), {"num_points": 5})()
    data.train_set = data.test_set = type("Set", (), {"points": part, "labels": torch.zeros(3)})
    clouds.measure_svm_accuracy(lambda points: points, data, turn=True)
    (_, training), (_, test) = sorted(seen, key=lambda pair: not pair[0])
    assert torch.equal(training, part)
    assert not torch.allclose(test, part)
    torch.testing.assert_close(test[..., 1], part[..., 1])  # about the y axis
    torch.testing.assert_close(test.norm(dim=2), part.norm(dim=2))
