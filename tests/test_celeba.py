"""CelebADataModule against Pillow and torchvision, on drawn pictures in CelebA's layout."""

import os
import pickle
import random
import time
from hashlib import md5
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, PILToTensor, Resize

from datamodules import CelebADataModule
from datamodules.cached_images import ImagesOnDisk, move
from datamodules.celeba import _shuffled_as_in_the_paper
from wae_lightning.lightning import LightningModule, Trainer, seed_everything

ATTRIBUTES = ["Bald", "Male", "Smiling"]


def draw_celeba(root: Path, count: int = 30, size: tuple[int, int] = (178, 218)) -> Path:
    """Writes pictures of noise and a gradient in CelebA's layout: JPEGs, attributes, partition 2 : 1 : 1."""
    folder = root / "celeba" / "img_align_celeba"
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0)
    names = [f"{number:06d}.jpg" for number in range(1, count + 1)]
    for number, name in enumerate(names):
        picture = noise.integers(0, 256, (size[1] // 8 + 1, size[0] // 8 + 1, 3), dtype=np.uint8)
        picture = picture.repeat(8, 0).repeat(8, 1)[: size[1], : size[0]]
        picture[:, :, number % 3] = np.linspace(0, 255, size[0])
        Image.fromarray(picture).save(folder / name, quality=90)
    values = noise.choice([-1, 1], (count, len(ATTRIBUTES)))
    rows = [f"{name} {' '.join(f'{value:2d}' for value in row)}" for name, row in zip(names, values, strict=True)]
    # as in CelebA, the header ends in a blank
    (root / "celeba/list_attr_celeba.txt").write_text("\n".join([str(count), " ".join(ATTRIBUTES) + " ", *rows, ""]))
    parts = [(0, 0, 1, 2)[number % 4] for number in range(count)]
    lines = [f"{name} {part}\n" for name, part in zip(names, parts, strict=True)]
    (root / "celeba/list_eval_partition.txt").write_text("".join(lines))
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return draw_celeba(tmp_path / "set")


def ready(root: Path, **arguments: object) -> CelebADataModule:
    data = CelebADataModule(root, **arguments)
    data.prepare_data()
    data.setup("fit")
    return data


def temporary_files(folder: Path) -> list[Path]:
    return [*folder.rglob("*.tmp"), *folder.rglob("*.h5")]


class TorchvisionCelebA(torchvision.datasets.CelebA):
    """torchvision's class without its md5 check, and without the lists that we do not need."""

    def _check_integrity(self) -> bool:
        return True

    def _load_csv(self, filename: str, header: int | None = None) -> object:
        known = ("list_attr_celeba.txt", "list_eval_partition.txt")
        return super()._load_csv(*((filename, header) if filename in known else (known[1],)))


@pytest.mark.parametrize("crop", ["closecrop", 148, "none"])
@pytest.mark.parametrize("size", [64, 37])
def test_every_pixel_agrees_with_torchvision(root: Path, crop: str | int, size: int) -> None:
    crops = {"closecrop": [CenterCrop(140)], 148: [CenterCrop(148)], "none": []}[crop]
    transform = Compose([*crops, Resize((size, size), interpolation=InterpolationMode.LANCZOS), PILToTensor()])
    data = ready(root, crop=crop, image_size=size)
    for split, ours in ("train", data.train_set), ("valid", data.val_set), ("test", data.test_set):
        theirs = TorchvisionCelebA(root, split=split, transform=transform)
        assert len(ours) == len(theirs)
        for (image, label), (expected_image, expected_label) in zip(
            [ours[index] for index in range(len(ours))], theirs, strict=False
        ):
            assert torch.equal(image, expected_image)
            assert torch.equal(label, expected_label)


def test_closecrop_is_the_papers_box_and_filter(root: Path) -> None:
    data = ready(root)
    picture = Image.open(root / "celeba/img_align_celeba/000001.jpg").crop((19, 39, 159, 179))
    expected = np.asarray(picture.resize((64, 64), Image.Resampling.LANCZOS))
    assert np.array_equal(data.train_set[0][0].permute(1, 2, 0).numpy(), expected)
    assert data.image_shape == (3, 64, 64)


def test_batches_are_floats_and_integers(root: Path) -> None:
    data = ready(root, batch_size=4)
    images, labels = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert images.shape == (4, 3, 64, 64)
    assert images.dtype == torch.float32
    assert 0 <= images.min() < images.max() <= 1
    assert labels.shape == (4, 3)
    assert labels.dtype == torch.int64
    assert set(labels.unique().tolist()) <= {0, 1}


def test_attributes_choose_the_labels(root: Path) -> None:
    every = ready(root)
    one = ready(root, attributes="Male")
    two = ready(root, attributes=["Smiling", "Bald"])
    assert every.attribute_names == ATTRIBUTES
    labels = every.train_set.labels
    assert torch.equal(one.train_set.labels, labels[:, 1])
    assert torch.equal(two.train_set.labels, labels[:, [2, 0]])
    with pytest.raises(ValueError, match=r"attributes: 'Beard' is not one of Bald, Male, Smiling"):
        ready(root, attributes="Beard")


def test_paper_split(root: Path) -> None:
    data = ready(root, split="paper")
    parts = [data.train_set.rows, data.val_set.rows, data.test_set.rows]
    assert [len(part) for part in parts] == [26, 1, 3]
    assert sorted(torch.cat(parts).tolist()) == list(range(30))
    assert parts[2].tolist() == _shuffled_as_in_the_paper(30)[-3:]


def test_paper_shuffle_is_python_2s() -> None:
    """Independent reference: the first numbers of the Mersenne Twister, and Fisher and Yates by hand."""
    generator = random.Random(123)
    expected = ["a", "b", "c", "d"]
    for last in 3, 2, 1:
        other = int(generator.random() * (last + 1))
        expected[last], expected[other] = expected[other], expected[last]
    assert ["abcd"[place] for place in _shuffled_as_in_the_paper(4)] == expected
    assert sorted(_shuffled_as_in_the_paper(1000)) == list(range(1000))


def test_from_disk_equals_in_memory(root: Path) -> None:
    memory, disk = ready(root, batch_size=7), ready(root, batch_size=7, memory_budget=0)
    assert isinstance(disk.train_set, ImagesOnDisk)
    assert not isinstance(memory.train_set, ImagesOnDisk)
    seed_everything(1)
    expected = list(memory.train_dataloader())
    seed_everything(1)
    for (images, labels), (expected_images, expected_labels) in zip(disk.train_dataloader(), expected, strict=True):
        assert torch.equal(images, expected_images)
        assert torch.equal(labels, expected_labels)


def test_workers_and_pickling_give_the_same(root: Path) -> None:
    for budget in 0, 1:
        data = ready(root, batch_size=8, memory_budget=budget, num_workers=1)
        alone = ready(root, batch_size=8, memory_budget=budget)
        for batch, expected in zip(data.test_dataloader(), alone.test_dataloader(), strict=True):
            assert torch.equal(batch[0], expected[0])
        assert torch.equal(pickle.loads(pickle.dumps(data.train_set))[3][0], alone.train_set[3][0])


def test_images_are_moved_by_whole_pixels_and_their_edges_go_on() -> None:
    images = torch.rand(200, 3, 5, 6)
    found = move(images, 2)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2), mode="replicate")
    places = [
        [
            (top, left)
            for top in range(5)
            for left in range(5)
            if torch.equal(image, whole[:, top : top + 5, left : left + 6])
        ]
        for image, whole in zip(found, padded, strict=True)
    ]
    assert all(len(place) == 1 for place in places)
    assert len({place for (place,) in places}) == 25


