"""How figures are kept: on which commit and hardware they were taken, in JSON that people read and git compares."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

__all__ = ["EXPERIMENTS", "commit", "hardware", "write_json"]

EXPERIMENTS = Path(__file__).resolve().parents[1]


def _rounded(value: Any) -> Any:
    """Floats with six significant digits: more are noise."""
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _text(value: Any, indent: str) -> str:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if not any(isinstance(one, dict | list) for one in inner):
        return json.dumps(value)
    deeper = indent + " "
    if isinstance(value, dict):
        lines = [f"{deeper}{json.dumps(str(key))}: {_text(one, deeper)}" for key, one in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    return "[\n" + ",\n".join(deeper + _text(one, deeper) for one in value) + f"\n{indent}]"


def write_json(path: Path, figures: Any) -> None:
    """Writes figures with six significant digits, one line for each innermost list or dictionary."""
    path.write_text(_text(_rounded(figures), "") + "\n")


def commit() -> str | None:
    """The commit of this checkout; None outside of one."""
    command = ["git", "-C", str(EXPERIMENTS), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None


def hardware() -> str:
    """The processor, of which trainings use one thread, and the GPU if there is one."""
    import torch

    models = (
        re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if platform.system() == "Linux" else []
    )
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{models[0] if models else platform.processor()}, {os.cpu_count()} cores, one thread{gpu}"
