"""The benchmarks against other tools: the page is made from the raw rows, and figures derived from rows are right."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

if not (ROOT / "benchmarks" / "peers").exists():  # as in an installed copy of the tests
    pytest.skip("benchmarks/ is not here", allow_module_level=True)
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.peers import (  # noqa: E402
    alarm,
    harness_cost,
    honest_decisions,
    honest_precision,
    long_sequence,
    page,
    power,
    repository,
    spread,
    static_profile,
    time_to_answer,
)
from benchmarks.peers.__main__ import main  # noqa: E402
from benchmarks.peers.session import Ledger, Part, Report, Row, Section, Task, carry_out, process  # noqa: E402


def test_the_page_says_what_the_rows_say() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.page(), "run: python -m benchmarks.peers page"


# --- a part goes on where it was stopped ---------------------------------------------------------------


def stub(measured: list[Task], dies_at: int | None = None) -> Part:
    def measure(task: Task, folder: Path) -> Iterator[Row]:
        if task["number"] == dies_at:
            raise RuntimeError("a peer failed")
        measured.append(task)
        yield {"squared": task["number"] ** 2}

    tasks = [{"number": number} for number in range(4)]
    return Part("stub", "Stub", lambda is_smoke: tasks, measure, lambda task: 1.0, lambda rows: Section(()))


def test_a_part_that_was_stopped_goes_on_and_measures_nothing_twice(tmp_path: Path) -> None:
    measured: list[Task] = []
    with pytest.raises(RuntimeError):
        carry_out(stub(measured, dies_at=2), tmp_path, False, Report(4.0))
    path = tmp_path / "stub.jsonl"
    with path.open("a") as file:
        file.write('{"task": {"number": 2}, "ro')  # ended while it wrote
    assert len(Ledger(path).rows()) == 2
    carry_out(stub(measured), tmp_path, False, Report(4.0))
    assert [task["number"] for task in measured] == [0, 1, 2, 3]
    assert [(row["number"], row["squared"]) for row in Ledger(path).rows()] == [(0, 0), (1, 1), (2, 4), (3, 9)]


@pytest.mark.parametrize("part", page.PARTS, ids=lambda part: part.name)
def test_every_plan_is_the_same_each_time_and_names_each_task_once(part: Part) -> None:
    tasks = part.plan(False)
    assert tasks == part.plan(False)
    assert len({json.dumps(task, sort_keys=True) for task in tasks}) == len(tasks)
    assert 0 < len(part.plan(True)) <= len(tasks)
    assert all(part.seconds(task) > 0 or task.get("autocorrelation") == 0 for task in tasks)


def test_tools_alternate_in_random_order() -> None:
    """Each repeat holds every tool once, and not always in the same order."""
    rounds: dict[int, list[str]] = {}
    for task in spread.PART.plan(False):
        rounds.setdefault(task["run"], []).append(f"{task['tool']} {task['budget']}")
    every = list(rounds.values())
    assert len(every) >= 12 and all(sorted(one) == sorted(every[0]) for one in every)
    assert len({tuple(one) for one in every}) > len(every) / 2


# --- what is computed from rows --------------------------------------------------------------------------


def test_scatter_is_the_deviation_of_logarithms() -> None:
    rows = [{"cell": "a", "ratio": math.exp(value)} for value in (0.1, 0.2, 0.3)]
    rows += [{"cell": "b", "ratio": value} for value in (2.0, 2.0, 2.0)]
    found = spread.scatter(rows, "ratio")
    assert found == pytest.approx({"a": 0.1, "b": 0.0}, abs=1e-12)
    assert spread.root_mean_square(found) == pytest.approx(0.1 / math.sqrt(2))
    assert spread.root_mean_square({}) is None


def test_a_claim_is_judged_by_the_other_runs() -> None:
    """1.02 is off from the median 1.0 of the others by 2 %; 1.0 is off from (1.0, 1.0, 1.02) by nothing."""
    rows = [{"cell": "a", "run": run, "ratio": value} for run, value in enumerate((1.0, 1.0, 1.0, 1.02))]
    assert spread.count_true_claims(rows, rows, "ratio") == (3, 4)
    assert spread.count_true_claims(rows, rows[3:], "ratio") == (0, 1)
    assert spread.count_true_claims(rows[:1], rows[:1], "ratio") == (0, 0), "one run has no truth"
    wide = [{**row, "low": 0.9, "high": 1.005} for row in rows]
    assert spread.count_covering_intervals(wide, wide, "ratio", "low", "high") == (4, 4)
    narrow = [{**row, "low": row["ratio"], "high": row["ratio"] * 1.01} for row in rows]
    assert spread.count_covering_intervals(narrow, narrow, "ratio", "low", "high") == (3, 4)


def test_a_claim_of_the_tool_is_an_interval_that_it_printed() -> None:
    common = {"tool": "effbench", "budget": "equal", "latency_s": 1.0, "latency_low_s": None, "latency_high_s": None}
    rows = [
        {**common, "cell": "x", "run": run, "ratio": 2.0, "low": 2.0 - width, "high": 2.0 + width}
        for run, width in enumerate((0.019, 0.021, 0.019))
    ]
    rows.append({**common, "cell": "1 group", "run": 0, "ratio": 1.0, "low": None, "high": None})
    (who, what, true, count), *_ = spread.claims(rows)
    assert (who, what, true, count) == ("effbench", spread.CLAIM, 2, 2)


def test_the_next_run_is_given_what_earlier_ones_left() -> None:
    rows = [{"tool": "effbench", "wall_s": 10.0 + start, "given_s": 10.0} for start in (3.0, 4.0, 9.0)]
    rows.append({"tool": "torch Timer", "wall_s": 50.0, "given_s": None})
    assert spread._start_s(rows, "effbench") == 4.0
    assert spread._start_s(rows, "torch Timer") == spread.START_S["torch Timer"]


def test_the_scripted_clock_is_an_ar1_process() -> None:
    clock = honest_precision.Clock(0.9, seed=0)
    values = [math.log(clock.time_block(None, 2).wall_ns / 2 / honest_precision.BLOCK_NS) for _ in range(40_000)]
    assert statistics.stdev(values) == pytest.approx(0.05, rel=0.1)
    assert statistics.correlation(values[1:], values[:-1]) == pytest.approx(0.9, abs=0.02)
    assert clock.time_block(None, 1).wall_ns == 0


@pytest.mark.parametrize("confidence", [0.95, 0.99])
def test_the_peers_rule_is_the_peers(confidence: float) -> None:
    """Against pytest-benchmark's own code, where the installed version has it."""
    from pytest_benchmark.fixture import BenchmarkFixture

    if not hasattr(BenchmarkFixture, "_run_until_precise"):
        pytest.skip("this pytest-benchmark has no --benchmark-precision")
    for seed in range(20):
        clock, seen = honest_precision.Clock(0.5, seed), []
        fixture = SimpleNamespace(
            _confidence=confidence,
            _precision=honest_precision.PRECISION,
            _min_rounds=5,
            _logger=SimpleNamespace(debug=lambda *args, **kwargs: None),
        )
        BenchmarkFixture._run_until_precise(
            fixture,
            lambda loops, clock=clock: math.exp(clock.next_log()),
            None,
            SimpleNamespace(update=seen.append),
            9999,
        )
        is_claim, rounds, error = honest_precision.peer_trial(honest_precision.Clock(0.5, seed), confidence)
        assert is_claim and rounds == len(seen)
        assert error == pytest.approx(statistics.fmean(seen) / math.exp(0.05**2 / 2) - 1, abs=1e-12)


