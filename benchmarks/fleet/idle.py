"""What an idle worker costs its machine."""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks.fleet.processes import Spent, local_fleet, spent
from benchmarks.fleet.record import Outcome, Target

CPU_SHARE, WAKE_UPS, RESIDENT_MB = 0.005, 10.0, 100.0


def measure(seconds: float = 60.0, settle_s: float = 5.0) -> Outcome:
    """Watch a scheduler and one worker, both idle, and beside them a worker with dask's own settings."""
    with tempfile.TemporaryDirectory(prefix="effbench-fleet-") as folder, local_fleet(Path(folder)) as fleet:
        pids = {"scheduler": fleet.scheduler, "worker": fleet.add_worker("idle")}
        before, after, passed_s = _watch(pids, seconds, settle_s)
        # Afterwards: a second worker is work for the scheduler.
        pid = {"worker with dask's settings": fleet.add_default_worker()}
        before_default, after_default, default_s = _watch(pid, min(seconds, 20.0), settle_s)
    shares = {who: (after[who].cpu_s - before[who].cpu_s) / passed_s for who in pids}
    wakes = {who: (after[who].wake_ups - before[who].wake_ups) / passed_s for who in pids}
    resident_mb = after["worker"].resident_bytes * 1e-6
    (who,) = pid
    share = (after_default[who].cpu_s - before_default[who].cpu_s) / default_s
    wake = (after_default[who].wake_ups - before_default[who].wake_ups) / default_s
    targets = [
        Target(
            "CPU time of an idle worker",
            f"<= {CPU_SHARE:.1%} of a core",
            f"{shares['worker']:.2%}",
            shares["worker"] <= CPU_SHARE,
        ),
        Target("its wake-ups", f"<= {WAKE_UPS:g} /s", f"{wakes['worker']:.1f} /s", wakes["worker"] <= WAKE_UPS),
        Target("its resident memory", f"<= {RESIDENT_MB:g} MB", f"{resident_mb:.0f} MB", resident_mb <= RESIDENT_MB),
        Target(
            "the scheduler",
            "",
            f"{shares['scheduler']:.2%} of a core, {wakes['scheduler']:.1f} wake-ups/s, "
            f"{after['scheduler'].resident_bytes * 1e-6:.0f} MB",
        ),
        Target(
            "a worker with dask's settings",
            "",
            f"{share:.2%} of a core, {wake:.1f} wake-ups/s, {after_default[who].resident_bytes * 1e-6:.0f} MB",
        ),
    ]
    raw = {
        **{name: {"before": asdict(before[name]), "after": asdict(after[name]), "seconds": passed_s} for name in pids},
        who: {"before": asdict(before_default[who]), "after": asdict(after_default[who]), "seconds": default_s},
    }
    return Outcome(targets, {"seconds": seconds, "settle_s": settle_s}, raw)


def _watch(pids: dict[str, int], seconds: float, settle_s: float) -> tuple[dict[str, Spent], dict[str, Spent], float]:
    time.sleep(settle_s)
    before, begun = {who: spent(pid) for who, pid in pids.items()}, time.monotonic()
    time.sleep(seconds)
    passed_s = time.monotonic() - begun
    return before, {who: spent(pid) for who, pid in pids.items()}, passed_s
