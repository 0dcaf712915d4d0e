"""What coverage need not watch: it doubles the time of plain Python, and a thousandth run shows it nothing new."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def untraced() -> Iterator[None]:
    """Without coverage's tracer. A debugger's is taken away too, until the end."""
    tracer = sys.gettrace()
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(tracer)