def test_effbench_claims_only_what_it_stopped_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock without noise it stops at once and is right; with a limit below what precision takes it claims not."""
    monkeypatch.setattr(honest_precision, "DEVIATION", 0.0)
    assert honest_precision.effbench_trial(honest_precision.Clock(0.0, 0)) == (True, 10, pytest.approx(0.0, abs=1e-6))
    monkeypatch.setattr(honest_precision, "DEVIATION", 0.05)
    monkeypatch.setattr(honest_precision, "MAX_ROUNDS", 20)
    is_claim, rounds, _ = honest_precision.effbench_trial(honest_precision.Clock(0.0, 0))
    assert (is_claim, rounds) == (False, 20)


# --- what the candidate of the power benchmark does ------------------------------------------------------


def test_the_injected_work_is_in_the_forward_pass(tmp_path: Path) -> None:
    """As many additions as were asked for, in the one network, counted by torch."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Additions(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += func is torch.ops.aten.add.Tensor
            return func(*args, **(kwargs or {}))

    shutil.copy(ROOT / "benchmarks" / "peers" / "inside" / "nets.py", tmp_path / "nets.py")
    repository.slow_down(tmp_path, "dense_a", 7)
    specification = importlib.util.spec_from_file_location("nets_slowed", tmp_path / "nets.py")
    assert specification is not None and specification.loader is not None
    nets = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(nets)
    assert set(nets.NETS) == set(repository.NETS)
    for name, additions in (("dense_a", 7), ("depthwise_c", 0)):
        with Additions() as seen, torch.no_grad():
            y = nets.build(name)(torch.zeros(1, repository.NETS[name], 28, 28))
        assert seen.count == additions and y.shape == (1, repository.NETS[name], 28, 28)


