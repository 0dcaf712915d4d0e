"""The commands that read stored runs and measure nothing: diff."""

from __future__ import annotations

from typing import Annotated

import typer

from effbench import console, words
from effbench.errors import NotComparable


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