def test_shift_moves_training_images_each_by_itself_and_no_others(root: Path) -> None:
    seed_everything(0)
    data = ready(root, batch_size=7, shift=2)
    batch = next(iter(data.val_dataloader()))
    same = batch[0][:1].repeat(7, 1, 1, 1), batch[1]
    data.trainer = SimpleNamespace(training=True)
    images = data.on_after_batch_transfer(same, 0)[0]
    assert len({tuple(image.flatten().tolist()) for image in images}) > 3
    data.trainer = SimpleNamespace(training=False)
    assert torch.equal(data.on_after_batch_transfer(batch, 0)[0], batch[0].float() / 255)


def test_flip_mirrors_some_training_images_on_their_device_only(root: Path) -> None:
    seed_everything(0)
    data = ready(root, batch_size=12, flip=True)
    originals = {tuple(data.train_set[index][0].flatten().tolist()): index for index in range(len(data.train_set))}

    class Collect(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))
            self.seen: dict[str, list[torch.Tensor]] = {"train": [], "val": []}

        def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
            self.seen["train"].append(batch[0])
            return self.weight

        def validation_step(self, batch: list[torch.Tensor]) -> None:
            self.seen["val"].append(batch[0])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    module = Collect()
    Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    ).fit(module, data)
    mirrored = []
    for image in torch.cat(module.seen["train"]):
        pixels = image.mul(255).round().to(torch.uint8)
        as_is = tuple(pixels.flatten().tolist()) in originals
        assert as_is != (tuple(pixels.flip(-1).flatten().tolist()) in originals)
        mirrored.append(not as_is)
    assert 0.2 < np.mean(mirrored) < 0.8
    validation = data.val_set[0][0].float() / 255
    assert torch.equal(module.seen["val"][0][0], validation)


