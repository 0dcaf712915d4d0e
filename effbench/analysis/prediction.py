"""Cross-validate how well analytic metrics, such as multiply-adds, predict latency. Pure, no torch.

Networks of one family are alike, so a fit on one of them predicts the others better than it would a new design. Every
error here is therefore out of fold, with folds that share no family, and every interval resamples whole families.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from effbench.analysis import stats
from effbench.core.errors import InvalidValue
from effbench.core.estimate import Estimate

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    Vector = NDArray[numpy.float64]

FOLDS = 5
FEWEST_NETWORKS = 8
FEWEST_FAMILIES = 3
CLOSE = 0.25
"""A prediction counts as close if its relative error is at most this."""


@dataclass(frozen=True)
class Sample:
    """Networks on one device: analytic metrics and measured seconds, both per image, and the family of each network.

    Fits of two metrics combine the first one with each of the others.
    """

    name: str
    title: str
    metrics: Mapping[str, Sequence[float]]
    times_s: Sequence[float]
    families: Sequence[str]


@dataclass(frozen=True)
class Score:
    """How well some metrics together predict the time of networks from families that the fit has not seen.

    `error` is the median of ``|predicted / measured - 1|``, `close` the share of networks where that is at most
    `CLOSE`. `tau` (Kendall's tau-b) and `rho` (Spearman) correlate times with the metric if there is one, and with the
    out-of-fold prediction if there are several. They are None where all values are equal. `coefficients` are from the
    fit on all networks: seconds, then seconds per unit of each metric. `predicted` are the out-of-fold seconds.
    """

    metrics: tuple[str, ...]
    error: Estimate
    close: Estimate
    tau: Estimate | None
    rho: Estimate | None
    coefficients: tuple[float, ...]
    predicted: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping without the predictions of single networks."""
        return {
            "metrics": list(self.metrics),
            "median_error": _bounds(self.error),
            f"within_{100 * CLOSE:.0f}_percent": _bounds(self.close),
            "kendall_tau": _bounds(self.tau),
            "spearman": _bounds(self.rho),
            "coefficients_s": list(self.coefficients),
        }


def assess(sample: Sample, *, seed: int = 0) -> tuple[Score, ...]:
    """Score each metric alone, in order, and then the first metric together with each of the others.

    Raises InvalidValue for too few networks or families, and for a time that is not above zero.
    """
    networks, families = len(sample.times_s), len(set(sample.families))
    if networks < FEWEST_NETWORKS or families < FEWEST_FAMILIES:
        raise InvalidValue(
            f"{sample.title}: {networks} networks of {families} families say nothing about a metric; "
            f"measure at least {FEWEST_NETWORKS} of {FEWEST_FAMILIES}"
        )
    if min(sample.times_s) <= 0:
        raise InvalidValue(f"{sample.title}: a time (={min(sample.times_s)} s) must be above zero; leave it out")
    first, *others = sample.metrics
    joined = [(name,) for name in sample.metrics] + [(first, name) for name in others]
    return tuple(_score(names, sample, seed) for names in joined)


def folds(families: Sequence[str], seed: int = 0) -> tuple[int, ...]:
    """Return the fold of each network. Families, in random order, each go to the fold with the fewest networks."""
    sizes = Counter(families)
    order = sorted(sizes)
    random.Random(seed).shuffle(order)
    filled = [0] * min(FOLDS, len(order))
    placed = {}
    for family in order:
        placed[family] = filled.index(min(filled))
        filled[placed[family]] += sizes[family]
    return tuple(placed[family] for family in families)


def fit(columns: Sequence[Sequence[float]], times_s: Sequence[float]) -> tuple[float, ...]:
    """Fit c0, c1, … ≥ 0 of ``time = c0 + c1·a + …`` to the least sum of squared relative errors.

    Coefficients are not negative since no metric can save time (non-negative least squares: Lawson & Hanson, 1974).
    Errors are relative since times of networks span four orders of magnitude.
    """
    import numpy
    from scipy.optimize import nnls

    times = numpy.asarray(times_s, dtype=float)
    relative = numpy.column_stack([numpy.ones_like(times), *columns]) / times[:, None]
    scale = numpy.maximum(relative.max(axis=0), 1e-300)  # columns differ by up to 10¹² in scale
    found, _ = nnls(relative / scale, numpy.ones_like(times))
    return tuple(float(value) for value in found / scale)


def out_of_fold(
    columns: Sequence[Sequence[float]], times_s: Sequence[float], families: Sequence[str], seed: int = 0
) -> Vector:
    """Predict the seconds of each network from a fit that has not seen its family."""
    import numpy

    inputs = numpy.column_stack([numpy.ones(len(times_s)), *columns])
    times = numpy.asarray(times_s, dtype=float)
    own = numpy.asarray(folds(families, seed=seed))
    predicted = numpy.empty_like(times)
    for fold in set(own.tolist()):
        seen = own != fold
        predicted[~seen] = inputs[~seen] @ fit(list(inputs[seen, 1:].T), times[seen].tolist())
    return predicted


def _score(names: tuple[str, ...], sample: Sample, seed: int) -> Score:
    import numpy

    times, families = sample.times_s, sample.families
    columns = [sample.metrics[name] for name in names]
    predicted = out_of_fold(columns, times, families, seed)
    close = numpy.abs(predicted / numpy.asarray(times, dtype=float) - 1) <= CLOSE
    ranking = columns[0] if len(columns) == 1 else predicted.tolist()
    ordered = len(set(ranking)) > 1 and len(set(times)) > 1
    return Score(
        names,
        median_error(predicted, times, families, seed),
        _clustered(lambda taken: float(close[taken].mean()), families, seed),
        stats.rank_agreement(ranking, times, families, seed=seed) if ordered else None,
        spearman(ranking, times, families, seed=seed) if ordered else None,
        fit(columns, times),
        tuple(predicted.tolist()),
    )


def median_error(predicted: Vector, times_s: Sequence[float], families: Sequence[str], seed: int = 0) -> Estimate:
    """Return the median of ``|predicted / measured - 1|`` with its interval over families."""
    import numpy

    errors = numpy.abs(predicted / numpy.asarray(times_s, dtype=float) - 1)
    return _clustered(lambda taken: float(numpy.median(errors[taken])), families, seed)


def spearman(x: Sequence[float], y: Sequence[float], families: Sequence[str], *, seed: int = 0) -> Estimate:
    """Return Spearman's rank correlation (tied values get their mean rank) with an interval over whole families.

    Raises ValueError where all values of a side are equal.
    """
    import numpy

    if len(set(x)) < 2 or len(set(y)) < 2:
        raise ValueError("values that are all equal have no order")
    places = [numpy.unique(numpy.asarray(side, dtype=float), return_inverse=True)[1] for side in (x, y)]

    def correlation(taken: NDArray[numpy.intp]) -> float | None:
        ranks = []
        for place in places:
            drawn = place[taken]
            tied = numpy.bincount(drawn)
            ranks.append((numpy.cumsum(tied) - tied / 2)[drawn])
        left, right = (side - side.mean() for side in ranks)
        scale = float(numpy.sqrt((left @ left) * (right @ right)))
        return float(left @ right) / scale if scale else None

    return _clustered(correlation, families, seed)


def _clustered(
    statistic: Callable[[NDArray[numpy.intp]], float | None], families: Sequence[str], seed: int
) -> Estimate:
    """Return a statistic of all networks, with its interval over families drawn with replacement."""
    import numpy

    members: dict[str, list[int]] = {}
    for place, family in enumerate(families):
        members.setdefault(family, []).append(place)
    groups = [numpy.asarray(places) for places in members.values()]
    point = statistic(numpy.arange(len(families)))
    assert point is not None, "the caller has checked that the values vary"
    interval = stats.cluster_interval(
        lambda drawn: statistic(numpy.concatenate([groups[number] for number in drawn])), len(groups), seed=seed
    )
    return Estimate(point, *interval, n=len(families))


def _bounds(value: Estimate | None) -> dict[str, float | None] | None:
    return None if value is None else value.to_dict()
