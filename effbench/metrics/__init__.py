"""Metrics beside latency, one file each: percentiles, peak memory, energy, instructions, operator times."""
