"""Cells whose CPU time misses work: both clocks are shown, and a verdict needs both."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import measuring
import pytest
import shell
from runs import CELLS, COST, run_of, study, with_blocks

from effbench.analysis import cpu_share, rank_agreement, run_diff, verdicts
from effbench.analysis.cpu_share import EITHER, OTHER_THREADS, SIDE_BY_SIDE, WAITS
from effbench.analysis.summary import REFERENCE_MISSES_CPU_TIME, summarise
from effbench.core.run import Run, Timing
from effbench.devices import _thread_run_delay
from effbench.gates import ab_findings, ab_pairs, alarm_rate, baseline, calibration, decision_rule
from effbench.gates.ab_pairs import Pair
from effbench.gates.decision_rule import CellOutcome, Gate, Rule
from effbench.gates.evidence import Evidence
from effbench.gates.result import Finding
from effbench.pytest_plugin import Speed
from effbench.report import json_document, text
from effbench.report.cell_row import cell_row
from effbench.report.tables.diff import diff_rows
from effbench.report.tables.study import study_rows
from effbench.report.tables.table_model import render_markdown
from effbench.report.tables.verdicts import verdict_rows
from effbench.runs import run_file

FIRST, SECOND, THIRD = CELLS
TIMES = {FIRST: 1e-3, SECOND: 2e-3, THIRD: 3e-3}
MS = 1_000_000


def run(seed: int = 0, **options: object) -> Run:
    return run_of(TIMES, seed=seed, noise=0.002, launch_noise=0.0005, **options)  # type: ignore[arg-type]


def scaled(made: Run, cell: str, cpu: float = 1.0, wall: float = 1.0) -> Run:
    """The run with this cell's two clocks lengthened each by a factor."""
    return with_blocks(made, cell, lambda timing: stretched(timing, cpu, wall))


def stretched(timing: Timing, cpu: float, wall: float) -> Timing:
    assert timing.cpu_ns is not None
    return replace(timing, cpu_ns=round(timing.cpu_ns * cpu), wall_ns=round(timing.wall_ns * wall))


# --- one cell ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timing", "share"),
    [
        (Timing(1, 10 * MS, 10 * MS), 1.0),
        (Timing(1, 10 * MS, 2 * MS), 0.2),
        (Timing(1, 10 * MS, 20 * MS), 2.0),
        (Timing(1, 10 * MS, 5 * MS, run_delay_ns=5 * MS), 1.0),
        (Timing(1, 10 * MS, 4 * MS, run_delay_ns=5 * MS), 0.8),
        (Timing(1, 10 * MS, 9 * MS, steal_ns=10 * MS), 1.0),
        (Timing(1, 10 * MS, 10 * MS, run_delay_ns=30 * MS, steal_ns=10 * MS), 1.0),
        (Timing(1, 10 * MS, 0), None),
        (Timing(1, 0, 0), None),
        (Timing(1, 10 * MS, None, device_ns=5), None),
    ],
    ids=[
        "alone",
        "waits",
        "two threads",
        "a busy machine",
        "busy and waits",
        "a tick of steal",
        "more than it took",
        "no tick of the CPU clock",
        "nothing",
        "no CPU clock",
    ],
)
def test_time_without_a_core_is_not_counted_and_explains_no_more_than_is_missing(timing: Timing, share: float) -> None:
    assert cpu_share.of_block(timing) == (None if share is None else pytest.approx(share))


@pytest.mark.parametrize(
    ("cpu", "process", "flag"),
    [
        (10.0, 10.0, ""),
        (9.1, 9.1, ""),
        (10.0, 20.0, ""),
        (0.2, 10.0, OTHER_THREADS),
        (0.2, 5.2, OTHER_THREADS),
        (0.2, 0.3, WAITS),
        (8.8, 8.8, WAITS),
        (0.2, None, EITHER),
        (20.0, 20.0, SIDE_BY_SIDE),
    ],
)
def test_what_the_clock_misses_is_named(cpu: float, process: float | None, flag: str) -> None:
    timing = Timing(1, 10 * MS, round(cpu * MS), process_ns=None if process is None else round(process * MS))
    found = cpu_share.of_launches([[timing] * 3] * 2)
    assert found is not None and found.flag == flag and found.is_usual == (not flag)


