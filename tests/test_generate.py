"""generate.py: every kind of picture and file, from a lone checkpoint, and one sentence for each mistake."""

import csv
import io
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from test_modelnet40 import write_off

from datamodules import MNISTDataModule, ModelNet40DataModule
from wae_lightning import WAEMMD, PointNetWAE
from wae_lightning.callbacks.pictures import in_unit_range
from wae_lightning.captions import LINE
from wae_lightning.cli.generate import draw, main, write, write_ply
from wae_lightning.cli.inputs import read_images, read_inputs
from wae_lightning.cli.load import load_data, load_model
from wae_lightning.priors import Normal

GIVEN = SimpleNamespace(
    num_samples=1, steps=5, components=1, seed=0, sampler="prior", ckpt=None, through="codes", refine_steps=0
)
POINTS = [
    "--model.num_points=64", "--model.decoder.num_points=64", "--data.num_points=64", "--data.classes=[chair,lamp]",
    "--trainer.callbacks=[]",
]  # fmt: skip


@pytest.fixture(scope="module")
def digits(trained, tmp_path_factory):
    """A checkpoint moved to a folder of its own."""
    path = tmp_path_factory.mktemp("moved") / "model.ckpt"
    path.write_bytes(trained("mnist_wae_mmd").read_bytes())
    return path


@pytest.fixture(scope="module")
def clouds(trained):
    return trained("modelnet40_pointnet", *POINTS)


@pytest.fixture(scope="module")
def conditional(trained):
    return trained("mnist_conditional", "--data.batch_size=10", "--trainer.callbacks=[]")


def samples_of(path):
    with np.load(path) as file:
        assert file.files == ["samples"]
        return torch.from_numpy(file["samples"])


def test_samples_are_the_models_own(digits, tmp_path):
    main([str(digits), "--num_samples", "10", "--seed", "3", "--out", str(tmp_path / "a.npz")])
    samples = samples_of(tmp_path / "a.npz")
    assert samples.dtype == torch.float32
    expected = load_model(digits).sample(10, torch.Generator().manual_seed(3))
    torch.testing.assert_close(samples, expected)
    main([str(digits), "--num_samples", "10", "--seed", "4", "--out", str(tmp_path / "b.npz")])
    assert not torch.equal(samples_of(tmp_path / "b.npz"), samples)


def test_reconstructions_are_of_refined_codes(digits, tmp_path):
    main([str(digits), "--num_samples", "3", "--out", str(tmp_path / "x.npz")])
    flags = [str(digits), "--what", "reconstruction", "--inputs", str(tmp_path / "x.npz"), "--refine_steps", "4"]
    main([*flags, "--out", str(tmp_path / "r.npz")])
    expected = load_model(digits)(samples_of(tmp_path / "x.npz"), refine_steps=4).detach()
    torch.testing.assert_close(samples_of(tmp_path / "r.npz"), expected, atol=1e-5, rtol=0)


