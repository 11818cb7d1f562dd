"""Parts remember how they were made; what a description says is built, and nothing else."""

import copy
import enum
import functools
import inspect
import io
import itertools
import json
import pathlib
import pickle
import resource
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn

from wae_lightning import WAE, costs, kernels, networks, noise, penalties, priors, schedules
from wae_lightning.checkpoints import build_bounded, check_description
from wae_lightning.parts import Part, build, describe, find_class, make

D = 4
HERE = [__name__]


class Model(WAE, Part):
    """A user's own model."""


class Warped(priors.Normal):
    """A user's prior with arguments of its own."""

    def __init__(self, warp: float, *, latent_dim: int = 3) -> None:
        super().__init__(latent_dim)
        self.warp = warp


class Plain(nn.Module):
    """A network of a user who knows nothing of parts, but that has no arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(D, 1)


class Sized(Plain):
    def __init__(self, size: int) -> None:
        super().__init__()


class Kept(nn.Sequential):
    """A network of a user who knows nothing of parts, and keeps its argument."""

    def __init__(self, features: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(256, features))
        self.features = features


class Needy(nn.Module, Part):
    """A network that the meta device cannot make."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(D, 256)
        self.size = self.layer.weight.sum().item()

    def forward(self, z):
        return self.layer(z).view(-1, 1, 16, 16)


class Adversary(penalties.Adversarial):
    """A penalty of the user's own that takes anything."""

    def __init__(self, extra=None) -> None:
        super().__init__()


class Color(enum.Enum):
    RED = "red"


class Width(enum.IntEnum):
    SMALL = 16


def through_json(part, trust=HERE):
    return build(json.loads(json.dumps(describe(part))), trust)


def adam(lr):
    return functools.partial(torch.optim.Adam, lr=lr, betas=(0.5, 0.9))


PRIORS = [priors.Normal(D, scale=2.0), priors.Uniform(D), priors.Sphere(np.int64(D), 3.0)]
COSTS = [  # seven, so that each meets all others
    costs.SquaredError(0.3), costs.Euclidean(0.2), costs.AbsoluteError(np.float64(0.05)), costs.PyramidError(0.05, 1.0),
    costs.BinaryCrossEntropy(), costs.SquaredError(), costs.BinaryCrossEntropy(0.05, 1.75),
]  # fmt: skip
PENALTIES = [
    penalties.NoPenalty(), penalties.MMD(), penalties.MMD(kernels.RBF()), penalties.MMD(kernels.RBF(np.float32(2))),
    penalties.MMD(kernels.Laplacian(3)), penalties.MMD(kernels.InverseMultiquadric(5.0, (1, 2))),
    penalties.EnergyDistance(), penalties.MMDPlusPlus(10**6, 2), penalties.CramerWold(0.5),
    penalties.SlicedWasserstein(7), penalties.MaxSlicedWasserstein(5, 2), penalties.ExactWasserstein(),
    penalties.Sinkhorn(0.5), penalties.Adversarial(networks.Critic(D, 8, 2, True), adam(1e-2), steps=2),
    penalties.Adversarial(log_prior=True, gradient_penalty=1.0),
]  # fmt: skip
NOISES = [
    noise.EncoderNoise(), noise.InputNoise(0.02), noise.FixedNoise(0.5), noise.GaussianNoise(0.3),
    noise.ImplicitNoise(D),
]  # fmt: skip
FLOWS = [None, networks.CouplingFlow(D, 2, 8), networks.MixtureFlow(D, 3)]


def image_networks(features, foreign):
    if foreign:
        yield Kept(features), nn.Sequential(nn.Linear(D, 256), nn.Sigmoid(), nn.Unflatten(1, (1, 16, 16)))
    yield networks.ConvEncoder((1, 16, 16), features, 0.02), networks.ConvDecoder(D, (1, 16, 16), 0.02, last_stride=2)
    shape = torch.Size([1, 16, 16])
    yield (
        networks.ConditionalMLPEncoder([shape], features, [8], standardize=True),
        networks.ConditionalMLPDecoder(D, shape, hidden=(8,)),
    )


