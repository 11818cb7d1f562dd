"""Models of labels: conditions of every kind, files, exact resumption, pictures, generate.py, and words on mistakes."""

import functools
import math

import numpy as np
import pytest
import torch
from helpers import assert_equal, pl, trainer
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from datamodules import (
    CelebADataModule,
    DownscaledDataModule,
    GreyDataModule,
    HalfImageDataModule,
    ImageFolderDataModule,
    LabelDataModule,
    MaskedDataModule,
    MNISTDataModule,
)
from wae_lightning import WAE, ConditionalWAE, evaluation
from wae_lightning.callbacks import LabelPictures
from wae_lightning.callbacks.labels import styles_of
from wae_lightning.cli import generate
from wae_lightning.cli.load import load_pairs
from wae_lightning.costs import SquaredError
from wae_lightning.evaluation.labels import read_out_accuracy
from wae_lightning.networks import (
    AlignedConvEncoder,
    ConditionalConvDecoder,
    ConditionalConvEncoder,
    ConditionalMLPDecoder,
    ConditionalMLPEncoder,
    CouplingFlow,
    UNetDecoder,
)
from wae_lightning.noise import EncoderNoise, FixedNoise
from wae_lightning.pairs import Labels
from wae_lightning.penalties import MMD

DIGITS = Labels((1, 28, 28), [str(i) for i in range(10)])
DATA = {
    "labels": functools.partial(LabelDataModule, batch_size=20),
    "halves": functools.partial(HalfImageDataModule, batch_size=20),
    "holes": functools.partial(MaskedDataModule, batch_size=20),
    "low resolution": functools.partial(DownscaledDataModule, batch_size=20),
}


def small(data, d=3, **arguments):
    """A model with small perceptrons for a data module of pairs."""
    shapes = [data.condition_shape, data.target_shape]
    return ConditionalWAE(
        ConditionalMLPEncoder(shapes, d, hidden=(8,), standardize=True),
        ConditionalMLPDecoder(d, shapes[1], shapes[0], hidden=(8,)),
        latent_dim=d,
        condition_shape=shapes[0],
        target_shape=shapes[1],
        num_classes=data.num_classes,
        **{"penalty": MMD(), **arguments},
    )


# ---- every kind of condition ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("flow", [False, True], ids=["", "flow"])
@pytest.mark.parametrize("kind", DATA)
def test_a_model_of_any_condition_trains_resumes_loads_and_makes_its_pairs_again(tmp_path, kind, flow):
    def fit(epochs, path=None):
        torch.manual_seed(0)
        data = DATA[kind]()
        p = 10 if kind == "labels" else 16
        arguments = {"flow": CouplingFlow(3, 2, 8, condition_features=p)} if flow else {}
        model = small(data, **arguments)
        runs = trainer(tmp_path, max_epochs=epochs)
        runs.fit(model, data, ckpt_path=path, weights_only=True)
        return model, data, runs

    whole, data, _ = fit(2)
    _, _, runs = fit(1)
    runs.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _, runs = fit(2, tmp_path / "half.ckpt")
    assert_equal(resumed.state_dict(), whole.state_dict())
    runs.save_checkpoint(tmp_path / "whole.ckpt")
    loaded = WAE.load_from_checkpoint(tmp_path / "whole.ckpt").eval()
    batch = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
    x, y = batch[:2]
    z = whole.eval().encode(x, y)
    assert torch.equal(loaded.encode(x, y), z)
    assert torch.equal(loaded.decode(x, z), whole.decode(x, z))
    assert loaded.training_codes().shape == (120, 3)
    pairs = load_pairs(tmp_path / "whole.ckpt", loaded)
    assert repr(pairs) == repr(data.pairs)
    assert repr(type(data).load_from_checkpoint(tmp_path / "whole.ckpt")) == repr(data)
    assert torch.equal(pairs.join(x, y), data.join(x, y))


