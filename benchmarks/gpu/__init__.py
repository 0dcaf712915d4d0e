"""Check effbench on a GPU within a quarter of an hour, unattended: ``python -m benchmarks.gpu``."""
