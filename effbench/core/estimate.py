"""What follows from a run: estimates with intervals, verdicts on claims, comparisons of two runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from effbench.core.study import Label


@dataclass(frozen=True)
class Estimate:
    """A number with its interval. `low` and `high` are None where the data cannot give an interval.

    It formats itself as ``1.23 [1.20, 1.26]``; a format spec is that of a float and applies to all three numbers:
    ``f"{ratio:.3f}"``.
    """

    point: float
    low: float | None = None
    high: float | None = None
    confidence: float = 0.95
    n: int = 0

    def __format__(self, spec: str) -> str:
        shown = (lambda value: format(value, spec)) if spec else self._shown
        if self.low is None or self.high is None:
            return f"{shown(self.point)} (no interval)"
        return f"{shown(self.point)} [{shown(self.low)}, {shown(self.high)}]"

    def __str__(self) -> str:
        return format(self)

    def __repr__(self) -> str:
        share = "" if self.low is None or self.high is None else f", {100 * self.confidence:g} %"
        return f"<Estimate {self}{share}, n={self.n}>"

    def _shown(self, value: float) -> str:
        """Three significant digits, or as many more, up to six, as tell the point from the ends of its interval."""
        from effbench.core import units

        values = {self.point, self.low or 0.0, self.high or 0.0} if self.low is not None else {self.point}
        enough = (more for more in range(3, 6) if len({units.digits(each, more) for each in values}) == len(values))
        return units.digits(value, next(enough, 6))

    @property
    def half_width(self) -> float | None:
        """Relative half-width of the interval."""
        if self.low is None or self.high is None or self.point == 0:
            return None
        return (self.high - self.low) / 2 / abs(self.point)


@dataclass(frozen=True)
class PairEvidence:
    """One pair of a claim: how much slower the first level ran than the second, and whether that is shown."""

    slower: Label
    faster: Label
    ratio: Estimate | None
    verdict: Literal["holds", "fails", "unsure"]
    reason: str = ""
    paper_ratio: float | None = None
    wall: Estimate | None = None
    """The ratio of wall times, where CPU time misses work of one of the two."""


@dataclass(frozen=True)
class Verdict:
    """Whether a claim holds within one group of the study (one scale, say), and the evidence for it."""

    claim: str
    text: str
    group: Mapping[str, Label]
    verdict: Literal["holds", "fails", "unsure"]
    headline: PairEvidence
    evidence: tuple[PairEvidence, ...]
    reason: str = ""


@dataclass(frozen=True)
class Comparison:
    """One cell in two runs: `change` is candidate time over baseline time.

    `wall` is the same of wall times, where CPU time misses work of one of the two. `costs` are the counts that differ,
    baseline and candidate by quantity.
    """

    cell: str
    verdict: Literal["faster", "slower", "same", "unsure", "missing"]
    change: Estimate | None
    reason: str = ""
    wall: Estimate | None = None
    costs: Mapping[str, tuple[int, int]] = field(default_factory=dict)
