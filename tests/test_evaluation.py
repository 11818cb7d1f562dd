"""The measures as functions: what they need of a data module, and values computed anew."""

import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from test_reproduce import frechet_distance

from datamodules import MNISTDataModule, ModelNet40DataModule
from wae_lightning import WAEMMD, ConditionalWAE, PointNetWAE
from wae_lightning.cli import evaluate as command
from wae_lightning.cli import train
from wae_lightning.evaluation import clouds, evaluate, images
from wae_lightning.evaluation.codes import noise_share
from wae_lightning.evaluation.completions import LabelNet
from wae_lightning.evaluation.images import Comparison
from wae_lightning.lightning import LightningDataModule
from wae_lightning.metrics import DigitFeatures, PatchDistance
from wae_lightning.networks import (
    ConvDecoder,
    ConvEncoder,
    FullyConnectedDecoder,
    MixtureFlow,
    PointNetClassifier,
    PointNetEncoder,
)
from wae_lightning.noise import FixedNoise, InputNoise
from wae_lightning.priors import Normal
from wae_lightning.samplers import MixtureSampler

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


def test_results_of_several_test_loaders_are_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    monkeypatch.syspath_prepend(str(tmp_path))
    two = "def test_dataloader(self): return [self.val_dataloader(), self.val_dataloader()]"
    (tmp_path / "stripes_twice.py").write_text(OWN_DATA.replace("test_dataloader = val_dataloader", two))
    (tmp_path / "my.yaml").write_text(CONFIG.replace("strange_stripes", "stripes_twice"))
    train.main(["--config=my.yaml", "--max_epochs=1", "--enable_progress_bar=false"])
    results = json.loads((tmp_path / "runs/my/version_0/metrics.json").read_text())
    assert {"test/cost", "test/cost/dataloader_idx_1"} <= set(results)


@pytest.mark.parametrize("kind", ["missing", "empty", "none"])
def test_without_a_test_set_a_run_is_kept_and_cannot_be_measured(tmp_path, monkeypatch, capsys, kind):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    monkeypatch.syspath_prepend(str(tmp_path))
    how = {"missing": "", "empty": "def test_dataloader(self): return []", "none": "def test_dataloader(self): pass"}
    module = f"stripes_test_{kind}"
    own = OWN_DATA.replace("test_dataloader = val_dataloader", how[kind])
    (tmp_path / f"{module}.py").write_text(own)
    (tmp_path / "my.yaml").write_text(CONFIG.replace("strange_stripes", module))
    train.main(["--config=my.yaml", "--max_epochs=1", "--enable_progress_bar=false"])
    assert "There is no test set, or nothing of it was asked for.\nTrained for" in capsys.readouterr().out
    results = json.loads((tmp_path / "runs/my/version_0/metrics.json").read_text())
    assert results["steps"] == 3
    assert not any("test" in name for name in results)
    with pytest.raises(SystemExit) as stop:
        command.main(["runs/my/version_0", "--import", module, "--num_samples=12", "--features=digits"])
    assert stop.value.code == 2
    message = "error: Stripes has no test data: its test_dataloader is missing or gives no batches\n"
    assert capsys.readouterr().err.endswith(message)


def test_measuring_leaves_the_data_module_as_it_was(few_digits):
    data = MNISTDataModule(few_digits, batch_size=77)
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
    [
        ("digits", None, ["digits", "digits_twin"]),
        (None, None, []),
        ("digits", "weights.pth", ["inception"]),
        ("shirts", None, []),
    ],
)
def test_only_digits_are_compared_by_the_digit_classifier(monkeypatch, content, weights, expected):
    monkeypatch.setattr(images, "InceptionFeatures", lambda weights: no_inception(weights) if weights is None else 1)
    assert list(images.choose_features("auto", (1, 28, 28), weights, content)) == expected


