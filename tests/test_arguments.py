"""Plain values of a wrong kind are refused before anything is made of them, whichever class takes them."""

import argparse
import enum
import types
from collections import deque
from fractions import Fraction

import numpy as np
import pytest
import torch
from helpers import trainer

from datamodules import (
    CelebADataModule,
    HalfImageDataModule,
    ImageFolderDataModule,
    LabelDataModule,
    MNISTDataModule,
    ModelNet40DataModule,
)
from wae_lightning import WAEGAN, WAEMMD, ConditionalWAE, PointNetWAE, from_config
from wae_lightning.costs import SquaredError
from wae_lightning.kernels import RBF, InverseMultiquadric
from wae_lightning.networks import (
    ConditionalMLPEncoder,
    ConvDecoder,
    ConvEncoder,
    Critic,
    FoldingDecoder,
    FullyConnectedDecoder,
    PointNetClassifier,
    PointNetEncoder,
    SeedDecoder,
    TNet,
    UNetDecoder,
)
from wae_lightning.noise import GaussianNoise
from wae_lightning.parts import describe
from wae_lightning.penalties import MMD
from wae_lightning.priors import Normal


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModelNet40DataModule(stretch=[1.25]), r"stretch must be a list of 2, each a number, got \[1.25\]"),
        (lambda: ModelNet40DataModule(scale=1.2), "scale must be a list of 2, each a number, got 1.2"),
        (lambda: ModelNet40DataModule(scale=(0.8, 1, 1.2)), "scale must be a list of 2"),
        (lambda: ModelNet40DataModule(jitter="0.1"), "jitter must be a number, got '0.1'"),
        (lambda: ModelNet40DataModule(flip="no"), "flip must be true or false, got 'no'"),
        (lambda: ModelNet40DataModule(rotate=2), "rotate must be true or false, got 2"),
        (lambda: MNISTDataModule(root=5), "root must be a text or a Path or None, got 5"),
        (lambda: CelebADataModule(".", channels=True), "channels must be one of 1, 3, got True"),
        (lambda: WAEMMD(optimizer="Adam"), "optimizer must be something to call, as a class or None, got 'Adam'"),
        (lambda: WAEMMD(image_shape=np.zeros((2, 2))), r"image_shape must be a list, .*, got array\(\[\[0., 0.\], \[0"),
        (lambda: ConvDecoder(output_range=(0,)), "output_range must be a list of 2, each a number or None"),
        (lambda: ModelNet40DataModule(classes="chair"), "classes must be a list, each a text or None, got 'chair'"),
        (lambda: ModelNet40DataModule(batch_size=2.5), "batch_size must be a whole number, got 2.5"),
        (lambda: MNISTDataModule(batch_size=None), "batch_size must be a whole number, got None"),
        (lambda: MNISTDataModule(num_workers=True), "num_workers must be a whole number, got True"),
        (lambda: MNISTDataModule(val_fraction="half"), "val_fraction must be a number, got 'half'"),
        (lambda: ImageFolderDataModule(".", flip="no"), "flip must be true or false, got 'no'"),
        (lambda: ImageFolderDataModule(".", shift=1.5), "shift must be a whole number, got 1.5"),
        (lambda: ImageFolderDataModule(".", image_size=64.0), "image_size must be a whole number, got 64.0"),
        (lambda: CelebADataModule(".", memory_budget="2 GB"), "memory_budget must be a number, got '2 GB'"),
        (lambda: HalfImageDataModule(observed="middle"), "observed must be one of top, bottom, .*, got 'middle'"),
        (lambda: WAEMMD(latent_dim="8"), "latent_dim must be a whole number or None, got '8'"),
        (lambda: WAEMMD(penalty_weight="1"), "penalty_weight must be a number, got '1'"),
        (lambda: WAEMMD(image_shape=28), "image_shape must be a list, each a whole number, got 28"),
        (lambda: WAEMMD(cost="SquaredError"), "cost must be a Cost or None, got 'SquaredError'"),
        (lambda: WAEMMD(cost=SquaredError), "cost must be a Cost or None, got <class"),
        (lambda: WAEMMD(encoder=ConvEncoder), "encoder must be a Module or None, got <class"),
        (lambda: PointNetWAE(latent_dim=2.0), "latent_dim must be a whole number or None, got 2.0"),
        (lambda: Normal(2.0), "latent_dim must be a whole number, got 2.0"),
        (lambda: WAEMMD(prior=torch.distributions.Normal(0, 1)), r"prior must be a Prior or None, got Normal\("),
        (
            lambda: ConditionalWAE(prior=torch.distributions.Normal(0, 1)),
            r"prior must be a Prior or None, got Normal\(",
        ),
        (lambda: WAEMMD(penalty=torch.nn.MSELoss()), r"penalty must be a Penalty or None, got MSELoss\(\)"),
        (lambda: WAEMMD(noise=torch.nn.Dropout(0.1)), r"noise must be an EncoderNoise or None, got Dropout\("),
        (lambda: WAEMMD(flow=torch.nn.Linear(8, 8)), r"flow must be a Flow or None, got Linear\("),
        (lambda: ConvEncoder(channels=map(int, "48")), "channels must be a list, each a whole number, got <map"),
        (lambda: FullyConnectedDecoder(hidden=torch.tensor([8, 16])), "hidden must be a list, .*, got tensor"),
        (lambda: MMD(kernel=torch.nn.ReLU()), "kernel must be a Kernel or"),
        (lambda: MMD(kernel="rbf"), "kernel must be a Kernel or None, got 'rbf'"),
        (lambda: RBF(bandwidth=[1]), r"bandwidth must be a number or None, got \[1\]"),
        (lambda: ModelNet40DataModule(scale={0.8, 1.2}), "scale must be a list of 2, each a number, got {"),
        (lambda: ModelNet40DataModule(stretch_parts={0.8: 0, 1.2: 1}), "stretch_parts must be a list of 2, .*, got {"),
        (lambda: FullyConnectedDecoder(hidden={512, 256}), "hidden must be a list, each a whole number, got {"),
        (lambda: WAEMMD(image_shape={1, 28}), "image_shape must be a list, each a whole number, got {"),
        (
            lambda: WAEMMD(optimizer=["Adam"]),
            r"optimizer must be something to call, as a class or None, got \['Adam'\]",
        ),
        (lambda: WAEMMD(optimizer={"class_path": "Adam"}), "optimizer must be something to call, as a class or None"),
        (
            lambda: WAEMMD(optimizer=torch.optim.Adam([torch.zeros(1)])),
            "optimizer must be something to call, as a class or None, got Adam",
        ),
        (lambda: WAEMMD(prior=GaussianNoise()), r"prior must be a Prior or None, got GaussianNoise\("),
        (lambda: WAEMMD(penalty=Normal(8)), r"penalty must be a Penalty or None, got Normal\("),
        (lambda: WAEMMD(noise=MMD()), r"noise must be an EncoderNoise or None, got MMD\("),
        (lambda: WAEMMD(flow=SquaredError()), r"flow must be a Flow or None, got SquaredError\("),
        (lambda: MMD(kernel=Normal(8)), r"kernel must be a Kernel or None, got Normal\("),
    ],
)
def test_wrong_kinds_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_numbers_of_numpy_and_torch_count_as_pythons():
    model = WAEMMD(latent_dim=np.int64(4), penalty_weight=torch.tensor(2), image_shape=[np.int64(1), 28, 28])
    assert model.prior.latent_dim == 4
    assert ModelNet40DataModule(scale=[np.float32(0.5), 1], jitter=np.float32(0.5)).jitter == 0.5


