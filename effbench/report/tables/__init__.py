"""The tables of runs, gates and profiles, one file a kind."""
