"""ImageFolderDataModule on folders as people have them, against Pillow and torchvision."""

import os
import re
import shutil
import signal
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from forked import Forked, wait_for
from PIL import Image

import datamodules
from datamodules import ImageFolderDataModule, MNISTDataModule
from datamodules.cached_images import ImagesOnDisk
from datamodules.folder import sort_pictures
from wae_lightning.captions import LINE

ENDINGS = ("jpg", "png", "webp", "gif", "bmp", "tif", "JPEG", "PNG")


def draw(path: Path, number: int, size: tuple[int, int] = (40, 30)) -> None:
    """Writes a picture that is evenly of the grey ``number``, in the kind of file that its ending names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    modes = ("RGB", "L", "RGBA", "P")
    mode = modes[number % 4] if path.suffix.lower() == ".png" else "RGB"
    # the palette of the picture's own colours: the default one would be dithered
    picture = Image.new("L", size, number).convert("RGB").convert(mode, palette=Image.Palette.ADAPTIVE)
    picture.save(path, **({"quality": 100} if path.suffix.lower() in (".jpg", ".jpeg", ".webp") else {}))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 mixed pictures in three folders of different depths, and what lies about beside pictures."""
    root = tmp_path_factory.mktemp("drawn")
    for number in range(300):
        folder = ("birds", "cats/2019/june", "dogs/old")[number % 3]
        draw(root / folder / f"{number:03d}.{ENDINGS[number % 8]}", number % 256, (20 + number % 50, 20 + number % 31))
    for name in "notes.txt", "Thumbs.db", "cats/.DS_Store", "cats/._000.jpg", "__MACOSX/birds/000.jpg", ".git/a.png":
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"nothing that can be read")
    return root


@pytest.fixture
def root(drawn: Path, tmp_path: Path) -> Path:
    """A copy of them, to change and to keep a cache in."""
    return Path(shutil.copytree(drawn, tmp_path / "pictures"))


def ready(root: Path, **arguments: object) -> ImageFolderDataModule:
    data = ImageFolderDataModule(root, **({"image_size": 16} | arguments))
    data.prepare_data()
    data.setup("fit")
    return data


def parts(data: ImageFolderDataModule) -> dict[str, list[str]]:
    return {part: data.names(part) for part in ("train", "val", "test")}


