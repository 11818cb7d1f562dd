"""Checkpoints from strangers: nothing in them runs, and they name only what the reader has imported."""

import importlib
import os
import pickle
import sys
import zipfile

import figures
import point_cloud_results
import pytest
import torch

from datamodules import HalfImageDataModule, MNISTDataModule, ModelNet40DataModule
from wae_lightning import WAEMMD
from wae_lightning.checkpoints import check_classes, read_checkpoint, read_plain
from wae_lightning.cli import evaluate, generate, train
from wae_lightning.cli.errors import UsageError
from wae_lightning.cli.load import load_data, load_model
from wae_lightning.metrics import DigitClassifier
from wae_lightning.networks import PointNetClassifier

INSTANTIATOR = "pytorch_lightning.cli.instantiate_module"
SMALL = ["--max_epochs=1", "--limit_train_batches=1", "--limit_val_batches=1", "--limit_test_batches=1"]


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.fixture(params=["zip", "legacy", "pickle"])
def trapped(request, tmp_path):
    """A file of a checkpoint's shape that runs code when it is unpickled, and the folder that this code makes."""
    path, sprung = tmp_path / "trapped.ckpt", tmp_path / "sprung"
    content = {"state_dict": {}, "hyper_parameters": {}, "trap": Trap(sprung)}
    if request.param == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=request.param == "zip")
    return path, sprung


def test_the_trap_is_one(trapped):
    path, sprung = trapped
    if zipfile.is_zipfile(path):
        torch.load(path, weights_only=False)
    else:
        pickle.loads(path.read_bytes()) if path.read_bytes()[:4] != b"\x80\x02\x8a\n" else torch.load(
            path, weights_only=False
        )
    assert sprung.is_dir()


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (evaluate.main, ["{}"]),
        (generate.main, ["{}"]),
        (train.main, [*SMALL, "--ckpt_path={}", "--logger=false", "--enable_progress_bar=false"]),
        (figures.main, ["2", "--ckpt", "{}", "{}"]),
        (point_cloud_results.main, ["no folder", "{}", "--classifier={}"]),
    ],
    ids=["evaluate", "generate", "train", "figures", "point_cloud_results"],
)
def test_no_command_springs_a_trap(trapped, main, arguments, monkeypatch, tmp_path, capsys):
    path, sprung = trapped
    monkeypatch.chdir(tmp_path)
    shapes = ModelNet40DataModule(num_points=32, source="shapes", classes=["box", "lamp"])
    monkeypatch.setattr(point_cloud_results, "ModelNet40DataModule", lambda *_, **__: shapes)
    with pytest.raises(SystemExit) as stop:
        main([argument.format(path) for argument in arguments])
    assert stop.value.code == 2
    assert "trapped.ckpt: not a checkpoint, or a damaged one (" in capsys.readouterr().err.splitlines()[-1]
    assert not sprung.exists()


def test_the_weights_of_the_digit_classifier_are_plain(trapped, monkeypatch):
    path, sprung = trapped
    monkeypatch.setattr("wae_lightning.metrics.digit_classifier.WEIGHTS", path)
    with pytest.raises(ValueError, match=r"trapped.ckpt: not a checkpoint"):
        DigitClassifier.pretrained()
    with pytest.raises(Exception, match=r"Weights only load failed|[Uu]nsupported|not a ZIP"):
        WAEMMD.load_from_checkpoint(path)
    assert not sprung.exists()


def test_a_checkpoint_that_claims_more_than_it_holds_is_refused_unread(tmp_path):
    path = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", bytes(10**7))
    with pytest.raises(ValueError, match=r"bomb.ckpt: .*\(it claims 10000000 bytes and has \d+\)"):
        read_plain(path)
    torch.save({"state_dict": []}, path)
    with pytest.raises(ValueError, match="holds no state_dict"):
        read_checkpoint(path)


