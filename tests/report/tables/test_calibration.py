"""The tables and JSON of `effbench aa`: their numbers equal those of the resampled suites."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from recordings import Source, evidence, recorded
from rich.console import Console
from schemas import validate

from effbench.core.estimate import Estimate
from effbench.gates import calibration
from effbench.gates.alarm_rate import AlarmRate, resample
from effbench.gates.calibration import Answer, Survey
from effbench.report.tables import calibration as calibration_table
from effbench.report.tables import table_model

Found = tuple[Survey, AlarmRate]


def found_in(source: Source) -> Found:
    made = evidence(source)
    return calibration.survey(made), resample(made, suites=40)


@pytest.fixture(scope="module")
def plain() -> Found:
    return found_in(recorded(cells=2, launches=14))


@pytest.fixture(scope="module")
def troubled() -> Found:
    """A cell that is too wild, one of disturbed rounds, one with an evil name."""
    source = recorded(cells=1, launches=4)
    source["wild"] = recorded(cells=1, launches=4, between=1.5, seed=3)["cell0"]
    source["shared"] = [[replace(item, flags=("x",)) for item in items] for items in source["cell0"]]
    source["evil|<b>\x1b[31m"] = source["cell0"]
    return found_in(source)


def column(table: table_model.Table, heading: str) -> list[table_model.Value]:
    place = [item.heading for item in table.columns].index(heading)
    return [row[place] for row in table.rows]


def test_the_machine_by_cell(plain: Found) -> None:
    survey, found = plain
    table = calibration_table.machine_rows(survey, found)
    assert [item.title for item in table.columns] == [
        "cell",
        "launches",
        "rounds a launch",
        "noise of a round (%)",
        "scatter of launches (%)",
        "detectable at 13 launches (%)",
        "detectable at 14 launches (%)",
        "launches for 3 %",
        "launches for 5 %",
    ], "no remarks, no column for them"
    assert [value.raw for value in column(table, "scatter of launches")] == [item.between for item in survey.scatter]
    assert [value.raw for value in column(table, "launches for 3 %")] == [
        answer.value for answer in survey.needed[0.03].values()
    ]
    (first, *_) = survey.detectable[13].values()
    assert first.value is not None
    assert float(column(table, "detectable at 13 launches")[0].text) == pytest.approx(100 * first.value, abs=0.05)
    assert table.totals is not None and table.totals[7].raw == calibration.median_answer(survey.needed[0.03]).value
    assert table.notes[-1] == (
        "The gate raised an alarm in 0 of 40 resampled suites in which nothing was slower: at most 7.2 % at 95 % "
        "confidence, if the suites were independent."
    ), "0.05 ** (1 / 40) = 0.928"


def test_the_gate_at_every_slowdown(plain: Found) -> None:
    survey, found = plain
    machine, gate = calibration_table.tables(survey, found)
    assert [value.raw for value in column(gate, "REGRESSION")] == [item.called for item in found.gate]
    assert [value.text for value in column(gate, "slowdown of one cell")] == ["0", "3", "5", "10"]
    words = " ".join(note for table in (machine, gate) for note in table.notes)
    for honest in ("14 recorded launches", "not a slowdown injected"):
        assert honest in words


def test_what_cannot_be_said_is_not_said(troubled: Found) -> None:
    table = calibration_table.machine_rows(*troubled)
    _, wild, shared, _ = table.rows
    titles = [item.heading for item in table.columns]
    assert wild[titles.index("launches for 3 %")] == table_model.Value("> 60", None)
    assert wild[titles.index("detectable at 4 launches")] == table_model.Value("> 100", None)
    assert shared[-1].text == "all 48 rounds were disturbed"
    assert all(value is table_model.NOTHING for value in shared[3:-1])
    assert any("shared cannot be judged" in note for note in calibration_table.gate_rows(troubled[1]).notes)


def test_nothing_usable_leaves_the_reason(troubled: Found) -> None:
    source = {"cell": [[replace(item, flags=("x",)) for item in items] for items in recorded(cells=1)["cell0"]]}
    survey, found = found_in(source)
    (table,) = calibration_table.tables(survey, found)
    assert "nothing to decide on" in table.notes[-1] and calibration_table.alarm_sentence(found) == ""
    assert calibration_table.document(survey, found)["gate"] == []
    (empty,) = calibration_table.tables(*found_in({}))
    assert empty.rows == () and "nothing to decide on" in table_model.render_markdown(empty)


@pytest.mark.parametrize("which", ["plain", "troubled"])
def test_the_document_holds_all_of_it(which: str, request: pytest.FixtureRequest) -> None:
    survey, found = request.getfixturevalue(which)
    said = json.loads(json.dumps(calibration_table.document(survey, found), allow_nan=False))
    validate({**said, "run_dir": "aa"}, "aa")
    assert [item["id"] for item in said["cells"]] == list(found.cells)
    assert [item["slowdown"] for item in said["gate"]] == [item.slowdown for item in found.gate]
    for item in said["cells"]:
        assert all(each["launches"] is not None or each["reason"] for each in item["needed"])


def test_every_rendering_takes_any_name(troubled: Found) -> None:
    console = Console(width=100, record=True, force_terminal=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for table in calibration_table.tables(*troubled):
        table_model.render_terminal(table, console)
        text = table_model.render_markdown(table)
        assert "<b>" not in text and "\x1b" not in text
        assert table_model.render_csv(table)
    console.file.close()
    assert "\x1b[31m" not in console.export_text()


def test_the_bound_is_one_sided_and_counts_alarms(plain: Found) -> None:
    """3 alarms of 300: the 95 % upper bound is 2.57 % (Clopper and Pearson)."""
    _, found = plain
    none = replace(found.gate[0], suite_called=Estimate(0.01, 0.002, 0.029, 0.95, 300))
    sentence = calibration_table.alarm_sentence(replace(found, gate=(none, *found.gate[1:])))
    assert "in 3 of 300" in sentence and "at most 2.6 %" in sentence


def test_the_middle_cell_counts_the_unanswered_as_worst() -> None:
    answers = {"a": Answer(4), "b": Answer(None, "it takes more", 60), "c": Answer(7)}
    assert calibration.median_answer(answers) == Answer(7)
    assert calibration.median_answer({**answers, "d": Answer(None, "no")}).value is None
    assert calibration.median_answer({}).value is None