# --- the page --------------------------------------------------------------------------------------------


def harness_rows(ours: float) -> list[Row]:
    added = {"bare loop": 0.1, "effbench": ours, "torch Timer": -3.0, "pytest-benchmark": 40.0}
    return [
        {
            "repeat": repeat,
            "harness": name,
            "body": body,
            "budget": "equal",
            "bare_ns": 50.0,
            "harness_ns": 50.0 + value,
        }
        | ({"block_us": 12.5} if name == "effbench" else {})
        for name, value in added.items()
        for body in ("empty", "add")
        for repeat in range(3)
    ]


@pytest.mark.parametrize(("ours", "is_met"), [(2.0, True), (101.0, False)])
def test_harness_cost_is_the_difference_to_the_bare_loop(ours: float, is_met: bool) -> None:
    section = harness_cost.section(harness_rows(ours))
    (target,) = section.targets
    assert target.is_met is is_met and target.found == f"{ours:+.1f} ns"
    assert "torch Timer 3" in target.peers and "pytest-benchmark 40" in target.peers
    assert f"{ours:+.1f} [{ours:+.1f}, {ours:+.1f}]" in section.blocks[1]


def gate_row(share: float, verdict: str, number: int) -> Row:
    common = {"cell": "wide_a", "extra": 50, "injected": share + 0.001, "ratio": 1 + share, "launches": 6}
    return {"slowdown": share, "gate": number, "verdict": verdict, "others": ["PASS", "PASS"], **common}


def test_power_counts_verdicts_of_the_slowed_cell() -> None:
    words = ["REGRESSION"] * 15 + ["INCONCLUSIVE"] * 4 + ["PASS"]
    rows = [gate_row(0.05, word, number) for number, word in enumerate(words)] + [gate_row(0.1, "REGRESSION", 0)]
    section = power.section(rows)
    caught, passed = section.targets
    assert caught.found == "15 of 20 caught, 4 not decided, 1 passed" and caught.is_met
    assert passed.found == "1 of 20" and passed.is_met, "5 % is allowed"
    assert "0 of 42" in section.blocks[0]
    worse = power.section([*rows, gate_row(0.05, "PASS", 21)])
    assert worse.targets[1].is_met is False
    assert power.section([gate_row(0.1, "PASS", 0)]).targets[0].is_met is None


def answer_row(tool: str, ratio: float, answer: str, wall_s: float, repeat: int) -> Row:
    row = {"tool": tool, "ratio": ratio, "repeat": repeat, "answer": answer, "measured": ratio, "wall_s": wall_s}
    return {**row, "judged": time_to_answer.judge(answer, ratio)}


