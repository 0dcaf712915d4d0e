"""Format numbers with units for people, and parse numbers that people write."""

from __future__ import annotations

import re
from decimal import Decimal

from effbench.core.errors import InvalidValue
from effbench.core.estimate import Estimate

_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
_COUNTS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_BYTES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
_AMOUNTS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
MISSING = "–"


def digits(value: float, significant: int = 3) -> str:
    """`significant` digits without an exponent in the everyday range: 0.0123, 1.23, 12.3, 123, 1234."""
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{significant - 1}e}"
    if abs(value) >= 10 ** (significant - 1):
        return f"{value:.0f}"
    text = f"{value:#.{significant}g}"
    return text.rstrip(".")


def rounded(value: float, significant: int = 2) -> str:
    """`significant` digits without trailing zeros, and below a million without an exponent: 0.25, 3, 100."""
    return f"{float(f'{value:.{significant}g}'):g}"


def seconds(value: float | None) -> str:
    """A time in seconds as ``1.23 ms``."""
    return _scaled(value, _TIMES)


def duration(seconds: float) -> str:
    """A time in words for people who wait: ``45 s``, ``4 minutes``, ``2.5 hours``, ``3 days``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"


def count(value: float | None) -> str:
    """A count as ``145 M``."""
    return _scaled(value, _COUNTS)


def counts_to_compare(left: int, right: int) -> tuple[str, str]:
    """Format two counts for comparison: short, or in full if their short forms are equal."""
    short = tuple(str(value) if abs(value) < 1000 else count(value) for value in (left, right))
    if left != right and short[0] == short[1]:
        return f"{left:_}", f"{right:_}"
    return short[0], short[1]


def size(value: float | None) -> str:
    """A size in bytes as ``6.50 MB`` (powers of ten)."""
    return _scaled(value, _BYTES)


def ratio(value: float | None) -> str:
    """A ratio as ``×2.87``."""
    return MISSING if value is None else f"×{value:.2f}"


def ratio_interval(estimate: Estimate | None) -> str:
    """A ratio with its interval as ``×2.87 [2.71, 3.05]``."""
    if estimate is None:
        return MISSING
    if estimate.low is None or estimate.high is None:
        return ratio(estimate.point)
    return f"×{estimate.point:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def plus_minus(estimate: Estimate | None) -> str:
    """The relative half-width of an interval as ``±1.2 %``."""
    width = None if estimate is None else estimate.half_width
    return MISSING if width is None else f"±{100 * width:.1f} %"


def amount(text: str) -> int:
    """``300M``, ``4k``, ``1.5G`` or ``20_000`` as a whole number (powers of ten). Raises InvalidValue."""
    match = re.fullmatch(r"(\d{1,3}(?:_\d{3})+|\d{1,18})(\.\d{1,18})?\s?([kMGT]?)", text.strip(), re.ASCII)
    value = Decimal(match[1].replace("_", "") + (match[2] or "")) * _AMOUNTS[match[3]] if match else None
    if value is None or value != int(value):
        shown = text if len(text) <= 40 else f"{text[:40]}…"
        raise InvalidValue(f"'{shown}' is no count: write a whole number such as 20_000, or 4k, 300M, 1.5G")
    return int(value)


def _scaled(value: float | None, scales: tuple[tuple[float, str], ...]) -> str:
    if value is None:
        return MISSING
    for factor, unit in scales:
        if abs(value) >= factor * 0.9995 or factor == scales[-1][0]:
            return f"{digits(value / factor)} {unit}".rstrip()
    raise AssertionError("unreachable: the last scale always returns")