class Level(enum.IntEnum):
    EIGHT = 8


EIGHTS = [np.int64(8), np.array(8), torch.tensor(8), Level.EIGHT]


@pytest.mark.parametrize("eight", EIGHTS, ids=["NumPy's", "an array", "torch's", "an enumeration"])
@pytest.mark.parametrize(
    ("cls", "names"),
    [
        (PointNetEncoder, ("latent_dim",)), (FullyConnectedDecoder, ("latent_dim", "num_points")),
        (FoldingDecoder, ("latent_dim", "num_points", "patches", "folds")), (TNet, ("dim",)),
        (SeedDecoder, ("latent_dim", "num_points")), (PointNetWAE, ("num_points", "latent_dim")),
        (WAEMMD, ("latent_dim",)), (MNISTDataModule, ("batch_size", "split_seed")), (Critic, ("latent_dim", "layers")),
        (ModelNet40DataModule, ("num_points", "batch_size")), (ConvEncoder, ("latent_dim",)), (Normal, ("latent_dim",)),
    ],
)  # fmt: skip
def test_any_eight_makes_the_same(cls, names, eight):
    ours, pythons = (cls(**dict.fromkeys(names, value)) for value in (eight, 8))
    assert describe(ours) == describe(pythons)
    for name in names:
        if hasattr(pythons, name):
            assert type(getattr(ours, name)) is type(getattr(pythons, name))
    if isinstance(ours, torch.nn.Module):
        assert [x.shape for x in ours.parameters()] == [x.shape for x in pythons.parameters()]


