"""Tables of a fleet: which machines there are, and how far each is with a run. No torch, no dask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from effbench.core import units
from effbench.report.tables import values
from effbench.report.tables.table_model import Column, Table


def status_rows(machines: Mapping[str, Mapping[str, Any]]) -> Table:
    """Build one row a machine from what the scheduler knows (`fleet.presence.Presence.snapshot`)."""
    names = ("machine", "labels", "doing", "processor", "effbench", "doctor", "last launch")
    rows = tuple(tuple(map(values.text, _status_row(name, machine))) for name, machine in machines.items())
    away = sum(not machine["present"] for machine in machines.values())
    notes = (f"{len(machines) - away} of {len(machines)} machines are there.",) if machines else ()
    if not machines:
        notes = ("No machine is connected; start one there with: effbench fleet worker",)
    return Table("Machines of the fleet", tuple(Column(name, align="left") for name in names), rows, notes)


def _status_row(name: str, machine: Mapping[str, Any]) -> tuple[str, ...]:
    labels = " ".join(f"{key}={value}" for key, value in sorted(machine["labels"].items())) or "–"
    facts, last_s = machine["facts"], machine["last_launch_s"]
    ago = "–" if last_s is None else "now" if machine["doing"] else f"{units.duration(last_s)} ago"
    if not machine["present"]:
        return (name, labels, f"not there for {units.duration(machine['since_s'])}", "–", "–", "–", ago)
    warnings = facts.get("warnings", ())
    found = "–" if not facts else "ok" if not warnings else f"{len(warnings)} to do: {', '.join(warnings)}"
    processor, version = str(facts.get("cpu") or "–"), str(facts.get("effbench", "–"))
    doing = doing_text(machine["doing"])
    if machine["unfit"] and not machine["doing"]:
        doing = f"not fit: {machine['unfit']}"
    return (name, labels, doing, processor, version, found, ago)


def doing_text(doing: Mapping[str, Any] | None) -> str:
    """Return what a machine does, such as "alice: g2_groups, launch 3/5: round 4"."""
    if not doing:
        return "idle"
    step = f", {doing['doing'].partition(':')[0]}" if doing.get("doing") else ""
    return f"{doing['by']}: {doing['subject']}{step}"


def progress_rows(machines: Sequence[Mapping[str, Any]]) -> Table:
    """Build one row a machine: how its run stands, as `effbench fleet run --json` has it."""
    columns = (
        Column("machine", align="left"), Column("state", align="left"), Column("launches"), Column("why", align="left"),
    )  # fmt: skip
    rows = tuple(
        (
            values.text(item["machine"]),
            values.text(item["state"]),
            values.text(f"{item['launches_done']} of {item['launches'] or '?'}"),
            values.text(item["why"] or "–"),
        )
        for item in machines
    )
    return Table("Machines", columns, rows)
