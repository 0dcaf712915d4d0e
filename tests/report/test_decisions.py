"""The sentences on what a run that stops by itself has decided."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from runs import CELLS, run_of, study

from effbench.analysis import decision
from effbench.analysis.decision import Answer, RunDecision
from effbench.analysis.summary import summarise
from effbench.core.estimate import Estimate
from effbench.core.run import Run, Stop
from effbench.core.study import Case, Experiment
from effbench.report import decisions, run_tables

NAMES = ("mobilenet_v2", "shufflenet_v2")


def comparison(until: Any = "faster", times: tuple[float, ...] = (0.001, 0.0012), **options: Any) -> Run:
    cases = tuple(Case(name, (3, 8, 8), labels={"model": name}) for name in NAMES[: len(times)])
    experiment = Experiment("compare", "Models", "Which is faster?", "model", NAMES, NAMES[0], cases)
    run = run_of(
        {case.id: seconds for case, seconds in zip(cases, times, strict=True)},
        experiment=experiment,
        **{"launches": 3, **options},
    )
    launches = tuple(replace(launch, used_s=4.0) for launch in run.launches)
    sampling = replace(run.sampling, launches=13, until=until)
    return replace(run, sampling=sampling, launches=launches, stop=Stop("decided", 3))


def said(run: Run) -> str:
    return "\n".join(decisions.sentences(run, summarise(run)))


def test_the_answer_stands_first_below_the_table() -> None:
    run = comparison()
    ratio = summarise(run)[1].ratio
    first, second, *_ = run_tables(run, summarise(run), ())["table"].notes
    assert first == f"shufflenet_v2 is slower than mobilenet_v2: ×{ratio}, decided after 3 launches in 12 s."
    assert second == "Intervals hold at 95 % whenever the run stops (looks after 3, 4, 6, 9, 13 launches)."


def test_a_faster_and_an_equal_network() -> None:
    assert "shufflenet_v2 is faster than mobilenet_v2: ×0.5" in said(comparison(times=(0.002, 0.001)))
    assert "shufflenet_v2 and mobilenet_v2 take the same time to within ±3 %: ×1" in said(
        comparison(times=(0.001, 0.001))
    )


@pytest.mark.parametrize(
    ("stop", "advice"),
    [
        (Stop("budget", 3), "; ask for more time with --budget 240s."),
        (None, "; ask for more launches with --until faster --launches 26."),
    ],
)
def test_an_undecided_run_says_what_to_ask_for(stop: Stop | None, advice: str) -> None:
    text = said(replace(comparison(launch_noise=0.2), stop=stop))
    assert text.startswith("shufflenet_v2 against mobilenet_v2: undecided after 3 launches in 12 s, ×")
    assert text.splitlines()[0].endswith(advice)


def test_the_advice_to_a_disturbed_run_is_a_quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Answer(NAMES[1], NAMES[0], "undecided", Estimate(1.02, 0.9, 1.15), flags="contaminated")
    monkeypatch.setattr(decision, "decide", lambda run: RunDecision("faster", 4, (answer,)))
    text = said(replace(comparison(), stop=Stop("budget", 4)))
    assert "since it is flagged (contaminated), ×1.02" in text
    assert text.splitlines()[0].endswith("; stop other work on this machine and measure again.")


def test_one_launch_has_no_interval_and_is_told_how_many_it_takes() -> None:
    run = comparison(launches=1)
    text = said(replace(run, sampling=replace(run.sampling, launches=1), stop=None))
    assert text.endswith("; ask for more launches with --until faster --launches 3."), "and nothing of intervals"


def test_several_networks_are_told_that_they_share_a_confidence(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Answer(NAMES[1], NAMES[0], "undecided", Estimate(1.02, 0.99, 1.05), between=0.03, is_futile=True)
    monkeypatch.setattr(decision, "decide", lambda run: RunDecision("faster", 4, (answer, answer)))
    assert "±3 % between sittings, at the confidence that 2 networks share; spread" in said(comparison())


def test_sittings_that_differ_are_told_by_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Answer(NAMES[1], NAMES[0], "undecided", Estimate(1.02, 0.99, 1.05), between=0.03, is_futile=True)
    monkeypatch.setattr(decision, "decide", lambda run: RunDecision("faster", 4, (answer,)))
    assert (
        "more launches in this sitting cannot decide it, since results differ by ±3 % between sittings; spread the "
        "launches with --spread 2h."
    ) in said(comparison())


def test_a_precision_is_told_of_ratios_and_of_one_time() -> None:
    run = comparison("precision")
    run = replace(run, sampling=replace(run.sampling, precision=0.05))
    assert said(run).startswith("shufflenet_v2 against mobilenet_v2 is known to within ±5 %: ×1.2")
    alone = comparison("precision", (0.001,))
    alone = replace(alone, sampling=replace(alone.sampling, precision=0.05))
    assert said(alone).startswith("mobilenet_v2 is known to within ±5 %: 1.00 ms ±")


def test_a_study_is_told_in_one_sentence() -> None:
    run = run_of(dict(zip(CELLS, (0.001, 0.002, 0.004), strict=True)), experiment=study(), launches=6)
    run = replace(run, sampling=replace(run.sampling, launches=13, until="faster"))
    assert said(run).startswith("2 of 2 ratios are decided after 6 launches in ")


@pytest.mark.parametrize(
    ("between", "much"), [((None, 0.03), "±3 %"), ((0.03, 0.03), "±3 %"), ((0.02, 0.1), "up to ±10 %")]
)
def test_a_study_that_sittings_keep_undecided_is_not_told_to_measure_longer(
    between: tuple[float | None, float], much: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ratio = Estimate(1.02, 0.99, 1.05)
    answers = tuple(
        Answer(cell, CELLS[0], "slower" if width is None else "undecided", ratio, width, width is not None)
        for cell, width in zip(CELLS[1:], between, strict=True)
    )
    monkeypatch.setattr(decision, "decide", lambda run: RunDecision("faster", 4, answers))
    run = run_of(dict(zip(CELLS, (0.001, 0.002, 0.004), strict=True)), experiment=study(), launches=4)
    run = replace(run, sampling=replace(run.sampling, launches=13, until="faster"), stop=Stop("futile", 4))
    first = said(run).splitlines()[0]
    assert first.startswith(f"{between.count(None)} of 2 ratios are decided after 4 launches in ")
    assert first.endswith(
        f"; more launches in this sitting cannot decide more, since results differ by {much} between sittings; spread "
        "the launches with --spread 2h."
    )


def test_a_study_of_which_launches_could_decide_a_ratio_is_told_to_take_more(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = (
        Answer(CELLS[1], CELLS[0], "undecided", Estimate(1.02, 0.99, 1.05), 0.03, is_futile=True),
        Answer(CELLS[2], CELLS[0], "undecided", Estimate(1.2, 0.9, 1.5), 0.03),
    )
    monkeypatch.setattr(decision, "decide", lambda run: RunDecision("faster", 13, answers))
    run = run_of(dict(zip(CELLS, (0.001, 0.002, 0.004), strict=True)), experiment=study(), launches=6)
    run = replace(run, sampling=replace(run.sampling, launches=13, until="faster"))
    assert said(run).splitlines()[0].endswith("; ask for more launches with --until faster --launches 26.")


def test_nothing_is_said_of_other_runs() -> None:
    run = comparison()
    assert decisions.sentences(replace(run, complete=False), summarise(run)) == []
    fixed = replace(run, sampling=replace(run.sampling, until="launches"))
    assert decisions.sentences(fixed, summarise(fixed)) == []
