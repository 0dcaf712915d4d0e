"""The results of a run, as data types: estimates with intervals, verdicts on claims, comparisons of two runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from effbench.core.study import Label


@dataclass(frozen=True)
class Estimate:
    """A number with its confidence interval.

    It formats itself as ``1.23 [1.20, 1.26]``. A format spec is that of a float and applies to all three numbers:
    ``f"{ratio:.3f}"``.

    Attributes
    ----------
    point
        The estimate, in the unit of what it estimates.
    low, high
        Ends of the interval. None where the data cannot give one.
    confidence
        Confidence level of the interval.
    n
        Number of replicates, usually launches.
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

    def to_dict(self) -> dict[str, float | None]:
        """Return the estimate and the ends of its interval, as the JSON documents hold them.

        Returns
        -------
        dict
            With the keys ``point``, ``low`` and ``high``.
        """
        return {"point": self.point, "low": self.low, "high": self.high}

    def _shown(self, value: float) -> str:
        """Format with three significant digits, or up to six if the point would look like an end of its interval."""
        from effbench.core import units

        values = {self.point, self.low or 0.0, self.high or 0.0} if self.low is not None else {self.point}
        enough = (more for more in range(3, 6) if len({units.digits(each, more) for each in values}) == len(values))
        return units.digits(value, next(enough, 6))

    @property
    def half_width(self) -> float | None:
        """Half the width of the interval relative to `point`; None without an interval."""
        if self.low is None or self.high is None or self.point == 0:
            return None
        return (self.high - self.low) / 2 / abs(self.point)


@dataclass(frozen=True)
class PairEvidence:
    """How one pair of a claim was judged.

    Attributes
    ----------
    slower, faster
        The two levels, as predicted.
    ratio
        Time of `slower` over time of `faster`; None where it could not be estimated.
    verdict
        ``"holds"``, ``"fails"`` or ``"unsure"``.
    reason
        Why it is unsure.
    paper_ratio
        The paper's ratio; None where it has none.
    wall
        Ratio of wall times, where CPU time misses work of one of the two; else None.
    """

    slower: Label
    faster: Label
    ratio: Estimate | None
    verdict: Literal["holds", "fails", "unsure"]
    reason: str = ""
    paper_ratio: float | None = None
    wall: Estimate | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether a claim holds within one group of the study, such as one scale.

    Attributes
    ----------
    claim
        Name of the claim.
    text
        The claim as one sentence.
    group
        Labels that the compared cases share.
    verdict
        ``"holds"`` where every pair holds, ``"fails"`` or ``"unsure"``.
    headline
        The pair that is printed.
    evidence
        All pairs.
    reason
        Why it is unsure.
    """

    claim: str
    text: str
    group: Mapping[str, Label]
    verdict: Literal["holds", "fails", "unsure"]
    headline: PairEvidence
    evidence: tuple[PairEvidence, ...]
    reason: str = ""


@dataclass(frozen=True)
class Comparison:
    """One cell in two runs, baseline and candidate.

    Attributes
    ----------
    cell
        Id of the cell.
    verdict
        ``"faster"``, ``"slower"``, ``"same"``, ``"unsure"`` or ``"missing"``.
    change
        Time of the candidate over time of the baseline; None where it could not be estimated.
    reason
        Why it is unsure or missing.
    wall
        The same of wall times, where CPU time misses work of one of the two; else None.
    costs
        Counts that differ: (baseline, candidate) by quantity.
    """

    cell: str
    verdict: Literal["faster", "slower", "same", "unsure", "missing"]
    change: Estimate | None
    reason: str = ""
    wall: Estimate | None = None
    costs: Mapping[str, tuple[int, int]] = field(default_factory=dict)
