"""Describe the launches of a run: budget used, conditions, and conditions that differ between launches.

Launches are the replicates of every interval. A launch that ran hours later, hotter or beside other work may differ for
that reason alone.
"""

from __future__ import annotations

import datetime
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from effbench.core import units
from effbench.core.run import Block, Launch, Run
from effbench.host.nvml import reason_names
from effbench.timing.least_duration import format_seconds, is_overrun
from effbench.timing.sampling import MIN_ROUNDS_ON_BUDGET

GAP_S = 3600.0
"""A pause between two launches that is reported: temperature, clock policy and other load change within an hour."""

OTHER_CORES = 0.5
LOAD = 2.0
TEMPERATURE_C = 15.0
CLOCK = 0.10
STOLEN = 0.05
"""Smallest differences between launches that are reported: cores busy with other processes, load average, degrees
Celsius, share of the clock, share of steal time."""


IDLE = 0x1
"""The throttle reason that NVML reports for an idle GPU, as between two blocks."""


# --- budget -----------------------------------------------------------------------------------------


def total_used_s(run: Run) -> float:
    """Return the seconds of the budget that the launches of a run have used."""
    blocks = _by_launch(run)
    return sum(used_s(launch, blocks.get(launch.number, ())) for launch in run.launches)


def used_s_by_slot(run: Run) -> dict[int, float]:
    """Return the seconds of the budget that the launches of each slot have used."""
    blocks, used = _by_launch(run), dict[int, float]()
    for launch in run.launches:
        used[launch.slot] = used.get(launch.slot, 0.0) + used_s(launch, blocks.get(launch.number, ()))
    return used


def overrun(run: Run) -> str:
    """Return a text such as "used 93 s of a budget of 10 s"; "" within the budget, or if all had time for rounds."""
    used, budget_s = total_used_s(run), run.sampling.budget_s
    if not is_overrun(used, budget_s) or not any(launch.budget_s == 0 for launch in run.launches):
        return ""
    return f"used {format_seconds(used)} of a budget of {budget_s:g} s"


def used_s(launch: Launch, blocks: Sequence[Block]) -> float:
    """Return the seconds that a launch used: start, warm-up, rounds, and what came after.

    Before schema 3 it was not recorded. For such runs it is the time of warm-ups and rounds, a lower bound.
    """
    if launch.used_s is not None:
        return launch.used_s
    timed = sum(block.timing.wall_ns for block in blocks) * 1e-9
    return sum(warm.seconds for warm in launch.warmups.values()) + max(launch.seconds, timed)


def after_s(run: Run) -> float:
    """Return the seconds that the last finished launch spent after its rounds; 0 where that is not recorded."""
    for launch in reversed(run.launches):
        if launch.stopped != "interrupted" and launch.used_s is not None and launch.overhead_s is not None:
            return max(0.0, launch.used_s - launch.overhead_s - launch.seconds)
    return 0.0


def _by_launch(run: Run) -> dict[int, list[Block]]:
    found: dict[int, list[Block]] = {}
    for result in run.results:
        for block in result.blocks:
            found.setdefault(block.launch, []).append(block)
    return found


# --- conditions -------------------------------------------------------------------------------------


def describe_launches(run: Run) -> list[dict[str, Any]]:
    """Return each launch as a dictionary: time, budget used, conditions at start and end, and changes before it.

    ``end`` of a launch that was killed is the time of its last record. ``gpu`` is read from its blocks: the median SM
    clock, the highest temperature, why it was slowed.
    """
    blocks = _by_launch(run)
    return [_describe_launch(launch, blocks.get(launch.number, ())) for launch in run.launches]


def _describe_launch(launch: Launch, blocks: Sequence[Block]) -> dict[str, Any]:
    return {
        "number": launch.number,
        "slot": launch.slot,
        "stopped": launch.stopped,
        "start": launch.start or None,
        "end": _end_time(launch),
        "rounds": len({block.round for block in blocks}),
        "overhead_s": launch.overhead_s,
        "rounds_s": launch.seconds if launch.stopped != "interrupted" else _rounds_s_of_interrupted(launch),
        "used_s": launch.used_s,
        "budget_s": launch.budget_s,
        "at_start": None if launch.at_start is None else _without_none(vars(launch.at_start)),
        "at_end": None if launch.at_end is None else _without_none(vars(launch.at_end)),
        "gpu": gpu_conditions(blocks),
        "changed": {name: list(pair) for name, pair in launch.changed.items()},
    }


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _rounds_s_of_interrupted(launch: Launch) -> float | None:
    """Return the seconds of rounds of an interrupted launch; None if unknown."""
    if launch.used_s is None or launch.overhead_s is None:
        return None
    return round(launch.used_s - launch.overhead_s, 3)


