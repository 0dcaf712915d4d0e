"""Make the fields of a table: the text that is shown, and the raw value. A missing value is a dash."""

from __future__ import annotations

from effbench.core import units
from effbench.core.estimate import Estimate
from effbench.core.study import Label
from effbench.report.tables.table_model import NOTHING, Value
from effbench.report.text import label_text


def text(words: str | None) -> Value:
    return Value(words, words) if words else NOTHING


def label(value: Label | None) -> Value:
    return NOTHING if value is None else Value(label_text(value), value)


def whole(value: int | None) -> Value:
    return NOTHING if value is None else Value(str(value), value)


def number(value: float | None, scale: float = 1) -> Value:
    """Three digits of `value` in units of `scale`."""
    return NOTHING if value is None else Value(units.digits(value / scale), value)


def count(value: int) -> Value:
    return Value(units.count(value), value)


def percent(share: float | None) -> Value:
    """Two digits of a share of 1."""
    return NOTHING if share is None else Value(units.digits(100 * share, 2), share)


def ratio(value: Estimate | float | None) -> Value:
    """``×2.87``, with its interval if it has one."""
    if value is None:
        return NOTHING
    return Value(units.ratio_interval(value) if isinstance(value, Estimate) else units.ratio(value), value)


def estimate(found: Estimate | None, decimals: int, sign: str = "") -> Value:
    """``0.71 [0.65, 0.77]`` with this many decimals after an optional sign; without its interval if it has none."""
    if found is None:
        return NOTHING
    point = f"{sign}{found.point:.{decimals}f}"
    if found.low is None or found.high is None:
        return Value(point, found)
    return Value(f"{point} [{found.low:.{decimals}f}, {found.high:.{decimals}f}]", found)


def relative_error(value: float | None) -> Value:
    return NOTHING if value is None else Value(f"{value:.1e}", value)
