"""Sorting is that of PyTorch, in values, gradients and transforms."""

import numpy as np
import pytest
import torch

from wae_lightning.sorting import in_order


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_are_pytorchs(dtype, dim):
    given = torch.randn(30, 40, dtype=dtype)[:, ::2]  # not contiguous
    weights = torch.randn(30, 20, dtype=dtype)
    found = []
    for sort in (lambda x: x.sort(dim).values, lambda x: in_order(x, dim)):
        x = given.clone().requires_grad_()
        y = sort(x)
        (y * weights).sum().backward()
        found.append((y.detach(), x.grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_what_is_not_finite_comes_where_pytorch_puts_it():
    x = torch.tensor([[1.0, float("nan"), -float("inf"), float("inf"), 0.0]])
    torch.testing.assert_close(in_order(x), x.sort().values, equal_nan=True)


def test_gradients_are_right():
    x = torch.from_numpy(np.random.default_rng(0).permutation(24).reshape(4, 6).astype(float)).requires_grad_()
    assert torch.autograd.gradcheck(in_order, (x,))
    assert torch.autograd.gradgradcheck(in_order, (x,))


def test_transforms_see_no_numpy():
    x, weights = torch.randn(5, 7), torch.arange(7.0)
    expected = torch.zeros(5, 7).scatter_(1, x.sort().indices, weights.expand(5, 7))
    torch.testing.assert_close(torch.func.grad(lambda x: (in_order(x) * weights).sum())(x), expected)
    exported = torch.export.export(_Sorted(), (x,)).module()
    torch.testing.assert_close(exported(x), x.sort().values)


class _Sorted(torch.nn.Module):
    def forward(self, x):
        return in_order(x)
