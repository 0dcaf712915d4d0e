"""The figures of runs and gates, one file a kind. Only these modules import matplotlib."""
