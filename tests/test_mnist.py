"""MNISTDataModule: the IDX format, the bundled digits, and what happens to bad files."""

import gzip
import io
import struct
import sys
import tracemalloc
import warnings

import h5py
import numpy as np
import pytest
import torch
import torchvision
from helpers import write_idx
from PIL import Image

from datamodules import MNISTDataModule
from datamodules.idx import find_idx_files, read_idx
from datamodules.mnist import BUNDLED_DIGITS, read_digits
from wae_lightning.lightning import seed_everything


def write_set(root, folder="MNIST", stems=("train", "t10k"), counts=(50, 20)):
    """A set of random digits in torchvision's layout."""
    rng = np.random.default_rng(0)
    for stem, count in zip(stems, counts, strict=True):
        raw = root / folder / "raw"
        write_idx(raw / f"{stem}-images-idx3-ubyte", rng.integers(0, 256, (count, 28, 28)))
        write_idx(raw / f"{stem}-labels-idx1-ubyte", rng.integers(0, 10, count))
    return root


def test_agrees_with_torchvision(tmp_path):
    root = write_set(tmp_path)
    data = MNISTDataModule(root, val_fraction=0.2)
    data.setup("fit")
    for ours, train in ((data.test_set, False), (data.train_set, True)):
        theirs = torchvision.datasets.MNIST(root, train=train)
        assert torch.equal(ours.images[:, 0], theirs.data)
        assert torch.equal(ours.labels, theirs.targets)


@pytest.mark.full_data
def test_the_full_set_agrees_with_torchvision(full_data):
    data = MNISTDataModule(full_data)
    data.setup("fit")
    assert (len(data.train_set), len(data.val_set), len(data.test_set)) == (54_000, 6_000, 10_000)
    theirs = torchvision.datasets.MNIST(full_data, train=False)
    assert torch.equal(data.test_set.images[:, 0], theirs.data)


