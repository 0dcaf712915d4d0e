"""The state of the machine during a launch: what can slow it down from outside. A value that cannot be read is None."""

from __future__ import annotations

from dataclasses import dataclass


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
