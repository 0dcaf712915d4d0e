"""Kernels per level against the totals, and the roofline bound against closed forms."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from measuring import forked
from networks import on_meta
from report_examples import PEAKS as REPORTED
from report_examples import bounded, g2, models
from runs import COST, run_of, study
from torch import nn

from effbench import cost, report
from effbench.analysis import rank_agreement
from effbench.analysis.summary import summarise
from effbench.core.cost import LEVELS, Traffic
from effbench.core.errors import CorruptRun, EffbenchError
from effbench.core.peaks import Peaks
from effbench.core.run import Run
from effbench.core.study import Cell
from effbench.cost import Kernel, Profile, bound_s, bounds_s, count_in_subprocess
from effbench.report import json_document
from effbench.report.figures import roofline
from effbench.report.tables.compare import compare_rows
from effbench.report.tables.study import study_rows
from effbench.runs import run_file, runner
from effbench.studies import plan
from effbench.timing import peaks as measuring

PEAKS = Peaks(flops_per_s=1e11, bytes_per_s=2e10)


@pytest.fixture(scope="module", params=["shufflenet_v2", "shufflenet_v1", "mobilenet_v2", "resnet18"])
def found(request: pytest.FixtureRequest) -> Profile:
    return cost.profile(on_meta(request.param), (3, 96, 96), batch=2, device="meta")


def total(kernels: tuple[Kernel, ...]) -> Traffic:
    return sum((kernel.traffic for kernel in kernels), Traffic())


def test_kernels_add_up_to_the_network(found: Profile) -> None:
    assert set(found.kernels) == set(LEVELS)
    for level, kernels in found.kernels.items():
        assert total(kernels) == found.cost.memory_access_levels[level], level
        assert sum(kernel.madds for kernel in kernels) == found.cost.madds, level
    assert len(found.kernels["eager"]) == len(found.ops)
    assert len(found.kernels["epilogue"]) < len(found.kernels["pointwise"]) < len(found.kernels["eager"])


def test_one_kernel_a_convolution_once_everything_around_is_folded_in() -> None:
    """conv, norm and activation: three operators, two kernels for a compiler, one for a deployment runtime."""
    model = nn.Sequential(nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    found = cost.profile(model, (8, 10, 10))
    assert [len(found.kernels[level]) for level in LEVELS] == [1, 3, 2, 1]
    (folded,) = found.kernels["epilogue"]
    madds, moved = 100 * 8 * 16, 100 * 8 + 100 * 16 + 8 * 16 + 16
    assert folded.madds == madds and folded.traffic.elements == moved
    # 12,800 multiply-adds at 50 G/s are 0.256 µs, 10.2 kB at 20 GB/s 0.508 µs: memory binds.
    assert bound_s([folded], PEAKS) == pytest.approx(4 * moved / 2e10, rel=1e-12)
    assert bounds_s(found.kernels, PEAKS)["layer"] == pytest.approx(4 * (moved - 16) / 2e10, rel=1e-12)


def test_bytes_follow_dtype_and_weights_are_read_once_a_batch() -> None:
    model = nn.Linear(300, 200, bias=False)
    for dtype, size in (("float32", 4), ("float16", 2), ("float64", 8)):
        (kernel,) = cost.profile(model, (300,), batch=7, dtype=dtype).kernels["eager"]
        assert kernel.traffic.bytes == size * (300 * 200 + 7 * 500)
        assert kernel.madds == 7 * 300 * 200


def test_a_bound_is_a_sum_of_maxima_and_not_a_maximum_of_sums() -> None:
    arithmetic, memory = Kernel(5 * 10**9, Traffic()), Kernel(0, Traffic(activation_bytes=2 * 10**9))
    assert bound_s([arithmetic], PEAKS) == pytest.approx(0.1)
    assert bound_s([memory], PEAKS) == pytest.approx(0.1)
    assert bound_s([arithmetic, memory], PEAKS) == pytest.approx(0.2)
    assert bound_s([Kernel(5 * 10**9, Traffic(activation_bytes=2 * 10**9))], PEAKS) == pytest.approx(0.1)
    assert bound_s([], PEAKS) == 0
    assert PEAKS.ridge == 5


kernels = st.builds(
    Kernel,
    st.integers(0, 10**12),
    st.builds(Traffic, weight_bytes=st.integers(0, 10**10), activation_bytes=st.integers(0, 10**10)),
)
rates = st.floats(1e6, 1e16)


@hypothesis_settings(deadline=None)
@given(st.lists(kernels, max_size=8), rates, rates, st.integers(1, 64))
def test_bounds_lie_between_the_larger_roof_and_both_together(
    found: list[Kernel], flops: float, moved: float, faster: int
) -> None:
    peaks = Peaks(flops, moved)
    bound = bound_s(found, peaks)
    arithmetic = 2 * sum(kernel.madds for kernel in found) / flops
    memory = sum(kernel.traffic.bytes for kernel in found) / moved
    assert max(arithmetic, memory) * (1 - 1e-9) <= bound <= (arithmetic + memory) * (1 + 1e-9)
    assert bound_s(found, Peaks(flops * faster, moved * faster)) == pytest.approx(bound / faster)
    assert bound_s(found, Peaks(flops * faster, moved)) <= bound * (1 + 1e-12)
    assert math.isfinite(bound)


@hypothesis_settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 6),
    st.lists(st.tuples(st.sampled_from(["conv", "norm", "relu", "pool", "add"]), st.integers(1, 8)), max_size=7),
)
def test_kernels_of_any_stack_add_up(batch: int, blocks: list[tuple[str, int]]) -> None:
    class Twice(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + x.relu()

    width, layers = 3, list[nn.Module]()
    for kind, size in blocks:
        if kind == "conv":
            layers.append(nn.Conv2d(width, size, 3, padding=1))
            width = size
        else:
            layers.append(
                {"norm": nn.BatchNorm2d(width), "relu": nn.ReLU(), "pool": nn.AvgPool2d(3, 1, 1), "add": Twice()}[kind]
            )
    found = cost.profile(nn.Sequential(*layers), (3, 9, 9), batch=batch)
    for level, each in found.kernels.items():
        assert total(each) == found.cost.memory_access_levels[level]
        assert sum(kernel.madds for kernel in each) == found.cost.madds


# --- in a run -----------------------------------------------------------------------------------------

SAMPLING = {"launches": 1, "min_rounds": 2, "max_rounds": 2, "warmup_s": 0.0, "max_warmup_s": 0.1}


def execute(directory: Path) -> Run:
    def least(cell: Cell, peaks: Peaks) -> Mapping[str, float]:
        return dict.fromkeys(LEVELS, COST.madds / peaks.flops_per_s)

    planned = plan.make(study(), device="fake", sampling=SAMPLING)
    return runner.execute(planned, directory, profile=lambda cell: COST, bounds=least)


def test_a_run_stores_its_peaks_and_every_bound(tmp_path: Path) -> None:
    """The scripted device computes 50 G multiply-adds and moves 20 GB a second, with half a percent of noise."""
    run = execute(tmp_path / "run")
    facts = run.environment.facts
    assert facts["peaks.float32.flops_per_s"] == pytest.approx(100e9, rel=0.03)
    assert facts["peaks.float32.bytes_per_s"] == pytest.approx(20e9, rel=0.03)
    for result, cell in zip(run.results, summarise(run), strict=True):
        assert result.bounds_s == cell.bounds_s
        assert cell.bounds_s == dict.fromkeys(LEVELS, COST.madds / facts["peaks.float32.flops_per_s"])
        assert cell.latency is not None
        assert cell.over_bound("layer") == pytest.approx(cell.busy.point / cell.bounds_s["layer"])
        stored = json_document.cell_document(cell)
        assert stored["over_bounds"]["eager"] == cell.over_bound() and stored["bounds_s"] == cell.bounds_s


def test_a_resumed_run_keeps_the_bounds_it_was_begun_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = execute(tmp_path / "run")
    file = tmp_path / "run" / run_file.RUN_FILE
    file.write_text(
        "".join(line for line in file.read_text().splitlines(True) if json.loads(line)["kind"] in ("header", "cell"))
    )
    monkeypatch.setattr(measuring, "load_or_measure", lambda *args, **kwargs: pytest.fail("measured again"))
    again = runner.resume(tmp_path / "run")
    assert again.complete
    assert [result.bounds_s for result in again.results] == [result.bounds_s for result in begun.results]
    assert again.environment == begun.environment


def test_peaks_that_cannot_be_measured_cost_a_run_its_bounds_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> Peaks:
        raise EffbenchError("the peaks of fake in float32 could not be measured: no such kernel")

    monkeypatch.setattr(measuring, "load_or_measure", refuse)
    run = execute(tmp_path / "run")
    assert run.complete and all(result.bounds_s is None for result in run.results)
    cells = summarise(run)
    shown = study_rows(run, cells)
    assert not any("roofline" in column.heading for column in shown.columns)
    assert any("No roofline" in note and "no such kernel" in note for note in shown.notes)
    assert "roofline" not in report.run_figures(run, cells, ())


@pytest.mark.parametrize("bounds", [{"eager": 1.0}, dict.fromkeys(LEVELS, -1.0), dict.fromkeys(LEVELS, "1"), 5])
def test_a_damaged_bound_is_refused_by_its_line(tmp_path: Path, bounds: object) -> None:
    execute(tmp_path / "run")
    file = tmp_path / "run" / run_file.RUN_FILE
    lines = file.read_text().splitlines()
    record = json.loads(lines[1])
    file.write_text("\n".join([lines[0], json.dumps({**record, "bounds_s": bounds}), *lines[2:]]) + "\n")
    with pytest.raises(CorruptRun, match="line 2"):
        run_file.load(tmp_path / "run")


def test_runs_from_before_there_were_bounds_load_as_they_are() -> None:
    reference = Path(__file__).parents[2] / "results" / "reference"
    for file in sorted(reference.glob("*/compare/run.jsonl")):
        run = run_file.load(file)
        cells = summarise(run)
        assert all(cell.bounds_s is None and cell.over_bound() is None for cell in cells)
        assert not any("roofline" in column.heading for column in compare_rows(run, cells).columns)
        assert not roofline.can_draw(run, cells)


def test_a_strangers_network_counted_apart_has_the_kernels_of_our_own(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("from effbench.zoo import resolve\ndef build():\n    return resolve('resnet18')\n")
    case = replace(study().cases[0], model=f"{tmp_path}/net.py:build", input_shape=(3, 64, 64), arguments={})
    with forked():
        (apart,) = count_in_subprocess.count_in_worker([Cell(case, batch=2)], 60.0).values()
    assert isinstance(apart, count_in_subprocess.Counted)
    ours = cost.profile(on_meta("resnet18"), (3, 64, 64), batch=2)
    assert apart.cost == ours.cost and apart.kernels == ours.kernels


# --- shown --------------------------------------------------------------------------------------------


def test_the_table_shows_the_bound_and_how_far_above_it_a_cell_is() -> None:
    run, cells = bounded(*g2()[:2])
    shown = study_rows(run, cells)
    headings = [column.heading for column in shown.columns]
    least, over = headings.index("roofline, eager"), headings.index("time ÷ roofline")
    for cell, row in zip(cells, shown.rows, strict=True):
        assert cell.cost is not None and cell.latency is not None
        assert row[least].raw == 2 * cell.cost.madds / REPORTED.flops_per_s
        assert row[over].raw == pytest.approx(cell.latency.point * REPORTED.flops_per_s / (2 * cell.cost.madds))
    assert headings.count("bound") == 1, "what a cell waits for is another column"
    assert any("200 Gflop/s and 40.0 GB/s in float32" in note for note in shown.notes)


def test_faster_than_the_bound_is_explained_and_only_then() -> None:
    run, cells = bounded(*g2()[:2])

    def explained(cells: list[object]) -> bool:
        return any("cache" in note for note in study_rows(run, cells).notes)  # type: ignore[arg-type]

    assert not explained([*cells])
    assert explained([replace(cells[0], bounds_s=dict.fromkeys(LEVELS, 1e3)), *cells[1:]])


def test_the_figure_has_a_point_a_cell_under_roofs_that_meet_at_the_ridge() -> None:
    run, cells = bounded(*models(5, skipped=("resnet18",)))
    figure = roofline.roofline_figure(run, cells)
    (axes,) = figure.axes
    lines = {tuple(line.get_xydata().ravel()) for line in axes.lines}  # type: ignore[union-attr]
    points = {line for line in lines if len(line) == 2}
    expected = set()
    for cell in cells:
        if cell.cost is not None and cell.latency is not None:
            flops = 2 * cell.cost.madds
            expected.add((flops / (4 * cell.cost.memory_access), flops / cell.latency.point / 1e9))
    assert points == expected and len(points) == 4
    (roof,) = (line for line in lines if len(line) == 6)
    (left, low, ridge, top, _, flat) = roof
    assert ridge == REPORTED.ridge == 5 and top == flat == 200
    assert low / left == pytest.approx(40)


def test_the_roofline_figure_is_there_where_peaks_are() -> None:
    run, cells = models(2)
    assert "roofline" not in report.run_figures(run, cells, ())
    assert "roofline" in report.run_figures(*bounded(run, cells), ())
    assert "roofline" not in report.run_figures(*bounded(run, [replace(cell, cost=None) for cell in cells]), ())


def test_over_bound_needs_both_a_time_and_a_bound() -> None:
    made = summarise(run_of({"scale=x1,groups=1": 0.01, "scale=x1,groups=2": 0.02}))
    assert made[0].over_bound() is None
    assert replace(made[0], bounds_s={"eager": 0.005}).over_bound() == pytest.approx(2, rel=0.01)
    assert replace(made[0], bounds_s={"eager": 0.0}).over_bound() is None
    assert replace(made[0], bounds_s={"eager": 0.005}, busy=None).over_bound() is None


def test_of_more_networks_than_names_find_room_for_colour_tells_the_family() -> None:
    run, cells = bounded(*models(60))
    figure = roofline.roofline_figure(run, cells)
    families = {rank_agreement.family(cell.cell.case.model) for cell in cells}
    assert len(families) > 1
    assert {text.get_text() for text in figure.legends[-1].get_texts()} == families
    dots = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 1]
    looks = [(line.get_color(), point) for line, point in zip(dots, cells, strict=True)]
    assert len({(rank_agreement.family(cell.cell.case.model), colour) for colour, cell in looks}) == len(families)
    assert len(roofline.roofline_figure(*bounded(*models(2))).legends) == 1
