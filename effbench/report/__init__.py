"""Runs for people: tables, figures, and the files beside a run. Importing this brings in no plotting library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from effbench import breakdown, packages, ranking, saturation, storage
from effbench.core import Run, Verdict
from effbench.errors import StorageError
from effbench.report import breakdown_table, captions, figureless, runtimes_table, sweep_table, table
from effbench.report.grid import Table
from effbench.summary import CellSummary

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def tables(run: Run, cells: Sequence[CellSummary], verdicts: Sequence[Verdict]) -> dict[str, Table]:
    """Every table of a run by the name of its file: ``table`` holds the cells, ``verdicts`` is there where claims are.

    Whatever shows a run (terminal, Markdown, page) shows these, in this order.
    """
    rows = table.compare_rows if captions.is_comparison(run) else table.study_rows
    found = {"table": rows(run, cells)}
    swept = saturation.saturations(run, cells)
    if swept:
        found["saturation"] = sweep_table.saturation_rows(run, cells, swept)
    if verdicts:
        found["verdicts"] = table.verdict_rows(verdicts)
    if any(cell.prepared for cell in cells):
        found["runtimes"] = runtimes_table.prepared_rows(run, cells)
    groups = captions.grouping(run, cells)
    agreements = ranking.agreements(cells, groups) if captions.is_comparison(run) else ()
    if agreements:
        found["ranking"] = table.ranking_rows(agreements, " and ".join(groups))
    parts = breakdown.split(run)
    if parts:
        found["breakdown"] = breakdown_table.breakdown_rows(run, cells, parts)
    if run.experiment.absent:
        found["absent"] = table.absent_rows(run)
    return found


def figures(run: Run, cells: Sequence[CellSummary], verdicts: Sequence[Verdict]) -> dict[str, Figure]:
    """Every figure of a run by the name of its file, the main one first as ``figure``; none without cells."""
    from effbench.report import (
        plots,
        plots_breakdown,
        plots_matrix,
        plots_panels,
        plots_roofline,
        plots_runtimes,
        plots_sweep,
    )

    if not cells:
        return {}
    roofline = {}
    if plots_roofline.can_draw(run, cells):
        roofline["roofline"] = plots_roofline.roofline_figure(run, cells)
    swept = saturation.saturations(run, cells)
    if swept:
        return {"figure": plots_sweep.sweep_figure(run, cells, swept), **roofline}
    if not captions.is_comparison(run):
        if plots_matrix.can_draw(run, verdicts):
            matrix = plots_matrix.matrix_figure([plots_matrix.Seen(run, cells, verdicts)])
            return {"figure": matrix, "ratios": plots_runtimes.runtimes_figure(run, cells), **roofline}
        return {"figure": plots.study_figure(run, cells, verdicts), **roofline}
    found = {"figure": plots.compare_figure(run, cells), **roofline}
    parts = breakdown.split(run)
    if any(item.shares for item in parts):
        found["breakdown"] = plots_breakdown.breakdown_figure(run, cells, parts)
    if plots_panels.can_draw(cells):
        found["panels"] = plots_panels.panels_figure(run, cells)
    return found


def write_all(
    run: Run, cells: Sequence[CellSummary], verdicts: Sequence[Verdict], directory: str | Path
) -> dict[str, Path]:
    """Write the tables and figures of a run into a folder; the paths by file name.

    ``table.md`` and ``table.csv`` always; ``verdicts.md`` where there are verdicts; ``figure.png`` and ``figure.svg``
    where there are cells and can be drawn (else a RuntimeWarning says why not); two more files for each further table
    or figure. Raises StorageError where the folder cannot be written.
    """
    from effbench.report import plots

    folder = Path(directory)
    texts = _texts(run, tables(run, cells, verdicts), verdicts)
    written = {name: write_text(folder / name, text) for name, text in texts.items()}
    # A board that ran a bundle may be without matplotlib; its tables are worth having all the same.
    if packages.has("matplotlib"):

        def draw() -> dict[str, Path]:
            saved: dict[str, Path] = {}
            for name, figure in figures(run, cells, verdicts).items():
                saved[f"{name}.png"], saved[f"{name}.svg"] = plots.save(figure, folder, name)
            return saved

        written |= figureless.drawn(draw)
    return written


def _texts(run: Run, found: Mapping[str, Table], verdicts: Sequence[Verdict]) -> dict[str, str]:
    texts = {}
    for name, rows in found.items():
        texts[f"{name}.md"] = table.render_markdown(rows)
        if name != "verdicts":
            texts[f"{name}.csv"] = table.render_csv(rows)
    texts["table.md"] += _readings(run)
    if verdicts:
        sentences = table.verdict_sentences(verdicts, factor=run.experiment.factor)
        listed = "\n".join(f"- {table.escape_markdown(sentence)}" for sentence in sentences)
        texts["verdicts.md"] += f"\n{listed}\n"
    return texts


def _readings(run: Run) -> str:
    """How the study read the paper where it can be read in two ways, and why: its defaults rest on this."""
    listed = "".join(f"- {table.escape_markdown(note)}\n" for note in run.experiment.notes)
    return f"\nHow the study reads the paper:\n\n{listed}" if listed else ""


def write_text(path: Path, text: str) -> Path:
    """Write a file and whatever folders it needs; its path. Raises StorageError."""
    storage.refuse_link(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise StorageError(
            f"cannot write {path} ({error.strerror or error}): free space there or choose another folder"
        ) from error
    return path
