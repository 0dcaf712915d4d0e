"""Find the clusters of a processor's cores (big and little), and pin this process to one of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from effbench.core.errors import EffbenchError, InvalidValue, UnknownName
from effbench.host.sysfiles import HERE, cpu_list, read_number, read_text

CLUSTER_NAMES = ("all", "big", "little")

SAME_CLUSTER_RATIO = 0.9
"""Cores whose clocks are within this ratio belong to one cluster: boost differs slightly between cores of one kind."""


@dataclass(frozen=True)
class Cluster:
    """Cores of one kind.

    `capacity` is the kernel's value, 1024 for the strongest core; `mhz` is their highest clock. Each is None if the
    kernel does not report it.
    """

    cores: tuple[int, ...]
    capacity: int | None = None
    mhz: float | None = None

    def __str__(self) -> str:
        if self.capacity is not None:
            return f"{len(self.cores)}x{self.capacity}"
        return f"{len(self.cores)}x{self.mhz:g} MHz" if self.mhz else f"{len(self.cores)} cores"


def clusters(root: Path = HERE) -> tuple[Cluster, ...]:
    """Return the clusters of the online processors, strongest first.

    Cores are grouped by the kernel's ``cpu_capacity``, which accounts for clock and architecture. Without it (old
    Android kernels) they are grouped by highest clock. The result has one cluster if all cores are alike or the kernel
    reports neither, and is empty without sysfs.
    """
    base = root / "sys/devices/system/cpu"
    cores = cpu_list(read_text(base / "online")) or tuple(int(path.name[3:]) for path in base.glob("cpu[0-9]*"))
    capacity = {core: read_number(base / f"cpu{core}/cpu_capacity") for core in cores}
    khz = {core: read_number(base / f"cpu{core}/cpufreq/cpuinfo_max_freq") or 0 for core in cores}
    by_capacity = None not in capacity.values()
    strength = {core: capacity[core] or 0 if by_capacity else khz[core] for core in cores}
    found: list[list[int]] = []
    for core in sorted(cores, key=lambda core: (-strength[core], core)):
        strongest = strength[found[-1][0]] if found else 0
        if found and strength[core] >= (strongest if by_capacity else SAME_CLUSTER_RATIO * strongest):
            found[-1].append(core)
        else:
            found.append([core])
    return tuple(
        Cluster(tuple(sorted(group)), capacity[group[0]] if by_capacity else None, khz[group[0]] / 1000 or None)
        for group in found
    )


def cores_of(name: str, root: Path = HERE) -> tuple[int, ...]:
    """Return the cores of the strongest ("big") or weakest ("little") cluster; () for "all" and "".

    Raises UnknownName for another name. Raises InvalidValue if all cores are alike or this system cannot pin processes.
    """
    if name in ("", "all"):
        return ()
    if name not in CLUSTER_NAMES:
        raise UnknownName("cluster", name, CLUSTER_NAMES)
    if sys.platform != "linux":
        raise InvalidValue(
            f"--cluster {name}: this system pins no process to cores (macOS chooses them by quality of service); "
            "leave --cluster out"
        )
    found = clusters(root)
    if len(found) < 2:
        what = f"{len(found[0].cores)} cores of one kind" if found else "no list of its cores in /sys"
        raise InvalidValue(f"--cluster {name}: this machine has {what}; leave --cluster out")
    return found[0 if name == "big" else -1].cores


def pin(cores: Sequence[int]) -> None:
    """Pin this thread, and every thread that it starts from now on, to these cores. Raises EffbenchError if that
    fails.
    """
    if sys.platform != "linux":
        raise EffbenchError("this system pins no process to cores; leave --cluster out")
    wanted = set(cores)
    try:
        os.sched_setaffinity(0, wanted)
    except OSError as error:
        raise EffbenchError(
            f"this process may not run on cores {core_ranges(cores)} ({error.strerror or error}); check taskset, "
            "cgroup cpusets and offline cores, or leave --cluster out"
        ) from None
    given = os.sched_getaffinity(0)
    if given != wanted:
        raise EffbenchError(
            f"asked for cores {core_ranges(cores)}, the system gives {core_ranges(sorted(given))}; check taskset and "
            "cgroup cpusets, or leave --cluster out"
        )


def core_ranges(cores: Sequence[int]) -> str:
    """Format core numbers as the kernel does: ``0-3,6``."""
    runs: list[list[int]] = []
    for core in cores:
        if runs and core == runs[-1][-1] + 1:
            runs[-1].append(core)
        else:
            runs.append([core])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
