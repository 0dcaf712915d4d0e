"""The figure of an analysis: where errors, intervals and predictions of single networks stand."""

from __future__ import annotations

from itertools import pairwise

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from effbench.analysis.prediction import Sample, Score
from effbench.core.estimate import Estimate
from effbench.report.figures import prediction

TIMES_S = (0.001, 0.002, 0.004, 4.0)


def sample(title: str) -> Sample:
    metrics = {"madds": (1e6, 2e6, 3e6, 4e6), "memory access": (4e6, 3e6, 2e6, 1e6)}
    return Sample(title, title, metrics, TIMES_S, ("a", "a", "b", "b"))


def score(metrics: tuple[str, ...], error: float, predicted: tuple[float, ...] = TIMES_S) -> Score:
    interval = Estimate(error, error / 2, 2 * error)
    return Score(metrics, interval, Estimate(0.75, 0.2, 0.9), None, None, (0.0,) * (1 + len(metrics)), predicted)


@pytest.fixture(scope="module")
def figure() -> Figure:
    """Two devices. On the first, predictions are off by none, twice, a tenth and twentyfold."""
    off = tuple(factor * time for factor, time in zip((1.0, 2.0, 0.1, 20.0), TIMES_S, strict=True))
    scores = [score(("madds",), 0.3, off), score(("memory access",), 0.2), score(("madds", "memory access"), 0.1)]
    found = [(sample("one"), scores), (sample("other"), scores[:1])]
    drawn = prediction.prediction_figure("How well metrics predict", found)
    drawn.draw_without_rendering()
    return drawn


def points(axes: Axes) -> list[tuple[float, float]]:
    return [point for line in axes.lines if line.get_marker() in ("o", "D") for point in zip(*line.get_data())]  # noqa: B905


def test_each_device_has_a_panel_with_its_errors_and_intervals(figure: Figure) -> None:
    one, other = figure.axes[:2]
    assert [axes.get_title(loc="left") for axes in (one, other)] == ["one", "other"]
    assert [label.get_text() for label in one.get_yticklabels()] == ["madds", "memory access"]
    # A metric alone stands above its row's middle, and with the first metric below it, in the row of the other.
    assert points(one) == [(30.0, -0.14), (20.0, 0.86), (10.0, pytest.approx(1.14))]
    assert points(other) == [(30.0, -0.14)]
    ends = [tuple(line.get_xdata()) for line in one.lines if line.get_marker() == "None"]
    assert ends == [(15.0, 60.0), (10.0, 40.0), (5.0, 20.0)]
    assert one.get_xlim() == other.get_xlim() and one.get_xlim()[1] > 60, "one scale for all devices"


def test_predictions_of_the_first_device_stand_below_and_stay_inside(figure: Figure) -> None:
    alone, joined = figure.axes[2:]
    assert "madds" in alone.get_title(loc="left") and "75 % of networks within 25 %" in alone.get_title(loc="left")
    assert points(alone) == [(1.0, 1.0), (2.0, 2.0), (4.0, pytest.approx(1 / 3)), (4000.0, 3.0)]
    assert "madds + memory access" in joined.get_title(loc="left"), "the pair with the least error"
    assert [ratio for _, ratio in points(joined)] == [1.0] * 4
    # Times over more than three decades: a tick at each power of ten and none between.
    ticks = [tick for tick in alone.get_xticks() if 1 <= tick <= 4000]
    assert ticks and all(after / before == pytest.approx(10) for before, after in pairwise(ticks))
