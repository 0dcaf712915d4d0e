"""Recorded pairs as arrays, and the gate's `rule` over hundreds of suites drawn from them. Pure, no torch.

`rule.Gate` decides one gate in plain Python; a replay needs thousands. What is computed here is the same rule, and a
test holds the two together, verdict by verdict.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from effbench.analysis import cpu_share, stats
from effbench.analysis.cpu_share import CpuShare
from effbench.analysis.summary import CONTAMINATED_SHARE
from effbench.gates import ab_pairs
from effbench.gates.ab_pairs import Pair, Round
from effbench.gates.decision_rule import WALL_EFFECT, WALL_SHARE, Rule

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

Rounds = Mapping[str, Mapping[int, Sequence[Round]]]
"""By cell and number of the launch."""
Counts = Mapping[str, Mapping[int, tuple[int, int]]]
"""So many of so many, by cell and number of the launch."""

Shares = Mapping[str, Mapping[int, tuple[float, float]]]
"""CPU time over wall time of both sides, by cell and number of the launch; NaN where no clock read anything."""

INCONCLUSIVE, REGRESSION, PASS = 0, 1, 2


@dataclass(frozen=True)
class Record:
    """What was measured of both sides, without the rounds that an outside cause disturbed.

    `rounds` are on `clock`, `wall` the same on the wall clock where that is another one, else empty. `launches` are the
    numbers of all launches in the order of time. `disturbed` counts rounds, `unsteady` warm-ups. `shares` are CPU time
    over wall time of the baseline and the candidate, where CPU time decides.
    """

    cells: tuple[str, ...]
    launches: tuple[int, ...]
    rounds: Rounds
    wall: Rounds = field(default_factory=dict)
    clock: str = "wall"
    disturbed: Counts = field(default_factory=dict)
    unsteady: Counts = field(default_factory=dict)
    shares: Shares = field(default_factory=dict)

    @property
    def usable(self) -> tuple[str, ...]:
        """The cells with any undisturbed round."""
        return tuple(cell for cell in self.cells if any(self.rounds[cell].values()))

    def split(self, cell: str) -> str:
        """``CPU time is 2 % of wall time``, of the side that is further from the usual; "" where both are usual."""
        sides = zip(*self.shares.get(cell, {}).values(), strict=True)
        known = [[share for share in side if not math.isnan(share)] for side in sides]
        unusual = [stats.median(side) for side in known if side and not cpu_share.is_usual(stats.median(side))]
        return CpuShare(max(unusual, key=lambda share: abs(math.log(share)))).amount if unusual else ""

    def set_aside(self, cell: str) -> int:
        """How many of the cell's rounds were disturbed."""
        return sum(bad for bad, _ in self.disturbed.get(cell, {}).values())


@dataclass(frozen=True)
class Arrays:
    """A record in numbers. `values` and `wall` are log ratios by cell, launch and round, NaN where there is none;
    `disturbed` and `unsteady` the two counts of `Record` by cell and launch, `shares` by side, cell and launch.
    """

    values: Array
    wall: Array | None
    disturbed: tuple[Array, Array]
    unsteady: tuple[Array, Array]
    shares: Array | None = None


def record(source: Pair | Record | Mapping[str, Sequence[Sequence[Round]]], clock: str | None = None) -> Record:
    """A record from a stored pair of runs, or from each cell's launches of rounds. `clock` defaults to the pair's."""
    if isinstance(source, Record):
        return source
    wall: Mapping[str, Sequence[Round]] = {}
    unsteady: Counts = {}
    if isinstance(source, Pair):
        read, unsteady = clock or source.clock, _unsteady(source)
        found = {cell: ab_pairs.rounds(source, cell, read) for cell in source.cells}
        if read != "wall":
            wall = {cell: ab_pairs.rounds(source, cell, "wall") for cell in source.cells}
    else:
        read = clock or "wall"
        found = {cell: tuple(item for launch in launches for item in launch) for cell, launches in source.items()}
    return Record(
        cells=tuple(found),
        launches=tuple(sorted({item.launch for items in found.values() for item in items})),
        rounds={cell: _by_launch(items) for cell, items in found.items()},
        wall={cell: _by_launch(items) for cell, items in wall.items()},
        clock=read,
        disturbed={cell: _counted((item.launch, bool(item.flags)) for item in items) for cell, items in found.items()},
        unsteady=unsteady,
        shares={cell: _shares(items) for cell, items in found.items()} if read == "cpu" else {},
    )


def arrays(recorded: Record) -> Arrays:
    """The record in numbers, cells and launches in its order."""
    return Arrays(
        _log_ratios(recorded, recorded.rounds),
        _log_ratios(recorded, recorded.wall) if recorded.wall else None,
        _two_counts(recorded, recorded.disturbed),
        _two_counts(recorded, recorded.unsteady),
        _both_shares(recorded) if recorded.shares else None,
    )


