"""What a first quarter of an hour on a GPU must show, as one unattended script: ``python -m benchmarks.gpu``."""
