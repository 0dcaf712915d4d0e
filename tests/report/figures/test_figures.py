"""Figures: no text overlaps or leaves the figure, values equal the data, files are reproducible."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import report_examples as examples
from figure_texts import require_room, texts_of
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.text import Text

from effbench.core.errors import StorageError
from effbench.core.estimate import Estimate
from effbench.report import write_all
from effbench.report.figures import compare, roofline, study, style


def wide_study() -> Figure:
    """Ratios from 0.5 to 20, flags, a cell without interval, one without ratio."""
    rows = {
        "x1": [(1, 1.0, 1.0), (2, 0.5, 0.8), (4, 3.0, None), (8, 20.0, 10.7)],
        "x2": [(1, 1.0, 1.0), (8, None, 2.0)],
    }
    cells = examples.study_cells("groups", rows, width=0.1)
    cells[2] = replace(cells[2], flags=("host-bound",), ratio=Estimate(3.0))
    run = examples.run_of(cells, title="G2 with a wide span", factor="groups", levels=(1, 2, 4, 8))
    return study.study_figure(run, cells, [])


def worded_study(levels: int = 6, groups: int = 4) -> Figure:
    """Long labels everywhere."""
    names = [f"a-rather-long-structure-number-{number}" for number in range(levels)]
    rows = {f"group{group}": [(name, 1.0 + 0.1 * at, 1.1) for at, name in enumerate(names)] for group in range(groups)}
    cells = examples.study_cells("structure", rows)
    run = examples.run_of(cells, title="a long title " * 12, factor="structure", levels=tuple(names))
    verdicts = [
        examples.verdict(
            "a claim with a name of several words", "holds", {"scale": name}, (names[1], names[0], None, None)
        )
        for name in rows
    ]
    return study.study_figure(run, cells, verdicts)


def one_cell() -> Figure:
    run, cells, _ = examples.g2()
    return study.study_figure(run, cells[:1], [])


def nothing_measured() -> Figure:
    run, cells, verdicts = examples.g2()
    bare = [replace(cell, cost=None, latency=None, ratio=None, paper_ratio=None, skipped="broken") for cell in cells]
    return study.study_figure(run, bare, verdicts)


def same_point() -> Figure:
    run, cells = examples.models(6)
    return compare.compare_figure(run, [replace(cell, cost=cells[0].cost, throughput=100.0) for cell in cells])


FIGURES: dict[str, Callable[[], Figure]] = {
    "three scales": lambda: study.study_figure(*examples.g2()),
    "structures": lambda: study.study_figure(*examples.g3()),
    "skipped": lambda: study.study_figure(*examples.g4()),
    "wide": wide_study,
    "long words": worded_study,
    "many levels": lambda: worded_study(levels=12, groups=5),
    "one cell": one_cell,
    "nothing measured": nothing_measured,
    "no cell": lambda: study.study_figure(examples.g2()[0], [], []),
    "1 model": lambda: compare.compare_figure(*examples.models(1)),
    "2 models": lambda: compare.compare_figure(*examples.models(2)),
    "12 models": lambda: compare.compare_figure(*examples.models(12, skipped=("resnet50", "resnet18"))),
    "20 models": lambda: compare.compare_figure(*examples.models(20, prefix="a.package.with.long.names:")),
    "every model skipped": lambda: compare.compare_figure(
        *examples.models(2, skipped=("shufflenet_v2_x1_0", "mobilenet_v2_x1_0"))
    ),
    "no model": lambda: compare.compare_figure(examples.models(1)[0], []),
    "models on one point": same_point,
    "roofline of a study": lambda: roofline.roofline_figure(*examples.bounded(*examples.g2()[:2])),
    "roofline of 1 model": lambda: roofline.roofline_figure(*examples.bounded(*examples.models(1))),
    "roofline of 12 models": lambda: roofline.roofline_figure(*examples.bounded(*examples.models(12))),
}


def test_levels_stand_upright_only_where_they_have_no_room() -> None:
    assert {label.get_rotation() for axes in wide_study().axes for label in axes.get_xticklabels()} == {0}
    rows = {"x1": [("w" * 20 + str(place), 1.0 + place, None) for place in range(12)]}
    cells = examples.study_cells("structure", rows)
    names = tuple(name for name, *_ in rows["x1"])
    crowded = study.study_figure(examples.run_of(cells, title="crowded", factor="structure", levels=names), cells, [])
    assert {label.get_rotation() for axes in crowded.axes for label in axes.get_xticklabels()} == {90}


@pytest.fixture(scope="module")
def drawn() -> dict[str, Figure]:
    figures = {name: draw() for name, draw in FIGURES.items()}
    for figure in figures.values():
        figure.draw_without_rendering()
    return figures


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_overlaps_another_or_leaves_the_figure(name: str, drawn: dict[str, Figure]) -> None:
    require_room(drawn[name])


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_fits_a_readme(name: str, drawn: dict[str, Figure]) -> None:
    figure = drawn[name]
    assert figure.get_figwidth() == style.WIDTH_IN
    assert figure.get_figheight() < 40
    assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text().strip()) >= 8  # type: ignore[attr-defined]
    for axes in figure.axes:
        box = axes.get_position()
        assert box.width * figure.get_figwidth() > 1.2
        assert 0 <= box.y0 < box.y1 <= 1


def points_of(axes: Axes, marker: str) -> list[tuple[float, float]]:
    return [
        (float(x), float(y))
        for line in axes.get_lines()
        if line.get_marker() == marker
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)  # type: ignore[arg-type]
    ]


def test_a_study_draws_its_ratios_intervals_and_the_papers(drawn: dict[str, Figure]) -> None:
    figure = drawn["three scales"]
    assert len(figure.axes) == 3
    for axes, (name, rows) in zip(figure.axes, examples.GROUPS.items(), strict=True):
        assert [y for _, y in points_of(axes, "o")] == [ratio for _, ratio, _ in rows]
        assert [y for _, y in points_of(axes, "D")] == [paper for _, _, paper in rows]
        bars = [item for item in axes.containers if isinstance(item, ErrorbarContainer)]
        ends = [tuple(segment[:, 1]) for segment in bars[0].lines[2][0].get_segments()]
        assert ends == [pytest.approx((ratio * 0.98, ratio * 1.02)) for _, ratio, _ in rows[1:]], (
            "the reference has none"
        )
        assert axes.get_title(loc="left") == f"scale {name}"
    said = [text for text, _ in texts_of(figure)]
    assert [word for word in said if word.endswith(": G2")] == ["unsure: G2", "holds: G2", "holds: G2"]
    assert "paper, Snapdragon 810" in said
    assert "measured, 95 % interval" in said
    assert any("Intel Xeon 8370C (cpu), 1 thread" in word and "5 launches" in word for word in said)


def test_a_label_with_the_same_value_as_a_level_is_not_taken_for_it() -> None:
    """The norm of G4's bottleneck is called "none", as is the level without ReLU and shortcut."""
    run, cells, verdicts = examples.g4()
    named = [
        replace(
            item,
            cell=replace(item.cell, case=replace(item.cell.case, labels={**item.cell.case.labels, "norm": "none"})),
        )
        for item in cells
    ]
    figure = study.study_figure(run, named, verdicts)
    assert len(points_of(figure.axes[0], "o")) == 4
    assert any("norm none" in text for text, _ in texts_of(figure))


