"""Compute intervals over launches that include the scatter between sittings. Pure, no torch.

`analysis.between_sittings` has the model and estimates its scatter. The degrees of freedom of a sum of variances are
Satterthwaite's (1946, Biometrics Bulletin 2: 110-114).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from effbench.analysis import stats
from effbench.core.estimate import Estimate
from effbench.core.sittings import Scatter


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


def width(scatter: Scatter) -> float:
    """Return the half width of a 95 % interval of this scatter alone."""
    return scatter.tau * stats.t_quantile(0.975, scatter.freedom)


def half_width(scatter: Scatter, confidence: float = 0.95) -> float:
    """Return the half width of an interval that includes this scatter alone, as a share: 0.02 for ±2 %."""
    return math.expm1(scatter.tau * stats.t_quantile(0.5 + confidence / 2, scatter.freedom))
