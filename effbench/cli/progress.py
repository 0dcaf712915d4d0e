"""Show the progress of a command: a bar in a terminal, elsewhere only the notes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from effbench.cli import output
from effbench.runs import progress_bar
from effbench.runs.runner import Progress, Watch


@contextlib.contextmanager
def show_progress() -> Iterator[Watch]:
    """A `Watch` that draws the bar until the block ends.

    It raises KeyboardInterrupt again if the first was lost in code whose errors Python drops.
    """
    is_drawn = sys.stderr is not None and sys.stderr.isatty()
    with progress_bar.draw_bar() if is_drawn else contextlib.nullcontext() as draw:

        def watch(step: Progress) -> None:
            output.require_uninterrupted()
            if step.note:
                output.note(step.note)  # the bar is drawn again below it
            if draw is not None:
                draw(step)

        yield watch
