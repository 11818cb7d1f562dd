"""Models as folders, and as repositories of a hub that stands in for the real one."""

import base64
import configparser
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from PIL import Image
from torch import nn

from wae_lightning import WAE, kernels, networks, penalties, pretrained, priors
from wae_lightning.parts import Part, describe
from wae_lightning.pretrained import from_pretrained, push_to_hub, save_pretrained

HERE = [__name__]


class Model(WAE, Part):
    pass


class Sized(nn.Linear):
    """A network that does not keep its argument."""

    def __init__(self, size):
        super().__init__(size, 8)


@pytest.fixture
def model():
    prior = priors.Normal(4, 2.0)
    return Model(prior=prior, flow=networks.MixtureFlow(4, 3), penalty=penalties.MMD(kernels.RBF(2.0))).eval()


class Hub(BaseHTTPRequestHandler):
    """The few answers of the hub's server that the client's library asks for."""

    files: ClassVar[dict] = {}
    asked: ClassVar[list] = []

    def log_message(self, *arguments):
        pass

    def answer(self, content, status=200, **headers):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            Hub.asked.append(asked)
            self.answer({"url": f"https://huggingface.co/{asked.get('organization', 'me')}/{asked['name']}"})
        elif self.path == "/api/validate-yaml":
            self.answer({"warnings": [], "errors": []})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            files = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            self.answer({"files": files})
        else:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    Hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            commit = "https://huggingface.co/me/model/commit/1"
            self.answer({"commitUrl": commit, "commitOid": "1" * 40, "success": True})

    def do_GET(self):
        name = self.path.rpartition("/")[2]
        listed = [{"type": "file", "path": n, "size": len(c), "oid": "2" * 40} for n, c in Hub.files.items()]
        if "me/model" not in self.path:
            self.answer({"error": "none"}, 404, **{"X-Error-Code": "RepoNotFound"})
        elif "/tree/" in self.path:
            self.answer(listed)
        elif self.path.startswith("/api/models/"):
            siblings = [{"rfilename": n} for n in Hub.files]
            self.answer({"id": "me/model", "sha": "1" * 40, "siblings": siblings, "private": False, "tags": []})
        else:
            self.answer(Hub.files[name], **{"X-Repo-Commit": "1" * 40, "ETag": f'"{name}"'})

    do_HEAD = do_GET


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub's own client, and a server of this process in place of the real one."""
    constants = pytest.importorskip("huggingface_hub.constants")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.partition("/{")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{address}/{{{template[2]}")
    yield tmp_path
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("half", [False, True])
def test_a_folder_brings_the_model_back(model, half, tmp_path):
    metrics = {"test/cost": 3.14159}
    save_pretrained(model, tmp_path / "new" / "folder", half, "Ten *digits*.", metrics, "## More\n")
    loaded = from_pretrained(tmp_path / "new" / "folder", trust=HERE)
    assert describe(loaded) == describe(model)
    assert not loaded.training
    assert next(loaded.parameters()).dtype == torch.float32
    tolerance = {"rtol": 0, "atol": 1e-3 if half else 0}
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), **tolerance)
    drawn = [m.sample(3, torch.Generator().manual_seed(1)) for m in (loaded, model)]
    torch.testing.assert_close(*drawn, rtol=0, atol=1e-2 if half else 0)
    card = (tmp_path / "new" / "folder" / "README.md").read_text()
    for text in ("# Model\n", "Wasserstein auto-encoder. It has ", "Ten *digits*.", "| test/cost | 3.142 |", "## More"):
        assert text in card
    assert "![samples](samples.png)" in card
    assert f"trust=['{__name__}'])" in card
    with Image.open(tmp_path / "new" / "folder" / "samples.png") as picture:
        assert min(picture.size) > 8 * 28
    full = sum(value.numel() * 4 for value in model.state_dict().values())
    assert (tmp_path / "new" / "folder" / "model.safetensors").stat().st_size < full * (0.6 if half else 1.1)


def test_the_hub(model, hub):
    assert push_to_hub(model, "me/model", private=True, token="mine") == "https://huggingface.co/me/model/commit/1"
    asked = Hub.asked[-1]  # older clients say it one way, newer ones the other
    assert asked.get("private") or asked.get("visibility") == "private"
    assert set(Hub.files) >= {"config.json", "model.safetensors", "README.md", "samples.png"}
    loaded = from_pretrained("me/model", trust=HERE)
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert {path.name for path in (hub / "cache").glob("**/snapshots/*/*")} == {"config.json", "model.safetensors"}
    with pytest.raises(FileNotFoundError, match="me/other: neither a folder nor a repository that can be had"):
        from_pretrained("me/other")


def test_bundled_weights(model, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "BUNDLED", tmp_path)
    save_pretrained(model, tmp_path / "digits")
    assert from_pretrained("digits", trust=HERE).latent_dim == 4
    with pytest.raises(FileNotFoundError, match=r"digit: no such folder, bundled weights \(digits\) or repository"):
        from_pretrained("digit")


def test_what_could_not_be_loaded_is_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"test_pretrained.Sized does not tell how it was made, so nobody could load"):
        save_pretrained(Model(encoder=Sized(784)), tmp_path / "a")
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


def test_the_bundled_weights_need_no_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert from_pretrained("mnist_wae_mmd").sample(2).shape == (2, 1, 28, 28)
    with pytest.raises(ImportError, match="huggingface_hub is missing: pip install huggingface_hub"):
        from_pretrained("owner/name")
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[1] / "setup.cfg")
    assert "safetensors" in setup["options"]["install_requires"]
