"""Several runtimes in one run: its cells, speed-ups, verdicts by runtime, the delegation report and both figures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from matplotlib.figure import Figure
from pages import reference
from runs import run_of, study

from effbench import paper, report, runtimes
from effbench.analysis import verdicts as analysis_verdicts
from effbench.analysis.summary import summarise
from effbench.core.errors import UnknownName
from effbench.core.estimate import Estimate
from effbench.core.run import Run
from effbench.core.study import Cell, Experiment
from effbench.report import json_document
from effbench.report import text as report_text
from effbench.report.figures import matrix, panels
from effbench.report.figures import runtimes as runtimes_figure
from effbench.report.tables import runtimes as runtimes_table
from effbench.studies import catalog, plan

RUNTIMES = ("eager", "onnxruntime")
# A guideline that eager shows and the other runtime undoes: 4 groups cost 50 % there and nothing here.
TIMES = {("eager", 1): 8e-3, ("eager", 2): 10e-3, ("eager", 4): 12e-3}
TIMES |= {("onnxruntime", 1): 2e-3, ("onnxruntime", 2): 1.9e-3, ("onnxruntime", 4): 1.8e-3}
PREPARED = {
    "prepare_s": 2.5,
    "artefact_bytes": 4_000_000,
    "pieces": 15,
    "operators": 40,
    "outside": {"mean": 1, "split": 13},
    "output_error": 3e-7,
    "graph": "not shown",
}


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return plan.make(study(), runtime=",".join(RUNTIMES)).experiment


@pytest.fixture(scope="module")
def run(experiment: Experiment) -> Run:
    times = {f"runtime={name},scale=x1,groups={level}": seconds for (name, level), seconds in TIMES.items()}
    made = run_of(times, experiment=experiment)
    results = [
        replace(item, cell=replace(item.cell, runtime=str(item.cell.case.labels["runtime"]))) for item in made.results
    ]
    told = {item.cell.id: PREPARED for item in results if item.cell.runtime != "eager"}
    launches = (replace(made.launches[0], probes=told), *made.launches[1:])
    return replace(made, results=tuple(results), launches=launches)


# --- the plan -----------------------------------------------------------------------------------------


def test_every_case_runs_under_every_runtime_with_a_reference_of_its_own() -> None:
    made = plan.make(study(), runtime="eager,onnxruntime,eager", batch=3, memory_format="channels_last")
    assert [(cell.runtime, cell.case.labels["groups"]) for cell in made.cells] == [
        ("eager", 1), ("eager", 2), ("eager", 4), ("onnxruntime", 1), ("onnxruntime", 2), ("onnxruntime", 4),
    ]  # fmt: skip
    assert len({cell.id for cell in made.cells}) == 6 and made.runtime == "eager,onnxruntime"
    references = [made.experiment.reference_of(cell.case) for cell in made.cells]
    assert {case.id for case in references if case} == {f"runtime={name},scale=x1,groups=1" for name in RUNTIMES}
    assert {(cell.batch, cell.memory_format) for cell in made.cells} == {(3, "channels_last")}


def test_one_runtime_labels_nothing() -> None:
    made = plan.make(study(), runtime="onnxruntime")
    assert [cell.id for cell in made.cells] == [case.id for case in study().cases]
    assert {cell.runtime for cell in made.cells} == {"onnxruntime"}


def test_other_runtimes_are_timed_on_the_clock_of_the_whole_process() -> None:
    """Some compute in a thread of their own, whose time the calling thread's clock does not see."""
    assert plan.make(study(), runtime="onnxruntime").device_options["whole_process"]
    assert "whole_process" not in plan.make(study()).device_options


def test_all_are_those_that_are_here_and_have_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = lambda name: None if name in ("eager", "cudagraph", "ncnn") else "not here"  # noqa: E731
    monkeypatch.setattr(runtimes, "why_unavailable", absent)
    assert plan.make(study(), runtime="all", device="cpu").runtimes == ("eager", "ncnn")
    assert plan.make(study(), runtime="all", device="cuda").runtimes == ("eager", "cudagraph")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtime": "eager,onxruntime"}, "'onxruntime'. Did you mean 'onnxruntime'"),
        ({"memory_format": "nhwc"}, "contiguous, channels_last"),
        ({"mode": "training"}, "infer, train"),
        ({"metrics": ("watts",)}, "percentiles, peak_memory, energy, instructions"),
    ],
)
def test_wrong_words_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UnknownName, match=message):
        plan.make(study(), **options)


