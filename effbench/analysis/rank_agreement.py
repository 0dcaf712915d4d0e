"""Rank correlation (Kendall's tau-b) of indirect metrics, such as multiply-adds, with measured times. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from effbench import zoo
from effbench.analysis import stats
from effbench.analysis.cell_summary import CellSummary
from effbench.core.cost import LEVELS
from effbench.core.errors import UnknownName
from effbench.core.estimate import Estimate

MIN_CELLS = 5
"""Fewest networks: with fewer there are too few pairs for a meaningful correlation."""

_Metric = Callable[[CellSummary], float | None]


@dataclass(frozen=True)
class Agreement:
    """Kendall's tau-b of one metric with measured time: 1 for the same order, 0 for none, -1 for the opposite one.

    `within` counts only pairs of the same group, such as the same level of multiply-adds, which are harder to rank. It
    is None where there is one group. Intervals resample whole families, since networks of one family are alike. `tau.n`
    is the number of networks.
    """

    metric: str
    tau: Estimate
    within: Estimate | None = None


def agreements(cells: Sequence[CellSummary], keys: Sequence[str] = ()) -> tuple[Agreement, ...]:
    """Correlate each metric with time over all measured cells. Returns nothing for fewer than `MIN_CELLS` cells.

    Cells with the same labels under `keys` form a group. A metric that is missing for a cell, or the same for all, is
    left out. The order of the metrics is fixed.
    """
    measured = [
        cell for cell in cells if cell.busy is not None and cell.cost is not None and not cell.cpu_time_misses_work
    ]
    if len(measured) < MIN_CELLS:
        return ()
    times = [cell.busy.point for cell in measured if cell.busy is not None]
    families = [family(cell.cell.case.model) for cell in measured]
    groups = [tuple(cell.cell.case.labels.get(key) for key in keys) for cell in measured]
    found = []
    for name, read in _metrics().items():
        values = [value for cell in measured if (value := read(cell)) is not None]
        if len(values) == len(measured) and len(set(values)) > 1:
            tau = stats.rank_agreement(values, times, families)
            within = stats.rank_agreement(values, times, families, strata=groups) if len(set(groups)) > 1 else None
            found.append(Agreement(name, tau, within))
    return tuple(found)


def family(model: str) -> str:
    """Return the family of a network: of a zoo network its registered family, of others the first word of the name."""
    name = model.partition("?")[0]
    if zoo.exists(name):  # checked first, since an UnknownName error searches for similar names
        with suppress(UnknownName):  # the name may be that of a family
            return zoo.entry(name).family
    found = re.match(r"[A-Za-z]+", name.rpartition(":")[2])
    return found[0].lower() if found else name


def _metrics() -> dict[str, _Metric]:
    metrics: dict[str, _Metric] = {name: _count(name) for name in ("params", "madds", "activations")}
    metrics |= {f"memory access, {level}": _traffic(level) for level in LEVELS}
    metrics |= {f"roofline bound, {level}": _bound(level) for level in LEVELS}
    return metrics


def _count(name: str) -> _Metric:
    return lambda cell: None if cell.cost is None else float(getattr(cell.cost, name))


def _bound(level: str) -> _Metric:
    return lambda cell: (cell.bounds_s or {}).get(level)


def _traffic(level: str) -> _Metric:
    return lambda cell: None if cell.cost is None else float(cell.cost.memory_access_levels[level].elements)
