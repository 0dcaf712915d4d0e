"""How far the results of one machine scatter between sittings, as data types.

A sitting is a stretch of measuring without a long pause. Its launches share the state of the machine: other guests of
the host, the clock, where memory lies. Another sitting finds another state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

FIGURES = ("ratio", "latency", "busy")
"""The figures of a cell that scatter: `CellSummary.ratio`, `.latency` and `.busy`."""


@dataclass(frozen=True)
class Scatter:
    """How far one figure scatters between sittings.

    Attributes
    ----------
    tau
        Standard deviation between sittings of the figure's natural logarithm; 0.01 is about 1 %.
    freedom
        Degrees of freedom of `tau`.
    sittings
        Number of sittings of this machine that it was estimated from; 0 for reference machines alone.
    """

    tau: float
    freedom: float
    sittings: int = 0


@dataclass(frozen=True)
class BetweenSittings:
    """The scatter between sittings that the intervals of a run include.

    Attributes
    ----------
    ratio
        Scatter of the ratio of two cells.
    time
        Scatter of a time.
    cells
        Scatter of the cells that this machine has measured in several sittings, by cell id and figure (`FIGURES`).
    sittings
        Number of this machine's sittings that were used; 0 where the scatter is that of reference machines.
    problem
        Why the machine's own history could not be used; ``""`` where it was, and where there is none yet.
    """

    ratio: Scatter
    time: Scatter
    cells: Mapping[str, Mapping[str, Scatter]] = field(default_factory=dict)
    sittings: int = 0
    problem: str = ""

    def of(self, cell: str, figure: str) -> Scatter:
        """Scatter of one figure of a cell.

        Parameters
        ----------
        cell
            Id of the cell.
        figure
            One of `FIGURES`.

        Returns
        -------
        Scatter
            That of the cell where this machine has measured it before, else that of all cells.
        """
        return self.cells.get(cell, {}).get(figure) or (self.ratio if figure == "ratio" else self.time)
