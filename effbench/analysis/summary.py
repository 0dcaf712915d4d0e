"""Estimate latency, ratios and flags of each cell from its timed blocks, for tables, figures and verdicts. No torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from effbench import paper
from effbench.analysis import cpu_share
from effbench.analysis.cell_summary import CellSummary
from effbench.analysis.cpu_share import CpuShare
from effbench.analysis.intervals import Intervals
from effbench.analysis.run_sittings import RunSittings
from effbench.core.estimate import Estimate
from effbench.core.run import Block, Result, Run, Timing
from effbench.core.study import Cell
from effbench.host.emulation import EMULATED, is_emulated

CONTAMINATED_SHARE = 0.10
"""A cell is contaminated if more than this share of its blocks was disturbed. A single disturbed block of fewer than
ten does not count: it is only dropped."""

FAULTS_PER_CALL = 0.01
"""With more minor page faults per call than this after warm-up, the timing includes allocator work. For calls longer
than `FAULTS_CALL_S` the limit grows in proportion, since a fault takes the same time whatever the call's length."""

FAULTS_CALL_S = 0.005


PREPARED = (
    "prepare_s",
    "load_s",
    "artefact_bytes",
    "pieces",
    "operators",
    "outside",
    "threads",
    "output_error",
    "output_tolerance",
    "quantisation",
    "cached",
)
"""Facts about a prepared model that tables show. The run file holds all facts."""

NO_DEVICE_TIME = "no device time, so by the wall clock"
"""Flag of a network that synchronises in its forward pass: the host cannot run ahead of the GPU, so device events do
not give its time."""

REFERENCE_MISSES_CPU_TIME = "the CPU time of its reference misses work"

Rounds = Mapping[tuple[int, int], Block]
"""The undisturbed blocks of one cell by (launch, round)."""


def summarise(run: Run) -> tuple[CellSummary, ...]:
    """Summarise every cell of the run, in the order of the study."""
    undisturbed = {result.cell.id: undisturbed_rounds(result) for result in run.results}
    sittings = RunSittings.of(run)
    cells = tuple(_summarise(run, result, undisturbed, sittings) for result in run.results)
    return tuple(map(_without_times, cells)) if is_emulated(run.environment) else cells


def rounds_of(run: Run) -> dict[str, Rounds]:
    """Return the blocks that estimates use, by cell: those of `undisturbed_rounds`, and none for an emulated run."""
    return {
        result.cell.id: {} if is_emulated(run.environment) else undisturbed_rounds(result) for result in run.results
    }


def undisturbed_rounds(result: Result) -> dict[tuple[int, int], Block]:
    """Return the cell's blocks that no outside cause disturbed. Blocks are dropped by cause, never by value.

    A contaminated cell keeps all its blocks, so that it still shows a number. Its flag keeps it from confirming a
    claim.
    """
    keep_all = is_contaminated(result)
    return {(block.launch, block.round): block for block in result.blocks if keep_all or not block.timing.flags}


def is_contaminated(result: Result) -> bool:
    """Return whether outside causes disturbed more than a tenth of the cell's blocks."""
    every, disturbed = len(result.blocks), sum(1 for block in result.blocks if block.timing.flags)
    return are_too_many(disturbed, every)


def are_too_many(disturbed: int, every: int) -> bool:
    """Return whether `disturbed` is more than a tenth of `every`. One of fewer than ten is not, unless it is the only
    one.
    """
    return disturbed > max(1.0, CONTAMINATED_SHARE * every) or disturbed == every > 0


def paired_ratio(
    slower: Rounds, faster: Rounds, clock: str, confidence: float = 0.95, intervals: Intervals | None = None
) -> Estimate | None:
    """Return the time of one cell over another's, paired within rounds in which neither was disturbed.

    None without such a round. `intervals` compute the interval; by default it holds within the sitting of the run.
    """
    by_launch: dict[int, list[float]] = {}
    for key in sorted(slower.keys() & faster.keys()):
        above, below = slower[key].per_call_s(clock), faster[key].per_call_s(clock)
        if above and below:
            by_launch.setdefault(key[0], []).append(math.log(above / below))
    return (intervals or Intervals()).over(by_launch, confidence)


def ratio_of(
    sittings: RunSittings, slower: Rounds, faster: Rounds, clock: str, confidence: float = 0.95
) -> Estimate | None:
    """Return `paired_ratio` with an interval that holds on other sittings, and whenever the run stopped."""
    cells = [block.cell for rounds in (slower, faster) for block in [*rounds.values()][:1]]
    return paired_ratio(slower, faster, clock, confidence, sittings.ratio(*cells)) if len(cells) == 2 else None


def wall_ratio_of(
    sittings: RunSittings, slower: Rounds, faster: Rounds, clock: str, confidence: float = 0.95
) -> Estimate | None:
    """Return the ratio of wall times where CPU time misses work of one of the two cells.

    None where the ratio is not of CPU time, or both clocks agree.
    """
    if clock != "cpu" or all(share is None or share.is_usual for share in map(share_of, (slower, faster))):
        return None
    return ratio_of(sittings, slower, faster, "wall", confidence)