def decide(numbers: Arrays, drawn: Array, rule: Rule, shift: Array | float = 0.0) -> tuple[Array, Array]:
    """The verdict of every cell in every suite, and the launches that each suite took until all were decided.

    `drawn` (suites × launches) are places of launches in the record, in the order in which a suite meets them; `shift`
    (suites × cells) is added to the log ratios of a suite's cell. Looks beyond the drawn launches do not happen. What
    the gate calls ENVIRONMENT stays inconclusive here.
    """
    import numpy

    suites, launches = drawn.shape
    values, wall = numbers.values, numbers.wall
    verdicts = numpy.full((suites, len(values)), INCONCLUSIVE)
    taken = numpy.zeros(suites, dtype=int)
    spent = stats.alpha_spending(rule.alpha, len(rule.looks))
    for look, alpha in zip(rule.looks, spent, strict=True):
        if look > launches:
            break
        here = drawn[:, :look]
        is_disturbed, is_unsteady = _too_many(numbers.disturbed, here), _beyond(numbers.unsteady, here)
        share = alpha if wall is None else alpha * (1 - WALL_SHARE)
        slower = numpy.where(is_disturbed, 1.0, p_above(values, here, rule.smallest_effect, shift))
        is_slower = _holm(slower) <= share
        is_passed = p_above(-values, here, 1 / (1 + rule.tolerance) - 1, -numpy.asarray(shift)) <= alpha
        if wall is not None and (is_split := split(numbers, here)).any():
            by_wall = numpy.where(is_disturbed | ~is_split, 1.0, p_above(wall, here, rule.smallest_effect, shift))
            is_slower &= ~is_split | (_holm(by_wall) <= share)
            middles = [_middle(_middle(clock)[:, here].transpose(1, 0, 2)) for clock in (values, wall)]
            agree = ~(numpy.abs(middles[0] - middles[1]) > math.log1p(WALL_EFFECT))
            by_wall = p_above(-wall, here, 1 / (1 + rule.tolerance) - 1, -numpy.asarray(shift)) <= alpha
            is_passed &= ~is_split | (agree & by_wall)
        if wall is not None:
            waiting = numpy.where(is_disturbed, 1.0, p_above(wall, here, WALL_EFFECT, shift))
            is_slower |= _holm(waiting) <= alpha * WALL_SHARE
            is_passed &= ~(_middle(_middle(wall)[:, here].transpose(1, 0, 2)) + shift > math.log1p(WALL_EFFECT))
        is_open = verdicts == INCONCLUSIVE
        taken[is_open.any(axis=1)] = look
        verdicts[is_open & is_passed & ~is_disturbed & ~is_unsteady] = PASS
        verdicts[is_open & is_slower] = REGRESSION
    return verdicts, taken


def p_above(values: Array, drawn: Array, share: float, shift: Array | float = 0.0) -> Array:
    """`gate.p_above` of every suite and cell (suites × cells)."""
    import numpy

    threshold = math.log1p(share) - numpy.broadcast_to(shift, (len(drawn), len(values)))
    levels, level = numpy.unique(threshold, return_inverse=True)
    level = level.reshape(threshold.shape)
    medians = _middle(values)[:, drawn].transpose(1, 0, 2)
    rounds = numpy.isfinite(values).sum(axis=2)[:, drawn].sum(axis=2).T
    p_values = numpy.ones(threshold.shape)
    for number, at in enumerate(levels):  # as many as there are slowdowns: two
        above = (values > at).sum(axis=2)[:, drawn].sum(axis=2).T
        found = numpy.maximum(sign_p(above, rounds), t_p(medians, at))
        p_values = numpy.where(level == number, found, p_values)
    return p_values


def sign_p(above: Array, rounds: Array) -> Array:
    """`analysis.stats.sign_test` from counts."""
    import numpy
    from scipy.special import bdtrc

    return numpy.where(rounds > 0, bdtrc(above - 1.0, numpy.maximum(rounds, 1), 0.5), 1.0)


def t_p(medians: Array, threshold: Array | float) -> Array:
    """`analysis.stats.t_test` along the last axis, leaving out NaN."""
    import numpy
    from scipy.special import stdtr

    count = numpy.isfinite(medians).sum(axis=-1)
    mean = numpy.nansum(medians, axis=-1) / numpy.maximum(count, 1)
    squares = numpy.nansum((medians - mean[..., None]) ** 2, axis=-1)
    scatter = numpy.sqrt(squares / numpy.maximum(count - 1, 1))
    largest = numpy.nan_to_num(numpy.abs(medians)).max(axis=-1, initial=0.0)
    can_tell = (count > 1) & (scatter > 1e-12 * largest)
    t = (threshold - mean) / numpy.where(can_tell, scatter, 1.0) * numpy.sqrt(count)
    return numpy.where(can_tell, stdtr(numpy.maximum(count - 1, 1), t), 1.0)


