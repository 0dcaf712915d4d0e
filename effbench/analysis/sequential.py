"""When a comparison may stop, and how wide its intervals are then: looks, boundaries, futility. Pure, no torch.

A run that stops as soon as it shows a difference is asked the same question several times, and each time may answer
wrongly by chance. So it is looked at after a few planned launches only, and each look spends an equal part of the
error: with five looks, every interval is computed at 99 %. At whichever look the run stops, and for whatever reason,
the interval covers the true ratio in at least 95 % of runs (repeated confidence intervals: Jennison & Turnbull, 1989,
"Interim analyses: the repeated confidence interval approach", Journal of the Royal Statistical Society B 51, 305-361).
"""

from __future__ import annotations

import math
from typing import Literal

from effbench.core.estimate import Estimate
from effbench.core.study import Sampling

CONFIDENCE = 0.95
SMALLEST_EFFECT = 0.01
"""A difference that matters: a network is slower if its whole interval lies above 1 by this share."""
TOLERANCE = 0.03
"""Two networks take the same time if the whole interval lies within this share of 1."""

FIRST_LOOK = 3
"""The fewest launches that give an interval."""
LOOK_GROWTH = 1.5
MAX_LAUNCHES = 13
"""Launches of a run that stops by itself, unless the user asks for more."""

MAX_ROUNDS = 20
ROUNDS_S = 1.0
"""Most rounds of a launch where only the order of the networks is asked for, and most seconds of rounds in every run
that stops by itself. Launches are the replicates, so the time goes into more of them."""


def looks(launches: int) -> tuple[int, ...]:
    """Return the numbers of launches after which a run may stop.

    Parameters
    ----------
    launches : int
        Most launches of the run.

    Returns
    -------
    tuple of int
        3, 4, 6, 9, … (each half as many again), and `launches` as the last.
    """
    found, at = [], FIRST_LOOK
    while at < launches:
        found.append(at)
        at = math.floor(LOOK_GROWTH * at)
    return (*found, launches)


LOOKS = looks(MAX_LAUNCHES)


def verdict(interval: Estimate | None) -> Literal["faster", "slower", "same", "undecided"]:
    """Return what the interval of a ratio decides about the network over its reference.

    Parameters
    ----------
    interval : Estimate or None
        Time over that of the reference, with an interval at `decision_confidence`.

    Returns
    -------
    {'faster', 'slower', 'same', 'undecided'}
        ``"slower"`` where the whole interval lies above 1.01, ``"faster"`` where it lies below 1/1.01, ``"same"``
        where it lies between 1/1.03 and 1.03.
    """
    if interval is None or interval.low is None or interval.high is None:
        return "undecided"
    if interval.low > 1 + SMALLEST_EFFECT:
        return "slower"
    if interval.high < 1 / (1 + SMALLEST_EFFECT):
        return "faster"
    if interval.low > 1 / (1 + TOLERANCE) and interval.high < 1 + TOLERANCE:
        return "same"
    return "undecided"


def is_precise(interval: Estimate | None, precision: float) -> bool:
    """Return whether half the interval's width is at most this share of the estimate.

    Parameters
    ----------
    interval : Estimate or None
        A ratio or a time.
    precision : float
        The wanted share, such as 0.01.

    Returns
    -------
    bool
        False without an interval.
    """
    half = None if interval is None else interval.half_width
    return half is not None and half <= precision


def is_futile(point: float | None, half: float | None, *, until: str = "faster", precision: float = 0.0) -> bool:
    """Return whether no number of further launches in this sitting could decide.

    Parameters
    ----------
    point : float or None
        The ratio as it is estimated now.
    half : float or None
        Half width of the interval of infinitely many launches in this sitting, in logarithms: what sittings differ by,
        which more launches now do not lessen. None where that is not known: then nothing is futile.
    until : str
        ``"faster"`` or ``"precision"``.
    precision : float
        The wanted share, for ``"precision"``.

    Returns
    -------
    bool
        True if that interval around `point` decides nothing. To stop for this reason is always valid, since it claims
        nothing.
    """
    if point is None or half is None or not half > 0 or not point > 0:
        return False
    if until == "precision":
        return math.sinh(half) > precision
    return verdict(Estimate(point, point * math.exp(-half), point * math.exp(half))) == "undecided"


def is_look(sampling: Sampling, finished: int) -> bool:
    """Return whether the run may be judged after this many finished launches.

    Parameters
    ----------
    sampling : Sampling
        How the run decides when to stop.
    finished : int
        Launches that have ended.

    Returns
    -------
    bool
        False for every number in a run of a fixed number of launches.
    """
    return sampling.until != "launches" and finished in looks(sampling.launches)


def is_budget_used(sampling: Sampling, finished: int, used_s: float) -> bool:
    """Return whether the budget has no time for another launch, at the pace of those so far.

    Parameters
    ----------
    sampling : Sampling
        How the run decides when to stop.
    finished : int
        Launches that have ended. Before the first look a run goes on, since it could not give an interval.
    used_s : float
        Seconds that they took.

    Returns
    -------
    bool
        True if less than half a launch would fit. The run is then judged once more, in place of its next look.
    """
    if sampling.until == "launches" or finished < min(FIRST_LOOK, sampling.launches):
        return False
    return used_s + 0.5 * used_s / finished > sampling.budget_s


def least_launches(sampling: Sampling) -> int:
    """Return the fewest launches that the run can end with.

    Parameters
    ----------
    sampling : Sampling
        How the run decides when to stop.

    Returns
    -------
    int
        All of them, or the first look.
    """
    return sampling.launches if sampling.until == "launches" else looks(sampling.launches)[0]


def rounds_s(sampling: Sampling, available_s: float) -> float:
    """Return the seconds of rounds of one launch.

    Parameters
    ----------
    sampling : Sampling
        How the run decides when to stop.
    available_s : float
        What the launch's share of the budget leaves for rounds.

    Returns
    -------
    float
        At most `ROUNDS_S` in a run that stops by itself.
    """
    return available_s if sampling.until == "launches" else min(available_s, ROUNDS_S)
