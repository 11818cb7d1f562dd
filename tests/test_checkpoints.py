"""Checkpoints from strangers: nothing in them runs, and they name our classes, torch.nn's and those one trusts."""

import importlib
import os
import pickle
import sys
import zipfile

import figures
import point_cloud_results
import pytest
import torch
from helpers import small, trainer
from torch import nn

from datamodules import HalfImageDataModule, MNISTDataModule, ModelNet40DataModule
from wae_lightning import WAE, WAEMMD, checkpoints, networks
from wae_lightning.checkpoints import read_checkpoint, read_plain
from wae_lightning.cli import evaluate, generate, train
from wae_lightning.cli.errors import UsageError
from wae_lightning.cli.load import load_data, load_model
from wae_lightning.metrics import DigitClassifier
from wae_lightning.networks import CouplingFlow, PointNetClassifier
from wae_lightning.parts import build, describe

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
    monkeypatch.setattr(DigitClassifier, "weights", path)
    with pytest.raises(ValueError, match=r"trapped.ckpt: not a checkpoint"):
        DigitClassifier.pretrained()
    with pytest.raises(ValueError, match=r"trapped.ckpt: not a checkpoint, or a damaged one"):
        WAEMMD.load_from_checkpoint(path)
    assert not sprung.exists()


def test_a_checkpoint_that_claims_more_than_it_holds_is_refused_unread(tmp_path):
    path = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", bytes(10**7))
    with pytest.raises(ValueError, match=r"bomb.ckpt: .*\(it claims 10000000 bytes and has \d+\)"):
        read_plain(path)
    for wide in (torch.zeros(1).expand(10**9), torch.zeros(2, 2).to_sparse(), torch.zeros(3, device="meta")):
        for content in ({"state_dict": {"x": wide}}, {"a": [(wide,)]}):
            torch.save(content, path)
            with pytest.raises(ValueError, match=r"bomb.ckpt: .*(stores less of it|a tensor of another kind)"):
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


def saved(path, arguments, state=None, **others):
    stored = {"_class_path": "wae_lightning.WAEMMD", "_version": "0.1.0", "latent_dim": 2} | arguments
    state = WAEMMD(latent_dim=2).state_dict() if state is None else state
    content = {"state_dict": state, "pytorch-lightning_version": "2.6.6", "hyper_parameters": stored}
    torch.save(content | others, path)
    return path


def part(path, **arguments):
    return {"class_path": path, "init_args": arguments}


STRANGE = part("strange.Encoder")
POPEN = part("subprocess.Popen", args=["mkdir", "made"])
HOSTILE = {
    "a module that is not imported": {"encoder": STRANGE},
    "inside another module": {"encoder": part("torch.nn.ModuleDict", modules={"a": STRANGE})},
    "in dict_kwargs": {"encoder": {"class_path": "torch.nn.Sequential", "dict_kwargs": {"args": [STRANGE]}}},
    "a process": {"encoder": POPEN},
    "a process as optimizer": {"optimizer": POPEN},
    "a function as optimizer": {"optimizer": part("os.system", command="mkdir made")},
    "a browser": {"optimizer": part("webbrowser.open", url="made")},
    "code from the hub": {"optimizer": part("torch.hub.load", repo_or_dir="made")},
    "a metric, which downloads": {"encoder": part("torchmetrics.image.fid.FrechetInceptionDistance")},
    "no path": {"encoder": {"class_path": ["torch.nn.Identity"]}},
    "another class": {"_class_path": "subprocess.Popen"},
    "another instantiator": {"_instantiator": "os.system"},
}
# what an earlier format read as the path of a class, of a file or of YAML is now a text
TEXTS = ["strange.Encoder", "{class_path: strange.Encoder}", "./strange.yaml"]


@pytest.mark.parametrize("hostile", [*HOSTILE.values(), *({"encoder": text} for text in TEXTS)], ids=str)
def test_hostile_hyper_parameters_build_nothing(hostile, module, monkeypatch):
    ran = []
    monkeypatch.setattr("webbrowser.open", lambda *arguments: ran.append(arguments))
    monkeypatch.setattr("torch.hub.load", lambda *arguments, **_: ran.append(arguments))
    path = saved(module / "hostile.ckpt", hostile)
    message = "hostile.ckpt: "
    if "encoder" not in hostile or type(hostile["encoder"]) is dict:
        message += "(.*it names|model.* expected class_path|.* can be made of what is recorded)"
    for load in (WAEMMD.load_from_checkpoint, WAE.load_from_checkpoint, load_model):
        with pytest.raises(ValueError, match=message) as refused:
            load(path)
        assert len(str(refused.value).splitlines()) == 1
    with path.open("rb") as file, pytest.raises(ValueError, match="the checkpoint: "):
        WAEMMD.load_from_checkpoint(file)
    assert not (module / "imported").exists()
    assert not (module / "made").exists()
    assert "strange" not in sys.modules
    assert not ran


@pytest.mark.parametrize("images", [STRANGE, POPEN, *TEXTS])
def test_hostile_data_is_not_built_either(images, module):
    stored = {"_class_path": "datamodules.HalfImageDataModule", "images": images, "observed": "top"}
    path = saved(module / "hostile.ckpt", {}, datamodule_hyper_parameters=stored)
    with pytest.raises(UsageError, match=r"hostile.ckpt: (it does not say which of our data modules|data: no )"):
        load_data(path, {})
    with pytest.raises(ValueError, match=r"images must be a data module of whole images|which is no part of"):
        HalfImageDataModule.load_from_checkpoint(path)
    assert not (module / "imported").exists()
    assert not (module / "made").exists()
    loaded = HalfImageDataModule.load_from_checkpoint(path, images=MNISTDataModule(), observed="left")
    assert loaded.pairs.condition_shape == (1, 28, 14)


