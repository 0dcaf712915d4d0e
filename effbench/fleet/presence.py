"""Which machines a fleet has or had, and what each does now. Kept by the scheduler, in memory."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from distributed.diagnostics.plugin import SchedulerPlugin

from effbench.fleet.machine import TOPIC

if TYPE_CHECKING:
    from distributed import Scheduler

Snapshot = dict[str, dict[str, Any]]
"""What the scheduler knows of every machine by name (`Presence.snapshot`)."""

KEPT_S = 7 * 86400.0
"""A machine that has been away for longer is forgotten."""


@dataclass
class _Machine:
    """What the scheduler knows of a machine. Times are of the scheduler's clock, in seconds since the epoch."""

    labels: dict[str, str]
    address: str
    is_present: bool = True
    since_s: float = 0.0
    """When it came, or went away."""
    facts: dict[str, Any] = field(default_factory=dict)
    doing: dict[str, Any] | None = None
    unfit: str = ""
    """Why it could not carry out its last order; "" if it could."""
    last_launch_s: float | None = None


class Presence(SchedulerPlugin):
    """Follow the machines of a scheduler.

    Parameters
    ----------
    clock
        Returns seconds since the epoch.
    """

    name = "effbench-presence"

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._machines: dict[str, _Machine] = {}

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """Note that a machine has come."""
        state = scheduler.workers[worker]
        labels = dict(name.split(":", 1) for name in state.resources if ":" in name)
        name = labels.pop("machine", None)
        if name is None:
            return  # not one of ours
        before = self._machines.get(name)
        last_s = before.last_launch_s if before else None
        self._machines[name] = _Machine(labels, worker, since_s=self._clock(), last_launch_s=last_s)

    def remove_worker(self, scheduler: Scheduler, worker: str, *, stimulus_id: str = "", **_: Any) -> None:
        """Note that a machine has gone away."""
        for machine in self._machines.values():
            if machine.address == worker and machine.is_present:
                machine.is_present, machine.since_s, machine.doing = False, self._clock(), None

    def log_event(self, topic: Any, msg: Any) -> None:
        """Take what a machine tells (`Machine.tell`)."""
        machine = self._machines.get(msg.get("machine", "")) if topic == TOPIC and isinstance(msg, dict) else None
        if machine is None or not machine.is_present:
            return
        with suppress(KeyError, TypeError):  # a machine with another version of effbench may tell other things
            self._take(machine, msg.get("event"), msg)

    def _take(self, machine: _Machine, event: Any, msg: Mapping[str, Any]) -> None:
        if event == "hello":
            machine.facts = dict(msg["facts"])
        elif event == "begin":
            machine.doing = {key: msg[key] for key in ("run", "by", "subject")}
        elif event == "progress" and machine.doing and machine.doing["run"] == msg["run"]:
            machine.doing |= {"done": msg["done"], "doing": msg["doing"]}
        elif event == "end":
            machine.doing, machine.unfit, machine.last_launch_s = None, msg["unfit"], self._clock()

    def snapshot(self) -> Snapshot:
        """Return what is known of every machine by name, in JSON-ready values; times as ages in seconds."""
        now_s = self._clock()
        for name in [name for name, item in self._machines.items() if not item.is_present]:
            if now_s - self._machines[name].since_s > KEPT_S:
                del self._machines[name]
        return {
            name: {
                "labels": item.labels,
                "present": item.is_present,
                "since_s": now_s - item.since_s,
                "facts": item.facts,
                "doing": item.doing,
                "unfit": item.unfit,
                "last_launch_s": None if item.last_launch_s is None else now_s - item.last_launch_s,
            }
            for name, item in sorted(self._machines.items())
        }


def snapshot(dask_scheduler: Scheduler | None = None) -> str:
    """Return `Presence.snapshot` as JSON; called in the scheduler's process. "" if it is no scheduler of a fleet."""
    plugin = None if dask_scheduler is None else dask_scheduler.plugins.get(Presence.name)
    return json.dumps(plugin.snapshot()) if isinstance(plugin, Presence) else ""


def labels_of(machines: Mapping[str, Mapping[str, Any]]) -> dict[str, set[str]]:
    """Return the labels of each machine of a snapshot, as ``key=value``."""
    return {name: {f"{key}={value}" for key, value in item["labels"].items()} for name, item in machines.items()}