def _end_time(launch: Launch) -> str | None:
    if launch.end or not launch.start or launch.used_s is None:
        return launch.end or None
    try:
        last = _parse_time(launch.start) + datetime.timedelta(seconds=launch.used_s)
    except OverflowError:  # a file may say that a launch took longer than there are years
        return None
    return last.isoformat(timespec="milliseconds")


def _parse_time(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text)


def gpu_conditions(blocks: Sequence[Block]) -> dict[str, Any] | None:
    """Return clock, temperature, power and throttling of the GPU during these blocks; None if nothing was recorded."""
    clocks = [block.timing.clocks for block in blocks if block.timing.clocks]
    if not clocks:
        return None
    speeds = [each["sm_mhz"] for each in clocks if "sm_mhz" in each]
    mask = 0
    for each in clocks:
        mask |= int(each.get("throttle_reasons", 0))
    return {
        "sm_mhz": statistics.median(speeds) if speeds else None,
        "temperature_c": max((each["temperature_c"] for each in clocks if "temperature_c" in each), default=None),
        "power_w": max((each["power_w"] for each in clocks if "power_w" in each), default=None),
        "throttled": list(reason_names(mask & ~IDLE)),
    }


# --- differences between launches --------------------------------------------------------------------------------


def remarks(run: Run) -> tuple[str, ...]:
    """Return sentences about launches without time for rounds, and about conditions that differ between launches.

    Empty if nothing is notable or nothing was recorded. On the fake device, conditions are not compared.
    """
    names = {launch.number: str(place) for place, launch in enumerate(run.launches, start=1)}
    found = [*_launches_without_time(run, names), *_pauses(run, names), *_changed_facts(run, names)]
    if run.environment.device != "fake":
        found += _differing_conditions(run, names)
    return tuple(found)


def _launches_without_time(run: Run, names: dict[int, str]) -> list[str]:
    short = [names[launch.number] for launch in run.launches if launch.budget_s == 0]
    if not short:
        return []
    least = min(MIN_ROUNDS_ON_BUDGET, run.sampling.max_rounds)
    found = [
        f"The budget of {run.sampling.budget_s:g} s left no time for more than the least ({least} rounds) in "
        f"{_launch_numbers(short)}."
    ]
    if over := overrun(run):
        found.append(f"The launches {over}, since none measures less.")
    return found


def _pauses(run: Run, names: dict[int, str]) -> list[str]:
    """Report pauses between launches: the planned ones (`Sampling.spread_s`) in one sentence, others one by one."""
    found = []
    planned_s = run.sampling.spread_s / max(run.sampling.launches - 1, 1)
    starts = [_parse_time(launch.start).timestamp() for launch in run.launches if launch.start]
    if planned_s and len(starts) > 1:
        found.append(f"The launches were spread over {units.duration(max(starts) - min(starts))}.")
    for before, after in zip(run.launches, run.launches[1:], strict=False):
        ended = _end_time(before)
        if ended is None or not after.start:
            continue
        gap_s = (_parse_time(after.start) - _parse_time(ended)).total_seconds()
        between = f"between launches {names[before.number]} and {names[after.number]}"
        up_s = None if after.at_start is None else after.at_start.uptime_s
        if gap_s < -1.0:
            found.append(f"The clock of the machine was set back {between}, so times of day are not in order.")
        elif up_s is not None and up_s < gap_s:
            found.append(f"The machine was started anew {between}, {units.duration(gap_s)} apart.")
        elif gap_s >= GAP_S + planned_s:
            found.append(f"{units.duration(gap_s)} passed {between}.")
    return found


