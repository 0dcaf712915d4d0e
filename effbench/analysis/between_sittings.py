"""Estimate how far the figures of a machine differ between sittings. Pure, no torch.

The model is a one-way random-effects model of log times and log ratios: figure = truth + sitting + launch, where the
launches of one sitting share its effect. The launches of a run show the last part alone, so an interval over them is
too narrow for the next sitting (measured: 79 % of intervals at a nominal 95 %), and `analysis.intervals` adds the
sitting's part. The variance between sittings is estimated from a machine's earlier sittings by the unweighted moment
estimator (Cochran, 1954, Biometrics 10: 101-129; Hedges, 1983), and drawn towards a prior, since few sittings estimate
a variance badly: the moderated variance of Smyth (2004, Stat. Appl. Genet. Mol. Biol. 3(1):3, section 3).

The model assumes that sittings are independent of each other and roughly normal. It fails where the machine has
changed for good since (another kernel, another neighbour), and where sittings follow each other so closely that they
share a state: its scatter is then too small.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from effbench.analysis import stats
from effbench.core.sittings import FIGURES, BetweenSittings, Scatter

PAUSE_S = 60.0
"""A sitting ends with a pause of a minute. Runs that follow each other at 80 s scattered three
times as far as their launches did (`docs/benchmarks.md`), so a minute is enough for another state of the machine."""

LONGEST_S = 600.0
"""Runs that follow each other without a pause are one sitting for so long, and then another."""

REFERENCE = {"ratio": 0.025, "time": 0.035}
"""Scatter between sittings of our reference machines, for a machine without a history."""

REFERENCE_FREEDOM = 4.0
"""How much `REFERENCE` weighs, in sittings. It is also the freedom of a cell's scatter that the machine has not
measured before: cells differ in it by a factor of about ten."""

LEAST_TAU = 0.001
"""The least scatter: no machine repeats itself to less than 0.1 %."""

Value = tuple[float, float]
"""A figure's natural logarithm in one sitting, and the variance of that value within the sitting."""

YARDSTICK_FIGURES = {"ratio": "ratio", "dense": "time", "depthwise": "time"}
"""The figures of the yardstick, and the kind of scatter that each shows."""


@dataclass(frozen=True)
class Sitting:
    """What one run measured in one sitting. `start_s` and `end_s` are seconds since 1970, UTC.

    `yardstick` holds a value for each of `YARDSTICK_FIGURES`, `cells` one by figure for each cell's key. A key is a
    hash of everything that defines the cell.
    """

    start_s: float
    end_s: float
    torch: str
    yardstick: Mapping[str, Value] = field(default_factory=dict)
    cells: Mapping[str, Mapping[str, Value]] = field(default_factory=dict)


def estimate(sittings: Sequence[Sitting], keys: Mapping[str, str], problem: str = "") -> BetweenSittings:
    """Estimate the scatter between the sittings of one machine.

    Parameters
    ----------
    sittings : sequence of Sitting
        In any order. Of runs in the same sitting only the one that began last and has a figure counts for it.
    keys : mapping
        Cell id to the cell's key in `Sitting.cells`, for the cells of the run.
    problem : str
        Why the history of the machine is unusable; `sittings` is then empty.

    Returns
    -------
    BetweenSittings
        Without sittings, that of the reference machines.
    """
    sittings = sorted(sittings, key=lambda item: item.start_s)
    places = sitting_numbers([(item.start_s, item.end_s) for item in sittings], LONGEST_S)
    number = len(set(places))
    yardstick = {
        name: _last_of_each(places, (item.yardstick.get(name) for item in sittings)) for name in YARDSTICK_FIGURES
    }
    every = {key for item in sittings for key in item.cells}
    cells = {
        (key, figure): _last_of_each(places, (item.cells.get(key, {}).get(figure) for item in sittings))
        for key in every
        for figure in FIGURES
    }
    pooled = {}
    for kind, reference in REFERENCE.items():
        series = [values for name, values in yardstick.items() if YARDSTICK_FIGURES[name] == kind]
        series += [values for (_, figure), values in cells.items() if _kind(figure) == kind]
        # Cells of one sitting share its effect, so they do not add degrees of freedom to each other.
        variance, longest = _pooled_variance(series)
        pooled[kind] = _moderated(variance, longest, reference)
    known = {
        cell: {
            figure: _moderated(*_pooled_variance([values]), pooled[_kind(figure)].tau)
            for figure in FIGURES
            if len(values := cells.get((key, figure), [])) > 1
        }
        for cell, key in keys.items()
    }
    kinds = {kind: Scatter(found.tau, REFERENCE_FREEDOM, found.sittings) for kind, found in pooled.items()}
    used = number if any(found.sittings for found in pooled.values()) else 0
    return BetweenSittings(
        kinds["ratio"], kinds["time"], {cell: found for cell, found in known.items() if found}, used, problem
    )


def _kind(figure: str) -> str:
    return "ratio" if figure == "ratio" else "time"


def sitting_numbers(spans: Sequence[tuple[float, float]], longest_s: float = math.inf) -> list[int]:
    """Return the number of the sitting of each (start, end), in seconds. The order is arbitrary.

    A sitting ends with a pause of `PAUSE_S`, or after `longest_s`.
    """
    found, number, first_s, last_s = [0] * len(spans), -1, -math.inf, -math.inf
    for index in sorted(range(len(spans)), key=spans.__getitem__):
        start_s, end_s = spans[index]
        if start_s - last_s >= PAUSE_S or start_s - first_s >= longest_s:
            number, first_s = number + 1, start_s
        last_s = max(end_s, last_s)
        found[index] = number
    return found


def _last_of_each(places: Sequence[int], values: Iterable[Value | None]) -> list[Value]:
    """Return the last value of each sitting that has one. `values` are in order of time within a sitting."""
    return list({place: value for place, value in zip(places, values, strict=True) if value is not None}.values())


def _pooled_variance(series: Sequence[Sequence[Value]]) -> tuple[float, int]:
    """Return the variance between sittings, pooled over series, and the most sittings that one of them has.

    Of a series it is the sample variance less the mean variance within sittings. That may be negative by chance; it is
    floored only after pooling, which keeps the estimate unbiased.
    """
    total, freedom, most = 0.0, 0, 0
    for values in series:
        n = len(values)
        if n < 2:
            continue
        spread = stats.deviation([value for value, _ in values]) ** 2
        total += (n - 1) * (spread - math.fsum(error for _, error in values) / n)
        freedom += n - 1
        most = max(most, n)
    return (max(total / freedom, 0.0) if freedom else 0.0), most


def _moderated(variance: float, sittings: int, prior: float) -> Scatter:
    """Return the scatter of this many sittings, drawn towards a prior standard deviation (Smyth, 2004) from below.

    A variance above the prior stays as it is: what a machine has shown is not explained away.
    """
    freedom = max(sittings - 1, 0)
    prior_variance = max(prior**2, variance)
    mixed = (REFERENCE_FREEDOM * prior_variance + freedom * variance) / (REFERENCE_FREEDOM + freedom)
    return Scatter(max(math.sqrt(mixed), LEAST_TAU), REFERENCE_FREEDOM + freedom, sittings)


NO_HISTORY = estimate((), {})
"""The scatter of a machine without a history."""