def outputs(model):
    """Codes, reconstructions, cost and penalty in training mode, samples in evaluation mode, under one seed."""
    x = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(3)
    code = model.train().encode(x)
    y = model.decode(code)
    return [code, y, model.cost(x, y), model.penalty(code, model.prior.sample(4)), model.eval().sample(2)]


def test_every_combination_comes_back_equal(tmp_path):
    """For each that constructs: built again from its description, with its weights, it has the same numbers.

    Costs and networks, which know nothing of the other parts, take turns. Every eleventh goes through a checkpoint or a
    folder.
    """
    built = 0
    for prior, penalty, of_noise, flow in itertools.product(PRIORS, PENALTIES, NOISES, FLOWS):
        networks_of_images = [*image_networks(D * of_noise.features_per_dimension, flow is None)]
        encoder, decoder = networks_of_images[built // 3 % len(networks_of_images)]
        parts = {
            "prior": prior, "penalty": penalty, "noise": of_noise, "flow": flow, "cost": COSTS[built % len(COSTS)]
        }  # fmt: skip
        try:
            model = Model(encoder, decoder, penalty_weight=np.float64(3.5), **copy.deepcopy(parts))
        except ValueError:  # such as a flow on a sphere
            continue
        description = json.loads(json.dumps(describe(model)))
        if built % 11:
            loaded = build(description, HERE)
            loaded.load_state_dict(model.state_dict())
        elif built % 22:
            file = io.BytesIO()
            torch.save({"hyper_parameters": dict(model.hparams), "state_dict": model.state_dict()}, file)
            loaded = Model.load_from_checkpoint(file)
        else:
            model.save_pretrained(tmp_path / str(built))
            loaded = Model.from_pretrained(tmp_path / str(built))
        assert describe(loaded) == description
        for got, expected in zip(outputs(loaded), outputs(model), strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=0)
        built += 1
    assert built > 300
    print(f"{built} combinations")


REQUIRED = {
    "FixedNoise": (0.5,), "ImplicitNoise": (D,), "CouplingFlow": (D,), "MixtureFlow": (D,), "FlowMatching": (D,),
    "TNet": (3,),
    "MMDPlusPlus": (100,), "ConditionalMLPEncoder": ([(1, 8, 8)],), "ConditionalConvEncoder": ([(1, 8, 8)],),
}  # fmt: skip
EVERY_CLASS = [
    value
    for module in (priors, costs, kernels, penalties, noise, networks)
    for name, value in vars(module).items()
    if name in module.__all__ and isinstance(value, type) and not inspect.isabstract(value)
]


@pytest.mark.parametrize("cls", EVERY_CLASS)
def test_every_class_is_a_part_of_a_public_name_and_is_made_on_the_meta_device(cls):
    part = cls(*REQUIRED.get(cls.__name__, ()))
    description = describe(part)
    module, _, name = description["class_path"].rpartition(".")
    assert getattr(sys.modules[module], name) is cls
    assert "_" not in module.replace("wae_lightning", "")
    assert set(description["init_args"]) == set(inspect.signature(cls.__init__).parameters) - {"self", "args", "kwargs"}
    weights = part.state_dict() if isinstance(part, nn.Module) else {}
    again = build_bounded(json.loads(json.dumps(description)), weights)
    assert type(again) is cls
    assert describe(again) == description
    assert describe(copy.deepcopy(part)) == describe(pickle.loads(pickle.dumps(part))) == description


def test_plain_data_of_all_kinds():
    omegaconf = pytest.importorskip("omegaconf")
    shapes = omegaconf.OmegaConf.create({"side": 16, "shape": [1, "${side}", "${side}"], "hidden": {"a": [8]}})
    encoder = networks.ConvEncoder(shapes.shape, np.int64(16), np.float32(0.25), hidden=np.array([8, 4]))
    arguments = describe(encoder)["init_args"]
    expected = {"image_shape": [1, 16, 16], "latent_dim": 16, "width": 0.25, "hidden": [8, 4]}
    assert arguments.items() >= {**expected, "channels": [128, 256, 512, 1024]}.items()
    assert all(type(size) is int for size in arguments["image_shape"] + arguments["hidden"])
    assert describe(shapes) == {"side": 16, "shape": [1, 16, 16], "hidden": {"a": [8]}}
    values = [torch.Size([1, 2]), pathlib.Path("a") / "b", Width.SMALL, np.bool_(True), torch.tensor(2.5), np.str_("x")]
    described = describe(values)
    assert described == [[1, 2], str(pathlib.Path("a/b")), 16, True, 2.5, "x"]
    assert [type(value) for value in described] == [list, str, int, bool, float, str]


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (nn.Sequential(nn.Linear(D, 1), Sized(3)), "torch.nn.Sequential"),
        (Sized(3), "test_parts.Sized"),
        (lambda parameters: None, "test_parts.<lambda>"),
        (torch.compile(nn.Linear(D, 1)), "torch._dynamo.OptimizedModule"),
        (functools.partial(torch.optim.Adam, []), "functools.partial"),
        (Color.RED, "test_parts.Color"),  # it is not equal to its value
        (torch.zeros(3), "torch.Tensor"),
        ({1: 2}, "builtins.dict"),
        ({"class_path": "torch.nn.Linear"}, "builtins.dict"),  # would come back as a layer
        (range(10**6), "builtins.range"),
        (iter([1]), "builtins.list_iterator"),
        (nn.ReLU, "torch.nn.ReLU"),
    ],
)
def test_what_cannot_be_recorded_is_marked_and_asked_for_by_name(value, name):
    model = Model(penalty=Adversary(value))
    assert describe(value) == {"unrecorded": name}
    description = json.loads(json.dumps(describe(model)))
    message = f"model.penalty.extra was {name}, which does not tell how it was made: give it yourself \\(penalty="
    with pytest.raises(ValueError, match=message):
        build(description, HERE)
    given = penalties.Adversarial()
    assert build(description, HERE, {"penalty": given}).penalty is given
    loaded = build_bounded(description, model.state_dict(), HERE, {"penalty": given})
    assert loaded.penalty is given
    assert given.critic.layers[0].weight.device.type == "cpu"
    assert "extra=" + name in repr(model.penalty)


