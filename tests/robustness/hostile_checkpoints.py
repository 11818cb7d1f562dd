"""Gives checkpoints and folders of hostile structure to all that opens them: ``hostile_checkpoints.py --count 2000``.

Each is a small real one with one to three seeded changes: classes that are not ours, sizes, nesting, networks that cost
much or fit nothing, tensors that claim more than is stored, codes and weights of other kinds, paths in the data module.
``evaluate``, ``generate``, ``load_from_checkpoint`` and ``from_pretrained`` may accept it or refuse it in one sentence.
A failure is anything else: another exception, a connection, a process, a file opened in the folder that only the
checkpoint names or written outside of --out, more than 5 s, or more than 500 MB above what the process had.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from wae_lightning import WAE, WAEGAN, WAEMMD, ConditionalWAE, PointNetWAE, evaluation, from_pretrained, networks
from wae_lightning.cli import evaluate, generate

SECONDS, MEGABYTES = 5.0, 500
REAL = 20  # of so many checkpoints one is measured in full
FORBIDDEN = ("socket.connect", "socket.getaddrinfo", "socket.bind", "subprocess.Popen", "os.system", "os.exec",
             "os.posix_spawn", "os.fork", "os.spawn", "webbrowser.open", "pty.spawn")  # fmt: skip
WRITES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.move")
Content = dict[str, Any]


class Watch:
    """Notes what the process does while it is on; an audit hook cannot be taken away again."""

    def __init__(self) -> None:
        self.on = False
        self.named, self.out = Path("/nowhere"), Path("/nowhere")
        self.found: list[str] = []
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in FORBIDDEN:
            self.found.append(f"{event} {str(arguments)[:100]}")
            raise PermissionError(event)
        path = str(arguments[0]) if arguments else ""
        if event == "open" and isinstance(arguments[0], str | Path):
            mode, flags = arguments[1], arguments[2]
            writes = any(letter in mode for letter in "wax+") if mode else bool(flags & 3)
            outside = not (path.startswith((str(self.out), "/dev/", "/proc/")) or "__pycache__" in path)
            if str(self.named) in path or (writes and outside):
                self.found.append(f"open {path} {mode}")
        elif event in WRITES and not path.startswith(str(self.out)):
            self.found.append(f"{event} {path}")


def small_checkpoints() -> Iterator[Content]:
    """Contents of checkpoints as a trainer writes them."""
    data = {"_class_path": "datamodules.MNISTDataModule", "root": None, "batch_size": 100}
    halves = {"_class_path": "datamodules.HalfImageDataModule", "images": None, "observed": "top"}
    shapes = {"_class_path": "datamodules.ModelNet40DataModule", "num_points": 32, "source": "shapes"}
    encoder, decoder = networks.ConvEncoder(latent_dim=4, width=1 / 64), networks.ConvDecoder(4, width=1 / 64)
    points = {"encoder": networks.PointNetEncoder(4, (8, 8)), "num_points": 32, "latent_dim": 4}
    for model, prepared in (
        (WAEMMD(encoder, decoder, latent_dim=4), data),
        (WAEGAN(encoder=encoder, decoder=decoder, latent_dim=4, flow=networks.MixtureFlow(4, 2)), data),
        (ConditionalWAE(condition_shape=(1, 4, 8), target_shape=(1, 4, 8), latent_dim=4), halves),
        (PointNetWAE(**points), shapes),
    ):
        model.memory.remember(torch.randn(9, 4))
        yield {
            "state_dict": dict(model.state_dict()),
            "hyper_parameters": dict(model.hparams),
            "datamodule_hyper_parameters": prepared,
            "pytorch-lightning_version": "2.6.6",
            "epoch": 1,
            "global_step": 3,
        }


def part(path: str, **arguments: Any) -> Content:
    return {"class_path": path, "init_args": arguments}


def hostile_values(named: Path) -> list[Callable[[], Any]]:
    """What is put in the place of something; functions, since some are large."""
    net = "wae_lightning.networks."
    return [
        lambda: part("subprocess.Popen", args=["touch", str(named / "made")]),
        lambda: part("os.system", command=f"touch {named / 'made'}"),
        lambda: part("torch.hub.load", repo_or_dir="a/b", model="c"),
        lambda: part("torchmetrics.image.fid.FrechetInceptionDistance"),
        lambda: part("torchvision.models.vgg16", weights="DEFAULT"),
        lambda: part("torch.jit.ScriptModule"),
        lambda: part("torch.nn.Linear", in_features=10**5, out_features=10**5),
        lambda: part("torch.nn.Upsample", scale_factor=1e4),
        lambda: part("torch.nn.ZeroPad1d", padding=2 * 10**8),
        lambda: part("torch.nn.ConstantPad1d", padding=99_999, value=0.0),
        lambda: part("torch.nn.AvgPool1d", kernel_size=9999, stride=1, padding=4999),
        lambda: part("torch.nn.Identity"),
        lambda: part("torch.nn.Unflatten", dim=1, unflattened_size=[1, 2, 2]),
        lambda: part("torch.nn.LSTM", input_size=4, hidden_size=4),
        lambda: part("torch.nn.ModuleList", modules=[part("torch.nn.Linear", in_features=300, out_features=300)] * 900),
        lambda: part("torch.nn.Transformer", d_model=64, num_encoder_layers=10**4),
        lambda: part("torch.nn.Sequential", args=[part("torch.nn.Linear", in_features=4, out_features=4)] * 999),
        lambda: part("torch.nn.Sequential", args=[{"a": part("os.system", command=f"touch {named / 'made'}")}]),
        lambda: part("torch.nn.Sequential", args=[{"a.b": part("torch.nn.Linear", in_features=10**5, out_features=9)}]),
        lambda: part("torch.nn.Sequential", args=[nested(15), 3, "x", None]),
        lambda: part("torch.nn.Identity", args=[part("torch.nn.Linear", in_features=10**5, out_features=9)] * 9),
        lambda: part(f"{net}CouplingFlow", dim=4, layers=10**9),
        lambda: part(f"{net}CouplingFlow", dim=4, layers=10**4),
        lambda: part(f"{net}MixtureFlow", dim=4, components=10**5),
        lambda: part(f"{net}FoldingDecoder", latent_dim=4, num_points=100_000),
        lambda: part(f"{net}ConvDecoder", latent_dim=4, image_shape=[1, 4096, 4096], width=0.01),
        lambda: part(f"{net}ConvEncoder", width=1e9),
        lambda: part(f"{net}ConditionalMLPEncoder", part_shapes=[[1]], hidden=[1] * 10**5),
        lambda: part("wae_lightning.priors.Normal", latent_dim=10**9),
        lambda: part("wae_lightning.priors.Sphere", latent_dim=99_999),
        lambda: part("datamodules.MNISTDataModule", root=str(named), download=True),
        lambda: part("datamodules.CelebADataModule", root=str(named), cache_dir=str(named / "cache"), num_workers=8),
        lambda: part("wae_lightning.cli.train.Train"),
        lambda: {"class_path": "torch.nn.Sequential", "dict_kwargs": {"args": [part("os.system", command="true")]}},
        lambda: {"class_path": ["torch.nn.ReLU"]},
        lambda: {"unrecorded": "x" * 10**6},
        lambda: nested(400),
        lambda: [1, 10**5, 10**5],
        lambda: "x" * 10**6,
        lambda: f"{named}/config.yaml",
        lambda: torch.zeros(1).expand(10**9),
        lambda: torch.full((3, 5), float("nan")),
        lambda: torch.zeros(3, 5, dtype=torch.complex64),
        lambda: torch.zeros(2, 2).to_sparse(),
        lambda: torch.empty(9, 2),
        *(lambda value=value: value for value in (None, 0, -1, 10**5, 10**12, 10**400, 1e308, True, {}, [])),
    ]  # fmt: skip


def nested(depth: int) -> Content:
    inner: Content = {}
    for _ in range(depth):
        inner = {"a": inner}
    return inner


def make_hostile(content: Content, rng: random.Random, named: Path) -> Content:
    """A copy with one to three changes, at any depth."""
    content, values = copy.deepcopy(content), hostile_values(named)
    for _ in range(rng.choice((1, 1, 2, 3))):
        place = content[rng.choice(("hyper_parameters",) * 4 + ("state_dict",) * 2 + ("datamodule_hyper_parameters",))]
        for _ in range(rng.randrange(5)):
            inner = [value for value in place.values() if isinstance(value, dict) and value]
            place = rng.choice(inner) if inner else place
        if not place:
            continue
        name = rng.choice(list(place))
        kind = rng.randrange(8)
        if kind == 0:
            del place[name]
        elif kind == 1:
            place[rng.choice(("_instantiator", "trust", "encoder", "flow", "root", "cache_dir", "x"))] = rng.choice(
                values
            )()
        elif kind == 2 and isinstance(place.get("init_args"), dict):
            place["init_args"][rng.choice(("device", "dtype", "latent_dim", "num_points"))] = rng.choice(values)()
        else:
            place[name] = rng.choice(values)()
    data = content["datamodule_hyper_parameters"]
    if isinstance(data, dict) and rng.random() < 0.5:
        data |= {"root": str(named), "download": True, "num_workers": 4}
        if rng.random() < 0.5:
            celeba = part("datamodules.CelebADataModule", root=str(named), cache_dir=str(named / "cache"))
            data |= {"_class_path": "datamodules.HalfImageDataModule", "images": celeba}
    return content


def write_folder(content: Content, folder: Path) -> None:
    """The same as a folder of ``save_pretrained``, as far as JSON and safetensors can hold it."""
    import safetensors.torch

    folder.mkdir()
    arguments = {name: value for name, value in content["hyper_parameters"].items() if not name.startswith("_")}
    description = part(content["hyper_parameters"].get("_class_path"), **arguments)
    (folder / "config.json").write_text(json.dumps({"model": description}, default=str))
    weights = {
        name: value.clone()
        for name, value in content["state_dict"].items()
        if isinstance(value, torch.Tensor)
        and value.layout is torch.strided
        and value.nbytes < 10**8
        and "_extra" not in name
    }
    safetensors.torch.save_file(weights, folder / "model.safetensors")


def peak() -> float:
    """Megabytes that the process held at most since this was last asked, or since its beginning."""
    lines = Path("/proc/self/status").read_text().splitlines() if Path("/proc/self/status").exists() else []
    high = next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), None)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return high if high is not None else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(count: int, seed: int = 0, first: int = 0) -> Content:
    """Reads ``count`` checkpoints; returns how many were accepted and refused by each reader, and all failures."""
    warnings.simplefilter("ignore")
    torch.manual_seed(seed)
    bases = list(small_checkpoints())
    watch, results, failures = Watch(), {}, []
    measure = evaluation.evaluate
    longest, most = 0.0, 0.0
    usual = seconds_of_measures(bases[0])
    with tempfile.TemporaryDirectory() as root:
        watch.named, watch.out = Path(root) / "named", Path(root) / "out"
        watch.named.mkdir()
        watch.out.mkdir()
        for number in range(first, first + count):
            rng = random.Random(f"{seed} {number}")
            base = rng.choice(bases)
            content = make_hostile(base, rng, watch.named)
            path, folder = Path(root) / "hostile.ckpt", Path(root) / f"folder{number}"
            torch.save(content, path)
            sampler = rng.choice(([], ["--sampler=gmm", "--components=2"]))
            flags = [str(path), "--num_samples=4"]
            evaluation.evaluate = measure_little if number % REAL or base is bases[-1] else measure
            readers: dict[str, Callable[[], Any]] = {
                "evaluate": partial(evaluate.main, [*flags, f"--out={watch.out / 'x.json'}"]),
                "generate": partial(generate.main, [*flags, f"--out={watch.out / 'x.npz'}", *sampler]),
                "load_from_checkpoint": partial(WAE.load_from_checkpoint, path),
                "from_pretrained": partial(from_pretrained, folder),
            }
            with contextlib.suppress(TypeError, ValueError, AttributeError):
                write_folder(content, folder)
            for name, read in readers.items():
                before = peak()
                before, start = peak(), time.process_time()
                outcome = attempt(read, watch)
                seconds, megabytes = time.process_time() - start, peak() - before
                longest, most = max(longest, seconds), max(most, megabytes)
                # all measures take seconds of any model, and no file makes them take longer
                allowed = SECONDS + (usual if name == "evaluate" and evaluation.evaluate is measure else 0)
                slow = [f"{seconds:.1f} s"] * (seconds > allowed) + [f"{megabytes:.0f} MB"] * (megabytes > MEGABYTES)
                failures += [{"number": number, "reader": name, "what": what} for what in (*outcome[1], *slow)]
                results.setdefault(name, Counter())[outcome[0]] += 1
            for left in folder.glob("*"):
                left.unlink()
        made = [str(left) for left in watch.named.rglob("*")]
    evaluation.evaluate = measure
    failures += [{"number": -1, "reader": "all", "what": f"{left} was made"} for left in made]
    counts = {name: dict(counter) for name, counter in results.items()}
    largest = {"seconds": round(longest, 2), "megabytes": round(most)}
    return {"count": count, "seed": seed, "readers": counts, "most": largest, "failures": failures}


def seconds_of_measures(honest: Content) -> float:
    """CPU seconds of ``evaluate`` on a checkpoint that nobody has touched."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        torch.save(honest, path := Path(folder) / "honest.ckpt")
        start = time.process_time()
        evaluate.main([str(path), "--num_samples=4"])
        return time.process_time() - start


