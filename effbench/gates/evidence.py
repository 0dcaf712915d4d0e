"""The evidence of a pair of runs as arrays: log ratios, disturbed rounds, unsteady warm-ups, CPU shares. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import numpy
from numpy.typing import NDArray

from effbench.analysis import cpu_share
from effbench.analysis.cpu_share import CpuShare
from effbench.analysis.summary import CONTAMINATED_SHARE, are_too_many
from effbench.gates import ab_pairs
from effbench.gates.ab_pairs import Pair, Round

Array = NDArray[Any]

WarmupState = tuple[str, int, bool]
"""A warm-up of either side: cell, launch number, and whether it reached a steady state."""


@dataclass(frozen=True)
class Evidence:
    """Paired measurements of both sides. `launches` are launch numbers in order of time.

    `values` are log ratios on `clock` (cells × launches × rounds), NaN where there is none. `wall` are the log ratios
    on the wall clock, where that is another one. Both leave out disturbed rounds. `disturbed` (cells × launches × 2)
    holds the number of disturbed rounds and of all rounds, `unsteady` the number of unsteady warm-ups and of all.
    `shares` (sides × cells × launches) are CPU time over wall time, where CPU time decides. `causes` name what
    disturbed each cell, `split` describes the work that CPU time misses; "" where nothing.
    """

    cells: tuple[str, ...]
    launches: tuple[int, ...]
    clock: str
    values: Array
    wall: Array | None
    disturbed: Array
    unsteady: Array
    shares: Array | None = None
    causes: Mapping[str, str] = field(default_factory=dict)
    split: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def of(pair: Pair, cells: Sequence[str] | None = None, clock: str | None = None) -> Evidence:
        """The evidence of a pair of runs for these cells. Default: all cells, on the pair's own clock."""
        read, chosen = clock or pair.clock, pair.cells if cells is None else tuple(cells)
        return Evidence.of_rounds(
            {cell: ab_pairs.rounds(pair, cell, read) for cell in chosen},
            {cell: ab_pairs.rounds(pair, cell, "wall") for cell in chosen} if read != "wall" else None,
            [
                (cell, launch.number, launch.warmups[cell].steady)
                for run in (pair.baseline, pair.candidate)
                for launch in run.launches
                for cell in chosen
                if cell in launch.warmups
            ],
            read,
        )

    @staticmethod
    def of_rounds(
        rounds: Mapping[str, Sequence[Round]],
        wall: Mapping[str, Sequence[Round]] | None = None,
        warmups: Sequence[WarmupState] = (),
        clock: str = "wall",
    ) -> Evidence:
        """The evidence of these rounds by cell. `wall` has the rounds on the wall clock, if `clock` is another one."""
        cells = tuple(rounds)
        every = [item for clocked in (rounds, wall or {}) for items in clocked.values() for item in items]
        launches = tuple(sorted({item.launch for item in every} | {number for _, number, _ in warmups}))
        ordered = _Indices(cells, launches)
        disturbed = [(cell, item.launch, bool(item.flags)) for cell, items in rounds.items() for item in items]
        shares = {cell: ab_pairs.cpu_shares(tuple(items)) for cell, items in rounds.items()} if clock == "cpu" else {}
        return Evidence(
            cells,
            launches,
            clock,
            ordered.log_ratios(rounds),
            None if wall is None else ordered.log_ratios(wall),
            ordered.counts(disturbed),
            ordered.counts((cell, number, not steady) for cell, number, steady in warmups),
            ordered.shares(rounds) if clock == "cpu" else None,
            {
                cell: ", ".join(dict.fromkeys(flag for item in items for flag in item.flags))
                for cell, items in rounds.items()
            },
            {
                cell: ab_pairs.why_clocks_differ(clock, dict(zip(ab_pairs.SIDES, each, strict=True)))
                for cell, each in shares.items()
            },
        )

    def recorded(self) -> Evidence:
        """The evidence without launches that have no round of any cell."""
        kept = self.disturbed[..., 1].sum(axis=0) > 0
        return replace(
            self,
            launches=tuple(number for number, is_kept in zip(self.launches, kept, strict=True) if is_kept),
            values=self.values[:, kept],
            wall=None if self.wall is None else self.wall[:, kept],
            disturbed=self.disturbed[:, kept],
            unsteady=self.unsteady[:, kept],
            shares=None if self.shares is None else self.shares[:, :, kept],
        )

    @property
    def usable(self) -> tuple[str, ...]:
        """The cells with at least one undisturbed round."""
        return tuple(cell for cell, each in zip(self.cells, self.values, strict=True) if numpy.isfinite(each).any())

    def medians(self, cell: str, *, by_wall: bool = False) -> list[float]:
        """The median log ratio of each launch that has an undisturbed round."""
        values = self.wall if by_wall and self.wall is not None else self.values
        found = nan_median(values[self.cells.index(cell)])
        return [value for value in found.tolist() if not math.isnan(value)]

    def set_aside(self, cell: str) -> int:
        """The number of disturbed rounds of the cell."""
        return int(self.disturbed[self.cells.index(cell), :, 0].sum())

    def doubts(self, cell: str) -> dict[str, str]:
        """Reasons to doubt the cell: `disturbed` rounds, `unsteady` warm-ups, `split` clocks; "" if there is none."""
        place = self.cells.index(cell)
        (bad, every), (restless, warmups) = (
            counts[place].sum(axis=0).tolist() for counts in (self.disturbed, self.unsteady)
        )
        disturbed = f"{bad} of {every} rounds were disturbed from outside ({self.causes.get(cell, '')})"
        unsteady = f"no steady state in {restless} of {warmups} warm-ups"
        return {
            "disturbed": disturbed if are_too_many(bad, every) else "",
            "unsteady": unsteady if restless > CONTAMINATED_SHARE * warmups else "",
            "split": self.split.get(cell, ""),
        }

    def cpu_share(self, cell: str) -> str:
        """Text such as ``CPU time is 2 % of wall time``, for the side further from 100 %; "" if both are usual."""
        if self.shares is None:
            return ""
        sides = nan_median(self.shares[:, self.cells.index(cell)]).tolist()
        unusual = [share for share in sides if not math.isnan(share) and not cpu_share.is_usual(share)]
        return CpuShare(max(unusual, key=lambda share: abs(math.log(share)))).amount if unusual else ""


