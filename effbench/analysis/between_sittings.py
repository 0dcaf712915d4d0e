"""Estimate the scatter between sittings, and intervals that include it. Pure, no torch.

The model is a one-way random-effects model of log times and log ratios: figure = truth + sitting + launch, where the
launches of one sitting share its effect. The launches of a run show the last part alone, so an interval over them is
too narrow for the next sitting (measured: 79 % of intervals at a nominal 95 %). The variance between sittings is
estimated from a machine's earlier sittings by the unweighted moment estimator (Cochran, 1954, Biometrics 10:
101-129; Hedges, 1983), and drawn towards a prior, since few sittings estimate a variance badly: the moderated variance
of Smyth (2004, Stat. Appl. Genet. Mol. Biol. 3(1):3, section 3). The degrees of freedom of a sum of two variances are
Satterthwaite's (1946, Biometrics Bulletin 2: 110-114).

The model assumes that sittings are independent of each other and roughly normal. It fails where the machine has
changed for good since (another kernel, another neighbour), and where sittings follow each other so closely that they
share a state: its scatter is then too small.
"""

from __future__ import annotations

import datetime
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from effbench.analysis import sequential, stats
from effbench.core.estimate import Estimate
from effbench.core.run import Launch, Run
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


# --- intervals ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Intervals:
    """Computes intervals over launches that include the scatter between sittings.

    `sitting_of` holds the number of the sitting of each launch. Without a `scatter`, intervals hold within the one
    sitting in which the run was made. `looks` is how often the run is judged until it stops; intervals hold at
    whichever look it does (`analysis.sequential`).
    """

    sitting_of: Mapping[int, int] = field(default_factory=dict)
    scatter: Scatter | None = None
    looks: int = 1

    def over(self, by_launch: Mapping[int, Sequence[float]], confidence: float = 0.95) -> Estimate | None:
        """Estimate a ratio or a time from the logarithms of each launch's rounds.

        Parameters
        ----------
        by_launch : mapping
            Launch number to log values, one per round.
        confidence : float
            Confidence level of the interval.

        Returns
        -------
        Estimate or None
            exp of the median over launches of each launch's median. An interval needs three launches. None without a
            value.
        """
        if self.scatter is None:
            found = stats.ratio_over_launches(list(by_launch.values()), 1 - (1 - confidence) / self.looks)
            return None if found is None else replace(found, confidence=confidence)
        sittings: dict[int, list[float]] = {}
        for launch, values in by_launch.items():
            if values:
                sittings.setdefault(self.sitting_of.get(launch, 0), []).append(stats.median(values))
        return interval(list(sittings.values()), self.scatter, confidence, self.looks) if sittings else None


def interval(
    sittings: Sequence[Sequence[float]], scatter: Scatter, confidence: float = 0.95, looks: int = 1
) -> Estimate:
    """Estimate a ratio or a time from the log launch medians of each sitting of a run.

    Parameters
    ----------
    sittings : sequence of sequences of float
        Log medians of the launches of each sitting.
    scatter : Scatter
        Scatter between sittings, from other sittings than these.
    confidence : float
        Confidence level.
    looks : int
        How often the run is judged until it stops. The looks share the error (Bonferroni). In one sitting, its effect
        is the same at each look and no new chance to err, so there are fewer looks in effect:
        1 + (looks - 1) · sqrt(1 - r), where r is the share of the sitting in the variance. That is an interpolation
        between the two extremes, checked by simulation (`benchmarks/peers/honest_decisions.py`).

    Returns
    -------
    Estimate
        exp of the median of all launches. The interval is around the mean of the sittings' means, and includes the
        median. In one sitting its half width is ``t · sqrt(s²/n + τ²)`` in log units, with s the standard deviation of
        n launches. With several sittings the variance of a sitting's mean is pooled from this and from the means
        themselves. An interval needs three launches.
    """
    launches = [value for values in sittings for value in values]
    point, n, m = stats.median(launches), len(launches), len(sittings)
    if n < 3:
        return Estimate(math.exp(point), None, None, confidence, n)
    error, freedom = error_of_mean(sittings, scatter)
    # Of one sitting, the effect is the same at each look. Several sittings bring new effects, as launches do.
    share = min((scatter.tau / error) ** 2, 1.0) if m == 1 and error else 0.0
    per_look = 1 - (1 - confidence) / (1 + (looks - 1) * math.sqrt(1 - share))
    means = [math.fsum(values) / len(values) for values in sittings]
    centre, half = math.fsum(means) / m, stats.t_quantile(0.5 + per_look / 2, freedom) * error
    low, high = min(centre - half, point), max(centre + half, point)
    return Estimate(math.exp(point), math.exp(low), math.exp(high), confidence, n)


