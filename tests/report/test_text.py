"""Texts that tables and figures share: sentences about verdicts, labels that differ, equal costs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import report_examples as examples

from effbench.analysis.cell_summary import CellSummary
from effbench.core.cost import Cost
from effbench.core.estimate import Estimate
from effbench.core.study import Case, Cell
from effbench.report import text as report_text

pytestmark = pytest.mark.quick


def test_verdict_sentences() -> None:
    g2 = [report_text.verdict_sentence(verdict, factor="groups") for verdict in examples.g2()[2]]
    assert g2[1] == (
        "scale x2: groups 8 runs 2.87× slower than groups 1 (95 % interval 2.81–2.93; the paper: 1.39×). G2 holds."
    )
    assert g2[0].endswith("G2 is unsure: the launches disagree.")
    g4 = [report_text.verdict_sentence(verdict) for verdict in examples.g4()[2]]
    assert g4[1] == (
        "scale x2: relu+shortcut takes 0.97× the time of none (95 % interval 0.95–0.99; the paper: 1.06×). "
        "G4 fails: the order is reversed."
    )
    assert "was not measured (the paper: 1.06×). G4 is unsure: a cell was skipped." in g4[2]


def test_a_verdict_without_group_or_interval_still_reads() -> None:
    verdict = examples.verdict("G2", "holds", {}, (8, 1, Estimate(2.0), None))
    assert (
        report_text.verdict_sentence(verdict, factor="groups") == "Groups 8 runs 2.00× slower than groups 1. G2 holds."
    )


@pytest.mark.parametrize(
    ("words", "example"),
    [
        (
            ("wall-clock time over that of groups 1", "above 1 is slower", "5 launches, 720 blocks, none set aside"),
            "g2",
        ),
        (("Intel Xeon 8370C (cpu), 1 thread", "95 %", "Snapdragon 810"), "g2"),
        (("thread CPU time over that of ops relu+shortcut", "not complete"), "g4"),
    ],
)
def test_the_notes_name_the_clock_the_sample_the_reference_and_the_paper(words: tuple[str, ...], example: str) -> None:
    run, cells, _ = {"g2": examples.g2, "g4": examples.g4}[example]()
    text = " ".join(report_text.notes(run, cells))
    assert [word for word in words if word not in text] == []


def test_the_papers_platform_follows_the_channels_then_the_device() -> None:
    run, cells, _ = examples.g2()
    cell = cells[1].cell
    gpu = replace(cells[1], cell=replace(cell, case=replace(cell.case, labels={**cell.case.labels, "channels": "GPU"})))
    assert "measured on a GTX 1080 Ti." in " ".join(report_text.notes(run, [gpu]))
    notes = " ".join(report_text.notes(*examples.models(3)))
    assert "GTX 1080 Ti" in notes
    assert "NVIDIA H100 80GB HBM3 (cuda:0), eager" in notes
    assert "1 of them set aside" in notes
    assert "flagged cell cannot confirm" in notes


def test_the_residual_of_equal_costs_is_the_largest_difference_from_the_reference() -> None:
    """G2 on ARM: 184² / 8 = 4232 against 64² = 4096, which is 3.3 % (Table 2 with the authors' correction)."""

    def cell(groups: int, madds: int | None) -> CellSummary:
        case = Case("probe", (1,), labels={"groups": groups})
        cost = None if madds is None else Cost(0, madds, 0, 0, {})
        return CellSummary(Cell(case), cost=cost, reference="groups=1")

    assert report_text.residual_madds([cell(1, 4096), cell(2, 4050), cell(8, 4232)]) == pytest.approx(4232 / 4096 - 1)
    assert report_text.residual_madds([cell(1, None), cell(2, 4050)]) is None
    assert report_text.residual_madds([cell(1, 0), cell(2, 0)]) is None


def test_cells_are_told_apart_by_what_differs() -> None:
    names, shared = report_text.split_ids(["channels=ARM,scale=x1,groups=1", "channels=ARM,scale=x1,groups=8"])
    assert (names, shared) == (["groups=1", "groups=8"], "channels=ARM, scale=x1")
    assert report_text.split_ids(["model=a"]) == (["model=a"], "")
    assert report_text.split_ids([]) == ([], "")
