"""Tables: golden renderings, what the columns and notes say, and that no label can break a rendering."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import report_examples as examples
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from effbench.analysis.cell_summary import CellSummary
from effbench.core.cost import Cost
from effbench.core.estimate import Comparison, Estimate
from effbench.core.study import Case, Cell
from effbench.report import text as report_text
from effbench.report.tables import cells as tables
from effbench.report.tables.cells import Column, Table, Value, render_csv, render_markdown, render_terminal
from effbench.report.tables.table_model import one_line

pytestmark = pytest.mark.quick

GOLDEN = Path(__file__).parent / "golden"


def diff_table() -> Table:
    return tables.diff_rows(
        [
            Comparison("groups=1", "slower", examples.around(1.05)),
            Comparison("groups=2", "same", examples.around(1.0)),
            Comparison("groups=8", "missing", None, "not in the baseline"),
        ]
    )


def profile_table() -> Table:
    return tables.profile_rows(
        [
            {
                "name": "conv1",
                "op": "convolution",
                "output": (64, 112, 112),
                "madds": 118013952,
                "memory_access": 962048,
            },
            {"name": "", "op": "add", "output": (64, 112, 112), "madds": 0, "memory_access": 2408448},
        ],
        title="two operators",
    )


EXAMPLES: dict[str, Callable[[], Table]] = {
    "study": lambda: tables.study_rows(*examples.g2()[:2]),
    "study_skipped": lambda: tables.study_rows(*examples.g4()[:2]),
    "compare": lambda: tables.compare_rows(*examples.models(5, skipped=("shufflenet_v1_g3_x1_0",))),
    "verdicts": lambda: tables.verdict_rows(examples.g4()[2]),
    "diff": diff_table,
    "profile": profile_table,
}


def terminal(table: Table, width: int = 120) -> str:
    out = io.StringIO()
    render_terminal(table, Console(file=out, width=width, color_system=None))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


@pytest.mark.parametrize("form", ["md", "csv", "txt"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_rendering_is_golden(name: str, form: str, rewrite_golden: bool) -> None:
    table = EXAMPLES[name]()
    text = {"md": render_markdown, "csv": render_csv, "txt": terminal}[form](table)
    path = GOLDEN / f"{name}.{form}"
    if rewrite_golden:
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), "run pytest --golden if the new text is right"


def rows_of(table: Table) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(render_csv(table))))


def test_csv_holds_the_summaries_at_full_precision() -> None:
    run, cells, _ = examples.g2()
    for row, cell in zip(rows_of(tables.study_rows(run, cells)), cells, strict=True):
        assert cell.cost and cell.latency and cell.ratio
        assert int(row["madds"]) == cell.cost.madds
        assert int(row["memory access (elements)"]) == cell.cost.memory_access
        assert float(row["latency (s)"]) == cell.latency.point
        assert float(row["latency (s) high"]) == cell.latency.high
        assert float(row["time ratio"]) == cell.ratio.point
        assert row["time ratio low"] == ("" if cell.ratio.low is None else repr(cell.ratio.low))


def test_a_study_shows_only_the_labels_that_vary_and_the_factor() -> None:
    run, cells, _ = examples.g2()
    assert [column.heading for column in tables.study_rows(run, cells).columns][:2] == ["scale", "groups"]
    assert tables.study_rows(run, cells[:4]).columns[0].heading == "groups"
    assert tables.study_rows(run, cells[:1]).columns[0].heading == "groups"


def test_columns_without_any_value_are_dropped_and_missing_is_never_zero() -> None:
    run, cells, _ = examples.g2()
    bare = [replace(cell, paper_ratio=None, paper_speed=None, bound=None, throughput=None) for cell in cells]
    headings = [column.heading for column in tables.study_rows(run, bare).columns]
    assert not {"paper's ratio", "bound", "throughput", "flags"} & set(headings)
    run, cells, _ = examples.g4()
    skipped = next(row for row in rows_of(tables.study_rows(run, cells)) if "skipped" in row["flags"])
    assert skipped["flags"] == "skipped: out of memory"
    assert {skipped["madds"], skipped["latency (s)"], skipped["time ratio"]} == {""}


def test_the_reference_says_so_and_has_a_plain_one_in_the_csv() -> None:
    run, cells, _ = examples.g2()
    table = tables.study_rows(run, cells)
    at = [column.heading for column in table.columns].index("time ratio")
    assert [row[at].text for row in table.rows].count("reference") == 3
    assert table.rows[7][at].text == "×2.87 [2.81, 2.93]"


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
    text = " ".join(tables.study_rows(run, cells).notes)
    assert [word for word in words if word not in text] == []


def test_the_papers_platform_follows_the_channels_then_the_device() -> None:
    run, cells, _ = examples.g2()
    cell = cells[1].cell
    gpu = replace(cells[1], cell=replace(cell, case=replace(cell.case, labels={**cell.case.labels, "channels": "GPU"})))
    assert "measured on a GTX 1080 Ti." in " ".join(tables.study_rows(run, [gpu]).notes)
    notes = " ".join(tables.compare_rows(*examples.models(3)).notes)
    assert "GTX 1080 Ti" in notes
    assert "NVIDIA H100 80GB HBM3 (cuda:0), eager" in notes
    assert "1 of them set aside" in notes
    assert "flagged cell cannot confirm" in notes


def test_compare_reads_peak_memory_partial_counts_and_the_papers_speed() -> None:
    table = tables.compare_rows(*examples.models(5))
    rows = rows_of(table)
    assert [row["peak memory (bytes)"] for row in rows] == ["48200000", "", "", "", ""]
    assert rows[3]["flags"] == "counts partial: aten::roll ×3"
    assert [row["paper (images/s)"] for row in rows] == ["57.0", "", "", "54.0", ""]
    assert rows[0]["model"] == "shufflenet_v2_x1_0"


def test_two_cells_of_one_model_are_told_apart() -> None:
    run, cells = examples.models(2)
    twin = replace(cells[0], cell=Cell(Case(cells[0].cell.case.model, (3, 160, 160), labels={"input": 160})))
    table = tables.compare_rows(run, [cells[0], twin])
    assert [column.heading for column in table.columns[:3]] == ["input", "model", "input"]
    assert [[value.text for value in row[:3]] for row in table.rows] == [
        ["–", "shufflenet_v2_x1_0", "3×224×224"],
        ["160", "shufflenet_v2_x1_0", "3×160×160"],
    ]
    same = tables.compare_rows(run, [cells[0], cells[0]])
    assert [row[0].text for row in same.rows] == ["model=shufflenet_v2_x1_0"] * 2


def test_networks_that_the_paper_has_and_we_cannot_measure_are_listed_with_its_figures() -> None:
    run, _ = examples.models(2)
    absent = {"DenseNet 1x (our impl.)": "no growth rates", "My own": "not in the paper"}
    table = tables.absent_rows(replace(run, experiment=replace(run.experiment, absent=absent)))
    assert [[value.text for value in row] for row in table.rows] == [
        ["DenseNet 1x (our impl.)", "142", "45.2", "279", "15.8", "no growth rates"],
        ["My own", "–", "–", "–", "–", "not in the paper"],
    ]


def test_verdict_sentences() -> None:
    g2 = [tables.verdict_sentence(verdict, factor="groups") for verdict in examples.g2()[2]]
    assert g2[1] == (
        "scale x2: groups 8 runs 2.87× slower than groups 1 (95 % interval 2.81–2.93; the paper: 1.39×). G2 holds."
    )
    assert g2[0].endswith("G2 is unsure: the launches disagree.")
    g4 = [tables.verdict_sentence(verdict) for verdict in examples.g4()[2]]
    assert g4[1] == (
        "scale x2: relu+shortcut takes 0.97× the time of none (95 % interval 0.95–0.99; the paper: 1.06×). "
        "G4 fails: the order is reversed."
    )
    assert "was not measured (the paper: 1.06×). G4 is unsure: a cell was skipped." in g4[2]


def test_a_verdict_without_group_or_interval_still_reads() -> None:
    verdict = examples.verdict("G2", "holds", {}, (8, 1, Estimate(2.0), None))
    assert tables.verdict_sentence(verdict, factor="groups") == "Groups 8 runs 2.00× slower than groups 1. G2 holds."


def test_verdict_rows_use_words_and_leave_out_labels_that_do_not_vary() -> None:
    verdicts = [replace(verdict, group={"channels": "ARM", **verdict.group}) for verdict in examples.g4()[2]]
    rows = rows_of(tables.verdict_rows(verdicts))
    assert [row["verdict"] for row in rows] == ["holds", "fails", "unsure"]
    assert [row["group"] for row in rows] == ["scale x1", "scale x2", "scale x4"]
    assert rows_of(tables.verdict_rows(verdicts[:1]))[0]["group"] == "channels ARM, scale x1"


def test_diff_counts_what_could_not_be_compared() -> None:
    assert diff_table().notes == ("1 slower, 1 same, 1 missing. Above 1 the candidate is slower.",)
    assert tables.diff_rows([]).notes[0].startswith("Nothing to compare")


@given(st.lists(st.tuples(st.integers(0, 10**10), st.one_of(st.none(), st.integers(0, 10**10))), min_size=1))
@settings(deadline=None)
def test_profile_totals_add_up_and_a_sum_with_gaps_is_only_a_bound(rows: list[tuple[int, int | None]]) -> None:
    table = tables.profile_rows(
        [{"op": "x", "madds": madds, "memory_access": moved, "kernel": 3} for madds, moved in rows], title="t"
    )
    assert table.totals is not None
    values = dict(zip([column.heading for column in table.columns], table.totals, strict=True))
    assert values["op"].text == "total"
    assert values["madds"].raw == sum(madds for madds, _ in rows)
    assert values["kernel"].raw is None
    known = [moved for _, moved in rows if moved is not None]
    if len(known) == len(rows):
        assert values["memory access"].raw == sum(known)
    elif known:
        assert values["memory access"].raw is None
        assert values["memory access"].text.startswith("≥")
    else:
        assert "memory access" not in values


def test_profile_takes_the_networks_own_totals() -> None:
    rows = [{"op": "linear", "params": 100}, {"op": "linear", "params": 100}]
    assert tables.profile_rows(rows, title="tied", totals={"params": 100}).totals == (
        Value("total", "total"),
        Value("100", 100),
    )


# --- labels that try to break out ---------------------------------------------------------------------

HOSTILE = "a|b <script>x</script> [bold]c[/bold] *d* `e` \\| __f__ [g](http://h) &amp; \x1b[31m\r\n| i"


def hostile_table() -> Table:
    return Table(
        HOSTILE, (Column(HOSTILE, align="left"), Column("n")), ((Value(HOSTILE, HOSTILE), Value("1", 1)),), (HOSTILE,)
    )


def test_markdown_escapes_pipes_html_and_line_breaks() -> None:
    lines = render_markdown(hostile_table()).splitlines()
    assert len(lines) == 7
    for line in (lines[2], lines[4]):
        assert line.replace("\\\\", "").replace("\\|", "").count("|") == 3
        assert "<" not in line
        assert "](" not in line
        assert "&amp;amp;" in line
        assert "\\*d\\*" in line
        assert "\\`e\\`" in line
        assert "\\_\\_f\\_\\_" in line


def test_markdown_leaves_model_names_alone() -> None:
    text = render_markdown(tables.compare_rows(*examples.models(2)))
    assert "| shufflenet_v2_x1_0 |" in text
    assert "×1.78 [1.74, 1.82]" in text


def test_terminal_prints_markup_and_escape_codes_as_they_are() -> None:
    text = terminal(hostile_table(), width=200)
    assert text.count("[bold]c[/bold]") == 4
    assert "\x1b" not in text


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
@pytest.mark.parametrize("name", EXAMPLES)
def test_no_number_is_cut_in_a_narrow_terminal(name: str, width: int) -> None:
    table = EXAMPLES[name]()
    text = terminal(table, width)
    assert "…" not in text
    numbers = [
        value.text
        for row in table.all_rows
        for value, column in zip(row, table.columns, strict=True)
        if column.align == "right"
    ]
    if width >= 80:
        assert [number for number in numbers if number not in text] == []
    # Narrower than a label and a number, the text is folded: every character is still there.
    folded = "".join(text.split())
    assert sum(folded.count(digit) for digit in "0123456789") >= sum(char.isdigit() for char in "".join(numbers))


@given(
    st.lists(
        st.lists(st.one_of(st.none(), st.text(), st.integers(), st.floats(allow_nan=False)), min_size=3, max_size=3)
    )
)
@settings(deadline=None)
def test_csv_reads_back_to_the_raw_values(rows: list[list[str | int | float | None]]) -> None:
    table = Table(
        "t", tuple(Column(name) for name in "abc"), tuple(tuple(Value("shown", raw) for raw in row) for row in rows)
    )
    back = list(csv.reader(io.StringIO(render_csv(table), newline="")))
    assert back[0] == ["a", "b", "c"]
    assert back[1:] == [["" if raw is None else one_line(str(raw)) for raw in row] for row in rows]


def test_an_empty_run_gives_an_empty_table() -> None:
    run, _, _ = examples.g2()
    table = tables.study_rows(run, [])
    assert table.rows == ()
    for render in (render_markdown, render_csv, terminal):
        assert render(table)


def test_a_cell_that_was_never_measured_is_a_row_of_dashes() -> None:
    run, _, _ = examples.g2()
    table = tables.study_rows(run, [CellSummary(Cell(Case("probe", (64, 56, 56), labels={"groups": 1})))])
    assert [column.heading for column in table.columns] == ["groups"]


def test_the_module_imports_no_heavy_library() -> None:
    code = (
        "import sys, effbench.report.tables.cells\n"
        "print([m for m in ('torch', 'numpy', 'pandas', 'matplotlib', 'scipy', 'rich') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


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