# --- the cache ---


def test_second_start_reads_the_cache_and_changed_files_make_a_new_one(root: Path, tmp_path: Path) -> None:
    caches = tmp_path / "caches"
    first = ready(root, cache_dir=caches)
    [file] = caches.iterdir()
    written = file.stat().st_mtime_ns
    started = time.perf_counter()
    ready(root, cache_dir=caches)
    assert time.perf_counter() - started < 1
    assert file.stat().st_mtime_ns == written
    ready(root, cache_dir=caches, crop=148)
    ready(root, cache_dir=caches, image_size=32)
    assert len(list(caches.iterdir())) == 3
    picture = root / "celeba/img_align_celeba/000001.jpg"
    Image.new("RGB", (178, 218), "red").save(picture)
    os.utime(picture, ns=(1, 1))
    changed = ready(root, cache_dir=caches)
    assert len(list(caches.iterdir())) == 4
    assert not torch.equal(changed.train_set[0][0], first.train_set[0][0])


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "foreign"])
def test_damaged_cache_is_named_and_built_again(root: Path, tmp_path: Path, damage: str) -> None:
    expected = ready(root, cache_dir=tmp_path / "caches").train_set[5][0]
    [file] = (tmp_path / "caches").iterdir()
    content = file.read_bytes()
    if damage == "foreign":
        ready(root, cache_dir=tmp_path / "other", image_size=32)
        content = next((tmp_path / "other").iterdir()).read_bytes()
    file.write_bytes({"truncated": content[:-1000], "text": b"no HDF5", "empty": b"", "foreign": content}[damage])
    with pytest.warns(UserWarning, match=rf"{file.name}: not a readable cache .*building it again"):
        data = ready(root, cache_dir=tmp_path / "caches")
    assert torch.equal(data.train_set[5][0], expected)


def test_cache_that_shrinks_while_in_use_is_an_error(root: Path) -> None:
    data = ready(root, memory_budget=0)
    os.truncate(data.train_set.cache.path, 10_000)
    with pytest.raises(ValueError, match="the cache ends early"):
        data.train_set[14]


# --- bad input ---


