"""Trains an auto-encoder: ``python experiments/train.py`` draws digits, ``--config NAME`` does something else."""

from wae_lightning.cli.main import run

if __name__ == "__main__":
    run("train")
