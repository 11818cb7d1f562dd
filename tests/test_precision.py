"""Half precision, TF32 and devices without float64: what must stay exact."""

import contextlib
import copy
import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from wae_lightning.costs import (
    AbsoluteError,
    BinaryCrossEntropy,
    Euclidean,
    SquaredError,
    chamfer_distance,
    sinkhorn_distance,
)
from wae_lightning.joint_mmd import JointMMD
from wae_lightning.kernels import squared_distances
from wae_lightning.metrics.point_clouds import pairwise_distances
from wae_lightning.networks import (
    AlignedConvEncoder,
    ConditionalConvDecoder,
    ConditionalConvEncoder,
    ConditionalMLPDecoder,
    ConditionalMLPEncoder,
    ConvDecoder,
    ConvEncoder,
    CouplingFlow,
    Critic,
    FlowMatching,
    FoldingDecoder,
    FullyConnectedDecoder,
    MixtureFlow,
    PointNetEncoder,
    SeedDecoder,
    UNetDecoder,
    WhitenedPCA,
)
from wae_lightning.networks.convolutional import to_pixels
from wae_lightning.penalties import MMD, Adversarial, CramerWold, Sinkhorn
from wae_lightning.pointnet import upright_pose
from wae_lightning.precision import full_float32, in_float64
from wae_lightning.priors import Normal, Sphere, Uniform

HALVES = [torch.bfloat16, torch.float16]
PART = (1, 14, 28)
DECODERS = {
    "convolutional": (lambda: ConvDecoder(4), [(4,)]),
    "convolutional, stride 2": (lambda: ConvDecoder(4, (3, 16, 16), last_stride=2), [(4,)]),
    "conditional perceptron": (lambda: ConditionalMLPDecoder(4, PART, PART), [PART, (4,)]),
    "conditional convolutional": (lambda: ConditionalConvDecoder(4, PART, PART), [PART, (4,)]),
    "conditional on a label": (lambda: ConditionalConvDecoder(4, (1, 28, 28), (10,)), [(10,), (4,)]),
    "U-Net": (lambda: UNetDecoder(4, PART, PART, (4, 8)), [PART, (4,)]),
    "fully connected": (lambda: FullyConnectedDecoder(4, 20), [(4,)]),
    "seeds": (lambda: SeedDecoder(4, 20), [(4,)]),
    "folding": (lambda: FoldingDecoder(4, 20), [(4,)]),
}
ENCODERS = {
    "convolutional": (lambda: ConvEncoder(latent_dim=4), [(1, 28, 28)]),
    "conditional perceptron": (lambda: ConditionalMLPEncoder([PART, PART], 4, standardize=True), [PART, PART]),
    "conditional convolutional": (lambda: ConditionalConvEncoder([PART, PART], 4), [PART, PART]),
    "aligned": (lambda: AlignedConvEncoder([PART, PART], 4, standardize=True), [PART, PART]),
    "PointNet": (lambda: PointNetEncoder(4, input_transform=True, feature_transform=True), [(30, 3)]),
    "PointNet in a box": (lambda: PointNetEncoder(16, box=True), [(30, 3)]),
}


def inputs(shapes):
    return [torch.rand(6, *shape) for shape in shapes]


