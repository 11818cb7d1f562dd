"""Which device a command uses, and how it multiplies there."""

from __future__ import annotations

import torch

from wae_lightning.cli.errors import UsageError

__all__ = ["allow_tf32", "choose_device"]


def choose_device(accelerator: str) -> torch.device:
    """The device that ``--accelerator`` names, as Lightning's trainer understands it.

    Raises:
        UsageError: If there is no such device.
    """
    found = [device for device in ("cuda", "mps") if getattr(torch, device).is_available()]
    wanted = {"auto": [*found, "cpu"], "gpu": found, "mps": [device for device in found if device == "mps"]}
    devices = wanted.get(accelerator, ["cpu"])
    if not devices:
        raise UsageError(f"--accelerator {accelerator}: PyTorch sees no such device here; expected auto or cpu")
    device = torch.device(devices[0])
    allow_tf32(device)
    return device


def allow_tf32(device: torch.device) -> None:
    """Lets networks on a CUDA GPU multiply in TF32, unless the user has set a precision.

    What must be exact is computed in full float32 all the same, see :mod:`wae_lightning.precision`.
    """
    if device.type != "cuda":
        return
    try:
        untouched = torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # the newer flags of each backend are set
        untouched = False
    if untouched:
        torch.set_float32_matmul_precision("high")
