"""The table of models side by side, and that of the networks it leaves out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import report_examples as examples
from report_examples import rows_of

from effbench.core.study import Case, Cell
from effbench.report.tables.compare import absent_rows, compare_rows

pytestmark = pytest.mark.quick


def test_compare_reads_peak_memory_partial_counts_and_the_papers_speed() -> None:
    table = compare_rows(*examples.models(5))
    rows = rows_of(table)
    assert [row["peak memory (bytes)"] for row in rows] == ["48200000", "", "", "", ""]
    assert rows[3]["flags"] == "counts partial: aten::roll ×3"
    assert [row["paper (images/s)"] for row in rows] == ["57.0", "", "", "54.0", ""]
    assert rows[0]["model"] == "shufflenet_v2_x1_0"


def test_two_cells_of_one_model_are_told_apart() -> None:
    run, cells = examples.models(2)
    twin = replace(cells[0], cell=Cell(Case(cells[0].cell.case.model, (3, 160, 160), labels={"input": 160})))
    table = compare_rows(run, [cells[0], twin])
    assert [column.heading for column in table.columns[:3]] == ["input", "model", "input"]
    assert [[value.text for value in row[:3]] for row in table.rows] == [
        ["–", "shufflenet_v2_x1_0", "3×224×224"],
        ["160", "shufflenet_v2_x1_0", "3×160×160"],
    ]
    same = compare_rows(run, [cells[0], cells[0]])
    assert [row[0].text for row in same.rows] == ["model=shufflenet_v2_x1_0"] * 2


def test_networks_that_the_paper_has_and_we_cannot_measure_are_listed_with_its_figures() -> None:
    run, _ = examples.models(2)
    absent = {"DenseNet 1x (our impl.)": "no growth rates", "My own": "not in the paper"}
    table = absent_rows(replace(run, experiment=replace(run.experiment, absent=absent)))
    assert [[value.text for value in row] for row in table.rows] == [
        ["DenseNet 1x (our impl.)", "142", "45.2", "279", "15.8", "no growth rates"],
        ["My own", "–", "–", "–", "–", "not in the paper"],
    ]
