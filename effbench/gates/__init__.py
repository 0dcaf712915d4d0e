"""The gates of `effbench check`: counts, a stored run, another revision; and how they are tried out. See `rule`."""
