"""The tables of a fleet: its machines, and how far each is with a run."""

from __future__ import annotations

from typing import Any

from effbench.report.tables import fleet
from effbench.report.tables.table_model import render_markdown


def machine(**changes: Any) -> dict[str, Any]:
    facts = {"effbench": "0.5.0", "schema": 4, "python": "3.11.2", "torch": False, "cpu": "ARM Cortex-A76"}
    own = {"labels": {"board": "pi5", "arch": "arm64"}, "present": True, "since_s": 3600.0, "doing": None, "unfit": ""}
    return {**own, "facts": {**facts, "warnings": []}, "last_launch_s": None, **changes}


def rows(machines: dict[str, Any]) -> list[list[str]]:
    lines = render_markdown(fleet.status_rows(machines)).splitlines()
    return [[field.strip() for field in line.strip("|").split("|")] for line in lines if line.startswith("| pi")]


def test_each_machine_says_what_it_does_and_what_is_wrong_with_it() -> None:
    doing = {"run": "r", "by": "alice@laptop", "subject": "g2_groups", "done": 0.5, "doing": "launch 3/5: round 4"}
    warned = {**machine()["facts"], "warnings": ["governor", "temperature"]}
    shown = rows(
        {
            "pi5-a": machine(doing=doing, last_launch_s=3.0),
            "pi5-b": machine(facts=warned, last_launch_s=7300.0),
            "pi5-c": machine(present=False, since_s=240.0, facts={}, last_launch_s=90_000.0),
            "pi5-d": machine(labels={}, facts={}),
            "pi5-e": machine(unfit="too hot: 91 °C (soc)"),
        }
    )
    assert shown == [
        [
            "pi5-a",
            "arch=arm64 board=pi5",
            "alice@laptop: g2_groups, launch 3/5",
            "ARM Cortex-A76",
            "0.5.0",
            "ok",
            "now",
        ],
        [
            *("pi5-b", "arch=arm64 board=pi5", "idle", "ARM Cortex-A76", "0.5.0"),
            *("2 to do: governor, temperature", "2.0 hours ago"),
        ],
        ["pi5-c", "arch=arm64 board=pi5", "not there for 4 minutes", "–", "–", "–", "25.0 hours ago"],
        ["pi5-d", "–", "idle", "–", "–", "–", "–"],
        ["pi5-e", "arch=arm64 board=pi5", "not fit: too hot: 91 °C (soc)", "ARM Cortex-A76", "0.5.0", "ok", "–"],
    ]


def test_a_fleet_without_machines_says_how_to_start_one() -> None:
    assert "effbench fleet worker" in render_markdown(fleet.status_rows({}))
    assert "1 of 2 machines are there" in render_markdown(
        fleet.status_rows({"pi5-a": machine(), "pi5-b": machine(present=False)})
    )


def test_the_end_of_a_run_says_how_far_each_machine_is() -> None:
    item = {
        "machine": "pi5-a",
        "state": "missing",
        "launches_done": 2,
        "launches": 5,
        "why": "not there for 10 minutes",
    }
    shown = render_markdown(fleet.progress_rows([item, {**item, "machine": "pi5-b", "launches": 0, "why": ""}]))
    assert "| pi5-a | missing | 2 of 5 | not there for 10 minutes |" in shown
    assert "| pi5-b | missing | 2 of ? | – |" in shown