def test_one_odd_block_or_launch_is_no_odd_cell() -> None:
    usual, odd = Timing(1, 10 * MS, 10 * MS), Timing(1, 10 * MS, 1 * MS)
    for launches in ([[usual, usual, odd]] * 3, [[usual], [odd], [usual]]):
        found = cpu_share.of_launches(launches)
        assert found is not None and found.is_usual
    assert cpu_share.of_launches([[], [Timing(1, 10, None)]]) is None


def test_blocks_whose_wall_clock_was_set_back_have_no_share() -> None:
    """As on a busy machine, where every block of a launch is flagged for something, and all of them are taken."""
    lost = Timing(1, 0, 900, process_ns=950)
    assert cpu_share.of_launches([[lost]]) is None
    fine = Timing(1, 1000, 1000, process_ns=1000)
    assert cpu_share.of_launches([[lost, fine], [fine, lost]]) == cpu_share.CpuShare(1.0, 1.0)


def test_what_is_shown_of_a_share() -> None:
    assert cpu_share.CpuShare(0.02).amount == "CPU time is 2 % of wall time"
    assert cpu_share.CpuShare(0.0007).amount == "CPU time is below 1 % of wall time"
    assert cpu_share.CpuShare(1.98).amount == "CPU time is 198 % of wall time"


# --- a run ------------------------------------------------------------------------------------------


def test_a_cell_whose_cpu_time_misses_work_is_flagged_and_shown_on_both_clocks() -> None:
    made = scaled(run(), SECOND, cpu=0.02)
    first, second, third = summarise(made)
    assert second.flags == (EITHER,) and second.notes == ("CPU time is 2 % of wall time",)
    assert second.ratio and second.ratio.point == pytest.approx(0.04, rel=0.01)
    assert second.ratio_wall and second.ratio_wall.point == pytest.approx(2.0, rel=0.01)
    assert not first.flags and not third.flags and first.ratio_wall is third.ratio_wall is None
    shown = render_markdown(study_rows(made, (first, second, third)))
    assert "given by both clocks" in shown and "no claim is decided by" in shown and "2 % of wall time" in shown
    told = json_document.cell_document(second)
    assert told["ratio_wall"]["point"] == pytest.approx(2.0, rel=0.01) and told["cpu_share"] == pytest.approx(0.02)
    assert cell_row(second).ratio_wall == second.ratio_wall.point


def test_a_reference_whose_cpu_time_misses_work_makes_every_ratio_one_of_two() -> None:
    first, second, _ = summarise(scaled(run(), FIRST, cpu=0.02))
    assert first.flags == (EITHER,) and first.ratio_wall is None
    assert not second.flags and second.notes == (REFERENCE_MISSES_CPU_TIME,)
    assert second.ratio and second.ratio.point == pytest.approx(100, rel=0.01)
    assert second.ratio_wall and second.ratio_wall.point == pytest.approx(2.0, rel=0.01)


def test_what_does_not_wait_is_told_as_ever() -> None:
    busy = with_blocks(
        run(), SECOND, lambda timing: replace(timing, wall_ns=2 * timing.wall_ns, run_delay_ns=timing.wall_ns)
    )
    for made in (run(), busy):
        cells = summarise(made)
        assert not any(cell.flags or cell.notes or cell.ratio_wall for cell in cells)
        shown = render_markdown(study_rows(made, cells))
        assert "both clocks" not in shown and "no claim is decided" not in shown


@pytest.mark.parametrize("clock", ["wall", "device"])
def test_a_run_whose_ratios_are_not_of_cpu_time_misses_nothing(clock: str) -> None:
    def on(timing: Timing) -> Timing:
        return replace(timing, device_ns=timing.wall_ns)

    made = replace(with_blocks(scaled(run(), SECOND, cpu=0.02), SECOND, on), clock=clock)
    made = with_blocks(with_blocks(made, FIRST, on), THIRD, on)
    assert not any(cell.flags or cell.ratio_wall for cell in summarise(made))


def test_the_time_over_the_roofline_and_the_ranking_leave_it_out() -> None:
    made = run()
    made = replace(
        made,
        results=tuple(
            replace(r, bounds_s=dict.fromkeys(("layer", "eager", "pointwise", "epilogue"), 1e-4)) for r in made.results
        ),
    )
    usual, odd = (summarise(each)[1] for each in (made, scaled(made, SECOND, cpu=0.02)))
    assert usual.over_bound() == pytest.approx(20, rel=0.01) and odd.over_bound() is None
    several = study(tuple(range(1, rank_agreement.MIN_CELLS + 1)))
    times = {case.id: 1e-3 * place for place, case in enumerate(several.cases, 1)}
    cells = [
        replace(cell, cost=replace(COST, madds=1000 * at))
        for at, cell in enumerate(summarise(run_of(times, experiment=several)), 1)
    ]
    assert rank_agreement.agreements(cells)
    assert not rank_agreement.agreements([replace(cells[0], flags=(EITHER,), cpu=cpu_share.CpuShare(0.02)), *cells[1:]])


