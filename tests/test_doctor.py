"""The doctor: every cause of noise is found, explained and comes with a remedy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effbench import doctor
from effbench.core.errors import InvalidValue
from effbench.core.measure_options import MeasureOptions
from effbench.doctor import Diagnosis, examine
from effbench.host import noise

TOPICS = {
    "processor", "governor", "boost", "smt", "speed drift", "steal time", "load", "other processes", "threads",
    "cgroup quota", "transparent huge pages", "allocator", "address randomisation", "timer", "swap", "temperature",
    "virtualisation",
}  # fmt: skip

CPU = "sys/devices/system/cpu"


def machine(root: Path, files: dict[str, str]) -> Path:
    """Two x86 processors, and whatever else the files say."""
    cpuinfo = "\n".join(
        f"processor : {n}\nvendor_id : GenuineIntel\nmodel name : Test CPU\nflags : fpu\n" for n in (0, 1)
    )
    for name, content in {"proc/cpuinfo": cpuinfo, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


class NVMLError(Exception):
    pass


def nvml(gpus: int = 1, **answers: Any) -> Any:
    healthy = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: gpus,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlSystemGetDriverVersion": lambda: "570.1",
        "nvmlDeviceGetName": lambda handle: "Test GPU",
        "nvmlDeviceGetClockInfo": lambda handle, kind: {1: 1200, 2: 2000}[kind],
        "nvmlDeviceGetMaxClockInfo": lambda handle, kind: {1: 1980, 2: 2619}[kind],
        "nvmlDeviceGetTemperature": lambda handle, sensor: 41,
        "nvmlDeviceGetPowerUsage": lambda handle: 91_000,
        "nvmlDeviceGetEnforcedPowerLimit": lambda handle: 700_000,
        "nvmlDeviceGetCurrentClocksEventReasons": lambda handle: 0,
        "nvmlDeviceGetComputeRunningProcesses": lambda handle: [],
        "nvmlDeviceGetMPSComputeRunningProcesses": lambda handle: [],
        "nvmlDeviceGetPersistenceMode": lambda handle: 1,
        "nvmlDeviceGetMigMode": lambda handle: [0, 0],
    }
    return SimpleNamespace(NVMLError=NVMLError, **{**healthy, **answers})


def finding(root: Path, topic: str, **options: Any) -> Diagnosis:
    (found,) = [f for f in examine(root, **{"nvml": nvml(0), **options}) if f.topic == topic]
    return found


# --- every machine ----------------------------------------------------------------------------------


@pytest.mark.parametrize("files", [{}, {"proc/stat": "garbage"}, {"proc/meminfo": ""}])
def test_a_machine_that_shows_nothing_is_unknown_with_reasons(tmp_path: Path, files: dict[str, str]) -> None:
    (tmp_path / "none").mkdir()
    for name, content in files.items():
        machine(tmp_path / "none", {name: content})
    if not files:
        assert finding(tmp_path / "none", "processor").status == "unknown"
    found = examine(tmp_path / "none", nvml=nvml(0))
    assert {f.topic for f in found} == TOPICS
    assert all(f.why for f in found if f.status == "unknown")


def test_this_machine_is_examined_in_full() -> None:
    found = examine(window_s=0.05)
    assert {f.topic for f in found} >= TOPICS
    for item in found:
        assert item.status in ("ok", "note", "warn", "unknown")
        assert item.value or item.status == "unknown", item
        assert item.why or item.status == "ok", item
        assert item.todo or item.status != "warn", item
        assert "\n" not in item.value + item.why + item.todo
        assert json.loads(json.dumps(item.to_dict()))["topic"] == item.topic


def test_there_are_no_peaks_in_int8() -> None:
    """A run has no bounds in int8, so that the peaks of torch's slow kernels would stand for nothing."""
    with pytest.raises(InvalidValue, match="no int8 kernel"):
        doctor.peaks(MeasureOptions(dtype="int8", device="fake"))


