"""The commands that read stored runs and measure nothing: diff, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from effbench import console, words
from effbench.errors import InvalidValue, NotComparable, StorageError, UnknownName


def diff(
    baseline: Annotated[str, typer.Argument(help="A run's folder or file.", autocompletion=words.complete_run)],
    candidate: Annotated[str, typer.Argument(help="Another run's folder or file.", autocompletion=words.complete_run)],
    ignore_environment: Annotated[
        bool, typer.Option("--ignore-environment", help="Compare runs of unlike machines all the same.")
    ] = False,
    as_json: words.Json = False,
) -> None:
    """Compare two stored runs, a verdict per cell. Refuses unlike conditions, naming them."""
    from effbench import environment, storage
    from effbench.diff import compare_runs
    from effbench.report import document, table

    runs = [storage.load(reference) for reference in (baseline, candidate)]
    if not ignore_environment:
        try:
            environment.require_alike(runs[0].environment, runs[1].environment)
        except NotComparable as error:
            raise NotComparable(f"{error}, or compare them all the same with --ignore-environment") from None
    comparisons = compare_runs(*runs)
    if as_json:
        console.print_json(
            {"baseline": baseline, "candidate": candidate, "comparisons": document.diff_document(comparisons)}
        )
        return
    console.print_tables([table.diff_rows(comparisons)])


def report(
    runs: Annotated[list[str], typer.Argument(help="Folders or files of runs.", autocompletion=words.complete_run)],
    format: Annotated[str | None, typer.Option(help="html or md. Default: what --out ends in, else html.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The file to write; - prints the page. Default: beside the first run.")
    ] = None,
    as_json: words.Json = False,
) -> None:
    """Write stored runs as one page: verdicts, tables, figures, environment, method. Several stand side by side."""
    from effbench import api
    from effbench.report import page, write_text

    kind = format or ("md" if out is not None and out.suffix.lower() in (".md", ".markdown") else "html")
    if kind not in page.FORMATS:
        raise UnknownName("format", kind, page.FORMATS)
    printed = out == Path("-")
    if printed and as_json:
        raise InvalidValue("--out - prints the page and --json prints an object: leave one of them out")
    found = [api.load(reference) for reference in runs]
    target = out or (found[0].directory or Path()) / f"report.{kind}"
    if not printed and target.is_dir():
        raise StorageError(
            f"cannot write {target}: it is a folder; name a file in it, such as {target / 'report'}.{kind}"
        )
    text = page.html(found) if kind == "html" else page.markdown(found, Path() if printed else target.parent)
    if printed:
        print(text)
        return
    written = write_text(target, text)
    if as_json:
        console.print_json({"files": {kind: str(written)}})
        return
    print(f"{kind:<8}{console.plain(str(written))}")
