"""A normalizing flow: an invertible network between codes and a normal prior."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["CouplingFlow"]


class _Coupling(nn.Module):
    """Shifts and scales one half of the dimensions by functions of the other half."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.kept = dim // 2
        changed = dim - self.kept
        self.network = nn.Sequential(
            nn.Linear(self.kept, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 2 * changed),
        )
        last = self.network[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def shift_and_log_scale(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = self.network(kept).chunk(2, dim=1)
        # a factor of at most e^1.5 for each layer keeps codes far from the data from blowing up
        return shift, 1.5 * torch.tanh(log_scale / 1.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, changed = x[:, : self.kept], x[:, self.kept :]
        shift, log_scale = self.shift_and_log_scale(kept)
        return torch.cat([kept, (changed + shift) * log_scale.exp()], dim=1), log_scale.sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        kept, changed = z[:, : self.kept], z[:, self.kept :]
        shift, log_scale = self.shift_and_log_scale(kept)
        return torch.cat([kept, changed * (-log_scale).exp() - shift], dim=1)


class CouplingFlow(nn.Module):
    """Affine coupling layers with fixed permutations of the dimensions between them. At the start it only permutes.

    L. Dinh, J. Sohl-Dickstein, S. Bengio, "Density estimation using Real NVP", ICLR 2017.

    Args:
        dim: Number of dimensions d, at least 2.
        layers: Number of coupling layers.
        hidden: Units of the two hidden layers of each.

    Raises:
        ValueError: If a size is too small.

    Example:
        >>> flow = CouplingFlow(4)
        >>> x = torch.randn(3, 4)
        >>> z, log_determinant = flow(x)
        >>> torch.allclose(flow.inverse(z), x, atol=1e-5), log_determinant.shape
        (True, torch.Size([3]))
    """

    orders: Tensor

    def __init__(self, dim: int, layers: int = 8, hidden: int = 128) -> None:
        super().__init__()
        if dim < 2 or layers < 1 or hidden < 1:
            raise ValueError(
                f"a flow needs at least 2 dimensions, 1 layer and 1 hidden unit, got {dim}, {layers}, {hidden}"
            )
        self.couplings = nn.ModuleList(_Coupling(dim, hidden) for _ in range(layers))
        # the same ones for every model, whatever the seed
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("orders", torch.stack([torch.randperm(dim, generator=generator) for _ in range(layers)]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps points (B, d) to (B, d); also returns log |det| of the Jacobian, (B,)."""
        # under mixed precision, too: rounded to bfloat16 in between, the inverse would not be one
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(next(self.parameters()).dtype)
            log_determinant = x.new_zeros(x.shape[0])
            for coupling, order in zip(self.couplings, self.orders, strict=True):
                x, of_layer = coupling(x[:, order])
                log_determinant = log_determinant + of_layer
        return x, log_determinant

    def inverse(self, z: Tensor) -> Tensor:
        """Maps (B, d) back."""
        with torch.autocast(z.device.type, enabled=False):
            z = z.to(next(self.parameters()).dtype)
            for coupling, order in zip(reversed(self.couplings), self.orders.flip(0), strict=True):
                z = coupling.inverse(z)[:, order.argsort()]  # type: ignore[operator]
        return z
