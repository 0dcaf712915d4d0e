"""Statistics of timings: quantiles, confidence intervals, tests and rank correlation on plain numbers.

Every interval here is two-sided at the stated confidence. Where the data cannot support an interval, its bounds are
None rather than narrow.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Any

from effbench.core.estimate import Estimate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


def median(values: Sequence[float]) -> float:
    """Return the median. Raises ValueError on an empty sequence or a NaN."""
    return quantile(values, 0.5)


def quantile(values: Sequence[float], q: float) -> float:
    """Return the q-quantile by linear interpolation between order statistics (type 7 of Hyndman & Fan, 1996)."""
    if not values:
        raise ValueError("a quantile needs at least one value")
    ordered = sorted(values)
    if any(map(math.isnan, ordered)):
        raise ValueError("a quantile of NaN is undefined")
    place = q * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def mad(values: Sequence[float]) -> float:
    """Return the median absolute deviation, scaled by 1.4826 to estimate a normal standard deviation."""
    centre = median(values)
    return 1.4826 * median([abs(value - centre) for value in values])


def deviation(values: Sequence[float]) -> float:
    """Return the sample standard deviation (n - 1). Raises ValueError for fewer than two values."""
    n = len(values)
    if n < 2:
        raise ValueError("a deviation needs at least two values")
    return math.dist(values, [math.fsum(values) / n] * n) / math.sqrt(n - 1)


def median_interval(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Return the median with its exact, distribution-free interval from order statistics (the sign test inverted).

    Needs at least 6 values at 95 %; with fewer the bounds are None. Assumes independent values; blocks of one process
    are correlated, see `batch_medians`.
    """
    ordered = sorted(values)
    n = len(ordered)
    rank = _sign_rank(n, confidence)
    low, high = (ordered[rank], ordered[n - 1 - rank]) if rank is not None else (None, None)
    return Estimate(median(ordered), low, high, confidence, n)


def quantile_interval(values: Sequence[float], q: float, confidence: float = 0.95) -> Estimate:
    """Return the q-quantile with its exact, distribution-free interval (David & Nagaraja, 2003, 7.1).

    The bounds are order statistics. Each is wrong with a probability of at most (1 - `confidence`) / 2, and None where
    there are too few values: the upper bound of the 99th percentile needs 368 values at 95 %. Assumes independent
    values. Raises ValueError as `quantile` does, and for a `q` outside of (0, 1).
    """
    if not 0 < q < 1:
        raise ValueError(f"q (={q}) must lie between 0 and 1")
    point, ordered, n = quantile(values, q), sorted(values), len(values)
    below, above = _quantile_ranks(n, q, confidence)
    low = None if below is None else ordered[below]
    high = None if above is None else ordered[above]
    return Estimate(point, low, high, confidence, n)


@lru_cache(maxsize=256)
def _quantile_ranks(n: int, q: float, confidence: float) -> tuple[int | None, int | None]:
    """Return the indices, in the ordered values, of the greatest lower and the least upper bound of the q-quantile.

    The number of values below the quantile is B ~ Binomial(n, q). Value r (from 0) lies above the quantile with
    probability P(B ≤ r), and below it with P(B > r).
    """
    from scipy.special import bdtr, bdtrc

    tail = (1 - confidence) / 2
    low = max((r for r in range(n) if bdtr(r, n, q) <= tail), default=None)
    high = min((r for r in range(n) if bdtrc(r, n, q) <= tail), default=None)
    return low, high


