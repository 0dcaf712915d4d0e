"""Show the progress of many machines: a bar for each in a terminal, elsewhere one line for each change."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from effbench.cli import output

if TYPE_CHECKING:
    from effbench.fleet.conductor import Progress, Watch


@contextlib.contextmanager
def show_machines() -> Iterator[Watch]:
    """Yield the function that shows each `Progress` until the block ends."""
    if sys.stderr is not None and sys.stderr.isatty():
        with _bars() as shown:
            yield shown
        return
    told: dict[str, str] = {}

    def tell(progress: Progress) -> None:
        output.require_uninterrupted()
        is_new = progress.is_over or progress.state in ("away", "busy")
        # While it waits, why is news: its worker died, or its next launch is planned for later.
        why = progress.why if progress.state == "waiting" else ""
        key = f"{progress.state if is_new else why} {progress.launches_done}"
        if told.get(progress.machine) != key:
            told[progress.machine] = key
            output.note(f"{progress.machine}: {words(progress)}")

    yield tell


@contextlib.contextmanager
def _bars() -> Iterator[Watch]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    tasks: dict[str, TaskID] = {}
    columns = (
        TextColumn("{task.fields[machine]}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Bars(*columns, console=Console(stderr=True), refresh_per_second=4) as bars:

        def tell(progress: Progress) -> None:
            output.require_uninterrupted()
            if progress.machine not in tasks:
                tasks[progress.machine] = bars.add_task("", total=1.0, machine=escape(progress.machine))
            bars.update(tasks[progress.machine], completed=progress.done, description=escape(words(progress)))

        yield tell


def words(progress: Progress) -> str:
    """Return what a machine does: "2 of 5 launches, measuring: launch 3/5: round 7"."""
    launches = f"{progress.launches_done} of {progress.launches or '?'} launches"
    more = progress.doing if progress.state == "measuring" else ""
    return ": ".join(filter(None, (f"{launches}, {progress.state}", output.plain(progress.why or more))))
