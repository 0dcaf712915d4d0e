"""A progress bar with the time left, on standard error; where that is not a terminal only the notes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from effbench.cli import output
from effbench.runs.runner import Progress as Step
from effbench.runs.runner import Watch


@contextlib.contextmanager
def watching() -> Iterator[Watch]:
    """A `Watch` that draws the bar for as long as the context lasts, and ends what Ctrl-C was to end and did not."""
    if sys.stderr is None or not sys.stderr.isatty():

        def tell(step: Step) -> None:
            output.require_uninterrupted()
            if step.note:
                output.note(step.note)

        yield tell
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    # Four redraws a second: the bar must not compete with the worker for a core.
    with Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=4) as bar:
        task = bar.add_task("starting", total=1.0)

        def watch(step: Step) -> None:
            output.require_uninterrupted()
            if step.note:
                output.note(step.note)  # the bar is drawn again below it
            bar.update(task, completed=step.done, description=escape(step.doing))

        yield watch