def test_a_claim_about_it_is_unsure_and_tells_both() -> None:
    verdict = verdicts.judge(scaled(run(), THIRD, cpu=0.01))[0]
    assert verdict.verdict == "unsure" and EITHER in verdict.reason
    assert verdict.headline.wall and verdict.headline.wall.point == pytest.approx(3.0, rel=0.01)
    assert "by the wall clock 3.00×" in text.verdict_sentence(verdict)
    assert "by the wall clock" in render_markdown(verdict_rows([verdict]))
    assert json_document.verdict_document(verdict)["headline"]["ratio_wall"]["point"] == verdict.headline.wall.point
    usual = verdicts.judge(run())[0]
    assert usual.verdict == "holds" and usual.headline.wall is None


@pytest.mark.parametrize("side", ["baseline", "candidate", "both"])
def test_two_runs_of_it_are_not_compared_by_its_cpu_time(side: str) -> None:
    before, after = run(), run(1)
    if side != "candidate":
        before = scaled(before, SECOND, cpu=0.02)
    if side != "baseline":
        after = scaled(after, SECOND, cpu=0.02)
    first, second, _ = run_diff.compare_runs(before, after)
    assert (first.verdict, first.wall) == ("same", None)
    assert second.verdict == "unsure" and second.reason == EITHER
    assert second.wall and second.wall.point == pytest.approx(1.0, rel=0.01)
    assert "by the wall clock" in render_markdown(diff_rows([first, second]))
    assert json_document.diff_document([first, second])[1]["change_wall"]["point"] == second.wall.point


def test_a_contaminated_cell_keeps_its_blocks_and_the_note_says_so() -> None:
    def some(timing: Timing) -> Timing:
        return replace(timing, flags=("waited for a core",))

    made = with_blocks(run(), SECOND, some)
    notes = " ".join(text.notes(made, summarise(made)))
    assert "180 blocks, none set aside; contaminated cells keep all blocks" in notes
    assert "(disturbed: waited for a core 60)" in notes


# --- the gates --------------------------------------------------------------------------------------

CHANGES: list[tuple[str, float, float, float, float, str]] = [
    # name, the baseline's CPU and wall time, the candidate's, the verdict
    ("moved into a pool", 1.0, 1.0, 0.02, 1.0, "INCONCLUSIVE"),
    ("moved into a pool and less", 1.0, 1.0, 0.02, 0.8, "INCONCLUSIVE"),
    ("moved into a pool and half as much again", 1.0, 1.0, 0.02, 1.5, "REGRESSION"),
    ("moved out of a pool", 0.02, 1.0, 1.0, 1.0, "INCONCLUSIVE"),
    ("the same in a pool", 0.02, 1.0, 0.02, 1.0, "PASS"),
    ("slower in a pool by 6 %", 0.02, 1.0, 0.02, 1.06, "INCONCLUSIVE"),
    ("slower in a pool by half", 0.02, 1.0, 0.02, 1.5, "REGRESSION"),
    ("slower in a pool, by both clocks", 0.02, 1.0, 0.0212, 1.06, "REGRESSION"),
    ("a pool with more to hand over", 0.02, 1.0, 0.03, 1.0, "INCONCLUSIVE"),
    ("faster in a pool, by both clocks", 0.02, 1.0, 0.01, 0.5, "PASS"),
    ("sleeps", 1.0, 1.0, 1.0, 3.0, "REGRESSION"),
    ("sleeps as before", 0.1, 1.0, 0.1, 1.0, "PASS"),
    ("two threads of the process", 1.0, 1.0, 2.0, 1.0, "INCONCLUSIVE"),
    ("nothing", 1.0, 1.0, 1.0, 1.0, "PASS"),
    ("slower", 1.0, 1.0, 1.1, 1.1, "REGRESSION"),
]
NAMES = [name for name, *_ in CHANGES]


