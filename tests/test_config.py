"""Models and data modules of configs: from Python as from the command line, and sizes that follow from one another."""

import contextlib
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from forked import run_code
from helpers import codes_and_loss
from torch import nn

import datamodules
from wae_lightning import from_config
from wae_lightning.cli import train
from wae_lightning.cli.errors import UsageError
from wae_lightning.cli.flags import CONFIGS, complete_flags, config_file
from wae_lightning.costs import AbsoluteError
from wae_lightning.networks import WhitenedPCA
from wae_lightning.priors import Sphere
from wae_lightning.work import check_work, codes_at_once

NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
PICTURES = [name for name in NAMES if not name.startswith(("mnist", "modelnet40"))]
OTHERS = [name for name in NAMES if name not in PICTURES]
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    return tmp_path


def printed(*flags):
    """The config that a command line would train with."""
    text = io.StringIO()
    with pytest.raises(SystemExit), contextlib.redirect_stdout(text):
        train.Train(*complete_flags([*flags, "--print_config"]))
    return text.getvalue()


def parsed(*flags):
    return yaml.safe_load(printed(*flags))


def size(config, name):
    found = config
    for key in name.split("."):
        found = (found.get("init_args", found) if isinstance(found, dict) else found)[key]
    return found


def run_once(model, data):
    """All of a step but the optimizer's: on random data of the shape that the data module has."""
    if hasattr(data, "target_shape"):
        x = (
            (torch.arange(4) % data.num_classes if data.num_classes else torch.rand(4, *data.condition_shape)),
            torch.rand(4, *data.target_shape),
        )
        x = model.inputs_of(x)
    elif hasattr(data, "image_shape"):
        x = torch.rand(4, *data.image_shape)
    else:
        x = torch.randn(4, data.num_points, 3)
    if isinstance(getattr(model, "features", None), WhitenedPCA):
        model.features.fit(torch.rand(30, *data.condition_shape))
    codes, loss = codes_and_loss(model, x)
    penalty = model.penalty(codes, model.prior_like(codes))
    assert torch.isfinite(loss)
    assert torch.isfinite(penalty)
    assert model.predict_step(x, 0)[0].shape == (4, model.latent_dim)


def small(name):
    """Widths of the networks at the size of the papers, which take seconds to make."""
    conv = name.endswith(("_paper", "_repo")) and "_wae_" in name
    return {"encoder": {"width": 0.05}, "decoder": {"width": 0.05}} if conv else {}


def changed(name, **images):
    """Arguments of the data module of a config that change those of its images, and say where a folder is."""
    if name.startswith("folder"):
        images["root"] = "pictures"
        for label in ("cat", "dog"):  # which are the labels
            Path("pictures", label).mkdir(parents=True, exist_ok=True)
            Path("pictures", label, "1.png").touch()
    return images if not images or "_wae_" in name else {"images": images}


# ---- every config ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_config_trains_as_it_is(name):
    run_once(*from_config(name, data=changed(name), **small(name)))


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("_paper") and "mmd" not in name])
def test_models_of_the_papers_size_are_no_strangers_to_those_who_load_them(name):
    model, _ = from_config(name)
    check_work(model)
    assert codes_at_once(model, 100) >= 32


@pytest.mark.parametrize("name", OTHERS)
def test_one_argument_changes_the_latent_dimension_of_every_config(name):
    """Those of pictures: in the next test."""
    model, data = from_config(name, latent_dim=6, **small(name))
    assert model.latent_dim == 6
    run_once(model, data)


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_of_another_size_and_in_grey_need_no_word_to_the_model(name):
    channels = 3 if name == "folder_colourisation" else 1  # grey pictures have no colours to find
    data = changed(name, image_size=32, channels=channels)
    model, module = from_config(name, latent_dim=6, data=data, **small(name))
    assert module.image_shape == (channels, 32, 32)
    assert model.latent_dim == 6
    run_once(model, module)
    pairs = "images" in data
    if name not in ("celeba_wae_gan", "celeba_attributes", "folder_inpainting", "folder_colourisation"):
        return  # the command line, which takes as long again, links all configs alike
    flags = [f"--data.{'images.' * pairs}{key}={value}" for key, value in data.get("images", data).items()]
    found = size(parsed(f"--config={name}", *flags), "model.target_shape" if pairs else "model.image_shape")
    assert found == list(module.target_shape if pairs else module.image_shape)