def test_300_mixed_pictures_are_read_labelled_and_split(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    data = ready(root)
    assert f"Using 240 training, 30 validation and 30 test images, in memory, from {root}; 3 labels" in caplog.text
    assert "birds, cats, dogs; 4 other files were passed over." in caplog.text
    assert data.class_names == ["birds", "cats", "dogs"]
    seen = set()
    for part, dataset in ("train", data.train_set), ("val", data.val_set), ("test", data.test_set):
        images, labels = dataset.__getitems__(range(len(dataset)))
        assert images.shape[1:] == data.image_shape == (3, 16, 16)
        assert images.dtype == torch.uint8
        for image, label, name in zip(images, labels, data.names(part), strict=True):
            number = int(Path(name).stem)
            assert (image.int() - number % 256).abs().max() <= 2, name
            assert int(label) == number % 3
            assert (root / name).is_file()
            seen.add(number)
    assert seen == set(range(300))


def test_names_are_in_the_order_of_the_loaders(root: Path) -> None:
    data = ready(root, batch_size=7)
    for part, loader in ("val", data.val_dataloader()), ("test", data.test_dataloader()):
        images, labels = (torch.cat(both) for both in zip(*loader, strict=True))
        assert [int(Path(name).stem) % 256 for name in data.names(part)] == pytest.approx(
            images.float().mean((1, 2, 3)).round().tolist(), abs=2
        )
        assert labels.tolist() == [int(Path(name).stem) % 3 for name in data.names(part)]
    floats, _ = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert floats.dtype == torch.float32
    assert floats.max() <= 1


def test_it_agrees_with_torchvision(tmp_path: Path) -> None:
    """Labels, and pixels of photograph-like pictures, which torchvision reads without shortcuts."""
    noise = np.random.default_rng(0)
    for number in range(12):
        small = Image.fromarray(noise.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        path = tmp_path / "abc"[number % 3] / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        small.resize((500, 400), Image.Resampling.BICUBIC).save(path, quality=95)
    transform = torchvision.transforms.Compose(
        [
            torchvision.transforms.CenterCrop(400),
            torchvision.transforms.Resize(64, torchvision.transforms.InterpolationMode.LANCZOS),
            torchvision.transforms.PILToTensor(),
        ]
    )
    theirs = torchvision.datasets.ImageFolder(tmp_path, transform)
    expected = {str(Path(path).relative_to(tmp_path)): theirs[row] for row, (path, _) in enumerate(theirs.samples)}
    data = ready(tmp_path, image_size=64)
    for name, row in zip(data.names("train"), range(len(data.train_set)), strict=True):
        image, label = data.train_set[row]
        error = (image.int() - expected[name][0].int()).abs()
        assert error.max() <= 12
        assert error.float().mean() < 1
        assert int(label) == expected[name][1]


def test_splits_depend_on_their_seed_alone(root: Path) -> None:
    first, again, other = ready(root), ready(root, batch_size=3), ready(root, split_seed=1)
    assert parts(first) == parts(again) != parts(other)
    large = ready(root, val_fraction=0.2, test_fraction=0.5)
    assert [len(names) for names in parts(large).values()] == [90, 60, 150]


@pytest.mark.parametrize("train", ["train", "Training"])
def test_folders_of_sets_are_these_sets(tmp_path: Path, train: str) -> None:
    for number in range(20):
        draw(tmp_path / "archive" / train / "ab"[number % 2] / f"{number}.png", number)
    draw(tmp_path / "archive" / "test" / "a" / "20.png", 20)
    draw(tmp_path / "archive" / "test" / "21.png", 21)
    data = ready(tmp_path)
    assert data.class_names == ["a", "b"]
    assert data.names("test") == ["archive/test/21.png", "archive/test/a/20.png"]
    assert [len(names) for names in parts(data).values()] == [18, 2, 2]
    assert data.test_set.labels[data.test_set.rows].tolist() == [-1, 0]
    for number in range(22, 25):
        draw(tmp_path / "archive" / "valid" / "b" / f"{number}.png", number)
    assert [len(names) for names in parts(ready(tmp_path)).values()] == [20, 3, 2]
    draw(tmp_path / "archive" / "extra" / "30.png", 30)
    with pytest.raises(ValueError, match=r"expected either the folders of sets .* found both, such as archive/extra"):
        ready(tmp_path)
    assert len(ready(tmp_path, exclude="extra").train_set) == 20


@pytest.mark.parametrize(
    "names",
    [
        ["cat/1.png", "dog/2.png", "test/3.png"],
        ["cat/1.png", "Validation/3.png"],
        ["val/1.png", "test/3.png"],
        ["x/test/a/1.png", "x/cat/2.png"],
    ],
)
def test_a_folder_to_test_on_beside_others_is_no_label(names: list[str]) -> None:
    with pytest.raises(ValueError, match=r"found a folder (test|Validation|val) and none named train: pictures to"):
        sort_pictures(names)


@pytest.mark.parametrize(
    "arguments", [{"split_seed": 1}, {"val_fraction": 0.3}, {"test_fraction": 0.3}, {"exclude": ["*.gif"]}]
)
def test_going_on_with_another_split_is_said(root: Path, arguments: dict[str, object]) -> None:
    state = ImageFolderDataModule(root).state_dict()
    ((name, value),) = arguments.items()
    message = (
        rf"data with {name} = .*; this ImageFolderDataModule has {re.escape(repr(value))}. What was trained on may"
    )
    with pytest.warns(UserWarning, match=message):
        ImageFolderDataModule(root, **arguments).load_state_dict(state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ImageFolderDataModule(root, flip=True).load_state_dict(state)
        older = {key: value for key, value in state.items() if key != name}
        ImageFolderDataModule(root, **arguments).load_state_dict(older)


@pytest.mark.parametrize(
    ("names", "class_names", "labels", "sets"),
    [
        (["a.png", "b.png"], [], [0, 0], [None, None]),
        (["x/a.png", "x/b.png"], [], [0, 0], [None, None]),
        (["x/y/a/1.png", "x/y/b/2.png"], ["a", "b"], [0, 1], [None, None]),
        (["1.png", "a/1.png", "b/c/1.png"], ["a", "b"], [-1, 0, 1], [None] * 3),
        (["train/a/1.png", "b/1.png"], ["b", "train"], [1, 0], [None] * 2),
        (["train/1.png", "train/2.png"], [], [0, 0], [None] * 2),
        (["train/1.png", "val/2.png"], [], [0, 0], ["train", "val"]),
        (["train/b/1.png", "val/a/2.png", "test/b/1.png"], ["a", "b"], [1, 0, 1], ["train", "val", "test"]),
    ],
)
def test_labels_and_sets(names: list[str], class_names: list[str], labels: list[int], sets: list[str | None]) -> None:
    assert sort_pictures(names) == (class_names, labels, sets)


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        ("cats", 200),
        ("*.gif", 262),
        (["birds/*", "dogs/old"], 100),
        ("june", 200),
        (["cats/*/june/00*"], 297),
        ("00?.*", 290),
        (["cats/"], 200),
    ],
)
def test_exclusion(root: Path, exclude: str | list[str], left: int) -> None:
    data = ready(root, exclude=exclude)
    assert sum(map(len, parts(data).values())) == left


def test_pattern_that_fits_nothing_is_named(root: Path) -> None:
    with pytest.warns(UserWarning, match=r"exclude: nothing in .*pictures is called 'fish'\."):
        ready(root, exclude=["fish", "cats"])


def test_links_are_followed_once_and_pipes_are_not_waited_for(tmp_path: Path) -> None:
    for number in range(4):
        draw(tmp_path / "elsewhere" / f"{number}.png", number)
    root = tmp_path / "root"
    root.mkdir()
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "round").symlink_to(root)
    os.mkfifo(root / "pipe.png")
    assert sum(map(len, parts(ready(root)).values())) == 4
    (root / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match=r"gone.png: cannot be read \(No such file or directory\)"):
        ready(root)


