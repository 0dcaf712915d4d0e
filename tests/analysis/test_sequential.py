"""Stopping as soon as the interval decides: looks, boundaries, futility, and whether the error stays at 5 %."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest

from effbench.analysis import sequential
from effbench.analysis.intervals import Intervals
from effbench.core.estimate import Estimate
from effbench.core.study import Sampling

FASTER = Sampling(launches=13, until="faster")


def interval(low: float, high: float) -> Estimate:
    return Estimate(math.sqrt(low * high), low, high)


def test_looks_grow_by_half_and_end_with_the_last_launch() -> None:
    assert sequential.LOOKS == (3, 4, 6, 9, 13)
    assert sequential.looks(30) == (3, 4, 6, 9, 13, 19, 28, 30)
    assert [sequential.looks(number) for number in (1, 3, 4)] == [(1,), (3,), (3, 4)]
    assert [number for number in range(20) if sequential.is_look(FASTER, number)] == [3, 4, 6, 9, 13]
    assert not any(sequential.is_look(Sampling(launches=13), number) for number in range(20))


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (interval(1.0101, 1.5), "slower"),
        (interval(1.0099, 1.5), "undecided"),
        (interval(0.5, 0.9899), "faster"),
        (interval(0.5, 0.9903), "undecided"),
        (interval(0.975, 1.029), "same"),
        (interval(0.975, 1.031), "undecided"),
        (interval(0.97, 1.029), "undecided"),
        (Estimate(2.0), "undecided"),
        (None, "undecided"),
    ],
)
def test_an_interval_decides_where_it_lies_wholly_on_one_side(found: Estimate | None, verdict: str) -> None:
    assert sequential.verdict(found) == verdict


def test_a_precision_is_half_the_width_of_the_interval() -> None:
    assert sequential.is_precise(Estimate(1.0, 0.99, 1.01), 0.0101)
    assert not sequential.is_precise(Estimate(1.0, 0.98, 1.01), 0.0101)
    assert not sequential.is_precise(Estimate(1.0), 1.0) and not sequential.is_precise(None, 1.0)


@pytest.mark.parametrize(
    ("point", "half", "is_futile"),
    [
        (1.02, None, False),
        (1.02, 0.0, False),
        (1.02, 0.002, False),  # 1.02 ± 0.2 %: slower
        (1.02, 0.025, True),  # 0.99 to 1.05
        (0.98, 0.025, True),
        (1.20, 0.025, False),
        (1.00, 0.013, False),  # within 1.3 %: the same
        (1.00, 0.05, True),
        (None, 0.05, False),
    ],
)
def test_what_differs_between_sittings_cannot_be_decided_in_one(
    point: float | None, half: float | None, is_futile: bool
) -> None:
    assert sequential.is_futile(point, half) is is_futile


def test_no_precision_is_reached_that_sittings_do_not_have() -> None:
    assert sequential.is_futile(1.5, 0.02, until="precision", precision=0.01)
    assert not sequential.is_futile(1.5, 0.0099, until="precision", precision=0.01)


def test_the_budget_ends_a_run_that_has_no_time_for_another_launch() -> None:
    sampling = Sampling(launches=13, until="faster", budget_s=60.0)
    assert not sequential.is_budget_used(sampling, 2, 100.0), "no interval yet"
    assert not sequential.is_budget_used(sampling, 4, 53.0)
    assert sequential.is_budget_used(sampling, 4, 54.0)
    assert not sequential.is_budget_used(Sampling(), 4, 1e9)


def test_a_launch_spends_its_time_on_few_rounds() -> None:
    assert sequential.rounds_s(FASTER, 30.0) == 1.0 and sequential.rounds_s(FASTER, 0.5) == 0.5
    assert sequential.rounds_s(Sampling(), 30.0) == 30.0
    assert sequential.least_launches(FASTER) == 3 and sequential.least_launches(Sampling(launches=7)) == 7


# --- is the error of the whole procedure 5 %? --------------------------------------------------------------


def stopped_at(
    truth: float,
    scatter: float,
    correlation: float,
    generator: np.random.Generator,
    rounds: int = 12,
    looks: int = len(sequential.LOOKS),
) -> Iterator[tuple[str, Estimate]]:
    """One simulated comparison after another: its verdict, and the interval at which it stopped.

    Launches scatter by `scatter`, the blocks within them by 2 %, with this lag-1 correlation.
    """
    while True:
        launches: list[list[float]] = []
        for look in sequential.LOOKS:
            while len(launches) < look:
                noise = generator.normal(0, 0.02, rounds)
                for place in range(1, rounds):
                    noise[place] = correlation * noise[place - 1] + math.sqrt(1 - correlation**2) * noise[place]
                launches.append((math.log(truth) + generator.normal(0, scatter) + noise).tolist())
            found = Intervals(looks=looks).over(dict(enumerate(launches)))
            assert found is not None
            if (verdict := sequential.verdict(found)) != "undecided" or look == sequential.LOOKS[-1]:
                yield verdict, found
                break


@pytest.mark.parametrize("scatter", [0.005, 0.03])
@pytest.mark.parametrize("truth", [1.0, 1.2])
def test_the_interval_at_the_stop_holds_and_the_verdict_is_right(truth: float, scatter: float) -> None:
    """300 comparisons each. A true 95 % would miss more than 25 of them once in 200 times."""
    runs = stopped_at(truth, scatter, 0.7, np.random.default_rng(1))
    found = [next(runs) for _ in range(300)]
    missed = sum(not (item.low or 0.0) <= truth <= (item.high or 0.0) for _, item in found)
    assert missed <= 25
    right = {1.0: {"same", "undecided"}, 1.2: {"slower", "undecided"}}[truth]
    assert sum(verdict not in right for verdict, _ in found) <= 25
    if (truth, scatter) == (1.2, 0.005):
        assert all(verdict == "slower" and item.n <= 4 for verdict, item in found[:50]), "and it is decided soon"


def test_looking_without_a_price_would_be_wrong_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same procedure with plain 95 % intervals: what the looks have to pay for."""
    # Without the smallest effect, any interval that excludes 1 would decide.
    monkeypatch.setattr(sequential, "SMALLEST_EFFECT", 0.0)
    monkeypatch.setattr(sequential, "TOLERANCE", 0.0)
    runs = stopped_at(1.0, 0.03, 0.0, np.random.default_rng(2), looks=1)
    wrong = sum(verdict != "undecided" for verdict, _ in (next(runs) for _ in range(300)))
    assert wrong > 25
