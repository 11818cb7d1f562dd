"""The check for a GPU runs, here on the CPU, and survives what fails."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import gpu_check


def test_the_quick_check_passes_on_the_cpu(tmp_path):
    command = [sys.executable, gpu_check.__file__, "--device=cpu", "--quick", "--jobs=1", "--out=check.json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=540)
    assert run.returncode == 0, run.stdout + run.stderr
    parts = json.loads((tmp_path / "check.json").read_text())["parts"]
    assert list(parts) == ["parts", "mnist_wae_mmd, generate", "waits mnist_wae_mmd"]
    assert all(parts["parts"]["rows"][name]["value"] < 1e-5 for name in ("MMD", "ConvDecoder", "GaussianNoise"))
    assert parts["mnist_wae_mmd, generate"]["test/cost"] > 0
    assert parts["waits mnist_wae_mmd"]["operators per step"] > 50
    assert "0 of 3 failed" in run.stdout


def test_what_fails_is_a_row_and_what_takes_too_long_is_ended(tmp_path):
    known = argparse.Namespace(budget=60, device="cpu", quick=True, out=tmp_path / "check.json", only="", jobs=1)
    check = gpu_check.Check(known)
    check.keep("a run", check.run("a run", [["train.py", "--config=nothing"]]))
    check.part("no_such_part")
    failed = [row["FAILED"] for row in json.loads((tmp_path / "check.json").read_text())["parts"].values()]
    assert len(failed) == 2
    assert "train.py, 2: train.py: error: --config nothing" in failed[0]
    assert "invalid choice: 'no_such_part'" in failed[1]
    assert check.command(["train.py"], tmp_path / "slow", 0.5) == ("time was up", [])
    known.budget = 0
    assert check.run("late", [["train.py"]]) == {"FAILED": "train.py, left out: no time was left"}


def test_every_config_of_ours_is_among_the_runs():
    runs = gpu_check.runs_of("cuda", False, Path("faces"))
    used = {flag for commands in runs.values() for command in commands for flag in command}
    names = {
        path.stem for path in (Path(gpu_check.__file__).parents[1] / "wae_lightning/cli/configs").glob("*_paper.yaml")
    }
    assert {f"--config={name}" for name in names} <= used
    assert "--accelerator=gpu" in used
    for config in ("mnist_wae_mmd", "mnist_wae_gan", "mnist_conditional", "modelnet40_pointnet"):
        rows = {title.removeprefix(config) for title in runs if title.startswith(f"{config},")}
        assert {", compiled", ", workers", ", evaluate", ", generate"} <= rows
        for precision in ("32-true", "bf16-mixed", "16-mixed"):
            assert {f", {precision}, resumed", f", {precision}, clipped"} <= rows
