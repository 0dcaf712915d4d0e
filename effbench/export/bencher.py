"""Export to Bencher Metric Format, for ``bencher run --adapter json``: measures by benchmark, each with its interval.


Measures are named by Bencher's slugs. `latency` is in nanoseconds, the unit of Bencher's measure of that name, and
`throughput` in images per second. Source: bencher.dev/docs/reference/bencher-metric-format.
"""

from __future__ import annotations

from collections.abc import Sequence

from effbench.core.estimate import Estimate
from effbench.core.run import Run
from effbench.export.measured import MeasuredCell, as_json

Metric = dict[str, float]
_NANO = 1e9


def render(run: Run, cells: Sequence[MeasuredCell]) -> str:
    """Return the JSON text."""
    return as_json({cell.name: _measures(run, cell) for cell in cells})


def _measures(run: Run, cell: MeasuredCell) -> dict[str, Metric]:
    latency, busy, cost = cell.latency, cell.summary.busy, cell.summary.cost
    found = {
        "latency": _metric(latency, _NANO),
        "throughput": _metric(_inverse(latency), cell.batch),
    }
    if run.clock != "wall" and busy is not None:
        found[f"{run.clock}-time"] = _metric(busy, _NANO)
    if cost is not None:
        counts = {
            "params": cost.params,
            "madds": cost.madds,
            "memory-access": cost.memory_access,
            "memory-access-bytes": cost.memory_access_bytes,
        }
        found |= {name: {"value": count} for name, count in counts.items()}
    return found


def _metric(estimate: Estimate, scale: float) -> Metric:
    ends = {"value": estimate.point, "lower_value": estimate.low, "upper_value": estimate.high}
    return {name: value * scale for name, value in ends.items() if value is not None}


def _inverse(time: Estimate) -> Estimate:
    """Return calls per second. The high end of the time is the low end of the rate."""
    low, high = (None if bound is None else 1 / bound for bound in (time.high, time.low))
    return Estimate(1 / time.point, low, high, time.confidence, time.n)
