"""Compute the intervals of stored runs anew, with the scatter between sittings, from the estimates that they printed.

The runs of `spread` of 0.4 stored a point and an interval over three launches. Its half width gives back the standard
error, and the later runs show whether the new interval would have held.
"""

from __future__ import annotations

import datetime
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from effbench.analysis import between_sittings, intervals, stats
from effbench.analysis.between_sittings import Sitting, Value
from effbench.core.sittings import Scatter

LAUNCHES = 3
FIGURES = {"ratio": ("ratio", "low", "high"), "latency": ("latency_s", "latency_low_s", "latency_high_s")}


def coverage(entries: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], tuple[int, int, float]]:
    """Return how many intervals hold the median of the other runs, of how many, and their median half width in logs.

    Keys are the figure ("ratio", "latency") and the scatter that the interval includes: that of the "history" of the
    machine before the run, that of a machine with "none", or none at all ("within" the sitting).
    """
    runs = sorted((each for each in entries if each["task"]["tool"] == "effbench"), key=lambda each: str(each["at"]))
    values = [_values(each["rows"]) for each in runs]
    past: list[Sitting] = []
    found: dict[tuple[str, str], list[tuple[bool, float]]] = {}
    for number, each in enumerate(runs):
        known = between_sittings.estimate(past, {cell: cell for cell in values[number]})
        for cell, figures in values[number].items():
            for figure, (point, error) in figures.items():
                others = [
                    run[cell][figure][0]
                    for place, run in enumerate(values)
                    if place != number and figure in run.get(cell, {})
                ]
                off = abs(point - statistics.median(others))
                scatters = {"history": known, "none": between_sittings.NO_HISTORY}
                halves = {kind: _half(error, between.of(cell, figure)) for kind, between in scatters.items()}
                halves["within"] = _half(error, Scatter(0.0, math.inf))
                for kind, half in halves.items():
                    found.setdefault((figure, kind), []).append((off <= half, half))
        start_s = datetime.datetime.fromisoformat(each["at"]).timestamp()
        past.append(Sitting(start_s, start_s + each["seconds"], "", {}, values[number]))
    return {
        key: (sum(held for held, _ in items), len(items), statistics.median(half for _, half in items))
        for key, items in found.items()
    }


def _values(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Value]]:
    """Return the log value of each figure of each cell, and the variance of its mean over launches."""
    quantile = stats.t_quantile(0.975, LAUNCHES - 1)
    return {
        row["cell"]: {
            figure: (math.log(row[value]), ((math.log(row[high]) - math.log(row[low])) / 2 / quantile) ** 2)
            for figure, (value, low, high) in FIGURES.items()
            if row[low] is not None
        }
        for row in rows
    }


def _half(error: float, scatter: Scatter) -> float:
    variance, freedom = intervals.sum_of_variances((error, LAUNCHES - 1.0), (scatter.tau**2, scatter.freedom))
    return stats.t_quantile(0.975, freedom) * math.sqrt(variance)
