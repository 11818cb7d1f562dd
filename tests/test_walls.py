"""What may import what: the parts stay apart."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def imported(path):
    """The names of all modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    return names


def files(pattern):
    found = sorted(ROOT.glob(pattern))
    assert found
    return [pytest.param(path, id=str(path.relative_to(ROOT))) for path in found]


@pytest.mark.parametrize("path", files("wae_lightning/**/*.py"))
def test_models_know_no_data_and_no_experiment(path):
    # models and data modules meet in the commands only
    strangers = {"experiments"} if "cli" in path.relative_to(ROOT).parts else {"datamodules", "experiments"}
    assert not {name.split(".")[0] for name in imported(path)} & strangers


@pytest.mark.parametrize("path", files("datamodules/**/*.py"))
def test_data_modules_know_no_model_and_no_experiment(path):
    leaves = {f"wae_lightning.{name}" for name in ("lightning", "image_parts", "pairs", "parts", "checkpoints")}
    ours = {name for name in imported(path) if name.split(".")[0] in ("wae_lightning", "experiments")}
    assert ours <= leaves


@pytest.mark.parametrize("path", [*files("wae_lightning/**/*.py"), *files("datamodules/**/*.py")])
def test_one_file_names_lightnings_packages(path):
    named = {name for name in imported(path) if name.split(".")[0] in ("pytorch_lightning", "lightning")}
    assert not named or path == ROOT / "wae_lightning" / "lightning.py"


@pytest.mark.parametrize(
    "path",
    [
        *files("wae_lightning/networks/*.py"),
        *files("wae_lightning/penalties/*.py"),
        *(
            parameter
            for name in ("kernels", "priors", "costs", "noise")
            for parameter in files(f"wae_lightning/{name}.py")
        ),
    ],
)
def test_the_parts_of_a_model_do_not_know_lightning(path):
    assert not {name.split(".")[0] for name in imported(path)} & {"pytorch_lightning", "lightning"}
    assert "wae_lightning.lightning" not in imported(path)


EVERYTHING = [*files("wae_lightning/**/*.py"), *files("datamodules/**/*.py"), *files("experiments/**/*.py")]


@pytest.mark.parametrize("path", EVERYTHING)
def test_nothing_runs_what_a_file_says(path):
    """No eval, no pickle, no shell, no unpacking of archives; everything of torch is loaded as plain data."""
    assert not imported(path) & {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "tarfile", "runpy"}
    for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert name not in ("eval", "exec", "__import__", "os.system", "os.popen", "shutil.unpack_archive"), name
        assert name.rpartition(".")[2] not in ("extractall", "extract", "getoutput", "getstatusoutput", "unsafe_load")
        assert given.get("shell", "False") == "False", name
        assert given.get("allow_pickle", "False") == "False", name
        loads = name.endswith(("torch.load", ".load_from_checkpoint")) or "ckpt_path" in given
        # in load_from_checkpoint it is an argument, True if the caller says nothing
        assert not loads or given.get("weights_only") in ("True", "weights_only"), name
        assert name != "yaml.load" or given["Loader"] in ("yaml.BaseLoader", "yaml.SafeLoader"), name


@pytest.mark.parametrize("package", ["wae_lightning", "datamodules"])
def test_the_packages_start_no_process(package):
    for path in (ROOT / package).rglob("*.py"):
        # the allocator's setting is a call of the C library with two constants
        allowed = {"ctypes"} if path.name == "allocator.py" else set()
        assert not imported(path) & {"subprocess", "pty", "ctypes"} - allowed, path
