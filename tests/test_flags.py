"""The command line of train: flags mean what Lightning says, mistakes are answered at once and with what was meant."""

import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from forked import TRAIN, run_forked
from torch import nn

from wae_lightning.cli import train
from wae_lightning.cli.errors import UsageError, explain_mistake, suggest
from wae_lightning.cli.flags import (
    CONFIGS,
    complete_flags,
    config_file,
    find_checkpoint,
    list_arguments,
    list_flags,
    list_own_arguments,
)
from wae_lightning.lightning import LightningArgumentParser, ModelCheckpoint, Trainer

SHORT = ["--limit_train_batches=3", "--limit_val_batches=2", "--limit_test_batches=1", "--enable_progress_bar=false"]
SMALL = [
    "--model.encoder=ConvEncoder", "--model.encoder.width=0.02", "--model.decoder=ConvDecoder",
    "--model.decoder.width=0.02", "--trainer.callbacks=[]",
]  # fmt: skip


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    return tmp_path


def last_line(capsys):
    return capsys.readouterr().err.strip().splitlines()[-1]


def build(*flags):
    """The command line's trainer, model and data, without training."""
    return train.Train(*complete_flags(["--accelerator=cpu", "--logger=false", *flags]))


# ---- before anything heavy is imported -------------------------------------------------------------------------------

