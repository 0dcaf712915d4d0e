"""Runs for people: tables, figures, and the files beside a run. Importing this brings in no plotting library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from effbench.analysis import rank_agreement, saturation, time_shares
from effbench.analysis.summary import CellSummary
from effbench.core.errors import StorageError
from effbench.core.estimate import Verdict
from effbench.core.run import Run
from effbench.host import optional_packages
from effbench.report import text as report_text
from effbench.report.figures import failures
from effbench.report.tables import breakdown as breakdown_table
from effbench.report.tables import cells as cells_table
from effbench.report.tables import runtimes, sweep
from effbench.report.tables.table_model import Table
from effbench.runs import run_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def tables(run: Run, cells: Sequence[CellSummary], verdicts: Sequence[Verdict]) -> dict[str, Table]:
    """Every table of a run by the name of its file: ``table`` holds the cells, ``verdicts`` is there where claims are.

    Whatever shows a run (terminal, Markdown, page) shows these, in this order.
    """
    rows = cells_table.compare_rows if report_text.is_comparison(run) else cells_table.study_rows
    found = {"table": rows(run, cells)}
    swept = saturation.saturations(run, cells)
    if swept:
        found["saturation"] = sweep.saturation_rows(run, cells, swept)
    if verdicts:
        found["verdicts"] = cells_table.verdict_rows(verdicts)
    if any(cell.prepared for cell in cells):
        found["runtimes"] = runtimes.prepared_rows(run, cells)
    groups = report_text.grouping(run, cells)
    agreements = rank_agreement.agreements(cells, groups) if report_text.is_comparison(run) else ()
    if agreements:
        found["ranking"] = cells_table.ranking_rows(agreements, " and ".join(groups))
    parts = time_shares.split(run)
    if parts:
        found["breakdown"] = breakdown_table.breakdown_rows(run, cells, parts)
    if run.experiment.absent:
        found["absent"] = cells_table.absent_rows(run)
    return found


def figures(run: Run, cells: Sequence[CellSummary], verdicts: Sequence[Verdict]) -> dict[str, Figure]:
    """Every figure of a run by the name of its file, the main one first as ``figure``; none without cells."""
    from effbench.report.figures import breakdown as breakdown_figure
    from effbench.report.figures import matrix as matrix_figure
    from effbench.report.figures import panels, study
    from effbench.report.figures import roofline as roofline_figure
    from effbench.report.figures import runtimes as runtimes_figure
    from effbench.report.figures import sweep as sweep_figure

    if not cells:
        return {}
    roofline = {}
    if roofline_figure.can_draw(run, cells):
        roofline["roofline"] = roofline_figure.roofline_figure(run, cells)
    swept = saturation.saturations(run, cells)
    if swept:
        return {"figure": sweep_figure.sweep_figure(run, cells, swept), **roofline}
    if not report_text.is_comparison(run):
        if matrix_figure.can_draw(run, verdicts):
            matrix = matrix_figure.matrix_figure([matrix_figure.Seen(run, cells, verdicts)])
            return {"figure": matrix, "ratios": runtimes_figure.runtimes_figure(run, cells), **roofline}
        return {"figure": study.study_figure(run, cells, verdicts), **roofline}
    found = {"figure": study.compare_figure(run, cells), **roofline}
    parts = time_shares.split(run)
    if any(item.shares for item in parts):
        found["breakdown"] = breakdown_figure.breakdown_figure(run, cells, parts)
    if panels.can_draw(cells):
        found["panels"] = panels.panels_figure(run, cells)
    return found


def draw_in(axes: Axes, run: Run, cells: Sequence[CellSummary], verdicts: Sequence[Verdict]) -> None:
    """The main figure of a run in axes of the caller's, and nowhere else.

    Of models side by side these are the latencies alone. Raises InvalidValue for a study of several groups.
    """
    from effbench.report.figures import compare, matrix, study, sweep

    swept = saturation.saturations(run, cells)
    if swept:
        sweep.sweep_in(axes, run, cells, swept)
    elif report_text.is_comparison(run):
        compare.latencies_in(axes, cells)
    elif matrix.can_draw(run, verdicts):
        matrix.matrix_in(axes, [matrix.Seen(run, cells, verdicts)])
    else:
        study.study_in(axes, run, cells, verdicts)


def write_all(
    run: Run, cells: Sequence[CellSummary], verdicts: Sequence[Verdict], directory: str | Path
) -> dict[str, Path]:
    """Write the tables and figures of a run into a folder; the paths by file name.

    ``table.md`` and ``table.csv`` always; ``verdicts.md`` where there are verdicts; ``figure.png`` and ``figure.svg``
    where there are cells and can be drawn (else a RuntimeWarning says why not); two more files for each further table
    or figure. Raises StorageError where the folder cannot be written.
    """
    from effbench.report.figures import study

    folder = Path(directory)
    texts = _texts(run, tables(run, cells, verdicts), verdicts)
    written = {name: write_text(folder / name, text) for name, text in texts.items()}
    # A board that ran a bundle may be without matplotlib; its tables are worth having all the same.
    if optional_packages.has("matplotlib"):

        def draw() -> dict[str, Path]:
            saved: dict[str, Path] = {}
            for name, figure in figures(run, cells, verdicts).items():
                saved[f"{name}.png"], saved[f"{name}.svg"] = study.save(figure, folder, name)
            return saved

        written |= failures.drawn(draw)
    return written


def _texts(run: Run, found: Mapping[str, Table], verdicts: Sequence[Verdict]) -> dict[str, str]:
    texts = {}
    for name, rows in found.items():
        texts[f"{name}.md"] = cells_table.render_markdown(rows)
        if name != "verdicts":
            texts[f"{name}.csv"] = cells_table.render_csv(rows)
    texts["table.md"] += _readings(run)
    if verdicts:
        sentences = cells_table.verdict_sentences(verdicts, factor=run.experiment.factor)
        listed = "\n".join(f"- {cells_table.escape_markdown(sentence)}" for sentence in sentences)
        texts["verdicts.md"] += f"\n{listed}\n"
    return texts


def _readings(run: Run) -> str:
    """How the study read the paper where it can be read in two ways, and why: its defaults rest on this."""
    listed = "".join(f"- {cells_table.escape_markdown(note)}\n" for note in run.experiment.notes)
    return f"\nHow the study reads the paper:\n\n{listed}" if listed else ""


def write_text(path: Path, text: str) -> Path:
    """Write a file and whatever folders it needs; its path. Raises StorageError."""
    run_file.refuse_link(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise StorageError(
            f"cannot write {path} ({error.strerror or error}): free space there or choose another folder"
        ) from error
    return path