# ---- half precision -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("name", DECODERS)
def test_decoders_put_out_float32_under_autocast_and_with_weights_in_half_precision(name, half):
    make, shapes = DECODERS[name]
    decoder, given = make().eval(), inputs(shapes)
    with torch.no_grad():
        expected = decoder(*given)
        with torch.autocast("cpu", half):
            found = decoder(*given)
        with_half_weights = decoder.to(half)(*given)
    for output in (found, with_half_weights):
        assert output.dtype == torch.float32
        torch.testing.assert_close(output, expected, rtol=0.1, atol=0.02)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_with_weights_in_half_precision_take_float32(name, half):
    make, shapes = ENCODERS[name]
    encoder, given = make().eval(), inputs(shapes)
    with torch.no_grad():
        expected = encoder(*given)
        torch.testing.assert_close(encoder.to(half)(*given).float(), expected, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("logit", [-20.0, -9.0, 0.0, 5.0, 9.0, 12.0, 15.0])
@pytest.mark.parametrize("target", [0.0, 0.3, 1.0])
def test_the_cross_entropy_of_a_saturated_pixel_is_that_of_float64(logit, target, half):
    exact = torch.full((1, 1), logit, dtype=torch.float64, requires_grad=True)
    x = torch.full((1, 1), target)
    expected = nn.functional.binary_cross_entropy_with_logits(exact, x.double())
    expected.backward()
    given = torch.full((1, 1), logit, requires_grad=True)
    with torch.autocast("cpu", half):
        cost = BinaryCrossEntropy()(x, to_pixels(given.to(half)))
    cost.sum().backward()
    assert cost.dtype == torch.float32
    assert cost.item() == pytest.approx(expected.item(), rel=0.02, abs=1e-6)
    assert given.grad.item() == pytest.approx(exact.grad.item(), rel=0.02, abs=1e-4)


@pytest.mark.parametrize("logit", [18.0, 100.0, 1e4])
def test_a_pixel_beyond_float32_still_has_its_gradient(logit):
    given = torch.full((1, 1), logit, requires_grad=True)
    cost = BinaryCrossEntropy()(torch.zeros(1, 1), to_pixels(given))
    cost.sum().backward()
    assert 15 < cost.item() < 17
    assert given.grad.item() == pytest.approx(1.0, rel=0.01)


@pytest.mark.parametrize("half", HALVES)
def test_the_cross_entropy_of_a_foreign_sigmoid_in_half_precision_is_finite(half):
    logits = torch.tensor([[-100.0, -20, -9, 9, 20, 100]], requires_grad=True)
    for target in (torch.zeros(1, 6), torch.ones(1, 6)):
        cost = BinaryCrossEntropy()(target, logits.to(half).sigmoid())
        (gradient,) = torch.autograd.grad(cost.sum(), logits)
        assert cost.isfinite().all()
        assert not gradient.isnan().any()


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("cost", [SquaredError(), AbsoluteError(), Euclidean(), BinaryCrossEntropy()])
def test_costs_sum_in_float32(cost, half):
    target, reconstruction = torch.rand(4, 1, 28, 28).to(half), torch.rand(4, 1, 28, 28).clamp(0.1, 0.9).to(half)
    expected = cost(target.double(), reconstruction.double())
    with torch.autocast("cpu", half):
        found = cost(target, reconstruction)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("half", HALVES)
def test_critic_and_components_take_codes_and_images_of_any_precision(half):
    penalty = Adversarial(Critic(4, 16, 2), log_prior=True)
    penalty.set_prior(Normal(4, 2.0))
    z, z_prior = torch.randn(30, 4), 2 * torch.randn(30, 4)
    expected, expected_loss = penalty(z, z_prior), penalty.critic_loss(z, z_prior)[0]
    penalty.to(half)
    for precision in (torch.float32, half):
        found, loss = penalty(z.to(precision), z_prior.to(precision)), penalty.critic_loss(z, z_prior)[0]
        assert found.dtype == loss.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=0.05, atol=0.01)
        torch.testing.assert_close(loss, expected_loss, rtol=0.05, atol=0.01)
    features, x = WhitenedPCA(3, (1, 4, 4)), torch.rand(200, 1, 4, 4)
    features.fit(x)
    expected = features(x)
    with torch.autocast("cpu", half):
        torch.testing.assert_close(features(x), expected)
    features.to(half).fit(x.to(half))
    for precision in (torch.float32, half):
        assert features(x.to(precision)).dtype == torch.float32
    signs = (features(x) * expected).mean(0).sign()
    torch.testing.assert_close(signs * features(x), expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("prior", [Normal(4), Uniform(4, 2.0), Sphere(4, 3.0)], ids=str)
def test_priors_draw_and_project_in_float32_whatever_the_default(prior):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # as Lightning does in the steps of bf16-true
    try:
        z = prior.sample(1000)
    finally:
        torch.set_default_dtype(before)
    assert z.dtype == torch.float32
    assert len(z[:, 0].unique()) > 990
    if not isinstance(prior, Normal):
        features = torch.randn(50, 4).bfloat16()
        torch.testing.assert_close(prior.project(features), prior.project(features.float()))


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize(
    "flow", [CouplingFlow(4, layers=3), MixtureFlow(4, 5), FlowMatching(4)], ids=lambda x: type(x).__name__
)
def test_flows_with_weights_in_half_precision_are_computed_in_float32(flow, half):
    flow = copy.deepcopy(flow).to(half)
    # the same rounded weights
    exact, x = copy.deepcopy(flow).double(), torch.randn(20, 4)
    for found, expected in zip(flow(x), exact(x.double()), strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(flow.inverse(x).double(), exact.inverse(x.double()), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(flow.log_prob(x).double(), exact.log_prob(x.double()), rtol=1e-4, atol=1e-4)


# ---- TF32 and autocast: emulated ------------------------------------------------------------------------------------

PRODUCTS = {torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm, torch.ops.aten.baddbmm}


def rounded(x):
    """To TF32's 10 bits after the leading one."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2**11).round() / 2**11, exponent)


class TF32(TorchDispatchMode):
    """Rounds the factors of float32 matrix products as a GPU does once the user has allowed it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in PRODUCTS and torch.get_float32_matmul_precision() != "highest":
            args = [
                rounded(x) if isinstance(x, torch.Tensor) and x.dtype == torch.float32 and i >= len(args) - 2 else x
                for i, x in enumerate(args)
            ]
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def tf32():
    torch.set_float32_matmul_precision("high")
    try:
        with TF32():
            yield
    finally:
        torch.set_float32_matmul_precision("highest")


ROUNDINGS = pytest.mark.parametrize(
    "rounding", [tf32, lambda: torch.autocast("cpu", torch.bfloat16)], ids=["TF32", "autocast"]
)


def near_clouds():
    torch.manual_seed(0)
    a = torch.rand(3, 200, 3)
    return a, a + 0.01 * torch.randn_like(a)


def flow_matching():
    torch.manual_seed(0)
    return FlowMatching(8)


def mixture():
    torch.manual_seed(0)
    flow = MixtureFlow(4, components=20)
    with torch.no_grad():
        flow.means.mul_(5)
        flow.log_diagonal.fill_(math.log(10))
    return flow


def components(x):
    features = WhitenedPCA(8, (1, 8, 8))
    features.fit(10 + x)
    return features(10 + x[:50]).abs()


def joint(z):
    penalty = JointMMD()
    penalty.set_prior(Normal(2))
    return penalty(z, torch.cat([z.flip(0)[:, :2], z[:, 2:]], dim=1))


def of_penalty(penalty, z):
    penalty.set_prior(Normal(8))
    return penalty(z, z.flip(1))


CODES = torch.randn(60, 8, generator=torch.Generator().manual_seed(1))
IMAGES = torch.rand(300, 1, 8, 8, generator=torch.Generator().manual_seed(2))
EXACT = {
    "squared distances": lambda: squared_distances(CODES + 3, CODES * 1.001 + 3),
    "mmd": lambda: of_penalty(MMD(), CODES),
    "cramer-wold": lambda: of_penalty(CramerWold(), CODES),
    "sinkhorn divergence": lambda: of_penalty(Sinkhorn(), CODES),
    "joint mmd": lambda: joint(CODES[:, :5]),
    "pairwise distances": lambda: pairwise_distances(*near_clouds()),
    "chamfer": lambda: chamfer_distance(*near_clouds()),
    "sinkhorn": lambda: sinkhorn_distance(*near_clouds(), blur=0.005),
    "mixture, z": lambda: mixture()(5 * CODES[:, :4])[0],
    "mixture, log-density": lambda: mixture().log_prob(5 * CODES[:, :4]),
    "mixture, inverse": lambda: mixture().inverse(CODES[:, :4]),
    "coupling": lambda: CouplingFlow(8)(CODES)[0],
    "coupling, inverse": lambda: CouplingFlow(8).inverse(CODES),
    "flow matching": lambda: flow_matching().to_normal(CODES),
    "flow matching, inverse": lambda: flow_matching().inverse(CODES),
    "components": lambda: components(IMAGES),
    "pose": lambda: upright_pose(near_clouds()[0]),
}


@ROUNDINGS
@pytest.mark.parametrize("name", EXACT)
def test_what_must_be_exact_is_not_rounded(name, rounding):
    expected = EXACT[name]()
    with rounding():
        found = EXACT[name]()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@ROUNDINGS
@pytest.mark.parametrize("way", [lambda a, b: pairwise_distances(a, b).diagonal(), chamfer_distance])
def test_distances_of_near_clouds_are_those_of_float64(way, rounding):
    a, b = near_clouds()
    squares = (a.double().unsqueeze(2) - b.double().unsqueeze(1)).square().sum(3)
    with rounding():
        found = way(a, b)
    torch.testing.assert_close(found.double(), squares.amin(2).mean(1) + squares.amin(1).mean(1), rtol=2e-3, atol=0)


@ROUNDINGS
def test_the_emulated_rounding_rounds(rounding):
    x = torch.rand(50, 50)
    exact = x.double() @ x.double()
    with rounding():
        assert 1e-4 < ((x @ x).double() - exact).abs().max() < 0.5
        with full_float32(x.device):
            assert ((x @ x).double() - exact).abs().max() < 2e-5


@pytest.mark.parametrize("way", ["function", "flags"])
def test_the_users_choice_is_put_back(way):
    backends = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]
    if way == "flags" and not hasattr(backends[0], "fp32_precision"):
        pytest.skip("this PyTorch has one function only")

    def choice():
        return torch.get_float32_matmul_precision() if way == "function" else [b.fp32_precision for b in backends]

    try:
        if way == "function":
            torch.set_float32_matmul_precision("high")
        else:
            backends[0].fp32_precision = "tf32"
        before = choice()
        with full_float32(torch.device("cpu")):
            assert choice() in ("highest", ["ieee", "ieee"])
        assert choice() == before
    finally:
        torch.set_float32_matmul_precision("highest")


# ---- float64 --------------------------------------------------------------------------------------------------------


class OnAppleGPU:
    """Stands for a tensor on a device without float64, and notes what is asked of it."""

    device = torch.device("mps")

    def cpu(self):
        return torch.ones(2)

    def double(self):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")


def test_float64_is_never_asked_of_a_device_without_it():
    found = in_float64(OnAppleGPU())
    assert found.dtype == torch.float64
    assert found.device.type == "cpu"
