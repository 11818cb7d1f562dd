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
    assert not {name for name in imported(path) if name.split(".")[0] in ("datamodules", "experiments")}


@pytest.mark.parametrize("path", files("datamodules/**/*.py"))
def test_data_modules_know_no_model_and_no_experiment(path):
    assert not {name for name in imported(path) if name.split(".")[0] in ("wae_lightning", "experiments")}


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
    assert not {name for name in imported(path) if "lightning" in name and not name.startswith("wae_lightning")}
