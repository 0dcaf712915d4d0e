"""A progress bar with the time left: in a terminal on standard error, in a notebook below the cell."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any

from effbench.runs.runner import Progress, Watch

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

REDRAWS_PER_S = 4
"""The bar must not compete with the worker for a core."""


def is_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def is_watched() -> bool:
    """Whether somebody would see a bar: in a notebook, and where standard error is a terminal."""
    return is_notebook() or (sys.stderr is not None and sys.stderr.isatty())


@contextlib.contextmanager
def watching(shown: bool | None = None) -> Iterator[Watch]:
    """A `Watch` that draws the bar until the block ends, and prints each note on standard error.

    `shown` None draws it only where somebody would see it (`is_watched`); without a bar nothing is printed.
    """
    if not (is_watched() if shown is None else shown):
        yield lambda step: None
        return
    with drawing() as draw:

        def watch(step: Progress) -> None:
            if step.note:
                print(f"effbench: {step.note}", file=sys.stderr)
            draw(step)

        yield watch


@contextlib.contextmanager
def drawing() -> Iterator[Callable[[Progress], None]]:
    """Draw the bar until the block ends; the function moves it."""
    from rich.markup import escape

    bar = _bar()
    task = bar.add_task("starting", total=1.0)
    with _notebook_cell(bar) if is_notebook() else _terminal(bar) as redraw:

        def draw(step: Progress) -> None:
            bar.update(task, completed=step.done, description=escape(step.doing))
            redraw()

        yield draw


@contextlib.contextmanager
def _terminal(bar: Bar) -> Iterator[Callable[[], None]]:
    with bar:  # which redraws itself
        yield lambda: None


@contextlib.contextmanager
def _notebook_cell(bar: Bar) -> Iterator[Callable[[], None]]:
    """One output of the cell, replaced as the run goes on. Rich's own needs ipywidgets, which few kernels have."""
    display: Any = import_module("IPython.display")

    drawn_s = time.monotonic()
    output = display.display(bar.make_tasks_table(bar.tasks), display_id=True)

    def redraw() -> None:
        nonlocal drawn_s
        if time.monotonic() - drawn_s >= 1 / REDRAWS_PER_S:
            output.update(bar.make_tasks_table(bar.tasks))
            drawn_s = time.monotonic()

    try:
        yield redraw
    finally:
        output.update(display.HTML(""))


def _bar() -> Bar:
    from rich.console import Console
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
    return Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=REDRAWS_PER_S)
