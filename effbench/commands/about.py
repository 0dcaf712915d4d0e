"""The commands about names and about this machine: list and doctor."""

from __future__ import annotations

from typing import Annotated

import typer

from effbench import console, words
from effbench.errors import UnknownName


def list_names(
    what: Annotated[str | None, typer.Argument(help="models, studies, devices or runtimes; all when left out.")] = None,
    as_json: words.Json = False,
) -> None:
    """Names that the other commands take."""
    if what is not None and what not in words.LISTS:
        raise UnknownName("list", what, words.LISTS)
    found = {name: words.names(name) for name in ((what,) if what else words.LISTS)}
    if as_json:
        console.print_json(found)
        return
    for name, entries in found.items():
        if len(found) > 1:
            print(f"{name}:")
        width = max((len(entry) for entry in entries), default=0)
        for entry, about in entries.items():
            print(f"  {entry:<{width}}  {about}".rstrip())


def doctor(as_json: words.Json = False) -> None:
    """What this machine is, what about it will make timings noisy, and what to do about each."""
    from effbench import doctor as examining
    from effbench.report import findings

    found = [finding.to_dict() for finding in examining.examine()]
    if as_json:
        console.print_json({"findings": found})
        return
    console.print_tables([findings.doctor_rows(found)])