def measure_little(model: Any, data: Any, *options: Any) -> dict[str, float]:
    """What ``evaluate`` does first, in place of all its measures, which take seconds of any model."""
    if data is not None:
        data.prepare_data()
        data.setup("fit")
        model.predict_step(data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0), 0)
    codes = model.training_codes()
    return {"samples": 0.0 if isinstance(model, ConditionalWAE) else float(model.sample(len(codes)).mean())}


def attempt(read: Callable[[], Any], watch: Watch) -> tuple[str, list[str]]:
    """Whether a reader accepted or refused, and what it must not have done."""
    watch.found, said = [], io.StringIO()
    watch.on = True
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            read()
        outcome, failures = "accepted", []
    except (ValueError, FileNotFoundError) as error:
        outcome, failures = "refused", [] if len(str(error).splitlines()) == 1 else [f"not one line: {error}"]
    except SystemExit as stop:
        one = stop.code == 2 and "error: " in said.getvalue().rpartition("\n\n")[2]
        outcome, failures = "refused", [] if one else [f"exit {stop.code}: {said.getvalue()[-300:]}"]
    except Exception:
        outcome, failures = "crashed", [traceback.format_exc()[-900:]]
    finally:
        watch.on = False
    return outcome, failures + watch.found


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first, to repeat one")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    known = parser.parse_args()
    torch.set_num_threads(1)
    results = run(known.count, known.seed, known.first)
    if known.out:
        known.out.write_text(json.dumps(results, indent=2) + "\n")
    for failure in results["failures"][:20]:
        print(failure["number"], failure["reader"], failure["what"])
    print(json.dumps(results | {"failures": len(results["failures"])}))
    sys.exit(bool(results["failures"]))


if __name__ == "__main__":
    main()
