"""Tables of runs, gates and profiles, one module per kind of table."""
