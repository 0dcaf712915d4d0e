"""Runs for people: tables, figures, and the files beside a run. Importing this brings in no plotting library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from effbench.core import Run, Verdict
from effbench.errors import StorageError
from effbench.report import captions, table
from effbench.summary import CellSummary


def write_all(
    run: Run, cells: Sequence[CellSummary], verdicts: Sequence[Verdict], directory: str | Path
) -> dict[str, Path]:
    """Write the table, the verdicts and the figure of a run into a folder; the paths by what they hold.

    Keys: ``table.md``, ``table.csv``; ``verdicts.md`` where there are verdicts; ``figure.png`` and ``figure.svg`` where
    there are cells. Raises StorageError where the folder cannot be written.
    """
    from effbench.report import plots

    folder = Path(directory)
    comparison = captions.is_comparison(run)
    rows = table.compare_rows(run, cells) if comparison else table.study_rows(run, cells)
    texts = {"table.md": table.render_markdown(rows) + _readings(run), "table.csv": table.render_csv(rows)}
    if verdicts:
        sentences = table.verdict_sentences(verdicts, factor=run.experiment.factor)
        listed = "\n".join(f"- {table.escape_markdown(sentence)}" for sentence in sentences)
        texts["verdicts.md"] = f"{table.render_markdown(table.verdict_rows(verdicts))}\n{listed}\n"
    written = {name: _write(folder / name, text) for name, text in texts.items()}
    if cells:
        figure = plots.compare_figure(run, cells) if comparison else plots.study_figure(run, cells, verdicts)
        written["figure.png"], written["figure.svg"] = plots.save(figure, folder, "figure")
    return written


def _readings(run: Run) -> str:
    """How the study read the paper where it can be read in two ways, and why: its defaults rest on this."""
    listed = "".join(f"- {table.escape_markdown(note)}\n" for note in run.experiment.notes)
    return f"\nHow the study reads the paper:\n\n{listed}" if listed else ""


def _write(path: Path, text: str) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise StorageError(
            f"cannot write {path} ({error.strerror or error}): free space there or choose another folder"
        ) from error
    return path
