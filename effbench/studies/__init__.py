"""Studies: found by name or path, made for a list of models, turned into the cells of a plan."""
