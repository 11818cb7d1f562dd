"""A model is what its file says: through a trainer's checkpoint, however it was made, under either Lightning."""

import functools
import json
from collections import OrderedDict
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from forked import run_code
from helpers import trainer
from torch import nn
from torch.utils.data import DataLoader

from wae_lightning import WAE, WAEGAN, WAEMMD, costs, networks, noise, penalties, priors
from wae_lightning.lightning import PACKAGE
from wae_lightning.parts import describe

IMAGES = torch.rand(20, 1, 16, 16, generator=torch.Generator().manual_seed(0))
SHAPE = (1, 16, 16)


def parts(d=8, features=None, shape=SHAPE):
    return {
        "encoder": networks.ConvEncoder(shape, d if features is None else features, 1 / 32),
        "decoder": networks.ConvDecoder(d, shape, 1 / 32, last_stride=2),
    }


def fitted(model, folder):
    fitting = trainer(folder)
    fitting.fit(model, DataLoader(IMAGES, 5), DataLoader(IMAGES, 5))
    fitting.save_checkpoint(folder / "model.ckpt")
    return folder / "model.ckpt"


def numbers(model):
    """Codes, reconstructions, the loss and samples, under one seed."""
    torch.manual_seed(3)
    model.eval()
    with torch.no_grad():
        loss = trainer(".").validate(model, DataLoader(IMAGES, 10), verbose=False)
    return model.encode(IMAGES), model(IMAGES), torch.tensor(list(loss[0].values())), model.sample(4)


def assert_same(loaded, model):
    assert describe(loaded) == describe(model)
    assert type(loaded) is type(model)
    for got, expected in zip(numbers(loaded), numbers(model), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def hydra(value):
    return pytest.importorskip("omegaconf").OmegaConf.create(value)


def with_one_activation():
    act = nn.ReLU()
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 16), act, nn.Linear(16, 16), act, nn.Linear(16, 8))


class Heavy(WAEMMD):
    """Does what Lightning's documentation shows, after it has changed an argument and left out another."""

    def __init__(self, weight: float = 1.0, **kwargs) -> None:
        super().__init__(penalty_weight=2 * weight, **kwargs)
        weight = 7.0
        self.save_hyperparameters(ignore=["cost", "encoder", "decoder"])


MADE = {
    "a sphere": lambda: WAEMMD(prior=priors.Sphere(8), **parts()),
    "a cube": lambda: WAEMMD(prior=priors.Uniform(8), **parts()),
    "another cost": lambda: WAEMMD(cost=costs.AbsoluteError(0.05), latent_dim=8, **parts()),
    "another penalty": lambda: WAE(penalty=penalties.SlicedWasserstein(), latent_dim=8, **parts()),
    "NumPy's number": lambda: WAEMMD(penalty_weight=np.float64(3.5), latent_dim=np.int64(8), **parts()),
    "hydra's list": lambda: WAEMMD(image_shape=hydra([1, 16, 16]), **parts(shape=hydra([1, 16, 16]))),
    "hydra's dictionary": lambda: WAEMMD(**hydra({"latent_dim": 8, "input_range": [0, 1]}), **parts()),
    "a flow": lambda: WAEMMD(flow=networks.MixtureFlow(16, components=3), latent_dim=np.int64(16), **parts(16)),
    "case 01": lambda: WAEMMD(
        prior=priors.Sphere(8), cost=costs.AbsoluteError(scale=0.05), penalty_weight=np.float64(3.5), **parts()
    ),
    "layers of torch": lambda: WAEMMD(
        encoder=nn.Sequential(nn.Flatten(), nn.Linear(256, 8, bias=False), nn.BatchNorm1d(8)),
        decoder=nn.Sequential(OrderedDict(a=nn.Linear(8, 256), b=nn.Sigmoid(), c=nn.Unflatten(1, (1, 16, 16)))),
    ),
    "one activation in two places": lambda: WAEMMD(encoder=with_one_activation(), decoder=parts()["decoder"]),
    "a class that saves arguments of its own": lambda: Heavy(5.0, cost=costs.AbsoluteError(0.2), **parts()),
    "noise and critic": lambda: WAEGAN(
        noise=noise.GaussianNoise(), latent_dim=8, optimizer=functools.partial(torch.optim.SGD, lr=0.01), **parts(8, 16)
    ),
}  # fmt: skip


@pytest.mark.parametrize("make", MADE.values(), ids=MADE.keys())
def test_what_was_trained_is_what_is_loaded(make, tmp_path):
    model = make()
    path = fitted(model, tmp_path)
    assert_same(type(model).load_from_checkpoint(path), model)
    trust = [type(model).__module__]
    assert_same(WAE.load_from_checkpoint(str(path), trust=trust), model)
    model.save_pretrained(tmp_path / "folder")
    assert_same(WAE.from_pretrained(tmp_path / "folder", trust=trust), model)
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    assert config["model"]["init_args"] == describe(model)["init_args"]
    hparams = torch.load(path, weights_only=True)["hyper_parameters"]
    assert {name: hparams[name] for name in hparams if not name.startswith("_")} == config["model"]["init_args"]


class Rated(WAEMMD):
    def __init__(self, rate: float = 0.1, **kwargs) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters("rate")
        self.save_hyperparameters({"git_commit": "abc"})
        self.rate = rate