def test_names_of_any_bytes(tmp_path: Path) -> None:
    for number, name in enumerate((b"caf\xe9.png", "日本.png".encode(), b"a b.PNG", b"plain.png")):
        draw(tmp_path / "plain.png", number)
        os.rename(tmp_path / "plain.png", os.path.join(os.fsencode(tmp_path), name))
    assert sum(map(len, parts(ready(tmp_path)).values())) == 4
    broken = os.path.join(os.fsencode(tmp_path), b"caf\xe8.png")
    with open(broken, "wb") as file:
        file.write(b"no picture")
    with pytest.warns(UserWarning, match=r"1 of 5 files were skipped: .*caf.\.png: not a picture"):
        ready(tmp_path, on_error="skip")


def test_damaged_picture_stops_or_is_skipped(root: Path) -> None:
    (root / "birds/000.jpg").write_bytes(b"no picture")
    whole = (root / "dogs/old/002.webp").read_bytes()
    (root / "dogs/old/002.webp").write_bytes(whole[: len(whole) // 2])
    (root / "cats/empty.heic").write_bytes(b"")
    with pytest.raises(ValueError, match=r"birds/000.jpg: not a picture that can be read .*begins with b'no pictu'"):
        ready(root)
    assert not [*root.rglob("*.tmp"), *root.rglob("*.h5")]
    with pytest.warns(UserWarning, match=r"3 of 301 files were skipped: .*birds/000.jpg: .*empty.heic: .*002.webp: "):
        data = ready(root, on_error="skip")
    left = [name for names in parts(data).values() for name in names]
    assert len(left) == 298
    assert not {"birds/000.jpg", "dogs/old/002.webp", "cats/empty.heic"} & set(left)


def test_grey_crop_and_background(tmp_path: Path) -> None:
    for number in range(3):
        ink = np.zeros((10, 20, 4), np.uint8)
        ink[..., 3] = 255
        Image.fromarray(ink).save(tmp_path / f"{number}.png")
    data = ready(tmp_path, channels=1, crop="pad", background="#808080")
    assert data.image_shape == (1, 16, 16)
    image, _ = data.train_set[0]
    assert image.flatten(1).unique().tolist() == [0, 128]
    assert ready(tmp_path, channels=1, crop="stretch").train_set[0][0].max() == 0
    assert len(list(tmp_path.glob("*.h5"))) == 2


def test_from_disk_equals_in_memory(root: Path, tmp_path: Path) -> None:
    memory, disk = ready(root, cache_dir=tmp_path), ready(root, cache_dir=tmp_path, memory_budget=0)
    assert isinstance(disk.train_set, ImagesOnDisk)
    assert parts(memory) == parts(disk)
    for one, other in zip(memory.test_dataloader(), disk.test_dataloader(), strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def test_the_cache_is_used_again_until_a_picture_changes(root: Path, tmp_path: Path) -> None:
    caches = tmp_path / "caches"
    ready(root, cache_dir=caches)
    [cache] = caches.iterdir()
    written = cache.stat().st_mtime_ns
    ready(root, cache_dir=caches, val_fraction=0.3, flip=True)
    assert cache.stat().st_mtime_ns == written
    for arguments in {"image_size": 8}, {"channels": 1}, {"crop": "pad"}, {"background": "black"}, {"exclude": "cats"}:
        ready(root, cache_dir=caches, **arguments)
    assert len(list(caches.iterdir())) == 6
    draw(root / "birds/new.png", 5)
    assert "birds/new.png" in [name for names in parts(ready(root, cache_dir=caches)).values() for name in names]
    assert not list(root.rglob("*.h5"))


BUILD = """
import sys, time
from datamodules import cached_images, cache
cache._SAVED_EVERY = 0.0
read = cached_images.read_picture
def slowly(*arguments):
    time.sleep(0.01)
    with open(sys.argv[2], "a") as file:
        file.write("x")
    return read(*arguments)
cached_images.read_picture = slowly
from datamodules import ImageFolderDataModule
data = ImageFolderDataModule(sys.argv[1], image_size=16)
data.prepare_data()
"""


def test_killed_build_goes_on(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    script, read = tmp_path / "build.py", tmp_path / "read"
    script.write_text(BUILD)
    with Forked(script, root, read, PYTHONPATH=str(Path(datamodules.__file__).parents[1])) as process:
        wait_for(read)
        while read.stat().st_size < 100 and process.process.is_alive():
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.finish().returncode == -signal.SIGKILL
    time.sleep(1.2)  # its workers end themselves
    data = ready(root)
    assert "Going on with the cache" in caplog.text
    alone = ready(root, cache_dir=tmp_path / "alone")
    assert torch.equal(data._cache.map(), alone._cache.map())
    assert not list(root.glob("*.tmp"))


def test_wrong_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such folder. Expected a folder of pictures"):
        ready(tmp_path / "nowhere")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(FileNotFoundError, match=r": no pictures. Expected .jpg, .png, .* found 1 other files"):
        ready(tmp_path)
    for number in range(2):
        draw(tmp_path / f"{number}.png", number)
    with pytest.raises(ValueError, match=r"expected at least 3 pictures, .*, found 2"):
        ready(tmp_path)
    assert not list(tmp_path.glob("*.h5"))
    draw(tmp_path / "2.png", 2)
    assert [len(names) for names in parts(ready(tmp_path)).values()] == [1, 1, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 4}, "channels must be one of 1, 3, got 4"),
        ({"crop": "center"}, "crop must be one of centre, stretch, pad, got 'center'"),
        ({"background": "whitish"}, "background: expected a colour such as white or #ff8800, got 'whitish'"),
        ({"val_fraction": 0.0}, "val_fraction must lie between 0 and 1, got 0.0"),
        ({"test_fraction": float("nan")}, "test_fraction must lie between 0 and 1, got nan"),
        ({"image_size": 0}, "image_size must be at least 1"),
        ({"on_error": "ignore"}, "on_error must be"),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageFolderDataModule(tmp_path, **arguments)


def test_only_upright_digits_are_digits(tmp_path: Path) -> None:
    assert MNISTDataModule().content == "digits"
    for variant in "fashion", "kmnist", "emnist-letters", "emnist-digits":  # EMNIST's lie on their side
        assert MNISTDataModule(variant=variant).content is None
    assert ImageFolderDataModule(tmp_path, image_size=28, channels=1).content is None
    assert MNISTDataModule().names("test") is None


def test_one_command_trains_evaluates_and_generates(root: Path, trained, quick_measures: None, tmp_path: Path) -> None:
    from wae_lightning.cli import evaluate, generate

    small = ["--model.latent_dim=8", "--model.encoder.width=0.1", "--model.decoder.width=0.1"]
    checkpoint = trained("folder_wae_gan", f"--data.root={root}", "--data.batch_size=20", *small)
    assert (checkpoint.parents[1] / "samples.png").is_file()
    evaluate.main(
        [str(checkpoint), f"--data.root={root}", "--num_samples", "60", "--out", str(tmp_path / "metrics.json")]
    )
    assert '"psnr"' in (tmp_path / "metrics.json").read_text()
    generate.main([str(checkpoint), "--num_samples", "4", "--out", str(tmp_path / "s.png")])
    # at least 900 pixels wide, by a whole factor, below a line of text
    assert Image.open(tmp_path / "s.png").size == (7 * (2 * 66 + 2), 7 * (2 * 66 + 2) + LINE)