def test_the_study_of_guidelines_has_the_networks_of_the_four() -> None:
    found = catalog.load("guidelines_by_runtime")
    assert isinstance(found, Experiment)
    made = plan.make(found, runtime="eager,ncnn")
    by_guideline = {
        name: [c for c in made.cells if c.case.labels["guideline"] == name] for name in ("G1", "G2", "G3", "G4")
    }
    assert {name: len(cells) for name, cells in by_guideline.items()} == {"G1": 8, "G2": 8, "G3": 10, "G4": 8}
    for name, study_name in (("G2", "g2_groups"), ("G4", "g4_elementwise")):
        theirs = catalog.load(study_name)
        assert isinstance(theirs, Experiment)
        known = {(case.model, str(case.arguments)) for case in theirs.cases}
        assert {(c.case.model, str(c.case.arguments)) for c in by_guideline[name]} <= known
    assert plan.make(found, device="cuda", runtime="eager").cells[0].case.labels["channels"] == "GPU"


# --- what follows -------------------------------------------------------------------------------------


def test_the_speed_up_is_eager_time_over_this_time_in_the_same_rounds(run: Run) -> None:
    cells = {cell.cell.id: cell for cell in summarise(run)}
    for level in (1, 2, 4):
        assert cells[f"runtime=eager,scale=x1,groups={level}"].speedup is None
        found = cells[f"runtime=onnxruntime,scale=x1,groups={level}"].speedup
        assert isinstance(found, Estimate)
        assert found.point == pytest.approx(TIMES["eager", level] / TIMES["onnxruntime", level], rel=0.01)
        assert found.low is not None and found.high is not None and found.low < found.point < found.high


def test_a_guideline_may_hold_under_one_runtime_and_fail_under_another(run: Run) -> None:
    verdicts = {(item.claim, item.group["runtime"]): item for item in analysis_verdicts.judge(run)}
    assert verdicts["slower", "eager"].verdict == "holds"
    assert verdicts["slower", "onnxruntime"].verdict == "fails"
    ratio = verdicts["slower", "eager"].headline.ratio
    assert ratio is not None and ratio.point == pytest.approx(1.5, rel=0.01)


def test_a_single_runtime_has_no_speed_up() -> None:
    assert {cell.speedup for cell in summarise(run_of({"scale=x1,groups=1": 1e-3, "scale=x1,groups=2": 2e-3}))} == {
        None
    }


def test_the_delegation_report(run: Run) -> None:
    cells = summarise(run)
    found = runtimes_table.prepared_rows(run, cells)
    headings = [column.heading for column in found.columns]
    assert headings[:4] == ["runtime", "groups", "pieces", "operators"], "the runtime once, not as label and again"
    row = dict(zip(headings, (value.text for value in found.rows[0]), strict=True))
    assert row["pieces"] == "15" and row["outside of its kernels"] == "split ×13, mean ×1"
    assert row["error vs float32"] == "3.0e-07" and row["model file"] == "4.00" and row["prepared in"] == "2.50"
    assert len(found.rows) == 3, "eager has nothing to report"
    told = json_document.cell_document(cells[-1])
    assert told["prepared"]["pieces"] == 15 and "graph" not in told["prepared"]
    assert told["speedup_over_eager"]["point"] == pytest.approx(12 / 1.8, rel=0.01)


def texts_of(figure: Any) -> list[str]:
    from matplotlib.text import Text

    return [text.get_text().replace("\n", " ") for text in figure.findobj(Text) if text.get_text()]


