"""The table of a run's launches: when each was, its share of the budget, and the conditions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from effbench.core import units
from effbench.core.run import Run
from effbench.report.tables import values
from effbench.report.tables.table_model import NOTHING, Column, Table, Value, drop_empty
from effbench.runs import launch_history


def launch_rows(run: Run) -> Table | None:
    """Build one row per launch, in order of time; None for a run that did not record the times of its launches.

    Conditions were read at the end of the launch, while it was still running; the load average is from its start.
    """
    found = launch_history.describe_launches(run)
    if not any(item["start"] for item in found):
        return None
    columns = (
        Column("launch"),
        Column("start (UTC)", align="left"),
        Column("ended by", align="left"),
        Column("rounds"),
        Column("rounds took", "s"),
        Column("start and warm-up", "s"),
        Column("load before"),
        Column("other processes", "cores"),
        Column("CPU", "°C"),
        Column("CPU clock", "MHz"),
        Column("stolen", "%", raw_unit=""),
        Column("slowed", align="left"),
        Column("GPU clock", "MHz"),
        Column("GPU", "°C"),
    )
    rows = tuple(_row(place, item) for place, item in enumerate(found, start=1))
    return drop_empty(Table("Launches", columns, rows))


def _row(place: int, item: Mapping[str, Any]) -> tuple[Value, ...]:
    start, end, gpu = (item[name] or {} for name in ("at_start", "at_end", "gpu"))
    moment = item["start"]
    return (
        values.whole(place),
        Value(moment[:19].replace("T", " "), moment) if moment else NOTHING,
        values.text(item["stopped"]),
        values.whole(item["rounds"]),
        _number(item["rounds_s"]),
        _number(item["overhead_s"]),
        _number(start.get("load_1m")),
        _number(end.get("other_cores")),
        _number(end.get("temperature_c")),
        _number(end.get("cpu_mhz"), "{:.0f}".format),
        _percent(end.get("stolen")),
        _slowed(end, gpu),
        _number(gpu.get("sm_mhz"), "{:.0f}".format),
        _number(gpu.get("temperature_c")),
    )


def _number(value: float | None, shown: Callable[[float], str] = units.digits) -> Value:
    return NOTHING if value is None else Value(shown(value), value)


def _percent(share: float | None) -> Value:
    return NOTHING if share is None else Value(f"{100 * share:.1f}", share)


def _slowed(end: Mapping[str, Any], gpu: Mapping[str, Any]) -> Value:
    found = [f"heat {end['thermal_throttled']}x"] if end.get("thermal_throttled") else []
    found += [f"quota {end['quota_throttled']}x"] if end.get("quota_throttled") else []
    found += [f"GPU: {reason}" for reason in gpu.get("throttled", ())]
    return values.text(", ".join(found))
