"""The four panels of Figure 1: their models and positions."""

from __future__ import annotations

import pytest

from effbench import paper
from effbench.analysis.cell_summary import CellSummary
from effbench.core.cost import LEVELS, Cost, Traffic
from effbench.core.estimate import Estimate
from effbench.core.run import Run
from effbench.core.study import Case, Cell
from effbench.report.figures import panels as panels_figure

NETWORKS = ("shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "mobilenet_v1_x0_5", "mobilenet_v2", "resnet18")


def cells() -> list[CellSummary]:
    found = []
    for place, name in enumerate(NETWORKS):
        row = paper.full_model(name)
        cost = Cost(1, 10_000_000 * (place + 1), 1, 0, {level: Traffic(1) for level in LEVELS})
        found.append(
            CellSummary(
                Cell(Case(name, (3, 224, 224), labels={"model": name})),
                cost,
                latency=Estimate(0.01),
                throughput=100.0 / (place + 1),
                full_model=row,
                paper_speed=None if row is None else row.arm_speed,
                paper_unit=None if row is None else "images/s",
            )
        )
    return found


@pytest.fixture
def run() -> Run:
    from report_examples import models

    return models(2)[0]


def test_points_are_madds_accuracy_and_speed(run: Run) -> None:
    figure = panels_figure.panels_figure(run, cells())
    panels = [
        {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.lines} for axes in figure.axes
    ]
    assert len(panels) == 4
    points = [sorted(point for line in panel.values() for point in line) for panel in panels]
    # Published errors 39.7, 30.6, 36.3, 28.0; the ResNet has none and is left out everywhere.
    assert points[0] == [(10, pytest.approx(60.3)), (20, pytest.approx(69.4)), (30, pytest.approx(63.7)), (40, 72.0)]
    assert points[1] == [
        (25, 72.0),
        (pytest.approx(100 / 3), pytest.approx(63.7)),
        (50, pytest.approx(69.4)),
        (100, pytest.approx(60.3)),
    ]
    assert points[2] == [(10, 100), (20, 50), (30, pytest.approx(100 / 3)), (40, 25)]
    assert points[3] == [(41, 57.0), (146, 24.4), (149, 16.5), (300, 8.9)]
    # One line a family, its widths joined.
    assert sorted(len(line) for line in panels[0].values()) == [1, 1, 2]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "shufflenet_v2",
        "mobilenet_v1",
        "mobilenet_v2",
    ]


def test_three_networks_of_the_paper_are_no_picture() -> None:
    assert panels_figure.can_draw(cells())
    assert not panels_figure.can_draw([cell for cell in cells() if cell.cell.case.model != "mobilenet_v2"])
