"""The report of a gate: tables, Markdown, JUnit XML and JSON, with any labels."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from effbench.cli import check
from effbench.core.estimate import Estimate
from effbench.gates.result import GATE_VERDICTS, CountCheck, Decision, Finding
from effbench.report import json_document
from effbench.report.figures import gate as gate_figure
from effbench.report.tables import gate
from effbench.report.tables.table_model import render_markdown

SLOW = Finding(
    "against", "a", "REGRESSION", change=Estimate(1.0523, 1.031, 1.074), wall=Estimate(1.06), clock="cpu",
    tolerance=0.03, detectable=0.024, launches=4, rounds=80, set_aside=3,
)  # fmt: skip
COSTLY = Finding("costs", "b", "REGRESSION", "madds 2, at most 1", costs=(CountCheck("madds", 2, 1, "at most"),))
FINE = Finding("costs", "a", "PASS", costs=(CountCheck("params", 5, 5, "equal"), CountCheck("madds", 7, 6)))
DECISION = Decision((SLOW, FINE, COSTLY), "main (1a2b3c4)", "working tree", Estimate(1.05, 1.03, 1.07))

HOSTILE = "\x1b[31m<img src=x onerror=alert(1)>|`*_&\x00\n]]>\ud800\ufffe"


def of(*words: str) -> Decision:
    return Decision(tuple(Finding("costs", f"cell {n}", word) for n, word in enumerate(words)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["PASS"], "PASS: 1 cell"),
        (["PASS", "NEW", "PASS"], "PASS: 2 of 3 cells"),
        (["PASS", "REGRESSION", "ENVIRONMENT", "REGRESSION"], "REGRESSION: 2 of 4 cells"),
        (["ENVIRONMENT", "INCONCLUSIVE"], "ENVIRONMENT: 1 of 2 cells"),
        (["NEW"], "INCONCLUSIVE: 0 of 1 cell"),
    ],
)
def test_the_last_line_counts_cells(words: list[str], line: str) -> None:
    assert gate.last_line(of(*words)) == line


def test_a_cell_of_two_gates_is_one_cell() -> None:
    assert gate.last_line(DECISION) == "REGRESSION: 2 cells; geometric mean ×1.050 [1.030, 1.070]"


def test_every_finding_is_a_row_with_what_it_rests_on() -> None:
    rows, costs = gate.tables(DECISION)
    assert rows.title == "working tree against main (1a2b3c4)"
    assert [column.heading for column in rows.columns] == [
        "cell", "gate", "verdict", "time ratio", "by the wall clock", "tolerance", "detectable", "launches",
        "set aside", "reason",
    ]  # fmt: skip
    assert [value.text for value in rows.rows[0]] == [
        "a", "against", "REGRESSION", "×1.052 [1.031, 1.074]", "×1.060", "3.0", "2.4", "4", "3", "–",
    ]  # fmt: skip
    assert [[value.text for value in row] for row in costs.rows] == [
        ["a", "params", "5", "equal", "5", "yes"],
        ["a", "madds", "7", "was", "6", "–"],
        ["b", "madds", "2", "at most", "1", "no"],
    ]
    # Without a timed gate there is nothing about times.
    assert [column.heading for column in gate.tables(of("PASS"))[0].columns] == ["cell", "gate", "verdict"]
    assert len(gate.tables(of("PASS"))) == 1


def test_markdown_is_a_heading_a_table_and_the_machine() -> None:
    text = gate.markdown(Decision(DECISION.findings, facts={"machine": "Some CPU"}))
    assert text.startswith("## ❌ REGRESSION: 2 cells\n")
    tokens = MarkdownIt().enable("table").parse(text)
    assert sum(token.type == "tr_open" for token in tokens) == 1 + 3 + 1 + 3
    assert "- machine: Some CPU" in text and text.endswith("\n")


@pytest.mark.parametrize(("passes", "tag"), [(False, "failure"), (True, "skipped")])
def test_junit_says_of_each_verdict_what_ci_does_with_it(passes: bool, tag: str) -> None:
    decision = Decision(of(*GATE_VERDICTS).findings, facts={"machine": "Some CPU"}, seconds=1.5)
    root = ElementTree.fromstring(gate.junit(decision, inconclusive_passes=passes))
    (suite,) = root
    cases = {case.get("name"): case for case in suite.iter("testcase")}
    kinds = [cases[f"cell {number}"][0].tag for number in range(len(GATE_VERDICTS))]
    assert dict(zip(GATE_VERDICTS, kinds, strict=True)) == {
        "REGRESSION": "failure",
        "ENVIRONMENT": "error",
        "INCONCLUSIVE": tag,
        "PASS": "system-out",
        "NEW": "skipped",
    }
    counted = Counter(kinds)
    for counts in (root, suite):
        assert [int(counts.get(name) or -1) for name in ("tests", "failures", "errors")] == [
            5, counted["failure"], counted["error"],
        ]  # fmt: skip
    assert suite.get("skipped") == str(counted["skipped"]) and suite.get("time") == "1.500"
    assert suite[0].tag == "properties" and suite[0][0].attrib == {"name": "machine", "value": "Some CPU"}


def test_a_junit_failure_says_everything_in_its_message() -> None:
    root = ElementTree.fromstring(gate.junit(DECISION))
    failure = next(root.iter("failure"))
    assert (
        failure.get("message")
        == failure.text
        == ("REGRESSION: time ×1.052 [1.031, 1.074], tolerance 3.0 %, detectable 2.4 %, 4 launches a side")
    )
    assert failure.get("type") == "REGRESSION"


def hostile(text: str) -> Decision:
    finding = Finding("costs", text, "REGRESSION", text, costs=(CountCheck(text, None, 1, "equal"),))
    return Decision((finding,), text, text, notes=(text,), facts={text: text}, directory=text)


@settings(deadline=None, max_examples=150)
@given(st.text(max_size=30))
def test_any_label_makes_well_formed_files(text: str) -> None:
    decision = hostile(text)
    case = next(ElementTree.fromstring(gate.junit(decision)).iter("testcase"))
    if text.isprintable():
        assert case.get("name") == text
    assert not any(mark in gate.markdown(decision) for mark in "\x1b\x00\r")
    told = json.loads(json.dumps(json_document.decision_document(decision, 1)))
    assert told["cells"][0]["id"] == text


def test_a_hostile_label_has_no_effect() -> None:
    decision = hostile(HOSTILE)
    xml, markdown = gate.junit(decision), gate.markdown(decision)
    html = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown.replace("details>", ""))
    for text in (xml, markdown, render_markdown(gate.tables(decision)[0]), html):
        assert "\x1b" not in text and "\x00" not in text and "<img" not in text
    assert ElementTree.fromstring(xml) is not None
    assert xml.encode("utf-8") and markdown.encode("utf-8")


def test_json_holds_what_the_tables_show() -> None:
    told = json_document.decision_document(DECISION, 1)
    assert told["verdict"] == "REGRESSION" and told["exit_code"] == 1
    assert told["geomean"] == {"point": 1.05, "low": 1.03, "high": 1.07}
    first = told["cells"][0]
    assert first["ratio"] == {"point": 1.0523, "low": 1.031, "high": 1.074}
    assert (first["tolerance"], first["detectable"], first["launches"], first["set_aside"]) == (0.03, 0.024, 4, 3)
    assert told["cells"][2]["costs"] == [
        {"name": "madds", "found": 2, "wanted": 1, "rule": "at most", "kept": False}
    ]  # fmt: skip
    assert json.loads(json.dumps(told, allow_nan=False)) == told


@pytest.mark.parametrize("stopped_by", [None, KeyboardInterrupt(), ValueError("no such font")])
def test_a_figure_is_named_only_where_it_lies(
    stopped_by: BaseException | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Not when drawing it is interrupted, nor when it fails."""
    decision, drawn = replace(DECISION, directory=str(tmp_path / "against")), gate_figure.gate_figure

    def draw(shown: Decision) -> object:
        said.append(capsys.readouterr().out)
        if stopped_by is not None:
            raise stopped_by
        return drawn(shown)

    said: list[str] = []
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    monkeypatch.setattr(gate_figure, "gate_figure", draw)
    try:
        with pytest.warns(RuntimeWarning) if isinstance(stopped_by, ValueError) else nullcontext():
            assert check._report(decision, [], {"costs": None}, False, False, None) == 1
        said.append(capsys.readouterr().out)
        assert said[1].startswith("\nfigure   ") is (stopped_by is None) and said[1].endswith("1.070]\n")
        assert "raw      " in said[1]
    except KeyboardInterrupt:
        pass
    assert "| a | against | REGRESSION |" in said[0] and "figure" not in said[0]
    assert (tmp_path / "figure.png").exists() is (stopped_by is None)
