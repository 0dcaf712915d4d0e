"""Measuring: blocks, warm-up, stopping, the order of rounds, and the worker process that does it."""