def test_the_matrix_says_the_word_the_effect_and_the_interval(run: Run) -> None:
    cells, verdicts = summarise(run), analysis_verdicts.judge(run)
    assert matrix.can_draw(run, verdicts)
    said = texts_of(matrix.matrix_figure([matrix.RunColumns(run, cells, verdicts)]))
    assert said.count("holds") == 2 and said.count("fails") == 2, "two claims under two runtimes"
    assert {"eager", "onnxruntime", "slower", "ordered", "×1.50", "×0.90"} <= set(said)
    axes = Figure().add_subplot()
    matrix.matrix_in(axes, [matrix.RunColumns(run, cells, verdicts)])
    assert set(texts_of(axes)) <= set(said)
    assert "×1.50" in texts_of(axes)


def test_the_matrix_of_several_devices_names_them(run: Run) -> None:
    other = replace(run, environment=replace(run.environment, facts={"cpu.model": "Other CPU"}))
    seen = [matrix.RunColumns(item, summarise(item), analysis_verdicts.judge(item)) for item in (run, other)]
    said = texts_of(matrix.matrix_figure(seen))
    assert said.count("onnxruntime") == 2 and {"Test CPU (cpu)", "Other CPU (cpu)"} <= set(said)


def test_a_cell_that_was_not_measured_is_a_field_of_its_own(run: Run) -> None:
    verdicts = [
        item for item in analysis_verdicts.judge(run) if (item.claim, item.group["runtime"]) != ("slower", "eager")
    ]
    said = texts_of(matrix.matrix_figure([matrix.RunColumns(run, summarise(run), verdicts)]))
    assert said.count("not measured") == 1


def test_the_ratios_of_all_runtimes_stand_beside_each_other(run: Run) -> None:
    figure = runtimes_figure.runtimes_figure(run, summarise(run))
    (axes,) = figure.axes
    points = [line for line in axes.lines if line.get_marker() in ("o", "s") and len(line.get_xdata()) == 1]
    heights = sorted(float(line.get_ydata()[0]) for line in points)
    expected = sorted(seconds / TIMES[name, 1] for (name, _), seconds in TIMES.items())
    assert heights == pytest.approx(expected, rel=0.01)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "2", "4"]


def test_a_run_of_several_runtimes_has_both_figures_and_the_report(run: Run) -> None:
    cells, verdicts = summarise(run), analysis_verdicts.judge(run)
    assert list(report.run_figures(run, cells, verdicts))[:2] == ["figure", "ratios"]
    assert "runtimes" in report.run_tables(run, cells, verdicts)
    assert Cell(run.experiment.cases[0]).memory_format == "contiguous"


def test_whose_cpu_time_a_ratio_is_of_is_said(run: Run) -> None:
    whole = replace(run.environment, facts={**run.environment.facts, "run.device_options": {"whole_process": True}})
    assert report_text.clock(run) == "thread CPU time"
    assert report_text.clock(replace(run, environment=whole)) == "process CPU time"
    assert report_text.clock(replace(run, environment=whole, clock="wall")) == "wall-clock time"


@pytest.mark.parametrize(
    ("guideline", "study_name", "factor", "level"),
    [
        ("G1", "g1_channel_ratio", "ratio", "1:12"),
        ("G2", "g2_groups", "groups", 8),
        ("G3", "g3_fragmentation", "structure", "4-parallel"),
        ("G4", "g4_elementwise", "ops", "relu+shortcut"),
    ],
)
def test_the_papers_speeds_are_those_of_each_study(guideline: str, study_name: str, factor: str, level: Any) -> None:
    shared = {"channels": "ARM", "scale": "x1"}
    theirs = paper.speed(study_name, {**shared, factor: level})
    assert theirs is not None
    assert paper.speed("guidelines_by_runtime", {**shared, "guideline": guideline, "variant": level}) == theirs
    assert paper.speed("guidelines_by_runtime", {**shared, "guideline": "G5", "variant": level}) is None


def test_no_line_joins_one_runtime_to_another() -> None:
    """Panels join the widths of a family, which several runtimes of one network are not."""
    cells = reference("compare_runtimes").cells
    assert not panels.can_draw(cells)
    assert panels.can_draw([cell for cell in reference("full_models").cells if cell.cell.runtime == "eager"])
