"""Time a model: build its call, check its output, run timed blocks, stop when enough is known."""