def ratios_to(
    run: Run,
    sittings: RunSittings,
    cell: Cell,
    reference: Cell,
    undisturbed: Mapping[str, Rounds],
    confidence: float = 0.95,
) -> tuple[Estimate | None, Estimate | None]:
    """Return the time of a cell over its reference's, per image: on the run's clock, and by the wall clock where CPU
    time misses work of one of the two.
    """
    sides = undisturbed[cell.id], undisturbed[reference.id]
    clock = clock_of(run.clock, *sides)
    ratio = per_image(ratio_of(sittings, *sides, clock, confidence), reference, cell)
    return ratio, per_image(wall_ratio_of(sittings, *sides, clock, confidence), reference, cell)


def time_of(sittings: RunSittings, rounds: Rounds, clock: str) -> Estimate | None:
    """Return the seconds per call of a cell, with an interval that holds at 95 % on other sittings, whenever the run
    stopped.
    """
    by_launch: dict[int, list[float]] = {}
    for (launch, _), block in sorted(rounds.items()):
        seconds = block.per_call_s(clock)
        if seconds:
            by_launch.setdefault(launch, []).append(math.log(seconds))
    figure = "latency" if clock == "wall" else "busy"
    cell = next((block.cell for block in rounds.values()), "")
    return sittings.time(cell, figure).over(by_launch)


def share_of(rounds: Rounds) -> CpuShare | None:
    """Return CPU time over wall time of a cell, from its undisturbed blocks."""
    by_launch: dict[int, list[Timing]] = {}
    for (launch, _), block in rounds.items():
        by_launch.setdefault(launch, []).append(block.timing)
    return cpu_share.of_launches(by_launch.values())


def clock_of(clock: str, *cells: Rounds) -> str:
    """Return the clock on which these cells can be compared.

    That is the run's clock, or the wall clock where one of the cells has no time on the run's clock in most of its
    blocks. A ratio must use the same clock for both cells.
    """
    timed = (sum(block.per_call_s(clock) is not None for block in rounds.values()) for rounds in cells)
    return clock if all(2 * some >= len(rounds) for some, rounds in zip(timed, cells, strict=True)) else "wall"


def _summarise(run: Run, result: Result, undisturbed: Mapping[str, Rounds], sittings: RunSittings) -> CellSummary:
    cell, rounds = result.cell, undisturbed[result.cell.id]
    own_clock = clock = clock_of(run.clock, rounds)
    latency = time_of(sittings, rounds, "wall")
    busy = time_of(sittings, rounds, own_clock if run.clock == "device" else run.clock)
    reference = run.experiment.reference_of(cell.case)
    share = share_of(rounds)
    ratio = wall = None
    if reference is not None and reference.id == cell.id:
        ratio = Estimate(1.0, n=len({launch for launch, _ in rounds})) if rounds else None
    elif reference is not None and reference.id in undisturbed:
        clock = clock_of(run.clock, rounds, undisturbed[reference.id])
        ratio, wall = ratios_to(run, sittings, cell, run.result(reference.id).cell, undisturbed)
    speed, reference_speed = _paper_speed(run, cell), None
    if reference is not None:
        reference_speed = _paper_speed(run, Cell(reference, cell.device))
    notes = () if wall is None or share is None or not share.is_usual else (REFERENCE_MISSES_CPU_TIME,)
    bound = _bound(run, cell.id)
    speedup, speedup_wall = _speedup(run, cell, undisturbed, sittings)
    return CellSummary(
        cell=cell,
        cost=result.cost,
        latency=latency,
        busy=busy,
        ratio=ratio,
        reference=None if reference is None else reference.id,
        throughput=None if latency is None else cell.batch / latency.point,
        paper_speed=None if speed is None else speed[0],
        paper_unit=None if speed is None else speed[1],
        paper_ratio=reference_speed[0] / speed[0] if speed and reference_speed else None,
        speedup=speedup,
        prepared=_prepared(run, cell.id),
        metrics=result.metrics,
        full_model=None if run.experiment.paper else paper.full_model(cell.case.model, cell.case.input_shape),
        bound=bound,
        bounds_s=result.bounds_s,
        flags=_flags(run, result, bound, own_clock, share),
        notes=(*_notes(run, result, bound, own_clock, clock, share), *notes),
        launches=len({launch for launch, _ in rounds}),
        blocks=len(result.blocks),
        set_aside=len(result.blocks) - len(rounds),
        disturbed=Counter(flag for block in result.blocks for flag in block.timing.flags),
        skipped=result.skipped,
        cpu=share,
        ratio_wall=wall,
        speedup_wall=speedup_wall,
    )


def per_image(ratio: Estimate | None, reference: Cell, cell: Cell) -> Estimate | None:
    """Turn the ratio of call times of `cell` over `reference` into one of times per image.

    The two are the same unless the batches differ.
    """
    if ratio is None or reference.batch == cell.batch:
        return ratio
    images = reference.batch / cell.batch
    low, high = (None if bound is None else bound * images for bound in (ratio.low, ratio.high))
    return replace(ratio, point=ratio.point * images, low=low, high=high)


