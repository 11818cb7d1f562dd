"""Makes the weights that come with the package: ``make_bundled_weights.py CKPT NAME``, in half precision."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from wae_lightning.cli.flags import find_checkpoint
from wae_lightning.cli.load import load_model
from wae_lightning.pretrained import BUNDLED, save_pretrained


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ckpt", type=Path, help="checkpoint written by train.py, or its run's folder")
    parser.add_argument("name", help="what from_pretrained shall know it as")
    parser.add_argument("--data", default="", help="a sentence on the data, for the model card")
    parser.add_argument("--metrics", type=Path, help="JSON file that evaluate.py or train.py wrote, for the model card")
    known = parser.parse_args(arguments)
    content = json.loads(known.metrics.read_text()) if known.metrics else {}
    metrics = {name: value for name, value in content.items() if isinstance(value, int | float)}
    folder = BUNDLED / known.name
    save_pretrained(load_model(find_checkpoint(known.ckpt)), folder, half=True, data=known.data, metrics=metrics)
    for path in sorted(folder.iterdir()):
        print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