def test_missing_folder_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"img_align_celeba: no such folder. Expected .*000001.jpg.*To get Cel"):
        CelebADataModule(tmp_path).prepare_data()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-00000-of-00019.parquet").write_bytes(b"PAR1")
    with pytest.raises(
        ValueError, match=r"00019.parquet: CelebA as Parquet is not read. Write its pictures into a fol"
    ):
        CelebADataModule(tmp_path).prepare_data()
    (tmp_path / "data" / "holiday.JPG").touch()
    (tmp_path / "data" / "train-00000-of-00019.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"img_align_celeba: no such folder, but .* --config folder_wae_mmd"):
        CelebADataModule(tmp_path).prepare_data()


@pytest.mark.parametrize("name", ["list_attr_celeba.txt", "list_eval_partition.txt"])
def test_missing_list_is_named(root: Path, name: str) -> None:
    (root / "celeba" / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name}: no such file"):
        ready(root)
    assert not temporary_files(root)


def test_paper_split_needs_no_partition_file(root: Path) -> None:
    (root / "celeba/list_eval_partition.txt").unlink()
    assert len(ready(root, split="paper").train_set) == 26


def test_missing_picture_is_named_or_skipped(root: Path) -> None:
    (root / "celeba/img_align_celeba/000002.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"000002.jpg: no such picture.*1 of 30 are missing"):
        ready(root)
    assert not temporary_files(root)
    with pytest.warns(UserWarning, match=r"1 of 30 files were skipped: .*000002.jpg"):
        data = ready(root, on_error="skip")
    assert 1 not in data.train_set.rows
    assert len(data.train_set) == 15


def test_truncated_jpeg_is_named_or_skipped(root: Path) -> None:
    picture = root / "celeba/img_align_celeba/000005.jpg"
    picture.write_bytes(picture.read_bytes()[:900])
    with pytest.raises(ValueError, match=r"000005.jpg: not a complete picture"):
        ready(root)
    assert not temporary_files(root)
    with pytest.warns(UserWarning, match=r"1 of 30 files were skipped: .*000005.jpg"):
        data = ready(root, on_error="skip")
    assert len(data.train_set) == 15
    # the cache exists now, but remembers what it lacks
    with pytest.raises(ValueError, match=r"000005.jpg: not a complete picture .*\(one of 1; on_error='skip'"):
        ready(root)


def test_no_readable_picture_at_all(tmp_path: Path) -> None:
    root = draw_celeba(tmp_path, count=4)
    for picture in (root / "celeba/img_align_celeba").iterdir():
        picture.write_bytes(b"")
    with pytest.raises(ValueError, match="not one of the 4 files can be read"):
        ready(root, on_error="skip")
    assert not temporary_files(root)


def test_too_small_picture_is_named(tmp_path: Path) -> None:
    root = draw_celeba(tmp_path, count=4, size=(120, 150))
    with pytest.raises(ValueError, match=r"000001.jpg: 120 x 150 pixels are too few for a crop of 140"):
        ready(root)
    assert ready(root, crop="none").image_shape == (3, 64, 64)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("list_attr_celeba.txt", "30\n", "31\n", "line 1 promises 31 pictures, found 30 lines"),
        ("list_attr_celeba.txt", "30\n", "", "expected the number of pictures in line 1"),
        ("list_attr_celeba.txt", " Smiling", " Smiling Extra", "line 3: expected a file name and 4 small integers"),
        ("list_attr_celeba.txt", "000001.jpg ", "000001.jpg 1 ", "line 3: expected a file name and 3 small"),
        ("list_attr_celeba.txt", "000001.jpg  1", "000001.jpg  x", "line 3: expected .*found '000001.jpg  x"),
        ("list_attr_celeba.txt", "000001.jpg  1", "000001.jpg  0", "attributes must be -1 or 1, found 0"),
        ("list_attr_celeba.txt", "000001.jpg  1", "000001.jpg,1", "line 3: expected a file name and 3 small"),
        ("list_eval_partition.txt", "000003.jpg 1", "000003.jpg 3", "expected 0 .training., .*found 3"),
        ("list_eval_partition.txt", "000003.jpg 1", "000003.jpg -1", "expected 0 .training., .*found -1"),
        ("list_eval_partition.txt", "000003.jpg 1\n", "", "for each of the 30 .*found '000004.jpg' in line 3"),
        ("list_eval_partition.txt", "000030.jpg 0\n", "", "for each of the 30 .*found 29 lines"),
        ("list_eval_partition.txt", "000003.jpg 1", "000003.jpg", "line 3: expected a file name and 1 small"),
        ("list_eval_partition.txt", "000003.jpg 1", "000003.jpg 999", "line 3: expected a file name and 1 small"),
        ("list_eval_partition.txt", " 1\n", " 0\n", r"no picture is in part 1 \(validation\)"),
    ],
)
def test_damaged_lists_are_named(root: Path, name: str, old: str, new: str, message: str) -> None:
    path = root / "celeba" / name
    text = path.read_text().replace("000001.jpg -1", "000001.jpg  1")
    assert old in text
    path.write_text(text.replace(old, new) if old == " 1\n" else text.replace(old, new, 1))
    with pytest.raises(ValueError, match=f"{name}.*{message}"):
        ready(root)
    if old != " 1\n":
        assert not temporary_files(root)


# --- the forms in which the set is found ---