def test_the_paper_s_configs_are_the_paper_s_and_the_repository_s_are_its_code_s():
    """Weight of the penalty, epochs, variance of the prior, learning rate, whether the input has noise."""
    expected = {
        "celeba_wae_mmd_paper": (100, 55, 2, 1e-3, False), "celeba_wae_gan_paper": (1, 55, 2, 3e-4, False),
        "celeba_wae_mmd_repo": (100, 50, 1, 1e-3, True), "celeba_wae_gan_repo": (100, 50, 1, 3e-4, True),
        "mnist_wae_mmd_paper": (10, 100, 1, 1e-3, True), "mnist_wae_gan_paper": (10, 100, 1, 1e-3, True),
    }  # fmt: skip
    for name, (weight, epochs, variance, rate, noisy) in expected.items():
        model, _ = from_config(name, **small(name))
        assert model.penalty_weight == weight, name
        assert yaml.safe_load(config_file(name).read_text())["trainer"]["max_epochs"] == epochs, name
        assert model.prior.scale**2 == pytest.approx(variance), name
        optimizer = model.make_optimizer([nn.Parameter(torch.zeros(1))])
        assert optimizer.param_groups[0]["lr"] == rate, name
        schedule = model.make_lr_scheduler(optimizer)
        found = [optimizer.param_groups[0]["lr"] / rate]
        for _ in range(50):
            optimizer.step()
            schedule.step()
            found.append(optimizer.param_groups[0]["lr"] / rate)
        exponential = [0.01 ** (epoch / 50) for epoch in (29, 30, 50)]
        steps = exponential if name.endswith("_repo") else [1, 0.5, 0.1]
        assert [found[epoch] for epoch in (29, 30, 50)] == pytest.approx(steps, rel=0.02), name
        assert (type(model.noise).__name__ == "InputNoise") == noisy, name
        if "gan" in name:
            width = 1024 if name.endswith("_repo") else 512
            shapes = [tuple(x.shape) for x in model.penalty.critic.parameters() if x.ndim == 2]
            assert shapes == [(width, model.latent_dim), *[(width, width)] * 3, (1, width)], name
            assert model.penalty.log_prior == name.startswith("celeba"), name
        else:
            assert model.penalty.kernel.c == pytest.approx(2 * model.latent_dim * variance), name
            assert len(model.penalty.kernel.scales) == (7 if name.endswith("_repo") else 1), name


def test_the_sizes_of_the_default_configs_are_what_they_were():
    """Those that stood in the files, and were checked there by the results."""
    expected = {
        "mnist_wae_gan": {"encoder.latent_dim": 16, "decoder.latent_dim": 16, "flow.dim": 16,
                          "penalty.critic.latent_dim": 16, "encoder.image_shape": [1, 28, 28]},
        "mnist_wae_mmd_paper": {"encoder.latent_dim": 8, "decoder.latent_dim": 8, "prior.latent_dim": 8},
        "mnist_vae": {"encoder.latent_dim": 32, "decoder.latent_dim": 16},
        "celeba_conditional": {"encoder.part_shapes": [[3, 32, 64], [3, 32, 64]], "decoder.target_shape": [3, 32, 64],
                               "decoder.observed_shape": [3, 32, 64], "encoder.latent_dim": 32},
        "modelnet40_pointnet": {"decoder.num_points": 1024, "num_points": 1024, "flow.dim": 64},
    }  # fmt: skip
    for name, sizes in expected.items():
        config = parsed(f"--config={name}")
        assert {key: size(config, f"model.{key}") for key in sizes} == sizes, name


