"""PointNet WAE: a Wasserstein auto-encoder of point sets."""

from __future__ import annotations

from typing import Any, Literal

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from wae_lightning.base import WAE
from wae_lightning.costs import ChamferDistance, Cost, check_point_sets, transport_plan
from wae_lightning.kernels import squared_distances
from wae_lightning.lightning import rank_zero_warn
from wae_lightning.networks.pointnet import FullyConnectedDecoder, PointNetEncoder
from wae_lightning.noise import EncoderNoise
from wae_lightning.precision import full_float32, in_full_precision
from wae_lightning.priors import Normal, Prior

__all__ = ["PointNetWAE", "assign", "upright_pose"]

_AXES = ("x", "y", "z")


def upright_pose(points: Tensor, up_axis: Literal["x", "y", "z"] = "y") -> Tensor:
    """Finds the rotation about the up axis that brings each point set into a pose of its own.

    In the plane across the up axis, the direction of largest variance becomes the first axis, which points to the side
    of positive skewness. The second follows from it, since a rotation mirrors nothing. Sets that are round, or as heavy
    on both sides of the first axis' origin, have no such pose; for them the choice among equals is left to rounding.

    Args:
        points: Point sets (B, N, 3).
        up_axis: The axis that is up.

    Returns:
        Rotations R (B, 3, 3): ``points @ R`` are the turned sets, ``turned @ R.transpose(1, 2)`` the sets again.
    """
    up = _AXES.index(up_axis)
    across = [axis for axis in range(3) if axis != up]
    with full_float32(points.device):
        points = in_full_precision(points)
        centered = points - points.mean(1, keepdim=True)
        plane = centered[:, :, across]
        covariance = plane.transpose(1, 2) @ plane
        angle = 0.5 * torch.atan2(2 * covariance[:, 0, 1], covariance[:, 0, 0] - covariance[:, 1, 1])
        first = torch.stack([angle.cos(), angle.sin()], dim=1)
        sign = (plane @ first.unsqueeze(2)).pow(3).sum((1, 2)).sign()
    first = first * torch.where(sign == 0, 1.0, sign).unsqueeze(1)
    rotation = points.new_zeros(points.shape[0], 3, 3)
    rotation[:, up, up] = 1
    rotation[:, across[0], across[0]] = rotation[:, across[1], across[1]] = first[:, 0]
    rotation[:, across[1], across[0]] = first[:, 1]
    rotation[:, across[0], across[1]] = -first[:, 1]
    return rotation


