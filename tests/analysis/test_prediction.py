"""Prediction of times from metrics: exact on data of known truth, cross-validated by family, families resampled."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import lsq_linear
from scipy.stats import spearmanr

from effbench.analysis import prediction, stats
from effbench.analysis.prediction import Sample
from effbench.core.errors import InvalidValue

positive = st.floats(1e-3, 1e3)


def made_up(networks: int = 60, families: int = 12, noise: float = 0.0, seed: int = 1) -> Sample:
    """Times of 1 ms + 2 ns a multiply-add + 5 ns an element moved, and a metric that has nothing to do with them."""
    draw = random.Random(seed)
    madds = [10 ** draw.uniform(6, 9) for _ in range(networks)]
    moved = [10 ** draw.uniform(6, 9) for _ in range(networks)]
    times = [
        (1e-3 + 2e-9 * a + 5e-9 * b) * (1 + noise * draw.uniform(-1, 1)) for a, b in zip(madds, moved, strict=True)
    ]
    metrics = {"madds": madds, "moved": moved, "noise": [draw.random() for _ in madds]}
    return Sample("made up", "made up", metrics, times, [str(number % families) for number in range(networks)])


@given(st.tuples(positive, positive, positive), st.lists(st.tuples(positive, positive), min_size=8, max_size=30))
@settings(deadline=None)
def test_a_fit_reproduces_times_that_are_linear_in_the_metrics(
    truth: tuple[float, float, float], values: list[tuple[float, float]]
) -> None:
    """Metrics nine orders of magnitude larger than times, as elements and seconds are."""
    columns = [[1e9 * a for a, _ in values], [1e9 * b for _, b in values]]
    times = [truth[0] + truth[1] * a + truth[2] * b for a, b in values]
    found = prediction.fit(columns, times)
    again = [found[0] + found[1] * a + found[2] * b for a, b in zip(*columns, strict=True)]
    assert again == pytest.approx(times, rel=1e-6)
    assert min(found) >= 0


def test_a_fit_is_the_bounded_least_squares_of_relative_errors() -> None:
    """Against scipy's other bounded solver, on data where one coefficient ends at its bound."""
    sample = made_up(noise=0.5)
    columns = [sample.metrics["noise"], [1e9 / value for value in sample.metrics["moved"]], sample.metrics["madds"]]
    found = prediction.fit(columns, sample.times_s)
    relative = np.column_stack([np.ones(60), *columns]) / np.asarray(sample.times_s)[:, None]
    scale = relative.max(axis=0)
    expected = lsq_linear(relative / scale, np.ones(60), bounds=(0, np.inf), tol=1e-14).x / scale
    assert min(found) == 0.0
    residual = [float(np.sum((relative @ np.asarray(each) - 1) ** 2)) for each in (found, expected)]
    assert residual[0] == pytest.approx(residual[1], rel=1e-6)


@given(st.lists(st.sampled_from("abcdefghijklm"), min_size=1, max_size=80), st.integers(0, 5))
@settings(deadline=None)
def test_no_family_lies_in_two_folds_and_folds_are_level(families: list[str], seed: int) -> None:
    own = prediction.folds(families, seed=seed)
    assert len(own) == len(families)
    assert all(len({fold for fold, name in zip(own, families, strict=True) if name == each}) == 1 for each in families)
    filled, largest = Counter(own), max(Counter(families).values())
    assert set(own) == set(range(min(prediction.FOLDS, len(set(families)))))
    assert max(filled.values()) - min(filled.values()) <= largest


def test_a_prediction_has_not_seen_its_own_family() -> None:
    sample = made_up(noise=0.3)
    columns = [sample.metrics["madds"]]
    before = prediction.out_of_fold(columns, sample.times_s, sample.families)
    for family in ("0", "7"):
        own = np.asarray([name == family for name in sample.families])
        changed = [10 * time if mine else time for time, mine in zip(sample.times_s, own, strict=True)]
        after = prediction.out_of_fold(columns, changed, sample.families)
        assert after[own].tolist() == before[own].tolist()
        assert not np.allclose(after[~own], before[~own])