@pytest.mark.parametrize("kind", DATA)
def test_a_model_of_any_condition_is_exported(kind):
    data = DATA[kind]()
    model = small(data).eval().requires_grad_(False)

    class Decode(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x, z):
            return self.model.decode(x, z)

    def given(n):
        return torch.arange(n) if kind == "labels" else torch.rand(n, *data.condition_shape)

    n = torch.export.Dim("n", max=1000)
    exported = torch.export.export(Decode().eval(), (given(2), torch.randn(2, 3)), dynamic_shapes=({0: n}, {0: n}))
    x, z = given(5), torch.randn(5, 3)
    torch.testing.assert_close(exported.module()(x, z), model.decode(x, z))


def test_labels_are_one_hot_vectors_and_both_x_and_z_are_used():
    data = LabelDataModule()
    model = small(data, features=None).eval()
    z = torch.randn(3, 3)
    drawn = model.decode(torch.tensor([1, 4, 4]), z)
    assert torch.equal(drawn, model.decoder(torch.eye(10)[[1, 4, 4]], z))
    assert torch.equal(drawn, model.decode([1, 4, 4], z))
    assert torch.equal(drawn, model.decode(torch.eye(10)[[1, 4, 4]], z))
    assert not torch.allclose(drawn[1], drawn[2], atol=1e-4)
    assert not torch.allclose(drawn[:1], model.decode([2], z[:1]), atol=1e-4)
    torch.testing.assert_close(model.complete([1, 4], 3, z=z)[1, 2], drawn[2])
    y = torch.rand(3, 1, 28, 28)
    assert not torch.allclose(model.encode([0, 0, 0], y), model.encode([1, 1, 1], y), atol=1e-4)
    compared = model.compared(model.inputs_of((torch.tensor([1, 4, 4]), y)), torch.zeros(3, 3))
    assert torch.equal(compared[:, 3:], torch.eye(10)[[1, 4, 4]])


def test_the_joint_mmd_of_labels_adds_up_that_of_each_class():
    model = small(LabelDataModule())
    labels, z, z_prior = torch.arange(40) % 2, torch.randn(40, 3), torch.randn(40, 3)
    phi = torch.eye(10)[labels]
    found = model.penalty(torch.cat([z, phi], 1), torch.cat([z_prior, phi], 1))
    kernel, expected = model.penalty.kernel, 0.0
    for label in (0, 1):
        a, b = z[labels == label], z_prior[labels == label]
        square = kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)
        expected += float(square.sum() - square.trace()) / (40 * 39)
    assert found.item() == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_the_code_is_what_the_condition_does_not_tell():
    """Of y = a x + b e, x and e independent and normal, the only code independent of x that tells all of y is e or -e.

    Its correlation with e is 1, with x 0. One matched alone may be y / sqrt(a^2 + b^2), whose correlation with x is a /
    sqrt(a^2 + b^2).
    """
    a, b = 0.8, 0.6
    x, e = torch.randn(2, 3000, 1)
    y = a * x + b * e
    torch.manual_seed(0)
    model = ConditionalWAE(
        _Linear(), _Linear(), latent_dim=1, condition_shape=(1,), target_shape=(1,),
        cost=SquaredError(5.0), penalty=MMD(), penalty_weight=20.0, noise=EncoderNoise(), input_range=None,
        optimizer=functools.partial(torch.optim.Adam, lr=0.02),
    )  # fmt: skip
    trainer(".", limit_train_batches=None, max_epochs=14).fit(model, DataLoader(TensorDataset(x, y), 200, shuffle=True))
    z = model.eval().encode(x, y).detach()
    correlation = torch.cat([z, e, x], 1).T.corrcoef()[0].abs()
    assert correlation[1] > 0.97
    assert correlation[2] < 0.15
    assert z.std() == pytest.approx(1, abs=0.1)
    assert model(x, y).sub(y).square().mean() < 0.02
    # draws for an x are normal about a x
    drawn = model.complete(torch.full((1, 1), 1.5), 4000)[0, :, 0]
    assert drawn.mean() == pytest.approx(a * 1.5, abs=0.12)
    assert drawn.std() == pytest.approx(b, abs=0.08)