# ---- what follows from what ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "sizes"),
    [
        (["--model.latent_dim=8"], {"encoder.latent_dim": 8, "decoder.latent_dim": 8, "flow.dim": 8}),
        (["--model.noise=GaussianNoise"], {"encoder.latent_dim": 32, "decoder.latent_dim": 16}),
        (["--model.noise=ImplicitNoise"], {"encoder.latent_dim": 16, "noise.latent_dim": 16}),
        (["--model.prior=Sphere", "--model.latent_dim", "4"], {"prior.latent_dim": 4, "encoder.latent_dim": 4}),
        (["--model.prior=Sphere", "--model.prior.latent_dim=4"], {"latent_dim": 4, "encoder.latent_dim": 4}),
        (["--model.encoder.latent_dim=10", "--model.latent_dim=8"], {"encoder.latent_dim": 10, "flow.dim": 8}),
        (["--model.encoder", '{"class_path": "ConvEncoder", "init_args": {"latent_dim": 9}}'],
         {"encoder.latent_dim": 9, "decoder.latent_dim": 16}),
        (["--model.image_shape=[1,32,32]"], {"image_shape": [1, 32, 32], "encoder.image_shape": [1, 32, 32]}),
        (["--config=mnist_wae_gan", "--model.latent_dim=3"], {"penalty.critic.latent_dim": 3}),
        (["--config=mnist_conditional", "--model.penalty=Adversarial", "--model.penalty.critic=Critic"],
         {"penalty.critic.latent_dim": 8 + 16}),
        (["--config=mnist_conditional", "--model.penalty=Adversarial", "--model.penalty.critic=Critic",
          "--model.features=WhitenedPCA", "--model.features.num_features=5", "--data.observed=left"],
         {"penalty.critic.latent_dim": 8 + 5, "features.input_shape": [1, 28, 14], "condition_shape": [1, 28, 14]}),
        (["--config=mnist_conditional", "--model.penalty=Adversarial", "--model.penalty.critic=Critic",
          "--model.match=marginal"], {"penalty.critic.latent_dim": 8}),
        (["--config=mnist_conditional_paper", "--data.fraction=0.25"],
         {"encoder.part_shapes": [[1, 7, 28], [1, 21, 28]], "decoder.target_shape": [1, 21, 28],
          "target_shape": [1, 21, 28]}),
        (["--config=mnist_conditional_report", "--model.encoder=ConditionalMLPEncoder", "--data.fraction=0.25"],
         {"encoder.part_shapes": [[1, 7, 28]], "encoder.latent_dim": 8}),
        (["--config=modelnet40_pointnet", "--data.num_points=500"], {"num_points": 500, "decoder.num_points": 500}),
        (["--config=modelnet40_pointnet", "--model.flow=null"], {"fit_flow": None}),
        (["--config=modelnet40_pointnet", "--model.flow=CouplingFlow"], {"fit_flow": None, "flow.dim": 64}),
        (["--config=modelnet40_pointnet", "--model.flow=null", "--model.fit_flow=3"], {"fit_flow": 3}),
        (["--config=modelnet40_pointnet", "--model.flow.components=3"], {"fit_flow": 0}),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_typed_stands_and_the_rest_follows(flags, sizes):
    config = parsed(*flags)
    assert {key: size(config, f"model.{key}") for key in sizes} == sizes


def test_a_model_of_pairs_has_the_shapes_of_its_data():
    config = parsed("--config=mnist_conditional", "--data.observed=left")
    assert size(config, "model.condition_shape") == size(config, "model.target_shape") == [1, 28, 14]
    config = parsed("--config=mnist_labels", "--data.class_names=[a,b,c]")
    assert size(config, "model.num_classes") == 3
    assert size(config, "model.encoder.part_shapes") == [[3], [1, 28, 28]]
    assert size(config, "model.decoder.observed_shape") == [3]
    assert size(config, "model.flow.condition_features") == 3
    flow = ["--model.flow=MixtureFlow", "--model.latent_dim=6"]
    assert size(parsed("--config=mnist_conditional", *flow), "model.flow.condition_features") == 0
    flow[0] = "--model.flow=CouplingFlow"
    config = parsed("--config=mnist_labels", *flow, "--model.fit_flow=null")
    assert (size(config, "model.flow.dim"), size(config, "model.flow.condition_features")) == (6, 10)
    assert size(parsed("--config=mnist_conditional", *flow), "model.flow.condition_features") == 16


def test_the_size_of_clouds_can_be_said_to_the_model_too():
    config = parsed("--config=modelnet40_pointnet", "--model.num_points=300")
    assert size(config, "data.num_points") == size(config, "model.decoder.num_points") == 300


def test_sizes_in_a_file_of_your_own_stand_unless_the_file_implies_them(empty_folder):
    """An encoder may count otherwise; but a saved config holds all sizes, and is changed like any other."""
    content = yaml.safe_load(config_file("mnist_wae_mmd").read_text())
    content["model"]["init_args"]["encoder"]["init_args"]["latent_dim"] = 20
    (empty_folder / "mine.yaml").write_text(yaml.safe_dump(content))
    assert size(parsed("--config=mine.yaml", "--model.latent_dim=8"), "model.encoder.latent_dim") == 20
    (empty_folder / "saved.yaml").write_text(printed("--config=mnist_wae_mmd"))
    saved = parsed("--config=saved.yaml", "--model.latent_dim=8")
    assert size(saved, "model.encoder.latent_dim") == 8
    assert parsed("--config=saved.yaml") == parsed("--config=mnist_wae_mmd")


def test_a_network_of_your_own_is_left_alone(empty_folder, monkeypatch):
    (empty_folder / "mynets.py").write_text(
        "from torch import nn\nclass Mine(nn.Module):\n    def __init__(self, latent_dim: int = 5):\n"
        "        super().__init__()\n"
    )
    monkeypatch.syspath_prepend(empty_folder)
    assert size(parsed("--model.encoder=mynets.Mine"), "model.encoder.latent_dim") == 5


def test_the_config_of_a_run_holds_the_sizes(empty_folder):
    flags = ["--model.encoder.width=0.02", "--model.decoder.width=0.02", "--limit_train_batches=2", "--max_epochs=1",
             "--limit_val_batches=2", "--limit_test_batches=1", "--enable_progress_bar=false",
             "--trainer.callbacks=[]"]  # fmt: skip
    train.main(["--model.latent_dim=4", *flags])
    folder = empty_folder / "runs" / "mnist_wae_mmd" / "version_0"
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert [size(config, f"model.{name}") for name in ("encoder.latent_dim", "flow.dim")] == [4, 4]
    assert json.loads((folder / "metrics.json").read_text())["steps"] == 2


def test_two_sizes_that_contradict_each_other_are_refused_by_the_model():
    with pytest.raises(ValueError, match="the flow must have 8 dimensions"):
        from_config("mnist_wae_mmd", latent_dim=8, flow={"dim": 4})


# ---- from Python -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mnist_wae_mmd", "mnist_wae_gan", "mnist_conditional", "modelnet40_pointnet_report"])
def test_python_builds_what_the_command_line_builds(name):
    flags = ["--model.latent_dim=5", "--data.batch_size=7", "--logger=false", "--trainer.callbacks=[]"]
    run = train.Train(*complete_flags([f"--config={name}", *flags]))
    model, data = from_config(name, latent_dim=5, data={"batch_size": 7}, seed=0)
    assert type(model) is type(run.model)
    assert dict(model.hparams) == dict(run.model.hparams)
    assert dict(data.hparams) == dict(run.datamodule.hparams)
    weights, others = model.state_dict(), run.model.state_dict()
    assert weights.keys() == others.keys()
    for key, value in weights.items():
        assert not isinstance(value, torch.Tensor) or torch.equal(value, others[key]), key
    if model.make_optimizer is not None:
        first, second = (str(part.make_optimizer([nn.Parameter(torch.zeros(1))])) for part in (model, run.model))
        assert first == second


def test_objects_dictionaries_and_names_are_taken():
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, 4))
    model, data = from_config(
        "mnist_wae_mmd", prior=Sphere(4), encoder=encoder, cost=AbsoluteError(0.3), decoder={"width": 0.05}, flow=None,
        standardize_codes=False, penalty="SlicedWasserstein", data={"val_fraction": 0.2}, latent_dim=4,
    )  # fmt: skip
    assert model.encoder is encoder
    assert (model.cost.scale, data.val_fraction, type(model.penalty).__name__) == (0.3, 0.2, "SlicedWasserstein")
    assert model.sample(2).shape == (2, 1, 28, 28)
    again, _ = from_config("mnist_wae_mmd", encoder={"class_path": "ConvEncoder", "init_args": {"width": 0.02}})
    assert again.encoder.output.out_features == 16


