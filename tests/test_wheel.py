"""The wheel without the repository: what it holds, and its console command from an empty folder."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DATA = {
    "datamodules/data/digits.h5",
    "datamodules/py.typed",
    "wae_lightning/metrics/digit_classifier.pt",
    "wae_lightning/metrics/digit_classifier_twin.pt",
    "wae_lightning/py.typed",
    "wae_lightning/cli/configs/mnist_wae_mmd.yaml",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of the source and the names of the files in the source."""
    if not (ROOT / "wae_lightning").is_dir():
        pytest.skip("the tests run against an installed wheel, without the source")
    source = tmp_path_factory.mktemp("source")
    for name in ("wae_lightning", "datamodules"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    wanted = {
        str(path.relative_to(source))
        for name in ("wae_lightning", "datamodules")
        for path in (source / name).rglob("*")
        if path.is_file()
    }
    build = "import setuptools.build_meta as backend; print(backend.build_wheel('.'))"
    run = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True, check=True)
    return source / run.stdout.split()[-1], wanted


def test_the_wheel_holds_both_packages_with_their_data(wheel):
    path, wanted = wheel
    held = set(zipfile.ZipFile(path).namelist())
    assert wanted >= DATA
    assert wanted <= held
    assert not {name.split("/")[0] for name in held} & {"tests", "experiments"}


@pytest.fixture(scope="module")
def run_command(wheel, tmp_path_factory):
    """Runs ``wae-lightning`` of a fresh environment that holds the wheel, with this one's packages behind it."""
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    (site,) = environment.glob("lib/python*/site-packages")
    binaries = environment / "bin"
    pip = [sys.executable, "-m", "pip", "--python", str(binaries / "python"), "install", "--no-deps", "--no-index"]
    # a checkout on the path would count as installed
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([*pip, "--quiet", "--disable-pip-version-check", str(wheel[0])], check=True, env=variables)
    # paths named in a .pth file come after the wheel, and their own .pth files, which lead to a checkout, are not read
    (site / "others.pth").write_text("\n".join(path for path in sys.path if Path(path).name == "site-packages"))
    folder = tmp_path_factory.mktemp("empty")

    def run(*arguments):
        command = [str(binaries / "wae-lightning"), *arguments]
        ran = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=120)
        return ran.returncode, ran.stdout, ran.stderr

    return run, folder


@pytest.mark.skipif(os.name == "nt", reason="the folders of an environment have other names")
def test_the_console_command_trains_evaluates_and_generates_from_an_empty_folder(run_command, few_digits):
    run, folder = run_command
    steps = [
        "--limit_train_batches=2",
        "--limit_val_batches=1",
        "--limit_test_batches=1",
        "--enable_progress_bar=false",
    ]
    # "fit" is Lightning's own word
    code, printed, errors = run(
        "fit", "--config", "mnist_wae_mmd", "--max_epochs=1", "--enable_progress_bar=false", *steps
    )
    assert code == 0, errors
    assert "Written to runs/mnist_wae_mmd/version_0:" in printed
    version = folder / "runs" / "mnist_wae_mmd" / "version_0"
    assert json.loads((version / "metrics.json").read_text())["steps"] == 2
    # the folder of a run stands for its last checkpoint
    code, printed, errors = run(
        "evaluate", str(version), f"--data.root={few_digits}", "--num_samples=20", "--out=metrics.json"
    )
    assert code == 0, errors
    assert "A mixture of 50 does not fit to 20 codes: its rows are left out." in printed
    measured = json.loads((folder / "metrics.json").read_text())
    assert measured["checkpoint"] == "last.ckpt"
    assert {"fid_digits_20", "fid_digits_20_mixture_of_10_fitted_to_codes", "psnr"} <= measured.keys()
    assert not [name for name in measured if "mixture_of_50" in name]
    code, _, errors = run("generate", str(version / "checkpoints" / "last.ckpt"), "--num_samples=4")
    assert code == 0, errors
    assert (folder / "samples.png").stat().st_size > 100
    assert {path.name for path in folder.iterdir()} == {"runs", "metrics.json", "samples.png"}


@pytest.mark.skipif(os.name == "nt", reason="the folders of an environment have other names")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["trian"],
            "wae-lightning: error: unknown command trian, expected train, evaluate, generate; did you mean train?",
        ),
        (
            ["train", "--max_epoch=2"],
            "wae-lightning train: error: unknown flag --max_epoch; did you mean --max_epochs?",
        ),
        (["evaluate", "nowhere.ckpt"], "wae-lightning evaluate: error: nowhere.ckpt: no such file"),
    ],
)
def test_messages_name_the_command(run_command, arguments, message):
    code, _, errors = run_command[0](*arguments)
    assert code == 2
    assert errors.strip().splitlines()[-1] == message
