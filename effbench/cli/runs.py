"""The commands diff, report and export: read stored runs, without measuring."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from effbench.cli import options, output
from effbench.core.errors import InvalidValue, NotComparable, StorageError, UnknownName

if TYPE_CHECKING:
    from effbench.results import Results


def diff(
    baseline: Annotated[str, typer.Argument(help="A run's folder or file.", autocompletion=options.complete_run)],
    candidate: Annotated[
        str, typer.Argument(help="Another run's folder or file.", autocompletion=options.complete_run)
    ],
    ignore_environment: Annotated[
        bool, typer.Option("--ignore-environment", help="Compare runs even if their machines or settings differ.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Compare two stored runs, a verdict per cell.

    Refuses runs under different conditions, and names those.
    """
    from effbench.analysis import run_sittings
    from effbench.analysis.run_diff import compare_runs, require_shared
    from effbench.host import facts
    from effbench.report import json_document
    from effbench.report.tables import diff as diff_table
    from effbench.runs import run_file

    runs = [run_file.load(reference) for reference in (baseline, candidate)]
    if not ignore_environment:
        try:
            facts.require_comparable(runs[0].environment, runs[1].environment)
        except NotComparable as error:
            raise NotComparable(f"{error}, or compare them anyway with --ignore-environment") from None
    require_shared(*runs)
    comparisons, note = compare_runs(*runs), run_sittings.change_note(runs[0], runs[1])
    if as_json:
        cells = json_document.diff_document(comparisons)
        output.print_json({"baseline": baseline, "candidate": candidate, "note": note, "comparisons": cells})
        return
    output.print_tables([diff_table.diff_rows(comparisons, note)])


