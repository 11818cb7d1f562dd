"""Deliberate faults, each of which some test must notice: ``mutate.py`` applies them one by one."""

from typing import NamedTuple

__all__ = ["FAULTS", "Fault"]


class Fault(NamedTuple):
    """One place of a file, what stands there, what is put there, and the test files that should notice."""

    file: str
    before: str
    after: str
    tests: str
    """Names under ``tests/`` without ``test_`` and ``.py``, parted by blanks."""


KERNELS, PRIORS, COSTS, NOISE = (f"wae_lightning/{name}.py" for name in ("kernels", "priors", "costs", "noise"))
MMD, CRAMER_WOLD, WASSERSTEIN, ADVERSARIAL = (
    f"wae_lightning/penalties/{name}.py" for name in ("mmd", "cramer_wold", "wasserstein", "adversarial")
)
IMAGES, CLOUDS, COMPLETIONS = (f"wae_lightning/metrics/{name}.py" for name in ("images", "point_clouds", "completion"))
POINTNET, FLOW = (f"wae_lightning/networks/{name}.py" for name in ("pointnet", "flow"))
SAMPLERS, SCHEDULES = "wae_lightning/samplers.py", "wae_lightning/schedules.py"
FIGURES, MNIST_ROWS = (f"experiments/reproduce/{name}.py" for name in ("figures", "mnist_results"))

FAULTS = [
    # those that survived the whole suite together, as far as their files are here
    Fault(IMAGES, "_share_inside(samples, real, _radii(real,",
          "_share_inside(real, samples, _radii(samples,", "image_metrics"),
    Fault(COSTS, "chamfer_distance(target, reconstruction, self.squared)",
          "chamfer_distance(target, reconstruction)", "costs"),
    Fault(CRAMER_WOLD, "(4 / (3 * n)) ** 0.4", "(4 / (3 * n)) ** 0.2", "penalties"),
    Fault(NOISE, "a=-2 * self.std, b=2 * self.std", "a=-self.std, b=self.std", "base"),
    Fault(FIGURES, '["WAE-MMD", "WAE-GAN"], names', '["WAE-GAN", "WAE-MMD"], names', "figures reproduce"),
    # kernels and priors
    Fault(KERNELS, "squared * (-0.5 / bandwidth**2)", "squared * (-1.0 / bandwidth**2)", "kernels"),
    Fault(KERNELS, "column].median()", "column].mean()", "kernels"),
    Fault(KERNELS, "value=-c)", "value=c)", "kernels penalties"),
    Fault(KERNELS, "if self._c_from_prior:", "if self.c is None:", "kernels penalties base"),
    Fault(PRIORS, "return 2.0 * self.latent_dim * self.scale**2\n",
          "return 2.0 * self.latent_dim * self.scale\n", "priors"),
    Fault(PRIORS, "self.scale**2 / 3.0", "self.scale**2", "priors"),
    Fault(PRIORS, "-0.5 * (z / self.scale).square()", "-0.5 * z.square()", "priors penalties"),
    Fault(PRIORS, "self.scale * F.normalize(z)", "F.normalize(z)", "priors"),
    # penalties
    Fault(MMD, "weights[n:, n:] = 1 / (m * (m - 1))", "weights[n:, n:] = 1 / (m * m)", "penalties"),
    Fault(MMD, "return mean_off_diagonal(within) +", "return within.mean() +", "penalties"),
    Fault(MMD, "(as_large + 1) / (permutations + 1)", "as_large / permutations", "penalties evaluate"),
    Fault(CRAMER_WOLD, "self.prior_variance = prior.scale**2", "self.prior_variance = prior.scale", "penalties"),
    Fault(WASSERSTEIN, "return 2 * self.loss(z, z_prior)", "return self.loss(z, z_prior)", "penalties"),
    Fault(WASSERSTEIN, "directions).argmax()", "directions).argmin()", "penalties"),
    Fault(ADVERSARIAL, "self.gradient_penalty * gradient.square().sum(1)",
          "self.gradient_penalty * gradient.square().mean(1)", "penalties gan"),
    Fault(ADVERSARIAL, "logits + self.prior.log_prob(z)", "logits - self.prior.log_prob(z)", "penalties gan"),
    Fault(ADVERSARIAL, "(of_codes.detach() < 0)", "(of_codes.detach() > 0)", "penalties gan"),
    # costs
    Fault(COSTS, "from_a.mean(1) + from_b.mean(1)", "from_a.mean(1) + from_a.mean(1)", "costs"),
    Fault(COSTS, ".sqrt().mean(1)", ".mean(1)", "costs"),
    Fault(COSTS, "+ 1e-8).sqrt()", ").sqrt()", "costs"),
    # noise, samplers, schedules
    Fault(NOISE, "math.sqrt(1 - self.std**2) * features", "(1 - self.std) * features", "base"),
    Fault(NOISE, "self.initial_std**2 * log_variance", "self.initial_std * log_variance", "base"),
    Fault(SAMPLERS, "self._roots[chosen] @ noise", "self._roots[chosen].mT @ noise", "samplers"),
    Fault(SAMPLERS, "torch.multinomial(self.weights,", "torch.multinomial(torch.ones_like(self.weights),", "samplers"),
    Fault(SCHEDULES, "if epoch >= start", "if epoch > start", "schedules"),
    # metrics
    Fault(IMAGES, "0.299, 0.587, 0.114", "0.114, 0.587, 0.299", "image_metrics"),
    Fault(IMAGES, "kthvalue(k + 1, dim=1)", "kthvalue(k, dim=1)", "image_metrics"),
    Fault(CLOUDS, "torch.unique(across.argmin(1))", "torch.unique(across.argmin(0))", "point_metrics"),
    Fault(CLOUDS, '"MMD": across.amin(0).mean()', '"MMD": across.amin(1).mean()', "point_metrics"),
    Fault(CLOUDS, "fill_diagonal_(torch.inf)", "fill_diagonal_(0)", "point_metrics"),
    Fault(COMPLETIONS, "(n * (n - 1))", "n**2", "completion_metrics"),
    Fault(COMPLETIONS, "math.log(log_weights.shape[1]) - ", "-", "completion_metrics"),
    Fault(COMPLETIONS, "* (len(x) - 1) / (", "* len(x) / (", "completion_metrics"),
    # networks
    Fault(POINTNET, "0.5 * excess.square()", "excess.square()", "pointnet"),
    Fault(FLOW, "self.weight_logits.log_softmax(0) + self.log_diagonal.sum(1)",
          "self.weight_logits + self.log_diagonal.sum(1)", "flow"),
    # the scripts behind RESULTS
    Fault(MNIST_ROWS, "statistics.stdev(v)", "statistics.pstdev(v)", "reproduce"),
]  # fmt: skip