def test_a_grid_and_a_folder_show_the_same_samples(digits, tmp_path):
    main([str(digits), "--num_samples", "6", "--out", str(tmp_path / "grid.png")])
    main([str(digits), "--num_samples", "6", "--out", str(tmp_path / "folder")])
    main([str(digits), "--num_samples", "6", "--out", str(tmp_path / "a.npz")])
    with Image.open(tmp_path / "grid.png") as grid:
        # at least 900 pixels wide, by a whole factor, below a line of text
        assert grid.size == (10 * (3 * 30 + 2), 10 * (2 * 30 + 2) + LINE)
        assert grid.getpixel((10, LINE + 10)) == (255, 255, 255)  # between pictures
        grid_array = np.asarray(grid.convert("L"))[LINE::10, ::10]
    files = sorted((tmp_path / "folder").iterdir())
    assert [file.name for file in files] == [f"{i:05d}.png" for i in range(6)]
    for i, file in enumerate(files):
        with Image.open(file) as image:
            array = np.asarray(image)
        assert np.abs(array / 255 - samples_of(tmp_path / "a.npz")[i, 0].numpy()).max() <= 1 / 255
        top, left = 2 + 30 * (i // 3), 2 + 30 * (i % 3)
        assert np.abs(grid_array[top : top + 28, left : left + 28].astype(int) - array).max() <= 1
    assert not list(tmp_path.glob(".*"))


def test_the_mixture_is_fitted_to_the_codes_in_the_checkpoint(digits, tmp_path):
    main([str(digits), "--sampler", "gmm", "--components", "2", "--num_samples", "4", "--out", str(tmp_path / "a.npz")])
    main([str(digits), "--num_samples", "4", "--out", str(tmp_path / "b.npz")])
    assert samples_of(tmp_path / "a.npz").shape == (4, 1, 28, 28)
    assert not torch.equal(samples_of(tmp_path / "a.npz"), samples_of(tmp_path / "b.npz"))


def test_lines_lead_from_input_to_input(digits, tmp_path):
    main([str(digits), "--num_samples", "3", "--out", str(tmp_path / "in.npz")])
    flags = ["--what", "interpolation", "--steps", "5", "--inputs", str(tmp_path / "in.npz")]
    main([str(digits), *flags, "--out", str(tmp_path / "lines.npz")])
    lines = samples_of(tmp_path / "lines.npz").unflatten(0, (2, 5))
    reconstructions = load_model(digits)(samples_of(tmp_path / "in.npz")).detach()
    torch.testing.assert_close(lines[0, 0], reconstructions[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(lines[0, -1], reconstructions[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(lines[1, 0], reconstructions[1], atol=1e-5, rtol=0)
    main([str(digits), *flags, "--out", str(tmp_path / "lines.gif")])
    with Image.open(tmp_path / "lines.gif") as gif:
        # there and back; equal frames may have been joined
        assert 2 <= gif.n_frames <= 8


def test_traversals_move_one_dimension_in_each_row(digits, tmp_path):
    """Each row leads through another sample, or all through the first input."""
    model, flags = load_model(digits), ["--what", "traversal", "--through", "z", "--steps", "3"]
    main([str(digits), *flags, "--out", str(tmp_path / "t.npz")])
    start = model.prior.sample(16, torch.Generator().manual_seed(0))
    image = torch.rand(2, 1, 28, 28)
    np.savez(tmp_path / "in.npz", samples=image.numpy())
    main([str(digits), *flags, "--inputs", str(tmp_path / "in.npz"), "--out", str(tmp_path / "of_input.npz")])
    with torch.no_grad():
        for file, codes in (("t", start), ("of_input", model.encode(image[:1]).expand(16, -1))):
            rows = samples_of(tmp_path / f"{file}.npz").unflatten(0, (16, 3))
            for column, value in enumerate((-2.0, 0.0, 2.0)):
                moved = torch.where(torch.eye(16) > 0, value, codes)
                torch.testing.assert_close(rows[:, column], model.decode(moved), atol=1e-4, rtol=0)


def test_pictures_of_any_size_are_reconstructed(digits, tmp_path):
    Image.fromarray(np.full((50, 40, 3), 90, dtype=np.uint8)).save(tmp_path / "photo.jpg")
    flags = ["--what", "reconstruction", "--inputs", str(tmp_path / "photo.jpg")]
    main([str(digits), *flags, "--out", str(tmp_path / "r.npz")])
    expected = load_model(digits)(torch.full((1, 1, 28, 28), 90 / 255)).detach()
    torch.testing.assert_close(samples_of(tmp_path / "r.npz"), expected, atol=0.02, rtol=0)
    many = [str(tmp_path / "photo.jpg")] * 12
    main([str(digits), "--what", "reconstruction", "--inputs", *many, "--out", str(tmp_path / "r.png")])
    with Image.open(tmp_path / "r.png") as grid:
        left = grid.width - 3 * (10 * 30 + 2)  # the names of the rows
        assert 40 < left < 80
        assert grid.height == 3 * (4 * 30 + 2) + LINE


def test_pictures_of_any_depth_are_read_alike(tmp_path):
    """A grey of 8 bits, of 16, as floats, and a turned photograph, the right way up."""
    grey = np.linspace(10, 240, 28, dtype=np.uint8).repeat(28).reshape(28, 28)
    Image.fromarray(grey).save(tmp_path / "8.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.png")
    Image.fromarray((grey / 255).astype(np.float32)).save(tmp_path / "float.tif")
    turned, note = Image.fromarray(np.rot90(grey)), Image.Exif()
    note[0x0112] = 6  # to be turned clockwise
    turned.save(tmp_path / "turned.png", exif=note)
    for name in ("8.png", "16.png", "float.tif", "turned.png"):
        images = read_images(tmp_path / name, (1, 28, 28))
        assert images.shape == (1, 1, 28, 28)
        assert images.dtype == torch.float32
        torch.testing.assert_close(images[0, 0], torch.tensor(grey / 255, dtype=torch.float32), msg=name)


@pytest.mark.parametrize("ending", ["off", "ply", "txt", "npy", "npz"])
def test_clouds_of_any_format_are_normalized_as_the_training_data_was(clouds, tmp_path, ending):
    """By the definition of each normalization, on a cloud that lies far away."""
    points = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32) * 3 + 50
    path = tmp_path / f"cloud.{ending}"
    rows = "\n".join(" ".join(map(str, point)) for point in points) + "\n"
    if ending == "off":
        path.write_text(f"OFF\n64 0 0\n{rows}")
    elif ending == "ply":
        write_ply(torch.from_numpy(points), path)
    elif ending == "txt":
        path.write_text(rows)
    else:
        (np.save if ending == "npy" else lambda path, x: np.savez(path, samples=x))(path, points)
    middle = (points.min(0) + points.max(0)) / 2
    centred = points - points.mean(0)
    content = torch.load(clouds, weights_only=True)
    for how, expected in (
        (None, centred / np.linalg.norm(centred, axis=1).max()),
        ("unit_sphere", centred / np.linalg.norm(centred, axis=1).max()),
        ("unit_box", (points - middle) / (points.max(0) - points.min(0)).max()),
        ("whole_set", (points - np.array([1.0, 2.0, 3.0])) / 4),
        ("none", points),
    ):
        content["datamodule_hyper_parameters"].pop("normalization", None)
        if how is not None:
            content["datamodule_hyper_parameters"]["normalization"] = how
        content["ModelNet40DataModule"] |= {"center": [1.0, 2.0, 3.0], "size": 4.0}
        torch.save(content, tmp_path / "model.ckpt")
        read = read_inputs([path], tmp_path / "model.ckpt", PointNetWAE(latent_dim=4, num_points=64))
        torch.testing.assert_close(read[0], torch.tensor(expected, dtype=torch.float32), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("how", ["unit_sphere", "whole_set"])
def test_a_mesh_of_the_training_set_is_read_as_it_was_for_training(tmp_path, clouds, how):
    write_off(tmp_path)
    data = ModelNet40DataModule(tmp_path, num_points=64, normalization=how, cache_dir=tmp_path / "cache")
    data.prepare_data()
    data.setup()
    content = torch.load(clouds, weights_only=True)
    content["datamodule_hyper_parameters"]["normalization"] = how
    content["ModelNet40DataModule"] = data.state_dict()
    torch.save(content, tmp_path / "model.ckpt")
    path = sorted((tmp_path / "ModelNet40").glob("*/test/*.off"))[0]
    read = read_inputs([path], tmp_path / "model.ckpt", PointNetWAE(latent_dim=4, num_points=64))[0]
    stored = data.test_set.points[0]
    sides = [points.amax(0) - points.amin(0) for points in (read, stored)]
    assert sides[1].argmax() == 1  # these boxes are tall, and y is up
    torch.testing.assert_close(sides[0], sides[1], atol=0.15 * float(sides[1].max()), rtol=0)
    torch.testing.assert_close(read.mean(0), stored.mean(0), atol=0.3 * float(sides[1].max()), rtol=0)


def test_a_folder_that_holds_other_samples_is_refused(digits, tmp_path, capsys):
    out = str(tmp_path / "folder")
    main([str(digits), "--num_samples", "5", "--out", out])
    main([str(digits), "--num_samples", "5", "--out", out])
    with pytest.raises(SystemExit) as stop:
        main([str(digits), "--num_samples", "2", "--out", out])
    assert stop.value.code == 2
    assert "folder: the folder holds others, such as 00002.png; name an empty one" in capsys.readouterr().err


@pytest.mark.parametrize(
    "state", [{}, {"center": [1.0, 2.0, 3.0]}, {"center": [1.0], "size": 1.0}, {"center": [0.0] * 3, "size": 0.0}]
)
def test_a_set_whose_size_is_unknown_normalizes_no_inputs(clouds, tmp_path, capsys, state):
    content = torch.load(clouds, weights_only=True)
    content["datamodule_hyper_parameters"]["normalization"] = "whole_set"
    content["ModelNet40DataModule"] = state
    torch.save(content, tmp_path / "model.ckpt")
    np.savez(tmp_path / "a.npz", samples=np.ones((1, 64, 3)))
    flags = ["--out", str(tmp_path / "out.npz")]
    with pytest.raises(SystemExit):
        main([str(tmp_path / "model.ckpt"), "--what", "reconstruction", "--inputs", str(tmp_path / "a.npz"), *flags])
    assert "normalized as whole_set, by a center and a size that it does not hold" in capsys.readouterr().err
    main([str(tmp_path / "model.ckpt"), "--num_samples", "2", *flags])


def test_a_trained_set_normalizes_inputs_by_its_own_size(trained, tmp_path):
    checkpoint = trained("modelnet40_pointnet", *POINTS, "--data.normalization=whole_set")
    arguments = torch.load(checkpoint, weights_only=True)["datamodule_hyper_parameters"]
    data = ModelNet40DataModule(**{name: value for name, value in arguments.items() if not name.startswith("_")})
    assert data.normalization == "whole_set"
    data.setup()
    points = torch.randn(1, 64, 3).double()
    np.save(tmp_path / "a.npy", points.numpy())
    read = read_inputs([tmp_path / "a.npy"], checkpoint, PointNetWAE(latent_dim=4, num_points=64))
    expected = (points - torch.tensor(data.moments["center"])) / data.moments["size"]
    torch.testing.assert_close(read, expected.float())


def test_point_clouds_are_written_as_arrays_ply_and_pictures(clouds, tmp_path):
    main([str(clouds), "--num_samples", "2", "--out", str(tmp_path / "a.npz")])
    samples = samples_of(tmp_path / "a.npz")
    assert samples.shape == (2, 64, 3)
    main([str(clouds), "--num_samples", "2", "--out", str(tmp_path / "folder")])
    header, _, body = (tmp_path / "folder" / "00001.ply").read_bytes().partition(b"end_header\n")
    assert b"element vertex 64\n" in header
    assert np.array_equal(np.frombuffer(body, "<f4").reshape(64, 3), samples[1].numpy())
    main([str(clouds), "--num_samples", "2", "--sampler", "gmm", "--components", "1", "--out", str(tmp_path / "a.png")])
    with Image.open(tmp_path / "a.png") as picture:
        assert len(picture.getcolors(100_000)) > 20
    flags = ["--what", "reconstruction", "--inputs", str(tmp_path / "a.npz"), "--out", str(tmp_path / "r.npz")]
    main([str(clouds), *flags])
    assert samples_of(tmp_path / "r.npz").shape == (2, 64, 3)
    (tmp_path / "t.off").write_text("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n")
    main(
        [str(clouds), "--what", "reconstruction", "--inputs", str(tmp_path / "t.off"), "--out", str(tmp_path / "b.npz")]
    )


def test_a_conditional_model_completes_pictures(conditional, tmp_path):
    np.savez(tmp_path / "in.npz", samples=np.random.default_rng(0).random((3, 1, 28, 28), dtype=np.float32))
    flags = ["--what", "completion", "--inputs", str(tmp_path / "in.npz")]
    main([str(conditional), *flags, "--out", str(tmp_path / "c.npz")])
    rows = samples_of(tmp_path / "c.npz").unflatten(0, (3, 9))
    # the upper half stays, the lower differs from answer to answer
    assert torch.equal(rows[:, 1:, :, :14], rows[:, :1, :, :14].expand(-1, 8, -1, -1, -1))
    assert not torch.equal(rows[:, 1, :, 14:], rows[:, 2, :, 14:])


# ---- codes -----------------------------------------------------------------------------------------------------------


def absolute_error(x, y):
    """The default model's cost, by its definition."""
    return 0.05 * (x - y).abs().flatten(1).sum(1)


@torch.no_grad()
@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_codes_of_the_data_of_the_checkpoint(digits, tmp_path, part):
    out = tmp_path / "new" / "codes.npz"
    main([str(digits), "--what", "codes", "--part", part, "--data.batch_size=301", "--out", str(out)])
    with np.load(out, allow_pickle=False) as file:
        assert set(file.files) == {"z", "cost", "labels"}
        found = {name: torch.from_numpy(file[name]) for name in file.files}
    data = MNISTDataModule(val_fraction=0.08334)
    data.setup("fit")
    images, labels = getattr(data, f"{part}_set").__getitems__(range(len(found["z"])))
    assert len(found["z"]) == len(getattr(data, f"{part}_set"))
    model, x = load_model(digits), images[:50].float() / 255
    torch.testing.assert_close(found["z"][:50], model.encode(x), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found["cost"][:50], absolute_error(x, model(x)), atol=1e-3, rtol=1e-4)
    assert torch.equal(found["labels"], labels.long())
    assert [path.name for path in out.parent.iterdir()] == ["codes.npz"]


@torch.no_grad()
def test_codes_of_a_folder(digits, tmp_path):
    rng = np.random.default_rng(0)
    pictures = {}
    for name in ("b/1.png", "a/2.png", "a/deep/3.png", "0.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        pictures[name] = rng.integers(0, 256, (28, 28), np.uint8)
        Image.fromarray(pictures[name]).save(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    np.savez(tmp_path / "in" / "more.npz", samples=rng.random((2, 1, 28, 28), np.float32))
    flags = ["--what=codes", f"--inputs={tmp_path / 'in'}"]
    main([str(digits), *flags, f"--out={tmp_path / 'c.csv'}"])
    main([str(digits), *flags, f"--out={tmp_path / 'c.npz'}"])
    with (tmp_path / "c.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = ["0.png", "a/2.png", "a/deep/3.png", "b/1.png", "more.npz[0]", "more.npz[1]"]
    assert [row["name"] for row in rows] == names
    assert [row["label"] for row in rows] == ["-1", "0", "0", "1", "-1", "-1"]
    assert [row["class"] for row in rows] == ["", "a", "a", "b", "", ""]
    model = load_model(digits)
    for name, row in zip(names[:4], rows, strict=False):
        x = torch.tensor(pictures[name])[None, None] / 255
        assert [float(row[f"z{i}"]) for i in range(16)] == pytest.approx(model.encode(x)[0].tolist(), abs=1e-4)
        assert float(row["cost"]) == pytest.approx(absolute_error(x, model(x)).item(), rel=1e-4)
    with np.load(tmp_path / "c.npz") as file:
        assert file["names"].tolist() == names
        assert file["class_names"].tolist() == ["a", "b"]
        assert file["cost"].tolist() == pytest.approx([float(row["cost"]) for row in rows])
    # one picture, given by its path, has no label
    main([str(digits), "--what=codes", f"--inputs={tmp_path / 'in/0.png'}", f"--out={tmp_path / 'c.csv'}"])
    header, row = (tmp_path / "c.csv").read_text().splitlines()
    assert header == ",".join(["name", "cost", *(f"z{i}" for i in range(16))])
    assert row.startswith(f"{tmp_path / 'in/0.png'},")


@torch.no_grad()
def test_codes_of_clouds_and_of_halves(clouds, conditional, tmp_path):
    main([str(clouds), "--what", "codes", "--out", str(tmp_path / "c.npz")])
    model = load_model(clouds)
    data = load_data(clouds, {})
    data.setup("test")
    points, labels = data.test_set.__getitems__(range(5))
    with np.load(tmp_path / "c.npz") as file:
        assert file["labels"][:5].tolist() == labels.tolist()
        assert file["class_names"].tolist() == data.class_names
        z, cost = torch.from_numpy(file["z"][:5]), torch.from_numpy(file["cost"][:5])
    torch.testing.assert_close(z, model.encode(points), atol=1e-4, rtol=1e-4)
    squared = (points[:, :, None] - model(points)[:, None]).square().sum(-1)
    chamfer = squared.amin(2).mean(1) + squared.amin(1).mean(1)
    torch.testing.assert_close(cost, model.cost.scale * chamfer, atol=1e-4, rtol=1e-3)
    np.savez(tmp_path / "in.npz", samples=np.random.default_rng(0).random((3, 1, 28, 28), np.float32))
    for source in ([], ["--inputs", str(tmp_path / "in.npz")]):
        main([str(conditional), "--what", "codes", *source, "--out", str(tmp_path / "h.npz")])
        with np.load(tmp_path / "h.npz") as file:
            assert len(file["z"]) == len(file["cost"]) == (3 if source else 2000)
            assert ("labels" in file.files) != bool(source)


@torch.no_grad()
def test_pictures_of_a_model_of_another_range(tmp_path):
    """What is read is scaled to the model's range, what is written back to [0, 1]."""
    model = WAEMMD(
        encoder=torch.nn.Flatten(), decoder=torch.nn.Unflatten(1, (1, 4, 4)), latent_dim=16, input_range=(-1, 1)
    )
    Image.fromarray(np.full((4, 4), 51, np.uint8)).save(tmp_path / "fifth.png")
    assert read_inputs([tmp_path / "fifth.png"], tmp_path, model).flatten().tolist() == pytest.approx([-0.6] * 16)
    rows = in_unit_range(model, draw(model, "reconstruction", [tmp_path / "fifth.png"], GIVEN))
    assert rows.flatten().tolist() == pytest.approx([0.2] * 32)
    model.input_range = None
    with pytest.raises(ValueError, match="input_range is None, so nobody knows how its pictures were scaled"):
        read_inputs([tmp_path / "fifth.png"], tmp_path, model)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--what", "codes", "--out", "a.png"], "--out a.png: expected .npz or .csv for --what codes"),
        (["--what", "codes", "--num_samples", "3"], "--num_samples has no meaning for --what codes"),
        (["--what", "codes", "--data.rot=x"], "--data.rot: MNISTDataModule takes batch_size, "),
        (["--what", "codes", "--data.root=x", "--inputs", "text.png"], "either --inputs or --data.NAME say what is"),
        (["--what", "codes", "--inputs", "empty"], "--inputs empty: there is no file in this folder that ends as"),
        (["--data.root", "x"], "--data.root has no meaning for --what samples"),
        (["--part", "val"], "--part has no meaning for --what samples"),
        (["--refine_steps", "3"], "--refine_steps is for --what reconstruction of a model without conditions"),
        (["--what", "codes", "--refine_steps", "3"], "--refine_steps has no meaning for --what codes"),
        (["--num_samples", "0"], "--num_samples must be at least 1, got 0"),
        (["--what", "interpolation", "--steps", "1"], "--steps must be at least 2, got 1"),
        (["--what", "interpolation", "--num_samples", "1"], "needs at least 2 inputs or samples, got 1"),
        (["--what", "reconstruction"], "--inputs FILE ... is needed for this"),
        (["--what", "completion"], "WAEMMD is not a conditional model"),
        (["--what", "reconstruction", "--inputs", "nowhere.png"], "--inputs nowhere.png: no such file"),
        (["--what", "reconstruction", "--inputs", "text.png"], "text.png: not a picture that can be read"),
        (["--what", "reconstruction", "--inputs", "bright.tif"], "bright.tif: expected pixels of 8 or 16 bits or fl"),
        (["--what", "reconstruction", "--inputs", "text.npz"], "text.npz: not an NPZ file of plain arrays"),
        (
            ["--what", "reconstruction", "--inputs", "shape.npz"],
            "expected numbers of shape N x 1 x 28 x 28, found float64",
        ),
        (["--what", "reconstruction", "--inputs", "name.npz"], "expected an array named samples, found pictures"),
        (["--what", "reconstruction", "--inputs", "range.npz"], "images must lie in [0, 1], found [0, 255]"),
        (["--what", "reconstruction", "--inputs", "object.npz"], "object.npz: not an NPZ file of plain arrays"),
        (["--what", "reconstruction", "--inputs", "claims.npz"], "claims.npz: not an NPZ file of plain arrays"),
        (["--what", "reconstruction", "--inputs", "array.npz"], "array.npz: not an NPZ file of plain arrays"),
        (["--what", "reconstruction", "--inputs", "bytes.npz"], "expected numbers of shape N x 1 x 28 x 28, found |S3"),
        (["--out", "samples.jpeg"], "--out samples.jpeg: expected .png, .npz or a folder"),
        (["--out", "text.png/samples.png"], "--out text.png/samples.png: cannot be written"),
        (["--sampler", "gmm", "--components", "100000"], "--sampler gmm: components must lie between 1 and the number"),
    ],
)
def test_mistakes_end_in_one_sentence(digits, tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name in ("text.png", "text.npz"):
        (tmp_path / name).write_text("no picture")
    Image.fromarray(np.full((9, 9), 7.5, dtype=np.float32)).save("bright.tif")
    np.savez("shape.npz", samples=np.zeros((2, 28, 28)))
    np.savez("name.npz", pictures=np.zeros((2, 1, 28, 28)))
    np.savez("range.npz", samples=np.linspace(0, 255, 784).reshape(1, 1, 28, 28))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**12, 1, 28, 28)})
    for name, member, content in (("claims", "samples.npy", header.getvalue()), ("bytes", "samples", b"abc")):
        with zipfile.ZipFile(f"{name}.npz", "w") as archive:
            archive.writestr(member, content)
    with open("array.npz", "wb") as file:
        np.save(file, np.zeros((2, 1, 28, 28)))
    np.savez("object.npz", samples=np.array([{}], dtype=object))
    with pytest.raises(SystemExit) as stop:
        main([str(digits), *flags])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "samples.png").exists()


def test_an_untrained_model_has_no_codes_for_a_mixture(digits, tmp_path, capsys):
    content = torch.load(digits, weights_only=True)
    [codes] = [name for name in content["state_dict"] if name.endswith("_extra_state")]
    content["state_dict"][codes] = torch.empty(0, 1)
    torch.save(content, tmp_path / "old.ckpt")
    with pytest.raises(SystemExit):
        main([str(tmp_path / "old.ckpt"), "--sampler", "gmm"])
    assert "--sampler gmm: the model holds no training codes" in capsys.readouterr().err


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_traversal_goes_as_far_as_the_prior(scale):
    model = WAEMMD(encoder=torch.nn.Flatten(), decoder=torch.nn.Unflatten(1, (1, 1, 2)), prior=Normal(2, scale))
    rows = draw(model, "traversal", [], GIVEN).flatten(2)
    way = scale * torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])
    for dimension in range(2):
        torch.testing.assert_close(rows[dimension, :, dimension], way)
        assert (rows[dimension, :, 1 - dimension] == rows[dimension, 0, 1 - dimension]).all()


def test_what_is_neither_image_nor_cloud_is_written_as_numbers_only(tmp_path):
    for shape in ((5,), (7, 2)):
        rows = torch.rand(2, 3, *shape)
        write(rows, "samples", tmp_path / "a.npz")
        assert torch.equal(samples_of(tmp_path / "a.npz"), rows.flatten(0, 1))
        for name in ("a.png", "folder", "a.ply"):
            with pytest.raises(ValueError, match="is neither images nor clouds"):
                write(rows, "samples", tmp_path / name)


def test_folders_of_inputs_may_have_any_names(digits, tmp_path):
    for name in ("test/a.png", "holiday/b.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True)
        Image.new("L", (28, 28)).save(tmp_path / "in" / name)
    flags = ["--what", "codes", "--inputs", str(tmp_path / "in"), "--out", str(tmp_path / "codes.npz")]
    main([str(digits), *flags])
    with np.load(tmp_path / "codes.npz") as found:
        assert found["names"].tolist() == ["holiday/b.png", "test/a.png"]
        assert found["class_names"].tolist() == ["holiday", "test"]
