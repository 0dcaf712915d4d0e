"""The gates of `effbench check`: counts, a stored run, another revision. See `decision_rule`."""
