"""Sort the launches of stored runs into sittings, and say which scatter the intervals of a run include."""

from __future__ import annotations

import datetime
import itertools
import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from effbench.analysis import intervals, sequential
from effbench.analysis.between_sittings import LONGEST_S, PAUSE_S, sitting_numbers
from effbench.analysis.intervals import Intervals
from effbench.core.run import Launch, Run
from effbench.core.sittings import BetweenSittings, Scatter


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
        return Intervals(self.of_launch, max(found or [self.between.ratio], key=intervals.width), self.looks)

    def time(self, cell: str, figure: str) -> Intervals:
        """Return how to compute the interval of a time of this cell; `figure` is "latency" or "busy"."""
        scatter = None if self.between is None else self.between.of(cell, figure)
        return Intervals(self.of_launch, scatter, self.looks)


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
    return max(found, key=intervals.width, default=None)


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


def change_note(baseline: Run, candidate: Run, figure: str = "busy") -> str:
    """Return a sentence on the scatter between sittings that the changes of two runs include; "" on a scripted clock.

    Changes are of times, or of ratios to a yardstick (`figure` "ratio").
    """
    known = [run.between_sittings for run in (candidate, baseline) if run.between_sittings is not None]
    if not known and "fake" in (baseline.environment.device, candidate.environment.device):
        return ""
    if share_sitting(baseline, candidate):
        return "Both runs were made in one sitting, so changes include no scatter between sittings."
    if not known:
        return "Neither run recorded how far sittings differ, so changes include no scatter between sittings."
    between = max(known, key=lambda item: intervals.width(item.ratio if figure == "ratio" else item.time))
    scatter = between.ratio if figure == "ratio" else between.time
    width = 100 * intervals.half_width(Scatter(scatter.tau * math.sqrt(2), scatter.freedom))
    return f"Changes include ±{width:.1f} % between sittings for a cell without a history: {source(between)}."


def source(between: BetweenSittings) -> str:
    """Return where a scatter comes from: "9 sittings of this machine"."""
    if between.sittings > 1:
        return f"{between.sittings} sittings of this machine"
    return f"that of reference machines, since {between.problem or 'this machine has fewer than two earlier sittings'}"
