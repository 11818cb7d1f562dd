"""Measures trained models: ``python experiments/evaluate.py CKPT``."""

from wae_lightning.cli.main import run

if __name__ == "__main__":
    run("evaluate")
