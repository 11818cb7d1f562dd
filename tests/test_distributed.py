"""WAE-MMD and WAE-GAN under DistributedDataParallel with two CPU processes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import two_processes

import wae_lightning


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    file = tmp_path_factory.mktemp("ddp") / "results.pt"
    script = Path(two_processes.__file__)
    run = subprocess.run(
        [sys.executable, str(script), str(file)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    return torch.load(file, weights_only=True)


def test_the_processes_run_the_code_that_is_tested(results):
    assert results["file"] == wae_lightning.__file__


OTHERWISE = ("mmd of each half", "a fitted flow")  # the first process fits to its own half of the codes


@pytest.mark.parametrize("name", [name for name in two_processes.MODELS if name not in OTHERWISE])
def test_two_processes_train_like_one_with_the_whole_batch(results, name):
    expected, _ = two_processes.fit(name, two_processes.MODELS[name](), processes=1)
    torch.testing.assert_close(results[name][0], expected, rtol=1e-3, atol=1e-4)


def test_the_mmd_of_each_half_is_another_estimate(results):
    assert not torch.allclose(results["mmd of each half"][0], results["mmd of all codes"][0], atol=1e-4)


@pytest.mark.parametrize("name", two_processes.MODELS)
def test_all_processes_hold_the_same_weights(results, name):
    assert torch.equal(*results[name])


def test_each_process_draws_its_own_noise(results):
    assert not torch.equal(*results["draws"])


def test_a_penalty_for_one_process_refuses_two(results):
    assert results["error"] == "TwoCodes runs in one process only, the trainer has 2"
