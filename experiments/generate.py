"""Draws from a trained model: ``python experiments/generate.py CKPT --num_samples 64 --out samples.png``."""

from wae_lightning.cli.main import run

if __name__ == "__main__":
    run("generate")
