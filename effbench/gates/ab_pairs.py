"""Read an A/B measurement: two runs in one folder, paired block by block. Without torch.

``DIR/baseline/run.jsonl`` and ``DIR/candidate/run.jsonl`` are ordinary runs. Blocks of the same cell, launch and round
were measured one right after the other, so disturbances of both cancel in their ratio.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from effbench.analysis import cpu_share
from effbench.analysis.cpu_share import CpuShare
from effbench.core.errors import CorruptRun, StorageError
from effbench.core.run import Block, Launch, Result, Run, Timing, Warmup
from effbench.host.emulation import is_emulated
from effbench.runs import run_file
from effbench.runs.run_file import RunWriter

SIDES = ("baseline", "candidate")
_WARMUP = tuple(field.name for field in fields(Warmup))


@dataclass(frozen=True)
class Pair:
    """The same cells on both sides. Cells are matched by id."""

    baseline: Run
    candidate: Run

    @property
    def clock(self) -> str:
        return self.candidate.clock

    @property
    def cells(self) -> tuple[str, ...]:
        """Ids of the cells of either side, the candidate's first, in study order."""
        return tuple(dict.fromkeys(result.cell.id for run in (self.candidate, self.baseline) for result in run))


@dataclass(frozen=True)
class Round:
    """Seconds per call of one cell on both sides in one round. `flags` name what disturbed either block.

    `timings` are those of both blocks, the baseline's first; None where only the seconds are known.
    """

    launch: int
    round: int
    baseline_s: float
    candidate_s: float
    flags: tuple[str, ...] = ()
    timings: tuple[Timing, Timing] | None = None

    @property
    def log_ratio(self) -> float:
        return math.log(self.candidate_s / self.baseline_s)


class SideWriter(RunWriter):
    """Write the run of one side, and keep its blocks and warm-ups in memory for the looks of a gate.

    So the growing file need not be read again at every look.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._run: Run | None = None
        self._results: dict[str, Result] = {}
        self._blocks: dict[str, list[Block]] = {}
        self._warmups: dict[int, dict[str, Warmup]] = {}

    def append(self, kind: str, **values: Any) -> None:
        super().append(kind, **values)
        if kind == "launch":
            self._warmups[values["launch"]] = {}
        elif kind == "warmup":
            warm = Warmup(**{name: values[name] for name in _WARMUP if name in values})
            self._warmups[values["launch"]][warm.cell] = warm

    def header(self, run: Run, version: str) -> None:
        super().header(run, version)
        self._run = run

    def cell(self, result: Result) -> None:
        super().cell(result)
        self._results[result.cell.id] = result

    def block(self, block: Block) -> None:
        super().block(block)
        self._blocks.setdefault(block.cell, []).append(block)

    def run(self) -> Run:
        """The run measured so far: conditions, blocks and warm-ups, as `runs.run_file.load` would read them."""
        assert self._run is not None, "a launch writes the header"
        return replace(
            self._run,
            results=tuple(
                replace(each, blocks=tuple(self._blocks.get(name, ()))) for name, each in self._results.items()
            ),
            launches=tuple(Launch(number, number, warmups=warmed) for number, warmed in self._warmups.items()),
        )


def load(directory: str | Path) -> Pair:
    """The pair stored in a folder. Raises StorageError, CorruptRun."""
    folder = Path(directory)
    missing = [side for side in SIDES if not (folder / side / run_file.RUN_FILE).is_file()]
    if missing:
        raise StorageError(
            f"there is no pair of runs in {folder}: it lacks {missing[0]}/{run_file.RUN_FILE}; "
            "name a folder that `effbench check --against` or `effbench aa` wrote"
        )
    pair = Pair(*[run_file.load(folder / side) for side in SIDES])
    if pair.baseline.clock != pair.candidate.clock:
        raise CorruptRun(f"{folder}: its two sides were measured on different clocks, so they cannot be paired")
    return pair


def rounds(pair: Pair, cell: str, clock: str | None = None) -> tuple[Round, ...]:
    """Every round in which both sides have a block of this cell, in order.

    Empty for a cell that a side lacks, and for emulated runs. `clock` defaults to the pair's. Rounds without a time on
    this clock are left out.
    """
    read = clock or pair.clock
    if any(is_emulated(run.environment) for run in (pair.baseline, pair.candidate)):
        return ()
    sides = [_blocks(run, cell) for run in (pair.baseline, pair.candidate)]
    found = []
    for key in sorted(sides[0].keys() & sides[1].keys()):
        before, after = (side[key] for side in sides)
        times = before.per_call_s(read), after.per_call_s(read)
        if times[0] and times[1]:
            flags = tuple(dict.fromkeys((*before.timing.flags, *after.timing.flags)))
            found.append(Round(*key, times[0], times[1], flags, (before.timing, after.timing)))
    return tuple(found)


def log_ratios_by_launch(found: tuple[Round, ...], *, keep_disturbed: bool = False) -> list[list[float]]:
    """The log ratios of undisturbed rounds, one list a launch. `keep_disturbed` includes the disturbed rounds."""
    launches: dict[int, list[float]] = {}
    for item in found:
        if keep_disturbed or not item.flags:
            launches.setdefault(item.launch, []).append(item.log_ratio)
    return list(launches.values())


def cpu_shares(found: tuple[Round, ...]) -> tuple[CpuShare | None, CpuShare | None]:
    """CPU time over wall time in the undisturbed rounds, for the baseline and the candidate."""
    launches: dict[int, list[tuple[Timing, Timing]]] = {}
    for item in found:
        if item.timings is not None and not item.flags:
            launches.setdefault(item.launch, []).append(item.timings)
    before, after = ([[pair[side] for pair in each] for each in launches.values()] for side in (0, 1))
    return cpu_share.of_launches(before), cpu_share.of_launches(after)


def why_clocks_differ(clock: str, shares: Mapping[str, CpuShare | None]) -> str:
    """Why CPU time alone cannot compare these measurements, given their CPU shares by name; "" where it can."""
    if clock != "cpu":
        return ""
    unusual = {name: share for name, share in shares.items() if share is not None and not share.is_usual}
    return "; ".join(f"{name}: {share.flag} ({share.amount})" for name, share in unusual.items())


def _blocks(run: Run, cell: str) -> dict[tuple[int, int], Block]:
    return {(block.launch, block.round): block for result in run if result.cell.id == cell for block in result.blocks}
