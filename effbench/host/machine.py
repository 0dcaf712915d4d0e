"""Read what the operating system reports about this machine from /proc and /sys, with the standard library only.

Every reader takes `root`, so that a copy of another machine's files can be read like this machine. What cannot be read
is None: a container, a Raspberry Pi and a Mac each lack different files.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from effbench.host import cpu_names
from effbench.host.cgroups import Quota as Quota
from effbench.host.cgroups import quota as quota
from effbench.host.core_clusters import clusters
from effbench.host.sysfiles import HERE as HERE
from effbench.host.sysfiles import cpu_list as cpu_list
from effbench.host.sysfiles import read_number as read_number
from effbench.host.sysfiles import read_text as read_text

Facts = dict[str, "str | int | float | bool | None"]


def sysctl(name: str) -> str | None:
    """Return one value of macOS's ``sysctl``, or None on other systems."""
    try:
        done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


# --- processor --------------------------------------------------------------------------------------


def cpu(root: Path = HERE, *, read_sysctl: Callable[[str], str | None] | None = None) -> Facts:
    """Describe the processor: model, cores, clocks (MHz), caches (bytes), governors, boost, SMT, clusters, NUMA nodes.

    `read_sysctl` answers a macOS ``sysctl`` name; it is used only without /proc/cpuinfo.
    """
    entries = _cpuinfo(root)
    base = root / "sys/devices/system/cpu"
    numbers = cpu_list(read_text(base / "online")) or tuple(range(len(entries)))
    if not entries:
        return _cpu_without_proc(root, read_sysctl)
    cores = {
        (
            read_number(base / f"cpu{n}/topology/physical_package_id"),
            read_text(base / f"cpu{n}/topology/thread_siblings_list"),
        )
        for n in numbers
    }
    known = {core for core in cores if core[1] is not None}
    kinds = clusters(root)
    registers = [
        found for n in numbers if (found := read_number(base / f"cpu{n}/regs/identification/midr_el1")) is not None
    ]
    return {
        "cpu.model": cpu_names.processor_name(
            entries, registers, *([cpu_names.name_from_py_cpuinfo] if root == HERE else [])
        ),
        "cpu.logical": len(numbers) or None,
        "cpu.physical": len(known) or None,
        "cpu.sockets": len({package for package, _ in known if package is not None and package >= 0}) or None,
        "cpu.mhz_base": _khz(base / "cpu0/cpufreq/base_frequency"),
        "cpu.mhz_max": max(
            (f for n in numbers if (f := _khz(base / f"cpu{n}/cpufreq/cpuinfo_max_freq"))), default=None
        ),
        "cpu.mhz_now": cpu_mhz(root),
        **{f"cpu.{level}_bytes": size for level, size in _caches(base).items()},
        "cpu.governor": governors(root),
        "cpu.boost": boost(root),
        "cpu.smt": read_text(base / "smt/control"),
        "cpu.clusters": " + ".join(map(str, kinds)) if len(kinds) > 1 or (kinds and kinds[0].capacity) else None,
        "cpu.numa_nodes": len(cpu_list(read_text(root / "sys/devices/system/node/online"))) or None,
        "cpu.allowed": len(allowed_processors(root)) or None,
    }


def cpu_mhz(root: Path = HERE) -> float | None:
    """Return the mean clock of the processors now, in MHz."""
    running = _mean(map(_khz, _cpu_files(root, "cpufreq/scaling_cur_freq")))
    return running or _mean(_float(entry.get("cpu MHz")) for entry in _cpuinfo(root))


def governors(root: Path = HERE) -> str | None:
    """Return the frequency governors in use, counted if they differ: ``4x ondemand + 4x powersave``."""
    found = Counter(
        name for path in _cpu_files(root, "cpufreq/scaling_governor") if (name := read_text(path)) is not None
    )
    if len(found) <= 1:
        return next(iter(found), None)
    return " + ".join(f"{count}x {name}" for name, count in sorted(found.items()))


def boost(root: Path = HERE) -> bool | None:
    """Whether the processor may run above its base clock; None if the kernel does not report it."""
    base = root / "sys/devices/system/cpu"
    if (off := read_number(base / "intel_pstate/no_turbo")) is not None:
        return off == 0
    on = read_number(base / "cpufreq/boost")
    return None if on is None else on == 1


def allowed_processors(root: Path = HERE) -> tuple[int, ...]:
    """Return the processors that this process may run on."""
    found = re.search(r"^Cpus_allowed_list:\s*(\S+)", read_text(root / "proc/self/status") or "", re.M)
    return cpu_list(found.group(1)) if found else ()


_TRANSLATORS = re.compile(r"qemu-|box(64|86)|FEX|rosetta")


