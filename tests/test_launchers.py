"""The commands as several processes, nodes or jobs of a cluster, and beside other packages of the name datamodules."""

import json
import os
import signal
import socket
import sys
from pathlib import Path

import pytest
import torch
from forked import TRAIN, Forked, run_code, wait_for

ROOT = Path(__file__).parents[1]
SHORT = [
    "--limit_train_batches=2", "--limit_val_batches=1", "--limit_test_batches=1", "--enable_progress_bar=false",
    "--model.encoder=ConvEncoder", "--model.encoder.width=0.02", "--model.decoder=ConvDecoder",
    "--model.decoder.width=0.02", "--accelerator=cpu", "--trainer.callbacks=[]", "--enable_model_summary=false",
]  # fmt: skip
RUN = Path("runs/mnist_wae_mmd/version_0")


def environment(**more):
    """Variables, None: not there."""
    launched = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "WAE_LIGHTNING_RUN_FOLDER")
    clean = dict.fromkeys([*launched, *(name for name in os.environ if "SLURM" in name)])
    return {**clean, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(script, *arguments, folder, **more):
    return Forked(script, *arguments, cwd=folder, **environment(**more))


def steps_and_folders(folder, run=RUN):
    assert [str(path.relative_to(folder)) for path in folder.glob("runs/*/*")] == [str(run)]
    return json.loads((folder / run / "metrics.json").read_text())["steps"]


def test_two_nodes_train_and_two_processes_go_on_in_the_same_folder(tmp_path):
    """The nodes are given what torchrun gives them."""
    run = Path("runs/mnist_wae_gan/version_0")
    given = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "TORCHELASTIC_RUN_ID": "1", "LOCAL_RANK": "0",
        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "GROUP_WORLD_SIZE": "2",
    }  # fmt: skip
    config = ["--config=mnist_wae_gan", *(flag for flag in SHORT if "callbacks" not in flag), "--strategy=ddp"]
    flags = [TRAIN, *config, "--trainer.callbacks=[]", "--max_epochs=1", "--num_nodes=2", "--devices=1"]
    with (
        start(*flags, folder=tmp_path, RANK="0", GROUP_RANK="0", **given) as first,
        start(*flags, folder=tmp_path, RANK="1", GROUP_RANK="1", **given) as second,
    ):
        nodes = [first.finish(240), second.finish(240)]
    assert [node.returncode for node in nodes] == [0, 0], nodes
    assert sum(f"Written to {run}" in node.stdout for node in nodes) == 1
    assert steps_and_folders(tmp_path, run) == 2
    # the second process has the first one's flags: it neither trains another config nor writes a run of its own
    with start(TRAIN, *config, "--max_epochs=2", "--devices=2", "--ckpt_path=last", folder=tmp_path) as process:
        ran = process.finish(240)
    assert ran.returncode == 0, ran.stderr
    assert steps_and_folders(tmp_path, run) == 4
    assert (tmp_path / run / "samples.png").is_file()
    assert torch.load(tmp_path / run / "checkpoints/last.ckpt", weights_only=True)["epoch"] == 1


def test_a_job_of_slurm(tmp_path):
    slurm = {
        "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "digits", "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NNODES": "1",
        "SLURM_NODELIST": "127.0.0.1", "SLURM_JOB_NODELIST": "127.0.0.1",
    }  # fmt: skip
    with start(TRAIN, *SHORT, "--max_epochs=1", "--devices=1", folder=tmp_path, **slurm) as process:
        ran = process.finish()
    assert ran.returncode == 0, ran.stderr
    assert steps_and_folders(tmp_path) == 2


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def command_of(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_process_ends_the_others_with_one_sentence(tmp_path):
    flags = [flag for flag in SHORT if "limit_train" not in flag]
    flags += ["--limit_train_batches=5", "--max_epochs=5000", "--devices=2", "--strategy=ddp"]
    with start(TRAIN, *flags, folder=tmp_path) as process:
        wait_for(tmp_path / RUN / "checkpoints/last.ckpt")
        (second,) = [pid for pid in children(process.pid) if str(TRAIN) in command_of(pid)]
        os.kill(second, signal.SIGKILL)
        ran = process.finish()
    assert ran.returncode != 0
    text = ran.stdout + ran.stderr
    assert "Traceback" not in text, text
    sentences = [line for line in text.splitlines() if line.startswith("train.py: ")]
    assert len(sentences) == 1, text
    assert "another process of this training has ended" in sentences[0]
    assert torch.load(tmp_path / RUN / "checkpoints/last.ckpt", weights_only=True)["global_step"] % 5 == 0


# ---- another package named datamodules -------------------------------------------------------------------------------


def run_beside(folder, code):
    return run_code(code, cwd=folder, **environment(PYTHONPATH=f"{folder}:{ROOT}"))


@pytest.mark.parametrize("place", ["datamodules/__init__.py", "datamodules.py", "datamodules/mine.py"])
@pytest.mark.parametrize("command", ["train", "evaluate", "generate"])
def test_another_package_named_datamodules_is_named(command, place, tmp_path):
    file = tmp_path / place
    file.parent.mkdir(exist_ok=True)
    file.write_text("raise RuntimeError('this is not to be imported')\n")
    code = f"import sys; from wae_lightning.cli.main import main; main([{command!r}, '--unknown'])"
    ran = run_beside(tmp_path, code)
    if place == "datamodules/mine.py":  # a folder without __init__.py hides nothing
        assert "hidden" not in ran.stderr
        return
    assert ran.returncode == 2
    (sentence,) = ran.stderr.strip().splitlines()
    found = file if place == "datamodules.py" else file.parent
    assert sentence == (
        f"wae-lightning {command}: error: the package datamodules of wae-lightning is hidden by another one, {found}: "
        "start from another folder, rename that one or take it off PYTHONPATH"
    )


def test_models_work_beside_another_package_named_datamodules(tmp_path):
    (tmp_path / "datamodules.py").write_text("raise RuntimeError('this is not to be imported')\n")
    code = "import wae_lightning as w; print(w.WAEMMD().sample(2).shape, w.WAEGAN, w.ConditionalWAE, w.PointNetWAE)"
    ran = run_beside(tmp_path, code)
    assert ran.stdout.startswith("torch.Size([2, 1, 28, 28])"), ran.stderr
