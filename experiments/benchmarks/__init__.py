"""The sections of ``experiments/benchmark.py``: each is a function from the options to a dictionary of figures."""
