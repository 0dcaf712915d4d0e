"""The commands about names and about this machine: list and doctor."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from effbench.cli import options as cli_options
from effbench.cli import output
from effbench.cli.measure import say_threads
from effbench.core.errors import InvalidValue, UnknownName


def list_names(
    what: Annotated[str | None, typer.Argument(help="models, studies, devices or runtimes; all when left out.")] = None,
    as_json: cli_options.Json = False,
) -> None:
    """Names that the other commands take."""
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


def doctor(
    peaks: Annotated[
        bool, typer.Option("--peaks", help="Also measure the device's two peaks, and keep them for later runs.")
    ] = False,
    device: cli_options.Device = "cpu",
    threads: cli_options.Threads = 1,
    dtype: cli_options.Dtype = None,
    allocator: cli_options.Allocator = "retain",
    cuda_precision: cli_options.CudaPrecision = "fp32",
    as_json: cli_options.Json = False,
) -> None:
    """What this machine is, what about it will make timings noisy, and what to do about each."""
    from effbench import doctor as examining
    from effbench.report.tables import misc

    asked = (device, threads, dtype, allocator, cuda_precision)
    if not peaks and asked != ("cpu", 1, None, "retain", "fp32"):
        raise InvalidValue("doctor looks at the whole machine; --device, --threads and the like need --peaks as well")
    options = cli_options.device_options(device, cuda_precision, False, "steady")
    if peaks:
        say_threads(device, threads)
    # First of all, since a word that names nothing is to be refused before anything takes time.
    measured = examining.peaks(device, options, threads, dtype or "float32", allocator) if peaks else None
    found = [finding.to_dict() for finding in examining.examine()]
    if as_json:
        output.print_json({"findings": found} | ({"peaks": dataclasses.asdict(measured)} if measured else {}))
        return
    output.print_tables([misc.doctor_rows(found), *([misc.peak_rows(measured)] if measured else [])])
