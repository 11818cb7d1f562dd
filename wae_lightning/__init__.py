"""Wasserstein auto-encoders as LightningModules."""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wae_lightning.base import WAE
    from wae_lightning.cli.config import from_config
    from wae_lightning.conditional import ConditionalWAE
    from wae_lightning.gan import WAEGAN
    from wae_lightning.mmd import WAEMMD
    from wae_lightning.pointnet import PointNetWAE
    from wae_lightning.pretrained import from_pretrained, push_to_hub, save_pretrained

__version__ = "0.1.0"

__all__ = [
    "WAE",
    "WAEGAN",
    "WAEMMD",
    "ConditionalWAE",
    "PointNetWAE",
    "__version__",
    "from_config",
    "from_pretrained",
    "push_to_hub",
    "save_pretrained",
]

# imported when first asked for: the command line answers a typo without torch and Lightning, which take seconds
_MODULES = {
    "WAE": "base",
    "WAEGAN": "gan",
    "WAEMMD": "mmd",
    "ConditionalWAE": "conditional",
    "PointNetWAE": "pointnet",
    "from_config": "cli.config",
    **dict.fromkeys(("from_pretrained", "push_to_hub", "save_pretrained"), "pretrained"),
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        found = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    elif not name.startswith("_") and find_spec(f"{__name__}.{name}"):
        found = import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