def _changed_facts(run: Run, names: dict[int, str]) -> list[str]:
    """Report the facts that had changed when the run was resumed, equal changes once."""
    found: dict[str, str] = {}
    for launch in run.launches:
        if launch.changed:
            listed = ", ".join(f"{name} ({then} / {now})" for name, (then, now) in launch.changed.items())
            found.setdefault(listed, names[launch.number])
    return [
        f"From launch {name} on, when the run was resumed, other conditions: {listed}."
        for listed, name in found.items()
    ]


def _differing_conditions(run: Run, names: dict[int, str]) -> list[str]:
    blocks = _by_launch(run)
    gpus = {launch.number: gpu_conditions(blocks.get(launch.number, ())) or {} for launch in run.launches}

    def at_end(name: str) -> Callable[[Launch], float | None]:
        return lambda launch: None if launch.at_end is None else getattr(launch.at_end, name)

    def at_work(name: str) -> Callable[[Launch], float | None]:
        # Conditions at the end of an interrupted launch were read when it no longer worked.
        return lambda launch: None if launch.stopped == "interrupted" else at_end(name)(launch)

    def of_gpu(name: str) -> Callable[[Launch], float | None]:
        return lambda launch: gpus[launch.number].get(name)

    others = _values(run, at_end("other_cores"))
    busy = "Other processes kept {low:.1f} cores busy in {at_low} and {high:.1f} in {at_high}."
    found = _widest_difference(names, others, OTHER_CORES, busy)
    if len(others) < len(run.launches):
        # Not every system splits processor time by process. The load average includes this run's own processes.
        loads = _values(run, lambda launch: None if launch.at_start is None else launch.at_start.load_1m)
        busy = "The load average was {low:.1f} before {at_low} and {high:.1f} before {at_high}."
        found += _widest_difference(names, loads, LOAD, busy)
    degrees = "{low:.0f} °C in {at_low} and {high:.0f} °C in {at_high}."
    found += _widest_difference(
        names, _values(run, at_work("temperature_c")), TEMPERATURE_C, f"The processor had {degrees}"
    )
    found += _widest_difference(names, _values(run, of_gpu("temperature_c")), TEMPERATURE_C, f"The GPU had {degrees}")
    clock = "ran at {low:.0f} MHz in {at_low} and at {high:.0f} MHz in {at_high}."
    for values, what in ((_values(run, at_work("cpu_mhz")), "processor"), (_values(run, of_gpu("sm_mhz")), "GPU")):
        found += _widest_difference(names, values, CLOCK * max(values.values(), default=0.0), f"The {what} {clock}")
    stolen = {number: 100 * share for number, share in _values(run, at_end("stolen")).items()}
    taken = "The hypervisor took {low:.0f} % of the time in {at_low} and {high:.0f} % in {at_high}."
    found += _widest_difference(names, stolen, 100 * STOLEN, taken)
    for name, what in (
        ("thermal_throttled", "Heat (or low voltage) lowered the clock"),
        ("quota_throttled", "The CPU quota of the container ran out"),
    ):
        found += _in_some_launches(names, _values(run, at_end(name)), what)
    return found


def _values(run: Run, read: Callable[[Launch], float | None]) -> dict[int, float]:
    """Return the value of each launch that measured anything, where it could be read."""
    found = {launch.number: read(launch) for launch in run.launches if launch.overhead_s is not None}
    return {number: value for number, value in found.items() if value is not None}


def _widest_difference(names: dict[int, str], values: dict[int, float], notable: float, words: str) -> list[str]:
    """Return a sentence on the two launches that differ most, if by at least `notable`."""
    if not values:
        return []
    low, high = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
    if values[high] - values[low] < notable or values[high] == values[low]:
        return []
    at = {"at_low": f"launch {names[low]}", "at_high": f"launch {names[high]}"}
    return [words.format(low=values[low], high=values[high], **at)]


def _in_some_launches(names: dict[int, str], values: dict[int, float], what: str) -> list[str]:
    hit = [names[number] for number, times in values.items() if times]
    return [f"{what} in {_launch_numbers(hit)} only."] if hit and len(hit) < len(values) else []


def _launch_numbers(places: Sequence[str]) -> str:
    if len(places) == 1:
        return f"launch {places[0]}"
    return f"launches {', '.join(places[:-1])} and {places[-1]}"
