"""What was measured: timed blocks, launches, the environment, and the run that holds them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from effbench.core.cost import Cost
from effbench.core.operator_times import Breakdown
from effbench.core.study import Cell, Experiment, Sampling


@dataclass(frozen=True)
class Conditions:
    """The machine at one moment (the first four), and what happened since the launch began (the others).

    `load_1m` is the load average of the last minute, the run's own processes included. `temperature_c` is the hottest
    sensor of the processor, `cpu_mhz` the mean clock of its cores, `uptime_s` the time since it was started.
    `other_cores` is how many cores all other processes kept busy on average; `stolen` the share of processor time that
    the hypervisor gave to other guests; `quota_throttled` the periods in which the container's CPU quota ran out;
    `thermal_throttled` how often heat (or low voltage) lowered the clock.
    """

    load_1m: float | None = None
    temperature_c: float | None = None
    cpu_mhz: float | None = None
    uptime_s: float | None = None
    other_cores: float | None = None
    stolen: float | None = None
    quota_throttled: int | None = None
    thermal_throttled: int | None = None


CLOCKS = ("wall", "cpu", "device")
"""Which clock a ratio is computed from: host wall clock, thread CPU time, device events."""


@dataclass(frozen=True)
class Timing:
    """What a device reports about one timed block of `calls` back-to-back calls. Times in nanoseconds, whole block.

    `cpu_ns` is the calling thread's CPU time, `process_ns` that of all threads of its process, `device_ns` the time
    between device events; each is None where the device has no such clock. `flags` name outside causes that disturbed
    the block, never its value.
    """

    calls: int
    wall_ns: int
    cpu_ns: int | None = None
    device_ns: int | None = None
    minor_faults: int = 0
    switches: int = 0
    run_delay_ns: int = 0
    steal_ns: int = 0
    clocks: Mapping[str, float] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    process_ns: int | None = None


@dataclass(frozen=True)
class Block:
    """A timed block in its place: which launch, which round, at which position of the round, of which cell.

    `at_s` is when it ended, in seconds since its launch began; None in runs that did not record it.
    """

    launch: int
    round: int
    position: int
    cell: str
    timing: Timing
    at_s: float | None = None

    def per_call_s(self, clock: str = "wall") -> float | None:
        """Seconds per call on the given clock, or None where that clock was absent."""
        spent = {
            "wall": self.timing.wall_ns,
            "cpu": self.timing.cpu_ns,
            "device": self.timing.device_ns,
        }[clock]
        return None if spent is None else spent / self.timing.calls * 1e-9


@dataclass(frozen=True)
class Warmup:
    """How one cell warmed up in one launch: `steady` says whether it reached a steady state before the cap.

    `call_s` is what a call took at its end, in wall seconds; 0 in runs that did not record it.
    """

    cell: str
    calls: int
    seconds: float
    steady: bool
    call_s: float = 0.0


@dataclass(frozen=True)
class Launch:
    """One fresh process. `slot` is its place in the plan; a resumed slot has several launches.

    `stopped` says why it ended: "precision", "budget", "rounds" or "interrupted". `probes` holds what was read once
    per cell: device against host time, graph replay, peak memory, what its runtime made of the network.

    `start` and `end` are UTC times (ISO 8601); "" where they are not recorded, and `end` also where the whole run was
    killed. Of the run's budget the launch used `used_s`: `overhead_s` before its first round, `seconds` of rounds, and
    what came after. `budget_s` is the time it was given for rounds, 0 where nothing was left. `changed` are facts of
    the environment that were others when this launch resumed the run: name to (then, now).
    """

    number: int
    slot: int
    stopped: str = "interrupted"
    seconds: float = 0.0
    warmups: Mapping[str, Warmup] = field(default_factory=dict)
    null_call_ns: float | None = None
    probes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    breakdowns: Mapping[str, Breakdown] = field(default_factory=dict)
    start: str = ""
    end: str = ""
    overhead_s: float | None = None
    used_s: float | None = None
    budget_s: float | None = None
    at_start: Conditions | None = None
    at_end: Conditions | None = None
    changed: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Environment:
    """The conditions of a run: device and runtime by name, and every fact that could be read."""

    device: str
    runtime: str
    facts: Mapping[str, Any] = field(default_factory=dict)


READINGS = ("percentiles", "peak_memory", "energy", "instructions")
"""What can be read of a cell beside its rounds, each in processes of its own."""


@dataclass(frozen=True)
class Reading:
    """One of `READINGS` of one cell. Units stand in the names of its `values`; `missing` is why there are none."""

    what: str
    values: Mapping[str, Any] = field(default_factory=dict)
    missing: str | None = None


@dataclass(frozen=True)
class Result:
    """One cell of a run with its cost, its frozen calls per block, its blocks; or the reason it was skipped.

    `bounds_s` are the seconds that a call takes at the least at each level, from the device's peaks; None without them.
    """

    cell: Cell
    cost: Cost | None = None
    calls: int | None = None
    blocks: tuple[Block, ...] = ()
    skipped: str | None = None
    bounds_s: Mapping[str, float] | None = None
    readings: tuple[Reading, ...] = ()

    def reading(self, what: str) -> Reading | None:
        """The reading of this name, where it was asked for."""
        return next((item for item in self.readings if item.what == what), None)


@dataclass(frozen=True)
class Run:
    """A study carried out once on one machine: the unit of storage."""

    experiment: Experiment
    environment: Environment
    sampling: Sampling
    results: tuple[Result, ...]
    launches: tuple[Launch, ...] = ()
    clock: str = "wall"
    seed: int = 0
    created: str = ""
    command: str = ""
    path: str | None = None
    complete: bool = False
    files: Mapping[str, str] = field(default_factory=dict)
    """The files that the networks consist of, with their SHA-256; empty in runs that did not record them."""

    def __iter__(self) -> Iterator[Result]:
        return iter(self.results)

    def result(self, cell: str) -> Result:
        """The result of the cell with this id. Raises KeyError."""
        for item in self.results:
            if item.cell.id == cell:
                return item
        raise KeyError(cell)
