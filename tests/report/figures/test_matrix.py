"""The verdict matrix of many machines: columns in bands, headings that fit, runs that have not begun."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import report_examples as examples
from figure_texts import require_room, texts_of
from matplotlib.figure import Figure

from effbench.core.run import Run
from effbench.core.study import Label
from effbench.report.figures import matrix, style

SIX = ("eager", "compile", "onnxruntime", "executorch", "openvino", "ncnn")
CPUS = (
    "ARM Cortex-A76",
    "ARM Cortex-A76",
    "11th Gen Intel(R) Core(TM) i7-1165G7 @ 2.80GHz",
    "AMD EPYC 9R45",
    "Neoverse-V2",
)
NAMES = ("pi5-a", "pi5-b", "a-machine_with.a-name-of-40-characters.", "g" * 40, "epyc-rack-7.lab.example.org", "a", "b")
CLAIMS = (
    "G1: unequal channels are slower",
    "G3: parallel fragments are slower",
    "a claim told in many more words " * 3,
)
RATIO = 1.55


def machine(
    number: int, runtimes: Sequence[str], *, channels: str = "ARM", paper: float | None = 1.25
) -> matrix.RunColumns:
    run, cells, _ = examples.g2()
    labels: Mapping[str, Label] = {"channels": channels}
    cells = [replace(item, cell=_labelled(item, labels)) for item in cells]
    facts = {"cpu.model": CPUS[number % len(CPUS)]}
    run = replace(run, environment=replace(run.environment, facts=facts))
    pair = (8, 1, examples.around(RATIO), paper)
    verdicts = [
        examples.verdict(claim, "holds", {"runtime": runtime, **labels}, pair)
        for claim in CLAIMS
        for runtime in runtimes
    ]
    return matrix.RunColumns(run, cells, verdicts, f"{number + 1}: {NAMES[number]}", f"{facts['cpu.model']} (cpu)")


def _labelled(item: examples.CellSummary, labels: Mapping[str, Label]) -> examples.Cell:
    return replace(item.cell, case=replace(item.cell.case, labels={**item.cell.case.labels, **labels}))


def not_begun(item: matrix.RunColumns) -> matrix.RunColumns:
    return replace(item, run=replace(item.run, launches=(), complete=False))


def part(run: Run) -> Run:
    return replace(run, complete=False)


def machines(number: int, runtimes: Sequence[str]) -> list[matrix.RunColumns]:
    return [machine(place, runtimes) for place in range(number)]


SEEN: dict[str, list[matrix.RunColumns]] = {
    "1 machine, 6 runtimes": machines(1, SIX),
    "1 machine, 7 runtimes": machines(1, (*SIX, "cudagraph")),
    "1 machine, 12 runtimes": machines(1, [f"{name}{end}" for name in SIX for end in ("", "-int8")]),
    "3 machines, 1 runtime": machines(3, SIX[:1]),
    "3 machines, 6 runtimes": machines(3, SIX),
    "7 machines, 1 runtime": machines(7, SIX[:1]),
    "7 machines, 3 runtimes": machines(7, SIX[:3]),
    "no runtime of one name": [machine(0, SIX[:2]), machine(1, SIX[2:]), machine(2, ["a_plugin_with_a_long_name"])],
    "one not begun": [machine(0, SIX), not_begun(machine(1, SIX)), machine(2, SIX)],
    "a GPU among boards": [machine(0, SIX[:1]), machine(1, SIX[:1], channels="GPU", paper=2.5)],
    "nothing printed": [machine(0, SIX[:1], paper=None), machine(1, SIX[:1], paper=None)],
}


@pytest.fixture(scope="module")
def drawn() -> dict[str, Figure]:
    figures = {name: matrix.matrix_figure(seen) for name, seen in SEEN.items()}
    for figure in figures.values():
        figure.draw_without_rendering()
    return figures


@pytest.mark.parametrize("name", SEEN)
def test_no_text_overlaps_another_or_leaves_the_figure(name: str, drawn: dict[str, Figure]) -> None:
    require_room(drawn[name])
    assert drawn[name].get_figwidth() == style.WIDTH_IN and drawn[name].get_figheight() < 25


@pytest.mark.parametrize("name", SEEN)
def test_every_verdict_is_in_one_field(name: str, drawn: dict[str, Figure]) -> None:
    said = [text for text, _ in texts_of(drawn[name])]
    assert said.count("holds") == sum(len(item.verdicts) for item in SEEN[name] if item.run.launches)


def bands_of(figure: Figure) -> list[float]:
    """The heights at which the first claim is written, from the top."""
    return sorted((box.y0 for text, box in texts_of(figure) if text.startswith("G1")), reverse=True)


@pytest.mark.parametrize(
    ("name", "bands"),
    [
        ("1 machine, 7 runtimes", 1),
        ("1 machine, 12 runtimes", 2),
        ("7 machines, 1 runtime", 1),
        ("3 machines, 6 runtimes", 3),
        ("7 machines, 3 runtimes", 4),
        ("one not begun", 2),
    ],
)
def test_columns_without_room_go_into_a_band_below(name: str, bands: int, drawn: dict[str, Figure]) -> None:
    assert len(bands_of(drawn[name])) == bands
    said = [text.replace("\n", "") for text, _ in texts_of(drawn[name])]
    assert sum(text.startswith("paper") for text in said) == bands, "each band has its own headings"


@pytest.mark.parametrize("name", ["3 machines, 6 runtimes", "7 machines, 3 runtimes", "7 machines, 1 runtime"])
def test_each_machine_has_one_heading_of_its_name_and_hardware(name: str, drawn: dict[str, Figure]) -> None:
    said = [text.replace("\n", "").replace(" ", "") for text, _ in texts_of(drawn[name])]
    for item in SEEN[name]:
        assert said.count(item.name.replace(" ", "")) == 1, "a machine is not split where a band has room for it"
    alike = [item.setting for item in SEEN[name][:2]]
    assert len(set(alike)) == 1 and said.count(alike[0].replace(" ", "")) >= 2


def test_machines_of_unlike_runtimes_are_not_split() -> None:
    seen = [machine(0, SIX[:3]), machine(1, (*SIX, "cudagraph")), machine(2, SIX[:2])]
    said = [text for text, _ in texts_of(matrix.matrix_figure(seen))]
    assert said.count("2: pi5-b") == 1


def test_how_far_a_machine_is_stands_in_its_heading() -> None:
    seen = machines(3, SIX[:1])
    seen = [seen[0], replace(seen[1], run=part(seen[1].run)), not_begun(seen[2])]
    said = [text.replace("\n", " ") for text, _ in texts_of(matrix.matrix_figure(seen))]
    assert said.count("1 of 5 launches done") == said.count("not begun") == 1
    assert said.count("not measured") == len(CLAIMS), "one empty column, whatever its runtimes will be"


def test_the_paper_has_a_column_for_each_platform(drawn: dict[str, Figure]) -> None:
    said = [text.replace("\n", " ") for text, _ in texts_of(drawn["a GPU among boards"])]
    assert "paper, Snapdragon 810" in said and "paper, GTX 1080 Ti" in said
    assert said.count("×1.25") == said.count("×2.50") == len(CLAIMS)
    assert not [text for text, _ in texts_of(drawn["nothing printed"]) if text.startswith("paper")]


def test_a_label_that_one_run_varies_names_the_rows_of_all() -> None:
    """A run of one scale beside a run of three has its verdicts in the rows of that scale."""
    run, cells, verdicts = examples.g2()
    few = [item for item in verdicts if item.group["scale"] == "x2"]
    seen = [matrix.RunColumns(run, cells, verdicts, "1: a"), matrix.RunColumns(run, cells, few, "2: b")]
    said = [text for text, _ in texts_of(matrix.matrix_figure(seen))]
    assert [text for text in said if text.startswith("G2\n")] == ["G2\nscale x1", "G2\nscale x2", "G2\nscale x4"]
    assert sum(text.replace("\n", " ") == "not measured" for text in said) == 2


def test_text_that_has_no_place_to_break_is_broken_anywhere() -> None:
    for text in ("g" * 40, "a-machine_with.a-name", "epyc-rack-7.lab.example.org", "two words", "x"):
        for room in (0.3, 0.8, 2.0, 9.0):
            broken = style.fit_text(text, room, 9.5)
            assert style.width_in(broken, 9.5) <= room
            assert broken.replace("\n", "").replace(" ", "") == text.replace(" ", "")
    assert style.fit_text("two words", 9.0, 9.5) == "two words"
    assert style.fit_text("lab.example.org", 0.9, 9.5).split("\n")[0].endswith(".")