def error_of_mean(sittings: Sequence[Sequence[float]], scatter: Scatter) -> tuple[float, float]:
    """Return the standard error of the mean of the sittings' means, and its degrees of freedom (`interval`)."""
    n, m = sum(map(len, sittings)), len(sittings)
    means = [math.fsum(values) / len(values) for values in sittings]
    among = stats.deviation(means) ** 2 if m > 1 else 0.0
    if n == m:
        # A launch each: their spread holds both variances. One launch alone shows neither.
        return (math.sqrt(among / m), m - 1.0) if m > 1 else (scatter.tau, scatter.freedom)
    squares = math.fsum((value - mean) ** 2 for values, mean in zip(sittings, means, strict=True) for value in values)
    launches = m / math.fsum(1 / len(values) for values in sittings)  # harmonic mean of their number
    of_launches, of_sittings = squares / (n - m) / launches, scatter.tau**2
    variance, freedom = sum_of_variances((of_launches, n - m), (of_sittings, scatter.freedom))
    pooled = (freedom * variance + (m - 1) * among) / (freedom + m - 1)
    return math.sqrt(pooled / m), freedom + m - 1


def sum_of_variances(*parts: tuple[float, float]) -> tuple[float, float]:
    """Return the sum of independent variances, each with its freedom, and Satterthwaite's degrees of freedom."""
    total = math.fsum(variance for variance, _ in parts)
    if total == 0:
        return 0.0, min(freedom for _, freedom in parts)
    return total, total**2 / math.fsum(variance**2 / freedom for variance, freedom in parts)


def change_between(
    baseline: Sequence[float], candidate: Sequence[float], scatter: Scatter | None, confidence: float = 0.95
) -> Estimate:
    """Estimate the ratio of two runs' times from the log medians of their launches.

    `scatter` is None for two runs of the same sitting, which share its effect. Without two launches a side there is no
    interval.
    """
    n = min(len(baseline), len(candidate))
    point = math.fsum(candidate) / len(candidate) - math.fsum(baseline) / len(baseline)
    if n < 2:
        return Estimate(math.exp(point), None, None, confidence, n)
    variance, freedom = variance_of_change(baseline, candidate, scatter)
    half = stats.t_quantile(0.5 + confidence / 2, freedom) * math.sqrt(variance)
    return Estimate(math.exp(point), math.exp(point - half), math.exp(point + half), confidence, n)


def variance_of_change(
    baseline: Sequence[float], candidate: Sequence[float], scatter: Scatter | None
) -> tuple[float, float]:
    """Return the variance of the difference of two runs' mean log times, and its degrees of freedom.

    This is Welch's variance (1947), to which each run adds that of its sitting. Each side needs two launches.
    """
    parts = [(stats.deviation(side) ** 2 / len(side), len(side) - 1.0) for side in (baseline, candidate)]
    if scatter is not None:
        parts.append((2 * scatter.tau**2, scatter.freedom))
    return sum_of_variances(*parts)


def change_note(baseline: Run, candidate: Run, figure: str = "busy") -> str:
    """Return a sentence on the scatter between sittings that the changes of two runs include; "" where they have none.

    Changes are of times, or of ratios to a yardstick (`figure` "ratio").
    """
    known = [run.between_sittings for run in (candidate, baseline) if run.between_sittings is not None]
    if not known:
        return ""
    if share_sitting(baseline, candidate):
        return "Both runs were made in one sitting, so changes include no scatter between sittings."
    between = max(known, key=lambda item: _width(item.ratio if figure == "ratio" else item.time))
    scatter = between.ratio if figure == "ratio" else between.time
    width = 100 * half_width(Scatter(scatter.tau * math.sqrt(2), scatter.freedom))
    return f"Changes include ±{width:.1f} % between sittings for a cell without a history: {source(between)}."


