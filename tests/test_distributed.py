"""WAE-MMD and WAE-GAN under DistributedDataParallel with two CPU processes."""

import socket
from pathlib import Path

import pytest
import torch
import two_processes
from forked import Forked

import wae_lightning


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    file = tmp_path_factory.mktemp("ddp") / "results.pt"
    script = Path(two_processes.__file__)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    with (
        Forked(script, file, **place, NODE_RANK="0", LOCAL_RANK="0") as first,
        Forked(script, file, **place, NODE_RANK="0", LOCAL_RANK="1") as second,
    ):
        for ran in (first.finish(), second.finish()):
            assert ran.returncode == 0, ran.stderr
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
