"""Writes what a trained model makes of a set: ``generate.py CKPT --what codes --out codes.npz``."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wae_lightning import WAE, ConditionalWAE
from wae_lightning.cli.errors import UsageError
from wae_lightning.cli.files import whole_file
from wae_lightning.cli.inputs import input_reader, list_inputs
from wae_lightning.cli.load import load_data, load_pairs
from wae_lightning.evaluation import Codes, encode_batches
from wae_lightning.evaluation.codes import batches_of
from wae_lightning.work import codes_at_once

__all__ = ["write_codes"]

BATCH = 500


def write_codes(model: WAE, known: argparse.Namespace, overrides: dict[str, str]) -> str:
    """Encodes ``--inputs``, or ``--part`` of the data, and writes the table; returns what was written, in words.

    Raises:
        FileNotFoundError: If a file, or the data, is not there.
        UsageError: If there is no data, it cannot be an input of the model, or the file cannot be written.
    """
    if known.out.suffix not in (".npz", ".csv"):
        raise UsageError(f"--out {known.out}: expected .npz or .csv for --what codes")
    if known.inputs and overrides:
        raise UsageError(f"--data.{min(overrides)}: either --inputs or --data.NAME say what is encoded, not both")
    torch.manual_seed(known.seed)
    found, names, class_names = (of_inputs if known.inputs else of_data)(model, known, overrides)
    write_table(known.out, found, names, class_names)
    beside = [word for word, there in (("labels", found.labels is not None), ("names", names)) if there]
    return f"{len(found.z):,} codes and costs" + "".join(f", {word}" for word in beside)


def of_inputs(model: WAE, known: argparse.Namespace, _: Any) -> tuple[Codes, list[str] | None, list[str]]:
    """Encodes files; a file with several inputs gives each the file's name and a number."""
    files, file_names, file_labels, class_names = list_inputs(known.inputs, model)
    read = input_reader(known.ckpt, model)
    pairs = load_pairs(known.ckpt, model) if isinstance(model, ConditionalWAE) else None
    names: list[str] = []
    labels: list[int] = []

    def batches() -> Iterator[Any]:
        for number, (file, name) in enumerate(zip(files, file_names, strict=True)):
            x = read(file)
            names.extend([name] if len(x) == 1 else [f"{name}[{i}]" for i in range(len(x))])
            labels.extend([file_labels[number] if file_labels else 0] * len(x))
            for part in torch.split(x, codes_at_once(model, BATCH)):
                yield part if pairs is None else pairs.split(part)

    found = encode_batches(model, batches())
    return found._replace(labels=torch.tensor(labels) if file_labels else None), names, class_names


def of_data(
    model: WAE, known: argparse.Namespace, overrides: dict[str, str]
) -> tuple[Codes, list[str] | None, list[str]]:
    """Encodes a set of the data module, in the order of its names."""
    data: Any = load_data(known.ckpt, overrides, known.modules)
    if data is None:
        raise UsageError("--what codes needs data: --data.root DIR, or --inputs with files or a folder")
    data.prepare_data()
    for stage in ("fit", "test"):
        data.setup(stage)
    found = encode_batches(model, batches_of(data, known.part, in_order=True))
    names = data.names(known.part) if hasattr(data, "names") else None
    return found, names, list(getattr(data, "class_names", None) or [])


def write_table(out: Path, found: Codes, names: list[str] | None, class_names: list[str]) -> None:
    """Writes the table as the ending of ``out`` says; never half a file.

    Raises:
        UsageError: If the file cannot be written.
    """
    with whole_file("--out", out) as part:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix == ".npz":
            arrays = {"z": found.z.numpy(), "cost": found.cost.numpy()}
            if found.labels is not None:
                arrays["labels"] = found.labels.numpy()
            for key, texts in (("names", names), ("class_names", class_names)):
                if texts:
                    arrays[key] = np.array(texts)
            with part.open("wb") as file:
                np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        else:
            with part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as text:
                csv.writer(text, lineterminator="\n").writerows(rows_of(found, names, class_names))


def rows_of(found: Codes, names: list[str] | None, class_names: list[str]) -> Iterator[list[Any]]:
    """The lines of a table with a header: name, label (or several), class, cost, z0, z1, ..."""
    labels = [] if found.labels is None else found.labels.reshape(len(found.z), -1).tolist()
    columns = ["label"] if not labels or len(labels[0]) == 1 else [f"label{i}" for i in range(len(labels[0]))]
    of_class = bool(class_names and labels and columns == ["label"])
    header = ["name"] * bool(names) + columns * bool(labels) + ["class"] * of_class + ["cost"]
    yield [*header, *(f"z{i}" for i in range(found.z.shape[1]))]
    for i, (z, cost) in enumerate(zip(found.z.numpy(), found.cost.numpy(), strict=True)):
        row: list[Any] = [names[i]] if names else []
        row += labels[i] if labels else []
        if of_class:
            row.append(class_names[labels[i][0]] if labels[i][0] >= 0 else "")
        yield [*row, *map(str, (cost, *z))]