def test_what_cannot_be_measured_is_said():
    with pytest.raises(ValueError, match="num_samples must be at least 2, got 1"):
        evaluate(small_model(), MNISTDataModule(), num_samples=1)
    for model in (PointNetWAE(latent_dim=4), ConditionalWAE(latent_dim=4)):
        with pytest.raises(ValueError, match=r"name their folder with --data.root DIR"):
            evaluate(model.eval(), None)
    with pytest.raises(ValueError, match="the model holds no training codes"):
        evaluate(small_model(), None, num_samples=2)


def test_a_judge_learns_from_fewer_clouds_than_a_batch(capsys):
    data = ModelNet40DataModule(num_points=32, source="shapes", classes=["box", "lamp"])
    data.setup("fit")
    points, labels = data.train_set.points[:, :64], data.train_set.labels
    rows = torch.tensor([*range(6), *range(len(labels) - 6, len(labels))])
    few = SimpleNamespace(
        train_set=SimpleNamespace(points=points[rows], labels=labels[rows]), class_names=data.class_names
    )
    judge = clouds.load_classifier(None, few)
    assert (judge(points).argmax(1) == labels).float().mean() > 0.7


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
    assert {"prior: COV-EMD (4 clouds, 16 points)", "EMD x1e2 (4 clouds, 32 points)"} <= results.keys()
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


# ---- each number of the table of images, computed anew --------------------------------------------------------------

COUNT = 60


class FewDigits:
    """As many training, test and validation digits as samples are drawn: then nothing is left to chance."""

    batch_size = 7
    content = "digits"

    def prepare_data(self):
        pass

    def setup(self, stage):
        data = MNISTDataModule()
        data.setup("fit")
        self.train = data.train_set.images[: 2 * COUNT].float() / 255
        self.test = data.test_set.images[:COUNT].float() / 255

    def train_dataloader(self):
        return iter(self.train.split(7))

    def test_dataloader(self):
        return iter(self.test.split(7))

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return [batch]


class KnownDraws(Normal):
    """Without a generator always the same draws."""

    def sample(self, n, generator=None, device=None):
        return super().sample(n, generator or torch.Generator().manual_seed(n), device)


@pytest.fixture(scope="module")
def table():
    """A model whose prior has the scale 2, its data, and what was measured."""
    torch.manual_seed(0)
    encoder, decoder = ConvEncoder((1, 28, 28), 3, width=0.02), ConvDecoder(3, (1, 28, 28), width=0.02)
    model = WAEMMD(prior=KnownDraws(3, 2.0), encoder=encoder, decoder=decoder).eval()
    with torch.no_grad():
        model.decoder.input.weight.mul_(3)
    data = FewDigits()
    return model, data, evaluate(model, data, num_samples=COUNT)


def features_of(x):
    return DigitFeatures()(x).detach().double()


def share_inside(points, centers, k=3):
    """How many points lie in a ball around one of the centers that reaches to its k-th neighbour."""
    radii = np.sort(squared_distances(centers.numpy(), centers.numpy()), 1)[:, k]
    return (squared_distances(points.numpy(), centers.numpy()) <= radii * (1 + 1e-9)).any(1).mean()


def polynomial_mmd(x, y):
    """The kernel inception distance of one subset, which is everything."""
    kernel = lambda a, b: ((a @ b.T) / x.shape[1] + 1) ** 3  # noqa: E731
    n, same = len(x), [kernel(a, a) for a in (x, y)]
    within = sum((k.sum() - k.diagonal().sum()) / (n * (n - 1)) for k in same)
    return float(within - 2 * kernel(x, y).mean())