def test_a_file_is_a_config_too(empty_folder):
    (empty_folder / "mine.yaml").write_text(config_file("mnist_ae").read_text())
    model, _ = from_config(empty_folder / "mine.yaml", latent_dim=3)
    assert model.latent_dim == 3


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("mnist_wae_mdm", {}, "from_config: mnist_wae_mdm: neither a file .*; did you mean mnist_wae_mmd\\?"),
        ("mnist_wae_mmd", {"laten_dim": 8}, "from_config: unknown argument laten_dim; did you mean latent_dim\\?"),
        (
            "folder_wae_mmd",
            {"flip": True},
            r'unknown argument flip; it is one of the data module: data={"flip": \.\.\.}',
        ),
        ("mnist_wae_mmd", {"encoder": {"wdth": 1.0}}, "unknown argument encoder.wdth; did you mean encoder.width\\?"),
        ("mnist_wae_mmd", {"data": {"bach_size": 8}}, "argument data.bach_size; did you mean data.batch_size\\?"),
        (
            "mnist_wae_mmd",
            {"flow": None, "fit_flow": 1},
            "fit_flow needs a MixtureFlow, got NoneType; without one, it is",
        ),
        ("mnist_wae_mmd", {"penalty": "MDM"}, "penalty: there is no class MDM for it; did you mean MMD\\?"),
        ("mnist_wae_mmd", {"latent_dim": "x"}, "latent_dim: expected a whole number, got x"),
        ("mnist_wae_mmd", {"penalty_weight": -1.0}, "penalty_weight must be 0 or more and finite, got -1"),
        ("broken.yaml", {}, "broken.yaml: expected model and data, found list"),
    ],
    ids=str,
)
def test_mistakes_are_one_sentence_with_what_was_meant(name, arguments, message, empty_folder):
    (empty_folder / "broken.yaml").write_text("[1, 2]")
    with pytest.raises(UsageError, match=message) as caught:
        from_config(name, **arguments)
    assert "\n" not in str(caught.value)


