"""Secondary metrics, one file each: latency percentiles, peak memory, energy, instructions, operator times."""