# ---- class paths ----------------------------------------------------------------------------------------------------


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module that has not been imported; its import, and its classes, leave a trace."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "strange.py").write_text(
        "import os, torch\nos.mkdir('imported')\n"
        "class Encoder(torch.nn.Module):\n"
        "    def __init__(self, folder='made'):\n        super().__init__()\n"
        "        os.makedirs(folder, exist_ok=True)\n"
        "        self.layer = torch.nn.Linear(784, 2)\n"
        "    def forward(self, x):\n        return self.layer(x.flatten(1))\n"
    )
    (tmp_path / "strange.yaml").write_text("class_path: strange.Encoder\n")
    yield tmp_path
    sys.modules.pop("strange", None)


def saved(path, hyperparameters, state=None, **others):
    stored = {"_instantiator": INSTANTIATOR, "_class_path": "wae_lightning.WAEMMD", "latent_dim": 2} | hyperparameters
    state = WAEMMD(latent_dim=2).state_dict() if state is None else state
    content = {"state_dict": state, "pytorch-lightning_version": "2.6.6", "hyper_parameters": stored}
    torch.save(content | others, path)
    return path


STRANGE = {"class_path": "strange.Encoder"}
POPEN = {"class_path": "subprocess.Popen", "init_args": {"args": ["mkdir", "made"]}}
HOSTILE = {
    "a module that is not imported": {"encoder": STRANGE},
    "as a string": {"encoder": "strange.Encoder"},
    "as a quoted string": {"encoder": "'strange.Encoder'"},
    "as a string with blanks": {"encoder": "\n strange.Encoder "},
    "as YAML": {"encoder": "{class_path: strange.Encoder}"},
    "as YAML with escapes": {"encoder": '{"class\\u005fpath": strange.Encoder}'},
    "as YAML with a date that does not exist": {"encoder": "{class_path: strange.Encoder, x: 2020-13-45}"},
    "in a YAML file": {"encoder": "./strange.yaml"},
    "inside another module": {
        "encoder": {"class_path": "torch.nn.ModuleDict", "init_args": {"modules": {"a": STRANGE}}}
    },
    "in dict_kwargs": {"encoder": {"class_path": "torch.nn.Sequential", "dict_kwargs": {"args": [STRANGE]}}},
    "a process": {"encoder": POPEN},
    "a process as optimizer": {"optimizer": POPEN},
    "a function as optimizer": {"optimizer": "os.system"},
    "a browser": {"optimizer": {"class_path": "webbrowser.open", "init_args": {"url": "made"}}},
    "code from the hub": {"optimizer": {"class_path": "torch.hub.load", "init_args": {"repo_or_dir": "made"}}},
    "a metric, which downloads": {"encoder": {"class_path": "torchmetrics.image.fid.FrechetInceptionDistance"}},
    "no path": {"encoder": {"class_path": ["torch.nn.Identity"]}},
    "another instantiator": {"_instantiator": "os.system"},
    "another class": {"_class_path": "subprocess.Popen"},
}


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_hyper_parameters_build_nothing(hostile, module, monkeypatch):
    ran = []
    monkeypatch.setattr("webbrowser.open", lambda *arguments: ran.append(arguments))
    monkeypatch.setattr("torch.hub.load", lambda *arguments, **_: ran.append(arguments))
    path = saved(module / "hostile.ckpt", hostile)
    with pytest.raises(ValueError, match=r"hostile.ckpt: its hyper-parameters (name|hold|are for) "):
        WAEMMD.load_from_checkpoint(path)
    with path.open("rb") as file, pytest.raises(ValueError, match="the checkpoint: its hyper-parameters"):
        WAEMMD.load_from_checkpoint(file)
    with pytest.raises(UsageError, match=r"hostile.ckpt: (no .* \(its hyper-parameters|expected a model)"):
        load_model(path)
    old = saved(module / "old.ckpt", {}, hparams=hostile)
    with pytest.raises(ValueError, match=r"old.ckpt: its hyper-parameters"):
        WAEMMD.load_from_checkpoint(old)
    assert not (module / "imported").exists()
    assert not (module / "made").exists()
    assert "strange" not in sys.modules
    assert not ran


