"""Draw a progress bar with the time left: on standard error in a terminal, below the cell in a notebook."""

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


def is_bar_visible() -> bool:
    """Whether a bar is visible: in a notebook, or if standard error is a terminal."""
    return is_notebook() or (sys.stderr is not None and sys.stderr.isatty())


@contextlib.contextmanager
def bar_watch(shown: bool | None = None) -> Iterator[Watch]:
    """Yield a `Watch` that draws the bar until the block ends, and prints each note on standard error.

    `shown` None means: only if it is visible (`is_bar_visible`). Without a bar nothing is printed.
    """
    if not (is_bar_visible() if shown is None else shown):
        yield lambda step: None
        return
    with draw_bar() as draw:

        def watch(step: Progress) -> None:
            if step.note:
                print(f"effbench: {step.note}", file=sys.stderr)
            draw(step)

        yield watch


@contextlib.contextmanager
def draw_bar() -> Iterator[Callable[[Progress], None]]:
    """Draw the bar until the block ends. Call the yielded function to update it."""
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
    with bar:  # Rich redraws it in a thread
        yield lambda: None


@contextlib.contextmanager
def _notebook_cell(bar: Bar) -> Iterator[Callable[[], None]]:
    """Show the bar as one output of the cell and replace it at each update. Rich's own needs ipywidgets."""
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
    console = Console(stderr=True)
    # If standard error is a file, only the last state is written.
    return Progress(*columns, console=console, transient=console.is_terminal, refresh_per_second=REDRAWS_PER_S)