def source(between: BetweenSittings) -> str:
    """Return where a scatter comes from: "9 sittings of this machine"."""
    if between.sittings > 1:
        return f"{between.sittings} sittings of this machine"
    return f"that of reference machines, since {between.problem or 'this machine has fewer than two earlier sittings'}"


# --- the sittings of a run --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunSittings:
    """The sittings of a run's launches, and the scatter that its intervals include; None where it has none.

    `references` are the cells that ratios are to, and `looks` is how often the run is judged until it stops.
    """

    between: BetweenSittings | None
    of_launch: Mapping[int, int]
    references: Set[str] = frozenset()
    looks: int = 1

    @staticmethod
    def of(run: Run) -> RunSittings:
        """Sort the launches of a run into sittings by the times at which they began and ended."""
        references = {
            case.id for item in run.results if (case := run.experiment.reference_of(item.cell.case)) is not None
        }
        looks = 1 if run.sampling.until == "launches" else len(sequential.looks(run.sampling.launches))
        return RunSittings(run.between_sittings, sitting_of_launches(run), references, looks)

    def ratio(self, *cells: str) -> Intervals:
        """Return how to compute the interval of the ratio of these cells, with the larger of their scatters.

        The scatter of a cell is that of its ratio to its reference. The reference has none of its own.
        """
        if self.between is None:
            return Intervals(looks=self.looks)
        found = [self.between.of(cell, "ratio") for cell in cells if cell not in self.references]
        return Intervals(self.of_launch, max(found or [self.between.ratio], key=_width), self.looks)

    def time(self, cell: str, figure: str) -> Intervals:
        """Return how to compute the interval of a time of this cell; `figure` is "latency" or "busy"."""
        scatter = None if self.between is None else self.between.of(cell, figure)
        return Intervals(self.of_launch, scatter, self.looks)


def _width(scatter: Scatter) -> float:
    """Return the half width of a 95 % interval of this scatter alone."""
    return scatter.tau * stats.t_quantile(0.975, scatter.freedom)


def half_width(scatter: Scatter, confidence: float = 0.95) -> float:
    """Return the half width of an interval that includes this scatter alone, as a share: 0.02 for ±2 %."""
    return math.expm1(scatter.tau * stats.t_quantile(0.5 + confidence / 2, scatter.freedom))


def sitting_of_launches(run: Run) -> dict[int, int]:
    """Return the number of the sitting of each launch. A launch without recorded times belongs to the one before it."""
    spans = [span_s(launch) for launch in run.launches]
    places = iter(sitting_numbers([span for span in spans if span is not None]))
    found, number = {}, 0
    for launch, span in zip(run.launches, spans, strict=True):
        number = number if span is None else next(places)
        found[launch.number] = number
    return found


def scatter_of(runs: Sequence[Run], cell: str, figure: str) -> Scatter | None:
    """Return the widest scatter of one figure of a cell that one of the runs knows; None where none knows any."""
    found = [run.between_sittings.of(cell, figure) for run in runs if run.between_sittings is not None]
    return max(found, key=_width, default=None)


def share_sitting(*runs: Run) -> bool:
    """Return whether runs were made in the same sitting: without a long pause, and within ten minutes."""
    spans = sorted(span for run in runs for launch in run.launches if (span := span_s(launch)) is not None)
    timed = all(span_s(launch) is not None for run in runs for launch in run.launches)
    pauses = [after[0] - before[1] for before, after in itertools.pairwise(spans)]
    return timed and bool(spans) and max(pauses, default=0.0) < PAUSE_S and spans[-1][0] - spans[0][0] < LONGEST_S


def span_s(launch: Launch) -> tuple[float, float] | None:
    """Return when a launch began and ended, in seconds since 1970; None where that was not recorded."""
    if not launch.start:
        return None
    start_s = datetime.datetime.fromisoformat(launch.start).timestamp()
    if launch.end:
        return start_s, max(start_s, datetime.datetime.fromisoformat(launch.end).timestamp())
    return start_s, start_s + (launch.used_s or 0.0)
