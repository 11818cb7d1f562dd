"""The scripts behind RESULTS run on tiny data, and what they write is what an independent computation finds."""

import json
import math
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import anomaly_results
import completion_results
import condition_results
import figures
import flow_results
import make_bundled_digits
import mnist_results
import numpy as np
import picture_results
import point_cloud_results
import pytest
import pythae_results
import sweep_results
import torch
import train_digit_classifier
import yardstick_results
from helpers import trainer
from test_mnist import write_idx
from torch.nn import functional as F

from datamodules import MNISTDataModule
from datamodules.mnist import BUNDLED_DIGITS, read_digits
from wae_lightning import WAEMMD, PointNetWAE, evaluation
from wae_lightning.cli import evaluate, train
from wae_lightning.evaluation import clouds
from wae_lightning.image_parts import ImageParts
from wae_lightning.metrics import DigitClassifier, DigitClassifierTwin, DigitFeatures, PatchDistance
from wae_lightning.networks import FullyConnectedDecoder, PointNetClassifier, PointNetEncoder

pytestmark = pytest.mark.usefixtures("quick_measures")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Some of the bundled digits in the files of the full set."""
    folder = tmp_path_factory.mktemp("set")
    for part, stem, count in (("train", "train", 600), ("test", "t10k", 120)):
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
    # what was kept is measured again, not trained again
    for count in (100, 200):
        mnist_results.main([str(root), "--seeds=1", f"--keep={tmp_path}", *flags, f"--num_samples={count}"])
    assert called == ["train.py", "evaluate.py", "evaluate.py"]
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


class StubSampler:
    """Decodes draws from N(0, I), of the spread that fitting has found: that of the codes."""

    spread = 1.0

    def __init__(self, model, settings=None):
        self.model, self.settings = model, settings

    def fit(self, images, training_config=None):
        self.spread = float(self.model.encoder(images).embedding.std())

    def sample(self, count):
        return self.model.decoder(self.spread * torch.randn(count, 16)).reconstruction.detach()


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
        "trainers": {
            "BaseTrainer": StubTrainer,
            "BaseTrainerConfig": lambda folder=None, **flags: SimpleNamespace(**flags),
        },
        "samplers": {
            **dict.fromkeys(("NormalSampler", "GaussianMixtureSampler", "MAFSampler"), StubSampler),
            **dict.fromkeys(("GaussianMixtureSamplerConfig", "MAFSamplerConfig"), SimpleNamespace),
        },
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
    rows = json.loads(out.read_text())
    (trainer,) = StubTrainer.made
    assert [row["sampler"] for row in rows] == ["N(0, I)", "mixture of 10", "mixture of 50", "MAF"]
    row = rows[0]
    assert (row["reg_weight"], row["learning_rate"], row["epochs"]) == (3, 1e-3, 1)
    assert (trainer.model.settings.reg_weight, trainer.model.settings.latent_dim) == (3, 16)
    assert trainer.flags.per_device_train_batch_size == 200
    encoder, decoder = trainer.model.encoder.network.eval(), trainer.model.decoder.network.eval()
    images = digits_of(root)
    for twin, name in ((False, "digits"), (True, "digits_twin")):
        features = DigitFeatures(twin=twin)
        real = features(images)
        expected = frechet_distance(real, features(decoder(encoder(images))))
        assert row[f"fid_{name}_reconstructions"] == pytest.approx(expected, rel=1e-3)
        torch.manual_seed(0)
        codes = torch.randn(500, 16)
        expected = frechet_distance(real, features(decoder(codes)))
        assert row[f"fid_{name}_500"] == pytest.approx(expected, rel=1e-3)
    assert rows[1]["fid_digits_500"] != row["fid_digits_500"]


@torch.no_grad()
def test_real_images_are_measured_as_they_are_and_blurred(root, tmp_path, monkeypatch):
    pictures = torch.rand(42, 3, 20, 20)
    data = SimpleNamespace(
        train_set=SimpleNamespace(rows=range(41)), train_dataloader=lambda: iter(pictures.split(15)),
        prepare_data=lambda: None, setup=lambda stage: None, on_after_batch_transfer=lambda x, _: [x],
    )  # fmt: skip
    monkeypatch.setattr(yardstick_results, "CelebADataModule", lambda root, batch_size: data)
    out = tmp_path / "yardsticks.json"
    yardstick_results.main([str(root), "--celeba_root=x", f"--out={out}"])
    found = json.loads(out.read_text())
    assert (found["digits"]["images"], found["pictures"]["images"]) == (120, 20)
    metric = PatchDistance()
    metric.update(pictures[20:40], real=True)
    metric.update(pictures[:20], real=False)
    floor = found["pictures"]["rows"]["floor"]
    assert floor["patch_distance_20x20"] == pytest.approx(float(metric.compute()["20x20"]), rel=1e-4)
    for name, measure in (("digits", "fid_digits_twin"), ("digits", "patch_distance_28x28"),
                          ("pictures", "patch_distance_20x20")):  # fmt: skip
        rows = found[name]["rows"]
        values = [rows[key][measure] for key in ("floor", "blurred by 0.4", "blurred by 0.7", "blurred by 1")]
        assert values == sorted(values), name


@torch.no_grad()
def test_the_sweep_measures_each_weight_and_each_change(root, tmp_path, monkeypatch):
    """Both configs train with their own changes; the figure and the file show each row once."""
    monkeypatch.setattr(sweep_results, "WEIGHTS", {name: [0, 2] for name in sweep_results.WEIGHTS})
    models = []
    measure = sweep_results.measure
    monkeypatch.setattr(sweep_results, "measure", lambda model, *rest: models.append(model) or measure(model, *rest))
    out = tmp_path / "sweep.json"
    flags = [f"--root={root}", "--configs=mnist_wae_mmd_plain", "--epochs=1", "--num_samples=150", f"--out={out}"]
    with torch.enable_grad():
        sweep_results.main([*flags, "--changes", "λ = 0"])
        sweep_results.main(flags)
    rows = json.loads(out.read_text())
    changes = ["λ = 0", "λ = 2", *sweep_results.TRIED["mnist_wae_mmd_plain"]]
    assert [row["change"] for row in rows] == changes
    assert [row["penalty_weight"] for row in rows][:2] == [0, 2]
    images, features = digits_of(root), DigitFeatures(twin=True)
    for row, model in zip(rows, models[1:], strict=True):
        assert model.flow is None
        assert model.latent_dim == 8
        expected = frechet_distance(features(images), features(model(images)))
        assert row["fid_digits_twin_reconstructions"] == pytest.approx(expected, rel=1e-3)
        assert (row["noise_share_of_code_variance"] > 0.03) == ("noise" in row["change"])
    assert models[3].code_queue == 800
    rows += [row | {"config": "mnist_wae_gan_plain"} for row in rows]
    sweep_results.plot(rows, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").stat().st_size > 1000


def test_anomaly_scores_are_of_a_digit_that_was_never_trained_on(root, tmp_path, monkeypatch):
    models = []

    def keep(self, model, data):
        models.append(model)
        assert 4 not in data.train_set.labels[data.train_set.rows]
        assert len(data.train_set.rows) + len(data.val_set.rows) == (data.train_set.labels != 4).sum()
        fit(self, model, data)

    fit = anomaly_results.Trainer.fit
    monkeypatch.setattr(
        anomaly_results.Trainer, "fit", lambda self, model, data: (data.setup("fit"), keep(self, model, data))
    )
    out = tmp_path / "a.json"
    anomaly_results.main([str(root), "--digits", "4", "--epochs=1", f"--out={out}"])
    found = json.loads(out.read_text())
    (run,) = found["runs"]
    assert (run["digit"], run["steps"], found["epochs"]) == (4, 2, 1)
    images, labels = digits_of(root), MNISTDataModule(root)
    labels.setup("test")
    strange = labels.test_set.labels == 4
    with torch.no_grad():
        costs = 0.05 * (models[0].eval()(images) - images).abs().flatten(1).sum(1)
    pairs = costs[strange][:, None] - costs[~strange][None]
    assert run["auroc"] == pytest.approx(((pairs > 0).double() + 0.5 * (pairs == 0)).mean().item(), abs=1e-3)
    assert run["mean_cost_of_it"] == pytest.approx(costs[strange].mean().item(), rel=1e-4)


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


@pytest.mark.parametrize("kind", [DigitClassifier, DigitClassifierTwin])
@torch.no_grad()
def test_the_digit_classifier_is_trained_and_its_accuracy_is_that_of_the_file(root, tmp_path, capsys, kind):
    out = tmp_path / "classifier.pt"
    twin = ["--twin"] * (kind is DigitClassifierTwin)
    with torch.enable_grad():
        train_digit_classifier.main([str(root), f"--epochs={4 + 4 * len(twin)}", f"--out={out}", *twin])
    weights = torch.load(out, weights_only=True)
    assert {weight.dtype for weight in weights.values() if weight.is_floating_point()} == {torch.float16}
    classifier = kind()
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


def test_figure_2_is_drawn_of_pictures_too(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(figures, "trained", lambda config, flags: called.append((config, flags)) or Path(config))
    monkeypatch.setattr(figures, "load_model", lambda path: path.name)
    monkeypatch.setattr(figures, "load_data", lambda path, overrides: overrides)
    written = []

    def draw(*what):
        return SimpleNamespace(savefig=lambda out, dpi: written.append((what, out.name)))

    monkeypatch.setattr(figures, "draw", draw)
    figures.main(["2", "--pictures", "--data.root=DIR"])
    names = ["celeba_wae_mmd", "celeba_wae_gan"]
    assert called == [(name, ["--data.root=DIR"]) for name in names]
    assert written == [((2, names, {"root": "DIR"}), "figure_2_pictures.png")]
    with pytest.raises(SystemExit):
        figures.main(["3", "--pictures"])


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


# ---- point clouds ---------------------------------------------------------------------------------------------------


def chamfer_by_loops(a, b):
    d = ((a.double().numpy()[:, None] - b.double().numpy()[None]) ** 2).sum(2)
    return d.min(0).mean() + d.min(1).mean()


def cloud_data(train=40, test=6):
    generator = torch.Generator().manual_seed(0)
    sets = [SimpleNamespace(points=torch.rand(n, 16, 3, generator=generator), labels=torch.zeros(n).long())
            for n in (train, test)]  # fmt: skip
    return SimpleNamespace(train_set=sets[0], test_set=sets[1], num_points=8)


def test_refined_clouds_are_compared_with_the_points_they_were_refined_with_and_with_others(monkeypatch):
    monkeypatch.setattr(clouds, "SET_POINTS", 8)
    torch.manual_seed(0)
    model = PointNetWAE(PointNetEncoder(4, [8], [8]), FullyConnectedDecoder(4, 8, [8]), latent_dim=4).eval()
    data = cloud_data()
    row = point_cloud_results.measure_refined(model, data, PointNetClassifier(2, (4,), (4,)).eval())
    test = data.test_set.points
    found = model(test[:, :8], refine_steps=row["steps"]).detach()
    for name, points in (("CD x1e3", test[:, :8]), ("CD x1e3 to other points", test[:, 8:])):
        expected = 1e3 * np.mean([chamfer_by_loops(a, b) for a, b in zip(points, found, strict=True)])
        assert row[name] == pytest.approx(expected, rel=1e-4)
    data.num_points = 9
    assert "CD x1e3 to other points" not in point_cloud_results.measure_refined(
        model, data, PointNetClassifier(2, (4,), (4,)).eval()
    )


def test_draws_from_the_prior_are_measured_one_by_one(monkeypatch):
    monkeypatch.setattr(point_cloud_results, "SET_POINTS", 8)
    torch.manual_seed(0)
    model = PointNetWAE(PointNetEncoder(4, [8], [8]), FullyConnectedDecoder(4, 12, [8]), latent_dim=4).eval()
    data = cloud_data(test=20)
    found = point_cloud_results.measure_draws(model, data, 3)
    assert all(len(found[name]) == 3 for name in ("1-NNA", "COV"))
    with torch.no_grad():
        samples = model.sample(20, torch.Generator().manual_seed(2))
    generator = torch.Generator().manual_seed(0)
    real, drawn = (clouds.choose_points(x, 8, generator) for x in (data.test_set.points, samples))
    nearest = [min(range(20), key=lambda i: chamfer_by_loops(real[i], cloud)) for cloud in drawn]
    assert found["COV"][2] == pytest.approx(len(set(nearest)) / 20)
    both = [*real, *drawn]
    own = sum(
        (i < 20) == (min((j for j in range(40) if j != i), key=lambda j: chamfer_by_loops(both[i], both[j])) < 20)
        for i in range(40)
    )
    assert found["1-NNA"][2] == pytest.approx(own / 40)


def test_the_baselines_of_clouds_are_what_they_are_called(monkeypatch):
    data, compared = cloud_data(), {}
    monkeypatch.setattr(point_cloud_results, "SET_POINTS", 8)
    monkeypatch.setattr(point_cloud_results, "compare_sets", lambda *sets: compared.setdefault("sets", sets) and {})
    monkeypatch.setattr(
        point_cloud_results, "compare_reconstructions",
        lambda target, found, *_: compared.setdefault(len(compared), (target, found)) and {},
    )  # fmt: skip
    rows = point_cloud_results.baselines(data, None)
    train, test = data.train_set.points, data.test_set.points
    # two halves of each cloud, drawn at random: all 16 points are in one of them
    order = torch.rand(6, 16, generator=torch.Generator().manual_seed(0)).argsort(1)
    shuffled = torch.stack([cloud[rows] for cloud, rows in zip(test, order, strict=True)])
    expected = 1e3 * np.mean([chamfer_by_loops(cloud[:8], cloud[8:]) for cloud in shuffled])
    assert rows["noise floor: two random subsets of one cloud"]["CD x1e3"] == pytest.approx(expected, rel=1e-4)
    target, retrieved = compared[0]
    assert torch.equal(target, test[:, :8])
    for cloud, found in zip(target, retrieved, strict=True):
        nearest = min(train[:, :8], key=lambda other: chamfer_by_loops(cloud, other))
        assert torch.equal(found, nearest)
    # one cloud for all, which learning has brought nearer than a random one of the same extent
    _, constant = compared[1]
    assert torch.equal(constant, constant[:1].expand(6, -1, -1))
    distance = np.mean([chamfer_by_loops(cloud, constant[0]) for cloud in target])
    assert distance < np.mean([chamfer_by_loops(cloud, torch.rand(8, 3)) for cloud in target])
    drawn, against, memory = compared["sets"]
    assert torch.equal(against, test)
    assert torch.equal(memory, train)
    places = [int((train == cloud).all(2).all(1).nonzero()) for cloud in drawn]
    assert len(set(places)) == 6


def test_the_pictures_of_clouds_stand_under_their_names(monkeypatch):
    shown = {}

    class Double:
        def __init__(self, factor):
            self.factor = factor

        def __call__(self, x):
            return self.factor * x

        def sample(self, n, generator):
            return torch.randn(n, 8, 3, generator=generator)

    monkeypatch.setattr(
        figures, "draw_point_sets", lambda rows, names, columns: shown.update(zip(names, rows, strict=True)) or columns
    )
    data = cloud_data(test=20)
    data.class_names, data.test_set.labels = ["a", "b"], torch.arange(20) // 10
    data.prepare_data = lambda: None
    data.setup = lambda stage: None
    assert figures.draw_clouds(Double(2), data, Double(3)) == ["a"] * 5 + ["b"] * 5
    x = data.test_set.points[[0, 2, 4, 6, 8, 10, 12, 14, 16, 19], :8]
    assert list(shown) == ["input", "row by row", "Chamfer", "sample"]
    for name, factor in (("input", 1), ("row by row", 3), ("Chamfer", 2)):
        torch.testing.assert_close(shown[name], factor * x)
    assert shown["sample"].shape == (10, 8, 3)


def test_one_command_trains_blobs_and_shapes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    costs, called = [], []
    draw = figures.draw
    monkeypatch.setattr(
        figures, "draw", lambda n, models, data: costs.extend(m.cost for m in models) or draw(n, models, data)
    )
    called = in_this_process(monkeypatch, figures)
    small = ["--max_epochs=1", "--model.encoder.channels=[8]", "--model.decoder.hidden=[8]", "--trainer.callbacks=[]"]
    figures.main(["5", "--quick", f"--out={tmp_path / 'figure.png'}", "--model.flow.components=2", *small])
    assert called == ["train.py"] * 2
    row_by_row, chamfer = costs
    cloud = torch.rand(1, 256, 3)
    shuffled = cloud[:, torch.randperm(256)]
    assert row_by_row(cloud, shuffled).item() == pytest.approx(
        (cloud - shuffled).square().sum(2).mean().item(), rel=1e-4
    )
    assert chamfer(cloud, shuffled).item() == 0
    assert (tmp_path / "figure.png").is_file()
    with pytest.raises(SystemExit):
        figures.main(["2", "--quick"])
    assert "--quick is for figure 5" in capsys.readouterr().err


# ---- completions ----------------------------------------------------------------------------------------------------


class Halves:
    """Twelve training and three test images in two parts, as HalfImageDataModule yields them."""

    mask = ImageParts((1, 4, 4)).mask

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.train, self.test = (
            (torch.rand(n, 1, 2, 4, generator=generator), torch.rand(n, 1, 2, 4, generator=generator), torch.arange(n))
            for n in (30, 3)
        )

    def train_dataloader(self):
        return [tuple(part[:20] for part in self.train), tuple(part[20:] for part in self.train)]

    def test_dataloader(self):
        return [self.test]

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch

    def join(self, x, y):
        return ImageParts((1, 4, 4)).join(x, y)


def test_donors_are_the_ten_training_images_nearest_in_the_observed_part(monkeypatch):
    updates = []

    class Look:
        def __init__(self, mask, classifier):
            pass

        def update(self, *given):
            updates.append(given)

        def compute(self):
            return {"psnr": torch.tensor(1.5), "bce": torch.tensor(2.0), "bce_best": torch.tensor(2.0)}

    monkeypatch.setattr(completion_results, "CompletionMetrics", Look)
    data = Halves()
    found = completion_results.measure_donors(data, lambda x: torch.zeros(len(x), 10))
    # a donor's pixels are 0 or 1 almost: their cross-entropy means nothing
    assert found == {"psnr": 1.5}
    ((images, completed, labels, probabilities),) = updates
    assert torch.equal(labels, torch.arange(3))
    assert probabilities.tolist() == [[pytest.approx(0.1)] * 10] * 3
    for i, (x, y) in enumerate(zip(*data.test[:2], strict=True)):
        assert torch.equal(images[i], torch.cat([x, y], 1))
        distances = [float((x - other).square().sum()) for other in data.train[0]]
        nearest = sorted(range(30), key=distances.__getitem__)[:10]
        expected = {tuple(data.train[1][row].flatten().tolist()) for row in nearest}
        assert {tuple(one[:, 2:].flatten().tolist()) for one in completed[i]} == expected
        assert all(torch.equal(one[:, :2], x) for one in completed[i])


def test_each_model_trains_for_the_time_that_is_given(monkeypatch):
    clock, runs = [0.0], []

    class Clocked:
        """Takes 3 s to begin and 0.5 s a step."""

        def __init__(self, max_steps, **_):
            self.steps = max_steps

        def fit(self, model, data):
            runs.append((self.steps, model.weight.item()))
            clock[0] += 3 + 0.5 * self.steps
            with torch.no_grad():
                model.weight += self.steps

    monkeypatch.setattr(completion_results, "Trainer", Clocked)
    monkeypatch.setattr(completion_results, "time", SimpleNamespace(process_time=lambda: clock[0]))
    model = torch.nn.Linear(1, 1)
    start = model.weight.item()
    assert completion_results.train(model, None, seconds=60) == 120
    # the runs that took the time leave nothing behind
    assert runs[-1] == (120, pytest.approx(start))


def test_the_share_of_codes_that_the_observed_pixels_explain():
    data = Halves()
    data.test = data.train

    class FirstPart(torch.nn.Module):
        def __init__(self, part):
            super().__init__()
            self.part = part

        def encode(self, x, y):
            return (x if self.part == 0 else y).flatten(1)[:, :2]

    assert completion_results.measure_r_squared_of_pixels(FirstPart(0), data) == pytest.approx(1, abs=1e-4)
    x, y = (part.flatten(1).double().numpy() for part in data.train[:2])
    design, z = np.hstack([x, np.ones((30, 1))]), y[:, :2]
    residual = z - design @ np.linalg.lstsq(design, z, rcond=None)[0]
    expected = 1 - (residual**2).sum() / ((z - z.mean(0)) ** 2).sum()
    assert completion_results.measure_r_squared_of_pixels(FirstPart(1), data) == pytest.approx(expected, rel=1e-3)


def test_the_cvae_minimises_the_negative_evidence_lower_bound():
    torch.manual_seed(0)
    model = completion_results.CVAE(latent_dim=3).eval()
    x, y = torch.rand(2, 6, 1, 14, 28)
    torch.manual_seed(1)
    code = model.draw_codes((x, y))
    terms = model.terms((x, y), code)
    with torch.no_grad():
        mean, log_variance = model.encoder(x, y).chunk(2, dim=1)
    q = torch.distributions.Normal(mean, (log_variance.exp() + 1e-8).sqrt())
    divergence = torch.distributions.kl_divergence(q, torch.distributions.Normal(0, 1)).sum(1).mean()
    likelihood = F.binary_cross_entropy(model.decode(x, code[:, :3]), y, reduction="sum") / 6
    found = sum(weight * terms[name] for name, weight in model.term_weights().items() if name in terms)
    assert found.item() == pytest.approx(0.05 * (likelihood + divergence).item(), rel=1e-4)


def test_the_regression_has_one_answer():
    model = completion_results.Regression(latent_dim=3).eval()
    x, y = torch.rand(2, 6, 1, 14, 28)
    assert not model.draw_codes((x, y)).any()
    completions = model.complete(x, 3)
    assert torch.equal(completions, model.decode(x, torch.zeros(6, 3)).unsqueeze(1).expand(-1, 3, -1, -1, -1))


def test_completions_have_rows_and_pictures(root, tmp_path, monkeypatch):
    monkeypatch.setattr(completion_results, "train", lambda model, data, seconds: fit_two_steps(model, data))
    monkeypatch.setattr(completion_results.LabelNet, "fit", lambda self, data, epochs: self.eval())
    out, models = tmp_path / "rows.json", ["joint critic", "bundled", "donors"]
    monkeypatch.setattr("sys.argv", ["completion_results.py", f"--root={root}", f"--out={out}", "--models", *models])
    completion_results.main()
    rows = json.loads(out.read_text())
    for name in (*models, "joint critic, crisp"):
        assert all(math.isfinite(rows[name][key]) for key in ("fid", "fid_floor", "agreement", "diversity"))
        assert (tmp_path / f"rows_{name}.png").is_file() == (name in ("joint critic", "bundled"))
    assert rows["bundled"]["agreement"] > rows["joint critic"]["agreement"] + 0.3
    assert rows["bundled"]["nll"] < 60
    # the same codes and likelihood, other pictures
    plain, crisp = (rows[f"joint critic{which}"] for which in ("", ", crisp"))
    assert crisp["nll"] == pytest.approx(plain["nll"], rel=0.02)
    assert crisp["sharpness_ratio"] > 1.1 * plain["sharpness_ratio"]
    assert 1.5 * rows["joint critic"]["sharpness_ratio"] < rows["bundled"]["sharpness_ratio"] < 1.15


def test_the_rows_of_the_picture_are_those_of_the_most_different_digits(root):
    images, labels = read_digits(BUNDLED_DIGITS, "test")
    ten = torch.stack([images[labels == label][0].view(1, 28, 28) / 255 for label in range(10)])
    x = torch.arange(130.0).view(-1, 1, 1, 1)
    data = SimpleNamespace(test_dataloader=lambda: x.split(50), join=lambda x, y: y)
    data.on_after_batch_transfer = lambda batch, _: (batch, -batch, None)

    def complete(part, n):
        """One digit, but of three images several."""
        kinds = {7: 3, 60: 10, 109: 5, 120: 10}
        return torch.stack([ten[torch.arange(n) % kinds.get(int(one), 1)] for one in part])

    found = completion_results.find_disputed(SimpleNamespace(complete=complete), data, images=110, count=3)
    assert [part.flatten().tolist() for part in found] == [[60, 109, 7], [-60, -109, -7]]


def test_runs_of_a_row_have_mean_and_deviation(tmp_path):
    out, row = tmp_path / "rows.json", next(iter(mnist_results.ROWS))
    for seed, psnr in ((1, 9.0), (0, 5.0), (1, 3.0)):
        mnist_results.keep(out, row, 1, {"seed": seed, "psnr": psnr})
    runs = json.loads(out.read_text())[f"{row}, 1 epochs"]["runs"]
    assert runs == [{"seed": 0, "psnr": 5.0}, {"seed": 1, "psnr": 3.0}]
    assert mnist_results.summary(runs) == {"psnr": pytest.approx({"mean": 4.0, "std": 2**0.5})}


# ---- other conditions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "model", "measured"),
    [
        ("labels", "WAE with a flow", {"accuracy", "fid_digits_of_class", "label_from_code_mlp", "chance"}),
        ("labels", "CVAE", {"accuracy", "label_from_code_linear", "label_from_code_mlp_validation"}),
        ("inpainting", "CVAE", {"mse", "psnr", "fid", "diversity", "sharpness_ratio"}),
        ("superresolution", "regression", {"mse", "psnr", "fid", "sharpness_ratio"}),
    ],
)
def test_each_condition_model_and_seed_adds_a_row(root, tmp_path, monkeypatch, condition, model, measured):
    monkeypatch.setattr(condition_results, "train", lambda model, data, seconds: fit_two_steps(model, data))
    monkeypatch.setattr(condition_results, "TEST_BATCHES", 1)
    monkeypatch.setattr(evaluation.labels, "STEPS", 5)
    made = condition_results.from_config
    monkeypatch.setattr(
        condition_results, "from_config", lambda name, data, **rest: made(name, data=data | {"batch_size": 20}, **rest)
    )
    out = tmp_path / "rows.json"
    seeds = ["0", "1"] if model == "regression" else ["1"]
    for seed in seeds:
        arguments = [condition, "--model", model, "--seed", seed, "--seconds", "1", f"--root={root}", f"--out={out}"]
        monkeypatch.setattr("sys.argv", ["condition_results.py", *arguments])
        condition_results.main()
    found = json.loads(out.read_text())
    assert list(found[condition][model]) == seeds
    for row in found[condition][model].values():
        assert row["digits"] == 540
        assert measured <= set(row)
        assert all(math.isfinite(row[name]) for name in measured)
    assert (tmp_path / f"rows_{condition}_{model}_1.png").is_file()
    monkeypatch.setattr("sys.argv", ["condition_results.py", *arguments, "--seconds", "2"])
    with pytest.raises(SystemExit, match=f"holds {condition} for other settings"):
        condition_results.main()


def fit_two_steps(model, data):
    trainer(".", limit_train_batches=2, limit_val_batches=0).fit(model, data)
    return 2


def test_flows_are_compared_on_the_codes_of_one_model(root, tmp_path, monkeypatch):
    out = tmp_path / "flows.json"
    flow_results.main([f"--root={root}", f"--out={out}", "--steps=2", "--components=2", "--num_samples=500"])
    found = json.loads(out.read_text())["digits"]
    assert found["dim"] == 16
    assert list(found["rows"]) == [
        "trained with the model", "MixtureFlow, fitted", "CouplingFlow", "FlowMatching", "FlowMatching, transport",
    ]  # fmt: skip
    for row in found["rows"].values():
        # what goes straight through the codes does not depend on the flow
        assert row["codes_length"] == pytest.approx(found["rows"]["CouplingFlow"]["codes_length"], rel=1e-3)
        assert all(np.isfinite(value) for value in row.values())
    best = max(found["rows"], key=lambda name: found["rows"][name]["log_density"])
    assert best == "trained with the model"


def test_flows_of_clouds_are_compared_by_their_neighbours(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("datamodules.modelnet40._SHAPES_PER_CLASS", {"train": 8, "test": 2})
    small = ["--model.encoder.channels=[8]", "--model.decoder.hidden=[8]", "--model.flow.components=2"]
    checkpoint = trained("modelnet40_pointnet_quick", "--model.latent_dim=4", "--trainer.callbacks=[]", *small)
    out, flags = tmp_path / "flows.json", ["--steps=2", "--components=2", "--name=clouds"]
    for row in ("trained with the model", "FlowMatching"):
        flow_results.main([f"--checkpoint={checkpoint}", "--root=data", f"--out={out}", "--rows", row, *flags])
    found = json.loads(out.read_text())["clouds"]
    assert (found["dim"], list(found["rows"])) == (4, ["trained with the model", "FlowMatching"])
    for row in found["rows"].values():
        assert {"1-NNA", "COV", "z_length", "traversals_through_codes_largest_step"} < set(row)
        assert all(np.isfinite(value) for value in row.values())


def test_flows_are_fitted_to_the_codes_of_each_weight(root, tmp_path, monkeypatch):
    out, models = tmp_path / "evenness.json", []
    measure = flow_results.measure
    monkeypatch.setattr(flow_results, "measure", lambda model, *rest: models.append(model) or measure(model, *rest))
    flags = ["--epochs=1", "--steps=2", "--components=2", "--num_samples=150", "--rows", "FlowMatching"]
    flow_results.main(["--weights", "0", "30", f"--root={root}", f"--out={out}", *flags])
    found = json.loads(out.read_text())
    assert [(name, row["penalty_weight"]) for name, row in found.items()] == [("λ = 0", 0), ("λ = 30", 30)]
    assert [model.penalty_weight for model in models] == [0, 30]
    for one, model in zip(found.values(), models, strict=True):
        samples = model.sample(150, torch.Generator().manual_seed(0))
        expected = frechet_distance(DigitFeatures()(digits_of(root)), DigitFeatures()(samples))
        assert one["rows"]["FlowMatching"]["fid_digits"] == pytest.approx(expected, rel=1e-3)
    flow_results.main([f"--out={out}", f"--plot={tmp_path / 'evenness.png'}"])
    assert (tmp_path / "evenness.png").stat().st_size > 1000


def test_pictures_near_training_pictures_and_their_mirror_images():
    training = torch.rand(20, 3, 8, 8)
    moved = training[:5].flip(3) + 0.1
    expected = torch.full((5,), 0.1)
    torch.testing.assert_close(picture_results.nearest(moved, training), expected, rtol=1e-3, atol=1e-3)


def test_samples_are_compared_with_training_pictures_by_their_patches():
    """With the first half of them: other real ones, handed in as samples, and those of a model that changes nothing
    are as far as the floor.
    """
    training = torch.rand(80, 3, 16, 16)
    found = picture_results.patches_among_training(torch.nn.Identity(), training, training[40:])
    floor = found["patch_distance_among_training_floor"]
    assert floor > 0
    assert found == pytest.approx(dict.fromkeys(found, floor), rel=0.3)
    blurred = picture_results.patches_among_training(lambda x: x / 2, training, training[40:])
    assert blurred["patch_distance_among_training_reconstructions"] > 3 * floor


def test_the_measures_of_pictures(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    small = ["--model.encoder.width=0.02", "--model.decoder.width=0.02", "--trainer.callbacks=[]"]
    train.main(["--config=mnist_wae_mmd", f"--data.root={root}", "--max_steps=2", *small])
    (checkpoint,) = tmp_path.glob("runs/*/*/checkpoints/last.ckpt")
    flags = ["--num_samples=60", "--out=out.json", "--picture=out.png"]
    picture_results.main([str(checkpoint), f"--root={root}", *flags])
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["nearest_training_test"] > 0
    assert found["patch_distance_among_training_floor"] > 0
    assert found["mse"] > 0
    assert (tmp_path / "out.png").is_file()