def changed(before: tuple[float, float], after: tuple[float, float]) -> Pair:
    return Pair(scaled(run(), FIRST, *before), scaled(run(1), FIRST, *after))


def interleaved(pair: Pair) -> Finding:
    judge = Gate(list(TIMES), Rule(looks=(5,)))
    judge.look_at(0, pair)
    assert [judge.found[cell].verdict for cell in (SECOND, THIRD)] == ["PASS", "PASS"]
    return ab_findings.findings(judge, pair, {})[0]


def stored(pair: Pair) -> Finding:
    found = baseline.judge(pair.baseline, pair.candidate, list(TIMES), Rule(), {}, yardstick=None)
    assert [item.verdict for item in found[1:]] == ["PASS", "PASS"]
    return found[0]


@pytest.mark.parametrize("judge", [interleaved, stored])
@pytest.mark.parametrize(("cpu0", "wall0", "cpu1", "wall1", "verdict"), [row[1:] for row in CHANGES], ids=NAMES)
def test_a_gate_decides_only_where_both_clocks_agree(
    judge: Callable[[Pair], Finding], cpu0: float, wall0: float, cpu1: float, wall1: float, verdict: str
) -> None:
    pair = changed((cpu0, wall0), (cpu1, wall1))
    found = judge(pair)
    assert found.verdict == verdict, found
    assert found.wall is not None and found.wall.point == pytest.approx(wall1 / wall0, rel=0.02)
    assert found.change is not None and found.change.point == pytest.approx(cpu1 / cpu0, rel=0.02)
    if verdict == "INCONCLUSIVE":
        assert "its CPU time" in found.reason and "of wall time" in found.reason, found.reason
    if max(abs(cpu0 / wall0 - 1), abs(cpu1 / wall1 - 1)) > 0.1:
        assert not found.is_improved


def test_a_yardstick_whose_cpu_time_misses_work_decides_nothing() -> None:
    before, after = scaled(run(), THIRD, cpu=0.02), run(1)
    found, _ = baseline.judge(before, after, [FIRST, SECOND], Rule(), {}, yardstick=THIRD)
    assert found.verdict == "INCONCLUSIVE" and "baseline's yardstick" in found.reason


def test_the_mean_of_all_changes_leaves_it_out() -> None:
    pair = changed((1.0, 1.0), (0.02, 1.0))
    for mean in (ab_findings.geomean(pair, CELLS), baseline.geomean(pair.baseline, pair.candidate, CELLS, None)):
        assert mean is not None and mean.point == pytest.approx(1.0, rel=0.01)


def test_many_gates_decide_as_one_gate_does_where_clocks_disagree() -> None:
    import numpy

    for name, cpu0, wall0, cpu1, wall1, verdict in CHANGES:
        recorded = Evidence.of(changed((cpu0, wall0), (cpu1, wall1)))
        found, _ = decision_rule.decide(recorded, numpy.arange(5)[None], Rule(looks=(5,)))
        assert [CellOutcome(item).verdict for item in found[0]] == [verdict, "PASS", "PASS"], name
        assert bool(recorded.cpu_share(FIRST)) == (abs(cpu0 / wall0 - 1) > 0.1 or abs(cpu1 / wall1 - 1) > 0.1)


def test_nothing_is_promised_of_what_a_gate_would_see_of_it() -> None:
    pair = changed((0.02, 1.0), (0.02, 1.0))
    survey = calibration.survey(Evidence.of(pair))
    assert survey.scatter[0].reason == "CPU time is 2 % of wall time, so its ratio is not valid"
    assert all(answers[FIRST].value is None for answers in survey.detectable.values())
    assert all(answers[SECOND].value is not None for answers in survey.detectable.values())
    assert any(
        FIRST in line and "both clocks" in line for line in alarm_rate.resample(Evidence.of(pair), suites=5).caveats
    )


def test_disturbed_rounds_tell_nothing_of_a_share() -> None:
    pair = changed((1.0, 1.0), (1.0, 1.0))
    odd = [
        replace(block, timing=replace(block.timing, cpu_ns=1000, flags=("steal",))) if block.round == 0 else block
        for block in pair.candidate.result(FIRST).blocks
    ]
    results = tuple(replace(r, blocks=tuple(odd)) if r.cell.id == FIRST else r for r in pair.candidate.results)
    found = ab_pairs.cpu_shares(ab_pairs.rounds(Pair(pair.baseline, replace(pair.candidate, results=results)), FIRST))
    assert all(share is not None and share.share == pytest.approx(1.0) for share in found)


