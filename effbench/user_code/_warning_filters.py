"""What becomes of a warning in this process: read, and put back."""

from __future__ import annotations

import warnings
from typing import Any


def warning_filters() -> tuple[Any, ...]:
    """What becomes of a warning, for `set_warning_filters`."""
    return warnings.showwarning, *_filters()


def set_warning_filters(value: tuple[Any, ...]) -> None:
    """Have warnings do again what they did when `warning_filters` returned this."""
    warnings.showwarning = value[0]
    warnings.resetwarnings()  # it also forgets what each module remembers of the filters that are replaced
    _filters()[:] = value[1:]


def _filters() -> Any:
    """The list of filters. From Python 3.14 on a context may have one of its own."""
    own = getattr(warnings, "_get_filters", None)
    return own() if own else warnings.filters