@pytest.mark.parametrize(
    ("answer", "ratio", "judged"),
    [
        ("slower", 1.2, "right"),
        ("slower", 1.02, "right"),
        ("slower", 1.0, "wrong"),
        ("faster", 1.0, "wrong"),
        ("faster", 1.2, "wrong"),
        ("same", 1.02, "right"),
        ("same", 1.05, "wrong"),
        ("none", 1.2, "none"),
    ],
)
def test_an_answer_is_right_where_the_calibrated_ratio_says_so(answer: str, ratio: float, judged: str) -> None:
    assert time_to_answer.judge(answer, ratio) == judged
    assert [time_to_answer.by_points(value) for value in (0.98, 0.995, 1.005, 1.02)] == [
        "faster",
        "same",
        "same",
        "slower",
    ]


def test_the_time_to_an_answer_counts_right_answers_within_the_time() -> None:
    rows = [answer_row("effbench", 1.2, "slower", wall_s, n) for n, wall_s in enumerate((12.0, 14.0, 30.0))]
    rows += [answer_row("pytest-benchmark", 1.0, "faster", 5.0, 0), answer_row("torch Timer", 1.2, "none", 3.0, 0)]
    section = time_to_answer.section(rows)
    quick, wrong = section.targets
    assert quick.found == "2 of 3, median 14.0 s" and quick.is_met is True
    assert wrong.found == "0 of 3" and wrong.is_met is True and "pytest-benchmark 1 of 1" in wrong.peers
    assert "| 1.2 | effbench | 3 | 14.0 [12.0, 30.0] | 3 | 0 | 0 |" in section.blocks[1]
    late = [answer_row("effbench", 1.2, "slower", 20.0, 0)]
    assert time_to_answer.section(late).targets[0].is_met is False
    drew_figures_afterwards = [{**late[0], "answer_s": 14.0}]
    assert time_to_answer.section(drew_figures_afterwards).targets[0].is_met is True
    false = [answer_row("effbench", 1.0, "slower", 9.0, n) for n in range(8)]
    assert time_to_answer.section(false).targets[1].is_met is False


def test_an_answer_is_there_before_a_process_ends() -> None:
    script = "import sys, time; print('answer', flush=True); print('noise', file=sys.stderr); time.sleep(0.5)"
    done = process([sys.executable, "-c", script])
    assert (done.code, done.out, done.err) == (0, "answer\n", "noise\n")
    assert 0 < done.answer_s < done.wall_s
    with pytest.raises(RuntimeError, match="ended with 3: last words"):
        process([sys.executable, "-c", "import sys; print('last words'); sys.exit(3)"])


def test_a_simulated_comparison_stops_at_a_look_and_counts_what_it_missed() -> None:
    (task,) = [
        task
        for task in honest_decisions.plan(True)
        if (task["truth"], task["scatter"], task["tau"], task["rule"]) == (1.2, 0.005, 0.0, "effbench")
    ]
    (row,) = honest_decisions.measure(task, Path())
    assert row == next(iter(honest_decisions.measure(task, Path()))), "seeded"
    assert row["decided"] == 20 and row["wrong"] == 0 and row["launches"] <= 4
    made = {"decided": 20, "wrong": 2, "covered": 18, "launches": 3.0}
    wrong, covered = honest_decisions.section([{**task, **made}]).targets
    assert (wrong.found, wrong.is_met) == ("10.0 %", False) and (covered.found, covered.is_met) == ("90.0 %", False)


def test_one_real_alarm_misses_the_target() -> None:
    rows = [{"kind": "real", "gate": number, "verdict": "PASS", "launches": 4} for number in range(20)]
    assert alarm.section(rows).targets[0].is_met is True
    rows[3] = {**rows[3], "verdict": "REGRESSION"}
    (target,) = alarm.section(rows).targets
    assert target.is_met is False and "1 of 20 real gates" in target.found


def counter_rows() -> list[Row]:
    """Processes of 1, 2 and 9 s for one network, of 4 s for the other: medians 2 and 4, and 3 over networks."""
    spent = {"resnet18": (1.0, 2.0, 9.0), "resnet50": (4.0, 4.0, 4.0)}
    return [
        {"network": network, "counter": counter, "repeat": repeat, "madds": 1_500_000, "cpu_s": seconds}
        for network, values in spent.items()
        for counter in static_profile.COUNTERS
        for repeat, seconds in enumerate(values)
    ]