def _log_ratios(recorded: Record, rounds: Rounds) -> Array:
    import numpy

    longest = max((len(items) for launches in rounds.values() for items in launches.values()), default=0)
    values = numpy.full((len(recorded.cells), len(recorded.launches), max(longest, 1)), numpy.nan)
    for row, cell in enumerate(recorded.cells):
        for column, launch in enumerate(recorded.launches):
            found = [item.log_ratio for item in rounds.get(cell, {}).get(launch, ())]
            values[row, column, : len(found)] = found
    return values


def _two_counts(recorded: Record, counts: Counts) -> tuple[Array, Array]:
    import numpy

    both = numpy.asarray(
        [[counts.get(cell, {}).get(launch, (0, 0)) for launch in recorded.launches] for cell in recorded.cells]
    ).reshape(len(recorded.cells), len(recorded.launches), 2)
    return both[..., 0], both[..., 1]


def _too_many(counts: tuple[Array, Array], drawn: Array) -> Array:
    """`analysis.summary.too_many` of a suite's cell (suites × cells)."""
    bad, every = (each[:, drawn].sum(axis=2).T for each in counts)
    beyond: Array = _beyond(counts, drawn) & ((bad > 1) | (bad == every))
    return beyond


def _beyond(counts: tuple[Array, Array], drawn: Array) -> Array:
    """Whether more than a tenth is, of a suite's cell (suites × cells)."""
    bad, every = (each[:, drawn].sum(axis=2).T for each in counts)
    beyond: Array = bad > CONTAMINATED_SHARE * every
    return beyond


def split(numbers: Arrays, drawn: Array) -> Array:
    """Whether the CPU clock misses work of a suite's cell (suites × cells) on either side."""
    import numpy

    if numbers.shares is None:
        return numpy.zeros((len(drawn), len(numbers.values)), dtype=bool)
    middle = [_middle(side[:, drawn].transpose(1, 0, 2)) for side in numbers.shares]
    unusual: Array = numpy.any([(share < cpu_share.LEAST) | (share > cpu_share.MOST) for share in middle], axis=0)
    return unusual


def _both_shares(recorded: Record) -> Array:
    import numpy

    nothing = (numpy.nan, numpy.nan)
    shares: Array = numpy.asarray(
        [
            [recorded.shares.get(cell, {}).get(launch, nothing) for launch in recorded.launches]
            for cell in recorded.cells
        ]
    )
    return shares.reshape(len(recorded.cells), len(recorded.launches), 2).transpose(2, 0, 1)


def _shares(items: Sequence[Round]) -> dict[int, tuple[float, float]]:
    found = {}
    for launch, rounds in _by_launch(items).items():
        before, after = ab_pairs.cpu_shares(tuple(rounds))
        found[launch] = (
            math.nan if before is None else before.share,
            math.nan if after is None else after.share,
        )
    return found


def _counted(items: Iterable[tuple[int, bool]]) -> dict[int, tuple[int, int]]:
    counts: dict[int, tuple[int, int]] = {}
    for launch, is_bad in items:
        bad, every = counts.get(launch, (0, 0))
        counts[launch] = (bad + is_bad, every + 1)
    return counts


def _unsteady(pair: Pair) -> Counts:
    return {
        cell: _counted(
            (launch.number, not launch.warmups[cell].steady)
            for run in (pair.baseline, pair.candidate)
            for launch in run.launches
            if cell in launch.warmups
        )
        for cell in pair.cells
    }


def _by_launch(items: Sequence[Round]) -> dict[int, list[Round]]:
    launches: dict[int, list[Round]] = {}
    for item in items:
        if not item.flags:
            launches.setdefault(item.launch, []).append(item)
    return launches


def _middle(values: Array) -> Array:
    """The median along the last axis without NaN; NaN where there is nothing else."""
    import numpy

    ordered = numpy.sort(values, axis=-1)  # NaN last
    count = numpy.isfinite(ordered).sum(axis=-1, keepdims=True)
    ends = [numpy.take_along_axis(ordered, numpy.maximum(place, 0), -1) for place in ((count - 1) // 2, count // 2)]
    middle: Array = (ends[0][..., 0] + ends[1][..., 0]) / 2
    return middle


def _holm(p_values: Array) -> Array:
    """`analysis.stats.holm` of each row."""
    import numpy

    order = numpy.argsort(p_values, axis=1, kind="stable")
    factors = numpy.arange(p_values.shape[1], 0, -1)
    raised = numpy.minimum(numpy.take_along_axis(p_values, order, 1) * factors, 1.0)
    adjusted = numpy.empty_like(raised)
    numpy.put_along_axis(adjusted, order, numpy.maximum.accumulate(raised, axis=1), 1)
    return adjusted
