"""The gates of `effbench check`: cost budgets, a stored baseline, another revision. See `decision_rule`."""