def rewrite_lists(root: Path, form: str) -> None:
    """Makes the authors' lists what Kaggle, editors and other systems make of them."""
    for path in sorted((root / "celeba").glob("list_*.txt")):
        lines = path.read_text().splitlines()
        head = "image_id,partition"
        if "attr" in path.name:
            head, lines = ",".join(["image_id", *lines[1].split()]), lines[2:]
        csv = "\n".join([head, *(",".join(line.split()) for line in lines)]) + "\n"
        forms = {
            "csv": csv,
            "csv with blank lines": csv + "\n\n",
            "csv with CRLF and a mark": "\ufeff" + csv.replace("\n", "\r\n"),
            "csv with quotes": "\n".join(f'"{line}"'.replace(",", '","') for line in csv.splitlines()),
            "csv with 0 and 1": csv.replace(",-1", ",0"),
            "csv with blanks": csv.replace(",", ", "),
        }
        text = path.read_text()
        forms |= {
            "blank lines": text + "\n \n\n",
            "CRLF": text.replace("\n", "\r\n"),
            "mark": "\ufeff" + text,
            "UTF-16": text,
        }
        path.unlink()
        new = path.with_suffix(".csv") if form.startswith("csv") else path
        new.write_text(forms[form], newline="", encoding="utf-16" if form == "UTF-16" else "utf-8")


def same(data: CelebADataModule, expected: CelebADataModule) -> bool:
    return data.attribute_names == expected.attribute_names and all(
        torch.equal(one.images[one.rows], other.images[other.rows])
        and torch.equal(one.labels[one.rows], other.labels[other.rows])
        for one, other in (
            (getattr(data, name), getattr(expected, name)) for name in ("train_set", "val_set", "test_set")
        )
    )


@pytest.mark.parametrize(
    "form",
    [
        "csv",
        "csv with blank lines",
        "csv with CRLF and a mark",
        "csv with quotes",
        "csv with 0 and 1",
        "csv with blanks",
        "blank lines",
        "CRLF",
        "mark",
        "UTF-16",
    ],
)
def test_forms_of_the_lists(tmp_path: Path, form: str, caplog: pytest.LogCaptureFixture) -> None:
    expected, root = ready(draw_celeba(tmp_path / "usual")), draw_celeba(tmp_path / "theirs")
    rewrite_lists(root, form)
    caplog.set_level("INFO")
    assert same(ready(root), expected)
    # whatever their form, they are not the authors' files
    ending = ".csv" if form.startswith("csv") else ".txt"
    assert f"not CelebA's own: list_attr_celeba{ending}, list_eval_partition{ending}." in caplog.text


@pytest.mark.parametrize("layout", ["kaggle", "flat", "drive", "png folder"])
def test_places_of_lists_and_pictures(tmp_path: Path, layout: str) -> None:
    expected, root = ready(draw_celeba(tmp_path / "usual")), draw_celeba(tmp_path / "theirs")
    folder = root / "celeba"
    pictures = folder / "img_align_celeba"
    if layout == "kaggle":
        rewrite_lists(root, "csv")
        pictures.rename(folder / "pictures")
        pictures.mkdir()
        (folder / "pictures").rename(pictures / "img_align_celeba")
        folder.rename(root / "archive")
        root = root / "archive"
        (root / "img_align_celeba" / "img_align_celeba" / "._000001.jpg").write_bytes(b"what a Mac leaves")
    elif layout == "flat":
        folder.rename(root / "archive")
        root = root / "archive"
    elif layout == "png folder":
        pictures.rename(folder / "img_align_celeba_png")
    else:
        for part, names in ("Anno", ["list_attr_celeba.txt"]), ("Eval", ["list_eval_partition.txt"]):
            (folder / part).mkdir()
            for name in names:
                (folder / name).rename(folder / part / name)
        (folder / "Img").mkdir()
        pictures.rename(folder / "Img" / "img_align_celeba")
    assert same(ready(root), expected)


@pytest.mark.parametrize("ending", [".png", ".PNG"])
def test_png_instead_of_jpeg(root: Path, tmp_path: Path, ending: str) -> None:
    expected = ready(root, cache_dir=tmp_path / "before")
    for path in (root / "celeba" / "img_align_celeba").glob("*.jpg"):
        Image.open(path).save(path.with_suffix(ending))
        path.unlink()
    assert same(ready(root, cache_dir=tmp_path / "after"), expected)


