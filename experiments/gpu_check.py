"""Checks everything on one NVIDIA GPU, correctness first, then speed: ``python experiments/gpu_check.py``.

Each part is a process with a time limit, and one that fails is a row like the others. The JSON file is written after
each part; the last lines are the table. ``--device cpu --quick`` shows that the check itself runs.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any
from unittest import mock

from reproduce.records import EXPERIMENTS, commit, write_json

MARK = "RESULT "
VALUE_ERROR, GRADIENT_ERROR = 1e-3, 1e-2
"""Largest relative errors, against float64, of a part that is right."""

TRAINING_SETS = {"mnist": 60_000, "modelnet40": 9_843}

# ---- parts, each in a process of its own: functions of the device and of what follows the part's name ----------------


def machine(device: str) -> dict[str, Any]:
    """What is here, and how fast bytes and launches are."""
    import torch
    from benchmark import machine as described
    from benchmarks.turns import Options, median, seconds_of

    found = described(Options(torch.device(device)))
    if device == "cpu":
        return found
    x, host = torch.empty(2**30, dtype=torch.uint8, device=device), torch.empty(2**28, dtype=torch.uint8)
    y, pinned, small = torch.empty_like(x), host.pin_memory(), torch.zeros(1, device=device)
    actions = {
        "copy, GB/s": (2 * x.nbytes / 1e9, lambda: y.copy_(x)),
        "host to device, GB/s": (host.nbytes / 1e9, lambda: y[: len(host)].copy_(host)),
        "the same, pinned": (host.nbytes / 1e9, lambda: y[: len(host)].copy_(pinned)),
        "launches, thousand/s": (1.0, lambda: [small.add_(1) for _ in range(1000)]),
    }
    for name, (amount, action) in actions.items():
        action()
        found[name] = amount / median([seconds_of(action, torch.device(device)) for _ in range(5)])
    return found


def parts(device: str) -> dict[str, Any]:
    """Relative errors of each penalty, cost, flow, noise and prior, and of its gradient, against float64 on the CPU."""
    import torch

    from wae_lightning import costs, kernels, networks, noise, penalties, priors
    from wae_lightning.joint_mmd import JointMMD
    from wae_lightning.penalties import wasserstein
    from wae_lightning.pointnet import assign

    EXACT = (penalties.Penalty, costs.Cost, networks.Flow, noise.EncoderNoise)
    rows: dict[str, Any] = {}
    prior = priors.Normal(16)
    z, z_prior = 0.7 * torch.randn(200, 16) + 0.3, torch.randn(200, 16)
    x, y = torch.rand(2, 4, 200, 3)

    def compare(name: str, part: Any, run: Any, *inputs: Any) -> None:
        for precision in ("highest", "high") if device == "cuda" else ("highest",):
            torch.set_float32_matmul_precision(precision)
            torch.backends.cudnn.allow_tf32 = precision == "high"  # PyTorch's default, also under "highest"
            found = []
            for where, dtype in (("cpu", torch.float64), (device, torch.float32)):
                part.to(where, dtype)
                given = [value.clone().to(where, dtype).requires_grad_() for value in inputs]
                torch.manual_seed(0)
                values = run(part)(*given)
                gradients = torch.autograd.grad(values.sum(), given, allow_unused=True)
                found.append([tensor.double().cpu() for tensor in (values, *gradients) if tensor is not None])
            errors = [float((a - b).norm() / a.norm().clamp(min=1e-9)) for a, b in zip(*found, strict=True)]
            row = {"value": errors[0], "gradient": max(errors[1:], default=0.0)}
            # factors of a backward product may be rounded to TF32, those of networks also in the forward pass
            inexact = precision == "high" and not isinstance(part, EXACT)
            wrong = errors[0] > (GRADIENT_ERROR if inexact else VALUE_ERROR)
            wrong |= precision == "highest" and row["gradient"] > GRADIENT_ERROR
            rows[name + ", TF32 allowed" * (precision == "high")] = row | ({"FAILED": "not exact"} if wrong else {})
        torch.set_float32_matmul_precision("highest")

    def attempt(name: str, make: Any, run: Any, *inputs: Any) -> None:
        try:
            part = make()
            if isinstance(part, penalties.Penalty):
                part.set_prior(prior)
            compare(name, part, run, *inputs)
        except ImportError as error:
            rows[name] = {"left out": str(error)[:80]}
        except Exception as error:
            rows[name] = {"FAILED": f"{type(error).__name__}: {str(error)[:200]}"}

    directions = torch.nn.functional.normalize(torch.randn(16, 50), dim=0)
    for name in penalties.__all__:
        cls = getattr(penalties, name)
        if not (isinstance(cls, type) and issubclass(cls, penalties.Penalty)) or name in ("NoPenalty", "Penalty"):
            continue
        arguments = {"dataset_size": 1000} if name == "MMDPlusPlus" else {}
        # random directions would be others on another device
        with mock.patch.object(wasserstein, "_random_directions", lambda z, count: directions.to(z)):
            attempt(name, lambda cls=cls, arguments=arguments: cls(**arguments), lambda p: p, z, z_prior)
    features = torch.rand(200, 10)
    attempt("JointMMD", JointMMD, lambda p: p, torch.cat([z, features], 1), torch.cat([z_prior, features], 1))
    for kernel in ("RBF", "Laplacian"):
        attempt(f"MMD, {kernel}", lambda k=kernel: penalties.MMD(getattr(kernels, k)()), lambda p: p, z, z_prior)
    for name in costs.__all__:
        if name[0].isupper() and name not in ("Cost", "PyramidError"):
            attempt(name, getattr(costs, name), lambda cost: cost, x, y)
    pictures = torch.rand(2, 8, 3, 30, 30)
    attempt("PyramidError", lambda: costs.PyramidError(patches=1.0).eval(), lambda cost: cost, *pictures)
    attempt(
        "ChamferDistance of near clouds", costs.ChamferDistance, lambda cost: cost, x, x + 0.01 * torch.randn(x.shape)
    )
    for flow in (networks.MixtureFlow(16, 100), networks.CouplingFlow(16), networks.FlowMatching(16)):
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
        name = type(flow).__name__
        attempt(f"{name}.log_prob", lambda flow=flow: flow, lambda f: f.log_prob, z[:50])
        attempt(f"{name}.forward", lambda flow=flow: flow, lambda f: lambda z: f(z)[0], z[:50])
        attempt(f"{name}.inverse", lambda flow=flow: flow, lambda f: f.inverse, z_prior[:50])
    image, points, half = torch.rand(6, 1, 28, 28), torch.rand(6, 100, 3), (1, 14, 28)
    top = torch.rand(6, *half)
    nets: list[tuple[Any, tuple[Any, ...]]] = [
        (networks.ConvEncoder(latent_dim=16), (image,)),
        (networks.ConvDecoder(16), (z[:6],)),
        (networks.ConditionalMLPEncoder([half, half], 16), (top, top)),
        (networks.ConditionalMLPDecoder(16, half, half), (top, z[:6])),
        (networks.ConditionalConvEncoder([half, half], 16), (top, top)),
        (networks.ConditionalConvDecoder(16, half, half), (top, z[:6])),
        (networks.AlignedConvEncoder(latent_dim=16), (torch.rand(6, 2, 28, 28), image)),
        (networks.UNetDecoder(16), (torch.rand(6, 2, 28, 28), z[:6])),
        (networks.ResidualEncoder((3, 32, 32), 16, width=0.25), (torch.rand(6, 3, 32, 32),)),
        (networks.ResidualDecoder(16, (3, 32, 32), width=0.25), (z[:6],)),
        (networks.PointNetEncoder(16, input_transform=True, feature_transform=True), (points,)),
        (networks.FullyConnectedDecoder(16, 100), (z[:6],)),
        (networks.FoldingDecoder(16, 100), (z[:6],)),
        (networks.SeedDecoder(16, 128), (z[:6],)),
        (networks.PointNetClassifier(), (points,)),
        (networks.Critic(16), (z,)),
    ]
    for net, given in nets:
        attempt(type(net).__name__, net.eval, lambda net: net, *given)
    for made in (noise.EncoderNoise(), noise.FixedNoise(0.5), noise.GaussianNoise(), noise.ImplicitNoise(16)):
        features = torch.rand(200, 16 * made.features_per_dimension)
        attempt(type(made).__name__, lambda made=made: made, lambda n: n.mean, features)
    cut = noise.InputNoise(0.5).on_input(torch.zeros(200_000, device=device))
    # the deviation of a normal distribution that is cut at two of its own
    density = 2 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2))
    error = abs(float(cut.std()) / (0.5 * math.sqrt(1 - 2 * density)) - 1)
    right = error < 0.01 and float(cut.abs().max()) <= 1 + 1e-5 and abs(float(cut.mean())) < 0.005
    rows["InputNoise"] = {"deviation": error} | ({} if right else {"FAILED": "wrong draws"})
    codes, draws = z.to(device), z_prior.to(device)
    distances = torch.cdist(codes, draws).square()
    assigned, exact = (distances[range(200), assign(d).to(device)].mean().item() for d in (distances, distances.cpu()))
    rows["assignment of codes, of the exact total"] = {"share": assigned / exact} | (
        {} if exact <= 1.001 * assigned < 1.1 * exact else {"FAILED": "not near the least"}
    )
    for one in (priors.Normal(8), priors.Uniform(8), priors.Sphere(8)):
        drawn = one.sample(20_000, device=device)
        squared = float((drawn[:10_000] - drawn[10_000:]).square().sum(1).mean())
        same = torch.equal(
            one.sample(4, torch.Generator().manual_seed(0), device).cpu(),
            one.sample(4, torch.Generator().manual_seed(0)),
        )
        error = abs(squared / one.expected_squared_distance - 1)
        rows[f"prior {type(one).__name__}"] = {"moment": error} | (
            {} if same and error < 0.05 else {"FAILED": "wrong draws"}
        )
    bad = [name for name, row in rows.items() if "FAILED" in row]
    return {"rows": rows} | ({"FAILED": f"{', '.join(bad)}"} if bad else {})


def _fit(device: str, config: str, *flags: str, callbacks: tuple[Any, ...] = ()) -> Any:
    from benchmarks.training import quietly

    from wae_lightning.cli.flags import complete_flags
    from wae_lightning.cli.train import Train

    flags = (f"--config={config}", f"--accelerator={device}", "--devices=1", "--enable_model_summary=false", *flags)
    with quietly():
        cli = Train(*complete_flags([*flags, "--limit_val_batches=0"]))
        cli.trainer.callbacks[:0] = callbacks
        cli.trainer.fit(cli.model, cli.datamodule)
    return cli


def is_operator(event: Any) -> bool:
    return event is not None and event.name.startswith("aten::")


FIRST, LAST = 3, 7
"""The steps of an epoch that are watched: from the first up to, but not with, the last."""


def waits(device: str, config: str, *flags: str) -> dict[str, Any]:
    """Calls in a training step that wait for the device, as PyTorch notes them."""
    import torch

    from wae_lightning.lightning import Callback

    seen: list[warnings.WarningMessage] = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == FIRST:
                self.caught = warnings.catch_warnings(record=True)
                self.found = self.caught.__enter__()
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
            elif batch_idx == LAST:
                torch.cuda.set_sync_debug_mode("default")
                self.caught.__exit__(None, None, None)
                seen.extend(self.found)

    watching = (Watch(),) if device == "cuda" else ()
    _fit(device, config, "--max_epochs=1", f"--limit_train_batches={LAST + 1}", *flags, callbacks=watching)
    counts: dict[str, float] = {}
    for warning in (warning for warning in seen if "called a synchronizing" in str(warning.message)):
        place = f"{'/'.join(Path(warning.filename).parts[-2:])}:{warning.lineno}"
        counts[place] = counts.get(place, 0) + 1 / (LAST - FIRST)
    return {"waits per step": counts} | ({"FAILED": "a training step waits for the device"} if counts else {})


KINDS = {
    "batch norm": "batch_?norm|bn_|welford",
    "another order in memory": "converttensor|nchwto|nhwcto|transpose",
    "convolutions and matrix products": "gemm|gemv|conv|fprop|dgrad|wgrad|cutlass|xmma",
    "optimizer": "multi_tensor|adam",
    "copies": "memcpy|memset",
    "by element, sums, others": "",
}
"""Kinds of kernels, by what is in their names; the first that fits."""


def kind_of(kernel: str) -> str:
    return next(kind for kind, names in KINDS.items() if re.search(names, kernel.lower()))


def profile(device: str, config: str, *flags: str) -> dict[str, Any]:
    """Operators and kernels in a training step, and which of them take the time."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from wae_lightning.lightning import Callback

    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] * (device == "cuda")
    profiler, counter = torch.profiler.profile(activities=activities), FlopCounterMode(display=False)

    class Watch(Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx in (FIRST, LAST) and device == "cuda":
                torch.cuda.synchronize()
            if batch_idx == FIRST:
                profiler.start()
            elif batch_idx == LAST:
                profiler.stop()
                counter.__enter__()

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == LAST:
                counter.__exit__(None, None, None)

    steps = LAST - FIRST
    _fit(device, config, "--max_epochs=1", f"--limit_train_batches={LAST + 1}", *flags, callbacks=(Watch(),))
    events = profiler.events()
    kernels, of_kinds, of_names = 0.0, dict.fromkeys(KINDS, 0.0), dict[str, float]()
    for event in events:
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation:
            ms = event.time_range.elapsed_us() / 1e3 / steps
            kernels += 1 / steps
            of_kinds[kind_of(event.name)] += ms
            of_names[event.name[:150]] = of_names.get(event.name[:150], 0.0) + ms
    products = of_kinds["convolutions and matrix products"]
    row = {
        # those that others call in turn are not counted
        "operators per step": sum(is_operator(event) and not is_operator(event.cpu_parent) for event in events) / steps,
        "TFLOP per step": counter.get_total_flops() / 1e12,
    }
    return row | {
        "kernels per step": kernels,
        "GPU ms per step": sum(of_kinds.values()),
        "TFLOP/s of its products": row["TFLOP per step"] / products * 1e3 if products else 0.0,
        "ms of kinds": of_kinds,
        "ms of the longest": {name: of_names[name] for name in sorted(of_names, key=lambda name: -of_names[name])[:15]},
    }


def speed(device: str, config: str, *flags: str) -> dict[str, Any]:
    """Examples per second through Lightning, after warm-up."""
    import torch
    from benchmarks.competitors import StepTimer
    from benchmarks.turns import median

    timer = StepTimer(torch.device(device))
    steps = 12 if "--quick" in flags else 40
    flags = tuple(flag for flag in flags if flag != "--quick")
    cli = _fit(device, config, "--max_epochs=4", f"--limit_train_batches={steps}", *flags, callbacks=(timer,))
    row = {
        "examples/s": cli.datamodule.batch_size / median(timer.times[1:]),
        "ms per step": 1e3 * median(timer.times[1:]),
    }
    of_full_set = next((count for name, count in TRAINING_SETS.items() if config.startswith(name)), None)
    if of_full_set:
        row[f"s per epoch of {of_full_set:,}"] = of_full_set / row["examples/s"]
    return row | ({"peak GB": torch.cuda.max_memory_allocated() / 1e9} if device == "cuda" else {})


def benchmark(device: str, *flags: str) -> dict[str, Any]:
    """Sections of benchmark.py: against a bare loop, matrix products, other forms of MMD and Chamfer."""
    from benchmark import main

    sections, out = [flag for flag in flags if not flag.startswith("--")], Path("benchmark.json").resolve()
    options = [flag for flag in flags if flag.startswith("--")]
    main([f"--device={device}", f"--out={out}", *options, "--sections", *sections])
    found = json.loads(out.read_text())
    return {section: found[section] for section in sections}


PARTS = {part.__name__: part for part in (machine, parts, waits, profile, speed, benchmark)}

# ---- runs of the programs --------------------------------------------------------------------------------------------


def make_celeba(folder: Path, count: int = 1200) -> None:
    """Noise in CelebA's layout, and ``digit.png``: for loaders and networks it is as good as faces and digits."""
    import numpy as np
    from PIL import Image

    pictures = folder / "celeba" / "img_align_celeba"
    pictures.mkdir(parents=True)
    names = [f"{i + 1:06d}.jpg" for i in range(count)]
    draw = np.random.default_rng(0)
    Image.fromarray(draw.integers(0, 256, (28, 28), dtype=np.uint8)).save(folder / "digit.png")
    for name in names:
        Image.fromarray(draw.integers(0, 256, (27, 22, 3), dtype=np.uint8)).resize((178, 218)).save(pictures / name)
    header = f"{count}\n{' '.join(f'a{i}' for i in range(40))}\n"
    rows = "".join(f"{name} {' '.join(['-1 1'] * 20)}\n" for name in names)
    (pictures.parent / "list_attr_celeba.txt").write_text(header + rows)
    part = [0 if i < 0.8 * count else 1 if i < 0.9 * count else 2 for i in range(count)]
    partition = "".join(f"{name} {number}\n" for name, number in zip(names, part, strict=True))
    (pictures.parent / "list_eval_partition.txt").write_text(partition)


def runs_of(device: str, quick: bool, faces: Path) -> dict[str, list[list[str]]]:
    """Name -> commands that follow one another in one folder."""
    accelerator = f"--accelerator={'gpu' if device == 'cuda' else 'cpu'}"
    steps = 3 if quick else 12
    short = [
        accelerator,
        "--devices=1",
        "--enable_progress_bar=false",
        "--enable_model_summary=false",
        "--max_epochs=1",
    ]
    short += [f"--limit_{part}_batches={count}" for part, count in (("train", steps), ("val", 2), ("test", 2))]

    def train(config: str, *flags: str) -> list[str]:
        return ["train.py", f"--config={config}", *short, *flags]

    small = ["mnist_wae_mmd", "mnist_wae_gan", "mnist_conditional", "modelnet40_pointnet"]
    runs = {}
    for config in small[: 1 if quick else None]:
        conditional = config == "mnist_conditional"
        what = ["--what=completion", f"--inputs={faces}/digit.png"] if conditional else ["--what=samples"]
        drawn = ["generate.py", f"runs/{config}/version_0", *what, "--num_samples=4", "--out=s.png", accelerator]
        runs[f"{config}, generate"] = [train(config), drawn]
    if quick:
        return runs
    for config in small:
        for precision in ("32-true", "bf16-mixed", "16-mixed"):
            fit = train(config, f"--precision={precision}")
            runs[f"{config}, {precision}, resumed"] = [fit, [*fit, "--max_epochs=2", "--ckpt_path=last"]]
            runs[f"{config}, {precision}, clipped"] = [[*fit, "--gradient_clip_val=1"]]
        runs[f"{config}, compiled"] = [train(config, "--model.compile=true")]
        runs[f"{config}, workers"] = [train(config, "--data.num_workers=2")]
        runs[f"{config}, data on the host"] = [train(config, "--data.on_device=false")]
    for config in small:
        evaluate = ["evaluate.py", f"runs/{config}/version_0", "--num_samples=200", "--out=m.json", accelerator]
        runs[f"{config}, evaluate"] = [train(config), evaluate]
    runs["mnist_wae_gan, 3 critic steps, accumulated"] = [
        train("mnist_wae_gan", "--model.penalty.steps=3", "--accumulate_grad_batches=2", "--precision=16-mixed")
    ]
    runs["mnist_wae_mmd, ddp"] = [train("mnist_wae_mmd", "--strategy=ddp", "--model.gather_codes=true")]
    for config in (
        "mnist_wae_mmd_paper",
        "mnist_wae_gan_paper",
        "mnist_conditional_paper",
        "modelnet40_pointnet_paper",
    ):
        runs[config] = [train(config)]
    for config in ("celeba_wae_mmd_paper", "celeba_wae_gan_paper"):
        data = [f"--data.root={faces}", f"--data.cache_dir={faces}/{config}", "--data.batch_size=16"]
        runs[config] = [train(config, *data, "--precision=bf16-mixed")]
    return runs


def waits_of(faces: Path) -> list[tuple[str, ...]]:
    """The models whose training step must not wait."""
    celeba = (f"--data.root={faces}", f"--data.cache_dir={faces}/waits", "--data.batch_size=16")
    configs = ("mnist_wae_mmd", "mnist_wae_gan", "mnist_conditional", "modelnet40_pointnet")
    return [*(("waits", config) for config in configs), ("waits", "celeba_wae_gan_paper", *celeba)]


def speeds_of(quick: bool, faces: Path) -> list[tuple[str, ...]]:
    """Parts that measure, one after another, the most telling first."""
    if quick:
        return [("profile", "mnist_wae_mmd")]
    celeba = (f"--data.root={faces}", f"--data.cache_dir={faces}/profile")
    bf16 = "--precision=bf16-mixed"
    return [
        ("benchmark", "precision", "--minutes=2"),
        ("profile", "celeba_wae_gan_paper", *celeba, bf16), ("profile", "mnist_wae_mmd"),
        ("speed", "mnist_wae_mmd"), ("speed", "mnist_wae_mmd_paper", bf16), ("speed", "modelnet40_pointnet_paper"),
        ("speed", "mnist_wae_gan"), ("speed", "mnist_conditional"),
        ("speed", "mnist_wae_mmd", "--data.on_device=false"),
        ("benchmark", "chamfer", "mmd", "sampling"), ("benchmark", "graphs"),
    ]  # fmt: skip


# ---- the driver, which imports nothing that may fail -----------------------------------------------------------------


def title_of(name: str, *arguments: str) -> str:
    return " ".join([name, *(argument for argument in arguments if "/" not in argument)])


class Check:
    """Starts parts and runs, and keeps their rows."""

    def __init__(self, known: argparse.Namespace) -> None:
        self.known = known
        self.start = time.monotonic()
        self.commit = commit()
        self.folder = Path(tempfile.mkdtemp(prefix="gpu_check_"))
        self.rows: dict[str, dict[str, Any]] = {}
        if known.only and known.out.exists():
            self.rows = json.loads(known.out.read_text())["parts"]

    def left(self) -> float:
        return float(self.known.budget) - (time.monotonic() - self.start)

    def keep(self, title: str, row: dict[str, Any]) -> None:
        self.rows[title] = row | {"commit": self.commit}  # rows of other commits may stand beside it
        what = {"device": self.known.device, "quick": self.known.quick}
        write_json(self.known.out, {**what, "parts": self.rows})
        print(f"{self.known.budget - self.left():6.0f} s  {title}: {row.get('FAILED', 'ok')}", flush=True)

    def command(self, arguments: list[str], folder: Path, limit: float) -> tuple[int | str, list[str]]:
        """Runs a script of this folder under a limit; returns its status and its last lines."""
        if self.left() < 10:
            return "left out", ["no time was left"]
        folder.mkdir(exist_ok=True)
        command = [sys.executable, str(EXPERIMENTS / arguments[0]), *arguments[1:]]
        path = os.pathsep.join([str(EXPERIMENTS.parent), str(EXPERIMENTS), os.environ.get("PYTHONPATH", "")])
        environment = {"OMP_NUM_THREADS": "2", **os.environ, "PYTHONPATH": path, "MPLBACKEND": "agg"}
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
        with subprocess.Popen(command, cwd=folder, start_new_session=True, env=environment, **pipes) as process:
            status: int | str
            try:
                output, _ = process.communicate(timeout=min(limit, self.left()))
                status = process.returncode
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # this group is ours alone
                output, _ = process.communicate()
                status = "time was up"
        return status, [line for line in output.splitlines() if line.strip()]

    def part(self, name: str, *arguments: str) -> dict[str, Any]:
        own = [f"--part={name}", f"--device={self.known.device}", *(f"--argument={a}" for a in arguments)]
        folder = self.folder / re.sub(r"\W+", "_", title_of(name, *arguments))
        status, lines = self.command(["gpu_check.py", *own], folder, 130)
        found = [line for line in lines if line.startswith(MARK)]
        if found:
            return dict(json.loads(found[-1].removeprefix(MARK)))
        return {"FAILED": f"{status}: {lines[-1][:300] if lines else 'no output'}"}

    def run(self, title: str, commands: list[list[str]]) -> dict[str, Any]:
        folder, start = self.folder / re.sub(r"\W+", "_", title), time.monotonic()
        for command in commands:
            status, lines = self.command(command, folder, 110)
            if status != 0:
                telling = [line for line in lines if re.search(r"Error|error:", line)] or lines or ["no output"]
                return {"FAILED": f"{command[0]}, {status}: {telling[-1][:300]}"}
        row: dict[str, Any] = {"seconds": round(time.monotonic() - start, 1)}
        for file in [*folder.glob("runs/*/version_0/metrics.json"), *folder.glob("m.json")]:
            numbers = {k: v for k, v in json.loads(file.read_text()).items() if isinstance(v, float)}
            row |= {name: numbers[name] for name in ("test/cost", "test/penalty") if name in numbers}
            if bad := [name for name, value in numbers.items() if not math.isfinite(value)]:
                row["FAILED"] = f"not finite: {', '.join(bad)}"
        return row

    def all(self) -> int:
        """Runs everything; returns how many rows failed."""
        known, faces = self.known, self.folder / "faces"
        if not known.quick:
            make_celeba(faces)
            if re.search(known.only, "machine"):
                self.keep("machine", self.part("machine"))
        commands = runs_of(known.device, known.quick, faces)
        checks = [("parts",), *([] if known.quick else waits_of(faces))]
        tasks = {title_of(*check): functools.partial(self.part, *check) for check in checks}
        tasks |= {title: functools.partial(self.run, title, of_one) for title, of_one in commands.items()}
        with ThreadPoolExecutor(known.jobs) as pool:
            waiting = {pool.submit(task): title for title, task in tasks.items() if re.search(known.only, title)}
            for done in as_completed(waiting):
                if done.cancelled():
                    self.keep(waiting[done], {"FAILED": "left out: the other half of the time is for speed"})
                else:
                    self.keep(waiting[done], done.result())
                if self.left() < known.budget / 2:
                    for other in waiting:
                        other.cancel()
        for arguments in speeds_of(known.quick, faces):
            if re.search(known.only, title_of(*arguments)):
                self.keep(title_of(*arguments), self.part(*arguments))
        failed = {title: row["FAILED"] for title, row in self.rows.items() if "FAILED" in row}
        print("-" * 80)
        for title, row in self.rows.items():
            print(f"{title:60} {row['FAILED'][:200] if title in failed else json.dumps(row, default=str)[:400]}")
        print(f"{len(failed)} of {len(self.rows)} failed; {known.out}")
        return len(failed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="(cuda)")
    parser.add_argument("--quick", action="store_true", help="few parts, and short")
    parser.add_argument("--out", type=Path, default=Path("gpu_check.json"), help="JSON file to write (gpu_check.json)")
    parser.add_argument("--budget", type=float, default=540, help="seconds in all (540)")
    parser.add_argument("--jobs", type=int, default=8, help="runs at the same time while correctness is checked (8)")
    parser.add_argument("--only", default="", help="regular expression: only these rows; the file keeps its others")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--argument", action="append", default=[], help=argparse.SUPPRESS)
    known = parser.parse_args()
    if not known.part:
        sys.exit(Check(known).all() > 0)
    sys.argv = sys.argv[:1]
    warnings.simplefilter("ignore")
    print(MARK + json.dumps(PARTS[known.part](known.device, *known.argument), default=str), flush=True)


if __name__ == "__main__":
    main()