@torch.no_grad()
def test_samples_are_compared_with_test_images_and_the_floor_is_of_training_images(table):
    model, data, results = table
    real, codes = features_of(data.test), model.encode(data.train[:COUNT])
    generator = torch.Generator().manual_seed(0)
    samplers = {"": model.prior, "_gaussian_fitted_to_codes": MixtureSampler(codes, 1, seed=0),
                "_mixture_of_10_fitted_to_codes": MixtureSampler(codes, 10, seed=0)}  # fmt: skip
    sets = {f"{COUNT}{suffix}": model.decode(sampler.sample(COUNT, generator)) for suffix, sampler in samplers.items()}
    sets |= {"floor": data.train[:COUNT], "reconstructions": model(data.test)}
    for name, drawn in sets.items():
        features = features_of(drawn)
        assert results[f"fid_digits_{name}"] == pytest.approx(frechet_distance(real, features), rel=1e-4)
        if name != "reconstructions":
            assert results[f"kid_digits_{name}"] == pytest.approx(polynomial_mmd(real, features), rel=1e-3)
            assert results[f"precision_digits_{name}"] == pytest.approx(share_inside(features, real))
            assert results[f"recall_digits_{name}"] == pytest.approx(share_inside(real, features))
        twin = DigitFeatures(twin=True)
        expected = frechet_distance(twin(data.test), twin(drawn))
        assert results[f"fid_digits_twin_{name}"] == pytest.approx(expected, rel=1e-3)
        patches = PatchDistance()
        patches.update(data.test, real=True)
        patches.update(drawn, real=False)
        for scale, value in patches.compute().items():
            assert results[f"patch_distance_{scale}_{name}"] == pytest.approx(float(value), rel=1e-2)
    assert results["precision_digits_floor"] != results["recall_digits_floor"]
    assert data.batch_size == 7


def sharpness_of(images):
    x = images[:, 0].double().numpy()
    inner = x[:, 1:-1, 1:-1]
    filtered = x[:, 2:, 1:-1] + x[:, :-2, 1:-1] + x[:, 1:-1, 2:] + x[:, 1:-1, :-2] - 4 * inner
    return filtered.reshape(len(x), -1).var(1).mean()


@torch.no_grad()
def test_pictures_and_codes_are_measured_as_defined(table):
    model, data, results = table
    reconstructions = model(data.test)
    mse = (reconstructions - data.test).double().square().mean().item()
    assert results["mse"] == pytest.approx(mse, rel=1e-4)
    assert results["psnr"] == pytest.approx(-10 * np.log10(mse), rel=1e-4)
    assert results["noise_share_of_code_variance"] == 0
    assert results["sharpness_real"] == pytest.approx(sharpness_of(data.test), rel=1e-4)
    assert results["sharpness_reconstructions"] == pytest.approx(sharpness_of(reconstructions), rel=1e-4)
    for part, pictures in (("training", data.train[:COUNT]), ("test", data.test)):
        z, draws = model.encode(pictures).double(), model.prior.sample(1_000_000).double()
        found = {name: results[f"{part}_codes_{name}"] for name in ("smallest_std_ratio", "largest_std_ratio", "mmd")}
        assert found["smallest_std_ratio"] == pytest.approx((z.std(0) / 2).min().item(), rel=0.01)
        assert found["largest_std_ratio"] == pytest.approx((z.std(0) / 2).max().item(), rel=0.01)
        error = (z.mean(0) - draws.mean(0)).abs().max().item()
        assert results[f"{part}_codes_largest_mean_error"] == pytest.approx(error, rel=1e-4)
        expected = imq_mmd(z.numpy(), model.prior.sample(COUNT).double().numpy(), 2 * 3 * 2.0**2)
        assert found["mmd"] == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def test_the_share_of_noise_is_what_the_noise_says():
    """Half of a batch lies at 1, half at -1: variance 1, scaled by 1 - s² and joined by that of the noise, s²."""

    class Signs(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :4]

    signs = torch.tensor([-1.0, 1.0]).repeat(2000)[:, None, None, None].expand(-1, 1, 28, 28)
    for noise, share in ((None, 0), (FixedNoise(0.5), 0.25), (InputNoise(0.3), 0)):
        model = WAEMMD(latent_dim=4, encoder=Signs(), noise=noise).eval()
        assert noise_share(*(model.draw_codes(signs) for _ in range(2))) == pytest.approx(share, abs=0.01)


@torch.no_grad()
def test_the_encoder_cannot_shrink_fixed_noise_by_larger_codes():
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 4))
    encoder[1].weight.mul_(1000)
    model = WAEMMD(latent_dim=4, encoder=encoder, noise=FixedNoise(0.5), standardize_codes=True).train()
    x = torch.rand(2000, 1, 28, 28)
    first, second = (model.draw_codes(x) for _ in range(2))
    assert noise_share(first, second) == pytest.approx(0.25, abs=0.02)
    torch.testing.assert_close(first.var(0), torch.ones(4), atol=0.05, rtol=0)


