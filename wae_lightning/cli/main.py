"""The console command ``wae-lightning``: it trains, evaluates and generates as the scripts in ``experiments`` do."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from wae_lightning.cli.errors import UsageError, suggest
from wae_lightning.cli.flags import complete_flags, describe_configs

__all__ = ["main", "run"]

COMMANDS = {"train": "trains a model", "evaluate": "measures trained models", "generate": "draws from a trained model"}

TRAIN_HELP = """\
usage: {program} [--config NAME] [--FLAG VALUE ...]
Trains an auto-encoder and tests it; without any flag a WAE-MMD on digits, in one to four minutes.
Everything lands in a folder runs/NAME/version_0.

Configs (--config NAME, or a YAML file of your own; default mnist_wae_mmd):
{configs}

The flags that matter:
  --data.root DIR            folder of your data
  --data.batch_size 100      examples in a batch
  --max_epochs 20            how long (each flag of Lightning's Trainer is one here)
  --accelerator cpu          or gpu; by itself it takes what is there
  --model.latent_dim 8       size of the code; the sizes of all networks follow
  --model.penalty_weight 10  weight of the penalty against the reconstruction cost
  --model.optimizer.lr 1e-3  learning rate, where the config names an optimizer
  --model.encoder.width 0.25 size of the network, where the config names an encoder; also decoder
  --seed_everything 0        seed of all random numbers
  --ckpt_path last           goes on where the newest run of the config stopped
All flags: --help_all. All values of a config, to edit and train with: --print_config > mine.yaml"""


def check_datamodules() -> None:
    """Looks, without importing it, whether ``datamodules`` is ours: other projects have a package of that name, too.

    Raises:
        UsageError: If it is another one.
    """
    spec = find_spec("datamodules")
    places = list((spec and spec.submodule_search_locations) or [])
    if not any(Path(place, "modelnet40.py").is_file() for place in places):
        found = places[0] if places else spec and spec.origin
        raise UsageError(
            f"the package datamodules of wae-lightning is hidden by another one, {found}: start from another folder, "
            "rename that one or take it off PYTHONPATH"
            if found
            else "the package datamodules, which comes with wae-lightning, is missing: install wae-lightning again"
        )


def run(command: str, arguments: list[str] | None = None, program: str | None = None) -> None:
    """Runs one command.

    Args:
        command: ``train``, ``evaluate`` or ``generate``.
        arguments: The command line without the command; None: that of this process.
        program: What messages call it; None: the name of the script, such as ``train.py``.
    """
    try:
        try:
            _run(command, sys.argv[1:] if arguments is None else arguments, program or f"{command}.py")
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # who reads has read enough, such as head; Python flushes once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _run(command: str, given: list[str], program: str) -> None:
    if command == "train" and {"--list", "--help", "-h"} & set(given):
        configs = describe_configs()
        print(configs if "--list" in given else TRAIN_HELP.format(program=program, configs=configs))
        sys.exit(0)
    try:
        check_datamodules()
        if command == "train":  # before torch and Lightning are imported, which takes seconds
            complete_flags(given)
        import_module("wae_lightning.lightning")
    except (UsageError, ImportError) as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        sys.exit(2)
    import_module(f"wae_lightning.cli.{command}").main(given, program)


def main(arguments: list[str] | None = None) -> None:
    """Runs ``wae-lightning COMMAND ...``; ``fit``, Lightning's own word, is understood as ``train``."""
    given = sys.argv[1:] if arguments is None else arguments
    commands = "\n".join(f"  wae-lightning {name:10} {what}" for name, what in COMMANDS.items())
    command = {"fit": "train"}.get(given[0], given[0]) if given else ""
    if command in ("", "-h", "--help"):
        print(f"usage: wae-lightning COMMAND ...\n\n{commands}\n\nEach has a --help of its own.")
        sys.exit(0 if command else 2)
    if command not in COMMANDS:
        print(
            f"wae-lightning: error: unknown command {command}, expected {', '.join(COMMANDS)}"
            f"{suggest(command, COMMANDS)}",
            file=sys.stderr,
        )
        sys.exit(2)
    run(command, given[1:], f"wae-lightning {command}")
