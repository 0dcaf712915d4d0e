"""The commands list (names of models, studies, devices, runtimes) and doctor (noise of this machine)."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from effbench.cli import options as cli_options
from effbench.cli import output
from effbench.cli.measure import warn_of_threads
from effbench.cli.options import with_measure_options
from effbench.core.errors import InvalidValue, UnknownName


def list_names(
    what: Annotated[str | None, typer.Argument(help="models, studies, devices or runtimes; all when left out.")] = None,
    as_json: cli_options.Json = False,
) -> None:
    """List the names that the other commands take."""
    if what is not None and what not in cli_options.LISTS:
        raise UnknownName("list", what, cli_options.LISTS)
    found = {name: cli_options.names(name) for name in ((what,) if what else cli_options.LISTS)}
    if as_json:
        output.print_json(found)
        return
    for name, entries in found.items():
        if len(found) > 1:
            print(f"{name}:")
        width = max((len(entry) for entry in entries), default=0)
        for entry, about in entries.items():
            print(f"  {entry:<{width}}  {about}".rstrip())


@with_measure_options("device", "threads", "dtype", "allocator", "cuda_precision", dtype=cli_options.FLOATS_ONLY)
def doctor(
    peaks: Annotated[
        bool, typer.Option("--peaks", help="Also measure the device's two peaks, and keep them for later runs.")
    ] = False,
    *,
    options: dict[str, Any],
    as_json: cli_options.Json = False,
) -> None:
    """Find what makes timings noisy on this machine, and how to fix it."""
    from effbench import doctor as examining
    from effbench.core.measure_options import MeasureOptions
    from effbench.report.tables import doctor as doctor_table

    asked = MeasureOptions.of(options)
    if not peaks and asked != MeasureOptions():
        raise InvalidValue("doctor checks the whole machine; --device, --threads and the like need --peaks as well")
    if peaks:
        warn_of_threads(options)
    # First, so that unknown option values are refused before anything takes time.
    measured = examining.peaks(asked) if peaks else None
    found = [finding.to_dict() for finding in examining.examine()]
    if as_json:
        output.print_json({"findings": found} | ({"peaks": dataclasses.asdict(measured)} if measured else {}))
        return
    output.print_tables([doctor_table.doctor_rows(found), *([doctor_table.peak_rows(measured)] if measured else [])])
