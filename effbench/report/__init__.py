"""Build the tables and figures of a run, and write them into its folder. Matplotlib is imported only for drawing."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from effbench.analysis import rank_agreement, saturation, time_shares
from effbench.analysis.cell_summary import CellSummary
from effbench.analysis.rank_agreement import Agreement
from effbench.core.errors import StorageError
from effbench.core.estimate import Verdict
from effbench.core.run import Run
from effbench.host import optional_packages
from effbench.report import cell_row
from effbench.report import text as report_text
from effbench.report.figures import failures
from effbench.report.tables.breakdown import breakdown_rows
from effbench.report.tables.compare import absent_rows, compare_rows
from effbench.report.tables.ranking import ranking_rows
from effbench.report.tables.runtimes import prepared_rows
from effbench.report.tables.study import study_rows
from effbench.report.tables.sweep import saturation_rows
from effbench.report.tables.table_model import Table, escape_markdown, render_csv, render_markdown
from effbench.report.tables.verdicts import verdict_rows
from effbench.runs import run_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def agreements(run: Run, cells: Sequence[CellSummary]) -> tuple[Agreement, ...]:
    """How far each metric orders the models as their times do; () for a study that varies no models."""
    return rank_agreement.agreements(cells, report_text.grouping(run, cells)) if report_text.is_comparison(run) else ()


def run_tables(
    run: Run,
    cells: Sequence[CellSummary],
    verdicts: Sequence[Verdict],
    agreed: Sequence[Agreement] | None = None,
) -> dict[str, Table]:
    """Every table of a run by the name of its file: ``table`` holds the cells, ``verdicts`` is there where claims are.

    Whatever shows a run (terminal, Markdown, page) shows these, in this order. `agreed` are its `agreements`, where
    they are known already.
    """
    rows = compare_rows if report_text.is_comparison(run) else study_rows
    found = {"table": rows(run, cells)}
    swept = saturation.saturations(run, cells)
    if swept:
        found["saturation"] = saturation_rows(run, cells, swept)
    if verdicts:
        found["verdicts"] = verdict_rows(verdicts)
    if any(cell.prepared for cell in cells):
        found["runtimes"] = prepared_rows(run, cells)
    agreed = agreements(run, cells) if agreed is None else agreed
    if agreed:
        found["ranking"] = ranking_rows(agreed, " and ".join(report_text.grouping(run, cells)))
    parts = time_shares.split(run)
    if parts:
        found["breakdown"] = breakdown_rows(run, cells, parts)
    if run.experiment.absent:
        found["absent"] = absent_rows(run)
    return found


def run_figures(run: Run, cells: Sequence[CellSummary], verdicts: Sequence[Verdict]) -> dict[str, Figure]:
    """Draw every figure of a run, by file name, the main one first as ``figure``; none without cells."""
    from effbench.report.figures import breakdown as breakdown_figure
    from effbench.report.figures import compare, panels, study
    from effbench.report.figures import matrix as matrix_figure
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
            matrix = matrix_figure.matrix_figure([matrix_figure.RunColumns(run, cells, verdicts)])
            return {"figure": matrix, "ratios": runtimes_figure.runtimes_figure(run, cells), **roofline}
        return {"figure": study.study_figure(run, cells, verdicts), **roofline}
    found = {"figure": compare.compare_figure(run, cells), **roofline}
    parts = time_shares.split(run)
    if any(item.shares for item in parts):
        found["breakdown"] = breakdown_figure.breakdown_figure(run, cells, parts)
    if panels.can_draw(cells):
        found["panels"] = panels.panels_figure(run, cells)
    return found


def draw_in(axes: Axes, run: Run, cells: Sequence[CellSummary], verdicts: Sequence[Verdict]) -> None:
    """Draw the main figure of a run into the given axes. Creates no figure.

    Of a comparison of models, only the panel of latencies is drawn. Raises InvalidValue for a study of several groups.
    """
    from effbench.report.figures import compare, matrix, study, sweep

    swept = saturation.saturations(run, cells)
    if swept:
        sweep.sweep_in(axes, run, cells, swept)
    elif report_text.is_comparison(run):
        compare.latencies_in(axes, cells)
    elif matrix.can_draw(run, verdicts):
        matrix.matrix_in(axes, [matrix.RunColumns(run, cells, verdicts)])
    else:
        study.study_in(axes, run, cells, verdicts)


def write_all(
    run: Run,
    cells: Sequence[CellSummary],
    verdicts: Sequence[Verdict],
    directory: str | Path,
    shown: Mapping[str, Table] | None = None,
) -> dict[str, Path]:
    """Write the tables and figures of a run into a folder. Returns the paths by file name.

    ``table.md`` and ``table.csv`` always; ``verdicts.md`` where there are verdicts; ``figure.png`` and ``figure.svg``
    where there are cells and can be drawn (else a RuntimeWarning says why not); two more files for each further table
    or figure. `shown` are its `run_tables`, where they are known already. Raises StorageError where the folder cannot
    be written.
    """
    from effbench.report.figures import style

    folder = Path(directory)
    found = run_tables(run, cells, verdicts) if shown is None else shown
    texts = _texts(run, found, verdicts) | {"table.csv": _cells_csv(cells, found["table"])}
    written = {name: write_text(folder / name, text) for name, text in texts.items()}
    # A board that ran a bundle may lack matplotlib; it still gets the tables.
    if optional_packages.has("matplotlib"):

        def draw() -> dict[str, Path]:
            saved: dict[str, Path] = {}
            for name, figure in run_figures(run, cells, verdicts).items():
                saved[f"{name}.png"], saved[f"{name}.svg"] = style.save(figure, folder, name)
            return saved

        written |= failures.draw_or_warn(draw)
    return written


def _texts(run: Run, found: Mapping[str, Table], verdicts: Sequence[Verdict]) -> dict[str, str]:
    texts = {}
    for name, rows in found.items():
        texts[f"{name}.md"] = render_markdown(rows)
        if name != "verdicts":
            texts[f"{name}.csv"] = render_csv(rows)
    texts["table.md"] += _interpretations(run)
    if verdicts:
        sentences = report_text.verdict_sentences(verdicts, factor=run.experiment.factor)
        listed = "\n".join(f"- {escape_markdown(sentence)}" for sentence in sentences)
        texts["verdicts.md"] += f"\n{listed}\n"
    return texts


def _cells_csv(cells: Sequence[CellSummary], printed: Table) -> str:
    """One row per cell: the columns of `Results.to_frame` that hold a value, then those of the printed table under
    their own headings, for scripts that read those.
    """
    rows = [cell_row.columns(cell) for cell in cells]
    said = {name for row in rows for name, value in row.items() if value not in (None, "")}
    named = [{name: value for name, value in row.items() if name in said} for row in rows]
    headed = csv.DictReader(io.StringIO(render_csv(printed), newline=""))
    return cell_row.csv_text([{**row, **{**old, **row}} for row, old in zip(named, headed, strict=True)])


def _interpretations(run: Run) -> str:
    """The study's notes: which reading of an ambiguous passage of the paper it uses, and why."""
    listed = "".join(f"- {escape_markdown(note)}\n" for note in run.experiment.notes)
    return f"\nHow the study interprets the paper:\n\n{listed}" if listed else ""


def write_text(path: Path, text: str) -> Path:
    """Write a file, creating missing folders, and return its path. Raises StorageError."""
    run_file.refuse_link(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise StorageError(
            f"cannot write {path} ({error.strerror or error}): free space there or choose another folder"
        ) from error
    return path