def test_neither_torch_nor_psutil_nor_nvml_is_needed() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'psutil', 'pynvml'): sys.modules[name] = None\n"
        "from effbench.doctor import examine\n"
        "print({f.topic: (f.status, f.why) for f in examine(window_s=0.01)}['gpu'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "('unknown', 'nvidia-ml-py is not installed')", done.stderr


# --- one ailment each -------------------------------------------------------------------------------

AILMENTS = [
    ("governor", {f"{CPU}/cpu0/cpufreq/scaling_governor": "powersave\n"}, "warn", "cpupower"),
    ("governor", {f"{CPU}/cpu0/cpufreq/scaling_governor": "performance\n"}, "ok", ""),
    ("governor", {}, "unknown", ""),
    ("boost", {f"{CPU}/intel_pstate/no_turbo": "0"}, "note", "echo 1 | sudo tee /sys/devices/system/cpu/intel_pstate"),
    ("boost", {f"{CPU}/cpufreq/boost": "1"}, "note", "echo 0 | sudo tee /sys/devices/system/cpu/cpufreq/boost"),
    ("boost", {f"{CPU}/cpufreq/boost": "0"}, "ok", ""),
    ("boost", {f"{CPU}/intel_pstate/no_turbo": "1"}, "ok", ""),
    ("smt", {f"{CPU}/smt/control": "on"}, "note", "--threads"),
    ("smt", {f"{CPU}/smt/control": "forceoff"}, "ok", ""),
    ("load", {"proc/loadavg": "3.10 1 1 1/1 1"}, "warn", "top"),
    ("load", {"proc/loadavg": "0.10 1 1 1/1 1"}, "ok", ""),
    ("threads", {"proc/self/status": "Cpus_allowed_list:\t0\n"}, "warn", "--threads 1"),
    ("threads", {"proc/self/status": "Cpus_allowed_list:\t0-7\n"}, "ok", ""),
    (
        "cgroup quota",
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/cpu.max": "150000 100000",
            "sys/fs/cgroup/cpu.stat": "nr_periods 8\nnr_throttled 3\n",
        },
        "warn",
        "--cpus",
    ),
    ("cgroup quota", {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000"}, "ok", ""),
    (
        "transparent huge pages",
        {"sys/kernel/mm/transparent_hugepage/enabled": "[always] madvise never"},
        "note",
        "echo madvise",
    ),
    ("address randomisation", {"proc/sys/kernel/randomize_va_space": "2"}, "note", ""),
    ("address randomisation", {"proc/sys/kernel/randomize_va_space": "0"}, "ok", ""),
    ("swap", {"proc/meminfo": "SwapTotal: 2000000 kB\nSwapFree: 1000000 kB\n"}, "warn", "swapoff"),
    ("swap", {"proc/meminfo": "SwapTotal: 2000000 kB\nSwapFree: 2000000 kB\n"}, "ok", ""),
    ("temperature", {"sys/class/thermal/thermal_zone0/temp": "91000"}, "warn", "cool"),
    ("temperature", {"sys/class/thermal/thermal_zone0/temp": "41000"}, "ok", ""),
    ("temperature", {"sys/devices/platform/soc/soc:firmware/get_throttled": "50005"}, "warn", "supply"),
    (
        "temperature",
        {"sys/class/hwmon/hwmon0/temp1_input": "88000", "sys/class/hwmon/hwmon0/name": "k10temp"},
        "warn",
        "",
    ),
    ("virtualisation", {".dockerenv": ""}, "note", ""),
    ("virtualisation", {}, "ok", ""),
    (
        "processor",
        {f"{CPU}/cpu0/cpu_capacity": "1024", f"{CPU}/cpu1/cpu_capacity": "446", f"{CPU}/online": "0-1"},
        "warn",
        "taskset",
    ),
    ("processor", {}, "ok", ""),
]


@pytest.mark.parametrize(("topic", "files", "status", "todo"), AILMENTS)
def test_an_ailment_is_seen_and_has_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, topic: str, files: dict[str, str], status: str, todo: str
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    found = finding(machine(tmp_path, files), topic)
    assert found.status == status, found
    assert todo in found.todo
    if status == "warn":
        assert found.todo and found.why


def test_values_say_what_was_found(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/cpu.max": "150000 100000",
            "sys/fs/cgroup/cpu.stat": "nr_periods 8\nnr_throttled 3\n",
            "proc/meminfo": "SwapTotal: 2000000 kB\nSwapFree: 1000000 kB\n",
            "proc/loadavg": "3.10 1 1 1/1 1",
        },
    )
    assert finding(root, "cgroup quota").value == "1.5 cores, ran out in 3 of 8 periods"
    assert finding(root, "swap").value == "1.02 GB in use"
    assert finding(root, "load").value == "3.10 on 2 processors"