class _Linear(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def forward(self, *parts):
        return self.layer(torch.cat(parts, dim=1))


def test_a_flow_given_the_condition_learns_what_differs_between_conditions():
    """Codes of one label lie about 2, those of the other about -2: draws for a label must lie about its own place."""
    flow = CouplingFlow(2, 4, 16, condition_features=2)
    labels = torch.arange(2000) % 2
    phi = torch.eye(2)[labels]
    codes = 0.5 * torch.randn(2000, 2) + (4 * labels - 2).unsqueeze(1)
    optimizer = torch.optim.Adam(flow.parameters(), 0.01)
    for _ in range(150):
        optimizer.zero_grad()
        loss = -flow.log_prob(codes, phi).mean()
        loss.backward()
        optimizer.step()
    # the entropy of two normal dimensions of scale 0.5
    assert loss.item() == pytest.approx(math.log(2 * math.pi * math.e * 0.25), abs=0.15)
    z = torch.randn(500, 2)
    for label in (0, 1):
        given = torch.eye(2)[[label]].expand(500, 2)
        drawn = flow.inverse(z, given)
        torch.testing.assert_close(flow(drawn, given)[0], z, atol=1e-4, rtol=1e-4)
        assert drawn.mean().item() == pytest.approx(4 * label - 2, abs=0.15)
    for condition in (None, torch.zeros(500, 3)):
        with pytest.raises(ValueError, match="the flow takes 2 features of a condition, got"):
            flow(z, condition)


def test_the_importance_weights_of_a_flow_are_those_of_its_density():
    """A flow that only shifts: log p(y | x) is that of codes with another prior."""
    model = small(LabelDataModule(), flow=CouplingFlow(3, 1, 4, condition_features=10), noise=FixedNoise(0.5)).eval()
    with torch.no_grad():
        model.flow.couplings[0].network[-1].bias.copy_(torch.randn(4))
    x, y = torch.tensor([3, 5]), torch.rand(2, 1, 28, 28)
    torch.manual_seed(1)
    weights = model.log_weights(x, y, 4)
    torch.manual_seed(1)
    mean, std = model.posterior(x, y)
    codes = mean.unsqueeze(1) + std.unsqueeze(1) * torch.randn(2, 4, 3)
    phi = torch.eye(10)[x]
    for k in range(4):
        likelihood = -torch.nn.functional.binary_cross_entropy(model.decoder(phi, codes[:, k]), y, reduction="none")
        q = torch.distributions.Normal(mean, std).log_prob(codes[:, k]).sum(1)
        expected = likelihood.flatten(1).sum(1) + model.flow.log_prob(codes[:, k], phi) - q
        torch.testing.assert_close(weights[:, k], expected, rtol=1e-4, atol=1e-2)


# ---- networks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "target"), [((2, 16, 16), (1, 16, 16)), ((3, 8, 6), (3, 33, 25)), ((4,), (3, 16, 16))]
)
def test_convolutional_networks_take_any_condition(condition, target):
    if len(condition) == 1:
        encoder = ConditionalConvEncoder([condition, target], 3, width=1 / 64, hidden=8, standardize=True)
        decoder = ConditionalConvDecoder(3, target, condition, width=1 / 64)
    else:
        encoder = AlignedConvEncoder([condition, target], 3, width=1 / 64, hidden=8, standardize=True)
        decoder = UNetDecoder(3, target, condition, channels=(2, 3, 4))
    x, y, z = torch.rand(4, *condition), torch.rand(4, *target), torch.randn(4, 3)
    assert encoder(x, y).shape == (4, 3)
    encoder.eval(), decoder.eval()
    drawn = decoder(x, z)
    assert drawn.shape == y.shape
    assert ((drawn >= 0) & (drawn <= 1)).all()
    assert not torch.allclose(drawn[:1], decoder(x[:1], z[1:2]), atol=1e-5)
    assert not torch.allclose(drawn[:1], decoder(x[1:2], z[:1]), atol=1e-5)
    assert not torch.allclose(encoder(x, y), encoder(x.flip(0), y), atol=1e-5)
    assert not torch.allclose(encoder(x, y), encoder(x, y.flip(0)), atol=1e-5)


