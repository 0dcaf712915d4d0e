"""Load studies by name or path, make one for a list of models, and turn a study into a plan."""
