"""Tables of every kind: golden renderings, and that no label can break one."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import pytest
import report_examples as examples
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from effbench.report.tables.compare import compare_rows
from effbench.report.tables.diff import diff_rows
from effbench.report.tables.profile import operator_rows
from effbench.report.tables.study import study_rows
from effbench.report.tables.table_model import (
    Column,
    Table,
    Value,
    one_line,
    render_csv,
    render_markdown,
    render_terminal,
)
from effbench.report.tables.verdicts import verdict_rows

pytestmark = pytest.mark.quick

GOLDEN = Path(__file__).parent / "golden"


def profile_table() -> Table:
    return operator_rows(
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
    "study": lambda: study_rows(*examples.g2()[:2]),
    "study_skipped": lambda: study_rows(*examples.g4()[:2]),
    "compare": lambda: compare_rows(*examples.models(5, skipped=("shufflenet_v1_g3_x1_0",))),
    "verdicts": lambda: verdict_rows(examples.g4()[2]),
    "diff": lambda: diff_rows(examples.COMPARISONS),
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
    text = render_markdown(compare_rows(*examples.models(2)))
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
    table = study_rows(run, [])
    assert table.rows == ()
    for render in (render_markdown, render_csv, terminal):
        assert render(table)
