"""Both of Lightning's packages: each trains everything, and the choice between them is said and kept."""

import functools
import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from forked import TRAIN, run_code, run_forked

PACKAGES = ["pytorch_lightning", "lightning.pytorch"]
TESTS = Path(__file__).parent
SWITCH = "WAE_LIGHTNING_PACKAGE"
MODELS = ["WAEMMD", "WAEGAN", "ConditionalWAE", "PointNetWAE"]

pytestmark = pytest.mark.skipif(find_spec("lightning") is None, reason="lightning is not installed")


def results(package, folder, *tasks):
    """What the tasks of ``either_lightning.py`` found."""
    ran = run_forked(TESTS / "either_lightning.py", package, folder, *tasks, **{SWITCH: None})
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return functools.cache(lambda package: results(package, tmp_path_factory.mktemp("found"), "fit", "cli"))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_trains_each_model(package, model, precision, found):
    expected = {"steps": 2, "changed": True, "finite": True, "module": True}
    assert found(package)["fit"][f"{model} {precision}"] == expected


@pytest.mark.parametrize("package", PACKAGES)
def test_lightning_cli(package, found):
    of_cli = found(package)["cli"]
    assert of_cli["steps"] == 2
    assert of_cli["class"] == "wae_lightning.WAEMMD"
    assert package not in of_cli["hyper_parameters"]


def test_each_package_goes_on_from_the_others_checkpoint(tmp_path):
    found = {}
    for order in (PACKAGES, PACKAGES[::-1], [PACKAGES[0]] * 2):
        folder = tmp_path / "-".join(order)
        results(order[0], folder, "resume")
        found[folder.name] = results(order[1], folder, "resume")["resume"]
    # exactly as within one package: random state, loops and the callbacks' states included
    assert all(one["steps"] == 4 and one["epoch"] == 2 and one["same"] for one in found.values())
    assert len({one["sum"] for one in found.values()}) == 1


SHORT = [
    "--limit_train_batches=2", "--limit_val_batches=1", "--limit_test_batches=1", "--accelerator=cpu",
    "--enable_progress_bar=false", "--model.encoder=ConvEncoder", "--model.encoder.width=0.02",
    "--model.decoder=ConvDecoder", "--model.decoder.width=0.02",
]  # fmt: skip


def test_the_command_under_each_package(tmp_path):
    """The other way round, as without a command: the last test."""
    order = PACKAGES
    first = run_forked(TRAIN, *SHORT, "--max_epochs=1", cwd=tmp_path, **{SWITCH: order[0]})
    assert first.returncode == 0, first.stderr
    run = tmp_path / "runs/mnist_wae_mmd/version_0"
    assert f"class_path: {order[0]}.loggers.TensorBoardLogger" in (run / "config.yaml").read_text()
    more = [*SHORT, "--max_epochs=2", "--ckpt_path=last"]
    second = run_forked(TRAIN, *more, cwd=tmp_path, **{SWITCH: order[1]})
    assert second.returncode == 0, second.stderr
    assert json.loads((run / "metrics.json").read_text())["steps"] == 4
    assert [path.name for path in run.parent.iterdir()] == ["version_0"]


# ---- the choice ------------------------------------------------------------------------------------------------------

SHOW = "from wae_lightning.lightning import PACKAGE, Trainer; print(PACKAGE, Trainer.__module__.split('.trainer')[0])"


@pytest.mark.parametrize(
    ("imports", "switch", "expected"),
    [
        ("", None, PACKAGES[0]),
        ("import lightning", None, PACKAGES[1]),
        ("import lightning.pytorch as pl", None, PACKAGES[1]),
        ("from lightning.pytorch import Trainer", None, PACKAGES[1]),
        ("import pytorch_lightning", None, PACKAGES[0]),
        # our package itself is an empty room until something of it is used
        ("import wae_lightning, lightning", None, PACKAGES[1]),
        ("", PACKAGES[1], PACKAGES[1]),
        ("import lightning", PACKAGES[0], PACKAGES[0]),
        ("import pytorch_lightning", PACKAGES[1], PACKAGES[1]),
        ("import pytorch_lightning, lightning", PACKAGES[0], PACKAGES[0]),
    ],
)
def test_the_package_is_the_one_that_is_wanted_or_imported_already(imports, switch, expected):
    strict = "import warnings; warnings.filterwarnings('error', 'both pytorch_lightning')"
    ran = run_code(f"{strict}\n{imports}\n{SHOW}", **{SWITCH: switch})
    assert ran.stdout.split() == [expected, expected], ran.stderr


@pytest.mark.parametrize("imports", ["import pytorch_lightning, lightning", "import lightning, pytorch_lightning"])
def test_of_both_it_is_lightning_with_one_warning(imports):
    ran = run_code(f"{imports}\n{SHOW}\nimport datamodules\nfrom wae_lightning import WAEMMD, WAEGAN", **{SWITCH: None})
    assert ran.stdout.split() == [PACKAGES[1]] * 2
    assert ran.stderr.count("both pytorch_lightning and lightning.pytorch are imported") == 1
    assert f"{SWITCH}=pytorch_lightning" in ran.stderr


@pytest.mark.parametrize(
    ("ours", "later"),
    [
        ("from wae_lightning import WAEMMD", "import lightning as L"),
        ("from datamodules import MNISTDataModule", "from lightning.pytorch import Trainer"),
    ],
)
def test_importing_lightning_after_us_says_cause_and_remedy(ours, later):
    ran = run_code(f"{ours}\n{later}", **{SWITCH: None})
    assert ran.returncode == 1
    last = ran.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: wae_lightning was imported before lightning and has chosen pytorch_lightning")
    assert f"Import lightning first, or set the environment variable {SWITCH}=lightning.pytorch" in last
    # the other remedy that it names: both side by side
    assert run_code(f"{ours}\n{later}", **{SWITCH: PACKAGES[0]}).returncode == 0
    assert run_code(f"{ours}\n{later}", **{SWITCH: PACKAGES[1]}).returncode == 0


def test_a_wrong_name_in_the_variable():
    ran = run_code(SHOW, **{SWITCH: "lightning"})
    assert f"{SWITCH} must be pytorch_lightning or lightning.pytorch, got 'lightning'" in ran.stderr
    ran = run_forked(TRAIN, "--max_epochs=1", **{SWITCH: "lightning"})
    assert ran.returncode == 2
    assert ran.stderr.strip().splitlines() == [
        f"train.py: error: the environment variable {SWITCH} must be pytorch_lightning or lightning.pytorch, "
        "got 'lightning'"
    ]