# ---- data -----------------------------------------------------------------------------------------------------------


def folder(tmp_path, classes=("cat", "dog"), n=6, size=16):
    for c, name in enumerate(classes):
        (tmp_path / name).mkdir(parents=True)
        for i in range(n):
            pixels = np.full((size, size, 3), 60 * c + 5 * i + 20, np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    return ImageFolderDataModule(tmp_path, batch_size=4, image_size=size)


def test_labels_of_folders_are_their_names(tmp_path):
    data = LabelDataModule(folder(tmp_path))
    assert (data.num_classes, data.pairs.names) == (2, ["cat", "dog"])
    data.setup()
    label, image, again = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert torch.equal(label, again)
    assert torch.equal(label, (image[:, 0, 0, 0] > 60 / 255).long())
    with pytest.raises(ValueError, match="expected a folder for each of at least 2 labels, found 0"):
        _ = LabelDataModule(ImageFolderDataModule(tmp_path / "cat", image_size=16)).pairs


def test_attributes_of_celeba_are_vectors():
    data = LabelDataModule(CelebADataModule(attributes=["Male", "Smiling"]))
    assert (data.num_classes, data.condition_shape, data.target_shape) == (None, (2,), (3, 64, 64))
    label, _, _ = data.pair(torch.rand(3, 3, 64, 64), torch.tensor([[0, 1], [1, 1], [0, 0]]))
    assert label.dtype == torch.float32
    assert LabelDataModule(CelebADataModule(attributes="Male")).num_classes == 2
    with pytest.raises(ValueError, match="name the attributes that shall be conditions"):
        LabelDataModule(CelebADataModule())


def test_names_and_ranges_are_read():
    names = Labels((1, 8, 8), ["cat", "dog", "3-d"])
    assert names.read("dog,0, 3-d").tolist() == [1, 0, 2]
    assert DIGITS.read("0-9").tolist() == list(range(10))
    # folders called by numbers, in the order of their names: 1, 10, 11, 12, 2, ...
    numbered = Labels((1, 8, 8), sorted(map(str, range(1, 13))))
    for text, found in (("1-3", "1,2,3"), ("2-10", "2,3,4,5,6,7,8,9,10"), ("12", "12")):
        assert [numbered.names[label] for label in numbered.read(text).tolist()] == found.split(",")
    for text in ("0-4", "1-0", "1-13"):
        with pytest.raises(ValueError, match=f"or 1, 10, 11, 12, 2, .* got '{text}'"):
            numbered.read(text)
    assert Labels((1, 8, 8), ["cat", "dog", "cow"]).read("0-2").tolist() == [0, 1, 2]
    for text, message in (
        ("10", "expected labels from 0 to 9, got '10'"),
        ("3-1", "got '3-1'"),
        ("1.5", r"got '1\.5'"),
        ("", "got ''"),
        ("-1", "got '-1'"),
        ("0-99999999999", "got '0-99999999999'"),
    ):
        with pytest.raises(ValueError, match=message):
            DIGITS.read(text)
    with pytest.raises(ValueError, match="or cat, dog, 3-d, got 'cow'"):
        names.read("cow")
    attributes = Labels((3, 8, 8), ["Male", "Smiling"], attributes=True)
    assert attributes.read("Male+Smiling,none").tolist() == [[1, 1], [0, 0]]
    assert [attributes.name(x) for x in attributes.read("Male+Smiling,none")] == ["Male+Smiling", "none"]
    with pytest.raises(ValueError, match="expected attributes of Male, Smiling, or none, got 'Tall'"):
        attributes.read("Male+Tall")


# ---- pictures and generate.py ---------------------------------------------------------------------------------------


def test_pictures_of_classes_and_styles():
    model = small(LabelDataModule()).eval()
    x, y = torch.tensor([3, 5]), torch.rand(2, 1, 28, 28)
    styles = styles_of(model, x, y, torch.arange(10))
    assert styles.shape == (2, 10, 1, 28, 28)
    # under its own label the style of an image is its reconstruction
    torch.testing.assert_close(styles[1, 5], model(x, y)[1])
    drawn = LabelPictures(columns=4, rows=2).draw(model, x, y, torch.arange(10))
    assert drawn["class_samples"].shape == (3, 10 * 30 + 2, 4 * 30 + 2)
    assert drawn["styles"].shape == (3, 2 * 30 + 2, 11 * 30 + 2)
    assert torch.equal(drawn["styles"][:1, 32:60, 2:30], y[1])


@pytest.fixture(scope="module")
def labelled(trained):
    small_nets = ["--model.encoder.width=0.02", "--model.decoder.width=0.02", "--data.batch_size=20"]
    return trained("mnist_labels", *small_nets)


def test_generate_draws_a_row_for_each_label(labelled, tmp_path, capsys):
    out = tmp_path / "a.npz"
    generate.main([str(labelled), "--labels", "3,5-6", "--num_samples", "4", "--out", str(out)])
    with np.load(out) as file:
        assert file["samples"].shape == (12, 1, 28, 28)
        assert file["labels"].tolist() == [3] * 4 + [5] * 4 + [6] * 4
    generate.main([str(labelled), "--out", str(tmp_path / "all.png")])
    assert "10 x 8 images" in capsys.readouterr().out
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(tmp_path / "in.png")
    style = [str(labelled), "--what", "style", "--inputs", str(tmp_path / "in.png")]
    generate.main([*style, "--input_labels", "3", "--labels", "0,1", "--out", str(out)])
    with np.load(out) as file:
        assert file["labels"].tolist() == [3, 0, 1]
        assert not file["samples"][0].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "0-10"], "--labels 0-10: expected labels from 0 to 9, got '0-10'"),
        (["--labels", "1.0"], "expected labels from 0 to 9, got '1.0'"),
        (["--mask", "1,1,2,2"], "--mask: the model was trained on pairs of Labels, which take none"),
        (["--what", "completion"], "a conditional model of labels takes --what samples, style, reconstruction"),
        (["--what", "reconstruction"], "--inputs FILE ... is needed"),
        (["--num_samples", "0"], "--num_samples must be at least 1, got 0"),
    ],
)
def test_generate_says_what_is_wrong(labelled, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        generate.main([str(labelled), *arguments, "--out", str(tmp_path / "a.png")])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "a.png").exists()


