"""Models as folders to share: ``model.safetensors``, ``config.json`` and a model card; nothing in them is run.

Needs safetensors, and ``huggingface_hub`` for repositories of the hub: ``pip install 'wae-lightning[hub]'``.
"""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wae_lightning.checkpoints import build_bounded
from wae_lightning.parts import describe
from wae_lightning.training.finite import first_bad_weights

__all__ = ["from_pretrained", "push_to_hub", "save_pretrained"]

BUNDLED = Path(__file__).parent / "weights"
FILES = ("config.json", "model.safetensors")
_LONGEST_CONFIG = 2**20


def _optional(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ImportError(f"{module} is missing: pip install 'wae-lightning[hub]'") from None


def save_pretrained(model: nn.Module, folder: str | Path, half: bool = False, card: str = "") -> None:
    """Writes a folder from which :func:`from_pretrained` makes the model again.

    Args:
        model: The model; each of its arguments must be recorded, see :mod:`wae_lightning.parts`.
        folder: Where to; it is made if it is missing.
        half: Store floats in half precision, in half the bytes.
        card: Markdown for the model card: data, metrics, a picture.

    Raises:
        ValueError: If the model cannot be made again, or a weight is not finite.
        ImportError: If safetensors is missing.
    """
    safetensors = _optional("safetensors.torch")
    description = describe(model)
    missing = _unrecorded(description)
    if missing:
        raise ValueError(
            f"{missing} does not tell how it was made, so nobody could load this model: see wae_lightning.parts"
        )
    bad = first_bad_weights(model)
    if bad is not None:
        raise ValueError(f"{bad} of the model is not finite")
    weights = {
        # tied weights are stored twice: the file holds no views
        name: (value.half() if half and value.is_floating_point() else value).detach().cpu().clone().contiguous()
        for name, value in model.state_dict().items()
        if isinstance(value, Tensor)
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.save_file(weights, str(folder / FILES[1]), metadata={"format": "pt"})
    versions = {"torch": str(torch.__version__), "wae_lightning": importlib.import_module("wae_lightning").__version__}
    config = {"model": description, "versions": versions}
    (folder / FILES[0]).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_model_card(description, card), encoding="utf-8")


def _unrecorded(description: Any) -> str | None:
    if isinstance(description, dict) and "unrecorded" in description:
        return str(description["unrecorded"])
    items = description.values() if isinstance(description, dict) else description
    return next(filter(None, map(_unrecorded, items)), None) if isinstance(description, dict | list) else None


def _model_card(description: dict[str, Any], text: str) -> str:
    return f"""---
library_name: wae-lightning
tags: [wasserstein-auto-encoder, pytorch-lightning]
---
# {description["class_path"].rpartition(".")[2]}

A Wasserstein auto-encoder of [wae-lightning](https://pypi.org/project/wae-lightning/).

{text}

```python
from wae_lightning import from_pretrained

model = from_pretrained("this folder or repository")
samples = model.sample(64)
```

Made with

```json
{json.dumps(description, indent=2)}
```
"""


def from_pretrained(source: str | Path, trust: Sequence[str] = (), **given: Any) -> Any:
    """Loads a model, in evaluation mode and on the CPU; nothing in its files is run.

    Args:
        source: A folder of :func:`save_pretrained`; else the name of bundled weights; else a repository of the hub,
            ``owner/name``.
        trust: Modules of your own whose classes the model may name, see :func:`wae_lightning.parts.find_class`.
        **given: Arguments of the model to take instead of the recorded ones.

    Raises:
        FileNotFoundError: If there is no such folder, name or repository.
        ValueError: If the files are damaged, or name classes that are not trusted.
        ImportError: If a package is missing.
    """
    folder = _folder(source)
    safetensors = _optional("safetensors.torch")
    for name in FILES:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: no such file")
    try:
        if (folder / FILES[0]).stat().st_size > _LONGEST_CONFIG:
            raise ValueError(f"{FILES[0]} has more than {_LONGEST_CONFIG} bytes")
        config = json.loads((folder / FILES[0]).read_text(encoding="utf-8"))
        description = config.get("model") if isinstance(config, dict) else None
        weights = safetensors.load_file(str(folder / FILES[1]))
        model = build_bounded(description, weights, trust, given)
        if not isinstance(model, nn.Module):
            raise ValueError(f"{FILES[0]} describes no model")
        model.load_state_dict(weights)
    except ImportError:
        raise
    except Exception as error:  # json, safetensors and torch have exceptions of their own
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        raise ValueError(f"{folder}: no model can be loaded from it ({reason})") from None
    bad = first_bad_weights(model)
    if bad is not None:
        raise ValueError(f"{folder}: {bad} is not finite")
    return model.eval()


def _folder(source: str | Path) -> Path:
    if Path(source).is_dir():
        return Path(source)
    name = str(source)
    bundled = [path.name for path in BUNDLED.iterdir()] if BUNDLED.is_dir() else []
    if name in bundled:
        return BUNDLED / name
    if isinstance(source, Path) or len(name.split("/")) != 2 or name.startswith((".", "/")):
        known = f", bundled weights ({', '.join(sorted(bundled))})" if bundled else ""
        raise FileNotFoundError(f"{name}: no such folder{known} or repository owner/name")
    hub = _optional("huggingface_hub")
    try:
        return Path(hub.snapshot_download(name, allow_patterns=list(FILES)))
    except Exception as error:  # the hub, the network and the cache have exceptions of their own
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise FileNotFoundError(f"{name}: neither a folder nor a repository that can be had ({reason})") from None


def push_to_hub(
    model: nn.Module, repo_id: str, private: bool = False, half: bool = False, card: str = "", token: str | None = None
) -> str:
    """Uploads what :func:`save_pretrained` writes to a repository of the hub, made if it is missing.

    Returns:
        The address of the commit.
    """
    api = _optional("huggingface_hub").HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, half, card)
        api.create_repo(repo_id, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload model"))
