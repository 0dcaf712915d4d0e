"""Read the CPU quota of this process's control groups (cgroup version 1 or 2)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from effbench.host.sysfiles import HERE, read_number, read_text


@dataclass(frozen=True)
class Quota:
    """CPU quota of a control group: `cores` (None is unlimited), and how many of its `periods` were `throttled`."""

    cores: float | None = None
    periods: int | None = None
    throttled: int | None = None


def quota(root: Path = HERE) -> Quota | None:
    """Return the tightest CPU quota of this process's control groups; None if there are no control groups.

    All parent groups up to the mount point are read: a container often sees its own group at the top of the mount
    although /proc/self/cgroup names a longer path.
    """
    mount = root / "sys/fs/cgroup"
    lines = [line.split(":", 2) for line in (read_text(root / "proc/self/cgroup") or "").splitlines()]
    places: list[Path] = []
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers == "":
            tops = [mount]
        elif "cpu" in controllers.split(","):
            tops = [mount / controllers, mount / "cpu"]
        else:
            continue
        inner = Path(path.lstrip("/"))
        places += [top / step for top in tops for step in (inner, *inner.parents)]
    if not lines:  # without /proc; a container's own group is at the top of the mount
        places = [mount, mount / "cpu"]
    found = [limit for place in places if (limit := _group_quota(place)) is not None]
    if not found:
        return None
    throttled = max(found, key=lambda limit: limit.throttled or 0)
    tightest = min(limit.cores or float("inf") for limit in found)
    return Quota(tightest if tightest != float("inf") else None, throttled.periods, throttled.throttled)


def _group_quota(group: Path) -> Quota | None:
    limit, stat = read_text(group / "cpu.max"), read_text(group / "cpu.stat")
    if limit is not None:
        amount, _, period = limit.partition(" ")
        micros, length = _int(amount), _int(period or "100000")
        cores = micros / length if micros and length else None  # "max" is no limit
    else:
        micros, length = read_number(group / "cpu.cfs_quota_us"), read_number(group / "cpu.cfs_period_us")
        if micros is None and stat is None:
            return None
        cores = micros / length if micros and length and micros > 0 else None
    counts = dict(line.split(" ", 1) for line in (stat or "").splitlines() if " " in line)
    return Quota(cores, _int(counts.get("nr_periods")), _int(counts.get("nr_throttled")))


def _int(value: str | None) -> int | None:
    return int(value) if value is not None and value.isdigit() else None
