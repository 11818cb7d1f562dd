"""The command line: what a run writes, how it resumes, and what it says of mistakes."""

import errno
import json
import os
import re
import shlex
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
import torchvision
import yaml
from forked import TRAIN, Forked, run_code, run_forked, wait_for
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from wae_lightning import WAEMMD
from wae_lightning.cli import train
from wae_lightning.cli.flags import CONFIGS, complete_flags
from wae_lightning.cli.load import load_model

SHORT = ["--limit_train_batches=3", "--limit_val_batches=2", "--limit_test_batches=1", "--enable_progress_bar=false"]
SMALL = [
    "--model.encoder=ConvEncoder", "--model.encoder.width=0.02", "--model.decoder=ConvDecoder",
    "--model.decoder.width=0.02",
]  # fmt: skip


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    return tmp_path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a short run of the default config, two epochs long."""
    folder = tmp_path_factory.mktemp("run")
    before = os.getcwd()
    os.chdir(folder)
    try:
        train.main([*SHORT, "--max_epochs=2", "--log_every_n_steps=1"])
    finally:
        os.chdir(before)
    return folder / "runs" / "mnist_wae_mmd" / "version_0"


def test_a_run_leaves_all_that_it_promises(run):
    files = {str(path.relative_to(run)) for path in run.rglob("*") if "tfevents" not in path.name}
    assert {"config.yaml", "metrics.json", "samples.png", "reconstructions.png", "checkpoints/last.ckpt"} <= files
    assert any(re.fullmatch(r"checkpoints/lowest-val-loss-.*\.ckpt", file) for file in files)
    metrics = json.loads((run / "metrics.json").read_text())
    assert (metrics["config"], metrics["epochs"], metrics["steps"]) == ("mnist_wae_mmd", 2, 6)
    assert metrics["test/cost"] > 0
    assert torchvision.io.read_image(str(run / "samples.png")).shape[0] == 3


def test_tensorboard_shows_scalars_and_pictures_of_each_epoch(run):
    events = EventAccumulator(str(run)).Reload()
    tags = events.Tags()
    assert {"train/cost", "train/penalty", "val/cost", "val/penalty", "val/loss"} <= set(tags["scalars"])
    assert set(tags["images"]) == {"samples", "reconstructions", "interpolations", "codes"}
    assert [image.step for image in events.Images("samples")] == [2, 5]  # the last steps of two epochs of three
    assert len(events.Scalars("train/cost")) == 6
    (about,) = events.Tensors("run/text_summary")
    text = about.tensor_proto.string_val[0].decode()
    assert "--max_epochs=2" in text.splitlines()[1]
    assert "penalty_weight: 1.0" in text


def test_a_checkpoint_of_a_run_loads_without_other_arguments(run):
    path = run / "checkpoints" / "last.ckpt"
    model = WAEMMD.load_from_checkpoint(path, weights_only=True).eval()
    again = load_model(path)
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(model(x), again(x))


def test_a_run_prints_its_results_and_where_they_are(empty_folder, capsys):
    train.main([*SHORT, *SMALL, "--max_epochs=1"])
    printed = capsys.readouterr().out
    assert re.search(r"test/cost +\d", printed)
    assert "Written to runs/mnist_wae_mmd/version_0:" in printed
    assert "samples.png" in printed


def test_cpu_seconds_are_those_of_the_processor(empty_folder, monkeypatch):
    fit = train.Trainer.fit

    def slowly(*arguments, **options):
        time.sleep(1)  # which takes no time of the processor's
        fit(*arguments, **options)

    monkeypatch.setattr(train.Trainer, "fit", slowly)
    train.main([*SHORT, *SMALL, "--max_epochs=1"])
    metrics = json.loads((empty_folder / "runs" / "mnist_wae_mmd" / "version_0" / "metrics.json").read_text())
    assert 0 < metrics["fit_cpu_seconds"] < metrics["fit_seconds"] - 0.7


def test_trainer_flags_work_with_and_without_their_prefix():
    full, name = complete_flags(["--max_epochs", "3", "--trainer.accelerator=cpu", "--model.penalty_weight=2"])
    assert full[0].endswith("mnist_wae_mmd.yaml")
    assert full[1:] == ["--trainer.max_epochs", "3", "--trainer.accelerator=cpu", "--model.penalty_weight=2"]
    assert name == "mnist_wae_mmd"


def test_a_config_is_named_or_a_file(empty_folder):
    file = empty_folder / "mine.yaml"
    file.write_text((CONFIGS / "mnist_wae_mmd.yaml").read_text())
    train.main([*SHORT, *SMALL, "--config", "mine.yaml", "--max_epochs=1"])
    assert (empty_folder / "runs" / "mine" / "version_0" / "metrics.json").is_file()
    # the config.yaml that a run has saved names that run
    assert complete_flags(["--config=runs/mine/version_0/config.yaml"])[1] == "mine"


@pytest.mark.parametrize("config", ["mnist_wae_gan_paper", "folder_inpainting", "modelnet40_pointnet"])
def test_a_config_of_each_kind_can_be_printed(config, capsys):
    """That each config trains, test_config.py tests."""
    # a folder of pictures has no default
    data = ["--data.images.root=pictures"] if config.startswith("folder") else []
    with pytest.raises(SystemExit) as stop:
        train.main(["--config", config, *data, "--print_config"])
    assert stop.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["class_path"].startswith("wae_lightning.")


def test_help_is_for_people(capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "--config" in text
    assert "--trainer.max_epochs" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "mnist_wae_mdm"], "--config mnist_wae_mdm: neither a file nor .*; did you mean mnist_wae_mmd?"),
        (["--config"], "--config needs the name of a config or a file"),
        (["--max_epoch", "2"], "unknown flag --max_epoch; did you mean --max_epochs?"),
        (["--trainer.acelerator=cpu"], "unknown flag --trainer.acelerator; did you mean --trainer.accelerator?"),
        (["--model.penalty_wight=2"], "unknown flag --model.penalty_wight; did you mean --model.penalty_weight?"),
        (["--model.encoder.wdth=2"], "unknown flag --model.encoder.wdth; did you mean --model.encoder.width?"),
        (["--config=mnist_conditional", "--model.encoder.width=2"], "--model.encoder.width: .* --model.encoder=CLASS"),
        (["--data.bach_size=2"], "unknown flag --data.bach_size; did you mean --data.batch_size?"),
        (["--max_epochs=x"], "--max_epochs: expected a whole number, got x"),
        (["--model.latent_dim=0"], "latent_dim must be at least 1, got 0"),
        (
            ["--model.penalty=MMD", "--model.penalty.kernel=RBF", "--model.penalty.kernel.bandwidth=-2"],
            "positive.*-2.0",
        ),
        (
            ["--data.batch_size=1", "--max_epochs=1", *SHORT],
            "MMD needs at least 2 codes in a batch, got 1: raise the batch size",
        ),
        (["--data.root=nowhere"], "nowhere/MNIST/raw: no such folder. Expected the IDX files of 'mnist' there"),
        (["--ckpt_path=last"], "there is no runs/mnist_wae_mmd/\\*/checkpoints/last.ckpt to go on from"),
        (["--ckpt_path=missing.ckpt"], "--ckpt_path missing.ckpt: no such file"),
        (["--model.penalty=Adversarial"], "WAEMMD takes a penalty without a critic, got Adversarial"),
        (["--model.penalty=Unknown"], "Unknown"),
        (
            ["--config=mnist_wae_gan", "--model.penalty_weight=-1"],
            "penalty_weight must be 0 or more and finite, got -1",
        ),
    ],
    ids=str,
)
def test_mistakes_end_in_one_sentence(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(arguments)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert re.search(message, lines[-1])
    assert lines[-1].startswith("train.py: error: ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_its_last_checkpoint_and_goes_on(number, empty_folder):
    quick = [*SMALL, "--limit_train_batches=20", "--limit_val_batches=2", "--enable_progress_bar=false"]
    quick += ["--limit_test_batches=1", "--trainer.callbacks=[]", "--config", "mnist_wae_gan"]
    checkpoints = empty_folder / "runs" / "mnist_wae_gan" / "version_0" / "checkpoints"
    with Forked(TRAIN, *quick, "--max_epochs=2000") as process:
        wait_for(checkpoints / "last.ckpt")
        process.send_signal(number)
        ran = process.finish(60)
    assert ran.returncode == 128 + number
    assert "Traceback" not in ran.stderr
    (sentence,) = re.findall("^train.py: .*", ran.stderr, re.MULTILINE)
    advice = re.search(rf"stopped by {number.name} after step \d+; go on with: (.*)", sentence).group(1)
    checkpoint = torch.load(checkpoints / "last.ckpt", weights_only=True)
    epoch = checkpoint["epoch"]
    assert 0 <= epoch < 1999
    assert f"after step {checkpoint['global_step']};" in sentence
    # the command works as it is printed; only the epochs are too many for a test
    assert advice.count("--max_epochs=2000") == 1
    if number == signal.SIGINT:  # what is left behind is alike
        return
    advice = advice.replace("--max_epochs=2000", f"--max_epochs={epoch + 2}")
    python, *command = shlex.split(advice)
    assert Path(python).name.startswith("python")
    assert run_forked(*command).returncode == 0
    assert [path.name for path in checkpoints.parents[1].iterdir()] == ["version_0"]
    assert torch.load(checkpoints / "last.ckpt", weights_only=True)["epoch"] == epoch + 1


def test_sigterm_before_training_ends_in_one_sentence(monkeypatch, capsys):
    def prepare_data(_):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("datamodules.MNISTDataModule.prepare_data", prepare_data)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop:
        train.main([*SHORT, *SMALL])
    assert stop.value.code == 128 + signal.SIGTERM
    assert capsys.readouterr().err.splitlines()[-1].startswith("train.py: stopped by SIGTERM while no training")
    assert signal.getsignal(signal.SIGTERM) is before


def broken(monkeypatch, error):
    def training_step(*_):
        raise error

    monkeypatch.setattr("wae_lightning.WAE.training_step", training_step)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), r"out of GPU memory with batches of 200: try a smaller --data"),
        (MemoryError(), "out of memory with batches of 200: try a smaller --data.batch_size"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
            "out of memory with batches of 200: .*you tried to allocate 9 bytes",
        ),
        (
            torch.distributed.DistNetworkError("The server socket has failed to listen on any local network address."),
            "the processes cannot meet at port 12345: .* MASTER_PORT",
        ),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/a"), "runs/a: No space left on device"),
        (RuntimeError("Function 'MulBackward0' returned nan values in its 0th output."), "'MulBackward0' returned nan"),
        (FloatingPointError("training step 3: cost not finite"), "training step 3: cost not finite"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_failures_of_the_machine_or_of_numbers_end_in_one_sentence(error, message, monkeypatch, capsys):
    monkeypatch.setenv("MASTER_PORT", "12345")
    broken(monkeypatch, error)
    with pytest.raises(SystemExit) as stop:
        train.main([*SHORT, *SMALL, "--max_epochs=1", "--trainer.callbacks=[]", "--num_sanity_val_steps=0"])
    assert stop.value.code == 1
    assert re.match(f"train.py: error: .*{message}", capsys.readouterr().err.splitlines()[-1])


LITTLE_MEMORY = """
import resource, sys
from wae_lightning.cli import train
(size,) = [int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")]
resource.setrlimit(resource.RLIMIT_AS, (1024 * size + 2**30,) * 2)
train.main(sys.argv[1:])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits address space as Linux does")
def test_batches_that_do_not_fit_into_memory_end_in_one_sentence():
    """The first layer's output alone is 1.6 GB, and the process may have 1 GB more than it has."""
    flags = ["--data.batch_size=8192", "--model.encoder.width=2", "--accelerator=cpu", "--enable_progress_bar=false"]
    ran = run_code(LITTLE_MEMORY, *flags, "--max_steps=1", "--num_sanity_val_steps=0", "--trainer.callbacks=[]")
    assert ran.returncode == 1
    assert re.match(
        "train.py: error: out of memory with batches of 8192: try a smaller --data.batch_size .*you tried to allocate",
        ran.stderr.splitlines()[-1],
    )


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch):
    broken(monkeypatch, RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        train.main([*SHORT, *SMALL, "--max_epochs=1"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("accelerator", ["gpu", "cuda"])
def test_a_missing_gpu_ends_in_one_sentence(accelerator, capsys):
    with pytest.raises(SystemExit) as stop:
        train.main([f"--accelerator={accelerator}", *SHORT])
    assert stop.value.code == 2
    assert "--accelerator: this machine has no such device" in capsys.readouterr().err.splitlines()[-1]


def test_runs_that_cannot_be_written_end_in_one_sentence(empty_folder, capsys):
    (empty_folder / "runs").write_text("a file where a folder must be")
    with pytest.raises(SystemExit) as stop:
        train.main([*SHORT, *SMALL, "--max_epochs=1"])
    assert stop.value.code == 1
    assert re.match("train.py: error: .*runs.*", capsys.readouterr().err.splitlines()[-1])


def test_a_full_disk_keeps_the_last_checkpoint_and_leaves_no_half_of_one(empty_folder, monkeypatch, capsys):
    train.main([*SHORT, *SMALL, "--max_epochs=1"])
    (checkpoints,) = empty_folder.glob("runs/*/*/checkpoints")
    before = {path.name: path.read_bytes() for path in checkpoints.iterdir()}

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SystemExit) as stop:
        train.main([*SHORT, *SMALL, "--max_epochs=2", "--ckpt_path=last"])
    assert stop.value.code == 1
    assert "the checkpoint cannot be written (No space left on device)" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in checkpoints.iterdir()} == before


def test_the_last_checkpoint_is_that_of_the_last_epoch_and_not_the_best(empty_folder):
    # the loss falls, so the highest is an early epoch
    train.main([*SHORT, *SMALL, "--max_epochs=3", "--checkpoint.mode=max"])
    folder = empty_folder / "runs" / "mnist_wae_mmd" / "version_0" / "checkpoints"
    (best,) = folder.glob("highest-*.ckpt")
    epochs = [torch.load(path, weights_only=True)["epoch"] for path in (folder / "last.ckpt", best)]
    assert epochs[0] == 2
    assert epochs[1] < 2
