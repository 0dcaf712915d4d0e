"""Check this machine for causes of noisy timings, and say what to do about each: `effbench doctor`.

Each check is independent. If it cannot read what it needs, its status is "unknown", with the reason. The checks change
nothing, and need neither torch nor NVML nor psutil.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from effbench import runtimes
from effbench.core.errors import InvalidValue
from effbench.core.measure_options import MeasureOptions
from effbench.core.peaks import Peaks
from effbench.core.study import Case, Experiment
from effbench.host import machine, noise, worker_process
from effbench.host import nvml as host_nvml

Status = Literal["ok", "note", "warn", "unknown"]


@dataclass(frozen=True)
class Diagnosis:
    """The result of one check. `todo` is a command or an instruction; every "warn" has one."""

    topic: str
    status: Status
    value: str
    why: str = ""
    todo: str = ""

    def to_dict(self) -> dict[str, str]:
        """Return a JSON-ready mapping."""
        return asdict(self)


def examine(root: Path = machine.HERE, *, window_s: float = 0.5, nvml: Any = None) -> tuple[Diagnosis, ...]:
    """Run all checks, which takes about `window_s` plus half a second.

    For tests, `root` is a folder to read instead of this machine's files; checks that measure are then "unknown".
    `nvml` replaces the pynvml module.
    """
    here = root == machine.HERE
    sample = noise.sample_noise(window_s) if here else noise.Sample()
    found = [
        _identity(root),
        _governor(root),
        _boost(root),
        _smt(root),
        _drift(sample.drift),
        _steal(sample.stolen),
        _load(root),
        _others(sample.others),
        _threads(root),
        _quota(root),
        _huge_pages(root),
        _allocator(here, os.environ),
        _aslr(root),
        _timer(root, here),
        _swap(root),
        _heat(root),
        _virtualisation(root),
    ]
    return (*found, *_gpus(host_nvml.gpus(nvml)), *(_runtimes() if here else ()))


def peaks(options: MeasureOptions) -> Peaks:
    """Measure the device's two peaks anew, and store them for later runs.

    Raises UnknownName, InvalidValue, DeviceUnavailable, and EffbenchError where they cannot be measured.
    """
    from effbench import devices
    from effbench.runs import runner
    from effbench.studies import plan

    if options.dtype == "int8":
        raise InvalidValue(
            "torch has no int8 kernel whose speed could stand for a runtime's; measure peaks in a float dtype"
        )
    if devices.kind_of(options.device) == "cuda":
        devices.require_cuda(options.device)
    case = Case("peaks", (1,), labels={"model": "peaks"})
    study = Experiment("peaks", "Peaks", "", "model", ("peaks",), "peaks", (case,))
    return runner.find_peaks(plan.make(study, options), options.dtype or "float32", remeasure=True)


# --- processor --------------------------------------------------------------------------------------


def _identity(root: Path) -> Diagnosis:
    facts = machine.cpu(root)
    model, logical, physical = (facts.get(f"cpu.{name}") for name in ("model", "logical", "physical"))
    if machine.emulated(root, platform.machine()):
        why = "Arm code runs on another processor through emulation: counts are right, times mean nothing."
        return Diagnosis("processor", "warn", f"emulated on {model}", why, "measure on real Arm hardware")
    if not model:
        return _unknown("processor", "no model in /proc/cpuinfo and none from sysctl")
    cores = f"{physical} cores, {logical} threads" if physical else f"{logical} processors"
    clusters = str(facts.get("cpu.clusters") or "")
    if "+" in clusters:
        why = "Cores have different capacities (count x capacity): a thread that changes cluster changes speed."
        todo = "effbench run … --cluster big, or little; other cores: taskset -c LIST effbench run …"
        if platform.system() == "Darwin":
            todo = "keep the terminal in front: macOS gives what runs behind to efficiency cores, and pins nothing"
        return Diagnosis("processor", "warn", f"{model}, {clusters}", why, todo)
    return Diagnosis("processor", "ok", f"{model}, {cores}")


def _governor(root: Path) -> Diagnosis:
    found = machine.governors(root)
    if found is None:
        return _unknown("governor", "no cpufreq: the hypervisor or the firmware sets the clock")
    if found == "performance":
        return Diagnosis("governor", "ok", found)
    why = "The clock follows the load, so short blocks run at another frequency than long ones."
    return Diagnosis("governor", "warn", found, why, "sudo cpupower frequency-set -g performance")


def _boost(root: Path) -> Diagnosis:
    found = machine.boost(root)
    if found is None:
        return _unknown("boost", "the kernel exposes no boost setting")
    if not found:
        return Diagnosis("boost", "ok", "off")
    pstate = (root / "sys/devices/system/cpu/intel_pstate/no_turbo").exists()
    switch = "1 | sudo tee /sys/devices/system/cpu/intel_pstate/no_turbo" if pstate else None
    todo = f"to compare runs hours apart: echo {switch or '0 | sudo tee /sys/devices/system/cpu/cpufreq/boost'}"
    return Diagnosis("boost", "note", "on", "The highest clock depends on heat and on what the other cores do.", todo)


def _smt(root: Path) -> Diagnosis:
    found = machine.read_text(root / "sys/devices/system/cpu/smt/control")
    if found is None:
        return _unknown("smt", "the kernel does not report it")
    if found != "on":
        return Diagnosis("smt", "ok", found)
    why = "Two threads share a core: more threads than cores measures the sharing."
    return Diagnosis("smt", "note", found, why, "use at most one thread per core: --threads CORES")


def _drift(drift: float | None) -> Diagnosis:
    if drift is None:
        return _unknown("speed drift", "measured on this machine only")
    why = "Equal work took unequal CPU time: the clock changed, or other processes share the core and its caches."
    value = f"{100 * drift:.1f} % between the fastest and the slowest tenth"
    if drift < 0.05:
        return Diagnosis("speed drift", "ok", value)
    status: Status = "warn" if drift > 0.2 else "note"
    return Diagnosis("speed drift", status, value, why, "end other work, let it cool; more --launches average it out")


def _heat(root: Path) -> Diagnosis:
    mask = machine.firmware_throttling(root)
    if mask is not None and mask & 0xF:
        why = "The Raspberry Pi firmware slows the processor for low voltage or heat right now."
        return Diagnosis("temperature", "warn", f"throttled ({mask:#x})", why, "use a stronger supply and a fan")
    sensors = machine.temperatures(root)
    events = machine.thermal_throttles(root)
    if not sensors:
        return _unknown("temperature", "no sensor is visible")
    name, hottest = max(sensors.items(), key=lambda item: item[1])
    value = f"{hottest:.0f} °C ({name})" + (f", slowed {events} times since boot" if events else "")
    if hottest < 85:
        return Diagnosis("temperature", "note" if events else "ok", value, "Heat lowers the clock." if events else "")
    return Diagnosis("temperature", "warn", value, "Heat lowers the clock.", "let it cool; cool it better")


# --- other processes --------------------------------------------------------------------------------


def _steal(stolen: float | None) -> Diagnosis:
    if stolen is None:
        return _unknown("steal time", "no steal counter in /proc/stat, or not measured here")
    value = f"{100 * stolen:.1f} % of processor time"
    if stolen < 0.01:
        return Diagnosis("steal time", "ok", value)
    why = "The hypervisor ran another guest on this processor."
    return Diagnosis(
        "steal time", "warn", value, why, "use a dedicated host; compare with: effbench check --against REF"
    )


def _load(root: Path) -> Diagnosis:
    load = machine.load_average(root)
    logical = machine.cpu(root).get("cpu.logical")
    if load is None or not logical:
        return _unknown("load", "no load average or no processor count")
    value = f"{load:.2f} on {logical} processors"
    if load < 0.5 * float(logical):
        return Diagnosis("load", "ok", value)
    why = "Other processes compete for the cores; every block that waited for a core is set aside."
    return Diagnosis("load", "warn", value, why, "end other work first; see who: top -o %CPU")


def _others(others: tuple[tuple[str, float], ...] | None) -> Diagnosis:
    if others is None:
        return _unknown("other processes", "psutil is not installed or cannot read /proc, or not measured here")
    busy = [(name, share) for name, share in others if share >= 0.05]
    if not busy:
        return Diagnosis("other processes", "ok", "none is busy")
    value = ", ".join(f"{name} {100 * share:.0f} %" for name, share in busy[:3])
    why = "Other busy processes take cores, caches and memory bandwidth."
    return Diagnosis("other processes", "warn", value, why, "end them, or measure elsewhere")


def _threads(root: Path) -> Diagnosis:
    allowed, logical = machine.allowed_processors(root), machine.cpu(root).get("cpu.logical")
    wanted = os.environ.get("OMP_NUM_THREADS", "not set")
    if not allowed:
        return _unknown("threads", "the system does not show the affinity of a process")
    value = f"may use {len(allowed)} of {logical} processors; OMP_NUM_THREADS {wanted}"
    if wanted.isdigit() and int(wanted) > len(allowed):
        why = "There are more threads than processors, so they take turns."
        return Diagnosis("threads", "warn", value, why, f"--threads {len(allowed)}")
    return Diagnosis("threads", "ok", value)


def _quota(root: Path) -> Diagnosis:
    found = machine.quota(root)
    if found is None:
        return _unknown("cgroup quota", "no control groups here")
    if found.cores is None:
        return Diagnosis("cgroup quota", "ok", "none")
    value = f"{found.cores:g} cores"
    if found.throttled:
        value += f", ran out in {found.throttled} of {found.periods} periods"
    why = "When the quota runs out all threads stop for the rest of the period, often tens of milliseconds."
    return Diagnosis("cgroup quota", "warn", value, why, "start the container without a CPU limit (docker: no --cpus)")


def _virtualisation(root: Path) -> Diagnosis:
    parts = [machine.hypervisor(root) and f"virtual machine ({machine.hypervisor(root)})", machine.container(root)]
    found = ", ".join(str(part) for part in parts if part)
    if not found:
        return Diagnosis("virtualisation", "ok", "none seen")
    why = "Load of other guests on the host is not visible, and the clock frequency cannot be set."
    return Diagnosis("virtualisation", "note", found, why, "rely on ratios within a round, not on single latencies")


# --- memory and clock -------------------------------------------------------------------------------


def _huge_pages(root: Path) -> Diagnosis:
    found = machine.huge_pages(root)
    if found is None:
        return _unknown("transparent huge pages", "not a Linux kernel, or built without")
    if found != "always":
        return Diagnosis("transparent huge pages", "ok", found)
    why = "Whether an allocation gets a huge page differs from launch to launch."
    return Diagnosis(
        "transparent huge pages",
        "note",
        found,
        why,
        "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
    )


def _allocator(here: bool, variables: Mapping[str, str]) -> Diagnosis:
    name, version = platform.libc_ver() if here else ("", "")
    preloaded = Path(variables.get("LD_PRELOAD", "").split(":")[0]).name
    if name != "glibc":
        return _unknown("allocator", "not glibc: watch the page faults of the blocks instead")
    plain = {key: value for key, value in variables.items() if not key.startswith("MALLOC_")}
    default = noise.page_faults(plain)
    kept = noise.page_faults(worker_process.worker_environment(0, "retain", plain))
    about = f"glibc {version}" + (f" with {preloaded}" if preloaded else "")
    if default is None or kept is None:
        return _unknown("allocator", f"{about}: page faults could not be measured")
    value = f"{about}: {default:.0f} page faults per 0.8 MB tensor, {kept:.0f} with --allocator retain"
    if default < 1:
        return Diagnosis("allocator", "ok", value)
    status: Status = "note" if kept < 1 else "warn"
    why = "Freed memory goes back to the kernel and causes page faults again, in some launches but not in others."
    return Diagnosis("allocator", status, value, why, "keep --allocator retain (the default) to compare kernels")


def _aslr(root: Path) -> Diagnosis:
    found = machine.read_number(root / "proc/sys/kernel/randomize_va_space")
    if found is None:
        return _unknown("address randomisation", "the kernel does not report it")
    why = "The memory layout differs from launch to launch, and so do times: therefore launches are the replicates."
    return Diagnosis("address randomisation", "note" if found else "ok", "on" if found else "off", why if found else "")


def _timer(root: Path, here: bool) -> Diagnosis:
    source = machine.read_text(root / "sys/devices/system/clocksource/clocksource0/current_clocksource")
    if not here:
        return _unknown("timer", "measured on this machine only")
    cost = noise.clock_read_ns()
    resolution = time.get_clock_info("perf_counter").resolution * 1e9
    value = f"{cost:.0f} ns a read, resolution {resolution:g} ns" + (f", source {source}" if source else "")
    if cost < 1000 and source not in ("hpet", "acpi_pm", "jiffies"):
        return Diagnosis("timer", "ok", value)
    why = "One slow read per block matters little, but the kernel may have rejected the fast clock as unstable."
    return Diagnosis("timer", "warn", value, why, "see why: dmesg | grep -i clocksource")


def _swap(root: Path) -> Diagnosis:
    memory = machine.memory(root)
    if "SwapTotal" not in memory:
        return _unknown("swap", "no /proc/meminfo")
    used = memory["SwapTotal"] - memory.get("SwapFree", memory["SwapTotal"])
    if used < 64 << 20:
        return Diagnosis("swap", "ok", "not in use")
    why = "Memory has been short: pages of the network may have to be read back from disk."
    return Diagnosis(
        "swap", "warn", f"{used / 1e9:.2f} GB in use", why, "free memory, then: sudo swapoff -a && sudo swapon -a"
    )


# --- runtimes ---------------------------------------------------------------------------------------


def _runtimes() -> Iterator[Diagnosis]:
    absent = {name: runtimes.why_unavailable(name) for name in runtimes.names()}
    usable = [name for name, reason in absent.items() if reason is None]
    only = {name: "" if "cpu" in runtimes.get(name).devices else " (needs a GPU)" for name in usable}
    yield Diagnosis("runtimes", "ok", ", ".join(f"{name}{need}" for name, need in only.items()))
    for name, reason in absent.items():
        if reason is not None:
            value, _, todo = reason.partition("; ")
            yield Diagnosis(f"runtime {name}", "note", value, "Studies can run under it as well.", todo)


# --- GPUs -------------------------------------------------------------------------------------------


def _gpus(found: tuple[host_nvml.Gpu, ...] | str) -> Iterator[Diagnosis]:
    if isinstance(found, str):
        yield _unknown("gpu", found)
        return
    for index, gpu in enumerate(found):
        yield from _gpu(f"gpu {index}", index, gpu)


def _gpu(topic: str, index: int, gpu: host_nvml.Gpu) -> Iterator[Diagnosis]:
    facts = {name.removeprefix("gpu."): value for name, value in gpu.facts().items()}
    now = gpu.read()
    words = [f"ECC {_on_or_off(facts['ecc'])}", f"PCIe {facts['pcie_generation']} x{facts['pcie_width']}"]
    yield Diagnosis(topic, "ok", ", ".join([str(gpu.name()), f"driver {facts['driver']}", *words]))

    sm, memory = (
        _amount_of(at, facts[f"{name}_mhz_max"], "MHz") for name, at in (("sm", now.sm_mhz), ("memory", now.memory_mhz))
    )
    fixed = now.reasons is not None and bool(now.reasons & 0x2)
    todo = f"to compare runs hours apart: sudo nvidia-smi -i {index} -lgc MHZ,MHZ (undo: -rgc)"
    why = "Free clocks follow heat and power; blocks below 97 % of their cell's usual clock are set aside."
    clocks = f"SM {sm}, memory {memory}, {'set by the user' if fixed else 'free'}"
    yield Diagnosis(f"{topic} clocks", "ok" if fixed else "note", clocks,
                  "" if fixed else why, "" if fixed else todo)  # fmt: skip

    slowed = (now.reasons or 0) & (
        host_nvml.HW_SLOWDOWN | host_nvml.SW_THERMAL | host_nvml.HW_THERMAL | host_nvml.POWER_BRAKE
    )
    heat = f"{_amount_of(now.temperature_c, None, '°C')}, {_amount_of(now.power_w, facts['power_limit_w'], 'W')}"
    reasons = ", ".join(host_nvml.reason_names(now.reasons))
    yield Diagnosis(f"{topic} throttling", "warn" if slowed else "ok", f"{heat}{', ' + reasons if reasons else ''}",
                  "The GPU slows itself down." if slowed else "",
                  f"let it cool; look: nvidia-smi -i {index} -q -d PERFORMANCE" if slowed else "")  # fmt: skip

    if facts["persistence"] is False:
        why = "The driver is unloaded between launches: each one starts seconds later, and clock settings are lost."
        yield Diagnosis(f"{topic} persistence", "note", "off", why, f"sudo nvidia-smi -i {index} -pm 1")
    if facts["mig"]:
        why = "A MIG slice shares memory bandwidth and power with the other slices."
        yield Diagnosis(f"{topic} sharing", "warn", "MIG is on", why, "measure on a whole GPU")
    if facts["mps_clients"]:
        why = "With MPS other processes run on the GPU during timed blocks."
        yield Diagnosis(f"{topic} sharing", "warn", f"{facts['mps_clients']} MPS clients", why, "end the other clients")
    if now.processes is None:
        yield _unknown(f"{topic} processes", "NVML does not list them")
    elif now.processes:
        why = "Other processes use this GPU. Blocks are set aside only when a new process appears, not for these."
        yield Diagnosis(
            f"{topic} processes", "warn", f"{len(now.processes)} computing", why, f"see who: nvidia-smi -i {index}"
        )
    else:
        yield Diagnosis(f"{topic} processes", "ok", "none")


def _on_or_off(value: bool | None) -> str:
    return "unknown" if value is None else "on" if value else "off"


def _amount_of(value: float | None, limit: float | None, unit: str) -> str:
    shown = "unknown" if value is None else f"{value:.0f}"
    return f"{shown} {unit}" if limit is None else f"{shown} of {limit:.0f} {unit}"


def _unknown(topic: str, reason: str) -> Diagnosis:
    return Diagnosis(topic, "unknown", "", reason)
