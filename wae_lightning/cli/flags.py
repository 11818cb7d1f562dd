"""Reads command lines before anything heavy is imported: a typo costs a moment, not seconds."""

from __future__ import annotations

import argparse
import ast
import functools
import re
import sys
import textwrap
from collections.abc import Collection, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from wae_lightning.cli.errors import UsageError, suggest

__all__ = [
    "ACCELERATORS",
    "ACCELERATOR_HELP",
    "CONFIGS",
    "IMPORT_HELP",
    "complete_flags",
    "config_file",
    "describe_configs",
    "find_checkpoint",
    "list_flags",
    "read_overrides",
]

CONFIGS = Path(__file__).parent / "configs"
DEFAULT_CONFIG = "mnist_wae_mmd"
ACCELERATORS = ("auto", "cpu", "gpu", "mps")
ACCELERATOR_HELP = "where the model runs; auto, as in training: on a GPU where there is one (auto)"
IMPORT_HELP = "modules of your own classes; checkpoints can name no other class than the imported ones"
OWN_FLAGS = ("config", "ckpt_path", "seed_everything", "print_config", "help", "help_all", "list")
LINE = 96  # letters of a line of the terminal
OURS = ("wae_lightning", "datamodules")
GROUPS = ("trainer", "checkpoint", "model", "data")


def config_file(name: str) -> Path:
    """Finds a config by its name among ours or by its path.

    Raises:
        UsageError: If it is neither.
    """
    names = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    if name in names:
        return CONFIGS / f"{name}.yaml"
    if Path(name).is_file():
        return Path(name)
    raise UsageError(f"--config {name}: neither a file nor one of the configs {', '.join(names)}{suggest(name, names)}")


def describe_configs() -> str:
    """Our configs, one line each: the name and the first comment line of the file."""
    files = sorted(CONFIGS.glob("*.yaml"))
    width = max(len(file.stem) for file in files)
    first_lines = [file.read_text(encoding="utf-8").partition("\n")[0] for file in files]
    return "\n".join(
        f"  {file.stem:{width}}  {textwrap.shorten(line.lstrip('# '), LINE - width, placeholder=' ...')}"
        for file, line in zip(files, first_lines, strict=True)
    )


def find_classes(file: Path) -> dict[str, ast.ClassDef]:
    """The classes that a module defines, read from its source."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def find_init(cls: ast.ClassDef) -> ast.arguments | None:
    found = [node for node in cls.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
    return found[0].args if found else None


@functools.cache
def list_arguments(module: str) -> tuple[str, ...]:
    """The arguments of a class of Lightning, read from the source of its module; empty if that has moved."""
    from wae_lightning.lightning import PACKAGE  # a wrong name in its variable ends in one sentence of the command

    top, _, inner = PACKAGE.partition(".")
    spec = find_spec(top)
    for folder in (spec and spec.submodule_search_locations) or []:
        file = Path(folder, inner, f"{module}.py")
        for cls in find_classes(file).values() if file.is_file() else ():
            if (given := find_init(cls)) is not None:
                return tuple(argument.arg for argument in (*given.args, *given.kwonlyargs))[1:]
    return ()


@functools.cache
def find_own_class(name: str) -> ast.ClassDef | None:
    """A class of ours by its name."""
    for spec in map(find_spec, OURS):
        for folder in (spec and spec.submodule_search_locations) or []:
            for file in Path(folder).rglob("*.py"):
                # parsing takes longer than looking
                if f"class {name}" in file.read_text(encoding="utf-8") and name in (found := find_classes(file)):
                    return found[name]
    return None


def list_own_arguments(name: str) -> set[str] | None:
    """The arguments of a class of ours, with those that it passes on to the class it is made from; None: not known."""
    cls = find_own_class(name)
    if cls is None:
        return None
    given = find_init(cls)
    found = {argument.arg for argument in (*given.args, *given.kwonlyargs)} - {"self"} if given else set()
    if given is None or given.kwarg:
        bases = (list_own_arguments(getattr(base, "id", "")) for base in cls.bases)
        inherited = next((arguments for arguments in bases if arguments is not None), None)
        return None if inherited is None else found | inherited
    return found


def find_unknown(flag: str, part: Any, typed: Collection[str]) -> list[str]:
    """What could stand for a flag of a part of a config that no class of ours takes; empty: it may be right."""
    group, *names = re.sub(r"\.(init_args|dict_kwargs)\b", "", flag[2:].rstrip("+")).split(".")
    so_far = f"--{group}"
    for name in names:
        path = part.get("class_path") if isinstance(part, dict) else None
        package, _, cls = path.rpartition(".") if isinstance(path, str) else ("", "", "")
        known = list_own_arguments(cls) if package.partition(".")[0] in OURS else None
        # the command line may put another class there
        if known is None or name == "class_path" or {so_far, f"{so_far}.class_path"} & set(typed):
            return []
        if name not in known:
            return [f"{so_far}.{argument}" for argument in sorted(known)]
        so_far, part = f"{so_far}.{name}", part.get("init_args", {}).get(name)
    return []


def list_trainer_flags() -> tuple[str, ...]:
    return list_arguments("trainer/trainer")


def list_flags(config: Path) -> list[str]:
    """All flags that are known without an import: ours, Lightning's, and what the config itself sets."""
    trainer, checkpoint = list_trainer_flags(), list_arguments("callbacks/model_checkpoint")
    flags = [*OWN_FLAGS, *trainer]
    flags += [f"trainer.{name}" for name in trainer] + [f"checkpoint.{name}" for name in checkpoint]
    content = read_plain(config)
    for group in ("model", "data"):
        flags += walk(content.get(group), group)
    return [f"--{flag}" for flag in dict.fromkeys(flags)]


