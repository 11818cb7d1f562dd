"""The report's figures are drawn from two checkpoints."""

import pytest
from figures import CONFIGS, main
from PIL import Image
from test_generate import POINTS


def flags_of(config):
    if config.startswith("mnist_conditional"):
        return ["--data.batch_size=10", "--trainer.callbacks=[]"]
    return POINTS if config.startswith("modelnet40") else []


@pytest.mark.parametrize("number", CONFIGS)
def test_each_figure_shows_both_models(trained, tmp_path, capsys, number):
    paths = [str(trained(config, *flags_of(config))) for config in CONFIGS[number]]
    main([str(number), "--ckpt", *paths, "--out", str(tmp_path / "figure.png")])
    assert capsys.readouterr().out.endswith("figure.png\n")
    with Image.open(tmp_path / "figure.png") as figure:
        left, right = (figure.crop((x, 0, x + figure.width // 2, figure.height)) for x in (0, figure.width // 2))
        assert all(len(half.convert("L").getcolors()) > 20 for half in (left, right))


def test_a_missing_checkpoint_is_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["2", "--ckpt", "nowhere.ckpt", "nowhere.ckpt"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "figures.py: error: nowhere.ckpt: no such file\n"
