"""The yardstick: the digit classifier, the Fréchet distance on its features, and evaluate.py."""

import csv
import json

import matplotlib.axes
import numpy as np
import pytest
import scipy.linalg
import torch
import torchvision
from PIL import Image
from torchmetrics.image.fid import FrechetInceptionDistance
from torchvision.transforms.functional import to_pil_image

from datamodules import MNISTDataModule
from wae_lightning.cli import evaluate
from wae_lightning.cli.load import load_data, load_model
from wae_lightning.cli.tables import better, format_table, plot_against_weight
from wae_lightning.evaluation import evaluate_images
from wae_lightning.evaluation import images as image_measures
from wae_lightning.metrics import DigitClassifier, DigitClassifierTwin, DigitFeatures


@pytest.fixture(autouse=True)
def few(few_digits, quick_measures, tmp_path, monkeypatch):
    """Models are measured, quickly, by the few digits that lie in ``data``."""
    (tmp_path / "data").symlink_to(few_digits)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def digits():
    data = MNISTDataModule()
    data.setup("fit")
    return data.test_set.images[:1000].float() / 255, data.test_set.labels[:1000]


@pytest.fixture(scope="module")
def checkpoint(trained):
    return trained("mnist_wae_mmd", "--model.latent_dim=4", "--trainer.callbacks=[]")


def test_the_classifier_knows_the_bundled_test_digits(digits):
    assert all(kind.weights.stat().st_size < 1_000_000 for kind in (DigitClassifier, DigitClassifierTwin))
    images, labels = digits
    assert (DigitClassifier.pretrained()(images).argmax(1) == labels).float().mean() > 0.985


@pytest.mark.full_data
def test_the_classifier_is_right_on_99_percent_of_the_mnist_test_set(full_data):
    data = MNISTDataModule(full_data)
    data.setup("fit")
    classifier = DigitClassifier.pretrained()
    predicted = torch.cat([classifier(part.float() / 255).argmax(1) for part in data.test_set.images.split(1000)])
    assert (predicted == data.test_set.labels).float().mean() >= 0.99


@pytest.mark.parametrize("twin", [False, True])
def test_features_stay_what_they_are_inside_a_module_that_is_trained(digits, twin):
    features = DigitFeatures(twin=twin)
    before = features(digits[0][:100])
    torch.nn.ModuleList([features]).train()
    torch.testing.assert_close(features(digits[0][:100]), before, rtol=0, atol=0)
    assert (DigitClassifierTwin if twin else DigitClassifier)().train().training  # one that is still to learn


def test_the_classifier_refuses_other_images():
    with pytest.raises(ValueError, match=r"images of shape \(B, 1, 28, 28\), got \(2, 3, 32, 32\)"):
        DigitClassifier.pretrained()(torch.rand(2, 3, 32, 32))


def frechet(x, y):
    """The Fréchet distance between Gaussians fitted to two sets of features, in float64 with SciPy's matrix root."""
    x, y = x.double().numpy(), y.double().numpy()
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(a @ b).real
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * root)


def test_the_distance_is_the_frechet_distance_of_the_features(digits):
    images, _ = digits
    blurred = torch.nn.functional.avg_pool2d(images[500:], 3, 1, 1)
    distance = FrechetInceptionDistance(feature=DigitFeatures())
    distance.update(images[:500], real=True)
    distance.update(blurred, real=False)
    features = DigitFeatures()
    assert float(distance.compute()) == pytest.approx(frechet(features(images[:500]), features(blurred)), rel=1e-3)
    distance.reset()
    for real in (True, False):
        distance.update(images[:500], real=real)
    assert float(distance.compute()) == pytest.approx(0, abs=1e-3)


def test_evaluate_writes_its_measures(checkpoint, tmp_path, capsys):
    out = tmp_path / "metrics.json"
    evaluate.main([str(checkpoint), "--num_samples", "100", "--out", str(out)])
    results = json.loads(out.read_text())
    printed = capsys.readouterr().out
    assert "fid_digits_100" in printed
    assert results["fid_digits_floor"] < results["fid_digits_100"]
    assert results["psnr"] == pytest.approx(-10 * np.log10(results["mse"]))
    # the same seed gives the same samples
    evaluate.main([str(checkpoint), "--num_samples", "100", "--out", str(out)])
    assert json.loads(out.read_text()) == results