@pytest.mark.parametrize("kind", [np.array, deque, list], ids=["array", "deque", "list"])
@pytest.mark.parametrize(
    ("cls", "given"),
    [
        (ModelNet40DataModule, {"stretch_parts": [0.8, 1.25], "scale": [0.9, 1.1], "classes": ["chair", "lamp"]}),
        (LabelDataModule, {"class_names": ["a", "b"]}), (PointNetWAE, {"invariance": ["rotation", "scale"]}),
        (InverseMultiquadric, {"scales": [1.0, 2.0]}), (PointNetClassifier, {"hidden": [16, 8]}),
        (WAEMMD, {"image_shape": [1, 32, 32], "input_range": [-1.0, 1.0]}),
        (ConditionalWAE, {"target_shape": [1, 8, 8], "condition_shape": [5]}),
    ],
)  # fmt: skip
def test_any_list_makes_the_same(cls, given, kind):
    ours = cls(**{name: kind(value) for name, value in given.items()})
    assert describe(ours) == describe(cls(**given))


def test_a_parameter_and_a_fraction_are_numbers():
    model = WAEMMD(penalty_weight=torch.nn.Parameter(torch.tensor(2.0)), cost=SquaredError(Fraction(1, 2)))
    assert type(model.penalty_weight) is float
    assert type(model.cost.scale) is float
    assert "penalty_weight" not in dict(model.named_parameters())


def test_a_data_module_of_numpys_numbers_is_in_the_checkpoint_as_pythons(tmp_path):
    data = ModelNet40DataModule(
        num_points=np.int64(16), source="shapes", batch_size=np.int64(8), classes=deque(["chair", "lamp"]),
        up_axis=np.str_("y"),
    )  # fmt: skip
    fitting = trainer(tmp_path)
    fitting.fit(PointNetWAE(PointNetEncoder(4, [8], [8]), num_points=16, latent_dim=4), data)
    fitting.save_checkpoint(tmp_path / "model.ckpt")
    assert PointNetWAE.load_from_checkpoint(tmp_path / "model.ckpt").latent_dim == 4
    assert describe(ModelNet40DataModule.load_from_checkpoint(tmp_path / "model.ckpt")) == describe(data)


def test_networks_that_count_as_false_are_networks():
    nothing = torch.nn.Sequential()
    assert PointNetWAE(encoder=nothing).encoder is nothing
    assert WAEMMD(encoder=torch.nn.Sequential(), decoder=nothing).decoder is nothing
    assert ConditionalWAE(features=nothing, condition_shape=(3,)).features is nothing
    compiled = torch.compile(ConvEncoder())
    assert WAEMMD(encoder=compiled).encoder is compiled


@pytest.mark.parametrize("cls", [WAEGAN, ConditionalWAE])
def test_what_our_classes_pass_on_is_judged_too(cls):
    with pytest.raises(ValueError, match="penalty_weight must be a number, got 'x'"):
        cls(penalty_weight="x")