TYPO = """
import sys
from wae_lightning.cli.main import run
try:
    run("train", sys.argv[1:])
except SystemExit as stop:
    print(stop.code, sorted({"torch", "pytorch_lightning", "lightning", "numpy"} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--max_epoch", "--max_epochs"),
        ("--model.latent_dims", "--model.latent_dim"),
        ("--data.init_args.val_fractoin", "--data.val_fraction"),
        ("--model.penalty.kernl", "--model.penalty.kernel"),  # the config does not set it
        ("--model.encoder.widht", "--model.encoder.width"),
    ],
)
def test_a_typo_is_answered_without_importing_torch_or_lightning(typed, meant):
    path = str(Path(train.__file__).parents[2])
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {path!r})\n{TYPO}", typed, "2"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.stdout.strip() == "2 []"
    assert ran.stderr.strip() == f"train.py: error: unknown flag {typed}; did you mean {meant}?"


def named_classes(part):
    """The class of each part of a config."""
    for value in part.values() if isinstance(part, dict) else ():
        yield from named_classes(value)
    if isinstance(part, dict) and "class_path" in part:
        yield part["class_path"]


def test_the_arguments_read_from_our_source_hold_those_that_the_parser_takes():
    contents = [yaml.safe_load(path.read_text()) for path in CONFIGS.glob("*.yaml")]
    paths = {path for content in contents for path in named_classes(content)}
    ours = sorted(path for path in paths if path.partition(".")[0] in ("wae_lightning", "datamodules"))
    exact = 0
    for path in ours:
        module, _, name = path.rpartition(".")
        taken = LightningArgumentParser().add_class_arguments(getattr(importlib.import_module(module), name), "x")
        taken = {argument.removeprefix("x.") for argument in taken}
        found = list_own_arguments(name)
        assert found is None or found >= taken, path  # more: what a class sets for the one that it is made from
        exact += found == taken
    assert exact > 20


def test_a_flag_of_a_class_that_the_command_line_names_is_not_judged_by_the_config():
    complete_flags(["--model.penalty=SlicedWasserstein", "--model.penalty.projections=9"])
    complete_flags(["--model.penalty.class_path=SlicedWasserstein", "--model.penalty.init_args.projections=9"])
    complete_flags(["--model=mine.Model", "--model.anything=9", "--model.optimizer.anything=9"])


@pytest.mark.parametrize(
    ("module", "cls"), [("trainer/trainer", Trainer), ("callbacks/model_checkpoint", ModelCheckpoint)]
)
def test_the_flags_read_from_lightnings_source_are_those_of_its_classes(module, cls):
    assert list_arguments(module) == tuple(inspect.signature(cls.__init__).parameters)[1:]


def test_a_config_tells_its_own_flags():
    flags = list_flags(config_file("mnist_wae_gan"))
    assert {"--max_epochs", "--trainer.max_epochs", "--checkpoint.monitor", "--model.latent_dim"} <= set(flags)
    assert {"--model.optimizer.lr", "--model.penalty.critic.width", "--data.batch_size", "--ckpt_path"} <= set(flags)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lr=1"], "unknown flag --lr; did you mean --model.optimizer.lr?"),
        (["--batch_size", "2"], "unknown flag --batch_size; did you mean --data.batch_size?"),
        (["--callback+=EarlyStopping"], "unknown flag --callback+; did you mean --callbacks?"),
        (["--checkpoint.monitr=x"], "unknown flag --checkpoint.monitr; did you mean --checkpoint.monitor?"),
        (["fit", "--max_epochs=1"], "leave out 'fit': the command trains, and then tests, by itself"),
        (["--model.penalty", "MDM"], "--model.penalty: there is no class MDM for it; did you mean MMD?"),
        (
            ["--model.penalty=MMD", "--model.penalty.kernel", "rbf"],
            "--model.penalty.kernel: there is no class rbf for it; did you mean RBF?",
        ),
        (
            ["--model.penalty=MMD", "--model.penalty.kernel=RBF", "--model.penalty.kernel.bandwith=2"],
            "unknown flag --model.penalty.kernel.bandwith; did you mean --model.penalty.kernel.bandwidth?",
        ),
        (["--model.optimizer.l=2"], "unknown flag --model.optimizer.l; did you mean --model.optimizer.lr?"),
        (["--model.optimizer=Adm"], "--model.optimizer: there is no class Adm for it; did you mean Adam?"),
        (["--model=WAEMDM"], "--model: there is no class WAEMDM for it; did you mean WAEMMD?"),
        (["--data=MNIST"], "--data: there is no class MNIST for it; did you mean MNISTDataModule?"),
        (["--callbacks+=EarlyStopping"], "--callbacks: EarlyStopping needs monitor; give it with --callbacks.monitor"),
        (["--callbacks=EarlyStopping"], "--callbacks: EarlyStopping needs monitor; give it with --callbacks.monitor"),
        (
            ["--model.penalty.kernel.bandwith=2"],
            "--model.penalty.kernel.bandwith: the config leaves this part to .*first, --model.penalty.kernel=CLASS",
        ),
        (["--callbacks+=EarlyStoping"], "--callbacks: there is no class EarlyStoping .*; did you mean EarlyStopping?"),
        (["--max_epochs", "three"], "--max_epochs: expected a whole number, got three"),
        (["--trainer.max_epochs", "three"], "--trainer.max_epochs: expected a whole number, got three"),
        (["--model.latent_dim=x"], "--model.latent_dim: expected a whole number, got x"),
        (["--deterministic=maybe"], "--deterministic: expected true or false or one of 'warn', got maybe"),
        (["--data.batch_size", "many"], "--data.batch_size: expected a whole number, got many"),
        (["--data.batch_size", "null"], "batch_size must be a whole number, got None"),
        (["--data.batch_size"], "--data.batch_size needs a value"),
        (["--data.batch_size", "--max_epochs=1"], "--data.batch_size needs a value"),
        (["--model.penalty_weight", "high"], "--model.penalty_weight: expected a number, got high"),
        (["--model.flow.components", "2.5"], "--model.flow.components: expected a whole number, got 2.5"),
        (["--model.fit_flow", "false"], "--model.fit_flow: expected a whole number, got False"),
        (["--model.optimizer.lr", "fast"], "--model.optimizer.lr: expected a number, got fast"),
        (["--model.optimizer.betas", "[0.5]"], "--model.optimizer.betas: expected a list of 2, got [0.5]"),
        (["--model.encoder.hidden", "128"], "--model.encoder.hidden: expected a list, got 128"),
        (["--model.encoder.hidden", "[a]"], "--model.encoder.hidden: expected a whole number, got a"),
        (["--checkpoint.save_top_k", "all"], "--checkpoint.save_top_k: expected a whole number, got all"),
        (["--config=modelnet40_pointnet", "--data.flip=maybe"], "--data.flip: expected true or false, got maybe"),
        (["--config=modelnet40_pointnet", "--data.stretch=1.25"], "--data.stretch: expected a list, got 1.25"),
        (["--config=mnist_conditional", "--data.observed=x"], "--data.observed: expected one of 'top', .*, got x"),
        (
            ["--callbacks+=EarlyStopping", "--callbacks.monitor=val/loss", "--callbacks.patience=x"],
            "--callbacks.patience: expected a whole number, got x",
        ),
        (["--logger+=CSVLogger", "--logger.flush_logs_every_n_steps=x"], "--logger.*: expected a whole number, got x"),
        (["--logger", "Foo"], "--logger: there is no class Foo for it"),
        (["--fast_dev_run"], "--fast_dev_run needs a value"),
        (["--callbacks+=ModelCheckpoint", "--callbacks.mode=up"], "`mode` can be min, max.*got up"),
        (["--model.lr_scheduler=StepLR"], "--model.lr_scheduler: StepLR needs step_size; .*"),
        (["--logger=TensorBoardLogger", "--logger.version=[1]"], "--logger.version: expected a whole .* text, got [1]"),
        (["--accumulate_grad_batches=0"], "--accumulate_grad_batches must be at least 1, got 0"),
        (["--callbacks+=nosuch.Thing"], "--callbacks: there is no class nosuch.Thing for it"),
        (["--model=wae_lightning.WAEMDM"], "--model: there is no class .* for it; did you mean WAEMMD?"),
        (["--devices=many"], "`devices` selected with `CPUAccelerator` should be an int > 0."),
        (["--data.variant=fasion"], "variant must be one of mnist, fashion, .*, got 'fasion'"),
    ],
    ids=str,
)  # fmt: skip
def test_mistakes_are_answered_with_what_was_meant(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(arguments)
    assert stop.value.code == 2
    assert re.fullmatch(f"train.py: error: {re.escape(message).replace(re.escape('.*'), '.*')}", last_line(capsys))


def test_a_run_without_checkpoints_leaves_its_results(empty_folder):
    train.main([*SMALL, "--enable_checkpointing=false", "--max_epochs=1", "--enable_progress_bar=false"])
    (metrics,) = empty_folder.glob("runs/mnist_wae_mmd/version_0/metrics.json")
    assert json.loads(metrics.read_text())["steps"] > 0
    assert not list(empty_folder.rglob("*.ckpt"))


def test_messages_name_the_command_that_was_used(capsys):
    with pytest.raises(SystemExit):
        train.main(["--lrr=1"], "wae-lightning train")
    assert last_line(capsys).startswith("wae-lightning train: error: unknown flag --lrr")


def test_suggestions_are_similar_or_none():
    assert suggest("rbf", ["RBF", "Sum"]) == "; did you mean RBF?"
    assert suggest("--lr", ["--data.root", "--model.optimizer.lr"]) == "; did you mean --model.optimizer.lr?"
    assert suggest("--nothing", ["--data.root", "--model.optimizer.lr"]) == ""
    assert explain_mistake("a sentence\nof its own") == "a sentence of its own"


# ---- flags mean what Lightning says ----------------------------------------------------------------------------------

COUNTS = ["limit_train_batches", "limit_val_batches", "limit_test_batches", "overfit_batches", "val_check_interval"]


@pytest.mark.parametrize("prefix", ["--", "--trainer."])
@pytest.mark.parametrize(("typed", "kind"), [("1", int), ("1.0", float), ("2", int), ("0.5", float)])
def test_whole_numbers_of_batches_stay_whole(typed, kind, prefix):
    trainer = build(*(f"{prefix}{name}={typed}" for name in COUNTS)).trainer
    for name in COUNTS:
        found = getattr(trainer, name)
        assert (type(found), found) == (kind, kind(typed)), name


def test_one_batch_is_one_batch_also_from_a_config(empty_folder):
    (empty_folder / "one.yaml").write_text(
        config_file("mnist_wae_mmd").read_text() + "  limit_train_batches: 1\n  limit_val_batches: 1\n"
    )
    train.main(["--config=one.yaml", *SMALL, "--limit_test_batches=1", "--max_epochs=2", "--enable_progress_bar=false"])
    (metrics,) = empty_folder.glob("runs/one/version_0/metrics.json")
    assert json.loads(metrics.read_text())["steps"] == 2


def test_callbacks_are_added_with_and_without_the_prefix():
    for prefix in ("--", "--trainer."):
        run = build(f"{prefix}callbacks+=EarlyStopping", f"{prefix}callbacks.monitor=val/cost")
        names = [type(callback).__name__ for callback in run.trainer.callbacks]
        assert {"EarlyStopping", "ImagePictures"} <= set(names)
        assert run.trainer.callbacks[names.index("EarlyStopping")].monitor == "val/cost"


# ---- a run -----------------------------------------------------------------------------------------------------------


def test_without_a_logger_a_run_has_a_folder_of_its_own(empty_folder, capsys):
    (empty_folder / "thesis.docx").write_text("mine")
    for _ in range(2):
        train.main([*SHORT, *SMALL, "--logger=false", "--max_epochs=1"])
    runs = empty_folder / "runs" / "mnist_wae_mmd"
    assert {path.name for path in empty_folder.iterdir()} == {"thesis.docx", "runs"}
    assert {path.name for path in runs.iterdir()} == {"version_0", "version_1"}
    assert {path.name for path in (runs / "version_1").iterdir()} >= {"config.yaml", "metrics.json", "checkpoints"}
    printed = capsys.readouterr().out
    assert "Written to runs/mnist_wae_mmd/version_1:" in printed
    assert "thesis.docx" not in printed
    assert "tensorboard" not in printed
    train.main([*SHORT, *SMALL, "--logger=false", "--max_epochs=2", "--ckpt_path=last"])
    assert json.loads((runs / "version_1" / "metrics.json").read_text())["epochs"] == 2
    assert {path.name for path in runs.iterdir()} == {"version_0", "version_1"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--checkpoint.monitor=val/los"], "--checkpoint monitors 'val/los', .*; did you mean val/loss?"),
        (["--callbacks+=EarlyStopping", "--callbacks.monitor=val_cost"], "EarlyStopping monitors 'val_cost', "),
    ],
)
def test_a_monitor_that_is_not_logged_is_refused_before_training(flags, message, empty_folder, capsys, monkeypatch):
    monkeypatch.setattr("wae_lightning.WAE.training_step", lambda *_: pytest.fail("it trained"))
    with pytest.raises(SystemExit) as stop:
        train.main([*SHORT, *SMALL, *flags, "--max_epochs=1"])
    assert stop.value.code == 2
    assert re.match(f"train.py: error: {message.replace('?', '[?]')}", last_line(capsys))


def test_a_single_validation_image_is_too_few_for_the_mmd(empty_folder, capsys, monkeypatch):
    monkeypatch.setattr("wae_lightning.WAE.training_step", lambda *_: pytest.fail("it trained"))
    with pytest.raises(SystemExit):
        train.main([*SHORT, *SMALL, "--data.val_fraction=0.0001", "--max_epochs=1"])
    assert "MMD needs at least 2 validation examples in a batch, found 1: give more data" in last_line(capsys)


def test_a_monitor_that_is_logged_later_is_taken(empty_folder):
    quality = ["--callbacks+=SampleQuality", "--checkpoint.monitor=val/fid_digits_1k"]
    train.main([*SHORT, *SMALL, *quality, "--max_epochs=1"])
    assert list(empty_folder.glob("runs/*/version_0/checkpoints/*-epoch=000*.ckpt"))


def test_a_checkpoint_of_another_model_or_size_is_refused_by_name(empty_folder, capsys):
    train.main([*SHORT, *SMALL, "--logger=false", "--max_epochs=1"])
    checkpoint = "runs/mnist_wae_mmd/version_0/checkpoints/last.ckpt"
    for flags, message in (
        (["--config=mnist_wae_gan"], "it holds a WAEMMD, and mnist_wae_gan makes a WAEGAN; name its config"),
        (["--model.flow=null"], r"its flow\.\S+ is none of the model's weights"),
        (["--model.encoder.width=0.05"], r"its \S+ has the shape \(.*\), expected \(.*\)"),
    ):
        with pytest.raises(SystemExit) as stop:
            train.main([*SHORT, *SMALL, *flags, "--logger=false", f"--ckpt_path={checkpoint}"])
        assert stop.value.code == 2
        assert re.search(f"--ckpt_path {checkpoint}: it was trained by another config: .*{message}", last_line(capsys))


def test_the_same_weights_have_the_same_test_metrics_after_a_resume(empty_folder):
    metrics = empty_folder / "runs" / "mnist_wae_mmd" / "version_0" / "metrics.json"
    found = []
    for flags in ([], ["--ckpt_path=last"]):
        torch.manual_seed(len(flags))
        train.main([*SHORT, *SMALL, "--max_epochs=1", *flags])
        found.append({name: value for name, value in json.loads(metrics.read_text()).items() if "test/" in name})
    assert found[0]
    assert found[0] == found[1]


def test_a_log_file_has_one_line_for_each_epoch_and_no_advertisement(empty_folder):
    flags = [flag for flag in SHORT if "progress" not in flag]
    ran = run_forked(TRAIN, *flags, *SMALL, "--max_epochs=2")
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines if line.startswith("epoch ")] == ["epoch 0", "epoch 1"]
    assert "Tip: " not in ran.stdout + ran.stderr
    assert "it/s" not in ran.stdout + ran.stderr


def test_the_folder_of_a_run_stands_for_its_last_checkpoint(empty_folder):
    last = empty_folder / "run" / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    for path, message in (("run", "run: there is no checkpoints/last.ckpt in"), ("gone", "gone: no such file")):
        with pytest.raises(UsageError, match=f"--ckpt_path {message}"):
            train.checkpoint_to_resume(path, empty_folder)
        with pytest.raises(FileNotFoundError, match=message):
            find_checkpoint(Path(path))
    last.write_bytes(b"")
    for path in (Path("run"), Path("run/checkpoints"), last):
        assert find_checkpoint(path).resolve() == last
        assert train.checkpoint_to_resume(str(path), empty_folder).resolve() == last


def test_the_weights_are_compared_by_name_and_shape():
    class Run:
        config = type("Config", (), {"ckpt_path": "x.ckpt"})
        config_name, model = "mine", nn.Linear(2, 1)

    train.Train.check_weights(Run, {"state_dict": nn.Linear(2, 1).state_dict()})
    with pytest.raises(ValueError, match="another config: it has no bias"):
        train.Train.check_weights(Run, {"state_dict": nn.Linear(2, 1, bias=False).state_dict()})


@pytest.mark.parametrize("flag", ["--help", "--list"])
def test_a_reader_that_has_read_enough_ends_the_command_without_a_word(flag):
    with subprocess.Popen([sys.executable, TRAIN, flag], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1
