"""From timed blocks to estimates, verdicts and comparisons. Pure functions, no torch."""
