"""Run by test_lightning_packages.py: a user's program that imports one of Lightning's packages and then ours.

python tests/either_lightning.py PACKAGE FOLDER TASK ...
"""

import importlib
import json
import sys
from pathlib import Path

package, folder, tasks = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
if package == "lightning.pytorch":
    import lightning as L
else:
    import pytorch_lightning as L

import torch  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

import datamodules  # noqa: E402
from wae_lightning import WAEGAN, WAEMMD, ConditionalWAE, PointNetWAE  # noqa: E402
from wae_lightning.callbacks import Dashboard, ImagePictures, ProgressBar  # noqa: E402
from wae_lightning.training.interruption import LastCheckpoint  # noqa: E402

loggers = importlib.import_module(f"{package}.loggers")
cli = importlib.import_module(f"{package}.cli")
NETWORKS = ["--model.encoder=ConvEncoder", "--model.encoder.width=0.02", "--model.decoder=ConvDecoder"]
NETWORKS += ["--model.decoder.width=0.02"]


def model_and_loader(cls):
    """A small model and data for it, made in Python."""
    torch.manual_seed(0)
    if cls is PointNetWAE:
        model = cls(latent_dim=8, num_points=32)
        return model, DataLoader(torch.rand(8, 32, 3), 4)
    if cls is ConditionalWAE:
        data = TensorDataset(torch.rand(40, 1, 14, 28), torch.rand(40, 1, 14, 28))
        return cls(latent_dim=4), DataLoader(data, 20)
    return cls(latent_dim=4), DataLoader(torch.rand(8, 1, 28, 28), 4)


def trainer(**arguments):
    defaults = {"accelerator": "cpu", "max_epochs": 1, "limit_val_batches": 1, "logger": False}
    defaults |= {"enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder}
    return L.Trainer(**defaults | arguments)


def fit():
    """Each model in Python, in full precision and bfloat16, with our callbacks and a logger of the package."""
    found = {}
    for cls in (WAEMMD, WAEGAN, ConditionalWAE, PointNetWAE):
        for precision in ("32-true", "bf16-mixed"):
            model, loader = model_and_loader(cls)
            before = [weight.detach().clone() for weight in model.parameters()]
            logger = loggers.CSVLogger(folder / cls.__name__, name=precision)
            callbacks = [Dashboard(), ProgressBar()] + ([ImagePictures(2)] if cls is WAEMMD else [])
            runs = trainer(precision=precision, logger=logger, callbacks=callbacks, enable_progress_bar=True)
            runs.fit(model, loader, loader)
            after = list(model.parameters())
            found[f"{cls.__name__} {precision}"] = {
                "steps": runs.global_step,
                "changed": not all(torch.equal(a, b) for a, b in zip(before, after, strict=True)),
                "finite": all(bool(weight.isfinite().all()) for weight in after),
                "module": isinstance(model, L.LightningModule),
            }
    return found


def command_line():
    """LightningCLI of the package with a model, a data module, a callback, an optimizer and a scheduler."""
    flags = [
        *NETWORKS, "--data.batch_size=50", "--optimizer=Adam", "--lr_scheduler=ReduceLROnPlateau",
        "--lr_scheduler.monitor=val/loss", "--trainer.accelerator=cpu", "--trainer.max_epochs=1",
        "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", "--trainer.callbacks=LastCheckpoint",
        f"--trainer.default_root_dir={folder}", "--trainer.enable_progress_bar=false", "--trainer.logger=false",
    ]  # fmt: skip
    made = cli.LightningCLI(WAEMMD, datamodules.MNISTDataModule, args=flags, run=False)
    made.trainer.fit(made.model, made.datamodule)
    kept = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["hyper_parameters"]
    return {"steps": made.trainer.global_step, "class": kept["_class_path"], "hyper_parameters": json.dumps(kept)}


def resume():
    """Goes on from ``last.ckpt``, if there is one, for one epoch more, and loads the model without its class's help."""
    file = folder / "checkpoints" / "last.ckpt"
    model, loader = model_and_loader(WAEGAN)
    epochs = torch.load(file, weights_only=True)["epoch"] + 2 if file.exists() else 1
    runs = trainer(max_epochs=epochs, callbacks=[LastCheckpoint()], enable_checkpointing=True)
    runs.fit(model, loader, loader, ckpt_path=file if file.exists() else None, weights_only=True)
    again = WAEGAN.load_from_checkpoint(file)
    same = all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    return {"steps": runs.global_step, "epoch": runs.current_epoch, "same": same, "sum": float(model.sample(4).sum())}


if __name__ == "__main__":
    known = {"fit": fit, "cli": command_line, "resume": resume}
    print("\n" + json.dumps({task: known[task]() for task in tasks}))