class PointNetWAE(WAE):
    r"""Wasserstein auto-encoder of point sets, with a PointNet encoder and the Chamfer distance as cost.

    Batches are point sets (B, N, 3), or a tuple that begins with one; N may differ from ``num_points``, and from batch
    to batch. The rows of a point set have no order, so the cost must not depend on it: under the row-by-row squared
    error the best output for every input is one blob in the middle (see ``modelnet40_pointnet_report``). Arguments that
    are not listed are those of :class:`~wae_lightning.base.WAE`.

    Args:
        encoder: Network (B, N, 3) -> (B, d), or (B, 2d) with ``GaussianNoise``. None: ``PointNetEncoder``.
        decoder: Network (B, d) -> (B, num_points, 3). None: ``FullyConnectedDecoder``.
        prior: Distribution of the codes. None: N(0, I) in ``latent_dim`` dimensions.
        cost: c. None: the squared Chamfer distance.
        penalty_weight: λ.
        noise: How codes are drawn from the encoder's output. None: deterministic.
        coupling: Share of each training batch, from 0 to 1, that is decoded from between its code and a draw from the
            prior. No penalty makes the codes of a small training set fill the prior, and where no code lies the decoder
            is not trained. So the latest codes are assigned to as many fresh draws from the prior by exact optimal
            transport (least total squared distance); for this share of the batch, the decoder takes a point drawn
            uniformly from the line between code and partner, and answers for the code's own point set. The partners
            of all codes follow the prior. (On a GPU the assignment is drawn from an entropic plan, see
            :func:`assign`.)
        coupling_weight: Weight of the mean squared distance per dimension between codes and partners in the loss.
        coupled_codes: How many of the latest codes are assigned together, at least 1.
        orthogonality_weight: Weight of the encoder's departure from orthogonal feature transforms in the loss; without
            transforms it has no effect. PointNet's is 0.001.
        invariance: What the codes shall not depend on: ``rotation`` about the up axis, ``scale``, or both. Each set is
            then brought into a pose (see :func:`upright_pose`) and to root-mean-square radius 1 before it is encoded,
            cost and samples are those of sets in that form, and ``model(x)`` undoes it.
        up_axis: The axis that is up.
        num_points: Number of points of the decoder that is left None.
        latent_dim: d for a prior that is left None; None means 128.
        input_range: Least and largest coordinate; None: any finite numbers.
        **kwargs: See :class:`~wae_lightning.base.WAE`.

    Raises:
        ValueError: If an argument is out of its range or two parts do not fit together.

    Example:
        >>> model = PointNetWAE(num_points=256, latent_dim=16)
        >>> model.encode(torch.rand(2, 300, 3)).shape, model.sample(3).shape
        (torch.Size([2, 16]), torch.Size([3, 256, 3]))
    """

    def __init__(
        self,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        prior: Prior | None = None,
        cost: Cost | None = None,
        penalty_weight: float = 0.01,
        noise: EncoderNoise | None = None,
        coupling: float = 0.0,
        coupling_weight: float = 0.0,
        coupled_codes: int = 512,
        orthogonality_weight: float = 0.001,
        invariance: list[Literal["rotation", "scale"]] | None = None,
        up_axis: Literal["x", "y", "z"] = "y",
        num_points: int = 2048,
        latent_dim: int | None = None,
        input_range: tuple[float, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not 0 <= coupling <= 1 or coupled_codes < 1:
            raise ValueError(
                f"coupling must lie between 0 and 1 and coupled_codes be at least 1, got {coupling} and {coupled_codes}"
            )
        for name, weight in (("coupling_weight", coupling_weight), ("orthogonality_weight", orthogonality_weight)):
            if not weight >= 0:
                raise ValueError(f"{name} must be 0 or more, got {weight}")
        if kwargs.get("flow") is not None and (coupling > 0 or coupling_weight > 0):
            raise ValueError("take either a flow or coupling, not both: each is there to make samples follow the prior")
        unknown = set(invariance or ()) - {"rotation", "scale"}
        if unknown:
            raise ValueError(f"invariance is of rotation or scale, got {', '.join(sorted(unknown))}")
        if up_axis not in _AXES:
            raise ValueError(f"up_axis must be one of x, y, z, got {up_axis!r}")
        d = prior.latent_dim if prior is not None else 128 if latent_dim is None else latent_dim
        features = 1 if noise is None else noise.features_per_dimension
        super().__init__(
            encoder=PointNetEncoder(d * features) if encoder is None else encoder,
            decoder=FullyConnectedDecoder(d, num_points) if decoder is None else decoder,
            prior=Normal(d) if prior is None else prior,
            cost=ChamferDistance() if cost is None else cost,
            penalty_weight=penalty_weight,
            noise=noise,
            latent_dim=latent_dim,
            input_range=input_range,
            **kwargs,
        )
        if isinstance(self.encoder, PointNetEncoder) and isinstance(self.decoder, FullyConnectedDecoder):
            boxes = [part.box is not None for part in (self.encoder, self.decoder)]
            if boxes[0] != boxes[1]:
                name = "encoder" if boxes[0] else "decoder"
                rank_zero_warn(
                    f"the bounding box is treated by itself by the {name} only: box is for both, and the decoder has "
                    "it from 13 latent dimensions on"
                )
        self.coupling = coupling
        self.coupling_weight = coupling_weight
        self.coupled_codes = coupled_codes
        self.orthogonality_weight = orthogonality_weight
        self.invariance = tuple(invariance or ())
        self.up_axis: Literal["x", "y", "z"] = up_axis

    def _into_pose(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the sets in the form that is encoded, and the rotations and the scales that lead there."""
        posed = in_full_precision(x)
        rotation = torch.eye(3, device=x.device, dtype=posed.dtype).expand(x.shape[0], 3, 3)
        scale = posed.new_ones(x.shape[0], 1, 1)
        if "rotation" in self.invariance:
            rotation = upright_pose(posed, self.up_axis)
            with full_float32(x.device):
                posed = posed @ rotation
        if "scale" in self.invariance:
            scale = posed.square().sum(2).mean(1).sqrt().clamp(min=1e-12).view(-1, 1, 1)
            posed = posed / scale
        return posed.to(x.dtype), rotation, scale

    def encode(self, x: Tensor, noise: bool | None = None, refine_steps: int = 0) -> Tensor:
        """Encodes point sets (B, N, 3), see :meth:`WAE.encode`; any order of the points gives the same code."""
        check_point_sets(x)
        return super().encode(self._into_pose(x)[0] if self.invariance else x, noise, refine_steps)

    def forward(self, x: Tensor, refine_steps: int = 0) -> Tensor:
        """Reconstructs point sets (B, N, 3), in their own pose and scale; ``refine_steps`` as in :meth:`WAE.encode`."""
        check_point_sets(x)
        if not self.invariance:
            return super().forward(x, refine_steps)
        posed, rotation, scale = self._into_pose(x)
        reconstruction = in_full_precision(super().forward(posed, refine_steps))
        with full_float32(x.device):
            return reconstruction * scale @ rotation.transpose(1, 2)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> tuple[Tensor, Tensor]:
        """Returns codes (B, latent_dim) and reconstructions (B, num_points, 3)."""
        x = self.inputs_of(batch)
        return self.encode(x), self(x)

    def inputs_of(self, batch: Any) -> Tensor:
        """The point sets (B, N, 3) in a batch."""
        x: Tensor = super().inputs_of(batch)
        check_point_sets(x)
        return x

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        if batch_idx == 0:
            # once an epoch: on a GPU it waits for the device
            _check_extent(self.inputs_of(batch))
        return super().training_step(batch, batch_idx)

    def draw_codes(self, x: Tensor) -> Tensor:
        return super().draw_codes(self._into_pose(x)[0] if self.invariance else x)

    def terms(self, x: Tensor, code: Tensor) -> dict[str, Tensor]:
        """As in the base class; beside these ``orthogonality`` of T-Nets and ``coupling``, where they have a weight."""
        if self.invariance:
            x = self._into_pose(x)[0]
        own = code[:: self.penalty.codes_per_input]
        terms: dict[str, Tensor] = {}
        if self.coupling == 0 and self.coupling_weight == 0:
            terms |= super().terms(x, code)
        else:
            partner = self._prior_partners(own.detach())
            moved = own
            if self.training:
                chosen = torch.rand(len(x), 1, device=x.device) < self.coupling
                way = torch.rand(len(x), 1, device=x.device) * chosen
                moved = own + way * (partner - own.detach())
            terms["cost"] = self._mean_cost(x, self._decode(moved))
            terms["coupling"] = (own.float() - partner).square().mean()
        if isinstance(self.encoder, PointNetEncoder):
            terms["orthogonality"] = self.encoder.orthogonality()
        return terms

    def term_weights(self) -> dict[str, float]:
        weights = super().term_weights()
        if self.coupling > 0 or self.coupling_weight > 0:
            weights["coupling"] = self.coupling_weight
        if isinstance(self.encoder, PointNetEncoder):
            weights["orthogonality"] = self.orthogonality_weight
        return weights

    @torch.no_grad()
    def _prior_partners(self, code: Tensor) -> Tensor:
        """Assigns a draw from the prior to each code (B, latent_dim), together with the latest codes."""
        code = code.float()
        codes = torch.cat([code, self.memory.latest(self.coupled_codes - len(code), like=code)])
        draws = self.prior_like(codes)
        with full_float32(codes.device):
            distances = squared_distances(codes, draws)
        return draws.index_select(0, assign(distances)[: len(code)])


def assign(distances: Tensor) -> Tensor:
    """Assigns a column of squared distances (n, n) to each row, so that the total is small, int64 (n,).

    On the CPU by exact optimal transport. On other devices, where the host would wait for the distances and the device
    for the host, each row's column is drawn from an entropic plan: of 512 codes of 8 to 128 dimensions the total is
    about 5 % above the least, and each column is drawn once on average (between 0.9 and 1.1 times).
    """
    if distances.device.type == "cpu":
        return torch.from_numpy(linear_sum_assignment(distances.numpy())[1])
    plan: Tensor = transport_plan((distances / distances.mean()).unsqueeze(0), blur=0.02**0.5, iterations=30)[0]
    return (plan / torch.empty_like(plan).exponential_()).argmax(1)


def _check_extent(x: Tensor) -> None:
    """Refuses point sets (B, N, 3) of a single place, and warns of ones that are far from normalised."""
    radius, empty = torch.stack([x.abs().amax(), (x.amax(1) == x.amin(1)).all(1).float().argmax()]).tolist()
    if x.shape[1] > 1 and bool((x[int(empty)].amax(0) == x[int(empty)].amin(0)).all()):
        raise ValueError(f"point set {int(empty)} of the first batch has all points in one place")
    if radius > 100:
        rank_zero_warn(
            f"point sets reach {radius:.4g} from the origin, and the cost grows with the square: normalise them, as "
            "ModelNet40DataModule does, to about the unit ball"
        )