def _without_times(cell: CellSummary) -> CellSummary:
    """Return the cell without timings, as for an emulated run, whose costs are valid and timings are not."""
    bare = replace(cell, latency=None, busy=None, ratio=None, speedup=None, throughput=None, bound=None, bounds_s=None)
    bare = replace(bare, cpu=None, ratio_wall=None, speedup_wall=None)
    counted = {name: value for name, value in cell.prepared.items() if not name.endswith("_s")}
    return replace(bare, prepared=counted, flags=(EMULATED,) if cell.blocks else ())


def _speedup(
    run: Run, cell: Cell, undisturbed: Mapping[str, Rounds], sittings: RunSittings
) -> tuple[Estimate | None, Estimate | None]:
    """Return the speed-up over eager on the run's clock, and on the wall clock where the two clocks disagree."""
    labels = {**cell.case.labels, "runtime": "eager"}
    twin = next((item.cell.id for item in run.results if item.cell.case.labels == labels), None)
    if twin in (None, cell.id):
        return None, None
    sides = undisturbed[str(twin)], undisturbed[cell.id]
    clock = clock_of(run.clock, *sides)
    return ratio_of(sittings, *sides, clock), wall_ratio_of(sittings, *sides, clock)


def _prepared(run: Run, cell: str) -> dict[str, Any]:
    """Return the facts of the first launch, which is the one that exported and compiled."""
    probes = (launch.probes[cell] for launch in run.launches if cell in launch.probes)
    return {name: value for name, value in next(probes, {}).items() if name in PREPARED}


def _paper_speed(run: Run, cell: Cell) -> tuple[float, str] | None:
    # The paper times inference only, at one batch size.
    if cell.mode != "infer" or cell.case.batch is not None:
        return None
    if run.experiment.paper is not None:
        return paper.speed(run.experiment.paper, cell.case.labels)
    found = paper.full_model(cell.case.model, cell.case.input_shape)
    on_gpu = cell.device.startswith("cuda")
    speed = None if found is None else found.gpu_speed if on_gpu else found.arm_speed
    return None if speed is None else (speed, "batches/s" if on_gpu else "images/s")


def _bound(run: Run, cell: str) -> str | None:
    """Return "host" or "device", whichever most launches found to limit the cell; None where the device cannot tell."""
    seen = Counter(launch.probes[cell].get("bound") for launch in run.launches if cell in launch.probes)
    seen.pop(None, None)
    return seen.most_common(1)[0][0] if seen else None


def _flags(run: Run, result: Result, bound: str | None, clock: str, share: CpuShare | None) -> tuple[str, ...]:
    flags = []
    if clock != run.clock:
        flags.append(NO_DEVICE_TIME)
    if bound == "host" and clock != "device":
        flags.append("host-bound")
    if is_contaminated(result):
        flags.append("contaminated")
    if clock == "cpu" and share is not None and not share.is_usual:
        flags.append(share.flag)
    warmups = [launch.warmups[result.cell.id] for launch in run.launches if result.cell.id in launch.warmups]
    if any(not warmup.steady for warmup in warmups):
        flags.append("not steady")
    return tuple(flags)


def process_change_notes(run: Run, cell: str) -> tuple[str, ...]:
    """Describe what the network does to the whole process: settings that building it changed (they were restored),
    and explicit garbage collection. Empty for most networks.
    """
    probes = [launch.probes.get(cell, {}) for launch in run.launches]
    told = (probe.get(name) for name in ("switches", "garbage") for probe in probes)
    return tuple(dict.fromkeys(filter(None, told)))


def side_effect_notes(run: Run, cell: str) -> tuple[str, ...]:
    """Return notes on side effects of the network, such as keeping state, and on the dtype it is measured in."""
    told = [launch.probes.get(cell, {}).get("notes") for launch in run.launches]
    return tuple(dict.fromkeys(note for each in told if each for note in each.split("; ")))


def _notes(
    run: Run, result: Result, bound: str | None, own_clock: str, clock: str, share: CpuShare | None
) -> tuple[str, ...]:
    calls = sum(block.timing.calls for block in result.blocks)
    faults = sum(block.timing.minor_faults for block in result.blocks)
    notes = []
    if bound == "host" and own_clock == "device":
        notes.append("host-bound, timed on the device")
    if clock != own_clock:
        notes.append("ratio by the wall clock, as its reference has no device time")
    if any(launch.probes.get(result.cell.id, {}).get("output") for launch in run.launches):
        notes.append("its output is not finite")
    if own_clock == "cpu" and share is not None and not share.is_usual:
        notes.append(share.amount)
    notes += process_change_notes(run, result.cell.id)
    notes += side_effect_notes(run, result.cell.id)
    call_s = sum(block.timing.wall_ns for block in result.blocks) * 1e-9 / max(calls, 1)
    if calls and faults / calls > FAULTS_PER_CALL * max(1.0, call_s / FAULTS_CALL_S):
        notes.append(f"{faults / calls:.2g} page faults a call")
    return tuple(notes)