def report(
    runs: Annotated[list[str], typer.Argument(help="Folders or files of runs.", autocompletion=options.complete_run)],
    format: Annotated[str | None, typer.Option(help="html or md. Default: what --out ends in, else html.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The file to write; - prints the page. Default: beside the first run.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Write stored runs as one page of verdicts, tables and figures.

    The page also describes the environment and the method. Several runs stand side by side. Of several folders, those
    without a run yet are named, and the others are shown.
    """
    from effbench.report import page, write_text

    kind = format or ("md" if out is not None and out.suffix.lower() in (".md", ".markdown") else "html")
    if kind not in page.FORMATS:
        raise UnknownName("format", kind, page.FORMATS)
    printed = out == Path("-")
    if printed and as_json:
        raise InvalidValue("--out - prints the page and --json prints an object: leave one of them out")
    found, waiting = _load_runs(runs)
    target = out or (found[0].directory or Path()) / f"report.{kind}"
    if not printed and target.is_dir():
        raise StorageError(
            f"cannot write {target}: it is a folder; name a file in it, such as {target / 'report'}.{kind}"
        )
    if waiting:
        output.note(f"no run yet in {', '.join(waiting)}: not shown")
    beside = Path() if printed else target.parent
    text = page.html(found, waiting) if kind == "html" else page.markdown(found, beside, waiting)
    if printed:
        print(text)
        return
    written = write_text(target, text)
    if as_json:
        output.print_json({"files": {kind: str(written)}, "without_run": waiting})
        return
    print(f"{kind:<8}{output.plain(str(written))}")


def _load_runs(references: Sequence[str]) -> tuple[list[Results], list[str]]:
    """Load the runs, and list the folders without one yet, such as those of a fleet's machines that have not begun.

    A name that does not exist is a mistake. So is a folder without a run, unless another one has a run. Raises
    StorageError, CorruptRun.
    """
    from effbench import api
    from effbench.runs import run_file

    # `FOLDER/*` also matches a page that an earlier call wrote there.
    pages = [name for name in references if os.path.isfile(name) and name.lower().endswith((".html", ".md"))]
    waiting = [name for name in references if os.path.isdir(name) and not run_file.has_begun(name)]
    chosen = [name for name in references if name not in pages and name not in waiting]
    if not chosen:
        return [api.load(name) for name in references], []
    for name in pages:
        output.note(f"passed over {name}: a page, not a run")
    return [api.load(name) for name in chosen], waiting


def export(
    run: Annotated[str, typer.Argument(help="A run's folder or file.", autocompletion=options.complete_run)],
    format: Annotated[
        str,
        typer.Option(
            help="pytest-benchmark, bmf, github-action, pyperf, openmetrics or csv.",
            autocompletion=options.complete_format,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The file to write, or the folder where a format has several. Default: print it."),
    ] = None,
    direction: Annotated[
        str | None,
        typer.Option(help="github-action: smaller-is-better (latency) or bigger-is-better (throughput), as one file."),
    ] = None,
    values: Annotated[
        str | None,
        typer.Option(
            metavar="N|all",
            help="Raw values of each launch. Default: all; for pyperf the study's minimum number of rounds.",
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Convert a stored run to another tool's format.

    Cells without a time are left out and listed.
    """
    from effbench import export as formats
    from effbench.gates import ab_pairs
    from effbench.report import write_text
    from effbench.runs import run_file

    wanted = _directions(format, direction)
    printed = out is None or out == Path("-")
    if printed and as_json:
        raise InvalidValue("--json prints an object about the files that --out names: add --out, or leave --json out")
    if printed and len(wanted) > 1:
        raise InvalidValue(
            f"{format} takes one file per direction: name a folder for both with --out, or choose one with "
            f"--direction {wanted[0]} (or {wanted[1]})"
        )
    sides = [Path(run) / side for side in ab_pairs.SIDES]
    if all((side / run_file.RUN_FILE).is_file() for side in sides):
        raise InvalidValue(f"{run} is an A/B run of two sides: name one of them, {sides[0]} or {sides[1]}")
    found = run_file.load(run)
    done = formats.export(found, format, values=_count(values))
    if out is None or printed:
        print(done.texts[wanted[0]], end="")
        _print_notes(done.notes)
        return
    ending = formats.find(format).ending
    targets = {name: out / f"{name}.{ending}" for name in wanted} if len(wanted) > 1 else {wanted[0]: out}
    for target in targets.values():
        _require_free(target, run_file.find(run), ending)
    written = {name: str(write_text(target, done.texts[name])) for name, target in targets.items()}
    _print_notes(done.notes)
    if as_json:
        output.print_json(
            {
                "run": run,
                "format": format,
                "files": {name or format: path for name, path in written.items()},
                "cells": done.cells,
                "left_out": dict(done.left_out),
                "notes": list(done.notes),
            }
        )
        return
    for name, path in written.items():
        print(f"{name or format}  {output.plain(path)}")


def _directions(format: str, direction: str | None) -> tuple[str, ...]:
    """The files that a format has, or the one of this direction. Raises InvalidValue, UnknownName."""
    from effbench import export as formats

    known = tuple(formats.find(format).directions)
    if direction is None:
        return known
    if direction not in known:
        if "" in known:
            raise InvalidValue(f"--direction {direction}: {format} holds everything in one file; leave it out")
        raise UnknownName("direction", direction, known)
    return (direction,)


def _count(values: str | None) -> int | Literal["all"] | None:
    """Parse the number of raw values, or "all". Raises InvalidValue."""
    if values is None:
        return None
    if values == "all":
        return "all"
    if not (values.isascii() and values.isdigit() and len(values) < 10):
        raise InvalidValue(f"--values {values}: expected a whole number above zero, or all")
    return int(values)


def _require_free(target: Path, source: Path, ending: str) -> None:
    """Raise StorageError if `target` is a folder, or the run file itself."""
    if target.is_dir():
        raise StorageError(
            f"cannot write {target}: it is a folder; name a file in it, such as {target / 'run'}.{ending}"
        )
    if target.exists() and target.samefile(source):
        raise StorageError(f"cannot write {target}: it holds the raw blocks of this run; name another file")


def _print_notes(notes: Sequence[str]) -> None:
    for note in notes:
        output.note(note)
