"""What must hold before a run goes on from a checkpoint: the same settings, and its folder to itself."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from wae_lightning.cli.errors import UsageError
from wae_lightning.parts import describe, parameters_of

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["check_settings", "hold_folder"]

HARMLESS = ("_class_path", "_version", "_instantiator", "compile")
"""What may differ in a run that goes on: it says how the steps are computed, not what they are."""
LOCK = ".running"


def check_settings(checkpoint: dict[str, Any], settings: dict[str, Any], path: str) -> None:
    """Refuses to go on with other settings of the model, its optimizers and schedules than those of the checkpoint.

    The optimizer's state, which holds the learning rate, is taken from the checkpoint: another one would be written
    down and not used.

    Args:
        checkpoint: The checkpoint.
        settings: The recorded arguments of the model that shall go on.
        path: The checkpoint's name.

    Raises:
        UsageError: If one differs.
    """
    stored = checkpoint.get("hyper_parameters")
    if not isinstance(stored, dict):
        return
    for name, before, here in differing(stored, settings, "--model"):
        raise UsageError(
            f"{name} is {here}, and {path} was trained with {before}: leave the flag out to go on as before; a run "
            "with other settings is a new one, without --ckpt_path"
        )


def differing(before: Any, here: Any, name: str, of: str | None = None) -> Iterator[tuple[str, Any, Any]]:
    """The settings that differ between two descriptions: name, value in the first and in the second.

    One that is missing in either, as it is newer than the checkpoint or was left out, is the default of the class that
    they are ``of``.
    """
    for one, other in ((before, here), (here, before)):
        if _class_of(one) is not None and _class_of(one) != _class_of(other):
            yield name, _class_of(before) or before, _class_of(here) or here
            return
    if isinstance(before, dict) and isinstance(here, dict):
        of = before.get("class_path") or before.get("_class_path") or of
        for key in [*here, *(key for key in before if key not in here)]:
            if key == "init_args":
                yield from differing(before.get(key, {}), here.get(key, {}), name, of)
            elif key not in (*HARMLESS, "class_path"):
                default = _default(of, key)
                yield from differing(before.get(key, default), here.get(key, default), f"{name}.{key}")
    elif before != here:
        yield name, before, here


def _default(path: str | None, argument: str) -> Any:
    # the class is imported, since the settings are those of a model that was made
    module, _, name = (path or "").rpartition(".")
    known = getattr(sys.modules.get(module), name, None)
    found = parameters_of(known).parameters.get(argument) if known is not None else None
    return "its default" if found is None or found.default is found.empty else describe(found.default)


def _class_of(described: Any) -> str | None:
    # either of Lightning's packages makes a ReduceLROnPlateau of its own of torch's
    path = described.get("class_path") if isinstance(described, dict) else None
    return None if path is None else "ReduceLROnPlateau" if path.endswith(".ReduceLROnPlateau") else str(path)


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Keeps other processes from training in a run's folder for a while; the lock ends with the process that holds it.

    Raises:
        UsageError: If another process trains there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    with path.open("a+") as lock:
        if fcntl is not None:
            try:
                # not flock, which processes that are forked, such as the loader's, would hold on
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                lock.seek(0)
                process = lock.read().strip()
                raise UsageError(
                    f"{folder}: process {process or 'unknown'} is training in this folder; wait for its end, or stop it"
                ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()
