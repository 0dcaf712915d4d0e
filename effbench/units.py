"""Numbers for people: formatting only. Nothing here is stored or computed with."""

from __future__ import annotations

from effbench.core import Estimate

_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
_COUNTS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_BYTES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
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


def seconds(value: float | None) -> str:
    """A time in seconds as ``1.23 ms``."""
    return _scaled(value, _TIMES)


def count(value: float | None) -> str:
    """A count as ``145 M``."""
    return _scaled(value, _COUNTS)


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


def _scaled(value: float | None, scales: tuple[tuple[float, str], ...]) -> str:
    if value is None:
        return MISSING
    for factor, unit in scales:
        if abs(value) >= factor * 0.9995 or factor == scales[-1][0]:
            return f"{digits(value / factor)} {unit}".rstrip()
    raise AssertionError("unreachable: the last scale always returns")