def emulated(root: Path, machine: str, *, read_sysctl: Callable[[str], str | None] | None = None) -> bool:
    """Whether this program, compiled for `machine`, is translated for another processor while it runs.

    User-mode emulation fakes what a program can ask for (``uname``, /proc/self/exe), and its root folder may hold an
    invented /proc/cpuinfo. Several sources are therefore checked: the kernel's own architecture (Linux 6.1), the
    program that this process really executes, the processors in /proc/cpuinfo, registers that only an emulator has, and
    on a Mac whether Rosetta translates. Full-system emulation of an existing processor is not detected.
    """
    family = _family(machine)
    kernel = read_text(root / "proc/sys/kernel/arch")
    if kernel and _family(kernel) != family:
        return True
    try:
        # Not /proc/self/exe, which qemu-user answers itself.
        if _TRANSLATORS.match(Path(os.readlink(root / "proc/thread-self/exe")).name):
            return True
    except OSError:
        pass
    entries = _cpuinfo(root)
    if not entries:
        return (read_sysctl or (sysctl if root == HERE else lambda name: None))("sysctl.proc_translated") == "1"
    named = entries[0].get("vendor_id", "") + entries[0].get("model name", "")
    if "VirtualApple" in named or "QEMU TCG" in named:
        return True
    if any(implementer == 0 for implementer, _ in cpu_names.identities(entries)):
        return True  # reserved for software; the id of qemu's "max" processor
    lists_arm, lists_x86 = "CPU implementer" in entries[0], "vendor_id" in entries[0]
    return (family == "arm" and lists_x86) or (family == "x86" and lists_arm)


def board(root: Path = HERE) -> str | None:
    """Return the name of the board or cloud instance: ``Raspberry Pi 5 Model B Rev 1.0``, ``c7g.xlarge``."""
    return read_text(root / "proc/device-tree/model") or read_text(root / "sys/class/dmi/id/product_name") or None


def _family(machine: str) -> str:
    if re.fullmatch(r"aarch64(_be)?|arm.*", machine):
        return "arm"
    return "x86" if re.fullmatch(r"x86_64|amd64|i\d86", machine.lower()) else machine


def _cpuinfo(root: Path) -> list[dict[str, str]]:
    """Return one mapping per processor. The board lines at the end of an Arm file are dropped."""
    blocks = re.split(r"\n\s*\n", read_text(root / "proc/cpuinfo") or "")
    entries = []
    for block in blocks:
        pairs = (line.partition(":") for line in block.splitlines())
        entry = {key.strip(): value.strip() for key, _, value in pairs}
        if "processor" in entry:
            entries.append(entry)
    return entries


def _cpu_without_proc(root: Path, read_sysctl: Callable[[str], str | None] | None) -> Facts:
    read = read_sysctl or (sysctl if root == HERE else lambda name: None)
    logical = read("hw.logicalcpu")
    physical = read("hw.physicalcpu")
    levels = range(int(read("hw.nperflevels") or 0))
    kinds = [(read(f"hw.perflevel{n}.logicalcpu"), read(f"hw.perflevel{n}.name")) for n in levels]
    return {
        "cpu.model": read("machdep.cpu.brand_string"),
        "cpu.logical": int(logical) if logical else (os.cpu_count() if root == HERE else None),
        "cpu.physical": int(physical) if physical else None,
        "cpu.clusters": " + ".join(f"{count}x {kind or 'unnamed'}" for count, kind in kinds if count) or None,
    }


def _caches(base: Path) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for index in sorted(base.glob("cpu0/cache/index*")):
        kind, level, size = (read_text(index / name) for name in ("type", "level", "size"))
        found = re.fullmatch(r"(\d+)([KM]?)", size or "")
        if found and level and kind != "Instruction":
            name = f"l{level}d" if kind == "Data" and level == "1" else f"l{level}"
            sizes[name] = int(found.group(1)) * {"": 1, "K": 1024, "M": 1024**2}[found.group(2)]
    return sizes


def _cpu_files(root: Path, tail: str) -> list[Path]:
    return sorted((root / "sys/devices/system/cpu").glob(f"cpu[0-9]*/{tail}"))


def _khz(path: Path) -> float | None:
    value = read_number(path)
    return None if value is None else value / 1000


def _float(value: str | None) -> float | None:
    try:
        return None if value is None else float(value)
    except ValueError:
        return None


