"""Does an idle worker disturb what is measured beside it? Needs a quiet machine."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.fleet.blocks import LAYERS, NULL
from benchmarks.fleet.processes import local_fleet
from benchmarks.fleet.record import Outcome, Target, ratio_interval
from benchmarks.peers.session import ROOT

WITHIN = 0.015
FLAGGED_POINTS = 3.0
NONE, OURS, DEFAULT = "none", "worker", "worker with dask's settings"
WALL, CPU = 1, 2
"""Where a block has its times."""

Window = dict[str, Any]
"""One window: its round, its condition, and its blocks."""


def measure(
    windows: int = 45, window_s: float = 0.8, settle_s: float = 0.25, placements: Sequence[str] = ()
) -> Outcome:
    """Time blocks beside no worker, ours, and one with dask's settings, in shuffled windows, `windows` of each.

    A worker that shall not be there is stopped by a signal, for a few windows at most: it may be silent for a minute.
    Windows are short, since the speed of a machine drifts. Done twice: all on one core, the worst case; and on two.
    """
    usable = sorted(os.sched_getaffinity(0))
    cores = {"one core": usable[:1], "two cores": usable[:2]}
    targets: list[Target] = []
    raw: dict[str, Any] = {}
    for place in placements or cores:
        raw[place] = found = _measure_on(cores[place], windows, window_s, settle_s)
        targets += _targets(place, found)
    settings = {"windows": windows, "window_s": window_s, "settle_s": settle_s, "layers": LAYERS, "cores": cores}
    return Outcome(targets, settings, raw)


def _measure_on(cores: Sequence[int], windows: int, window_s: float, settle_s: float) -> list[Window]:
    generator, found = random.Random(0), []
    with (
        tempfile.TemporaryDirectory(prefix="effbench-fleet-") as folder,
        local_fleet(Path(folder), cores) as fleet,
        _blocks(cores) as blocks,
    ):
        workers = {OURS: fleet.add_worker("beside"), DEFAULT: fleet.add_default_worker()}
        for turn in range(windows):
            for condition in generator.sample((NONE, OURS, DEFAULT), 3):
                for name, pid in workers.items():
                    os.kill(pid, signal.SIGCONT if name == condition else signal.SIGSTOP)
                time.sleep(settle_s)  # a worker that goes on first does what it has missed
                found.append({"round": turn, "condition": condition, "blocks": _ask(blocks, window_s)})
        for pid in workers.values():
            os.kill(pid, signal.SIGCONT)
    return found


@contextmanager
def _blocks(cores: Sequence[int]) -> Iterator[subprocess.Popen[str]]:
    command = ["taskset", "--cpu-list", ",".join(map(str, cores)), sys.executable, "-m", "benchmarks.fleet.blocks"]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            if not process.stdout.readline():  # the sizes of its blocks, once it is warmed up
                raise RuntimeError(f"the process that times blocks ended with {process.wait()}")
            yield process
        finally:
            process.kill()


def _ask(process: subprocess.Popen[str], seconds: float) -> list[list[Any]]:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{seconds}\n")
    process.stdin.flush()
    found: list[list[Any]] = json.loads(process.stdout.readline())
    return found


# --- judge --------------------------------------------------------------------------------------------


def _targets(place: str, windows: Sequence[Window]) -> Iterator[Target]:
    for condition in (OURS, DEFAULT):
        is_judged = condition == OURS and place == "two cores"
        for title, clock in (("CPU time", CPU), ("wall time", WALL)):
            for what, cells in (("two layers", LAYERS), ("null call", (NULL,))):
                ratio, low, high = ratio_interval(_pairs(windows, condition, cells, clock, statistics.median))
                mean, *_ = ratio_interval(_pairs(windows, condition, cells, clock, statistics.fmean))
                is_target = is_judged and cells == LAYERS
                yield Target(
                    f"{place}, {condition}: {title} of a block, {what}, over none",
                    f"within {WITHIN:.1%}" if is_target else "",
                    f"{ratio:.3f} [{low:.3f}, {high:.3f}], of means {mean:.3f}",
                    abs(ratio - 1) <= WITHIN if is_target else None,
                )
        beside, none = _flagged(windows, condition), _flagged(windows, NONE)
        yield Target(
            f"{place}, {condition}: flagged blocks",
            f"+{FLAGGED_POINTS:g} points at most" if is_judged else "",
            f"{beside:.1%}, without {none:.1%}",
            (beside - none) * 100 <= FLAGGED_POINTS if is_judged else None,
        )


def _pairs(
    windows: Sequence[Window], condition: str, cells: Sequence[str], clock: int, centre: Any
) -> list[tuple[float, float]]:
    """Return for each round the time of a block beside the worker and without, over these cells."""
    times: dict[tuple[int, str], float] = {}
    for window in windows:
        of_cell = defaultdict(list)
        for block in window["blocks"]:
            of_cell[block[0]].append(block[clock])
        logs = [math.log(max(centre(of_cell[cell]), 1e-3)) for cell in cells]
        times[window["round"], window["condition"]] = math.exp(math.fsum(logs) / len(logs))
    return [(times[turn, condition], times[turn, NONE]) for turn, found in times if found == condition]


def _flagged(windows: Sequence[Window], condition: str) -> float:
    flags = [
        block[3]
        for window in windows
        if window["condition"] == condition
        for block in window["blocks"]
        if block[0] != NULL
    ]
    return statistics.fmean(flags)