class _Indices:
    """The row of each cell and the column of each launch in the arrays."""

    def __init__(self, cells: Sequence[str], launches: Sequence[int]) -> None:
        self._shape = len(cells), len(launches)
        self._rows = {cell: row for row, cell in enumerate(cells)}
        self._columns = {launch: column for column, launch in enumerate(launches)}

    def log_ratios(self, rounds: Mapping[str, Sequence[Round]]) -> Array:
        """The log ratios of undisturbed rounds. A cell with any value that is not finite stays NaN."""
        quiet = {cell: _by_launch(items) for cell, items in rounds.items()}
        longest = max((len(items) for launches in quiet.values() for items in launches.values()), default=1)
        values = numpy.full((*self._shape, longest), numpy.nan)
        for cell, launches in quiet.items():
            found = {launch: [item.log_ratio for item in items] for launch, items in launches.items()}
            if all(map(math.isfinite, chain.from_iterable(found.values()))):
                for launch, ratios in found.items():
                    values[self._rows[cell], self._columns[launch], : len(ratios)] = ratios
        return values

    def counts(self, seen: Iterable[tuple[str, int, bool]]) -> Array:
        """The number of true flags and of all, by cell and launch (cells × launches × 2)."""
        found = numpy.zeros((*self._shape, 2), dtype=int)
        for cell, launch, is_so in seen:
            found[self._rows[cell], self._columns[launch]] += is_so, 1
        return found

    def shares(self, rounds: Mapping[str, Sequence[Round]]) -> Array:
        """CPU time over wall time of both sides (sides × cells × launches), NaN where no time was recorded."""
        found = numpy.full((len(ab_pairs.SIDES), *self._shape), numpy.nan)
        for cell, items in rounds.items():
            for launch, quiet in _by_launch(items).items():
                for side, share in enumerate(ab_pairs.cpu_shares(tuple(quiet))):
                    if share is not None:
                        found[side, self._rows[cell], self._columns[launch]] = share.share
        return found


def nan_median(values: Array) -> Array:
    """The median along the last axis, ignoring NaN; NaN for a row without values."""
    ordered = numpy.sort(values, axis=-1)  # NaN last
    if not ordered.shape[-1]:
        return numpy.full(ordered.shape[:-1], numpy.nan)
    count = numpy.isfinite(ordered).sum(axis=-1, keepdims=True)
    ends = [numpy.take_along_axis(ordered, numpy.maximum(place, 0), -1) for place in ((count - 1) // 2, count // 2)]
    found: Array = (ends[0][..., 0] + ends[1][..., 0]) / 2
    return found


def _by_launch(items: Sequence[Round]) -> dict[int, list[Round]]:
    launches: dict[int, list[Round]] = {}
    for item in items:
        if not item.flags:
            launches.setdefault(item.launch, []).append(item)
    return launches