@lru_cache(maxsize=4096)
def _sign_rank(n: int, confidence: float) -> int | None:
    """Return the largest r with P(Binomial(n, ½) ≤ r) ≤ (1 - confidence) / 2, or None where there is none."""
    tail, cumulative, rank = (1 - confidence) / 2, 0.0, None
    for r in range(n // 2):
        cumulative += math.comb(n, r) / 2**n
        if cumulative > tail:
            break
        rank = r
    return rank


def t_interval(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Return the mean with Student's t interval. Its bounds are None for fewer than two values."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return Estimate(mean, None, None, confidence, n)
    half = t_quantile(0.5 + confidence / 2, n - 1) * deviation(values) / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, confidence, n)


def t_quantile(probability: float, freedom: float) -> float:
    """Return a quantile of Student's t distribution with `freedom` degrees of freedom."""
    from scipy.special import stdtrit  # importing it takes 0.1 s, and only intervals need it

    return float(stdtrit(freedom, probability))


def sign_p(above: Array, count: Array) -> Array:
    """One-sided p-values of the exact sign test, by how many of `count` values are above the threshold.

    A value equal to the threshold counts against it. 1.0 without values. Assumes independent values.
    """
    import numpy
    from scipy.special import bdtrc

    return numpy.where(count > 0, bdtrc(above - 1.0, numpy.maximum(count, 1), 0.5), 1.0)


def t_p(values: Array, threshold: Array | float = 0.0) -> Array:
    """One-sided p-values of Student's t test that the mean along the last axis exceeds `threshold`, leaving out NaN.

    1.0 for fewer than two values, and where they differ by rounding at most: no scatter seen is no proof that there is
    none.
    """
    import numpy
    from scipy.special import stdtr

    count = numpy.isfinite(values).sum(axis=-1)
    mean = numpy.nansum(values, axis=-1) / numpy.maximum(count, 1)
    squares = numpy.nansum((values - mean[..., None]) ** 2, axis=-1)
    scatter = numpy.sqrt(squares / numpy.maximum(count - 1, 1))
    largest = numpy.nan_to_num(numpy.abs(values)).max(axis=-1, initial=0.0)
    can_tell = (count > 1) & (scatter > 1e-12 * largest)
    t = (threshold - mean) / numpy.where(can_tell, scatter, 1.0) * numpy.sqrt(count)
    return numpy.where(can_tell, stdtr(numpy.maximum(count - 1, 1), t), 1.0)


def holm(p_values: Array) -> Array:
    """Each p-value adjusted for all of its row (Holm, 1979): at or below alpha, it may be rejected.

    Keeps the chance of any false rejection in a row at alpha whatever the dependence.
    """
    import numpy

    order = numpy.argsort(p_values, axis=1, kind="stable")
    factors = numpy.arange(p_values.shape[1], 0, -1)
    raised = numpy.minimum(numpy.take_along_axis(p_values, order, 1) * factors, 1.0)
    adjusted = numpy.empty_like(raised)
    numpy.put_along_axis(adjusted, order, numpy.maximum.accumulate(raised, axis=1), 1)
    return adjusted


def alpha_spending(alpha: float, looks: int) -> tuple[float, ...]:
    """Split `alpha` over interim looks in proportion to the look's number: 5 % over four is 0.5, 1, 1.5 and 2 %.

    Late looks have the most data, so they get the largest share. Raises ValueError for fewer than one look.
    """
    if looks < 1:
        raise ValueError("alpha is spent over at least one look")
    return tuple(2 * alpha * number / (looks * (looks + 1)) for number in range(1, looks + 1))


def proportion_interval(events: int, trials: int, confidence: float = 0.95) -> Estimate:
    """Return the share of `events` in `trials` with its exact interval (Clopper & Pearson, 1934). `n` is `trials`.

    Raises ValueError without trials, or for more events than trials.
    """
    from scipy.special import betaincinv

    if not 0 <= events <= trials or trials == 0:
        raise ValueError(f"{events} of {trials} is not a proportion")
    tail = (1 - confidence) / 2
    low = float(betaincinv(events, trials - events + 1, tail)) if events else 0.0
    high = float(betaincinv(events + 1, trials - events, 1 - tail)) if events < trials else 1.0
    return Estimate(events / trials, low, high, confidence, trials)


def noticeable_shift(freedom: float, alpha: float, power: float) -> float:
    """Return the shift, in standard errors, that a one-sided t test at level `alpha` detects with this `power`.

    This is the noncentrality parameter of the noncentral t distribution.
    """
    from scipy.special import nctdtrinc

    return float(nctdtrinc(freedom, 1 - power, t_quantile(1 - alpha, freedom)))


def ratio_over_launches(log_ratios: Sequence[Sequence[float]], confidence: float = 0.95) -> Estimate | None:
    """Estimate a ratio from the log ratios of each launch's rounds, with launches as the replicates.

    Point: exp of the median over launches of each launch's median. Interval: on each side the wider of Student's t over
    launch medians and the sign-test interval over all rounds. Blocks of one process are correlated, so the pooled sign
    test alone is too narrow (measured A/A false-alarm rate 12.7 % at a nominal 1 %). With few launches the t interval
    alone rests on a handful of values. An interval needs three launches. None if no launch has a round.
    """
    launches = [list(rounds) for rounds in log_ratios if rounds]
    if not launches:
        return None
    medians = [median(rounds) for rounds in launches]
    point = median(medians)
    if len(medians) < 3:
        return Estimate(math.exp(point), None, None, confidence, len(medians))
    over_launches = t_interval(medians, confidence)
    pooled = median_interval([value for rounds in launches for value in rounds], confidence)
    lows = [bound for bound in (over_launches.low, pooled.low, point) if bound is not None]
    highs = [bound for bound in (over_launches.high, pooled.high, point) if bound is not None]
    return Estimate(math.exp(point), math.exp(min(lows)), math.exp(max(highs)), confidence, len(medians))


def cluster_bootstrap(
    launches: Sequence[Sequence[float]], confidence: float = 0.95, seed: int = 0, draws: int = 2000
) -> Estimate | None:
    """Estimate a ratio from the log ratios of each launch's rounds, with a bootstrap percentile interval.

    Point: exp of the median over launches of each launch's median. Each bootstrap draw resamples launches with
    replacement, and then the rounds within each (Davison & Hinkley, 1997, 3.8). Below five launches the interval may be
    too narrow (simulated coverage with three launches of autocorrelated blocks: 84 % at a nominal 95 %), so use it to
    show an interval and not to decide. No interval below three launches; None if no launch has a round. Raises
    ValueError on a NaN.
    """
    import numpy

    kept = [numpy.asarray(rounds, dtype=float) for rounds in launches if len(rounds)]
    if not kept:
        return None
    point = median([median(rounds.tolist()) for rounds in kept])
    if len(kept) < 3:
        return Estimate(math.exp(point), None, None, confidence, len(kept))
    generator = numpy.random.default_rng(seed)
    drawn = generator.integers(len(kept), size=(draws, len(kept)))
    medians = numpy.empty(drawn.shape)
    for number, rounds in enumerate(kept):
        here = drawn == number
        places = generator.integers(len(rounds), size=(int(here.sum()), len(rounds)))
        medians[here] = numpy.median(rounds[places], axis=1)
    tail = (1 - confidence) / 2
    low, high = numpy.quantile(numpy.median(medians, axis=1), [tail, 1 - tail])
    return Estimate(math.exp(point), math.exp(min(low, point)), math.exp(max(high, point)), confidence, len(kept))


def lag1(values: Sequence[float]) -> float:
    """Return the lag-1 autocorrelation; 0 for fewer than three values or no variation."""
    if len(values) < 3:
        return 0.0
    mean = math.fsum(values) / len(values)
    spread = math.fsum((value - mean) ** 2 for value in values)
    if spread == 0:
        return 0.0
    return math.fsum((left - mean) * (right - mean) for left, right in pairwise(values)) / spread


def batch_medians(values: Sequence[float]) -> list[float]:
    """Return medians of consecutive batches of equal size, large enough to look independent (|lag-1| < 0.1 + 1/√n).

    The batch size doubles until then, but at least 8 batches remain: fewer give no useful exact interval.
    """
    batches, size = list(values), 1
    while abs(lag1(batches)) >= 0.1 + 1 / math.sqrt(max(len(batches), 1)) and len(values) // (2 * size) >= 8:
        size *= 2
        batches = [median(values[i : i + size]) for i in range(0, len(values) - size + 1, size)]
    return batches


def trend_p(values: Sequence[float]) -> float:
    """Return the two-sided p-value of Kendall's test for a monotone trend (Kendall, 1975, chapter 4).

    Uses the normal approximation with ties corrected, which is good from about 8 values on. 1.0 below 3 values or
    without variation.
    """
    n = len(values)
    if n < 3:
        return 1.0
    score = sum((later > earlier) - (later < earlier) for earlier, later in combinations(values, 2))
    ties = [values.count(value) for value in set(values)]
    variance = (n * (n - 1) * (2 * n + 5) - sum(t * (t - 1) * (2 * t + 5) for t in ties)) / 18
    if variance == 0 or score == 0:
        return 1.0
    z = (abs(score) - 1) / math.sqrt(variance)
    return math.erfc(z / math.sqrt(2))


def rank_agreement(
    metric: Sequence[float],
    time: Sequence[float],
    clusters: Sequence[Hashable],
    confidence: float = 0.95,
    seed: int = 0,
    strata: Sequence[Hashable] | None = None,
) -> Estimate:
    """Return Kendall's tau-b of a metric with measured times, with a cluster-bootstrap interval (Kendall, 1945).

    Tau-b corrects for ties. It is 1 for the same order and -1 for the opposite one.

    `clusters` names the family of each value. The errors of one family are correlated, so whole families are resampled.
    With `strata` only pairs within the same stratum count, since pairs across strata are easy to rank. `n` is the
    number of values. See `cluster_interval` for when there is no interval. Raises
    ValueError for unequal lengths, a value that is not finite, or a side whose values are all equal.
    """
    import numpy

    if not len(metric) == len(time) == len(clusters):
        raise ValueError(f"{len(metric)} metrics, {len(time)} times and {len(clusters)} clusters do not pair")
    sides = [numpy.asarray(side, dtype=float) for side in (metric, time)]
    if not all(numpy.isfinite(side).all() for side in sides):
        raise ValueError("only finite numbers have a rank")
    # What a pair contributes does not depend on the other draws, so sums over pairs of clusters suffice.
    own, stratum = (_numbered(side) for side in (clusters, strata or [0] * len(time)))
    order = numpy.argsort(own, kind="stable")
    starts = numpy.flatnonzero(numpy.diff(numpy.asarray(own)[order], prepend=-1))
    together = numpy.equal.outer(*[numpy.asarray(stratum)[order]] * 2)
    rows = [side[order] for side in sides]
    signs = [
        (numpy.greater.outer(row, row).view("i1") - numpy.less.outer(row, row).view("i1")) * together for row in rows
    ]
    agreeing, ordered, timed = (
        numpy.add.reduceat(numpy.add.reduceat(pairs, starts, axis=0, dtype=float), starts, axis=1)
        for pairs in (signs[0] * signs[1], signs[0] * signs[0], signs[1] * signs[1])
    )

    def tau(drawn: Sequence[int]) -> float | None:
        times = numpy.bincount(drawn, minlength=len(starts)).astype(float)
        scale = math.sqrt((times @ ordered @ times) * (times @ timed @ times))
        return float(times @ agreeing @ times) / scale if scale else None

    point = tau(range(len(starts)))
    if point is None:
        raise ValueError("values that are all equal have no order")
    return Estimate(point, *cluster_interval(tau, len(starts), confidence, seed), confidence, len(metric))


def _numbered(names: Sequence[Hashable]) -> list[int]:
    """Number the names in order of first appearance."""
    place = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return [place[name] for name in names]


def cluster_interval(
    statistic: Callable[[Sequence[int]], float | None],
    clusters: int,
    confidence: float = 0.95,
    seed: int = 0,
    draws: int = 1000,
) -> tuple[float | None, float | None]:
    """Return the percentile interval of a statistic over whole clusters drawn with replacement (cluster bootstrap).

    `statistic` gets the indices of the drawn clusters, ``clusters`` of them, and returns None where it is undefined.
    The interval is (None, None) below five clusters, where the statistic is undefined in more than one draw in ten, and
    where all draws give the same value: a perfect order of a few networks does not prove that the next one will fit.
    """
    if clusters < 5:
        return None, None
    generator = random.Random(seed)
    drawn = (statistic(generator.choices(range(clusters), k=clusters)) for _ in range(draws))
    values = [value for value in drawn if value is not None]
    if len(values) < 0.9 * draws or min(values) == max(values):
        return None, None
    return quantile(values, (1 - confidence) / 2), quantile(values, (1 + confidence) / 2)