def test_the_bundled_digits_are_used_where_there_is_nothing_else(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    data = MNISTDataModule()
    with caplog.at_level("INFO"):
        data.setup("fit")
    assert "using the bundled sample of 10,000 training and 2,000 test digits" in caplog.text
    assert (len(data.train_set), len(data.val_set), len(data.test_set)) == (9_000, 1_000, 2_000)
    assert set(data.test_set.labels.tolist()) == set(range(10))


def test_a_set_under_data_goes_before_the_bundled_digits(tmp_path, monkeypatch, caplog):
    write_set(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    data = MNISTDataModule()
    with caplog.at_level("INFO"):
        data.setup("fit")
    assert "Using 50 training and 20 test images" in caplog.text
    assert len(data.test_set) == 20


@pytest.mark.full_data
def test_the_bundled_digits_are_real_ones(full_data):
    bundled, full = MNISTDataModule(), MNISTDataModule(full_data)
    bundled.setup("fit")
    full.setup("fit")
    for part in ("train_set", "test_set"):
        known = {image.numpy().tobytes() for image in getattr(full, part).images}
        assert all(image.numpy().tobytes() in known for image in getattr(bundled, part).images)


def test_training_and_validation_are_disjoint_and_fixed_by_the_seed(tmp_path):
    root = write_set(tmp_path)

    def rows(seed):
        data = MNISTDataModule(root, split_seed=seed)
        data.setup("fit")
        return data.train_set.rows.tolist(), data.val_set.rows.tolist()

    train, val = rows(0)
    assert sorted(train + val) == list(range(50))
    assert len(val) == 5
    assert rows(0) == (train, val) != rows(1)


def test_batches_are_floats_in_0_1_made_after_the_transfer(tmp_path):
    data = MNISTDataModule(write_set(tmp_path), batch_size=8)
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    assert batch[0].dtype == torch.uint8
    images, labels = data.on_after_batch_transfer(batch, 0)
    assert images.dtype == torch.float32
    torch.testing.assert_close(images * 255, data.val_set.images[data.val_set.rows[:8]].float())
    assert labels.dtype == torch.int64


def test_each_epoch_shows_all_images_in_another_order_which_the_seed_fixes(tmp_path):
    data = MNISTDataModule(write_set(tmp_path), batch_size=9)
    data.setup("fit")

    def epochs():
        seed_everything(1, verbose=False)
        loader = data.train_dataloader()
        return [torch.cat([images for images, _ in loader]) for _ in range(2)]

    first, second = epochs()
    assert not torch.equal(first, second)
    everything = data.train_set.images[data.train_set.rows]
    assert torch.equal(first.flatten(1).unique(dim=0), everything.flatten(1).unique(dim=0))
    assert all(map(torch.equal, (first, second), epochs()))


def test_worker_processes_give_the_same_batches(tmp_path):
    root = write_set(tmp_path)
    batches = []
    for num_workers in (0, 2):
        data = MNISTDataModule(root, batch_size=8, num_workers=num_workers)
        data.setup("test")
        batches.append(torch.cat([images for images, _ in data.test_dataloader()]))
    assert torch.equal(*batches)


@pytest.mark.parametrize(
    ("variant", "folder", "stems"),
    [
        ("fashion", "FashionMNIST", ("train", "t10k")),
        ("kmnist", "KMNIST", ("train", "t10k")),
        ("emnist-letters", "EMNIST", ("emnist-letters-train", "emnist-letters-test")),
    ],
)
def test_other_sets_in_the_same_format(tmp_path, variant, folder, stems):
    data = MNISTDataModule(write_set(tmp_path, folder, stems), variant=variant)
    data.setup("fit")
    assert len(data.test_set) == 20


def test_gzipped_files_are_read(tmp_path):
    root = write_set(tmp_path)
    plain = root / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    expected = read_idx(plain, 3)
    packed = plain.with_name(plain.name + ".gz")
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    assert torch.equal(read_idx(packed, 3), expected)
    MNISTDataModule(root).setup("fit")
    packed.write_bytes(packed.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte.gz: not a complete gzip file"):
        MNISTDataModule(root).setup("fit")


@pytest.mark.parametrize("folder", ["MNIST/raw", "MNIST", "mnist", "mnist/raw", "raw", "."])
@pytest.mark.parametrize(
    "name",
    [
        "{part}-{kind}-idx{n}-ubyte",
        "{part}-{kind}.idx{n}-ubyte",
        "{part}-{kind}-idx{n}-ubyte.gz",
        "{part}-{kind}.idx{n}-ubyte.GZ",
        "{part}-{kind}-idx{n}-ubyte/{part}-{kind}-idx{n}-ubyte",
        "{part}-{kind}.idx{n}-ubyte/{part}-{kind}.idx{n}-ubyte",
        "archive/{part}-{kind}-idx{n}-ubyte",
        "{PART}-{KIND}-IDX{n}-UBYTE",
    ],
)
def test_names_and_places_of_archives_and_mirrors(tmp_path, folder, name):
    usual = write_set(tmp_path / "usual") / "MNIST" / "raw"
    root = tmp_path / "theirs"
    for part in ("train", "t10k"):
        for kind, n in (("images", 3), ("labels", 1)):
            new = name.format(part=part, kind=kind, n=n, PART=part.upper(), KIND=kind.upper())
            path = root / folder / new
            path.parent.mkdir(parents=True, exist_ok=True)
            content = (usual / f"{part}-{kind}-idx{n}-ubyte").read_bytes()
            path.write_bytes(gzip.compress(content) if new.lower().endswith(".gz") else content)
            (path.parent / f"._{path.name}").write_bytes(b"\x00\x05\x16\x07 what a Mac leaves")
    expected, data = MNISTDataModule(tmp_path / "usual"), MNISTDataModule(root)
    for module in (expected, data):
        module.setup("fit")
    for name in ("train_set", "test_set"):
        assert torch.equal(getattr(data, name).images, getattr(expected, name).images)
        assert torch.equal(getattr(data, name).labels, getattr(expected, name).labels)


def test_test_files_may_be_called_test(tmp_path):
    write_set(tmp_path, stems=("train", "test"))
    data = MNISTDataModule(tmp_path)
    data.setup("fit")
    assert len(data.test_set) == 20


def test_the_gzip_archive_of_emnist(tmp_path):
    write_set(tmp_path, "gzip", ("emnist-letters-train", "emnist-letters-test"))
    write_set(tmp_path, "gzip", ("emnist-digits-train", "emnist-digits-test"), counts=(30, 10))
    for path in (tmp_path / "gzip" / "raw").iterdir():
        (tmp_path / "gzip" / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    for variant, count in (("emnist-letters", 20), ("emnist-digits", 10)):
        data = MNISTDataModule(tmp_path, variant=variant)
        data.setup("fit")
        assert len(data.test_set) == count


def test_a_set_is_never_taken_for_another(tmp_path):
    """The files of MNIST, Fashion-MNIST and KMNIST have the same names: only the folder tells."""
    write_set(tmp_path, "MNIST")
    write_set(tmp_path, "fashion-mnist", counts=(30, 10))
    for variant, count in (("mnist", 20), ("fashion", 10)):
        data = MNISTDataModule(tmp_path, variant=variant)
        data.setup("fit")
        assert len(data.test_set) == count
    for root in (tmp_path, tmp_path / "MNIST", tmp_path / "MNIST" / "raw"):
        with pytest.raises(FileNotFoundError, match="Expected the IDX files of 'kmnist'"):
            MNISTDataModule(root, variant="kmnist").setup("fit")


def test_what_is_not_gzipped_goes_first(tmp_path):
    raw = write_set(tmp_path) / "MNIST" / "raw"
    (raw / "train-images-idx3-ubyte.gz").write_bytes(b"an old one")
    files = find_idx_files(tmp_path, "MNIST", ("train", "t10k"))
    assert sorted(files.values()) == sorted(path for path in raw.iterdir() if path.suffix != ".gz")


def test_gzipped_file_that_claims_or_holds_too_much_is_not_unpacked(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(b"\0\0\x08\x03" + struct.pack(">III", 10**6, 28, 28) + bytes(100)))
    with pytest.raises(ValueError, match=r"promises 1000000 x 28 x 28 .* bytes of data, found at most"):
        read_idx(path, 3)
    path.write_bytes(gzip.compress(b"\0\0\x08\x03" + struct.pack(">III", 1, 28, 28) + bytes(10**8)))
    tracemalloc.start()
    with pytest.raises(ValueError, match="found 785 or more"):
        read_idx(path, 3)
    assert tracemalloc.get_traced_memory()[1] < 1e7
    tracemalloc.stop()


# ---- NumPy archives, tables, Parquet ---------------------------------------------------------------------------------


def numbers_of_set(count=(50, 20)):
    """Random digits: (images (N, 28, 28), labels) for training and for the test."""
    rng = np.random.default_rng(0)
    return {
        part: (rng.integers(0, 256, (n, 28, 28), np.uint8), rng.integers(0, 10, n, np.uint8))
        for part, n in zip(("train", "test"), count, strict=True)
    }


def write_csv(path, images, labels=None, header=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = images.reshape(-1, 784) if labels is None else np.column_stack([labels, images.reshape(-1, 784)])
    lines = [header] * bool(header) + [",".join(map(str, row)) for row in rows]
    text = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


PIXELS = ",".join(f"pixel{i}" for i in range(784))
PLACES = ",".join(f"{i}x{j}" for i in range(1, 29) for j in range(1, 29))
CSV_FORMS = {
    "mnist_{part}.csv": f"label,{PLACES}",  # Kaggle
    "{part}.csv": f"label,{PIXELS}",
    "archive/MNIST_{part}.csv": f"\ufefflabel,{PLACES}",
    "mnist_{part}.csv.gz": None,  # without names of columns
    "{part}/digits.csv": f'"label",{PLACES}',
}


def write_npz(root, form, numbers):
    root.mkdir(parents=True, exist_ok=True)
    if form == "keras":
        arrays = {f"{x}_{part}": numbers[part][i] for part in numbers for i, x in enumerate("xy")}
        np.savez_compressed(root / "mnist.npz", **arrays)
    else:
        for part in numbers:
            np.savez_compressed(root / f"kmnist-{part}-imgs.npz", numbers[part][0])
            np.savez_compressed(root / f"kmnist-{part}-labels.npz", numbers[part][1])


def write_parquet(path, images, labels, column="image"):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        pictures.append({"bytes": buffer.getvalue(), "path": None})
    parquet.write_table(pa.table({column: pictures, "label": labels.astype(np.int64)}), path)


def assert_holds(data, numbers):
    data.setup("fit")
    images, labels = numbers["train"]
    assert np.array_equal(data.train_set.images[:, 0], images)
    assert data.train_set.labels.tolist() == labels.tolist()
    assert np.array_equal(data.test_set.images[:, 0], numbers["test"][0])
    assert data.test_set.labels.tolist() == numbers["test"][1].tolist()
    assert data.train_set.labels.dtype == torch.int64
    assert sorted([*data.train_set.rows.tolist(), *data.val_set.rows.tolist()]) == list(range(len(images)))


@pytest.mark.parametrize("form", CSV_FORMS)
def test_tables_of_pixels(tmp_path, form):
    numbers = numbers_of_set()
    for part, (images, labels) in numbers.items():
        write_csv(tmp_path / form.format(part=part), images, labels, CSV_FORMS[form])
    assert_holds(MNISTDataModule(tmp_path), numbers)


@pytest.mark.parametrize("form", ["keras", "kmnist"])
def test_numpy_archives(tmp_path, form):
    numbers = numbers_of_set()
    write_npz(tmp_path / "datasets", form, numbers)
    assert_holds(MNISTDataModule(tmp_path, variant="mnist" if form == "keras" else "kmnist"), numbers)


@pytest.mark.parametrize(
    ("names", "column"),
    [
        ("{part}-00000-of-00001.parquet", "image"),
        ("mnist/{part}-00000-of-00001.parquet", "image"),
        ("data/{part}-00000-of-00001-b42a.parquet", "img"),
        ("mnist/{part}/0000.parquet", "image"),
    ],
)
def test_parquet_of_hugging_face(tmp_path, names, column):
    numbers = numbers_of_set((30, 10))
    for part, (images, labels) in numbers.items():
        write_parquet(tmp_path / names.format(part=part), images, labels, column)
    assert_holds(MNISTDataModule(tmp_path), numbers)


def test_parquet_in_two_files(tmp_path):
    numbers = numbers_of_set((30, 10))
    for number, rows in enumerate((slice(20), slice(20, 30))):
        images, labels = (x[rows] for x in numbers["train"])
        write_parquet(tmp_path / f"train-{number:05d}-of-00002.parquet", images, labels)
    write_parquet(tmp_path / "test-00000-of-00001.parquet", *numbers["test"])
    assert_holds(MNISTDataModule(tmp_path), numbers)


def test_parquet_without_pyarrow_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for part in ("train", "test"):
        (tmp_path / f"{part}-00000-of-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(ModuleNotFoundError, match=r"train-.*: pip install pyarrow, or take the set as IDX"):
        MNISTDataModule(tmp_path).setup("fit")


def test_kaggles_competition_has_no_labels_for_its_test(tmp_path):
    images, labels = numbers_of_set()["train"]
    write_csv(tmp_path / "train.csv", images, labels, f"label,{PIXELS}")
    write_csv(tmp_path / "test.csv", images[:7], None, PIXELS)
    (tmp_path / "sample_submission.csv").write_text("ImageId,Label\n1,0\n")
    data = MNISTDataModule(tmp_path, val_fraction=0.2)
    with pytest.warns(
        UserWarning, match=r"test.csv has no labels: 10 of the training images, drawn at random, are the"
    ):
        data.setup("fit")
    parts = [part.rows.tolist() for part in (data.train_set, data.val_set, data.test_set)]
    assert [len(rows) for rows in parts] == [32, 8, 10]
    assert sorted(row for rows in parts for row in rows) == list(range(50))
    assert np.array_equal(data.test_set.images[:, 0], images)


def test_tables_of_one_set_are_not_taken_for_another(tmp_path):
    numbers, others = numbers_of_set(), numbers_of_set((30, 10))
    for part in ("train", "test"):
        write_csv(tmp_path / f"mnist_{part}.csv", *numbers[part])
        write_csv(tmp_path / f"fashion-mnist_{part}.csv", *others[part])
        write_csv(tmp_path / f"emnist-letters-{part}.csv", *others[part])
    assert_holds(MNISTDataModule(tmp_path), numbers)
    assert_holds(MNISTDataModule(tmp_path, variant="fashion"), others)
    assert_holds(MNISTDataModule(tmp_path, variant="emnist-letters"), others)
    for variant in ("kmnist", "emnist-digits"):
        with pytest.raises(FileNotFoundError, match=f"Expected the IDX files of '{variant}'"):
            MNISTDataModule(tmp_path, variant=variant).setup("fit")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.csv", b"label,pixel0\n5,0\n", "expected a label and 784 pixels in each line, found 2 numbers"),
        ("train.csv", b"", "train.csv: "),
        ("train.csv", b"label,a\n1,x\n", "not a table of whole numbers"),
        ("train.csv", b"1," + b"999," * 783 + b"0\n", "expected pixels from 0 to 255"),
        ("train.csv", b",".join([b"0"] * 784) + b"\n", "train.csv: it has no labels"),
        ("train.csv.gz", b"\x1f\x8b\x08\0\0\0\0\0\0\3ab", "not a table of whole numbers"),
        ("mnist.npz", b"PK no archive", "mnist.npz: not an NPZ file of plain arrays"),
        ("mnist.npz", {"x": np.zeros((2, 28, 28))}, "expected arrays x_train and y_train"),
        ("mnist.npz", {"x_train": np.zeros((2, 8, 8)), "y_train": np.zeros(2)}, "images of 28 x 28, found"),
        ("mnist.npz", {"x_train": np.zeros((2, 28, 28)), "y_train": np.zeros(3)}, "3 labels for 2 images"),
        ("mnist.npz", {"x_train": np.full((2, 28, 28), 0.5), "y_train": np.zeros(2)}, "found fractions up to 0.5"),
        ("mnist.npz", {"x_train": np.array([{}]), "y_train": np.zeros(1)}, "not an NPZ file of plain arrays"),
        ("train.parquet", b"PAR1 no more", "train.parquet: not a Parquet file"),
    ],
)  # fmt: skip
def test_damaged_tables_are_refused_by_name(tmp_path, name, content, message):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    if isinstance(content, dict):
        np.savez(tmp_path / name, **content)
    else:
        (tmp_path / name).write_bytes(content)
    warnings.simplefilter("ignore")  # NumPy's, of a table without a line; pytest takes it back
    with pytest.raises(ValueError, match=message) as caught:
        MNISTDataModule(tmp_path).setup("fit")
    assert str(tmp_path / name) in str(caught.value)


def test_downloads_go_through_torchvision(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(torchvision.datasets, "KMNIST", lambda *a, **k: calls.append((a, k)))
    monkeypatch.setattr(torchvision.datasets, "EMNIST", lambda *a, **k: calls.append((a, k)))
    MNISTDataModule(tmp_path, variant="kmnist", download=True).prepare_data()
    MNISTDataModule(tmp_path, variant="emnist-digits", download=True).prepare_data()
    MNISTDataModule(tmp_path).prepare_data()
    assert calls == [((tmp_path,), {"download": True}), ((tmp_path,), {"split": "digits", "download": True})]


def damage(root, part, change):
    path = root / "MNIST" / "raw" / part
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("train-images-idx3-ubyte", lambda b: b[:-5], r"50 x 28 x 28 = 39200.*found 39195.*truncated"),
        ("train-images-idx3-ubyte", lambda b: b + b"x", "found 39201"),
        ("train-images-idx3-ubyte", lambda b: b[:10], "10 bytes are fewer than the 16 of an IDX header"),
        ("t10k-labels-idx1-ubyte", lambda b: b"\x89PNG" + b[4:], "the IDX magic number 00000801, found 89504e47"),
        ("t10k-labels-idx1-ubyte", lambda b: b"", "found nothing"),
        ("t10k-labels-idx1-ubyte", lambda b: b[:4] + struct.pack(">I", 19) + b[8:-1], "19 labels for the 20 images"),
        (
            "train-images-idx3-ubyte",
            lambda b: b[:8] + struct.pack(">II", 56, 14) + b[16:],
            "expected images of 28 x 28, found 56 x 14",
        ),
        ("train-images-idx3-ubyte", lambda b: b[:4] + b"\xff" * 12, "its header promises"),
    ],
)  # fmt: skip
def test_damaged_files_are_refused_by_name(tmp_path, part, change, message):
    root = write_set(tmp_path)
    damage(root, part, change)
    with pytest.raises(ValueError, match=message):
        MNISTDataModule(root).setup("fit")


def test_missing_files_and_bad_arguments_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such folder\. Expected the IDX files of 'mnist' there"):
        MNISTDataModule(tmp_path).setup("fit")
    with pytest.raises(FileNotFoundError, match="Expected the IDX files of 'fashion'"):
        MNISTDataModule(variant="fashion").setup("fit")
    root = write_set(tmp_path)
    (root / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"t10k-labels-idx1-ubyte: no such file, and no .*\.gz beside it"):
        MNISTDataModule(root).setup("fit")
    with pytest.raises(ValueError, match=r"variant must be one of mnist, fashion, .* got 'cifar'"):
        MNISTDataModule(variant="cifar")
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        MNISTDataModule(batch_size=0)
    with pytest.raises(ValueError, match="num_workers must be 0 or more, got -1"):
        MNISTDataModule(num_workers=-1)
    with pytest.raises(ValueError, match="val_fraction must leave both parts some"):
        MNISTDataModule(val_fraction=1.0).setup("fit")


IMAGES, LABELS = np.zeros((3, 28, 28), np.uint8), np.zeros(3, np.uint8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train_images": IMAGES}, "expected uint8 arrays train_images and train_labels"),
        ({"train_images": IMAGES.astype(float), "train_labels": LABELS}, "expected uint8 arrays"),
        ({"train_images": IMAGES[:2], "train_labels": LABELS}, r"found train_images of \(2, 28, 28\), train_labels of"),
        ({"train_images": IMAGES[:, 1:], "train_labels": LABELS}, r"found train_images of \(3, 27, 28\)"),
        (
            {"train_images": (10**10, 28, 28), "train_labels": (10**10,)},
            "train_images claims the shape .* more than the file can hold",
        ),
    ],
)
def test_damaged_digits_are_named(tmp_path, content, message):
    path = tmp_path / "digits.h5"
    with h5py.File(path, "w") as file:
        for name, value in content.items():
            if isinstance(value, tuple):  # claimed, never written
                file.create_dataset(name, value, np.uint8, chunks=(1000, *value[1:]))
            else:
                file[name] = value
    with pytest.raises(ValueError, match=rf"digits.h5: {message}"):
        read_digits(path, "train")
    path.write_bytes(BUNDLED_DIGITS.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"digits.h5: not a complete HDF5 file \("):
        read_digits(path, "train")


@pytest.mark.parametrize("seed", [-1, 2**32, 10**30, None, True, 0.5, "0"])
def test_a_split_seed_is_a_whole_number(seed):
    with pytest.raises(ValueError, match="split_seed must be a whole number"):
        MNISTDataModule(split_seed=seed)
