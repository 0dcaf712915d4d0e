"""Save and restore how this process handles warnings."""

from __future__ import annotations

import warnings
from typing import Any


def warning_filters() -> tuple[Any, ...]:
    """Return how warnings are handled now, for `set_warning_filters`."""
    return warnings.showwarning, *_filters()


def set_warning_filters(value: tuple[Any, ...]) -> None:
    """Restore the handling of warnings that `warning_filters` returned."""
    warnings.showwarning = value[0]
    warnings.resetwarnings()  # it also clears each module's cache of the replaced filters
    _filters()[:] = value[1:]


def _filters() -> Any:
    """Return the list of filters. From Python 3.14 on, a context may have its own list."""
    own = getattr(warnings, "_get_filters", None)
    return own() if own else warnings.filters