def test_counting_time_is_the_median_over_networks_of_medians() -> None:
    assert set(static_profile.medians(counter_rows()).values()) == {3.0}
    _, times, _, counts = static_profile.section(counter_rows()).blocks
    assert times.splitlines()[2].startswith("| resnet18 | 2000 |") and "| **median** | **3000** |" in times
    assert counts.splitlines()[2] == "| resnet18 | 1.50 | 1.50 | 1.50 | 1.50 | 1.50 |"


def test_the_counting_times_that_the_results_page_quotes() -> None:
    (*recorded,) = ROOT.glob("results/benchmarks/*/static_profile.jsonl")
    if not recorded:
        pytest.skip("nothing has been recorded yet")
    found = static_profile.medians(Ledger(sorted(recorded)[0]).rows())
    ours, again, fvcore = (found[static_profile.COUNTERS[at]] * 1e3 for at in range(3))
    quoted = f"{ours:.0f} ms the first time, {again:.0f} ms again, {fvcore:.0f} ms for fvcore"
    assert quoted in (ROOT / "docs" / "results.md").read_text(encoding="utf-8").replace("\n", " ")


def test_the_time_of_a_long_scan_is_the_median_over_processes() -> None:
    rows = [
        {"layers": 24, "tokens": tokens, "operators": 1_000_000, "cpu_s": seconds * tokens / 1024, "forward_s": 9.0}
        for tokens in (512, 1024)
        for seconds in (20.0, 31.0, 24.0)
    ]
    section = long_sequence.section(rows)
    (target,) = section.targets
    assert target.found == "24.0 s" and target.is_met is True
    assert "| 24 layers, 512 tokens | 1,000,000 | 12.0 | 12 | 9.0 |" in section.blocks[1]
    assert long_sequence.section(rows[:3]).targets[0].is_met is None
    slow = [{**row, "cpu_s": 31.0} for row in rows]
    assert long_sequence.section(slow).targets[0].is_met is False


def test_a_missed_target_is_printed_with_its_reason(tmp_path: Path) -> None:
    folder = tmp_path / "machine"
    for number, row in enumerate(harness_rows(150.0)):
        Ledger(folder / "harness_cost.jsonl").add({"row": number}, [row], 1.0)
    machine = {"cpu": "A", "cores": 2, "hypervisor": None, "container": None, "memory_gib": 8.0, "system": "B"}
    session = {"at": "2026-01-02T00:00:00+00:00", "command": "make", "machine": {**machine, "load_1m": 0.5}}
    (folder / "sessions.jsonl").write_text(json.dumps({**session, "versions": {"python": "3.11"}}) + "\n")
    (folder / "notes.json").write_text(json.dumps({"time added per call over a bare loop, in blocks": "Because."}))
    text = page.page(tmp_path)
    assert "**missed** |" in text and "in blocks: Because." in text
    assert "python 3.11" in text and "2026-01-02" in text


def test_the_parts_without_torch_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Seconds: real processes and scripted clocks; the rows name no path and no home of this machine."""
    assert main(["start_up", "honest_precision", "--smoke", str(tmp_path / "smoke")]) == 0
    assert "tasks" in capsys.readouterr().err
    text = page.page(tmp_path)
    assert "`effbench --help`" in text and "ρ = 0.9: true" in text
    stored = "".join(path.read_text() for path in (tmp_path / "smoke").iterdir())
    for private in (str(ROOT), str(Path.home()), str(tmp_path)):
        assert private not in stored
    assert main(["start_up", "honest_precision", "--smoke", str(tmp_path / "smoke")]) == 0
    assert capsys.readouterr().err.startswith("0 tasks"), "everything is there already"


def test_a_part_that_does_not_exist_is_refused() -> None:
    with pytest.raises(SystemExit) as stop:
        main(["nonsense"])
    assert stop.value.code == 2