def test_hyper_parameters_that_a_tuner_has_changed_are_what_is_loaded(tmp_path):
    model = Rated(**parts(), latent_dim=8)
    model.rate = model.hparams.rate = 0.007
    model.hparams.penalty_weight = model.penalty_weight = 5.0
    path = fitted(model, tmp_path)
    loaded = Rated.load_from_checkpoint(path)
    assert (loaded.rate, loaded.penalty_weight) == (0.007, 5.0)
    assert torch.load(path, weights_only=True)["more_hyper_parameters"] == {"git_commit": "abc"}


def test_the_mixin_of_the_hub_beside_a_model(tmp_path):
    mixin = pytest.importorskip("huggingface_hub").PyTorchModelHubMixin
    flow = networks.MixtureFlow(8, 3)
    right = type("Right", (WAEMMD, mixin), {"__module__": __name__, "__qualname__": "Right"})
    globals()["Right"] = right
    model = right(flow=flow, latent_dim=8, **parts())
    assert_same(right.load_from_checkpoint(fitted(model, tmp_path)), model)
    model.save_pretrained(tmp_path / "folder")
    assert_same(right.from_pretrained(tmp_path / "folder"), model)
    with pytest.raises(ValueError, match=r"which is no part of wae_lightning"):
        WAEMMD.from_pretrained(tmp_path / "folder")
    wrong = type("Wrong", (mixin, WAEMMD), {"__module__": __name__})
    with pytest.raises(TypeError, match=r"Wrong cannot remember .* name the model first, class Wrong\(<model>, "):
        wrong(flow=flow, latent_dim=8, **parts())


CONFIG = {
    "class_path": "wae_lightning.WAEMMD",
    "init_args": {
        "latent_dim": 8,
        "encoder": {
            "class_path": "wae_lightning.networks.ConvEncoder",
            "init_args": {"image_shape": [1, 16, 16], "latent_dim": 8, "width": 1 / 32},
        },
        "decoder": {
            "class_path": "wae_lightning.networks.ConvDecoder",
            "init_args": {"latent_dim": 8, "image_shape": [1, 16, 16], "width": 1 / 32, "last_stride": 2},
        },
        "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01}},
        "lr_scheduler": {"class_path": f"{PACKAGE}.cli.ReduceLROnPlateau", "init_args": {"monitor": "val/loss"}},
    },
}


def test_python_yaml_and_hydra_make_one_form(tmp_path):
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(WAE, "model")
    from_yaml = parser.instantiate_classes(parser.parse_object({"model": CONFIG})).model
    adam = functools.partial(torch.optim.Adam, lr=0.01)
    in_python = WAEMMD(latent_dim=8, optimizer=adam, **parts())
    in_hydra = WAEMMD(**hydra({"latent_dim": 8}), optimizer=adam, **parts(shape=hydra([1, 16, 16])))
    assert describe(in_hydra) == describe(in_python)
    assert repr(in_hydra.encoder) == repr(in_python.encoder)
    yaml, python = describe(from_yaml)["init_args"], describe(in_python)["init_args"]
    assert yaml.pop("lr_scheduler")["class_path"] == f"{PACKAGE}.cli.ReduceLROnPlateau"
    assert python.pop("lr_scheduler") is None
    # the command line writes all of Adam's defaults down
    assert yaml.pop("optimizer")["init_args"].items() >= python.pop("optimizer")["init_args"].items()
    assert yaml == python
    loaded = WAE.load_from_checkpoint(fitted(from_yaml, tmp_path))
    assert_same(loaded, from_yaml)
    assert loaded.make_lr_scheduler(torch.optim.SGD(loaded.parameters(), 0.1)).monitor == "val/loss"


OTHER = """
import lightning.pytorch as pl, sys, torch
from wae_lightning import WAE, lightning
assert lightning.PACKAGE == "lightning.pytorch"
model = WAE.load_from_checkpoint(sys.argv[1])
scheduler = model.make_lr_scheduler(torch.optim.SGD(model.parameters(), 0.1))
assert isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
trainer = pl.Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False)
trainer.fit(model, torch.rand(3, 5, 1, 16, 16), torch.rand(1, 5, 1, 16, 16), ckpt_path=sys.argv[1], weights_only=True)
trainer.save_checkpoint(sys.argv[2])
"""


def test_checkpoints_go_from_one_lightning_to_the_other_and_back(tmp_path):
    if find_spec("lightning") is None:
        pytest.skip("lightning is not installed")
    adam, cli = functools.partial(torch.optim.Adam, lr=0.01), __import__(f"{PACKAGE}.cli", fromlist=["x"])
    plateau = functools.partial(cli.ReduceLROnPlateau, monitor="val/loss")
    path = fitted(WAEMMD(latent_dim=8, optimizer=adam, lr_scheduler=plateau, **parts()), tmp_path)
    back = tmp_path / "back.ckpt"
    done = run_code(OTHER, path, back, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    model = WAE.load_from_checkpoint(back)
    assert model.make_lr_scheduler(torch.optim.SGD(model.parameters(), 0.1)).monitor == "val/loss"
    assert torch.load(back, weights_only=True)["global_step"] > 3