def test_emulated_arm_warns_that_times_mean_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.platform, "machine", lambda: "aarch64")
    found = finding(machine(tmp_path, {}), "processor")
    assert found.status == "warn" and "emulated" in found.value


# --- measured ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sample", "topic", "status"),
    [
        (noise.Sample(stolen=0.2), "steal time", "warn"),
        (noise.Sample(stolen=0.001), "steal time", "ok"),
        (noise.Sample(), "steal time", "unknown"),
        (noise.Sample(drift=0.5), "speed drift", "warn"),
        (noise.Sample(drift=0.1), "speed drift", "note"),
        (noise.Sample(drift=0.01), "speed drift", "ok"),
        (noise.Sample(others=(("cc1plus", 0.97), ("idle", 0.0))), "other processes", "warn"),
        (noise.Sample(others=(("idle", 0.01),)), "other processes", "ok"),
    ],
)
def test_what_was_sampled_is_judged(
    monkeypatch: pytest.MonkeyPatch, sample: noise.Sample, topic: str, status: str
) -> None:
    monkeypatch.setattr(noise, "sample_noise", lambda window_s: sample)
    monkeypatch.setattr(noise, "page_faults", lambda variables: None)
    (found,) = [f for f in examine(nvml=nvml(0)) if f.topic == topic]
    assert found.status == status
    assert "idle" not in found.value


@given(st.integers(1, 10**6), st.integers(50, 300))
@settings(deadline=None)
def test_equal_work_in_equal_time_does_not_drift(cost: int, count: int) -> None:
    assert noise.clock_drift([cost] * count) == 0


def test_drift_is_the_slowest_tenth_over_the_fastest_and_ignores_single_spikes() -> None:
    falling = [100] * 90 + [130] * 10
    assert noise.clock_drift(falling) == pytest.approx(0.3)
    assert noise.clock_drift([100] * 99 + [10_000]) == 0
    assert noise.clock_drift([100] * 49) is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts Linux page faults")