def test_unrecorded_things_in_lists_are_found():
    with pytest.raises(ValueError, match=r"model.parts\[1\] was test_parts.Sized, .* \(parts=\.\.\.\)"):
        build({"class_path": "wae_lightning.noise.InputNoise", "init_args": {"parts": describe([1, Sized(2)])}})


def test_the_class_and_arguments_of_the_user_count():
    warped = Warped(2)
    assert describe(warped) == {"class_path": "test_parts.Warped", "init_args": {"warp": 2, "latent_dim": 3}}
    assert vars(through_json(warped)).items() >= {"warp": 2, "latent_dim": 3}.items()
    assert describe(Plain()) == {"class_path": "test_parts.Plain", "init_args": {}}
    assert type(through_json(Plain())) is Plain
    # made through `make`, as from YAML, any class is recorded
    layer = through_json(make(nn.Linear, D, out_features=np.int64(2), bias=False))
    assert (layer.weight.shape, layer.bias) == ((2, D), None)
    assert describe(layer) == describe(make(nn.Linear, D, 2, bias=False))
    assert describe(make(Sized, 3))["init_args"] == {"size": 3}

    class Local(priors.Normal):
        pass

    assert describe(Local())["unrecorded"].endswith(".<locals>.Local")
    with pytest.raises(TypeError, match="unexpected keyword"):
        priors.Normal(size=3)