@pytest.mark.parametrize("images", [STRANGE, "strange.Encoder", "./strange.yaml", POPEN])
def test_hostile_data_is_not_built_either(images, module):
    stored = {"_class_path": "datamodules.HalfImageDataModule", "images": images, "observed": "top"}
    path = saved(module / "hostile.ckpt", {}, datamodule_hyper_parameters={"_instantiator": INSTANTIATOR} | stored)
    with pytest.raises(UsageError, match=r"hostile.ckpt: no HalfImageDataModule can be made of it \(its hyper"):
        load_data(path, {})
    with pytest.raises(ValueError, match=r"images must be a data module of whole images, got a (dict|str)"):
        HalfImageDataModule.load_from_checkpoint(path)
    assert not (module / "imported").exists()
    assert not (module / "made").exists()
    loaded = HalfImageDataModule.load_from_checkpoint(path, images=MNISTDataModule(), observed="left")
    assert loaded.observed == "left"


def test_a_model_larger_than_its_weights_is_not_made(module):
    encoder = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 10**6, "out_features": 10**6}}
    with pytest.raises(UsageError, match=r"large.ckpt: it describes a model of 10\d+ weights and holds \d+$"):
        load_model(saved(module / "large.ckpt", {"encoder": encoder}))


def test_own_classes_load_once_their_module_is_imported(module, capsys):
    state = WAEMMD(latent_dim=2, encoder=torch.nn.Linear(784, 2)).state_dict()
    state = {name.replace("encoder.", "encoder.layer."): weight for name, weight in state.items()}
    path = saved(module / "own.ckpt", {"encoder": STRANGE}, state)
    with pytest.raises(SystemExit):
        generate.main([str(path), "--out=x.npz"])
    assert "name 'strange.Encoder', which is not an imported class" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        generate.main([str(path), "--out=x.npz", "--import", "nowhere"])
    assert "--import nowhere: No module named 'nowhere'" in capsys.readouterr().err
    generate.main([str(path), "--num_samples=2", "--out=x.npz", "--import", "strange"])
    assert (module / "x.npz").exists()
    (module / "made").rmdir()
    model = WAEMMD.load_from_checkpoint(path)
    assert type(model.encoder) is importlib.import_module("strange").Encoder
    # what the caller gives is not looked for in the checkpoint
    given = WAEMMD.load_from_checkpoint(saved(path, {"encoder": POPEN}), encoder=None)
    torch.testing.assert_close(given.state_dict(), torch.load(path, weights_only=True)["state_dict"])


def test_what_people_write_into_configs_is_no_class():
    check_classes(
        {"compile": "reduce-overhead", "root": "data/v1.2", "name": "my.data", "note": "One. Two", "n": [1, None]}
    )
    check_classes({"lr_scheduler": {"class_path": "pytorch_lightning.cli.ReduceLROnPlateau"}, "name": "Adam"})


def test_weights_of_another_config_are_refused_in_one_sentence(trained, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        train.main([*SMALL, f"--ckpt_path={trained('mnist_wae_mmd')}", "--model.encoder.width=0.02", "--logger=false"])
    assert "last.ckpt: it was trained by another config: its " in capsys.readouterr().err


def test_the_judge_of_other_classes_is_refused(tmp_path):
    data = ModelNet40DataModule(num_points=32, source="shapes", classes=["box", "lamp"])
    data.setup("test")
    torch.save(PointNetClassifier(3).state_dict(), tmp_path / "judge.pt")
    with pytest.raises(ValueError, match=r"judge.pt: no judge of 2 classes \(Error"):
        point_cloud_results.load_classifier(tmp_path / "judge.pt", data)


@pytest.mark.parametrize("config", ["mnist_wae_mmd", "mnist_wae_gan"])
def test_weights_go_through_safetensors(trained, config, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    model, other = load_model(trained(config)), load_model(trained(config))
    safetensors.save_model(model, str(tmp_path / "model.safetensors"))
    for weight in other.state_dict().values():
        weight.zero_()
    safetensors.load_model(other, str(tmp_path / "model.safetensors"))
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)
    x = torch.rand(2, 1, 28, 28)
    torch.testing.assert_close(other(x), model(x), rtol=0, atol=0)