def test_partition_in_another_order(root: Path, tmp_path: Path) -> None:
    expected = ready(root, cache_dir=tmp_path / "before")
    path = root / "celeba" / "list_eval_partition.txt"
    path.write_text("\n".join(reversed(path.read_text().splitlines())))
    assert same(ready(root, cache_dir=tmp_path / "after"), expected)


def test_grey_is_pillows(root: Path) -> None:
    data = ready(root, channels=1, crop=100, image_size=100)
    assert data.image_shape == (1, 100, 100)
    with Image.open(root / "celeba" / "img_align_celeba" / "000001.jpg") as file:
        expected = np.asarray(file.convert("L"))[59:159, 39:139]
    assert np.array_equal(data.train_set[0][0][0], expected)
    # and the colours have a cache of their own
    assert ready(root, crop=100, image_size=100).train_set.images.shape[1] == 3


def test_list_that_is_no_text_is_named(root: Path) -> None:
    path = root / "celeba/list_eval_partition.txt"
    path.write_bytes(b"\xff" + path.read_bytes()[1:])
    with pytest.raises(ValueError, match=r"list_eval_partition.txt: .*found '\ufffd00001.jpg' in line 1 instead of"):
        ready(root)


def test_empty_list_is_named(root: Path) -> None:
    (root / "celeba/list_eval_partition.txt").write_text("")
    with pytest.raises(ValueError, match=r"list_eval_partition.txt: the list is empty"):
        ready(root)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop": "tight"}, "crop must be 'closecrop', 'none' or the side"),
        ({"crop": 0}, "crop must be"),
        ({"crop": -3}, "crop must be"),
        ({"image_size": 0}, "image_size must be at least 1"),
        ({"shift": -1}, "shift must be at least 0 pixels, got -1"),
        ({"split": "mine"}, "split must be"),
        ({"on_error": "ignore"}, "on_error must be"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"num_workers": -1}, "num_workers must be 0 or more"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CelebADataModule(**arguments)


def test_md5_is_reported_and_never_refused(
    root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    ready(root)
    assert "not CelebA's own: list_attr_celeba.txt, list_eval_partition.txt." in caplog.text
    lists = (root / "celeba").glob("*.txt")
    monkeypatch.setattr("datamodules.celeba._MD5", {path.name: md5(path.read_bytes()).hexdigest() for path in lists})
    ready(root, image_size=32)
    assert "By their md5 sums, the lists are CelebA's own." in caplog.text


def test_checkpoint_of_another_crop_warns(root: Path) -> None:
    state = CelebADataModule(root, crop=148).state_dict()
    with pytest.warns(UserWarning, match="trained on data with crop = 148; this CelebADataModule has 140"):
        CelebADataModule(root).load_state_dict(state)


def test_plot_draws_a_grid(root: Path, tmp_path: Path) -> None:
    data = ready(root, batch_size=9)
    batch = next(iter(data.train_dataloader()))
    figure = data.plot(batch)
    drawn = figure.axes[0].images[0].get_array()
    assert drawn.shape == (3 * 65 + 1, 3 * 65 + 1, 3)
    np.testing.assert_allclose(drawn[1:65, 1:65], batch[0][0].permute(1, 2, 0) / 255, atol=1e-6)
    figure.savefig(tmp_path / "figure.png")


# --- the full set ---


@pytest.mark.full_data
def test_emoji_set_agrees_with_torchvision(full_data: Path, tmp_path: Path) -> None:
    data = ready(full_data / "emoji_celeba", cache_dir=tmp_path)
    assert [len(part) for part in (data.train_set, data.val_set, data.test_set)] == [3835, 496, 492]
    transform = Compose([CenterCrop(140), Resize(64, interpolation=InterpolationMode.LANCZOS), PILToTensor()])
    theirs = TorchvisionCelebA(full_data / "emoji_celeba", split="train", transform=transform)
    names = [name for name in theirs.attr_names if name]
    assert data.attribute_names == names
    for index in range(0, len(theirs), 25):
        image, label = data.train_set[index]
        assert torch.equal(image, theirs[index][0])
        assert torch.equal(label, theirs[index][1])