def test_mse_and_moments_agree_with_their_definitions(checkpoint):
    model, data = load_model(checkpoint), load_data(checkpoint, {})
    results = evaluate_images(model, data, num_samples=100)
    images = data.test_set.images.float() / 255
    with torch.no_grad():
        z = model.encode(images)
        assert results["mse"] == pytest.approx((model.decode(z) - images).square().mean().item(), rel=1e-4)
        z = model.encode(images, noise=True)
    # the encoder is random: two draws of codes agree up to their standard errors
    assert results["test_codes_largest_mean_error"] == pytest.approx(z.mean(0).abs().max().item(), abs=0.05)
    assert results["test_codes_smallest_std_ratio"] == pytest.approx(z.std(0).min().item(), rel=0.1)
    assert results["training_codes_largest_std_ratio"] == pytest.approx(z.std(0).max().item(), rel=0.3)
    covariance = np.cov(z.double().numpy(), rowvar=False)
    off_diagonal = np.abs(covariance[~np.eye(len(covariance), dtype=bool)]).mean()
    assert results["test_codes_mean_absolute_covariance"] == pytest.approx(off_diagonal, abs=0.02)


def test_the_data_of_the_checkpoint_can_be_changed(checkpoint, capsys):
    assert load_data(checkpoint, {"batch_size": "20", "val_fraction": "0.08334"}).batch_size == 20
    assert "trained with" not in capsys.readouterr().out
    assert load_data(checkpoint, {"val_fraction": "0.2"}).val_fraction == 0.2
    said = "The model was trained with val_fraction 0.08334: with 0.2, what is looked at may be what it was trained on."
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (None, ["--num_samples", "1"], "--num_samples must be at least 2, got 1"),
        (None, ["--num_samples=20", "--out=nowhere/metrics.json"], "--out nowhere/metrics.json: cannot be written"),
        (None, ["--data.rot=x"], "--data.rot: MNISTDataModule takes batch_size, "),
        (None, ["--data.root=nowhere"], "nowhere/MNIST/raw: no such folder"),
        (lambda b: b[:1000], [], "not a checkpoint, or a damaged one"),
        (lambda b: b"", [], "not a checkpoint, or a damaged one"),
    ],
)
def test_mistakes_end_in_one_sentence(checkpoint, tmp_path, capsys, change, arguments, message):
    path = checkpoint
    if change:
        path = tmp_path / "damaged.ckpt"
        path.write_bytes(change(checkpoint.read_bytes()))
    with pytest.raises(SystemExit) as stop:
        evaluate.main([str(path), *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_foreign_or_missing_checkpoint_is_refused(tmp_path, capsys):
    for content, message in (
        ({"weights": 1}, "it holds no state_dict"),
        (
            {"state_dict": {}, "hyper_parameters": {"_class_path": "os.system"}},
            "by wae-lightning 0.1 or by another package",
        ),
    ):
        path = tmp_path / "foreign.ckpt"
        torch.save(content, path)
        with pytest.raises(SystemExit):
            evaluate.main([str(path)])
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        evaluate.main([str(tmp_path / "missing.ckpt")])
    assert "missing.ckpt: no such file" in capsys.readouterr().err


def test_a_moved_checkpoint_is_measured_without_the_data_it_was_trained_on(checkpoint, tmp_path, capsys):
    content = torch.load(checkpoint, weights_only=True)
    content["datamodule_hyper_parameters"]["root"] = str(tmp_path / "gone")
    torch.save(content, tmp_path / "moved.ckpt")
    evaluate.main([str(tmp_path / "moved.ckpt"), "--num_samples", "100"])
    printed = capsys.readouterr().out
    assert "gone; without --data.root DIR it is what lies in data/, or the digits that come with" in printed
    assert "fid_digits_100" in printed
    content["datamodule_hyper_parameters"]["variant"] = "fashion"
    torch.save(content, tmp_path / "moved.ckpt")
    evaluate.main([str(tmp_path / "moved.ckpt"), "--num_samples", "100", "--out", str(tmp_path / "out.json")])
    assert "name its folder with --data.root DIR" in capsys.readouterr().out
    results = json.loads((tmp_path / "out.json").read_text())
    assert "fid_digits_100" not in results
    assert {"sharpness_samples", "training_codes_mmd_p_value"} <= results.keys()


def test_several_runs_make_a_table_and_a_plot(checkpoint, tmp_path, capsys):
    out, table, plot = (tmp_path / name for name in ("out.json", "table.csv", "plot.png"))
    content = torch.load(checkpoint, weights_only=True)
    content["hyper_parameters"]["penalty_weight"] = 3.0
    other = tmp_path / "runs" / "mine" / "version_7" / "checkpoints" / "last.ckpt"
    other.parent.mkdir(parents=True)
    torch.save(content, other)
    files = ["--out", str(out), "--table", str(table), "--plot", str(plot)]
    # the value of a flag is no run
    evaluate.main(["--data.batch_size", "500", str(checkpoint), str(other), "--num_samples", "50", *files])
    first = json.loads(out.read_text())
    (second,) = first.pop("beside").values()
    assert first.pop("checkpoint") == "last.ckpt"
    assert first == second  # λ plays no part in what is measured
    heads, *lines = csv.reader(table.open())
    assert heads == ["", "mnist_wae_mmd/version_0", "mine/version_7"]
    cells = {line[0]: line[1:] for line in lines}
    assert {len(row) for row in cells.values()} == {2}
    assert float(cells["fid_digits_50 ↓"][0]) == pytest.approx(first["fid_digits_50"], rel=1e-3)
    assert "psnr ↑" in cells
    assert "fid_digits_floor" in cells
    assert "fid_digits_50 ↓" in capsys.readouterr().out
    assert torchvision.io.read_image(str(plot)).shape[2] >= 900


def test_tables_are_valid_in_each_format():
    rows = {"a_b": {"fid": 1.5, "100 %": 2.0}, "c|d": {"fid": 1234.5}}
    assert format_table(rows, ".md").splitlines()[2] == "| fid ↓ | 1.5 | 1234 |"
    assert r"c\|d" in format_table(rows, ".md")
    assert r"100 \% & 2 & - \\" in format_table(rows, ".tex")
    assert r" & a\_b & c|d \\" in format_table(rows, ".tex")
    assert list(csv.reader(format_table(rows, ".csv").splitlines()))[2] == ["100 %", "2", "-"]
    with pytest.raises(ValueError, match=r"end in .txt, .md, .tex, .csv, got '.xls'"):
        format_table(rows, ".xls")


@pytest.mark.parametrize(
    ("measure", "direction"),
    [
        ("kid_digits_10k", "↓"), ("accuracy", "↑"), ("precision_digits_10k", "↑"), ("mse", "↓"), ("test_codes_mmd", ""),
        ("prior: 1-NNA-CD", "↓"), ("prior: COV-CD", "↑"), ("prior: MMD-CD x1e3", "↓"), ("CD x1e3", "↓"),
        ("recall_digits_floor", ""), ("agreement_reference", ""), ("sharpness_samples", ""),
    ],
)  # fmt: skip
def test_arrows_say_what_is_better(measure, direction):
    assert better(measure) == direction


def test_a_plot_has_the_mean_over_seeds_at_each_weight(monkeypatch):
    drawn = []
    plot = matplotlib.axes.Axes.plot
    monkeypatch.setattr(matplotlib.axes.Axes, "plot", lambda *a, **k: drawn.append(a[1:3]) or plot(*a, **k))
    rows = [{"fid_digits_10k": value, "psnr": 1.0} for value in (3.0, 1.0, 5.0)]
    plot_against_weight(rows, [10.0, 0.0, 10.0])
    assert drawn[0] == ((0.0, 10.0), (1.0, 4.0))
    with pytest.raises(ValueError, match="no measure in common that says how good they are"):
        plot_against_weight([{"sharpness_real": 1.0}], [1.0])


@pytest.mark.parametrize(("flag", "name"), [("--table", "a.xls"), ("--plot", "a.txt"), ("--table", "nowhere/a.md")])
def test_files_that_cannot_be_written_are_refused(checkpoint, tmp_path, capsys, flag, name):
    with pytest.raises(SystemExit, match="2"):
        evaluate.main([str(checkpoint), "--num_samples", "20", flag, str(tmp_path / name)])
    assert f"{flag} {tmp_path / name}: " in capsys.readouterr().err


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory):
    """A file with the names and shapes of torch-fidelity's Inception weights, and random values."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Module, "load_state_dict", lambda self, *_: torch.save(self.state_dict(), path))
        patch.setattr(module.torch, "load", lambda *_, **__: {})
        module.FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=str(path))
    return path


def test_inception_features_are_read_from_a_file(inception_weights, digits):
    ((name, extractor),) = image_measures.choose_features("auto", (3, 32, 32), inception_weights).items()
    assert name == "inception"
    images = digits[0][:4]
    features = extractor(images)
    assert features.shape == (4, 2048)
    # a grey image is one with three equal channels
    torch.testing.assert_close(features, extractor(images.repeat(1, 3, 1, 1)))


def test_features_that_cannot_be_had_are_named(tmp_path, capsys, monkeypatch):
    with pytest.raises(ValueError, match=r"classifier takes images of \(1, 28, 28\), these are \(3, 64, 64\)"):
        image_measures.choose_features("digits", (3, 64, 64), None)
    with pytest.raises(ValueError, match=r"nowhere.pth: no such file"):
        image_measures.choose_features("inception", (3, 64, 64), tmp_path / "nowhere.pth")
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="no Inception features: "):
        image_measures.choose_features("auto", (3, 64, 64), tmp_path / "bad.pth")

    def unreachable(**_):
        raise OSError("no network")

    monkeypatch.setattr(image_measures, "FrechetInceptionDistance", unreachable)
    assert image_measures.choose_features("auto", (3, 64, 64), None) == {}
    printed = capsys.readouterr().out
    assert printed == "no Inception features: no network. FID, KID, precision and recall are left out.\n"
    with pytest.raises(ValueError, match="no network"):
        image_measures.choose_features("inception", (3, 64, 64), None)


# ---- folders ---------------------------------------------------------------------------------------------------------


def write_pictures(folder, images):
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        to_pil_image(image).save(folder / f"{number:04d}.png")
    return folder


def test_a_folder_is_measured_against_another_without_a_model(digits, tmp_path, capsys):
    images, _ = digits
    blurred = torch.nn.functional.avg_pool2d(images[200:350], 3, 1, 1)
    real, samples = write_pictures(tmp_path / "real", images[:200]), write_pictures(tmp_path / "made", blurred)
    out = tmp_path / "m.json"
    folders = ["--real", str(real), "--samples", str(samples)]
    evaluate.main([*folders, "--features=digits", "--out", str(out)])
    found, features = json.loads(out.read_text()), DigitFeatures()
    assert set(found) == {
        *(f"{measure}_digits_150" for measure in ("fid", "kid", "precision", "recall")),
        "fid_digits_twin_150",
        *(f"patch_distance_{scale}_150" for scale in ("mean", "28x28", "14x14")),
        "sharpness_samples",
        "sharpness_real",
    }
    eight_bits = (blurred * 255).byte().float() / 255
    expected = frechet(features(images[:200]), features(eight_bits))
    assert found["fid_digits_150"] == pytest.approx(expected, rel=1e-3)
    assert found["sharpness_samples"] < found["sharpness_real"]
    assert "resized" not in capsys.readouterr().out
    # pictures of another size, in folders and of another kind
    (real / "deep").mkdir()
    to_pil_image(images[600].expand(3, -1, -1).repeat_interleave(2, 1).repeat_interleave(2, 2)).save(
        real / "deep/x.jpg"
    )
    evaluate.main([*folders, "--features=digits"])
    assert "Real pictures of other sizes are cut to the middle and resized to 28 x 28" in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["LA", "P", "I;16", "1"])
def test_grey_pictures_are_grey_in_whatever_mode(digits, tmp_path, capsys, mode):
    images = digits[0][:40]
    real, grey = write_pictures(tmp_path / "real", images), tmp_path / "grey"
    grey.mkdir()
    for path in real.iterdir():
        picture = Image.open(path)
        if mode == "I;16":
            picture = Image.fromarray(np.asarray(picture).astype(np.uint16) * 257)
        elif mode == "P":
            picture = picture.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE)
        picture = picture if picture.mode == mode else picture.convert(mode)
        picture.save(grey / path.name)
        assert Image.open(grey / path.name).mode == mode
    out = tmp_path / "m.json"
    evaluate.main(["--real", str(real), "--samples", str(grey), "--features=digits", "--out", str(out)])
    found = json.loads(out.read_text())
    if mode != "1":  # of black and white alone
        assert found["fid_digits_40"] == pytest.approx(0, abs=1e-3)
    assert "turned grey" not in capsys.readouterr().out
    to_pil_image(images[0] * torch.tensor([1.0, 0.5, 0]).view(3, 1, 1)).save(real / "red.png")
    evaluate.main(["--real", str(real), "--samples", str(grey), "--features=digits"])
    assert "The samples are grey: real pictures in colour are turned grey." in capsys.readouterr().out


def test_wrong_folders_are_refused(digits, checkpoint, tmp_path, capsys):
    images, _ = digits
    real, few = write_pictures(tmp_path / "real", images[:5]), write_pictures(tmp_path / "few", images[:1])
    mixed = write_pictures(tmp_path / "mixed", [*images[:3], torch.rand(1, 20, 30)])
    broken = write_pictures(tmp_path / "broken", images[:4])
    (broken / "0001.png").write_bytes(b"no picture")
    for arguments, message in (
        ([], "expected a checkpoint, or --real DIR and --samples DIR"),
        (["--real", real], "--real DIR and --samples DIR belong together"),
        (
            [checkpoint, "--real", real, "--samples", real],
            "belong together, without a checkpoint, --plot, --data or --refine_steps",
        ),
        (["--real", real, "--samples", tmp_path / "none"], "none: no such folder"),
        (["--real", few, "--samples", real], "few: expected at least 4 pictures, found 1"),
        (["--real", real, "--samples", mixed], "expected pictures of one size, found 0000.png of 28 x 28 and 0003.png"),
        (["--real", real, "--samples", broken], "0001.png: not a picture that can be read"),
    ):
        with pytest.raises(SystemExit) as stop:
            evaluate.main(list(map(str, arguments)))
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


@torch.no_grad()
def test_a_model_of_another_range_is_measured_in_the_unit_range(checkpoint):
    """The same networks, between maps from and to [-1, 1], have the same measures."""
    model = load_model(checkpoint)
    data = load_data(checkpoint, {})
    expected = evaluate_images(model, data, num_samples=60)

    class Wide(type(data)):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            images, labels = super().on_after_batch_transfer(batch, dataloader_idx)
            return {"image": 2 * images - 1, "label": labels}

    encoder, decoder = model.encoder, model.decoder
    model.encoder = torch.nn.Sequential(Affine(0.5, 0.5), encoder)
    model.decoder = torch.nn.Sequential(decoder, Affine(2.0, -1.0))
    model.input_range = (-1.0, 1.0)
    wide = Wide(val_fraction=data.val_fraction, batch_size=data.batch_size)
    found = evaluate_images(model, wide, num_samples=60)
    for name in ("mse", "psnr", "ssim", "fid_digits_60", "fid_digits_floor", "sharpness_samples", "sharpness_real"):
        assert found[name] == pytest.approx(expected[name], rel=1e-3), name
    model.input_range = None
    assert {"cost", "test_codes_mmd"} <= evaluate_images(model, wide, num_samples=60).keys()


class Affine(torch.nn.Module):
    def __init__(self, factor, shift):
        super().__init__()
        self.factor, self.shift = factor, shift

    def forward(self, x):
        return self.factor * x + self.shift
