"""The kinds of cores of one processor (big and little), and how this process keeps to one of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from effbench.core.errors import EffbenchError, InvalidValue, UnknownName
from effbench.host.sysfiles import HERE, cpu_list, number, text

WORDS = ("all", "big", "little")

LIKE = 0.9
"""Clocks within this share of each other are of one cluster: boost differs a little between cores of one kind."""


@dataclass(frozen=True)
class Cluster:
    """Cores of one kind. `capacity` is the kernel's, 1024 for the strongest core; `mhz` their highest clock.

    Each is None where the kernel does not say.
    """

    cores: tuple[int, ...]
    capacity: int | None = None
    mhz: float | None = None

    def __str__(self) -> str:
        if self.capacity is not None:
            return f"{len(self.cores)}x{self.capacity}"
        return f"{len(self.cores)}x{self.mhz:g} MHz" if self.mhz else f"{len(self.cores)} cores"


def clusters(root: Path = HERE) -> tuple[Cluster, ...]:
    """The clusters of the processors that are online, the strongest first; one where all are alike or nothing tells.

    By the kernel's ``cpu_capacity``, which weighs clock and architecture; without it (old Android kernels) by the
    highest clock. () without sysfs.
    """
    base = root / "sys/devices/system/cpu"
    cores = cpu_list(text(base / "online")) or tuple(int(path.name[3:]) for path in base.glob("cpu[0-9]*"))
    capacity = {core: number(base / f"cpu{core}/cpu_capacity") for core in cores}
    khz = {core: number(base / f"cpu{core}/cpufreq/cpuinfo_max_freq") or 0 for core in cores}
    by_capacity = None not in capacity.values()
    strength = {core: capacity[core] or 0 if by_capacity else khz[core] for core in cores}
    found: list[list[int]] = []
    for core in sorted(cores, key=lambda core: (-strength[core], core)):
        strongest = strength[found[-1][0]] if found else 0
        if found and strength[core] >= (strongest if by_capacity else LIKE * strongest):
            found[-1].append(core)
        else:
            found.append([core])
    return tuple(
        Cluster(tuple(sorted(group)), capacity[group[0]] if by_capacity else None, khz[group[0]] / 1000 or None)
        for group in found
    )


def cores_of(word: str, root: Path = HERE) -> tuple[int, ...]:
    """The cores that "big" or "little" means here, the strongest or the weakest cluster; () for "all" and "".

    Raises UnknownName for another word, and InvalidValue where cores are all alike or cannot be chosen.
    """
    if word in ("", "all"):
        return ()
    if word not in WORDS:
        raise UnknownName("cluster", word, WORDS)
    if sys.platform != "linux":
        raise InvalidValue(
            f"--cluster {word}: this system pins no process to cores (macOS chooses them by quality of service); "
            "leave --cluster out"
        )
    found = clusters(root)
    if len(found) < 2:
        what = f"{len(found[0].cores)} cores of one kind" if found else "no list of its cores in /sys"
        raise InvalidValue(f"--cluster {word}: this machine has {what}; leave --cluster out")
    return found[0 if word == "big" else -1].cores


def pin(cores: Sequence[int]) -> None:
    """Keep this thread, and every one that it starts from now on, to these cores.

    Raises EffbenchError where the system does not do so.
    """
    if sys.platform != "linux":
        raise EffbenchError("this system pins no process to cores; leave --cluster out")
    wanted = set(cores)
    try:
        os.sched_setaffinity(0, wanted)
    except OSError as error:
        raise EffbenchError(
            f"this process may not run on cores {shown(cores)} ({error.strerror or error}); check taskset, cgroup "
            "cpusets and offline cores, or leave --cluster out"
        ) from None
    given = os.sched_getaffinity(0)
    if given != wanted:
        raise EffbenchError(
            f"asked for cores {shown(cores)}, the system gives {shown(sorted(given))}; check taskset and cgroup "
            "cpusets, or leave --cluster out"
        )


def shown(cores: Sequence[int]) -> str:
    """The kernel's list format: ``0-3,6``."""
    runs: list[list[int]] = []
    for core in cores:
        if runs and core == runs[-1][-1] + 1:
            runs[-1].append(core)
        else:
            runs.append([core])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
