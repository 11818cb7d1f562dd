"""Models as folders to share: ``model.safetensors``, ``config.json`` and a model card; nothing in them is run.

Repositories of the hub need ``huggingface_hub`` (the extra ``hub``).
"""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.utils import make_grid

from wae_lightning.callbacks.pictures import in_unit_range, write_png
from wae_lightning.checkpoints import build_bounded, check_layers, layer_classes
from wae_lightning.parts import describe
from wae_lightning.training.finite import first_bad_weights
from wae_lightning.work import check_work

__all__ = ["from_pretrained", "push_to_hub", "save_pretrained"]

BUNDLED = Path(__file__).parent / "weights"
FILES = ("config.json", "model.safetensors")
PICTURE, SAMPLES = "samples.png", 64
_LEFT_OUT = ("memory._extra_state",)
_LONGEST_CONFIG = 2**20


def _hub() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError:
        raise ImportError("huggingface_hub is missing: pip install huggingface_hub") from None


def save_pretrained(
    model: nn.Module,
    folder: str | Path,
    half: bool = False,
    data: str = "",
    metrics: Mapping[str, float] | None = None,
    card: str = "",
) -> None:
    """Writes a folder from which :func:`from_pretrained` makes the model again.

    It holds the weights, how the model was made, and a model card with samples. It does not hold the training codes
    that a checkpoint remembers.

    Args:
        model: The model; each of its arguments must be recorded, see :mod:`wae_lightning.parts`.
        folder: Where to; it is made if it is missing.
        half: Store floats in half precision, in half the bytes.
        data: A sentence for the model card on what the model was trained on.
        metrics: What it scores, for the model card.
        card: More Markdown for the model card.

    Raises:
        ValueError: If the model cannot be made again, or a weight is not finite, or too large for half precision.
    """
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
        if name not in _LEFT_OUT and isinstance(value, Tensor)
    }
    for name, value in weights.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"{name} of the model is too large for half precision: half=False keeps it")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, str(folder / FILES[1]), metadata={"format": "pt"})
    versions = {"torch": str(torch.__version__), "wae_lightning": importlib.import_module("wae_lightning").__version__}
    config = {"model": description, "layers": layer_classes(model), "versions": versions}
    (folder / FILES[0]).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    sections = [f"## Data\n\n{data}"] if data else []
    if metrics:
        rows = "\n".join(f"| {name} | {value:.4g} |" for name, value in metrics.items())
        sections.append(f"## Measured\n\n| measure | value |\n| --- | --- |\n{rows}")
    if _draw_samples(model, folder / PICTURE):
        sections.insert(0, f"![samples]({PICTURE})\n\nSamples, not chosen: `model.sample({SAMPLES})`.")
    (folder / "README.md").write_text(_model_card(model, description, [*sections, card]), encoding="utf-8")


def _unrecorded(description: Any) -> str | None:
    if isinstance(description, dict) and "unrecorded" in description:
        return str(description["unrecorded"])
    items = description.values() if isinstance(description, dict) else description
    return next(filter(None, map(_unrecorded, items)), None) if isinstance(description, dict | list) else None


def _draw_samples(model: Any, path: Path) -> bool:
    """Draws samples of a model of images or of point sets; False: it is no such model, and nothing is written."""
    try:
        samples = model.sample(SAMPLES, torch.Generator().manual_seed(0)).float().cpu()
    except (AttributeError, ValueError):  # no model of ours, or one that needs a part of an image
        return False
    if samples.ndim == 4 and samples.shape[1] in (1, 3):
        write_png(path, make_grid(in_unit_range(model, samples), nrow=8, pad_value=1))
    elif samples.ndim == 3 and samples.shape[2] == 3:
        from wae_lightning.callbacks.point_clouds import draw_point_sets

        draw_point_sets([samples[:4], samples[4:8]], up_axis=getattr(model, "up_axis", "y")).savefig(path, dpi=80)
    else:
        return False
    return True


def _model_card(model: nn.Module, description: dict[str, Any], sections: list[str]) -> str:
    cls = type(model)
    ours = next((base for base in cls.__mro__ if base.__module__.startswith("wae_lightning")), cls)
    what = (ours.__doc__ or "A Wasserstein auto-encoder.").strip().partition("\n")[0]
    count = sum(parameter.numel() for parameter in model.parameters())
    trust = "" if cls is ours else f", trust=[{cls.__module__!r}]"
    text = "\n\n".join(filter(None, sections))
    return f"""---
library_name: wae-lightning
tags: [wasserstein-auto-encoder, pytorch-lightning]
---
# {cls.__name__}

{what} It has {count:,} weights, and is made with [wae-lightning](https://pypi.org/project/wae-lightning/).

{text}

## Use

```python
from wae_lightning import from_pretrained

model = from_pretrained("this folder or repository"{trust})
{"targets = model.complete(conditions, 8)" if ours.__name__ == "ConditionalWAE" else "samples = model.sample(64)"}
```

Nothing in these files is run: the weights are numbers, and `config.json` names classes.

## Made with

```json
{json.dumps(description, indent=2)}
```
"""


def from_pretrained(source: str | Path, trust: Sequence[str] = (), **given: Any) -> Any:
    """Loads a model, in evaluation mode, in single precision and on the CPU; nothing in its files is run.

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
    for name in FILES:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: no such file")
    try:
        if (folder / FILES[0]).stat().st_size > _LONGEST_CONFIG:
            raise ValueError(f"{FILES[0]} has more than {_LONGEST_CONFIG} bytes")
        config = json.loads((folder / FILES[0]).read_text(encoding="utf-8"))
        description = config.get("model") if isinstance(config, dict) else None
        weights = load_file(str(folder / FILES[1]))
        model = build_bounded(description, weights, trust, given)
        if not isinstance(model, nn.Module):
            raise ValueError(f"{FILES[0]} describes no model")
        check_layers(model, config.get("layers"), given)
        found = model.load_state_dict(weights, strict=False)
        if wrong := [name for name in (*found.missing_keys, *found.unexpected_keys) if name not in _LEFT_OUT]:
            raise ValueError(f"{FILES[1]} and {FILES[0]} differ in the weights {', '.join(wrong[:5])}")
        check_work(model, trust)
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
    hub = _hub()
    try:
        return Path(hub.snapshot_download(name, allow_patterns=list(FILES)))
    except Exception as error:  # the hub, the network and the cache have exceptions of their own
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise FileNotFoundError(f"{name}: neither a folder nor a repository that can be had ({reason})") from None


def push_to_hub(model: nn.Module, repo_id: str, private: bool = False, token: str | None = None, **options: Any) -> str:
    """Uploads what :func:`save_pretrained` writes to a repository of the hub, made if it is missing.

    Args:
        model: The model.
        repo_id: ``owner/name``.
        private: Whether a new repository is private.
        token: Of the hub; None: the one that its own command line has stored.
        **options: See :func:`save_pretrained`.

    Returns:
        The address of the commit.
    """
    api = _hub().HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, **options)
        api.create_repo(repo_id, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload model"))