def test_page_faults_are_those_of_the_pages_handed_back() -> None:
    """0.8 MB is 200 pages of 4 KiB. Mapped anew each time, all fault again; kept, none does."""
    if os.sysconf("SC_PAGE_SIZE") != 4096 or doctor.platform.libc_ver()[0] != "glibc":
        pytest.skip("the closed form is for glibc and 4 KiB pages")
    mapped = noise.page_faults({"MALLOC_MMAP_THRESHOLD_": "4096"})
    kept = noise.page_faults({"MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(16 << 30)})
    assert mapped == pytest.approx(200, abs=3)
    assert kept is not None and kept < 1


@pytest.mark.parametrize(
    ("default", "kept", "status"),
    [(0.0, 0.0, "ok"), (192.0, 0.0, "note"), (192.0, 192.0, "warn"), (None, 0.0, "unknown")],
)
def test_the_allocator_is_judged_by_its_faults(
    monkeypatch: pytest.MonkeyPatch, default: float | None, kept: float | None, status: str
) -> None:
    monkeypatch.setattr(doctor.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    monkeypatch.setattr(noise, "sample_noise", lambda window_s: noise.Sample())
    seen: list[bool] = []

    def faults(variables: dict[str, str]) -> float | None:
        seen.append("MALLOC_TRIM_THRESHOLD_" in variables)
        return kept if seen[-1] else default

    monkeypatch.setattr(noise, "page_faults", faults)
    (found,) = [f for f in examine(nvml=nvml(0)) if f.topic == "allocator"]
    assert found.status == status
    assert seen == [False, True]  # the default is the allocator's own, whatever this shell has set


# --- GPUs -------------------------------------------------------------------------------------------


def gpu_findings(tmp_path: Path, **answers: Any) -> dict[str, Diagnosis]:
    return {f.topic: f for f in examine(machine(tmp_path, {}), nvml=nvml(**answers)) if f.topic.startswith("gpu")}


def test_a_quiet_gpu(tmp_path: Path) -> None:
    found = gpu_findings(tmp_path)
    assert {topic: f.status for topic, f in found.items()} == {
        "gpu 0": "ok",
        "gpu 0 clocks": "note",
        "gpu 0 throttling": "ok",
        "gpu 0 processes": "ok",
    }
    assert found["gpu 0"].value.startswith("Test GPU, driver 570.1")
    assert found["gpu 0 clocks"].value == "SM 1200 of 1980 MHz, memory 2000 of 2619 MHz, free"
    assert "nvidia-smi -i 0 -lgc" in found["gpu 0 clocks"].todo
    assert found["gpu 0 throttling"].value == "41 °C, 91 of 700 W"


@pytest.mark.parametrize(
    ("answers", "topic", "status", "words"),
    [
        ({"nvmlDeviceGetCurrentClocksEventReasons": lambda h: 0x40}, "throttling", "warn", "thermal (hardware)"),
        ({"nvmlDeviceGetCurrentClocksEventReasons": lambda h: 0x4}, "throttling", "ok", "power cap"),
        ({"nvmlDeviceGetCurrentClocksEventReasons": lambda h: 0x2}, "clocks", "ok", "set by the user"),
        ({"nvmlDeviceGetPersistenceMode": lambda h: 0}, "persistence", "note", "off"),
        ({"nvmlDeviceGetMigMode": lambda h: [1, 1]}, "sharing", "warn", "MIG"),
        (
            {"nvmlDeviceGetMPSComputeRunningProcesses": lambda h: [SimpleNamespace(pid=1)]},
            "sharing",
            "warn",
            "1 MPS clients",
        ),
        (
            {"nvmlDeviceGetComputeRunningProcesses": lambda h: [SimpleNamespace(pid=n) for n in (4, 9)]},
            "processes",
            "warn",
            "2 computing",
        ),
    ],
)
def test_ailments_of_a_gpu(tmp_path: Path, answers: dict[str, Any], topic: str, status: str, words: str) -> None:
    found = gpu_findings(tmp_path, **answers)[f"gpu 0 {topic}"]
    assert found.status == status
    assert words in found.value
    assert found.todo or status != "warn"


def test_every_gpu_is_looked_at(tmp_path: Path) -> None:
    assert {"gpu 0", "gpu 1"} <= set(gpu_findings(tmp_path, gpus=2))


def test_a_gpu_that_tells_nothing_still_gives_findings(tmp_path: Path) -> None:
    def unsupported(*_: Any) -> None:
        raise NVMLError("Not Supported")

    mute = {name: unsupported for name in vars(nvml()) if name.startswith("nvmlDeviceGet")}
    mute |= {"nvmlDeviceGetCount": lambda: 1, "nvmlDeviceGetHandleByIndex": lambda i: i}
    found = gpu_findings(tmp_path, **mute)
    assert found["gpu 0 processes"].status == "unknown"
    assert found["gpu 0 clocks"].value.startswith("SM unknown MHz")