def test_the_axis_turns_logarithmic_beyond_a_factor_of_four(drawn: dict[str, Figure]) -> None:
    assert {axes.get_yscale() for axes in drawn["wide"].axes} == {"log"}
    assert {axes.get_yscale() for axes in drawn["three scales"].axes} == {"linear"}


def test_panels_share_one_scale_that_shows_everything(drawn: dict[str, Figure]) -> None:
    figure = drawn["wide"]
    limits = {axes.get_ylim() for axes in figure.axes}
    assert len(limits) == 1
    low, high = limits.pop()
    assert low < 0.5 * 0.9
    assert high > 20.0 * 1.1


def test_flags_skips_and_missing_intervals_show(drawn: dict[str, Figure]) -> None:
    figure = drawn["wide"]
    first, second = figure.axes
    assert points_of(first, "X") == [(pytest.approx(2 - 0.11), 3.0)]
    assert [len(item.lines[2][0].get_segments()) for item in first.containers] == [2]  # type: ignore[union-attr]
    assert [text.get_text() for text in second.texts if text.get_text()] == ["skipped"]
    assert "measured, flagged: cannot confirm" in [text for text, _ in texts_of(figure)]


def test_numeric_levels_are_joined_and_named_ones_are_not(drawn: dict[str, Figure]) -> None:
    def joined(figure: Figure) -> bool:
        return any(line.get_linestyle() == "-" and len(line.get_xdata()) > 2 for line in figure.axes[0].get_lines())  # type: ignore[arg-type]

    assert joined(drawn["three scales"])
    assert not joined(drawn["structures"])


def test_a_comparison_draws_costs_speeds_and_latencies_in_order(drawn: dict[str, Figure]) -> None:
    _, cells = examples.models(12, skipped=("resnet50", "resnet18"))
    by_madds, by_memory, bars = drawn["12 models"].axes
    measured = sorted((cell for cell in cells if cell.latency), key=lambda cell: cell.latency.point)  # type: ignore[union-attr]
    assert sorted(points_of(by_madds, "o") + points_of(by_madds, "X")) == sorted(
        (cell.cost.madds / 1e6, cell.throughput) for cell in measured if cell.cost
    )
    assert sorted(points_of(by_memory, "o") + points_of(by_memory, "X")) == sorted(
        (cell.cost.memory_access / 1e6, cell.throughput) for cell in measured if cell.cost
    )
    widths = [patch.get_width() for patch in bars.patches]  # type: ignore[attr-defined]
    assert widths == pytest.approx([1e3 * cell.latency.point for cell in measured if cell.latency])
    assert (by_madds.get_xscale(), by_memory.get_yscale()) == ("log", "log")
    assert by_madds.get_xlabel() == "madds (M)"
    assert by_memory.get_xlabel() == "memory access (M elements)"
    assert any("skipped: out of memory" in text.get_text() for text in bars.texts)


