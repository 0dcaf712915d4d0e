"""The table of a study: its columns, what stands in a CSV, its notes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import report_examples as examples
from report_examples import rows_of

from effbench.analysis.cell_summary import CellSummary
from effbench.core.study import Case, Cell
from effbench.report.tables.study import study_rows

pytestmark = pytest.mark.quick


def test_csv_holds_the_summaries_at_full_precision() -> None:
    run, cells, _ = examples.g2()
    for row, cell in zip(rows_of(study_rows(run, cells)), cells, strict=True):
        assert cell.cost and cell.latency and cell.ratio
        assert int(row["madds"]) == cell.cost.madds
        assert int(row["memory access (elements)"]) == cell.cost.memory_access
        assert float(row["latency (s)"]) == cell.latency.point
        assert float(row["latency (s) high"]) == cell.latency.high
        assert float(row["time ratio"]) == cell.ratio.point
        assert row["time ratio low"] == ("" if cell.ratio.low is None else repr(cell.ratio.low))


def test_a_study_shows_only_the_labels_that_vary_and_the_factor() -> None:
    run, cells, _ = examples.g2()
    assert [column.heading for column in study_rows(run, cells).columns][:2] == ["scale", "groups"]
    assert study_rows(run, cells[:4]).columns[0].heading == "groups"
    assert study_rows(run, cells[:1]).columns[0].heading == "groups"


def test_columns_without_any_value_are_dropped_and_missing_is_never_zero() -> None:
    run, cells, _ = examples.g2()
    bare = [replace(cell, paper_ratio=None, paper_speed=None, bound=None, throughput=None) for cell in cells]
    headings = [column.heading for column in study_rows(run, bare).columns]
    assert not {"paper's ratio", "bound", "throughput", "flags"} & set(headings)
    run, cells, _ = examples.g4()
    skipped = next(row for row in rows_of(study_rows(run, cells)) if "skipped" in row["flags"])
    assert skipped["flags"] == "skipped: out of memory"
    assert {skipped["madds"], skipped["latency (s)"], skipped["time ratio"]} == {""}


def test_the_reference_says_so_and_has_a_plain_one_in_the_csv() -> None:
    run, cells, _ = examples.g2()
    table = study_rows(run, cells)
    at = [column.heading for column in table.columns].index("time ratio")
    assert [row[at].text for row in table.rows].count("reference") == 3
    assert table.rows[7][at].text == "×2.87 [2.81, 2.93]"


def test_a_cell_that_was_never_measured_is_a_row_of_dashes() -> None:
    run, _, _ = examples.g2()
    table = study_rows(run, [CellSummary(Cell(Case("probe", (64, 56, 56), labels={"groups": 1})))])
    assert [column.heading for column in table.columns] == ["groups"]