def _mean(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return round(sum(present) / len(present), 1) if present else None


# --- limits, memory, host ---------------------------------------------------------------------------


def memory(root: Path = HERE) -> dict[str, int]:
    """Return /proc/meminfo in bytes; empty without it."""
    found = re.findall(r"^(\w+):\s+(\d+) kB", read_text(root / "proc/meminfo") or "", re.M)
    return {name: int(value) * 1024 for name, value in found}


def huge_pages(root: Path = HERE) -> str | None:
    """Return the mode of transparent huge pages: "always", "madvise" or "never"."""
    found = re.search(r"\[(\w+)\]", read_text(root / "sys/kernel/mm/transparent_hugepage/enabled") or "")
    return found.group(1) if found else None


def hypervisor(root: Path = HERE) -> str | None:
    """Return the name of the hypervisor; None on bare metal or if nothing reports one."""
    named = read_text(root / "sys/hypervisor/type") or read_text(root / "proc/device-tree/hypervisor/compatible")
    entries = _cpuinfo(root)
    if named is None and entries and "hypervisor" in entries[0].get("flags", "").split():
        named = read_text(root / "sys/class/dmi/id/sys_vendor") or "unnamed"
    return named


def container(root: Path = HERE) -> str | None:
    """Return the kind of container that this process runs in, or None."""
    if (root / ".dockerenv").exists():
        return "docker"
    if (root / "run/.containerenv").exists():
        return "podman"
    found = re.search(r"kubepods|docker|lxc|containerd", read_text(root / "proc/1/cgroup") or "")
    return found.group(0) if found else None


def load_average(root: Path = HERE) -> float | None:
    """Return the number of runnable processes, averaged over the last minute."""
    found = (read_text(root / "proc/loadavg") or "").split()
    if found:
        return float(found[0])
    return os.getloadavg()[0] if root == HERE and hasattr(os, "getloadavg") else None


TICKS_PER_S = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


@dataclass(frozen=True)
class Ticks:
    """Clock ticks of all processors since boot: busy, stolen by the hypervisor, and total."""

    busy: int
    stolen: int
    total: int


def ticks(root: Path = HERE) -> Ticks | None:
    """Read the ``cpu`` line of /proc/stat."""
    line = (read_text(root / "proc/stat") or "").split("\n", 1)[0].split()
    if len(line) < 9 or line[0] != "cpu" or not all(value.isdecimal() for value in line[1:9]):
        return None
    user, nice, system, idle, iowait, interrupts, soft_interrupts, stolen = map(int, line[1:9])
    busy = user + nice + system + interrupts + soft_interrupts
    return Ticks(busy, stolen, busy + idle + iowait + stolen)


def cpu_ticks(root: Path = HERE) -> tuple[int, int] | None:
    """Return (stolen, total) clock ticks since boot."""
    found = ticks(root)
    return None if found is None else (found.stolen, found.total)


def uptime_s(root: Path = HERE) -> float | None:
    """Return the seconds since boot."""
    return _float((read_text(root / "proc/uptime") or "").partition(" ")[0])


def temperatures(root: Path = HERE) -> dict[str, float]:
    """Return degrees Celsius by sensor name, from thermal zones and hardware monitors."""
    found: dict[str, float] = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        value = read_number(zone / "temp")
        if value is not None and value > 0:
            found[read_text(zone / "type") or zone.name] = value / 1000
    for sensor in sorted((root / "sys/class/hwmon").glob("hwmon*/temp*_input")):
        value = read_number(sensor)
        if value is not None and value > 0:
            label = read_text(sensor.with_name(sensor.name.replace("_input", "_label"))) or sensor.name.split("_")[0]
            found[f"{read_text(sensor.parent / 'name') or sensor.parent.name} {label}"] = value / 1000
    return found


_CPU_SENSOR = re.compile(r"cpu|core|pkg|package|k10temp|zenpower|tctl|tdie|soc", re.IGNORECASE)


def cpu_temperature(root: Path = HERE) -> float | None:
    """Return the hottest processor sensor in degrees Celsius; the hottest of all sensors if none is named after it."""
    found = temperatures(root)
    own = [value for name, value in found.items() if _CPU_SENSOR.search(name)]
    return max(own or found.values(), default=None)


def firmware_throttling(root: Path = HERE) -> int | None:
    """Return the Raspberry Pi firmware's mask. Any of its lowest four bits means that it throttles the processor
    now.
    """
    mask = read_text(root / "sys/devices/platform/soc/soc:firmware/get_throttled")
    return None if mask is None or not re.fullmatch(r"(0x)?[0-9a-fA-F]+", mask) else int(mask, 16)


def thermal_throttles(root: Path = HERE) -> int | None:
    """Return how often heat has lowered the clock since boot, over all processors (Intel)."""
    found = [read_number(path) for path in _cpu_files(root, "thermal_throttle/core_throttle_count")]
    counts = [count for count in found if count is not None]
    return sum(counts) if counts else None
