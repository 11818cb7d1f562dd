"""Times the Chamfer distance, forward and backward, beside the form with the full matrix of distances.

python experiments/chamfer_speed.py [--device cuda]
"""

from __future__ import annotations

import argparse
import resource
import time

import torch
from torch import Tensor

from wae_lightning.costs import chamfer_distance


def full_matrix(a: Tensor, b: Tensor) -> Tensor:
    """The textbook form: all distances, differentiated through."""
    distances = (a.unsqueeze(2) - b.unsqueeze(1)).square().sum(3)
    return distances.amin(2).mean(1) + distances.amin(1).mean(1)


def seconds(distance: object, a: Tensor, b: Tensor, repeats: int) -> float:
    """CPU time, or time until the GPU is done, of one forward and backward pass."""
    clock = time.process_time if a.device.type == "cpu" else time.perf_counter
    best = float("inf")
    for _ in range(repeats):
        start = clock()
        b.grad = None
        distance(a, b).mean().backward()  # type: ignore[operator]
        if a.is_cuda:
            torch.cuda.synchronize()
        best = min(best, clock() - start)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--points", type=int, default=2048)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    a, b = (torch.randn(arguments.batch, arguments.points, 3).div(3).to(arguments.device) for _ in range(2))
    b.requires_grad_()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fast = seconds(chamfer_distance, a, b, repeats=5)
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    value, gradient = chamfer_distance(a, b), b.grad
    assert gradient is not None
    # an eighth of the batch, for the memory's sake
    part = max(arguments.batch // 8, 1)
    x, y = a[:part], b[:part].detach().requires_grad_()
    slow = seconds(full_matrix, x, y, repeats=1) * arguments.batch / part
    difference = (full_matrix(x.double(), y.detach().double()) - value[:part]).abs().max()
    print(f"batch {arguments.batch}, {arguments.points} points, {a.device}, one thread")
    print(f"  chamfer_distance {fast:8.3f} s, {memory:.0f} MB more than before")
    print(f"  full matrix      {slow:8.3f} s, {slow / fast:.0f} times as long")
    print(f"  largest difference to the full matrix in float64: {difference:.1e}")


if __name__ == "__main__":
    main()
