"""The figure of a gate: positions of its marks, and marks at the edge of the axis."""

from __future__ import annotations

from pathlib import Path

import pytest

from effbench.core.estimate import Estimate
from effbench.gates.result import Decision, Finding, GateVerdict
from effbench.report.figures import style
from effbench.report.figures.gate import gate_figure


def finding(cell: str, verdict: GateVerdict, ratio: tuple[float, float, float], **more: float) -> Finding:
    change = Estimate(ratio[1], ratio[0], ratio[2], 0.95, 4)
    return Finding("against", cell, verdict, change=change, tolerance=0.03, launches=4, **more)  # type: ignore[arg-type]


def decision(*findings: Finding) -> Decision:
    return Decision(findings, baseline="main (1a2b3c4)", candidate="working tree")


def test_each_cell_stands_in_its_row_with_its_interval() -> None:
    figure = gate_figure(
        decision(
            finding("small", "PASS", (0.99, 1.0, 1.01)),
            finding("wide", "REGRESSION", (1.05, 1.06, 1.08), detectable=0.02),
        )
    )
    assert figure is not None
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["small", "wide"]
    drawn = [(tuple(line.get_xdata()), tuple(line.get_ydata())) for line in axes.lines]  # type: ignore[arg-type]
    bars = {y[0]: x for x, y in drawn if len(x) == 2 and y[0] == y[1]}
    assert bars[0] == pytest.approx((-1, 1)) and bars[1] == pytest.approx((5, 8))
    points = {
        (line.get_marker(), line.get_color()): line.get_xdata() for line in axes.lines if len(line.get_xdata()) == 1
    }  # type: ignore[arg-type]
    assert points["X", style.VERMILLION][0] == pytest.approx(6)
    assert points["o", style.BLUE][0] == pytest.approx(0)
    assert points["v", style.INK][0] == pytest.approx(2), "what could have been seen"
    low, high = axes.get_xlim()
    assert low == -high and high > 8
    assert axes.get_ylim()[0] > axes.get_ylim()[1], "the first cell on top"
    assert "REGRESSION: 1 of 2 cells" in figure.texts[0].get_text()


def test_a_network_twice_as_slow_does_not_hide_the_others() -> None:
    figure = gate_figure(
        decision(finding("a", "PASS", (0.99, 1.0, 1.01)), finding("b", "REGRESSION", (1.85, 1.9, 1.95)))
    )
    assert figure is not None
    (axes,) = figure.axes
    assert axes.get_xlim()[1] == 15
    assert [text.get_text() for text in axes.texts] == ["+90 %"]


def test_a_cell_without_an_interval_is_a_point() -> None:
    one = Finding("against", "a", "INCONCLUSIVE", change=Estimate(1.02, None, None, 0.95, 1), tolerance=0.03)
    figure = gate_figure(decision(one))
    assert figure is not None and len(figure.axes[0].get_yticklabels()) == 1


def test_counts_alone_need_no_figure() -> None:
    assert gate_figure(decision(Finding("costs", "a", "PASS"))) is None


def test_it_can_be_written_and_a_label_is_only_text(tmp_path: Path) -> None:
    figure = gate_figure(decision(finding("$x^2$ <b>\x1b[31m" + "long" * 30, "PASS", (0.99, 1.0, 1.01))))
    assert figure is not None
    png, svg = style.save(figure, tmp_path, "figure")
    assert png.read_bytes().startswith(b"\x89PNG") and "<b>" not in svg.read_text()
