"""The check for a GPU runs, here on the CPU, and survives what fails."""

import argparse
import json
import os
import sys
from pathlib import Path

import gpu_check
import pytest
from forked import run_forked


def command(_, arguments, folder, limit):
    """What ``Check.command`` does, without the seconds in which Python imports libraries."""
    folder.mkdir(exist_ok=True)
    path = os.pathsep.join(map(str, (gpu_check.EXPERIMENTS.parent, gpu_check.EXPERIMENTS)))
    ran = run_forked(gpu_check.EXPERIMENTS / arguments[0], *arguments[1:], cwd=folder, PYTHONPATH=path)
    return ran.returncode, (ran.stdout + ran.stderr).splitlines()


def test_the_quick_check_passes_on_the_cpu(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_check.Check, "command", command)
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--device=cpu", "--quick", f"--out={tmp_path}/check.json"])
    with pytest.raises(SystemExit) as stop:
        gpu_check.main()
    printed = capsys.readouterr().out
    assert stop.value.code == 0, printed
    parts = json.loads((tmp_path / "check.json").read_text())["parts"]
    assert sorted(parts) == ["mnist_wae_mmd, generate", "parts", "profile mnist_wae_mmd"]
    assert all(parts["parts"]["rows"][name]["value"] < 1e-5 for name in ("MMD", "ConvDecoder", "GaussianNoise"))
    assert parts["mnist_wae_mmd, generate"]["test/cost"] > 0
    assert parts["profile mnist_wae_mmd"]["operators per step"] > 50
    assert "0 of 3 failed" in printed


def test_what_fails_is_a_row_and_what_takes_too_long_is_ended(tmp_path):
    known = argparse.Namespace(budget=60, device="cpu", quick=True, out=tmp_path / "check.json", only="", jobs=1)
    check = gpu_check.Check(known)
    check.keep("a run", check.run("a run", [["train.py", "--config=nothing"]]))
    check.keep("no such part", check.part("no_such_part"))
    failed = [row["FAILED"] for row in json.loads((tmp_path / "check.json").read_text())["parts"].values()]
    assert len(failed) == 2
    assert "train.py, 2: train.py: error: --config nothing" in failed[0]
    assert "invalid choice: 'no_such_part'" in failed[1]
    known.only = "machine"  # rows that are run again stand beside those of the file
    assert gpu_check.Check(known).rows.keys() == {"a run", "no such part"}
    assert check.command(["train.py"], tmp_path / "slow", 0.5) == ("time was up", [])
    known.budget = 0
    assert check.run("late", [["train.py"]]) == {"FAILED": "train.py, left out: no time was left"}


def test_kernels_are_told_apart_by_their_names():
    kind = {
        "void cudnn::batchnorm_fwtr_nhwc_semiPersist<float>": "batch norm",
        "void at::native::batch_norm_backward_reduce_channels_last_kernel<4>": "batch norm",
        "sm90_xmma_dgrad_implicit_gemm_indexed_bf16bf16_bf16f32": "convolutions and matrix products",
        "void cudnn::engines_precompiled::convertTensor_kernel<float>": "another order in memory",
        "void at::native::multi_tensor_apply_kernel<FusedOptimizer>": "optimizer",
        "Memcpy DtoD (Device -> Device)": "copies",
        "void at::native::vectorized_elementwise_kernel<4>": "by element, sums, others",
    }
    assert {name: gpu_check.kind_of(name) for name in kind} == kind


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