@torch.no_grad()
def test_small_images_and_those_without_features_are_compared_by_what_there_is(monkeypatch):
    large, small = torch.rand(20, 3, 16, 16), torch.rand(20, 3, 12, 12)
    assert set(Comparison(large.split(8), {}).measure(large.split(8))) == {
        "patch_distance_mean", "patch_distance_16x16", "patch_distance_8x8"
    }  # fmt: skip
    assert Comparison(small.split(8), {}).measure(small.split(8)) == {}


@torch.no_grad()
def test_more_samples_than_real_images_are_compared_by_as_many_patches():
    real, samples = torch.rand(20, 3, 16, 16), torch.rand(50, 3, 16, 16)
    comparison = Comparison(real.split(8), {})
    expected = comparison.measure(samples[:20].split(8))
    assert comparison.measure(samples.split(8)) == comparison.measure([samples]) == expected


def imq_mmd(z, draws, c):
    """Algorithm 2 by a loop over the scales."""
    kernel = lambda a, b: sum(s * c / (s * c + squared_distances(a, b)) for s in (0.1, 0.2, 0.5, 1, 2, 5, 10))  # noqa: E731
    within = [kernel(x, x)[~np.eye(len(x), dtype=bool)].mean() for x in (z, draws)]
    return sum(within) - 2 * kernel(z, draws).mean()


# ---- clouds ---------------------------------------------------------------------------------------------------------


def chamfer_by_loops(a, b):
    d = squared_distances(a.double().numpy(), b.double().numpy())
    return d.min(0).mean() + d.min(1).mean()


def emd_by_loops(a, b):
    d = squared_distances(a.double().numpy(), b.double().numpy()) ** 0.5
    return d[linear_sum_assignment(d)].mean()


# clouds and points are so few that all of them are taken, each once


def test_sets_of_clouds_are_compared_as_defined():
    samples, real, train = (scale * torch.rand(n, 8, 3) for n, scale in ((5, 0.5), (5, 0.3), (7, 0.4)))
    row = clouds.compare_sets(samples, real, train)
    for name, distance, factor in (("CD", chamfer_by_loops, 1e3), ("EMD", emd_by_loops, 1e2)):
        matrix = np.array([[distance(s, r) for r in real] for s in samples])
        suffix = f"-{name} (5 clouds, 8 points)" if name == "EMD" else f"-{name}"
        key = f"MMD-{name} x1e{round(np.log10(factor))}{suffix[4:]}"
        assert row[key] == pytest.approx(factor * matrix.min(0).mean(), rel=1e-3)
        assert row[f"COV{suffix}"] == pytest.approx(len(set(matrix.argmin(1))) / 5)
    nearest = np.mean([min(chamfer_by_loops(s, t) for t in train) for s in samples])
    assert row["CD to the nearest training cloud x1e3"] == pytest.approx(1e3 * nearest, rel=1e-3)
    everything = [*samples, *real]
    same = [
        (min((j for j in range(10) if j != i), key=lambda j: chamfer_by_loops(everything[i], everything[j])) < 5)
        == (i < 5)
        for i in range(10)
    ]
    assert row["1-NNA-CD, samples' half"] == pytest.approx(np.mean(same[:5]))
    assert row["1-NNA-CD, real half"] == pytest.approx(np.mean(same[5:]))


