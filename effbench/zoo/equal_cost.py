"""Widths at equal multiply-adds: how wide a variant of a layer must be to cost what the reference costs. Arithmetic
only, no torch.

All layers are 1x1 convolutions on one feature map, so their multiply-adds compare as products of channels (section 2 of
arXiv:1807.11164). `rounding` is "floor", the widest that does not exceed the budget, or "nearest". The paper's printed
widths for G1 and for G2 on the GPU follow "floor"; its 180 channels in 8 groups on ARM is a slip for 184, which is
"nearest" ("floor" gives 176).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isqrt
from typing import Literal

from effbench.core.errors import InvalidValue

Rounding = Literal["floor", "nearest"]


@dataclass(frozen=True)
class Widths:
    """Channels of the variant and how far its multiply-adds are from the reference: ``variant / reference - 1``."""

    channels: tuple[int, ...]
    residual: float


def check_groups(channels: int, groups: int) -> None:
    """Raise InvalidValue with the nearest valid widths unless `groups` equal groups divide `channels`."""
    for name, value in (("channels", channels), ("groups", groups)):
        if value < 1:
            raise InvalidValue(f"`{name}` (={value}) must be at least 1: use 1 or more")
    if channels % groups:
        below = channels // groups * groups
        above = below + groups
        near = sorted((width for width in (above, below) if width > 0), key=lambda width: abs(width - channels))
        raise InvalidValue(
            f"`channels` (={channels}) must be divisible by `groups` (={groups}): use {' or '.join(map(str, near))}"
        )


def channel_ratio(reference: int, ratio: int, rounding: Rounding = "nearest") -> Widths:
    """c and ratio·c with c·(ratio·c) = reference²: the two widths of a G1 block. Residuals are of one such layer."""
    channels, residual = _solve(
        reference, lambda width: ratio * width * width, 1, isqrt(reference**2 // ratio), rounding
    )
    return Widths((channels, ratio * channels), residual)


def groups(reference: int, groups: int, rounding: Rounding = "nearest") -> Widths:
    """c with c²/groups = reference², c a multiple of `groups`: the width of a grouped convolution in G2."""
    lower = isqrt(groups * reference**2) // groups * groups
    channels, residual = _solve(reference, lambda width: width * width // groups, groups, lower, rounding)
    return Widths((channels,), residual)


def fragments(reference: int, fragments: int, merge: str = "add", rounding: Rounding = "nearest") -> Widths:
    """c with fragments·c² = reference²: the width of each of `fragments` convolutions in G3, in series or summed in
    parallel.

    With ``merge="concat"`` the parallel branches share the output channels, so that the width stays `reference`, which
    must then be divisible by `fragments`.
    """
    if merge == "concat":
        check_groups(reference, fragments)
        return Widths((reference,), 0.0)
    lower = isqrt(reference**2 // fragments)
    channels, residual = _solve(reference, lambda width: fragments * width * width, 1, lower, rounding)
    return Widths((channels,), residual)


def _solve(reference: int, madds: Callable[[int], int], step: int, lower: int, rounding: Rounding) -> tuple[int, float]:
    """The chosen of the two valid widths around the exact solution, with its residual.

    Raises InvalidValue where none fits.
    """
    budget = reference * reference
    candidates = [
        width for width in (lower, lower + step) if width > 0 and (rounding == "nearest" or madds(width) <= budget)
    ]
    if not candidates:
        raise InvalidValue(f"`reference` (={reference}) is too narrow for equal multiply-adds: use {step} or more")
    chosen = min(candidates, key=lambda width: abs(madds(width) - budget))
    return chosen, madds(chosen) / budget - 1
