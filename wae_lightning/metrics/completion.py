"""Measures of completions: how near the truth, how many different ones, how independent of what was given."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.utilities import dim_zero_cat

from wae_lightning.kernels import RBF
from wae_lightning.metrics.digit_classifier import DigitClassifier
from wae_lightning.precision import in_float64, in_full_precision

__all__ = [
    "CodeDependence",
    "CompletionMetrics",
    "binary_cross_entropy",
    "entropy_of_labels",
    "frechet_distance",
    "hsic",
    "hsic_over_null",
    "mean_pairwise_distance",
    "negative_log_likelihood",
    "r_squared",
    "ranks_of_truth",
]


def binary_cross_entropy(target: Tensor, completions: Tensor) -> Tensor:
    """Summed binary cross-entropy -Σ [x log y + (1 - x) log(1 - y)] in nats.

    The target is taken as it is, grey (the protocol of Pyro's CVAE example): a perfect completion does not score 0.

    Args:
        target: (B, P) in [0, 1].
        completions: (B, n, P) in [0, 1].

    Returns:
        Shape (B, n).
    """
    # log(y) is cut at -100, as PyTorch's own binary cross-entropy does
    present, absent = completions.log().clamp_min(-100), (-completions).log1p().clamp_min(-100)
    return -(present * target.unsqueeze(1) + absent * (1 - target).unsqueeze(1)).sum(2)


def negative_log_likelihood(log_weights: Tensor) -> Tensor:
    r"""Importance-weighted estimate :math:`-\log \frac{1}{K} \sum_k w_k` of the negative log-likelihood.

    With weights p(y | x, z) at draws z from the prior it is the Monte-Carlo estimate, with p(y | x, z) p(z) / q(z | x,
    y) at draws from the encoder the tighter one of Y. Burda et al., "Importance weighted autoencoders", ICLR 2016.

    Args:
        log_weights: (B, K).

    Returns:
        Shape (B,).
    """
    return math.log(log_weights.shape[1]) - log_weights.logsumexp(1)


def entropy_of_labels(labels: Tensor, num_classes: int = 10) -> Tensor:
    """Entropy in nats of how often each label occurs in each row: integers (B, n) -> (B,)."""
    shares = F.one_hot(labels, num_classes).float().mean(1)
    entropy: Tensor = torch.special.entr(shares).sum(1)
    return entropy


def mean_pairwise_distance(features: Tensor) -> Tensor:
    """Mean Euclidean distance between two different rows: (..., n, F) -> (...), n at least 2.

    Raises:
        ValueError: If n is less than 2.
    """
    n = features.shape[-2]
    if n < 2:
        raise ValueError(f"a pairwise distance needs at least 2 completions, got {n}")
    # by differences: equal completions must have the distance 0 exactly
    distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.sum((-2, -1)) / (n * (n - 1))


def ranks_of_truth(truth: Tensor, completions: Tensor) -> Tensor:
    """How many of n completions lie below the truth, ties broken at random: (B, P), (B, n, P) -> integers (B, P).

    If the truth is a draw from the same distribution as the completions, each rank from 0 to n is equally likely. T.
    Hamill, "Interpretation of rank histograms for verifying ensemble forecasts", Monthly Weather Review 2001.
    """
    below = (completions < truth.unsqueeze(1)).sum(1)
    equal = (completions == truth.unsqueeze(1)).sum(1)
    return below + (torch.rand(below.shape, device=below.device) * (equal + 1)).long()


def hsic(x: Tensor, z: Tensor) -> Tensor:
    """Hilbert-Schmidt independence criterion tr(K H L H) / n² with Gaussian kernels of median bandwidth.

    A. Gretton et al., "Measuring statistical dependence with Hilbert-Schmidt norms", ALT 2005.

    Args:
        x: (n, p).
        z: (n, d).

    Returns:
        A scalar, 0 or more.
    """
    return (_centered_kernel(x) * _centered_kernel(z)).sum() / len(x) ** 2


def hsic_over_null(x: Tensor, z: Tensor) -> Tensor:
    """HSIC over its mean when the rows of ``z`` are permuted at random: about 1 if x and z are independent.

    That mean is tr(HKH) tr(HLH) / (n² (n - 1)) exactly, so nothing is drawn. Under dependence the ratio grows like n:
    compare only values for the same n.

    Args:
        x: (n, p).
        z: (n, d).

    Returns:
        A scalar.
    """
    of_x, of_z = _centered_kernel(x), _centered_kernel(z)
    return (of_x * of_z).sum() * (len(x) - 1) / (of_x.trace() * of_z.trace())


def _centered_kernel(x: Tensor) -> Tensor:
    k: Tensor = RBF()(x, x)
    centered: Tensor = k - k.mean(0) - k.mean(1, keepdim=True) + k.mean()
    return centered


def r_squared(x: Tensor, z: Tensor) -> Tensor:
    """Share of the variance of ``z`` (n, d) that a linear regression on ``x`` (n, p), with intercept, explains."""
    x, z = (in_float64(rows - rows.mean(0)) for rows in (x, z))
    residual = z - x @ torch.linalg.pinv(x) @ z
    unexplained: Tensor = residual.square().sum() / z.square().sum()
    return (1 - unexplained).float()


class CodeDependence(Metric):
    """How far codes depend on features of the observed part: ``hsic_over_null`` and ``r_squared``.

    Args:
        hsic_codes: HSIC is computed on the first so many codes: its cost is quadratic, and its ratio to the null grows
            with them. R² takes all codes.
    """

    names = ("hsic_over_null", "r_squared")
    x: list[Tensor]
    z: list[Tensor]
    full_state_update = False

    def __init__(self, hsic_codes: int = 2000, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.hsic_codes = hsic_codes
        self.add_state("x", default=[], dist_reduce_fx="cat")
        self.add_state("z", default=[], dist_reduce_fx="cat")

    def update(self, features: Tensor, z: Tensor) -> None:
        """Adds features of observed parts (B, p) and the codes E(x, y) that go with them, (B, d)."""
        self.x.append(features)
        self.z.append(z)

    def compute(self) -> dict[str, Tensor]:
        """Returns the two measures by name; of a single code there are none."""
        x, z = dim_zero_cat(self.x), dim_zero_cat(self.z)
        if len(x) < 2:
            return {}
        n = self.hsic_codes
        return {"hsic_over_null": hsic_over_null(x[:n], z[:n]), "r_squared": r_squared(x, z)}


def frechet_distance(x: Tensor, y: Tensor) -> Tensor:
    r"""Fréchet distance of two normal distributions with the means and covariances of the rows, in float64.

    .. math::
        \|\mu_x - \mu_y\|^2 + \mathrm{tr}\big(\Sigma_x + \Sigma_y - 2 (\Sigma_x \Sigma_y)^{1/2}\big)

    D. Dowson, B. Landau, "The Fréchet distance between multivariate normal distributions", 1982; of the features of
    images it is the FID of M. Heusel et al., NeurIPS 2017.

    Args:
        x: (n, F), n at least 2.
        y: (m, F), m at least 2.

    Returns:
        A float32 scalar.

    Raises:
        ValueError: If the shapes are others, or a number is not finite.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(
            f"the Fréchet distance (FID) compares the features of at least 2 examples, (n, F), with those of at least "
            f"2 others, (m, F); got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    of_x, of_y = in_float64(x), in_float64(y)
    if not (of_x.isfinite().all() and of_y.isfinite().all()):
        raise ValueError("the Fréchet distance (FID) takes finite features, and some are not")
    covariances = of_x.T.cov().view(x.shape[1], -1), of_y.T.cov().view(x.shape[1], -1)
    # the trace of the root of a product is the sum of the roots of its eigenvalues, which are real and not negative
    roots = torch.linalg.eigvals(covariances[0] @ covariances[1]).real.clamp(min=0).sqrt()
    distance: Tensor = (
        (of_x.mean(0) - of_y.mean(0)).square().sum() + sum(c.trace() for c in covariances) - 2 * roots.sum()
    )
    return distance.float().to(x.device)


_MEANS = (
    "agreement", "agreement_reference", "bce", "bce_best", "edges", "edges_real", "label_entropy",
    "label_entropy_reference", "mse", "psnr", "psnr_best", "psnr_of_mean", "spread", "ssim", "ssim_best",
)  # fmt: skip


class CompletionMetrics(Metric):
    """Everything that can be said of n completions of each image without asking the model how it made them.

    Means over all images of, in the hidden part:

    - ``mse``: mean squared error; ``psnr``, ``psnr_of_mean``, ``psnr_best``: peak signal-to-noise ratio of one
      completion, of the pixelwise mean of the n, and of the best of them; ``ssim``, ``ssim_best``: structural
      similarity of the whole images, at least 6 x 6.
    - ``bce``, ``bce_best``: summed binary cross-entropy in nats.
    - ``rank_error``: distance in total variation of the rank histogram from the flat one, in [0, 1), over 16 fixed
      random projections of the hidden part: 0 if the truth looks like one more completion.
    - ``diversity``: mean distance between two completions of one image over that between two real images of one class.
    - ``sharpness_ratio``: mean absolute Laplacian (each pixel against its four neighbours) over that of real images.

    With a classifier:

    - ``agreement``: share of completions that get the true label; ``label_entropy``: entropy in nats of the n labels.
    - ``agreement_reference``, ``label_entropy_reference``, if ``label_probabilities`` are given: the same for labels
      drawn from them. With p(label | observed part) a perfect model reaches these values: more agreement than that is
      too little variety.
    - ``fid``: Fréchet distance of one completion of each image from the real images, in the classifier's features. A
      model without any diversity can score well on it: never quote it without ``diversity`` and ``label_entropy``.
    - ``fid_floor``: the same distance between two completions of each image: what a perfect model's would be from the
      real images, if its completions were spread like these. Given pixels are the same on both sides.

    Args:
        mask: Boolean (1, height, width): True where the image is observed; None: nowhere.
        classifier: Classifier of digits; None for other images: diversity is then measured in pixels.
    """

    real_features: list[Tensor]
    completed_features: list[Tensor]
    other_features: list[Tensor]
    real_labels: list[Tensor]
    ranks: list[Tensor]
    sums: Tensor
    counts: Tensor
    full_state_update = False

    def __init__(self, mask: Tensor | None = None, classifier: DigitClassifier | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mask = mask
        self.classifier = classifier
        self.add_state("completed_features", default=[], dist_reduce_fx="cat")
        self.add_state("other_features", default=[], dist_reduce_fx="cat")
        self.add_state("real_features", default=[], dist_reduce_fx="cat")
        self.add_state("real_labels", default=[], dist_reduce_fx="cat")
        self.add_state("ranks", default=[], dist_reduce_fx="cat")
        # of each mean: over how many images it is, since labels may be known of some only
        self.add_state("sums", default=torch.zeros(len(_MEANS), dtype=torch.float32), dist_reduce_fx="sum")
        self.add_state("counts", default=torch.zeros(len(_MEANS), dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self,
        images: Tensor,
        completed: Tensor,
        labels: Tensor | None = None,
        label_probabilities: Tensor | None = None,
        hidden: Tensor | None = None,
    ) -> None:
        """Adds images and their completions.

        Args:
            images: True images (B, C, H, W) in [0, 1].
            completed: Completed images (B, n, C, H, W), n at least 2.
            labels: True labels (B,).
            label_probabilities: p(label | observed part), (B, classes), of a calibrated classifier.
            hidden: Boolean (1 or B, 1, H, W): True where an image is not observed; None: as ``mask`` says.

        Raises:
            ValueError: If the shapes do not fit together, there is only one completion, or other numbers of them than
                before.
        """
        if completed.ndim != 5 or completed.shape[:1] + completed.shape[2:] != images.shape or completed.shape[1] < 2:
            raise ValueError(
                f"expected images (B, C, H, W) and n >= 2 completions of each, (B, n, C, H, W); got "
                f"{tuple(images.shape)} and {tuple(completed.shape)}"
            )
        images, completed = in_full_precision(images), in_full_precision(completed)
        n = completed.shape[1]
        if len(self.ranks) and self.ranks[0].shape[-1] != n + 1:
            raise ValueError(f"expected {self.ranks[0].shape[-1] - 1} completions of each image, as before, got {n}")
        if hidden is None:
            hidden = torch.ones_like(images[:1, :1]) > 0 if self.mask is None else ~self.mask.to(images.device)[None]
        # 0 outside of what is hidden, where holes differ from image to image: there nothing adds to what follows
        y, ys = (images * hidden).flatten(1), (completed * hidden.unsqueeze(1)).flatten(2)
        pixels = hidden.expand(len(images), *images.shape[1:]).flatten(1).sum(1).clamp(min=1)
        psnr = _psnr(ys, y.unsqueeze(1), pixels.unsqueeze(1))
        edges = laplacian(torch.cat([images.unsqueeze(1), completed], dim=1)).abs() * hidden.unsqueeze(1)
        edges = edges.flatten(2).sum(2) / pixels.unsqueeze(1)
        bce = binary_cross_entropy(y, ys)
        values = {
            "psnr": psnr.mean(1),
            "mse": (ys - y.unsqueeze(1)).square().sum(2).mean(1) / pixels,
            "psnr_of_mean": _psnr(ys.mean(1), y, pixels),
            "psnr_best": psnr.amax(1),
            "bce": bce.mean(1),
            "bce_best": bce.amin(1),
            "edges": edges[:, 1:].mean(1),
            "edges_real": edges[:, 0],
        }
        if min(images.shape[2:]) > 5:  # else its Gaussian window does not fit in
            ssim = structural_similarity_index_measure(
                completed.flatten(0, 1), images.repeat_interleave(n, 0), data_range=1.0, reduction="none"
            )
            assert isinstance(ssim, Tensor)
            values |= {"ssim": ssim.view(-1, n).mean(1), "ssim_best": ssim.view(-1, n).amax(1)}
        if self.classifier is None:
            features, real = ys, y
        else:
            features = self.classifier.features(completed.flatten(0, 1)).view(len(images), n, -1)
            real = self.classifier.features(images)
            predicted = self.classifier.output(features).argmax(2)
            values["label_entropy"] = entropy_of_labels(predicted)
            if labels is not None:
                values["agreement"] = (predicted == labels.unsqueeze(1)).float().mean(1)
                if label_probabilities is not None:
                    values["agreement_reference"] = label_probabilities.gather(1, labels.unsqueeze(1)).squeeze(1)
                    drawn = label_probabilities.multinomial(n, replacement=True)
                    values["label_entropy_reference"] = entropy_of_labels(drawn)
            self.completed_features.append(features[:, 0])
            self.other_features.append(features[:, 1])
        values["spread"] = mean_pairwise_distance(features)
        for name, value in values.items():
            self.sums[_MEANS.index(name)] += value.sum()
            self.counts[_MEANS.index(name)] += len(images)
        self.real_features.append(real)
        unknown = torch.full((len(images),), -1, device=real.device)
        self.real_labels.append(unknown if labels is None else labels)
        directions = torch.randn(y.shape[1], 16, generator=torch.Generator().manual_seed(0)).to(y)
        ranks = ranks_of_truth(y @ directions, ys @ directions)
        self.ranks.append(torch.bincount(ranks.flatten(), minlength=n + 1).unsqueeze(0))

    def compute(self) -> dict[str, Tensor]:
        """Returns the measures by name; those of which nothing is known are left out."""
        means = self.sums / self.counts
        results = {name: mean for name, mean, count in zip(_MEANS, means, self.counts.tolist(), strict=True) if count}
        features, labels = dim_zero_cat(self.real_features), dim_zero_cat(self.real_labels)
        # 500 of a class are 125,000 pairs, far more than the mean needs
        known = labels[labels >= 0]
        classes = [features[labels == label][:500] for label in torch.unique(known if len(known) else labels)]
        real = [mean_pairwise_distance(of_class) for of_class in classes if len(of_class) > 1]
        spread = results.pop("spread")
        results["sharpness_ratio"] = results.pop("edges") / results.pop("edges_real")
        if real:
            results["diversity"] = spread / torch.stack(real).mean()
        histogram = dim_zero_cat(self.ranks).sum(0)
        shares = histogram / histogram.sum()
        results["rank_error"] = 0.5 * (shares - 1 / len(shares)).abs().sum()
        if self.classifier is not None and len(features) > 1:
            completed = dim_zero_cat(self.completed_features)
            results["fid"] = frechet_distance(features, completed)
            results["fid_floor"] = frechet_distance(completed, dim_zero_cat(self.other_features))
        return results


def _psnr(completions: Tensor, truth: Tensor, pixels: Tensor) -> Tensor:
    """Of each completion (..., P), of whose pixels so many (...) count: (...)."""
    return 10 * torch.log10(pixels / (completions - truth).square().sum(-1))


def laplacian(images: Tensor) -> Tensor:
    """What each pixel of images (..., H, W) differs by from its four neighbours, summed; at the edge from itself."""
    padded = F.pad(images.flatten(0, -4) if images.ndim > 4 else images, (1, 1, 1, 1), mode="replicate")
    around = padded[..., :-2, 1:-1] + padded[..., 2:, 1:-1] + padded[..., 1:-1, :-2] + padded[..., 1:-1, 2:]
    return around.view_as(images) - 4 * images