def test_reconstructions_of_clouds_are_compared_as_defined():
    target, found = torch.rand(5, 8, 3), torch.rand(5, 8, 3) + 1
    judge = lambda x: torch.stack([x.mean((1, 2)) - 1, 1 - x.mean((1, 2))], 1)  # below 1: class 1  # noqa: E731
    row = clouds.compare_reconstructions(target, found, torch.tensor([1, 1, 1, 0, 0]), judge)
    pairs = list(zip(target, found, strict=True))
    assert row["CD x1e3"] == pytest.approx(1e3 * np.mean([chamfer_by_loops(a, b) for a, b in pairs]), rel=1e-3)
    emd = np.mean([emd_by_loops(a, b) for a, b in pairs])
    assert row["EMD x1e2 (5 clouds, 8 points)"] == pytest.approx(1e2 * emd, rel=1e-3)
    centered = found - found.mean(1, keepdim=True)
    assert row["RMS radius"] == pytest.approx(float((centered**2).sum(2).mean() ** 0.5), rel=1e-4)
    assert row["classifier on inputs"] == pytest.approx(3 / 5)
    assert row["classifier on reconstructions"] == pytest.approx(2 / 5)
    assert row["classifier share"] == pytest.approx(2 / 3)


def test_codes_are_read_before_the_flow_and_the_model_is_left_as_it_was(monkeypatch):
    seen, drawn = [], []

    def look(encode, data, turn=False, device=None):
        seen.append((model.flow, model.invariance, turn))
        return 0.0

    monkeypatch.setattr(clouds, "measure_svm_accuracy", look)
    monkeypatch.setattr(clouds, "compare_sets", lambda samples, real, train: drawn.append(samples) or {"JSD": 0.0})
    flow = MixtureFlow(4, components=2)
    model = PointNetWAE(
        encoder=PointNetEncoder(4, [16, 16], [8]), decoder=FullyConnectedDecoder(4, 8, [16]), flow=flow,
        prior=Normal(4, 3.0),
    ).eval()  # fmt: skip
    part = SimpleNamespace(points=torch.rand(6, 8, 3), labels=torch.zeros(6, dtype=torch.long))
    data = SimpleNamespace(train_set=part, test_set=part, num_points=8)
    row = clouds.measure_model(model, data, lambda x: torch.zeros(len(x), 2), fitted=[1])
    assert (model.flow, model.invariance) == (flow, ())
    trained, untrained = (None, (), False), (None, (), False)
    assert seen == [trained, untrained, (None, (), True), (None, ("rotation",), True), (flow, (), False)]
    with torch.no_grad():
        expected = model.decode(3 * torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))
        codes = model.encode(part.points)
    torch.testing.assert_close(drawn[0], expected)
    assert row["codes: mean square per dimension"] == pytest.approx(codes.square().mean().item(), rel=1e-4)


# ---- completions ----------------------------------------------------------------------------------------------------


def test_the_label_net_is_scaled_to_the_validation_set_and_has_no_dropout():
    torch.manual_seed(0)
    x, labels = torch.rand(300, 1, 4, 4), torch.randint(10, (300,))
    x[:, 0, 0] += labels.view(-1, 1) / 10
    labels[::3] = torch.randint(10, (100,))  # it will be too sure of itself
    batches = [(x[i : i + 50], x[i : i + 50], labels[i : i + 50]) for i in range(0, 300, 50)]
    data = SimpleNamespace(
        train_dataloader=lambda: batches[:3], val_dataloader=lambda: batches[3:],
        on_after_batch_transfer=lambda batch, _: batch,
    )  # fmt: skip
    kept = {}

    class Spy(LabelNet):
        def eval(self):
            kept.update(copy.deepcopy(self.state_dict()))
            return super().eval()

    net = Spy((1, 4, 4)).fit(data, epochs=12)
    raw = LabelNet((1, 4, 4))
    raw.load_state_dict(kept)
    held_out, truth = x[150:], labels[150:].numpy()
    with torch.no_grad():
        logits = raw.eval()(held_out).double().numpy()
        scales = np.linspace(0.5, 1.5, 101)
        losses = [np.mean([log_sum_exp(s * row) - s * row[y] for row, y in zip(logits, truth, strict=True)])
                  for s in scales]  # fmt: skip
        best = scales[int(np.argmin(losses))]
        assert best != 1
        np.testing.assert_allclose(net(held_out), best * logits, rtol=1e-4, atol=1e-4)


def log_sum_exp(row):
    return row.max() + np.log(np.exp(row - row.max()).sum())