class Swallowing:
    """Like PyTorchModelHubMixin, it has a __new__ that does not pass on the arguments."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)


class Before(Swallowing, priors.Normal):
    pass


class After(priors.Normal, Swallowing):
    pass


def test_arguments_that_another_class_swallows_are_not_taken_for_defaults():
    assert describe(Before(5)) == {"unrecorded": "test_parts.Before"}
    assert describe(After(5))["init_args"]["latent_dim"] == 5


def test_parts_are_recorded_as_given_not_as_completed():
    model = Model(prior=priors.Normal(D), penalty=penalties.MMD(kernels.InverseMultiquadric(scales=[1.0])))
    gan = Model(prior=priors.Normal(D), penalty=penalties.Adversarial())
    assert model.penalty.kernel.c == 2 * D
    assert gan.penalty.critic is not None
    kernel = describe(model)["init_args"]["penalty"]["init_args"]["kernel"]
    assert kernel["init_args"] == {"c": None, "scales": [1.0]}
    assert describe(gan)["init_args"]["penalty"]["init_args"]["critic"] is None
    hidden = [8, 8]
    encoder = networks.ConditionalMLPEncoder([(1, 4, 4)], hidden=hidden)
    hidden.append(9)
    describe(encoder)["init_args"]["hidden"].append(10)
    assert describe(encoder)["init_args"]["hidden"] == [8, 8]


def test_optimizers_and_schedulers_come_back_as_partials():
    parameter = nn.Parameter(torch.zeros(1))
    of_lists = functools.partial(schedules.DividedLR, milestones=(1, 2), divisors=np.array([2.0, 5.0]))
    optimizer, scheduler, of_class = (through_json(made) for made in (adam(np.float64(0.5)), of_lists, torch.optim.SGD))
    made = optimizer([parameter])
    assert type(made) is torch.optim.Adam
    assert (made.defaults["lr"], list(made.defaults["betas"])) == (0.5, [0.5, 0.9])
    assert scheduler(made).milestones == (1, 2)
    assert type(of_class([parameter])) is torch.optim.SGD


def test_what_jsonargparse_makes_is_recorded():
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(penalties.Adversarial, "penalty")
    schedule = {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 3}}
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.25}}
    config = parser.parse_object({"penalty": {"optimizer": optimizer, "lr_scheduler": schedule}})
    loaded = through_json(parser.instantiate_classes(config).penalty)
    made = loaded.make_optimizer([nn.Parameter(torch.zeros(1))])
    assert (type(made), made.defaults["lr"]) == (torch.optim.SGD, 0.25)
    assert loaded.make_lr_scheduler(made).step_size == 3


def test_repr_is_python():
    assert repr(priors.Normal(8, 2.0)) == "Normal(latent_dim=8, scale=2.0)"
    assert repr(penalties.MMD(kernels.RBF(2.0))) == "MMD(kernel=RBF(bandwidth=2.0))"
    assert "optimizer=Adam(lr=0.1, betas=[0.5, 0.9])" in repr(penalties.Adversarial(optimizer=adam(0.1)))
    assert "Conv2d(" in repr(networks.ConvEncoder())  # networks show their layers


# ---- descriptions from strangers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "subprocess.Popen", "os.system", "torch.hub.load", "torch.nn.utils.clip_grad_norm_", "torch.nn.init.zeros_",
        "torch.nn.functional.relu", "torch.load", "torch.jit.ScriptModule", "torch.utils.data.DataLoader",
        "torchmetrics.image.fid.FrechetInceptionDistance", "torchvision.models.AlexNet", "test_parts.Plain",
        "wae_lightning.metrics.DigitFeatures", "wae_lightning.metrics.PrecisionRecall", "wae_lightning.noise.nn",
        "wae_lightning.costs.cKDTree", "wae_lightning.parts.importlib", "wae_lightning.__main__.X",
        "wae_lightning.base.nn.Linear",
        "wae_lightningevil.X", "torch.nn", "", ".", "wae_lightning..Normal", "wae_lightning.priors.Normal\n",
        "torch.nn.Linear.__init__",
        "torch.optim.lr_scheduler.Optimizer.step", "wae_lightning.joint_mmd.joint_mmd",
    ],
)  # fmt: skip
def test_other_classes_are_not_even_imported(path, monkeypatch):
    imported = []
    monkeypatch.setattr("importlib.import_module", lambda name: imported.append(name) or __import__(name))
    with pytest.raises(ValueError, match=r"it names '.*', which is no part of .*: name its module if you trust it"):
        find_class(path)
    assert all(name.startswith(("wae_lightning.", "torch.nn", "torch.optim.")) for name in imported)


def test_trusted_modules(tmp_path, monkeypatch):
    (tmp_path / "others.py").write_text(
        "from subprocess import Popen\nfrom torchmetrics import Metric\nimport torch\n"
        "class Net(torch.nn.Module):\n    pass\nclass Thing:\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="which is no part of"):
        find_class("others.Net")
    assert "others" not in sys.modules
    assert find_class("others.Net", ["others"]).__name__ == "Net"
    for path in ("others.Popen", "others.Metric", "others.Thing", "others.torch", "otherwise.Net"):
        with pytest.raises(ValueError, match="which is no part of"):
            find_class(path, ["others"])
    sys.modules.pop("others")


@pytest.mark.parametrize("package", ["pytorch_lightning", "lightning.pytorch"])
def test_schedulers_of_both_lightnings(package):
    description = {"class_path": f"{package}.cli.ReduceLROnPlateau", "init_args": {"monitor": "val/loss"}}
    made = build(description)(torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1))
    assert isinstance(made, torch.optim.lr_scheduler.ReduceLROnPlateau)


def part(path, **arguments):
    return {"class_path": path if "." in path else f"wae_lightning.{path}", "init_args": arguments}


def network(name, **arguments):
    return part(f"wae_lightning.networks.{name}", **arguments)


def nested(depth):
    inner = {}
    for _ in range(depth):
        inner = {"a": inner}
    return inner


def laughs():
    inner = [1] * 10
    for _ in range(9):
        inner = [inner] * 10
    return inner


def recursive():
    ring = {}
    ring["a"] = ring
    return ring


HUGE = network("ConvEncoder", width=4000.0)
HOSTILE = {
    "layers": ({"flow": network("CouplingFlow", dim=D, layers=10**9)}, "whole number"),
    "fewer layers": ({"flow": network("CouplingFlow", dim=D, layers=10**5)}, "more modules"),
    "hidden": (
        {"encoder": network("ConditionalMLPEncoder", part_shapes=[[1]], hidden=[1] * 100000)},
        "more than 1000",
    ),
    "wide hidden": (
        {"encoder": network("ConditionalMLPEncoder", part_shapes=[[1]], hidden=[10**5] * 9)},
        "weights, more",
    ),
    "prior": ({"prior": part("wae_lightning.priors.Normal", latent_dim=10**9)}, "whole number"),
    "default networks": ({"latent_dim": 10**5}, "weights, more"),
    "padding": ({"encoder": part("torch.nn.ZeroPad1d", padding=2 * 10**8)}, "whole number"),
    "huge encoder": ({"encoder": HUGE}, "weights, more"),
    "huge beside a failure": ({"decoder": part("test_parts.Needy"), "encoder": HUGE}, "weights, more"),
    "huge after a failure": ({"decoder": part("torch.nn.Linear", in_features="x"), "encoder": HUGE}, "weights, more"),
    "in a list": ({"encoder": part("torch.nn.ModuleList", modules=[HUGE, part("test_parts.Needy")])}, "weights, more"),
    "in a dictionary": (
        {"encoder": part("torch.nn.ModuleDict", modules={"a": HUGE, "b": part("test_parts.Needy")})},
        "weights, more",
    ),
    "in a sequence": (
        {"encoder": part("torch.nn.Sequential", args=[{"a": part("test_parts.Needy"), "b": HUGE}])},
        "weights, more",
    ),
    "a long sequence": (
        {"encoder": part("torch.nn.Sequential", args=[part("torch.nn.ReLU")] * 1001)},
        "more than 1000",
    ),
    "a class in a sequence": (
        {"encoder": part("torch.nn.Sequential", args=[part("subprocess.Popen", args=["true"])])},
        r"model.encoder.args.0: it names 'subprocess.Popen', which is no part of",
    ),
    "a text as a sequence": ({"encoder": part("torch.nn.Sequential", args="text")}, "can be made of"),
    "a number as a sequence": ({"encoder": part("torch.nn.Sequential", args=3)}, "can be made of"),
    "folds": ({"decoder": network("FoldingDecoder", patches=10**5)}, "more modules"),
    "kernels": ({"encoder": network("ConvEncoder", kernel_size=10**5)}, "weights, more|can be made"),
    "mixture": ({"flow": network("MixtureFlow", dim=10**5, components=10**5)}, "weights, more|can be made"),
    "depth": ({"encoder": nested(10**4)}, "nested more than"),
    "recursion": ({"encoder": recursive()}, "nested more than"),
    "laughs": ({"encoder": laughs()}, "more than 10000 values"),
    "a long text": ({"encoder": "x" * 10**7}, "text of 10000000"),
    "a huge number": ({"penalty_weight": 10**100000}, "332193 bits"),
    "a huge seed": ({"seed": 2**65}, "whole number"),
    "a tensor": ({"penalty_weight": torch.zeros(3)}, "holds a Tensor"),
    "a long name": ({"x" * 10**6: 1}, "no short texts"),
    "another key": ({"encoder": network("ConvEncoder") | {"dict_kwargs": {}}}, "expected class_path and init_args"),
    "no arguments": (
        {"encoder": {"class_path": "torch.nn.ReLU", "init_args": []}},
        "expected class_path and init_args",
    ),
    "no path": ({"encoder": {"class_path": ["torch.nn.ReLU"]}}, "expected class_path and init_args"),
    "a process": ({"encoder": part("subprocess.Popen", args=["true"])}, "which is no part of"),
    "as an optimizer": ({"optimizer": part("os.system", command="true")}, "which is no part of"),
    "an unknown argument": ({"colour": 3}, "unexpected keyword argument 'colour'"),
}


@pytest.mark.parametrize(("arguments", "message"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_descriptions_are_refused_in_a_second(arguments, message):
    weights = Model(latent_dim=D).state_dict()
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(ValueError, match=message) as refused:
        build_bounded({"class_path": "test_parts.Model", "init_args": arguments}, weights, HERE)
    assert time.process_time() - start < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB
    assert len(str(refused.value)) < 1000


def test_a_view_claims_no_more_than_what_is_stored():
    large = part("torch.nn.Linear", in_features=10**4, out_features=10**4)
    weights = {"weight": torch.zeros(1).expand(10**4, 10**4), "bias": torch.zeros(1).expand(10**4)}
    with pytest.raises(ValueError, match=r"a model of 100010000 weights, more than the 2 numbers beside it"):
        build_bounded(large, weights)
    bare = {"weight": torch.zeros(1).expand(10**9)}
    with pytest.raises(ValueError, match=r"whole number of 30 bits, expected at most 100000"):
        build_bounded(part("wae_lightning.priors.Normal", latent_dim=10**9), bare)


def test_what_is_honest_and_large_is_built():
    description = part("wae_lightning.penalties.MMDPlusPlus", dataset_size=10**7)
    assert build_bounded(description, {}).dataset_size == 10**7
    steps = part("torch.optim.lr_scheduler.OneCycleLR", max_lr=1.0, total_steps=10**7)
    assert build_bounded(steps, {}).keywords["total_steps"] == 10**7
    assert check_description([1, "a", None, {"b": [2.0, True]}]) == 8
    # a network of the user's that needs real memory, beside small ones
    model = Model(decoder=Needy(), latent_dim=D)
    loaded = build_bounded(describe(model), model.state_dict(), HERE)
    assert type(loaded.decoder) is Needy
    assert loaded.decoder.layer.weight.device.type == "cpu"