# --- the fixture, the file, the device --------------------------------------------------------------


def test_the_fixture_says_it_beside_the_times() -> None:
    waits = (Timing(2, 10 * MS, 1 * MS, process_ns=1 * MS),) * 3
    assert Speed(None, blocks=waits, calls=2).to_dict()["remarks"] == [f"{WAITS}: CPU time is 10 % of wall time"]
    assert Speed(None, blocks=waits, calls=2).to_dict()["blocks"]["process_ns"] == [MS] * 3
    assert not Speed(None, blocks=waits, calls=2, environment={"run.threads": 2}).remarks
    assert not Speed(None, blocks=(Timing(2, 10 * MS, 10 * MS),), calls=2).remarks


def test_threads_that_ended_keep_what_they_waited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_thread_run_delay, "_TASKS", str(tmp_path))
    for name, waited in (("10", 700), ("11", 40)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "schedstat").write_text(f"99999 {waited} 3\n")
    tasks = _thread_run_delay.ThreadRunDelays()
    assert tasks.run_delay_ns() == 740
    (tmp_path / "10" / "schedstat").write_text("99999 800 3\n")
    (tmp_path / "11" / "schedstat").unlink()
    (tmp_path / "11").rmdir()
    assert tasks.run_delay_ns() == 840
    (tmp_path / "12").mkdir()
    (tmp_path / "12" / "schedstat").write_text("nothing\n")
    assert tasks.run_delay_ns() == 840
    monkeypatch.setattr(_thread_run_delay, "_TASKS", str(tmp_path / "no such folder"))
    assert _thread_run_delay.ThreadRunDelays().run_delay_ns() == 0


ODD = """
import subprocess, threading, time
import torch

class Plain(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(*[torch.nn.Conv2d(16, 16, 3, padding=1) for _ in range(8)])
    def forward(self, x):
        return self.net(x)

class Thread(Plain):
    def forward(self, x):
        found = []
        def work():
            with torch.inference_mode():
                found.append(self.net(x))
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return found[0]

class Sleeper(Plain):
    def forward(self, x):
        time.sleep(0.005)
        return self.net(x)

class Process(Plain):
    def forward(self, x):
        subprocess.run(["sleep", "0.005"])
        return self.net(x)
"""


def test_real_networks_that_work_elsewhere_or_wait_are_named(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(ODD)
    done = shell.effbench(
        *("compare", "odd.py:Plain", "odd.py:Thread", "odd.py:Sleeper", "odd.py:Process", "--input", "16x24x24"),
        *("--launches", "1", "--budget", "1s", "--json", "--out", "run"),
        cwd=tmp_path,
        variables={measuring.UNTIMED_LAUNCHES: "1"},
    )
    assert done.code == 0, done.err
    cells = json.loads(done.out)["cells"]
    missed = [[flag for flag in cell["flags"] if "CPU time" in flag] for cell in cells]
    if missed[1] == [WAITS]:  # as the other thread does where other processes take its core
        missed[1] = [OTHER_THREADS]
    assert missed[1:] == [[OTHER_THREADS], [WAITS], [WAITS]], cells
    assert all(cell["ratio_wall"] is not None for cell in cells[1:])
    made = run_file.load(tmp_path / "run")
    # A hypervisor that takes the core away in steps finer than the kernel counts can get the plain network flagged as
    # well, but does not do so in each of its blocks.
    shares = {
        result.cell.case.labels["model"]: [cpu_share.of_block(block.timing) or 0 for block in result.blocks]
        for result in made
    }
    assert cpu_share.is_usual(max(shares.pop("odd.py:Plain"))), cells[0]
    assert all(max(share) < cpu_share.MIN_USUAL for share in shares.values()), shares
    spent = {
        result.cell.case.labels["model"]: [block.timing.process_ns / block.timing.cpu_ns for block in result.blocks]
        for result in made
    }
    assert min(spent["odd.py:Thread"]) > max(spent["odd.py:Plain"]), "the process's clock sees the other thread"
    path = tmp_path / "run" / "run.jsonl"
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    for record in kept:
        record.get("timing", {}).pop("process_ns", None)
    path.write_text("".join(json.dumps(record) + "\n" for record in kept))
    assert all(EITHER in cell.flags for cell in summarise(run_file.load(tmp_path / "run"))[1:])
