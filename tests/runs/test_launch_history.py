"""Times and conditions of launches: values read from the machine, and differences that are reported."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import plant
from runs import CELLS, run_of

from effbench.analysis.summary import summarise
from effbench.core.run import Conditions, Environment, Launch, Run
from effbench.host import machine, noise
from effbench.host.facts import changes
from effbench.report import json_document
from effbench.report.tables.launches import launch_rows
from effbench.report.tables.study import study_rows
from effbench.runs import launch_history

TIMES = dict(zip(CELLS, (0.01, 0.013, 0.02), strict=True))
START = "2026-11-22T10:{:02d}:00.000+00:00"


def run_with(*changed: Mapping[str, Any], device: str = "cpu") -> Run:
    """A run of as many launches, ten minutes from one to the next, quiet but for what is changed."""
    run = run_of(TIMES, launches=len(changed), rounds=2)
    quiet = {"load_1m": 1.0, "temperature_c": 60.0, "cpu_mhz": 3000.0, "other_cores": 0.1, "stolen": 0.0}
    quiet |= {"quota_throttled": 0, "thermal_throttled": 0}
    found = []
    for number, change in enumerate(changed):
        ours = {key: value for key, value in change.items() if key in Launch.__dataclass_fields__}
        state = {key: value for key, value in change.items() if key not in ours}
        conditions = Conditions(**{**quiet, **state})  # type: ignore[arg-type]
        launch = replace(
            run.launches[number],
            start=START.format(10 * number),
            end=START.format(10 * number + 1),
            overhead_s=2.0,
            used_s=60.0,
            budget_s=57.0,
            at_start=conditions,
            at_end=conditions,
        )
        found.append(replace(launch, **ours))
    environment = replace(run.environment, device=device)
    return replace(run, launches=tuple(found), environment=environment)


QUIET: Mapping[str, Any] = {}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ([QUIET] * 3, ()),
        ([QUIET, {"other_cores": 0.4}, QUIET], ()),
        (
            [QUIET, {"other_cores": 1.4}, QUIET],
            ("Other processes kept 0.1 cores busy in launch 1 and 1.4 in launch 2.",),
        ),
        # Whose the load was is known, so the load average, this run's own included, says nothing more.
        ([{"load_1m": 9.0}, QUIET], ()),
        (
            [{"load_1m": 9.0, "other_cores": None}, {"other_cores": None}],
            ("The load average was 1.0 before launch 2 and 9.0 before launch 1.",),
        ),
        (
            [{"temperature_c": 45.0}, {"temperature_c": 88.0}],
            ("The processor had 45 °C in launch 1 and 88 °C in launch 2.",),
        ),
        ([{"temperature_c": None}, {"temperature_c": 88.0}], ()),
        ([QUIET, {"cpu_mhz": 2900.0}], ()),
        (
            [QUIET, {"cpu_mhz": 1200.0}],
            ("The processor ran at 1200 MHz in launch 2 and at 3000 MHz in launch 1.",),
        ),
        # Read after the work was over, when the clock was low already.
        ([QUIET, {"cpu_mhz": 800.0, "temperature_c": 30.0, "stopped": "interrupted"}], ()),
        (
            [QUIET, {"stolen": 0.22}],
            ("The hypervisor took 0 % of the time in launch 1 and 22 % in launch 2.",),
        ),
        (
            [QUIET, {"thermal_throttled": 3}, {"thermal_throttled": 1}],
            ("Heat (or low voltage) lowered the clock in launches 2 and 3 only.",),
        ),
        ([{"thermal_throttled": 3}, {"thermal_throttled": 1}], ()),
        ([{"quota_throttled": 7}, QUIET], ("The CPU quota of the container ran out in launch 1 only.",)),
        (
            [QUIET, {"start": "2026-11-22T15:01:00.000+00:00", "end": "2026-11-22T15:02:00.000+00:00"}],
            ("5.0 hours passed between launches 1 and 2.",),
        ),
        (
            [QUIET, {"start": "2026-11-25T10:01:00.000+00:00"}],
            ("3 days passed between launches 1 and 2.",),
        ),
        # Killed: the end is the start and the time of the last record.
        ([{"end": "", "used_s": 599.0}, QUIET], ()),
        (
            [{"end": ""}, {"start": "2026-11-22T12:01:00.000+00:00"}],
            ("2.0 hours passed between launches 1 and 2.",),
        ),
        (
            [QUIET, {"uptime_s": 120.0}],
            ("The machine was started anew between launches 1 and 2, 9 minutes apart.",),
        ),
        (
            [QUIET, {"start": "2026-11-22T09:00:00.000+00:00"}],
            ("The clock of the machine was set back between launches 1 and 2, so times of day are not in order.",),
        ),
        (
            [QUIET, {"changed": {"host.kernel": ("6.1", "6.8")}}],
            ("From launch 2 on, when the run was resumed, other conditions: host.kernel (6.1 / 6.8).",),
        ),
        (
            [QUIET, {"budget_s": 0.0}],
            ("The budget of 120 s left no time for more than the least (3 rounds) in launch 2.",),
        ),
    ],
)
def test_notable_differences_get_a_line_in_the_table(changed: list[Mapping[str, Any]], said: tuple[str, ...]) -> None:
    run = run_with(*changed)
    assert launch_history.remarks(run) == said
    notes = study_rows(run, summarise(run)).notes
    assert [note for note in notes if note in said] == list(said)
    plain = study_rows(run_of(TIMES, launches=len(changed), rounds=2), summarise(run)).notes
    assert len(notes) == len(plain) + len(said), "nothing else changes"


def test_pauses_that_were_planned_are_one_line() -> None:
    """Five hours and a half between two launches are planned, a day is not."""
    starts = ("2026-11-22T10:00:00+00:00", "2026-11-22T15:30:00+00:00", "2026-11-23T15:30:00+00:00")
    run = run_with(*({"start": start, "end": start} for start in starts))
    spread = replace(run, sampling=replace(run.sampling, launches=3, spread_s=10 * 3600.0))
    assert launch_history.remarks(spread) == (
        "The launches were spread over 29.5 hours.",
        "24.0 hours passed between launches 2 and 3.",
    )


@pytest.mark.parametrize("start", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"])
def test_times_out_of_this_world_raise_nothing(start: str) -> None:
    run = run_with({"end": "", "used_s": 1e300}, {"start": start, "end": "", "used_s": 1.0}, {"end": start})
    assert launch_history.describe_launches(run)[0]["end"] is None
    launch_history.remarks(run)


def test_a_scripted_clock_does_not_care_who_else_works() -> None:
    assert launch_history.remarks(run_with(QUIET, {"other_cores": 9.0, "temperature_c": 99.0}, device="fake")) == ()


def test_a_gpu_is_read_from_its_blocks() -> None:
    """Cool and fast in the first launch; in the second hot, slowed by heat, and faster again in its last block."""
    run = run_with(QUIET, QUIET)
    clocks = {
        (0, 0): {"sm_mhz": 1800.0, "temperature_c": 55.0, "throttle_reasons": 1.0},
        (0, 1): {"sm_mhz": 1810.0, "temperature_c": 57.0, "throttle_reasons": 0.0, "power_w": 250.0},
        (1, 0): {"sm_mhz": 1200.0, "temperature_c": 84.0, "throttle_reasons": float(0x20)},
        (1, 1): {"sm_mhz": 1400.0, "temperature_c": 80.0},
    }
    results = [
        replace(
            result,
            blocks=tuple(
                replace(block, timing=replace(block.timing, clocks=clocks[block.launch, block.round]))
                for block in result.blocks
            ),
        )
        for result in run.results
    ]
    run = replace(run, results=tuple(results))
    first, second = (item["gpu"] for item in launch_history.describe_launches(run))
    # A GPU is idle between two blocks, which is no throttling.
    assert first == {"sm_mhz": 1805.0, "temperature_c": 57.0, "power_w": 250.0, "throttled": []}
    assert second == {"sm_mhz": 1300.0, "temperature_c": 84.0, "power_w": None, "throttled": ["thermal (software)"]}
    assert launch_history.remarks(run) == (
        "The GPU had 57 °C in launch 1 and 84 °C in launch 2.",
        "The GPU ran at 1300 MHz in launch 2 and at 1805 MHz in launch 1.",
    )
    rows = launch_rows(run)
    assert rows is not None and rows.columns[-2].title == "GPU clock (MHz)" and rows.rows[1][-2].text == "1300"


def test_json_and_table_tell_every_launch() -> None:
    run = run_with({"stolen": 0.02}, {"thermal_throttled": 4, "stopped": "interrupted", "seconds": 0.0, "end": ""})
    first, second = json_document.run_document(run, summarise(run), ())["launches"]
    assert first["start"] == START.format(0) and first["end"] == START.format(1) and first["stopped"] == "precision"
    assert (first["overhead_s"], first["rounds_s"], first["used_s"], first["budget_s"]) == (2.0, 1.0, 60.0, 57.0)
    assert first["rounds"] == 2 and first["at_end"]["stolen"] == 0.02 and first["gpu"] is None
    assert (second["end"], second["rounds_s"]) == (START.format(11), 58.0)
    rows = launch_rows(run)
    assert rows is not None and len(rows.rows) == 2
    cells = dict(zip((column.heading for column in rows.columns), (value.text for value in rows.rows[1]), strict=True))
    assert cells["start (UTC)"] == "2026-11-22 10:10:00" and cells["slowed"] == "heat 4x"


# --- what is read -----------------------------------------------------------------------------------

BUSY = "cpu  {busy} 0 0 {idle} 0 0 0 {stolen} 0 0\n"


def test_a_launch_is_watched_through_counters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In 10 s of two processors: 12 s of work, 2 of them ours; 1 s stolen; heat twice; the quota ran out five times."""
    hz, sys_cpu = machine.TICKS_PER_S, "sys/devices/system/cpu/cpu0/"
    files = {
        "proc/stat": BUSY.format(busy=100, idle=100, stolen=0),
        "proc/loadavg": "0.25 0.1 0.1 1/100 1\n",
        "proc/uptime": "5000.5 9000.1\n",
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/cpu.max": "100000 100000\n",
        "sys/fs/cgroup/cpu.stat": "nr_periods 10\nnr_throttled 3\n",
        f"{sys_cpu}thermal_throttle/core_throttle_count": "7\n",
        f"{sys_cpu}cpufreq/scaling_cur_freq": "1500000\n",
        "sys/class/thermal/thermal_zone0/type": "x86_pkg_temp\n",
        "sys/class/thermal/thermal_zone0/temp": "50000\n",
        "sys/class/hwmon/hwmon0/name": "nvme\n",
        "sys/class/hwmon/hwmon0/temp1_input": "93000\n",
    }
    now, spent = iter([100.0, 110.0]), iter([1.0, 3.0])
    monkeypatch.setattr(noise.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(noise.os, "times", lambda: os.times_result((0.0, 0.0, next(spent), 0.0, 0.0)))
    watched = noise.Observation(plant(tmp_path, files))
    assert watched.at_start == Conditions(load_1m=0.25, temperature_c=50.0, cpu_mhz=1500.0, uptime_s=5000.5)
    plant(
        tmp_path, {"sys/class/thermal/thermal_zone0/temp": "81000\n", f"{sys_cpu}cpufreq/scaling_cur_freq": "900000\n"}
    )
    watched.sample()
    plant(
        tmp_path,
        {
            "proc/stat": BUSY.format(busy=100 + 12 * hz, idle=100 + 7 * hz, stolen=hz),
            "sys/fs/cgroup/cpu.stat": "nr_periods 90\nnr_throttled 8\n",
            f"{sys_cpu}thermal_throttle/core_throttle_count": "9\n",
            "sys/class/thermal/thermal_zone0/temp": "40000\n",
        },
    )
    end, found = watched.end()
    assert found == Conditions(0.25, 81.0, 900.0, 5000.5, 1.0, 0.05, 5, 2)
    assert watched.start <= end and end.endswith("+00:00")


@pytest.mark.parametrize(("before", "after", "slowed"), [("0", "0", 0), ("0", "50005", 1), ("0x50000", "50000", 0)])
def test_the_firmware_of_a_pi_tells_only_whether(tmp_path: Path, before: str, after: str, slowed: int) -> None:
    mask = "sys/devices/platform/soc/soc:firmware/get_throttled"
    watched = noise.Observation(plant(tmp_path, {mask: before if "x" in before else f"0x{before}"}))
    plant(tmp_path, {mask: f"0x{after}"})
    assert watched.end()[1].thermal_throttled == slowed


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    watched = noise.Observation(tmp_path)
    assert watched.at_start == watched.end()[1] == Conditions()


@given(st.text(max_size=60))
@settings(deadline=None, max_examples=40)
def test_no_counter_makes_a_reader_raise(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    firmware, throttle = "sys/devices/platform/soc/soc:firmware/get_throttled", "thermal_throttle/core_throttle_count"
    names = ("proc/stat", "proc/uptime", firmware, f"sys/devices/system/cpu/cpu0/{throttle}")
    root = plant(tmp_path_factory.mktemp("odd"), {**dict.fromkeys(names, text), "proc/loadavg": "0.5 0 0"})
    plant(root, {"proc/stat": f"cpu  {text} 1 2 3 4 5 6 7 8\n"})
    noise.Observation(root).end()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_our_own_work_is_not_that_of_others() -> None:
    """A child that computes, waited for, is ours: what is left for others is less than all that was busy."""
    before, start = machine.ticks(), time.monotonic()
    watched = noise.Observation()
    subprocess.run([sys.executable, "-c", "for n in range(10**7): pass"], check=True)
    after, found = machine.ticks(), watched.end()[1]
    if before is None or after is None or after.busy == before.busy:
        pytest.skip("no counters here")
    busy = (after.busy - before.busy) / machine.TICKS_PER_S / (time.monotonic() - start)
    assert found.other_cores is not None and found.other_cores < busy - 0.1


def test_lasting_facts_that_changed_are_named_and_no_others() -> None:
    before = {
        "host.kernel": "6.1", "host.load_1m": 0.1, "cpu.mhz_now": 3000, "cpu.model": "A", "run.threads": 1,
        "numpy.version": "2.0", "gpu.sm_mhz": 1000, "peaks.float32.flops_per_s": 1.0, "host.libc": None, "gone": 1,
    }  # fmt: skip
    now = {key: f"{value}!" for key, value in before.items() if key != "gone"} | {"new": 1}
    found = changes(Environment("cpu", "eager", before), Environment("cpu", "eager", now))
    assert [item.field for item in found] == ["host.kernel", "numpy.version"]
