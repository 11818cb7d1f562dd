"""Files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wae_lightning.cli.errors import UsageError

__all__ = ["whole_file"]


@contextmanager
def whole_file(flag: str, path: Path) -> Iterator[Path]:
    """Gives a place to write to; what was written there takes the name ``path`` at the end, if nothing went wrong.

    Raises:
        UsageError: If it cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        if part.exists():  # not if a folder was written instead
            os.replace(part, path)
    except OSError as error:
        raise UsageError(f"{flag} {path}: cannot be written ({error.strerror or error})") from None
    finally:
        if part.exists():
            part.unlink()
