"""Files of /proc and /sys of other machines, planted in a folder and read as facts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from effbench.core.run import Environment
from effbench.host.facts import collect

XEON = """processor\t: {n}
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz
cpu MHz\t\t: {mhz}
physical id\t: {package}
flags\t\t: fpu vme{extra}
"""


PI_4 = """processor\t: {n}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3
"""


def plant(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def server(root: Path, *, extra: str = "") -> Path:
    """Two sockets of two cores with two threads each: 8 logical processors, 4 cores."""
    base = "sys/devices/system/cpu"
    entries = (XEON.format(n=n, mhz=2000 + n, package=n // 4, extra=extra) for n in range(8))
    files = {
        "proc/cpuinfo": "\n".join(entries),
        "proc/meminfo": "MemTotal:       32768000 kB\nSwapTotal:       1024000 kB\nSwapFree:        1024000 kB\n",
        "proc/loadavg": "0.50 0.40 0.30 1/200 4242\n",
        "proc/self/status": "Name:\tpython\nCpus_allowed_list:\t0-3\n",
        "proc/self/cgroup": "0::/user.slice\n",
        "proc/sys/kernel/randomize_va_space": "2\n",
        "proc/sys/kernel/osrelease": "6.1.0-test\n",
        "sys/fs/cgroup/user.slice/cpu.max": "max 100000\n",
        "sys/fs/cgroup/user.slice/cpu.stat": "usage_usec 1\nnr_periods 0\nnr_throttled 0\n",
        "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
        "sys/devices/system/node/online": "0-1\n",
        f"{base}/online": "0-7\n",
        f"{base}/smt/control": "on\n",
        f"{base}/intel_pstate/no_turbo": "0\n",
        f"{base}/cpu0/cpufreq/base_frequency": "2000000\n",
        f"{base}/cpu0/cache/index0/type": "Data\n",
        f"{base}/cpu0/cache/index0/level": "1\n",
        f"{base}/cpu0/cache/index0/size": "48K\n",
        f"{base}/cpu0/cache/index1/type": "Instruction\n",
        f"{base}/cpu0/cache/index1/level": "1\n",
        f"{base}/cpu0/cache/index1/size": "32K\n",
        f"{base}/cpu0/cache/index3/type": "Unified\n",
        f"{base}/cpu0/cache/index3/level": "3\n",
        f"{base}/cpu0/cache/index3/size": "36864K\n",
    }
    for n in range(8):
        files[f"{base}/cpu{n}/topology/physical_package_id"] = f"{n // 4}\n"
        files[f"{base}/cpu{n}/topology/thread_siblings_list"] = f"{n - n % 2}-{n - n % 2 + 1}\n"
        files[f"{base}/cpu{n}/cpufreq/scaling_governor"] = "performance\n" if n < 6 else "powersave\n"
        files[f"{base}/cpu{n}/cpufreq/scaling_cur_freq"] = f"{3_000_000 + 200_000 * (n % 2)}\n"
        files[f"{base}/cpu{n}/cpufreq/cpuinfo_max_freq"] = "3200000\n"
    return plant(root, files)


def pi(root: Path) -> Path:
    cpus = "\n".join(PI_4.format(n=n) for n in range(4))
    board = "\nHardware\t: BCM2835\nSerial\t\t: 10000000deadbeef\nModel\t\t: Raspberry Pi 4 Model B Rev 1.4\n"
    return plant(
        root,
        {
            "proc/cpuinfo": cpus + board,
            "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\x00",
            "sys/class/thermal/thermal_zone0/temp": "48312\n",
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
            "sys/devices/system/cpu/online": "0-3\n",
            **{f"sys/devices/system/cpu/cpu{n}/cpufreq/scaling_governor": "ondemand\n" for n in range(4)},
        },
    )


def read(root: Path, **changes: Any) -> Environment:
    given: dict[str, Any] = {"threads": 1, "allocator": "retain", "runtime_facts": {}, "variables": {}, **changes}
    return collect({"device.name": "cpu"}, "eager", root=root, **given)
