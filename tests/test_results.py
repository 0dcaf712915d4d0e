"""`Results.plot` draws into the axes that it is given, into no others, and leaves pyplot alone."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
import report_examples as examples
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from effbench.core.errors import InvalidValue
from effbench.results import Results


def results_of(run: Any, cells: Any, verdicts: Any = ()) -> Results:
    """Of cells that are written down rather than summarised from blocks."""
    found = Results(run)
    found.__dict__.update(cells=tuple(cells), verdicts=tuple(verdicts))
    return found


def one_group() -> Results:
    run, cells, verdicts = examples.g2()
    group = cells[0].cell.case.labels["scale"]
    cells = [cell for cell in cells if cell.cell.case.labels["scale"] == group]
    return results_of(run, cells, [item for item in verdicts if item.group.get("scale") == group])


def contents(axes: Axes) -> int:
    return len(axes.lines) + len(axes.collections) + len(axes.texts) + len(axes.patches) + len(axes.containers)


@pytest.mark.parametrize(
    ("results", "label"),
    [(one_group, "groups"), (lambda: results_of(*examples.models(3)), "latency of one batch (ms)")],
    ids=["study", "models"],
)
def test_a_run_is_drawn_where_it_is_told(results: Any, label: str):
    left, right = Figure().subplots(1, 2)
    assert results().plot(ax=left) is left
    assert contents(left) > 3
    assert left.get_xlabel() == label
    assert contents(right) == 0
    assert not left.figure.texts and not left.figure.legends, "title and legend of a whole figure are its owner's"
    assert left.figure.axes == [left, right]
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
    left.figure.draw_without_rendering()


def test_what_is_drawn_into_axes_are_the_measured_ratios():
    axes = Figure().add_subplot()
    found = one_group()
    found.plot(axes)
    drawn = {round(float(y), 9) for line in axes.lines for y in line.get_ydata()}
    assert {round(cell.ratio.point, 9) for cell in found.cells if cell.ratio} <= drawn


def test_without_axes_there_is_a_new_figure_as_before():
    figure = results_of(*examples.models(3)).plot()
    assert isinstance(figure, Figure) and len(figure.axes) >= 3


def test_several_panels_do_not_fit_into_one_axes():
    axes = Figure().add_subplot()
    with pytest.raises(InvalidValue, match=r"drawn in \d panels \(by scale\).*leave out ax") as caught:
        results_of(*examples.g2()).plot(axes)
    assert "\n" not in str(caught.value)
    assert contents(axes) == 0


def test_axes_that_are_none_and_runs_without_cells_are_refused():
    with pytest.raises(InvalidValue, match="of type Figure"):
        one_group().plot(Figure())  # type: ignore[call-overload]
    with pytest.raises(InvalidValue, match="of type ndarray"):
        one_group().plot(Figure().subplots(1, 2))
    run, cells, _ = examples.g2()
    with pytest.raises(InvalidValue, match="nothing to draw"):
        results_of(replace(run, results=()), cells[:0]).plot(Figure().add_subplot())
