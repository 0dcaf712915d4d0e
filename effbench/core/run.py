"""The raw data of a measurement, as data types: timed blocks, launches, the environment, the run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from effbench.core.cost import Cost
from effbench.core.operator_times import Breakdown
from effbench.core.sittings import BetweenSittings
from effbench.core.study import Cell, Experiment, Sampling


@dataclass(frozen=True)
class Conditions:
    """Conditions of the machine: at one moment (the first four fields), and since the launch began (the others).

    What could not be read is None.

    Attributes
    ----------
    load_1m
        Load average of the last minute, the run's own processes included.
    temperature_c
        Hottest sensor of the processor, °C.
    cpu_mhz
        Mean clock of the processor's cores, MHz.
    uptime_s
        Time since boot, s.
    other_cores
        Mean number of cores that other processes kept busy.
    stolen
        Share of steal time (0 to 1), which the hypervisor gave to other guests.
    quota_throttled
        Number of periods in which the container's CPU quota ran out.
    thermal_throttled
        Number of times that heat (or low voltage) lowered the clock.
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
    """What a device reports about one timed block of back-to-back calls. Times are of the whole block.

    Attributes
    ----------
    calls
        Number of calls.
    wall_ns
        Wall time, ns.
    cpu_ns
        CPU time of the calling thread, ns. None where the device has no such clock.
    device_ns
        Time between device events, ns. None where the device has no such clock.
    minor_faults
        Minor page faults of the process.
    switches
        Involuntary context switches.
    run_delay_ns
        Time that the thread was ready and waited for a core, ns.
    steal_ns
        Time that the hypervisor took away, ns.
    clocks
        What was read of an NVIDIA GPU during the block, such as ``sm_mhz`` and ``temperature_c``.
    flags
        Outside causes that disturbed the block. Its own duration is never one.
    process_ns
        CPU time of all threads of the process, ns. None where the device has no such clock.
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
    """One timed block and its place in the run.

    Attributes
    ----------
    launch
        Number of the launch.
    round
        Number of the round within the launch.
    position
        Position within the round.
    cell
        Id of the cell.
    timing
        What the device reported.
    at_s
        End of the block, in seconds since its launch began. None in runs that did not record it.
    """

    launch: int
    round: int
    position: int
    cell: str
    timing: Timing
    at_s: float | None = None

    def per_call_s(self, clock: str = "wall") -> float | None:
        """Seconds per call.

        Parameters
        ----------
        clock
            ``"wall"``, ``"cpu"`` or ``"device"``.

        Returns
        -------
        float or None
            None where the block has no such clock.
        """
        spent = {
            "wall": self.timing.wall_ns,
            "cpu": self.timing.cpu_ns,
            "device": self.timing.device_ns,
        }[clock]
        return None if spent is None else spent / self.timing.calls * 1e-9


@dataclass(frozen=True)
class Warmup:
    """How one cell warmed up in one launch.

    Attributes
    ----------
    cell
        Id of the cell.
    calls
        Number of calls.
    seconds
        Length of the warm-up, s.
    steady
        Whether a steady state was reached before the time limit.
    call_s
        Wall seconds per call at its end; 0 in runs that did not record it.
    """

    cell: str
    calls: int
    seconds: float
    steady: bool
    call_s: float = 0.0


@dataclass(frozen=True)
class Launch:
    """One fresh worker process.

    Attributes
    ----------
    number
        Number of the launch in the run.
    slot
        Place in the plan. A slot that was resumed has several launches.
    stopped
        Why it ended: ``"precision"``, ``"budget"``, ``"rounds"`` or ``"interrupted"``.
    seconds
        Time spent in rounds, s.
    warmups
        Warm-ups by cell id.
    null_call_ns
        Time of an empty call, ns; None where it was not measured.
    probes
        What was read once per cell, by cell id: device against host time, graph replay, peak memory, facts of the
        runtime.
    breakdowns
        Operator times by cell id, where the study asks for them.
    start, end
        UTC times (ISO 8601); ``""`` where they were not recorded. `end` is also ``""`` where the run was killed.
    overhead_s
        Seconds before the first round.
    used_s
        Seconds of the run's budget that it used: `overhead_s`, `seconds`, and what came after.
    budget_s
        Seconds that it was given for rounds; 0 where nothing was left.
    at_start, at_end
        State of the machine; None where it was not recorded.
    changed
        Facts of the environment that differ from those of the run that this launch resumed: name to (then, now).
    yardstick
        Blocks of the two cells of effbench's own (`timing.yardstick`), in turn; empty where they were not measured.
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
    yardstick: Mapping[str, tuple[Timing, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Environment:
    """The conditions of a run.

    Attributes
    ----------
    device
        Name of the device.
    runtime
        Names of the runtimes.
    facts
        Every fact that could be read, by name: processor, versions, governor and more.
    """

    device: str
    runtime: str
    facts: Mapping[str, Any] = field(default_factory=dict)


METRICS = ("percentiles", "peak_memory", "energy", "instructions")
"""The built-in secondary metrics. Each is measured in processes of its own, apart from the rounds."""


@dataclass(frozen=True)
class Metric:
    """One secondary metric of one cell.

    Attributes
    ----------
    what
        One of `METRICS`, or the name of a plug-in's metric.
    values
        Numbers by name. Units stand in the names, as in ``p99_s``.
    missing
        Why there are no values; None where there are.
    """

    what: str
    values: Mapping[str, Any] = field(default_factory=dict)
    missing: str | None = None


@dataclass(frozen=True)
class Result:
    """One cell of a run with its blocks, or the reason why it was skipped.

    Attributes
    ----------
    cell
        What was measured.
    cost
        Its counts; None where they could not be made.
    calls
        Calls per block, fixed in the first launch.
    blocks
        All blocks of all launches.
    skipped
        Why it was not measured; None where it was.
    bounds_s
        Least seconds of a call at each level of memory access, from the device's peaks; None without peaks.
    metrics
        Secondary metrics.
    """

    cell: Cell
    cost: Cost | None = None
    calls: int | None = None
    blocks: tuple[Block, ...] = ()
    skipped: str | None = None
    bounds_s: Mapping[str, float] | None = None
    metrics: tuple[Metric, ...] = ()

    def metric(self, what: str) -> Metric | None:
        """A secondary metric by name.

        Parameters
        ----------
        what
            One of `METRICS`, or the name of a plug-in's metric.

        Returns
        -------
        Metric or None
            None where it was not asked for.
        """
        return next((item for item in self.metrics if item.what == what), None)


@dataclass(frozen=True)
class Stop:
    """Why a run ended before its last launch.

    Attributes
    ----------
    reason
        ``"decided"``, ``"futile"`` where more launches could not decide, or ``"budget"``.
    launches
        Number of launches that had ended.
    """

    reason: Literal["decided", "futile", "budget"]
    launches: int


@dataclass(frozen=True)
class Run:
    """A study carried out once on one machine: what a run file stores. Iterating gives its results.

    Attributes
    ----------
    experiment
        The study.
    environment
        The conditions.
    sampling
        How long and how often it was measured.
    results
        One per cell, in study order.
    launches
        All launches, in order.
    clock
        What ratios are computed from: ``"wall"``, ``"cpu"`` or ``"device"``.
    seed
        Seed of inputs, weights and the order of cells.
    created
        UTC time (ISO 8601).
    command
        The command that made it.
    path
        Path of its run file; None for a run that was not stored.
    complete
        Whether every launch of the plan was carried out.
    disturbance
        Why it stopped by itself before the last launch; ``""`` where it did not, or went on since.
    files
        Files that the networks consist of, with their SHA-256; empty in runs that did not record them.
    between_sittings
        Scatter between sittings that intervals include. None where they hold within the one sitting of the run: in
        runs before schema 4, and for a scripted clock.
    stop
        Why it ended before its last launch; None if it did not.
    """

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
    disturbance: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    between_sittings: BetweenSittings | None = None
    stop: Stop | None = None

    def __iter__(self) -> Iterator[Result]:
        return iter(self.results)

    def result(self, cell: str) -> Result:
        """The result of one cell.

        Parameters
        ----------
        cell
            Id of the cell.

        Returns
        -------
        Result
            The result of that cell.

        Raises
        ------
        KeyError
            Where the run has no such cell.
        """
        for item in self.results:
            if item.cell.id == cell:
                return item
        raise KeyError(cell)
