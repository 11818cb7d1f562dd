"""The commands train, evaluate and generate: where models and data modules meet. Configs lie in ``configs``."""
