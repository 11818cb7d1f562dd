"""What commands do on a GPU or in half precision, shown on the CPU."""

import functools
import re
from unittest import mock

import pytest
import torch
from helpers import pl, small, trainer

from datamodules import MNISTDataModule
from wae_lightning.cli import evaluate, generate
from wae_lightning.cli.device import choose_device
from wae_lightning.cli.errors import UsageError
from wae_lightning.cli.flags import CONFIGS as CONFIG_FILES
from wae_lightning.cli.flags import complete_flags
from wae_lightning.cli.train import Train
from wae_lightning.training import CompileNetworks

CONFIGS = ["mnist_wae_mmd", "mnist_wae_gan", "mnist_conditional", "modelnet40_pointnet"]
FLAGS = [
    "--accelerator=cpu", "--max_epochs=1", "--limit_train_batches=2", "--limit_val_batches=1", "--logger=false",
    "--enable_progress_bar=false", "--enable_model_summary=false", "--num_sanity_val_steps=0",
]  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS)
def test_gradients_are_clipped_under_bf16_though_the_config_is_fused(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli = Train(*complete_flags([f"--config={config}", *FLAGS, "--precision=bf16-mixed", "--gradient_clip_val=1e-4"]))
    clip, norms = torch.nn.utils.clip_grad_norm_, []

    def clipped(parameters, *arguments, **kwargs):
        parameters = list(parameters)
        before = clip(parameters, *arguments, **kwargs)
        norms.append((before.item(), torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])))
        return before

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clipped)
    cli.trainer.fit(cli.model, cli.datamodule)
    assert len(norms) >= 2
    assert all(before > 1e-4 and after <= 1.01e-4 for before, after in norms)


@pytest.mark.parametrize("clips", [(1.0, None), (None, 1.0)], ids=str)
def test_a_run_under_a_gradient_scaler_goes_on_with_or_without_clipping(tmp_path, clips):
    for epochs, clip in enumerate(clips, 1):
        plugin = pl.plugins.MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=4.0))
        plugin.autocast_context_manager = lambda: torch.autocast("cpu", enabled=False)
        fitting = trainer(tmp_path, max_epochs=epochs, gradient_clip_val=clip, plugins=[plugin])
        model = small(optimizer=functools.partial(torch.optim.Adam, lr=1e-3, fused=True))
        path = tmp_path / "a.ckpt"
        fitting.fit(model, MNISTDataModule(), ckpt_path=path if epochs == 2 else None, weights_only=True)
        fitting.save_checkpoint(path)
        (adam,) = fitting.optimizers
        assert adam.param_groups[0]["fused"] is (clip is None)
        assert adam.state_dict()["state"][0]["step"] == 3 * epochs


def test_configs_of_the_papers_sizes_have_fused_optimizers():
    for file in [*CONFIG_FILES.glob("*_paper.yaml"), *CONFIG_FILES.glob("*_repo.yaml")]:
        optimizers = re.findall(
            r"class_path: torch\.optim\.Adam.*(?:\n.*init_args:)(.*(?:\n {8,}.*)*)", file.read_text()
        )
        assert optimizers, file.name
        assert all("fused: true" in arguments for arguments in optimizers), file.name


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
def test_modes_with_cuda_graphs_are_refused(mode):
    with pytest.raises(ValueError, match=f"{mode} uses CUDA graphs; expected default or max-autotune-no-cudagraphs"):
        CompileNetworks(["encoder"], mode)


def machine(cuda=False, mps=False):
    """Patches what PyTorch says of this machine."""
    return mock.patch.multiple(
        torch, cuda=mock.Mock(is_available=lambda: cuda), mps=mock.Mock(is_available=lambda: mps)
    )


@pytest.mark.parametrize(
    ("there", "auto", "gpu"), [({}, "cpu", None), ({"cuda": True}, "cuda", "cuda"), ({"mps": True}, "mps", "mps")]
)
def test_the_accelerator_is_what_the_trainer_would_choose(there, auto, gpu):
    before = torch.get_float32_matmul_precision()
    try:
        with machine(**there):
            assert choose_device("cpu").type == "cpu"
            assert torch.get_float32_matmul_precision() == before == "highest"
            assert choose_device("auto").type == auto
            # TF32 on CUDA only
            assert torch.get_float32_matmul_precision() == ("high" if auto == "cuda" else before)
            if gpu is None:
                with pytest.raises(UsageError, match="--accelerator gpu: PyTorch sees no such device here"):
                    choose_device("gpu")
            else:
                assert choose_device("gpu").type == gpu
            torch.set_float32_matmul_precision("medium")
            choose_device("auto")
            assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_evaluate_and_generate_say_that_there_is_no_gpu(trained, capsys, tmp_path):
    checkpoint = str(trained("mnist_wae_mmd"))
    for command in (evaluate.main, generate.main):
        with machine(), pytest.raises(SystemExit, match="2"):
            command([checkpoint, "--accelerator=gpu", f"--out={tmp_path / 'x.json'}"])
        assert "--accelerator gpu: PyTorch sees no such device here" in capsys.readouterr().err


def test_training_allows_tf32(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr("wae_lightning.cli.train.allow_tf32", seen.append)
    Train(*complete_flags(FLAGS))
    assert seen == [torch.device("cpu")]