def test_scores_of_a_known_truth() -> None:
    """Two terms together are exact, one alone is not, and what has nothing to do with time has no rank correlation."""
    scores = {score.metrics: score for score in prediction.assess(made_up())}
    assert list(scores) == [("madds",), ("moved",), ("noise",), ("madds", "moved"), ("madds", "noise")]
    exact = scores["madds", "moved"]
    assert exact.error.point < 1e-9 and exact.close.point == 1.0
    assert exact.tau is not None and exact.tau.point == pytest.approx(1.0)
    assert exact.coefficients == pytest.approx((1e-3, 2e-9, 5e-9))
    assert scores["madds",].error.point > 0.3 and scores["madds",].close.point < 0.5
    noise = scores["noise",].rho
    assert noise is not None and noise.low is not None and noise.low < 0 < (noise.high or 0)


def test_a_metric_that_is_the_same_everywhere_has_no_order() -> None:
    sample = made_up()
    constant = Sample("", "", {**sample.metrics, "ones": [1.0] * 60}, sample.times_s, sample.families)
    score = next(score for score in prediction.assess(constant) if score.metrics == ("ones",))
    assert score.tau is None and score.rho is None
    assert score.to_dict()["kendall_tau"] is None


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        (made_up(networks=7, families=7), "7 networks of 7 families"),
        (made_up(networks=20, families=2), "20 networks of 2 families"),
        (Sample("", "x", {"madds": [1.0] * 9}, [1.0] * 8 + [0.0], list("abcabcabc")), "must be above zero"),
        (Sample("", "x", {}, [], []), "0 networks"),
    ],
)
def test_too_little_to_judge_from_is_said_in_a_line(sample: Sample, said: str) -> None:
    with pytest.raises(InvalidValue, match=said):
        prediction.assess(sample)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=3, max_size=40))
@settings(deadline=None)
def test_spearman_is_scipys_ties_included(pairs: list[tuple[int, int]]) -> None:
    x, y = zip(*pairs, strict=True)
    if len(set(x)) == 1 or len(set(y)) == 1:
        with pytest.raises(ValueError, match="no order"):
            prediction.spearman(x, y, ["a"] * len(x))
    else:
        found = prediction.spearman(x, y, ["a"] * len(x))
        assert found.point == pytest.approx(float(spearmanr(x, y).statistic), abs=1e-12)
        assert found.low is None, "one family gives no interval"


def test_intervals_are_over_families_drawn_whole() -> None:
    """Each of the three statistics against scipy or numpy on the drawn networks themselves."""
    sample = made_up(noise=0.4)
    madds, times, families = sample.metrics["madds"], sample.times_s, sample.families
    predicted = prediction.out_of_fold([madds], times, families)
    errors = [abs(guess / time - 1) for guess, time in zip(predicted.tolist(), times, strict=True)]
    names = list(dict.fromkeys(families))

    def networks(drawn: Sequence[int]) -> list[int]:
        return [place for number in drawn for place, own in enumerate(families) if own == names[number]]

    score = prediction.assess(sample)[0]
    expected = {
        score.error: lambda drawn: float(np.median([errors[place] for place in networks(drawn)])),
        score.close: lambda drawn: float(np.mean([errors[place] <= 0.25 for place in networks(drawn)])),
        score.rho: lambda drawn: float(
            spearmanr(
                [madds[place] for place in networks(drawn)], [times[place] for place in networks(drawn)]
            ).statistic
        ),
    }
    for estimate, statistic in expected.items():
        assert estimate is not None
        assert (estimate.low, estimate.high) == pytest.approx(stats.cluster_interval(statistic, len(names)), abs=1e-9)
        assert estimate.point == pytest.approx(statistic(range(len(names))))
