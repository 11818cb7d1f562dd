"""What a training step would take if its kernels were launched together, as CUDA graphs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.competitors import bare_step
from benchmarks.training import run_of
from benchmarks.turns import Options, seconds_of
from wae_lightning import WAE

__all__ = ["graphs"]


def _as_graph(step: Callable[[], None]) -> Callable[[], None]:
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def _networks_as_graphs(model: WAE, x: torch.Tensor, bf16: bool) -> tuple[nn.Module, nn.Module]:
    z = torch.randn(len(x), model.latent_dim, device=x.device, requires_grad=True)
    networks = copy.deepcopy(model.encoder), copy.deepcopy(model.decoder)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
        return torch.cuda.make_graphed_callables(networks, ((x.clone(),), (z,)))  # type: ignore[return-value]


def graphs(options: Options) -> dict[str, Any]:
    """Milliseconds of a step in plain PyTorch: as it is, with networks as CUDA graphs, and whole as one."""
    device, steps = options.device, 2 if options.quick else 40
    rows: dict[str, Any] = {}

    def ms(step: Callable[[], None]) -> float:
        def many() -> None:
            for _ in range(steps):
                step()

        many()
        return 1e3 * min(seconds_of(many, device) / steps for _ in range(2))

    for config in ("mnist_wae_mmd", "mnist_wae_mmd_paper")[: 1 if options.quick else None]:
        run = run_of(options, config)
        for bf16 in (False, True)[: 1 if config == "mnist_wae_mmd" else None]:
            model: Any = copy.deepcopy(run.model).train().to(device)
            x = torch.rand(run.datamodule.batch_size, 1, 28, 28, device=device)
            row = rows[f"{config}, {'bf16' if bf16 else 'TF32'}"] = {"ms": ms(bare_step(model, x, bf16))}
            if device.type == "cuda":
                encoder, decoder = _networks_as_graphs(model, x, bf16)
                row["networks as graphs, ms"] = ms(bare_step(model, x, bf16, encoder, decoder))
                row["one graph, ms"] = ms(_as_graph(bare_step(model, x, bf16)))
    return rows