# ---- measures and mistakes ------------------------------------------------------------------------------------------


def test_labels_are_read_from_codes_that_tell_them_only():
    labels = torch.arange(2000) % 4
    independent = torch.randn(2000, 3)
    angle = math.pi / 2 * labels + 0.1 * torch.randn(2000)
    # a linear network reads the four places on a circle; none can read what was drawn apart from the labels
    dependent = torch.stack([angle.cos(), angle.sin()], 1)
    told, untold = (read_out_accuracy(z, labels, 400) for z in (dependent, independent))
    assert told["label_from_code_linear"] > 0.95
    assert told["label_from_code_mlp"] > 0.95
    assert untold["chance"] == pytest.approx(0.25, abs=0.03)
    assert max(untold["label_from_code_linear"], untold["label_from_code_mlp"]) < 0.31
    # of which only the product says the label: what a linear one cannot see, and the other can
    signs = torch.randn(2000, 2).sign()
    found = read_out_accuracy(signs + 0.05 * torch.randn(2000, 2), (signs.prod(1) > 0).long(), 400)
    assert found["label_from_code_linear"] < 0.6 < 0.95 < found["label_from_code_mlp"]


def test_codes_of_validation_and_of_test_images_are_read_apart(monkeypatch):
    monkeypatch.setattr(evaluation.labels, "STEPS", 200)
    data = LabelDataModule(batch_size=200)
    data.setup("fit")
    model = small(data).eval()
    batches = [(images.index_fill(3, torch.tensor([0]), 255), labels) for images, labels in data.val_dataloader()]
    monkeypatch.setattr(data, "val_dataloader", lambda: [batches])  # a white edge, by which the encoder knows them
    angle = 2 * math.pi / 10 * torch.arange(11)

    def encode(x, y, noise):
        told = torch.stack([angle[x].cos(), angle[x].sin(), 0 * x], 1)
        return torch.where(y[:, 0, 0, :1] > 0.5, told, torch.randn(len(x), 3))

    monkeypatch.setattr(model, "encode", encode)
    monkeypatch.setattr(model, "forward", lambda x, y: y)
    found = evaluation.evaluate_labels(model, data, 500, 0, "digits", None)
    assert found["mse"] == 0
    assert found["label_from_code_mlp_validation"] > 0.95
    assert found["label_from_code_mlp"] < 0.2
    labels = data.val_set.labels
    assert found["chance_validation"] == pytest.approx(float(labels.bincount().max() / len(labels)), abs=0.03)