def test_a_model_larger_than_its_weights_is_not_made(module):
    encoder = part("torch.nn.Linear", in_features=10**5, out_features=10**5)
    with pytest.raises(
        UsageError, match=r"large.ckpt: it describes a model of 1000\d+ weights, more than the \d+ numbers"
    ):
        load_model(saved(module / "large.ckpt", {"encoder": encoder}))


class Wide(nn.Module):
    """A network of the user's that needs numbers."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 784)

    def forward(self, z):
        return self.layer(z * float(z.sum() * 0 + 1)).view(-1, 1, 28, 28)


def test_what_a_use_of_the_model_would_cost_is_bounded(module):
    pool = part("torch.nn.AvgPool1d", kernel_size=49_999, stride=1, padding=24_999)
    arguments = {"encoder": part("torch.nn.Identity"), "decoder": pool, "latent_dim": 99_999}
    with pytest.raises(UsageError, match=r"pool.ckpt: for a single code the model takes 4999\d+ floating-point"):
        load_model(saved(module / "pool.ckpt", arguments, {"memory._extra_state": torch.empty(0, 1)}))
    for decoder in (
        part("torch.nn.Linear", in_features=3, out_features=2),
        part("torch.nn.Upsample", scale_factor=1000.0),
        part("torch.nn.GRU", input_size=2, hidden_size=2),
    ):
        arguments = {"encoder": part("torch.nn.Identity"), "decoder": decoder}
        path = saved(module / "odd.ckpt", arguments, built(arguments))
        with pytest.raises(UsageError, match=r"odd.ckpt: its networks do not fit its codes or each other \(."):
            load_model(path)
    folding = networks.FoldingDecoder(2, num_points=100_000)
    model = WAE(networks.PointNetEncoder(2, (8,)), folding, latent_dim=2, input_range=None)
    path = module / "folds.ckpt"
    written(model, path)
    message = r"folds.ckpt: for a single code the model puts out \d+ bytes in one layer and \d+ in all"
    with pytest.raises(UsageError, match=message):
        load_model(path)
    # the user may do with it what he likes
    assert isinstance(WAE.load_from_checkpoint(path).decoder, networks.FoldingDecoder)


def built(arguments):
    """The weights of a model that is described."""
    return build(part("wae_lightning.WAEMMD", latent_dim=2, **arguments)).state_dict()


def written(model, path):
    writer = trainer(path.parent)
    writer.strategy.connect(model)
    writer.save_checkpoint(path)
    return path


def test_a_network_that_must_be_trusted_need_not_run_without_memory(module):
    model = WAE(networks.ConvEncoder(latent_dim=2, width=1 / 64), Wide(), latent_dim=2)
    assert type(load_model(written(model, module / "wide.ckpt"), trust=[__name__]).decoder) is Wide


def test_checkpoints_of_version_0_1_are_refused_with_one_sentence(tmp_path):
    model = small()
    path = written(model, tmp_path / "old.ckpt")
    old = torch.load(path, weights_only=True)
    old["hyper_parameters"] = {"_instantiator": "pytorch_lightning.cli.instantiate_module", "latent_dim": 4}
    torch.save(old, path)
    message = "written by wae-lightning 0.1 or by another package: use version 0.1.0 for it"
    for load in (WAEMMD.load_from_checkpoint, load_model):
        with pytest.raises(ValueError, match=f"old.ckpt: it was {message}"):
            load(path)
    with pytest.raises(ValueError, match=f"the checkpoint: it was {message}"):
        trainer(tmp_path, max_epochs=2).fit(model, torch.rand(8, 4, 1, 28, 28), ckpt_path=path)


def test_own_classes_load_once_their_module_is_imported(module, capsys):
    state = WAEMMD(latent_dim=2, encoder=torch.nn.Linear(784, 2)).state_dict()
    state = {name.replace("encoder.", "encoder.layer."): weight for name, weight in state.items()}
    path = saved(module / "own.ckpt", {"encoder": STRANGE}, state)
    with pytest.raises(SystemExit):
        generate.main([str(path), "--out=x.npz"])
    assert "it names 'strange.Encoder', which is no part of" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        generate.main([str(path), "--out=x.npz", "--import", "nowhere"])
    assert "--import nowhere: No module named 'nowhere'" in capsys.readouterr().err
    generate.main([str(path), "--num_samples=2", "--out=x.npz", "--import", "strange"])
    assert (module / "x.npz").exists()
    (module / "made").rmdir()
    model = WAEMMD.load_from_checkpoint(path, trust=["strange"])
    assert type(model.encoder) is importlib.import_module("strange").Encoder
    with pytest.raises(ValueError, match=r"it names 'strange.Encoder'"):
        WAEMMD.load_from_checkpoint(path)  # imported is not trusted
    # what the caller gives is not looked for in the checkpoint
    given = WAEMMD.load_from_checkpoint(saved(path, {"encoder": POPEN}), encoder=None)
    torch.testing.assert_close(given.state_dict(), torch.load(path, weights_only=True)["state_dict"])


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


@pytest.mark.parametrize("enabled", [True, False])
def test_a_refused_model_leaves_gradients_as_they_were(monkeypatch, enabled):
    description = describe(CouplingFlow(4, layers=50))
    with torch.set_grad_enabled(enabled):
        for calls in range(100):  # wherever the budget ends, also on the way out of torch's own no_grad
            monkeypatch.setattr(checkpoints, "_MOST_CALLS", calls)
            with pytest.raises(ValueError, match="a model of more modules than"):
                checkpoints.build_bounded(description, {})
            assert torch.is_grad_enabled() == enabled
