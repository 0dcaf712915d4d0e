"""The commands of effbench, one file a theme: parse, call, print. `effbench.cli` gives them their names."""
