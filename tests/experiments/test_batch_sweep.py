"""The batch sweep: ratios per image, the saturating batch or the reason why there is none, its default models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from runs import COST, run_of

import effbench
from effbench.analysis.saturation import Saturation, saturations
from effbench.core.errors import InvalidValue
from effbench.core.run import Run
from effbench.core.study import Case, Experiment
from effbench.report.figures import sweep
from effbench.report.tables import sweep as sweep_table
from effbench.report.tables.table_model import render_markdown
from effbench.results import Results
from effbench.studies import catalog, model_comparison, plan

pytestmark = pytest.mark.usefixtures("forked_launches")

QUIET = {"noise": 1e-4, "launch_noise": 1e-4}


def swept(per_image_s: Mapping[int, float], model: str = "net", **options: float) -> Run:
    """A run in which one image takes so long at each batch."""
    cases = tuple(
        Case("probe", (3, 8, 8), labels={"model": model, "batch": batch}, batch=batch) for batch in per_image_s
    )
    study = Experiment("sweep", "A sweep", "", "batch", tuple(per_image_s), 1, cases)
    times = {case.id: per_image_s[case.batch or 1] * (case.batch or 1) for case in cases}
    run = run_of(times, experiment=study, **{**QUIET, **options})  # type: ignore[arg-type]
    return replace(
        run,
        results=tuple(replace(item, cell=replace(item.cell, batch=item.cell.case.batch or 1)) for item in run.results),
    )


def without(run: Run, batch: int, reason: str) -> Run:
    """The run as it would be had this batch been skipped."""
    return replace(
        run,
        results=tuple(
            replace(item, blocks=(), calls=None, skipped=reason) if item.cell.batch == batch else item
            for item in run.results
        ),
    )


def judged(run: Run) -> Saturation:
    (found,) = saturations(run, Results(run).cells)
    return found


# --- per image ----------------------------------------------------------------------------------------


def test_ratios_are_per_image_and_costs_per_call():
    run = swept({1: 1e-3, 4: 0.5e-3, 8: 0.25e-3})
    cells = Results(run).cells
    assert [cell.ratio.point for cell in cells] == pytest.approx([1.0, 0.5, 0.25], rel=1e-3)
    assert all(cell.ratio.low < cell.ratio.point < cell.ratio.high for cell in cells[1:])
    assert [cell.latency.point for cell in cells] == pytest.approx([1e-3, 2e-3, 2e-3], rel=1e-3)
    assert [cell.throughput for cell in cells] == pytest.approx([1000, 2000, 4000], rel=1e-3)


def test_the_notes_speak_of_images_and_of_no_paper():
    run = swept({1: 1e-3, 4: 0.5e-3})
    scaled = [replace(COST, madds=COST.madds * item.cell.batch) for item in run.results]
    run = replace(run, results=tuple(replace(item, cost=cost) for item, cost in zip(run.results, scaled, strict=True)))
    text = render_markdown(Results(run).tables()[0])
    assert "thread CPU time per image over that of batch 1" in text
    assert "Multiply-adds per image are equal in every row." in text
    assert "paper" not in text.lower()


def test_ratios_within_one_batch_stay_per_call():
    run = run_of({"scale=x1,groups=1": 1.0, "scale=x1,groups=2": 2.0})
    assert "per image" not in str(Results(run))
    assert saturations(run, Results(run).cells) == (), "no sweep"


# --- what saturates -----------------------------------------------------------------------------------


def test_the_smallest_batch_within_five_per_cent_of_the_most():
    found = judged(swept({1: 2e-3, 2: 1.3e-3, 4: 1.08e-3, 8: 1.03e-3, 16: 1.01e-3, 32: 1e-3}))
    assert (found.verdict, found.batch, found.best, found.reason) == ("saturated", 8, 32, "")
    assert found.group == {"model": "net"}
    assert {batch: loss.point for batch, loss in found.losses.items() if loss} == pytest.approx(
        {1: 2.0, 2: 1.3, 4: 1.08, 8: 1.03, 16: 1.01}, rel=1e-3
    )
    # Five smaller batches share 5 %.
    assert {loss.confidence for loss in found.losses.values() if loss} == {0.99}


def test_a_batch_that_is_slower_than_a_smaller_one_is_no_matter():
    found = judged(swept({1: 2e-3, 4: 1e-3, 8: 1.2e-3, 16: 1.4e-3}))
    assert (found.verdict, found.batch, found.best) == ("saturated", 4, 4)


def test_an_interval_over_the_line_leaves_it_open():
    """At 1/0.95 the truth is on the line: no data can put the whole interval on one side."""
    found = judged(swept({1: 2e-3, 4: 1e-3 / 0.95, 8: 1.02e-3, 16: 1e-3}, noise=0.005, launch_noise=0.005))
    assert (found.verdict, found.batch) == ("unsure", 8)
    assert found.reason.startswith("batch 4: ") and found.reason.endswith(" % below the most")
    loss = found.losses[4]
    assert loss is not None and loss.low is not None and loss.high is not None
    assert loss.low < 1 / 0.95 < loss.high


def test_what_the_largest_batch_is_needed_for_is_rising_still():
    run = swept({1: 4e-3, 2: 3e-3, 4: 2e-3, 8: 1e-3})
    found = judged(run)
    assert (found.verdict, found.batch, found.reason) == ("rising", 8, "8 is the largest batch measured")
    cut = without(run, 8, "out of memory: tried 9 GB")
    found = judged(cut)
    assert (found.verdict, found.batch, found.reason) == ("rising", 4, "batch 8 out of memory: tried 9 GB")


def test_a_skipped_batch_costs_nothing_but_itself():
    run = swept({1: 2e-3, 4: 1.2e-3, 8: 1.01e-3, 16: 1e-3, 32: 1e-3})
    found = judged(without(run, 32, "out of memory"))
    assert (found.verdict, found.batch, found.best) == ("saturated", 8, 16)


def test_without_any_time_there_is_a_reason():
    run = without(swept({1: 1e-3}), 1, "no such kernel")
    assert judged(run) == Saturation({"model": "net"}, "unsure", reason="no such kernel")


def test_few_launches_carry_no_verdict():
    found = judged(swept({1: 2e-3, 4: 1e-3, 8: 1e-3}, launches=3))
    assert found.verdict == "unsure" and found.reason.endswith("3 of 5 launches that a verdict needs")


@pytest.mark.parametrize(("bound", "verdict"), [("host", "saturated"), (None, "unsure")])
def test_a_flag_forbids_a_verdict_but_waiting_for_the_host_is_what_a_sweep_looks_for(bound: str | None, verdict: str):
    run = swept({1: 2e-3, 4: 1e-3, 8: 0.99e-3})
    cells = tuple(
        replace(cell, flags=("host-bound",) if bound else ("not steady",)) if cell.cell.batch == 1 else cell
        for cell in Results(run).cells
    )
    (found,) = saturations(run, cells)
    assert found.verdict == verdict and found.reason == ("" if bound else "not steady")


@given(st.lists(st.floats(0.5, 3.0), min_size=1, max_size=6))
@settings(deadline=None, max_examples=25)
def test_every_smaller_batch_is_shown_to_be_slower(relative: list[float]):
    """Whatever the curve: a batch that is named for sure is within 5 %, and none below it is."""
    per_image = {2**place: value * 1e-3 for place, value in enumerate(relative)}
    found = judged(swept(per_image, rounds=7))
    assert found.batch is not None and found.best is not None
    fastest = min(per_image.values())
    assert per_image[found.best] == pytest.approx(fastest, rel=2e-3)
    if found.verdict != "unsure":
        assert per_image[found.batch] <= fastest / 0.95 * 1.001
        assert all(per_image[batch] > fastest / 0.95 * 0.999 for batch in per_image if batch < found.batch)


# --- the study ----------------------------------------------------------------------------------------


def test_the_study_stops_at_32_on_a_cpu_and_at_512_on_a_gpu():
    study = catalog.load("batch_sweep")
    assert isinstance(study, Experiment)
    on_cpu = plan.make(study, device="cpu")
    assert [cell.batch for cell in on_cpu.cells] == [1, 2, 4, 8, 16, 32] * 2
    assert {cell.case.model for cell in on_cpu.cells} == {"shufflenet_v2", "mobilenet_v2"}
    assert max(case.batch or 0 for case in plan.choose_cases(study, "cuda", {})) == 512
    chosen = plan.make(study, select={"batch": ["64"], "model": ["mobilenet_v2"]})
    assert [cell.batch for cell in chosen.cells] == [1, 64], "with the reference"


def test_a_batch_for_a_study_that_varies_it_is_refused():
    study = catalog.load("batch_sweep")
    with pytest.raises(InvalidValue, match="batch_sweep varies the batch itself; choose with --select batch=16"):
        plan.make(study, batch=16)  # type: ignore[arg-type]


def test_other_models_take_the_place_of_its_own():
    study = catalog.load("batch_sweep")
    assert isinstance(study, Experiment)
    changed = model_comparison.with_models(study, ["resnet18", "lenet5"])
    assert len(changed.cases) == 20 and len({case.id for case in changed.cases}) == 20
    assert [(case.model, case.batch, case.input_shape) for case in changed.cases[::10]] == [
        ("resnet18", 1, (3, 224, 224)),
        ("lenet5", 1, (1, 32, 32)),
    ]
    assert [cell.batch for cell in plan.make(changed).cells] == [1, 2, 4, 8, 16, 32] * 2
    last = changed.cases[-1]
    assert changed.reference_of(last) == changed.cases[10]


# --- what it looks like ---------------------------------------------------------------------------------


def test_one_row_a_network_with_its_images_per_second():
    run = swept({1: 2e-3, 4: 1.02e-3, 8: 1e-3})
    cells = Results(run).cells
    found = sweep_table.saturation_rows(run, cells, saturations(run, cells))
    (row,) = found.rows
    assert [value.text for value in row[:3]] == ["net", "saturated", "4"]
    there = row[3].raw
    assert there.point == pytest.approx(980.4, rel=1e-3) and there.low < there.point < there.high
    assert row[4].text == "8" and row[5].raw.point == pytest.approx(1000, rel=1e-3)


def test_a_ring_stands_at_the_saturating_batch():
    run = swept({1: 2e-3, 4: 1.02e-3, 8: 1e-3})
    cells = Results(run).cells
    figure = sweep.sweep_figure(run, cells, saturations(run, cells))
    (axes,) = figure.axes
    (ring,) = [item for item in axes.collections if isinstance(item, PathCollection)]
    assert ring.get_offsets().tolist() == [[4.0, pytest.approx(980.4, rel=1e-3)]]
    assert "4" in [text.get_text() for text in axes.texts] and axes.get_xscale() == "log"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["net"]
    given = Figure().add_subplot()
    assert Results(run).plot(given) is given
    assert [item.get_offsets().tolist() for item in given.collections if isinstance(item, PathCollection)] == [
        ring.get_offsets().tolist()
    ]
    assert [text.get_text() for text in given.get_legend().get_texts()] == ["net"]
    rising = swept({1: 2e-3, 4: 1e-3})
    (axes,) = sweep.sweep_figure(rising, Results(rising).cells, saturations(rising, Results(rising).cells)).axes
    assert not axes.texts


def test_a_scripted_sweep_from_end_to_end(tmp_path: Path):
    """The scripted clock takes 2 us a call and then time in proportion: the larger the batch, the less of that each."""
    results = effbench.run(
        "batch_sweep",
        models=["lenet5"],
        select={"batch": ["1", "2", "4"]},
        device="fake",
        launches=5,
        quick=True,
        out=tmp_path / "run",
    )
    assert [cell.cell.batch for cell in results.cells] == [1, 2, 4]
    assert {"saturation.md", "figure.png"} <= set(results.write())
    (said,) = results.to_dict()["saturation"]
    assert said["group"] == {"model": "lenet5"} and said["fastest_batch"] == 4
    assert 1 < said["losses"]["2"]["point"] < said["losses"]["1"]["point"]
    assert "| lenet5 |" in (tmp_path / "run" / "saturation.md").read_text()
    assert "Time ratios are per image." in (tmp_path / "run" / "table.md").read_text()


def test_a_sweep_that_stops_by_itself_has_the_intervals_of_its_looks():
    fixed = swept({1: 1e-3, 4: 0.5e-3}, launches=9)
    stopped = replace(fixed, sampling=replace(fixed.sampling, until="faster", launches=13))
    plain, wide = (judged(run).losses[1] for run in (fixed, stopped))
    assert wide.half_width / plain.half_width == pytest.approx(3.355 / 2.306, rel=0.1)
