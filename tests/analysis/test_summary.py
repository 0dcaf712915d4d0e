"""Estimates from raw blocks: known ratios are recovered, disturbed blocks are excluded in pairs, flags have causes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from runs import CELLS, run_of, with_blocks

from effbench.analysis.summary import NO_DEVICE_TIME, paired_ratio, summarise, undisturbed_rounds
from effbench.core.run import Launch, Run, Timing, Warmup

pytestmark = pytest.mark.quick


def test_known_ratios_come_back_with_intervals_that_hold_them() -> None:
    cells = summarise(run_of(dict(zip(CELLS, (0.01, 0.013, 0.02), strict=True))))
    assert [cell.ratio.point for cell in cells if cell.ratio] == pytest.approx([1.0, 1.3, 2.0], rel=2e-3)
    for cell, truth in zip(cells[1:], (1.3, 2.0), strict=True):
        assert cell.ratio and cell.ratio.low and cell.ratio.high
        assert cell.ratio.low <= truth <= cell.ratio.high
        assert cell.ratio.n == 5
    assert cells[0].latency and cells[0].latency.point == pytest.approx(0.01, rel=2e-3)
    assert cells[0].throughput == pytest.approx(100, rel=2e-3)
    assert cells[0].ratio and cells[0].ratio.low is None, "the reference is 1 by definition, not by measurement"
    assert all(not cell.flags and cell.set_aside == 0 for cell in cells)


def test_a_disturbed_block_is_set_aside_with_its_partner() -> None:
    """Every third block of the reference took 10x because of steal: the ratio must not notice, the count must."""
    run = run_of(dict(zip(CELLS, (0.01, 0.013, 0.02), strict=True)))
    count = iter(range(10**6))

    def steal(timing: Timing) -> Timing:
        if next(count) % 12:
            return timing
        return replace(timing, wall_ns=timing.wall_ns * 10, cpu_ns=(timing.cpu_ns or 0) * 10, flags=("steal",))

    disturbed = with_blocks(run, CELLS[0], steal)
    cells = summarise(disturbed)
    assert cells[0].set_aside == 5 and cells[1].set_aside == 0
    assert cells[1].ratio and cells[1].ratio.point == pytest.approx(1.3, rel=2e-3)
    assert cells[0].notes == () and cells[0].disturbed == {"steal": 5}
    pairs = undisturbed_rounds(disturbed.results[0]).keys() & undisturbed_rounds(disturbed.results[1]).keys()
    assert len(pairs) == 55


def test_slow_blocks_without_a_cause_stay() -> None:
    """Rejection by value is forbidden: a bimodal cell keeps its slow mode."""
    run = run_of(dict(zip(CELLS, (0.01, 0.013, 0.02), strict=True)))
    slow = with_blocks(run, CELLS[1], lambda timing: replace(timing, cpu_ns=(timing.cpu_ns or 0) * 3))
    ratio = summarise(slow)[1].ratio
    assert ratio and ratio.point == pytest.approx(3.9, rel=5e-3)


def test_flags_name_their_causes() -> None:
    run = run_of(dict(zip(CELLS, (0.01, 0.013, 0.02), strict=True)))
    contaminated = with_blocks(run, CELLS[1], lambda timing: replace(timing, flags=("waited for a core",)))
    assert summarise(contaminated)[1].flags == ("contaminated",)
    ratio = summarise(contaminated)[1].ratio
    assert ratio and ratio.point == pytest.approx(1.3, rel=2e-3), "labelled, but still a number"
    assert summarise(contaminated)[1].set_aside == 0, "setting everything aside would leave nothing"
    restless = {CELLS[2]: Warmup(CELLS[2], 9, 1.5, False)}
    unsteady = replace(run, launches=(*run.launches[:4], replace(run.launches[4], warmups=restless)))
    assert summarise(unsteady)[2].flags == ("not steady",)
    host = replace(run, launches=tuple(Launch(n, n, probes={CELLS[1]: {"bound": "host"}}) for n in range(5)))
    assert summarise(host)[1].flags == ("host-bound",)
    assert summarise(host)[1].bound == "host" and summarise(host)[0].bound is None
    faults = with_blocks(run, CELLS[0], lambda timing: replace(timing, minor_faults=2080))
    assert summarise(faults)[0].notes == ("5.2e+02 page faults a call",)


def test_the_clock_of_the_run_decides_the_ratio() -> None:
    run = run_of(dict(zip(CELLS, (0.01, 0.013, 0.02), strict=True)))
    slept = with_blocks(run, CELLS[1], lambda timing: replace(timing, wall_ns=timing.wall_ns * 2))
    on_cpu, on_wall = summarise(slept)[1], summarise(replace(slept, clock="wall"))[1]
    assert on_cpu.ratio and on_cpu.ratio.point == pytest.approx(1.3, rel=2e-3)
    assert on_wall.ratio and on_wall.ratio.point == pytest.approx(2.6, rel=2e-3)
    assert on_cpu.latency and on_cpu.latency.point == pytest.approx(0.026, rel=2e-3), "latency is always wall time"


def with_device_times(seconds: dict[str, float], share: float = 1.0) -> Run:
    """A GPU's run: device times a tenth of the wall's, in so large a share of the last cell's blocks."""
    run = replace(run_of(seconds), clock="device")
    for cell in CELLS:
        run = with_blocks(run, cell, lambda timing: replace(timing, device_ns=timing.wall_ns // 10, cpu_ns=None))
    last = run.results[2]
    kept = round(share * len(last.blocks))
    blocks = tuple(
        replace(block, timing=replace(block.timing, device_ns=block.timing.device_ns if place < kept else None))
        for place, block in enumerate(last.blocks)
    )
    return replace(run, results=(*run.results[:2], replace(last, blocks=blocks)))


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_a_cell_without_device_time_is_compared_by_the_wall_clock_with_its_reference(share: float) -> None:
    """A ratio compares like with like: 0.02 s of wall over 0.002 s of device would be 20."""
    _, other, waits = summarise(with_device_times(dict(zip(CELLS, (0.01, 0.013, 0.02), strict=True)), share))
    assert waits.ratio and waits.ratio.point == pytest.approx(2.0, rel=5e-3)
    assert waits.busy and waits.busy.point == pytest.approx(0.02, rel=5e-3)
    assert waits.flags == (NO_DEVICE_TIME,)
    assert other.ratio and other.ratio.point == pytest.approx(1.3, rel=5e-3)
    assert other.busy and other.busy.point == pytest.approx(0.0013, rel=5e-3) and other.flags == other.notes == ()


def test_a_block_without_device_time_now_and_then_changes_no_clock() -> None:
    cell = summarise(with_device_times(dict(zip(CELLS, (0.01, 0.013, 0.02), strict=True)), 0.8))[2]
    assert cell.flags == () and cell.busy and cell.busy.point == pytest.approx(0.002, rel=5e-3)
    assert cell.ratio and cell.ratio.point == pytest.approx(2.0, rel=5e-3)


def test_where_the_reference_has_no_device_time_its_group_says_so() -> None:
    run = with_device_times(dict(zip(CELLS, (0.01, 0.013, 0.02), strict=True)))
    run = with_blocks(run, CELLS[0], lambda timing: replace(timing, device_ns=None, wall_ns=timing.wall_ns * 2))
    first, other, _ = summarise(run)
    assert first.flags == (NO_DEVICE_TIME,)
    assert other.ratio and other.ratio.point == pytest.approx(0.65, rel=5e-3)
    assert other.notes == ("ratio by the wall clock, as its reference has no device time",)


def test_host_bound_forbids_nothing_where_the_device_is_timed() -> None:
    run = with_device_times(dict(zip(CELLS, (0.01, 0.013, 0.02), strict=True)))
    run = replace(run, launches=tuple(Launch(n, n, probes={CELLS[1]: {"bound": "host"}}) for n in range(5)))
    cell = summarise(run)[1]
    assert (cell.flags, cell.notes, cell.bound) == ((), ("host-bound, timed on the device",), "host")
    assert summarise(replace(run, clock="wall"))[1].flags == ("host-bound",)


def test_a_skipped_cell_keeps_its_row_and_reason() -> None:
    run = run_of(dict(zip(CELLS, (0.01, 0.013, 0.02), strict=True)))
    results = (run.results[0], replace(run.results[1], blocks=(), skipped="out of memory: 12 GB"), run.results[2])
    cell = summarise(replace(run, results=results))[1]
    assert cell.skipped == "out of memory: 12 GB"
    assert cell.latency is None and cell.ratio is None and cell.throughput is None


def test_no_common_round_no_ratio() -> None:
    run = run_of(dict(zip(CELLS, (0.01, 0.013, 0.02), strict=True)))
    rounds = undisturbed_rounds(run.results[0])
    assert paired_ratio(rounds, {}, "cpu") is None
    assert paired_ratio(rounds, rounds, "device") is None, "a clock that was absent is no clock"
