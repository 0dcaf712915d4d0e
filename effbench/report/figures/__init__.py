"""Figures of runs and gates, one module per kind of figure. Only these modules import matplotlib."""