def test_nothing_else_happens(empty_folder, monkeypatch, recwarn):
    monkeypatch.setattr(sys, "argv", ["their_program", "--their", "flag"])
    before = signal.getsignal(signal.SIGTERM), random.getstate(), dict(os.environ)
    from_config("mnist_wae_mmd")
    assert (signal.getsignal(signal.SIGTERM), random.getstate(), dict(os.environ)) == before
    assert sys.argv == ["their_program", "--their", "flag"]
    assert not list(empty_folder.iterdir())
    assert not recwarn.list
    torch.manual_seed(3)
    first = from_config("mnist_wae_mmd")[0].encoder.output.weight
    torch.manual_seed(4)
    assert not torch.equal(first, from_config("mnist_wae_mmd")[0].encoder.output.weight)


EXAMPLE = """
import {package} as pl
import doctest, sys
import wae_lightning.cli.config as config
assert issubclass(config.LightningModule, pl.LightningModule)
failed, tried = doctest.testmod(config)
print(failed, tried > 4)
"""


@pytest.mark.parametrize("package", ["pytorch_lightning", "lightning.pytorch"])
def test_the_example_trains_under_both_packages(package, empty_folder):
    if find_spec(package.partition(".")[0]) is None:
        pytest.skip(f"{package} is not installed")
    ran = run_code(EXAMPLE.format(package=package))
    assert ran.stdout.strip().splitlines()[-1:] == ["0 True"], ran.stdout + ran.stderr
    assert not list(empty_folder.iterdir())


# ---- what the command says of itself ---------------------------------------------------------------------------------

ASKED = """
import sys
from wae_lightning.cli.main import main
try:
    main(["train", *sys.argv[1:]])
finally:
    print(sorted({"torch", "pytorch_lightning", "lightning", "numpy"} & set(sys.modules)))
"""


@pytest.mark.parametrize("flag", ["--list", "--help"])
def test_help_and_list_fit_a_screen_and_name_every_config(flag):
    ran = subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{ASKED}", flag],
                         capture_output=True, text=True)  # fmt: skip
    *lines, heavy = ran.stdout.splitlines()
    assert (ran.returncode, heavy) == (0, "[]")
    assert len(lines) <= 50
    assert max(map(len, lines)) <= 100
    assert " ..." not in ran.stdout.replace("VALUE ...", "")
    for name in NAMES:
        (line,) = [line for line in lines if re.match(rf"  {name}  ", line)]
        assert len(line) > len(name) + 20
    assert flag == "--list" or "--help_all" in ran.stdout


def test_all_flags_can_be_seen(capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(["--help_all"])
    assert stop.value.code == 0
    assert "--trainer.max_epochs" in capsys.readouterr().out


def test_half_images_of_your_own_data_module_have_its_shape():
    celeba = datamodules.CelebADataModule(image_size=32)
    model, data = from_config("celeba_conditional", data={"images": celeba})
    assert data.images is celeba
    run_once(model, data)
