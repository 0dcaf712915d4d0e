"""What a run that stops by itself has decided, from its blocks."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from runs import CELLS, run_of, study, with_blocks

from effbench.analysis import decision, sequential
from effbench.analysis.summary import summarise
from effbench.core.estimate import Estimate
from effbench.core.run import Run
from effbench.core.sittings import BetweenSittings, Scatter
from effbench.core.study import Experiment

TIMES = dict(zip(CELLS, (0.001, 0.0012, 0.001), strict=True))


def comparison() -> Experiment:
    """The same cases without a claim, as a comparison of models."""
    return replace(study(), claims=())


def stopped(launches: int = 4, until: Any = "faster", experiment: Experiment | None = None, **options: Any) -> Run:
    run = run_of(TIMES, launches=launches, experiment=experiment or comparison(), **options)
    return replace(run, sampling=replace(run.sampling, launches=13, until=until))


def verdicts(run: Run, **options: Any) -> list[str]:
    found = decision.decide(run, **options)
    assert found is not None
    return [item.verdict for item in found.answers]


def test_a_fixed_number_of_launches_decides_nothing() -> None:
    assert decision.decide(run_of(TIMES)) is None


def test_every_cell_is_judged_against_its_reference() -> None:
    found = decision.decide(stopped())
    assert found is not None and found.is_decided and not found.is_futile and found.after_launches == 4
    assert [(item.cell, item.reference, item.verdict) for item in found.answers] == [
        (CELLS[1], CELLS[0], "slower"),
        (CELLS[2], CELLS[0], "same"),
    ]


def test_the_interval_that_is_shown_is_that_of_the_tables_and_wider_than_a_fixed_run_s() -> None:
    run = stopped()
    fixed = replace(run, sampling=replace(run.sampling, until="launches"))
    answer = decision.decide(run).answers[0].estimate  # type: ignore[union-attr]
    shown, plain = (summarise(each)[1].ratio for each in (run, fixed))
    assert answer == shown and shown is not None and plain is not None and shown.confidence == 0.95
    # Student's t of 3 degrees of freedom: 5.84 at 99 %, 3.18 at 95 %.
    assert (shown.high - shown.low) / (plain.high - plain.low) == pytest.approx(5.841 / 3.182, rel=0.1)  # type: ignore[operator]
    times = [summarise(each)[1].latency for each in (run, fixed)]
    assert times[0].high - times[0].low > 1.5 * (times[1].high - times[1].low)  # type: ignore[union-attr, operator]


def test_two_launches_give_no_interval_and_no_answer() -> None:
    found = decision.decide(stopped(launches=2))
    assert found is not None and not found.is_decided and not found.is_futile


def test_a_noisy_run_is_undecided() -> None:
    assert verdicts(stopped(launch_noise=0.2)) == ["undecided", "undecided"]


def test_a_claim_is_not_decided_before_it_has_the_launches_of_a_verdict() -> None:
    assert verdicts(stopped(experiment=study())) == ["undecided", "undecided"]
    assert verdicts(stopped(launches=6, experiment=study())) == ["slower", "same"]


def test_a_launch_that_was_interrupted_is_not_counted() -> None:
    run = stopped()
    launches = (*run.launches[:3], replace(run.launches[3], stopped="interrupted"))
    assert decision.finished_launches(replace(run, launches=launches)) == 3


def test_a_cell_that_was_skipped_is_not_waited_for() -> None:
    run = stopped()
    results = (*run.results[:2], replace(run.results[2], skipped="it raised", blocks=()))
    assert verdicts(replace(run, results=results)) == ["slower"]
    alone = replace(
        run, results=(run.results[0], *(replace(item, skipped="no", blocks=()) for item in run.results[1:]))
    )
    found = decision.decide(alone)
    assert found is not None and not found.answers and not found.is_decided and found.is_futile, "nothing to decide"


def test_an_emulated_run_has_nothing_to_decide() -> None:
    found = decision.decide(stopped(facts={"host.emulated": "qemu"}))
    assert found is not None and found.answers == () and found.is_futile


@pytest.mark.parametrize(("precision", "expected"), [(0.05, "precise"), (0.0001, "undecided")])
def test_a_precision_is_asked_of_ratios_and_of_the_time_of_a_single_cell(precision: float, expected: str) -> None:
    run = stopped(until="precision")
    run = replace(run, sampling=replace(run.sampling, precision=precision))
    assert verdicts(run) == [expected, expected]
    alone = replace(run, results=run.results[:1])
    found = decision.decide(alone)
    assert found is not None and [(item.reference, item.verdict) for item in found.answers] == [(None, expected)]
    assert found.answers[0].estimate == summarise(alone)[0].latency


def test_what_sittings_differ_by_makes_more_launches_futile() -> None:
    wide, narrow = Scatter(0.2, 1e9), Scatter(1e-4, 1e9)
    run = replace(stopped(launch_noise=0.2), between_sittings=BetweenSittings(wide, wide))
    found = decision.decide(run)
    assert found is not None and found.is_futile
    # Two ratios share the error, so each is judged at 97.5 %: 2.241 standard deviations.
    assert found.answers[0].between == pytest.approx(math.expm1(2.2414 * 0.2), rel=1e-3)
    one = decision.decide(replace(run, between_sittings=BetweenSittings(wide, wide, {CELLS[1]: {"ratio": narrow}})))
    assert one is not None and not one.is_futile, "the other may still be decided"
    spread = decision.decide(replace(run, sampling=replace(run.sampling, spread_s=3600.0)))
    assert spread is not None and not spread.is_futile, "further launches are of other sittings"


def test_a_claim_of_a_study_is_not_futile_before_it_can_be_judged() -> None:
    wide = Scatter(0.2, 1e9)
    run = replace(stopped(launch_noise=0.2, experiment=study()), between_sittings=BetweenSittings(wide, wide))
    found = decision.decide(run)
    assert found is not None and found.after_launches < 5 and not found.is_futile


def test_a_flagged_cell_decides_nothing() -> None:
    run = stopped()
    assert verdicts(run)[0] == "slower"
    disturbed = with_blocks(run, CELLS[1], lambda timing: replace(timing, flags=("steal",)))
    found = decision.decide(disturbed)
    assert found is not None and found.answers[0].verdict == "undecided" and not found.is_decided
    assert found.answers[0].flags == "contaminated" and not found.answers[0].is_futile


def test_several_ratios_share_the_error_of_the_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Student's t of 3 degrees of freedom: 7.45 at 99.5 %, which decides one of two ratios, and 5.84 at 99 %."""
    seen: list[Estimate] = []
    monkeypatch.setattr(sequential, "verdict", lambda found: seen.append(found) or "undecided")  # type: ignore[func-returns-value]
    found = decision.decide(stopped())
    assert found is not None and len(seen) == 2
    for item, judged in zip(found.answers, seen, strict=True):
        assert item.estimate is not None and item.estimate.half_width is not None and judged.half_width is not None
        assert judged.half_width / item.estimate.half_width == pytest.approx(7.453 / 5.841, rel=0.05)


def test_two_clocks_that_disagree_decide_nothing() -> None:
    """Slower by the wall clock, faster by CPU time: it waits for what another process does."""
    run = stopped()
    waits = with_blocks(run, CELLS[1], lambda timing: replace(timing, cpu_ns=timing.wall_ns // 2))
    assert verdicts(run)[0] == "slower" and verdicts(waits)[0] == "undecided"
    agrees = with_blocks(run, CELLS[1], lambda timing: replace(timing, cpu_ns=round(0.95 * timing.wall_ns)))
    assert verdicts(agrees)[0] == "slower"