@pytest.mark.parametrize("count", [1, 2])
def test_classes_of_one_test_picture_have_no_fid_of_their_own(few_digits, count):
    data = LabelDataModule(MNISTDataModule(few_digits))
    data.setup("fit")
    test = data.images.test_set
    test.rows = torch.cat([test.rows[test.labels[test.rows] == label][:count] for label in (0, 1)])
    found = evaluation.evaluate_labels(small(data).eval(), data, 100, 0, "digits", None)
    assert math.isfinite(found["fid_digits"])
    assert ("fid_digits_of_class" in found) == (count == 2)


def test_conditions_that_do_not_fit(tmp_path):
    model = small(LabelDataModule()).eval()
    y = torch.rand(1, 1, 28, 28)
    for call, message in (
        (lambda: model.complete([10]), "labels must be integers from 0 to 9, got 10"),
        (lambda: model.encode(torch.tensor([-1]), y), "labels must be integers from 0 to 9, got -1"),
        (lambda: model.complete(torch.tensor([3.0])), r"labels must be integers \(B,\) from 0 to 9, got torch.float32"),
        (lambda: model.complete([3.5]), r"labels must be integers \(B,\) from 0 to 9, got torch.float32"),
        (lambda: model.complete(["cat"]), r"labels must be integers \(B,\) from 0 to 9, got \['cat'\]"),
        (lambda: model.complete(3), r"labels must be integers \(B,\) from 0 to 9, got torch.int64 \(\)"),
        (lambda: model.complete(torch.eye(9)), r"condition must be of shape \(B, 10\), as in training, got \(9, 9\)"),
        (lambda: model.encode([3], y[..., 1:]), r"target must be of shape \(B, 1, 28, 28\), as in training"),
        (lambda: LabelDataModule(MNISTDataModule(), ["a", "a"]).pairs, "each with a name of its own"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    batches = DataLoader(TensorDataset(torch.tensor([3, 12]), torch.rand(2, 1, 28, 28)), 2)
    with pytest.raises(ValueError, match="labels must be integers from 0 to 9, got 12"):
        pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path).fit(
            model, batches
        )


def test_colours_from_grey():
    data = GreyDataModule(CelebADataModule())
    x, y = data.split(torch.tensor([1.0, 0.5, 0.0]).view(1, 3, 1, 1).expand(1, 3, 64, 64))
    torch.testing.assert_close(x, torch.full((1, 1, 64, 64), 0.299 + 0.587 / 2))
    assert data.pairs.show(x).shape == y.shape
    with pytest.raises(ValueError, match="with 3 channels; these have 1"):
        GreyDataModule(MNISTDataModule())
