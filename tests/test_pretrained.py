"""Models as folders, and as repositories of a hub that stands in for the real one."""

import json
import shutil

import pytest
import torch
from torch import nn

from wae_lightning import WAE, kernels, networks, penalties, pretrained, priors
from wae_lightning.parts import Part, describe
from wae_lightning.pretrained import from_pretrained, push_to_hub, save_pretrained

pytest.importorskip("safetensors")
HERE = [__name__]


class Model(WAE, Part):
    pass


@pytest.fixture
def model():
    prior = priors.Normal(4, 2.0)
    return Model(prior=prior, flow=networks.MixtureFlow(4, 3), penalty=penalties.MMD(kernels.RBF(2.0))).eval()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub's client, with a folder in place of its server."""
    client = pytest.importorskip("huggingface_hub")

    class Api:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, private, exist_ok):
            (tmp_path / "hub" / repo_id).mkdir(parents=True, exist_ok=exist_ok)

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            shutil.copytree(folder_path, tmp_path / "hub" / repo_id, dirs_exist_ok=True)
            return f"hub/{repo_id}/commit/1"

    def download(repo_id, allow_patterns):
        if not (tmp_path / "hub" / repo_id).is_dir():
            raise client.errors.RepositoryNotFoundError("404 for this repository", response=None)
        found = tmp_path / "cache"
        shutil.copytree(tmp_path / "hub" / repo_id, found, ignore=lambda _, names: set(names) - set(allow_patterns))
        return str(found)

    monkeypatch.setattr(client, "HfApi", Api)
    monkeypatch.setattr(client, "snapshot_download", download)
    return tmp_path


@pytest.mark.parametrize("half", [False, True])
def test_a_folder_brings_the_model_back(model, half, tmp_path):
    save_pretrained(model, tmp_path / "new" / "folder", half, card="Trained on *digits*.")
    loaded = from_pretrained(tmp_path / "new" / "folder", trust=HERE)
    assert describe(loaded) == describe(model)
    assert not loaded.training
    assert next(loaded.parameters()).dtype == torch.float32
    tolerance = {"rtol": 0, "atol": 1e-3 if half else 0}
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), **tolerance)
    drawn = [m.sample(3, torch.Generator().manual_seed(1)) for m in (loaded, model)]
    torch.testing.assert_close(*drawn, rtol=0, atol=1e-2 if half else 0)
    card = (tmp_path / "new" / "folder" / "README.md").read_text()
    assert "Trained on *digits*." in card
    assert "# Model\n" in card
    full = sum(value.numel() * 4 for value in model.state_dict().values())
    assert (tmp_path / "new" / "folder" / "model.safetensors").stat().st_size < full * (0.6 if half else 1.1)


def test_the_hub(model, hub):
    assert push_to_hub(model, "me/model") == "hub/me/model/commit/1"
    loaded = from_pretrained("me/model", trust=HERE)
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert not (hub / "cache" / "README.md").exists()
    with pytest.raises(FileNotFoundError, match="me/other: neither a folder nor a repository that can be had"):
        from_pretrained("me/other")


def test_bundled_weights(model, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "BUNDLED", tmp_path)
    save_pretrained(model, tmp_path / "digits")
    assert from_pretrained("digits", trust=HERE).latent_dim == 4
    with pytest.raises(FileNotFoundError, match=r"digit: no such folder, bundled weights \(digits\) or repository"):
        from_pretrained("digit")


def test_what_could_not_be_loaded_is_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"torch.nn.Linear does not tell how it was made, so nobody could load"):
        save_pretrained(Model(encoder=nn.Linear(784, 8)), tmp_path / "a")
    bad = Model()
    next(bad.decoder.parameters()).data.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"decoder.* of the model is not finite"):
        save_pretrained(bad, tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "Expecting property name"),
        ("[]", "describes no model"),
        ("[" * 10**5, "recursion|RecursionError"),
        (" " * 2**21, "more than 1048576 bytes"),
        ('{"model": {"class_path": "os.system", "init_args": {"command": "true"}}}', "which is no part of"),
        ('{"model": {"class_path": "wae_lightning.priors.Normal"}}', "describes no model"),
        (
            '{"model": {"class_path": "torch.nn.Linear", "init_args": {"in_features": 2, "out_features": 2}}}',
            "differ in the weights",
        ),
    ],
)
def test_damaged_and_hostile_folders(model, config, message, tmp_path):
    save_pretrained(model, tmp_path)
    with pytest.raises(ValueError, match=r"test_pretrained.Model', which is no part of"):
        from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match=f"no model can be loaded from it \\(.*({message})"):
        from_pretrained(tmp_path)


def test_weights_that_are_damaged_or_not_finite(model, tmp_path):
    from safetensors.torch import load_file, save_file

    save_pretrained(model, tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    name = "decoder.input.weight"
    save_file(weights | {name: weights[name] * float("inf")}, file)
    with pytest.raises(ValueError, match=r"decoder.* is not finite"):
        from_pretrained(tmp_path, trust=HERE)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="no model can be loaded from it"):
        from_pretrained(tmp_path, trust=HERE)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"model.safetensors: no such file"):
        from_pretrained(tmp_path)


def test_nothing_but_plain_json_is_written(model, tmp_path):
    save_pretrained(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model"] == describe(model)
    assert set(config["versions"]) == {"torch", "wae_lightning"}