def test_names_stand_at_the_points_where_there_is_room_and_numbers_where_not(drawn: dict[str, Figure]) -> None:
    few, many = drawn["2 models"], drawn["20 models"]
    assert {text.get_text() for text in few.axes[0].texts} == {"shufflenet_v2_x1_0", "mobilenet_v2_x1_0"}
    assert {text.get_text() for text in many.axes[0].texts} == {str(number) for number in range(1, 21)}
    assert [label.get_text().split()[-1] for label in many.axes[2].get_yticklabels()] == [str(n) for n in range(1, 21)]


def test_at_least_two_ticks_are_labelled_wherever_the_data_lie() -> None:
    for low in (0.013, 0.9, 1.0, 3.0, 7.7, 145.0, 4999.0):
        axes = Figure().add_subplot()
        style.log_axis(axes, "x", low, low * 1.01)
        left, right = axes.get_xlim()
        assert len([tick for tick in axes.get_xticks() if left <= tick <= right]) >= 2


def test_saving_gives_the_same_bytes_and_text_as_text(tmp_path: Path) -> None:
    saved = []
    for folder, nudge in (("one", 0.0), ("two", 1e-13)):
        figure = one_cell()
        # The layout's solver leaves the last digits of positions open: here they differ for certain.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        for axes in figure.axes:
            axes.set_position(axes.get_position().translated(nudge, 0))
        (tmp_path / folder).mkdir()
        saved.append(style.save(figure, tmp_path / folder, "study"))
    for first, second in zip(*saved, strict=True):
        assert first.read_bytes() == second.read_bytes()
    png, svg = saved[0]
    assert png.read_bytes()[:4] == b"\x89PNG"
    assert int.from_bytes(png.read_bytes()[16:20], "big") == round(150 * style.WIDTH_IN)
    assert "G2: group convolution raises memory access cost</text>" in svg.read_text(encoding="utf-8")
    assert "<dc:date>" not in svg.read_text(encoding="utf-8")


def test_figures_leave_matplotlib_as_it_was(tmp_path: Path) -> None:
    code = (
        "import sys, matplotlib; sys.path.insert(0, sys.argv[1])\n"
        "import report_examples as examples\n"
        "from effbench.report.figures import compare, study, style\n"
        "matplotlib.rcParams['font.size'] = 21\n"
        # Reading the backend would choose one.
        "read = lambda: {key: matplotlib.rcParams[key] for key in matplotlib.rcParams if key != 'backend'}\n"
        "before = read()\n"
        "run, cells, _ = examples.g2()\n"
        "style.save(study.study_figure(run, cells[:1], []), sys.argv[2], 'a')\n"
        "style.save(compare.compare_figure(*examples.models(1)), sys.argv[2], 'b')\n"
        "print(read() == before, 'matplotlib.pyplot' in sys.modules)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parents[2] / "support"), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout.split() == ["True", "False"]


# --- everything at once ---------------------------------------------------------------------------------


def test_write_all_leaves_table_verdicts_and_figure_beside_the_run(tmp_path: Path) -> None:
    written = write_all(*examples.g2(), tmp_path / "new" / "folder")
    assert sorted(written) == ["figure.png", "figure.svg", "table.csv", "table.md", "verdicts.md"]
    assert all(path.parent == tmp_path / "new" / "folder" and path.stat().st_size for path in written.values())
    verdicts = written["verdicts.md"].read_text(encoding="utf-8")
    assert (
        "- scale x2: groups 8 runs 2.87× slower than groups 1 (95 % interval 2.81–2.93; the paper: 1.39×)" in verdicts
    )
    run, cells = examples.models(1)
    compared = write_all(run, cells, (), tmp_path)
    assert sorted(compared) == ["figure.png", "figure.svg", "table.csv", "table.md"]
    assert "| model |" in compared["table.md"].read_text(encoding="utf-8")


def test_an_unwritable_folder_is_an_error_for_people(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"cannot write .*choose another folder"):
        write_all(*examples.g2(), tmp_path / "file" / "below")
    with pytest.raises(StorageError, match=r"cannot write the figure .*choose another folder"):
        style.save(one_cell(), tmp_path / "missing", "figure")


def test_a_full_disk_is_an_error_for_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here for either writer; `test_faults` has a real full disk."""
    savefig = Figure.savefig
    run, cells, _ = examples.g2()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def full_for_files(figure: Figure, place: object, **options: object) -> None:
        return full() if isinstance(place, Path) else savefig(figure, place, **options)  # type: ignore[arg-type]

    for owner, name, writer in ((Path, "write_text", full), (Figure, "savefig", full_for_files)):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, writer)
            with pytest.raises(StorageError, match="No space left"):
                write_all(run, cells[:1], (), tmp_path)
