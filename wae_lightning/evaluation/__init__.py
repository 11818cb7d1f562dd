"""Measures of trained models: ``evaluate(model, data)`` chooses those that fit the model.

``data`` is a LightningDataModule, of ours or of your own; of point clouds it has ``train_set`` and ``test_set`` after
``setup("fit")``, with ``points`` and ``labels``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wae_lightning import ConditionalWAE, PointNetWAE
from wae_lightning.base import WAE
from wae_lightning.evaluation.clouds import evaluate_clouds
from wae_lightning.evaluation.codes import Codes, encode_batches
from wae_lightning.evaluation.completions import evaluate_completions
from wae_lightning.evaluation.images import compare_pictures, evaluate_images
from wae_lightning.evaluation.labels import evaluate_labels
from wae_lightning.refinement import reconstruction_by

__all__ = [
    "Codes",
    "compare_pictures",
    "encode_batches",
    "evaluate",
    "evaluate_clouds",
    "evaluate_completions",
    "evaluate_images",
    "evaluate_labels",
]


def evaluate(
    model: WAE,
    data: Any = None,
    num_samples: int = 10_000,
    seed: int = 0,
    features: str = "auto",
    inception_weights: Path | None = None,
    classifier: Path | None = None,
    refine_steps: int = 0,
) -> dict[str, float]:
    """Measures a model of images, of point clouds or of completions.

    Args:
        model: The model, in evaluation mode.
        data: Its data module. None: of images, only what needs no data is measured.
        num_samples: How many images are drawn from each sampler, at least 2.
        seed: Seed of the samples.
        features: Of images, see :func:`wae_lightning.evaluation.images.choose_features`.
        inception_weights: See there.
        classifier: File of the judge of point clouds; None: one is trained.
        refine_steps: Of reconstructions, see :meth:`WAE.encode`; a conditional model takes none.

    Returns:
        The measures by name.

    Raises:
        ValueError: If an argument is out of its range, or the model needs data and there is none.
    """
    if num_samples < 2:
        raise ValueError(f"num_samples must be at least 2, got {num_samples}")
    reconstruction_by(model, refine_steps)  # refuses what it cannot
    if isinstance(model, ConditionalWAE) and len(model.condition_shape) == 1 and data is not None:
        return evaluate_labels(model, data, num_samples, seed, features, inception_weights)
    if isinstance(model, ConditionalWAE):
        return evaluate_completions(model, data, seed, features, inception_weights)
    if isinstance(model, PointNetWAE):
        found = evaluate_clouds(model, data, classifier, seed, refine_steps)
    else:
        found = evaluate_images(model, data, num_samples, seed, features, inception_weights, refine_steps)
    return found | ({"refine_steps": refine_steps} if refine_steps else {})
