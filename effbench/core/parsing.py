"""Parse values of the command line and effbench.toml: inputs, times, shares."""

from __future__ import annotations

import re
from collections.abc import Sequence

from effbench.core import inputs as core_inputs
from effbench.core.errors import InvalidValue
from effbench.core.inputs import Input


def inputs(words: Sequence[str] | None) -> tuple[Input, ...] | None:
    """Parse inputs such as ``3x224x224``, ``mask=1x224x224``, ``ids=128:int64``, ``t=scalar:int64``; None for none.

    Raises InvalidValue.
    """
    return core_inputs.as_inputs([core_inputs.parse(word) for word in words]) if words else None


def seconds(text: str, option: str = "--budget") -> float:
    """``60s``, ``5m`` or ``1h`` in seconds. Raises InvalidValue."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*(s|m|min|h)?", text)
    if not match or float(match[1]) == 0:
        raise InvalidValue(f"{option} {text}: expected a time above zero, such as 60s, 5m or 2h")
    return float(match[1]) * {"s": 1, "m": 60, "min": 60, "h": 3600}[match[2] or "s"]


def share(text: str, option: str = "--precision") -> float:
    """``1%`` or ``0.01`` as a share of 1. Raises InvalidValue."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%)?", text)
    value = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not 0 < value < 1:
        raise InvalidValue(f"{option} {text}: expected a share between 0 and 1, such as 1% or 0.01")
    return value
