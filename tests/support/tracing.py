"""What coverage need not watch: it doubles the time of plain Python, and a thousandth run shows it nothing new."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

depth = 0
"""How many `untraced` blocks this process is in: the commands that it starts are not looked at either."""


@contextmanager
def untraced() -> Iterator[None]:
    """Without coverage's tracer. A debugger's is taken away too, until the end."""
    global depth
    tracer = sys.gettrace()
    sys.settrace(None)
    depth += 1
    try:
        yield
    finally:
        depth -= 1
        sys.settrace(tracer)