def read_plain(config: Path) -> dict[str, Any]:
    """What a config says; nothing, if it cannot be read: LightningCLI says what is wrong with it."""
    try:
        content = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def walk(part: Any, name: str) -> Iterator[str]:
    """The flags of a part of a config and of the parts in it: ``model.optimizer.lr``."""
    arguments = part.get("init_args", part.get("dict_kwargs", part)) if isinstance(part, dict) else None
    for key, value in (arguments if isinstance(arguments, dict) else {}).items():
        if key == "class_path":
            continue
        yield f"{name}.{key}"
        yield from walk(value, f"{name}.{key}")


def complete_flags(arguments: list[str]) -> tuple[list[str], str]:
    """Turns the command line into LightningCLI's: ``--max_epochs`` becomes ``--trainer.max_epochs``, a config a path.

    Returns:
        The new command line and the name of the last config on it.

    Raises:
        UsageError: If a config or a flag is not known; of classes that are not ours LightningCLI knows the flags.
    """
    if arguments and arguments[0] in ("fit", "train"):
        raise UsageError(f"leave out {arguments[0]!r}: the command trains, and then tests, by itself")
    # Configs go first, wherever they stand: other flags change what they say.
    configs: list[Path] = []
    flags: list[str] = []
    given = iter(arguments)
    for argument in given:
        flag, equals, value = argument.partition("=")
        if flag == "--help_all":
            flags.append("--help")
        elif flag in ("--config", "-c"):
            if not equals:
                value = next(given, "")
            if not value:
                raise UsageError("--config needs the name of a config or a file")
            configs.append(config_file(value))
        else:
            flags.append(argument)
    configs = configs or [config_file(DEFAULT_CONFIG)]
    trainer = list_trainer_flags()
    content = {group: part for config in configs for group, part in read_plain(config).items()}
    typed = [argument.partition("=")[0] for argument in flags]
    listed = list_flags(configs[-1]) if trainer else []
    full: list[str] = []
    for argument in flags:
        flag, equals, value = argument.partition("=")
        if flag.startswith("--") and trainer:
            first, *rest = flag[2:].rstrip("+").split(".")
            if first in trainer:
                flag = f"--trainer.{flag[2:]}"
            else:
                known = listed
                wrong = first not in (*OWN_FLAGS, *GROUPS)
                wrong |= first in ("trainer", "checkpoint") and bool(rest) and f"--{first}.{rest[0]}" not in known
                if first in ("model", "data") and (meant := find_unknown(flag, content.get(first), typed)):
                    wrong, known = True, meant
                if wrong:
                    raise UsageError(f"unknown flag {flag}{suggest(flag, known)}")
        if flag == "--trainer.logger+" and value in ("CSVLogger", "TensorBoardLogger"):
            # Lightning wants to know where they write, which is in the folder of the run
            value = f"{{class_path: {value}, init_args: {{save_dir: runs}}}}"
        full.append(flag + equals + value)
    path = configs[-1]
    # the config.yaml that a run has saved names that run
    name = path.stem if path.stem != "config" else path.resolve().parents[1].name
    return [*(f"--config={config}" for config in configs), *full], name


def read_overrides(
    parser: argparse.ArgumentParser, arguments: list[str] | None
) -> tuple[argparse.Namespace, dict[str, str]]:
    """Parses a command line on which ``--data.NAME VALUE`` stands for arguments of the data module, returned apart."""
    overrides: dict[str, str] = {}
    rest: list[str] = []
    remaining = iter(sys.argv[1:] if arguments is None else arguments)
    for argument in remaining:
        flag, equals, value = argument.partition("=")
        if flag.startswith("--data."):
            overrides[flag.removeprefix("--data.")] = value if equals else next(remaining, "")
        else:
            rest.append(argument)
    known, unknown = parser.parse_known_args(rest)
    if unknown:
        parser.error(f"unknown argument {unknown[0].partition('=')[0]}")
    return known, overrides


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that a path means: of the folder of a run, its ``checkpoints/last.ckpt``.

    Raises:
        FileNotFoundError: If there is no such file, or no checkpoint in the folder.
    """
    for inner in ("checkpoints/last.ckpt", "last.ckpt") if path.is_dir() else ():
        if (path / inner).is_file():
            return path / inner
    if path.is_dir():
        raise FileNotFoundError(f"{path}: there is no checkpoints/last.ckpt in this folder")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return path