class Cost(WAEMMD):
    """Takes a name and passes a cost on."""

    def __init__(self, cost: str = "squared", **kwargs):
        super().__init__(cost={"squared": SquaredError()}[cost], **kwargs)


class Rate(Cost):
    def __init__(self, rate: float = 1.0, **kwargs):
        kwargs["penalty_weight"] = float(kwargs.get("penalty_weight", "1"))
        super().__init__(**kwargs)


def test_what_other_peoples_classes_convert_is_theirs():
    model = Rate(cost="squared", penalty_weight="3")
    assert isinstance(model.cost, SquaredError)
    assert model.penalty_weight == 3


@pytest.mark.parametrize(
    "make",
    [
        lambda: LabelDataModule(class_names=list(range(10))),
        lambda: LabelDataModule(class_names=dict.fromkeys("ab").keys()),
        lambda: ModelNet40DataModule(classes={"chair", "lamp"}),
        lambda: PointNetWAE(invariance={"rotation"}),
        lambda: ConditionalMLPEncoder(hidden=np.array([8, 16])),
        lambda: MNISTDataModule(on_device=0, download=0),
        lambda: WAEMMD(input_key=0, compile=None),
        lambda: WAEMMD(image_shape=np.array([1, 32, 32]), input_range=np.array([-1.0, 1.0])),
        lambda: ConvEncoder(channels=np.array([8, 16])),
        lambda: UNetDecoder(channels=np.array([4, 8])),
    ],
)
def test_what_does_is_taken(make):
    make()


def test_configs_take_numbers_of_numpy_and_torch():
    sizes = {"latent_dim": np.int64(4), "image_shape": np.array([1, 28, 28]), "penalty_weight": torch.tensor(2.0)}
    model, data = from_config("mnist_wae_mmd", **sizes, data={"batch_size": torch.tensor(8), "on_device": np.False_})
    assert (model.prior.latent_dim, model.penalty_weight, data.batch_size, data.on_device) == (4, 2.0, 8, False)


class Calls(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x, y):
        return self.function(x, y)


def test_configs_take_lists_and_dictionaries_of_other_kinds():
    changes = {"stretch_parts": deque([0.8, 1.2]), "batch_size": 8}
    _, data = from_config("modelnet40_pointnet", data=types.MappingProxyType(changes))
    assert list(data.stretch_parts) == [0.8, 1.2]
    with pytest.raises(ValueError, match=r"data must be a dictionary of arguments, got Namespace\(a=1\)"):
        from_config("modelnet40_pointnet", data=argparse.Namespace(a=1))


@pytest.mark.parametrize(
    ("cost", "found"),
    [
        (torch.nn.MSELoss(), r"MSELoss gave shape \(\)"),
        (torch.nn.MSELoss(reduction="none"), r"MSELoss gave shape \(4, 1, 28, 28\)"),
        (Calls(lambda x, y: 0.5), "Calls gave float"),
        (Calls(lambda x, y: None), "Calls gave NoneType"),
        (Calls(lambda x, y: torch.ones(4, dtype=torch.int64)), "Calls gave torch.int64"),
    ],
)
def test_costs_that_are_not_one_number_per_example_are_refused(cost, found):
    """Their mean would be another multiple of the cost, and lambda would weigh another thing."""
    model, x = WAEMMD(cost=cost), torch.rand(4, 1, 28, 28)
    with pytest.raises(ValueError, match=f"one number for each of the 4 examples, .* {found}"):
        model.terms(x, model.draw_codes(x))


def test_any_module_that_gives_one_number_per_example_is_a_cost():
    class Theirs(torch.nn.Module):
        def forward(self, x, y):
            return (x - y).square().flatten(1).sum(1)

    model, x = WAEMMD(cost=Theirs()).eval(), torch.rand(4, 1, 28, 28)
    expected = (x - model(x)).square().sum() / 4
    torch.testing.assert_close(model.terms(x, model.draw_codes(x))["cost"], expected)
