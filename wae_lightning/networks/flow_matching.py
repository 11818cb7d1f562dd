"""A continuous flow between codes and a normal prior, learnt by conditional flow matching."""

from __future__ import annotations

import itertools
import math

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from wae_lightning.networks.flow import Flow, like
from wae_lightning.precision import full_float32, in_full_precision

__all__ = ["FlowMatching"]


class FlowMatching(Flow):
    r"""Points that move from N(0, I) to the codes along a learnt velocity field, smoothly.

    The field regresses on the velocities of straight lines, :math:`E\,\|v((1 - t)\,z + t\,x, t) - (x - z)\|^2` with z
    from N(0, I), x a code and t uniform: Y. Lipman et al., "Flow matching for generative modeling", ICLR 2023; A. Tong
    et al., "Improving and generalizing flow-based generative models with minibatch optimal transport", TMLR 2024. With
    ``transport`` each batch's z and x are first paired by exact optimal transport (their OT-CFM), which straightens the
    paths. It is the smooth one among the flows: where a ``MixtureFlow`` tears neighbours apart, between clusters, this
    one stretches. It takes no condition.

    The inverse takes ``steps`` explicit midpoint steps from z to x, and ``forward`` undoes each of these by a fixed
    number of fixed-point iterations, so that the two are inverse to one another, and the determinant is that of the map
    as it is computed. That holds to 10⁻⁵ while no step stretches distances by more than about a half; a field that is
    steeper needs more steps. The determinant, and so the log-density, costs d times as much as the map.

    Args:
        dim: Number of dimensions d, at least 2.
        hidden: Units of each of the three hidden layers of the velocity field.
        steps: Number of midpoint steps.
        transport: Pair each batch by optimal transport. It is found on the CPU, for which a GPU waits in each step.

    Raises:
        ValueError: If a size is too small.

    Example:
        >>> flow = FlowMatching(4)
        >>> x = torch.randn(3, 4)
        >>> torch.allclose(flow.inverse(flow.to_normal(x)), x, atol=1e-5), flow.log_prob(x).shape
        (True, torch.Size([3]))
    """

    frequencies: Tensor

    def __init__(self, dim: int = 8, hidden: int = 256, steps: int = 16, transport: bool = False) -> None:
        super().__init__(dim)
        if hidden < 1 or steps < 1:
            raise ValueError(f"a flow needs at least 1 hidden unit and 1 step, got {hidden}, {steps}")
        self.steps = steps
        self.transport = transport
        self.layers = nn.ModuleList(
            nn.Linear(inputs, outputs)
            for inputs, outputs in ((dim + 9, hidden), (hidden, hidden), (hidden, hidden), (hidden, dim))
        )
        self.register_buffer("frequencies", math.pi * torch.arange(1.0, 5.0))

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """The velocity, (n, d), of points x (n, d) at times t (n, 1): 0 at the prior, 1 at the codes."""
        h = self._inputs(x, t)
        for i, layer in enumerate(self.layers):
            h = F.linear(h if i == 0 else F.silu(h), like(x, layer.weight), like(x, layer.bias))  # type: ignore[arg-type]
        return h

    def _inputs(self, x: Tensor, t: Tensor) -> Tensor:
        angles = t * like(t, self.frequencies)
        return torch.cat([x, t, angles.sin(), angles.cos()], dim=1)

    def _derivative(self, x: Tensor, t: Tensor) -> Tensor:
        """The derivative of the velocity by x, (n, d, d), carried through the layers."""
        h, derivative = self._inputs(x, t), like(x, self.layers[0].weight)[:, : self.dim].expand(len(x), -1, -1)  # type: ignore[arg-type]
        for layer, following in itertools.pairwise(self.layers):
            h = F.linear(h, like(x, layer.weight), like(x, layer.bias))  # type: ignore[arg-type]
            share = h.sigmoid()
            derivative = like(x, following.weight) @ ((share * (1 + h * (1 - share))).unsqueeze(2) * derivative)  # type: ignore[arg-type]
            h = h * share
        return derivative

    def loss(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """The mean squared error of velocities, for each dimension, between codes (n, d) and as many fresh draws."""
        self._check(x, condition)
        with full_float32(x.device):
            x = self._at_home(x)
            z, t = torch.randn_like(x), torch.rand_like(x[:, :1])
            if self.transport:
                z = z[self._partners(x.detach(), z)]
            return (self.velocity(torch.lerp(z, x, t), t) - (x - z)).square().mean()

    @staticmethod
    def _partners(x: Tensor, z: Tensor) -> Tensor:
        distances = torch.cdist(x, z, compute_mode="donot_use_mm_for_euclid_dist").square()
        return torch.from_numpy(linear_sum_assignment(distances.cpu().numpy())[1]).to(x.device)

    def _at_home(self, x: Tensor) -> Tensor:
        """In full precision, at least that of the weights, and where they are."""
        x = in_full_precision(x)
        weight = self.frequencies
        return x.to(device=weight.device, dtype=torch.promote_types(x.dtype, weight.dtype))

    def _step(self, x: Tensor, time: float, sign: int = 1) -> Tensor:
        """How far a midpoint step of size 1 / steps moves points (n, d); with sign -1: what a step back takes off."""
        step = sign / self.steps
        t = torch.full_like(x[:, :1], time)
        half = x + 0.5 * step * self.velocity(x, t)
        return abs(step) * self.velocity(half, t + 0.5 * step)

    def _back(self, x: Tensor, time: float) -> Tensor:
        """The point from which a step leads to x: the best of ten fixed-point iterations from a step backwards."""
        start = x - self._step(x, time + 1 / self.steps, -1)
        best, least = start, torch.full_like(x[:, :1], math.inf)
        for _ in range(10):
            following = x - self._step(start, time)
            error = (following - start).square().sum(1, keepdim=True)
            best, least = torch.where(error < least, start, best), torch.minimum(error, least)
            start = following
        return best

    def inverse(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        self._check(z, condition)
        with full_float32(z.device):
            x = self._at_home(z)
            for i in range(self.steps):
                x = x + self._step(x, i / self.steps)
        return self._result(x, z)

    def to_normal(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        self._check(x, condition)
        with full_float32(x.device):
            z = self._at_home(x)
            for i in reversed(range(self.steps)):
                z = self._back(z, i / self.steps)
        return self._result(z, x)

    def _derivative_of_step(self, x: Tensor, time: float) -> Tensor:
        """The derivative of a step's result by its start, (n, d, d)."""
        step, t = 1 / self.steps, torch.full_like(x[:, :1], time)
        own = torch.eye(self.dim, dtype=x.dtype, device=x.device)
        half = x + 0.5 * step * self.velocity(x, t)
        to_half = own + 0.5 * step * self._derivative(x, t)
        return own + step * self._derivative(half, t + 0.5 * step) @ to_half

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check(x, condition)
        with full_float32(x.device):
            z = self._at_home(x)
            log_determinant = z.new_zeros(len(z))
            for i in reversed(range(self.steps)):
                z = self._back(z, i / self.steps)
                derivative = self._derivative_of_step(z, i / self.steps)
                log_determinant = log_determinant - torch.linalg.slogdet(derivative).logabsdet
        return self._result(z, x), self._result(log_determinant, x)
