"""Compute how wide a variant of a layer must be to cost as many multiply-adds as the reference. Imports no torch.

All layers are 1x1 convolutions on one feature map, so their multiply-adds compare as products of channels (section 2 of
arXiv:1807.11164). `rounding` is "floor" (the widest that does not exceed the budget) or "nearest". The paper's printed
widths for G1, and for G2 on the GPU, follow "floor". Its 180 channels in 8 groups on ARM are a typo for 184, which is
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
    """Channels of the variant, and the relative error of its multiply-adds: ``variant / reference - 1``."""

    channels: tuple[int, ...]
    residual: float


def check_groups(channels: int, groups: int) -> None:
    """Raise InvalidValue, naming the nearest valid widths, unless `channels` is divisible by `groups`."""
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
    """Return the widths c and ratio·c of a G1 block with c·(ratio·c) = reference². The residual is that of one
    layer.
    """
    channels, residual = _solve(
        reference, lambda width: ratio * width * width, 1, isqrt(reference**2 // ratio), rounding
    )
    return Widths((channels, ratio * channels), residual)


def groups(reference: int, groups: int, rounding: Rounding = "nearest") -> Widths:
    """Return the width c of a grouped convolution in G2 with c²/groups = reference², where c is a multiple of
    `groups`.
    """
    lower = isqrt(groups * reference**2) // groups * groups
    channels, residual = _solve(reference, lambda width: width * width // groups, groups, lower, rounding)
    return Widths((channels,), residual)


def fragments(reference: int, fragments: int, merge: str = "add", rounding: Rounding = "nearest") -> Widths:
    """Return the width c of each of `fragments` convolutions in G3 with fragments·c² = reference².

    The convolutions are in series, or in parallel and summed. With ``merge="concat"`` the parallel branches share the
    output channels. The width is then `reference`, which must be divisible by `fragments`.
    """
    if merge == "concat":
        check_groups(reference, fragments)
        return Widths((reference,), 0.0)
    lower = isqrt(reference**2 // fragments)
    channels, residual = _solve(reference, lambda width: fragments * width * width, 1, lower, rounding)
    return Widths((channels,), residual)


def _solve(reference: int, madds: Callable[[int], int], step: int, lower: int, rounding: Rounding) -> tuple[int, float]:
    """Return the better of the two valid widths around the exact solution, with its residual.

    Raises InvalidValue if neither fits.
    """
    budget = reference * reference
    candidates = [
        width for width in (lower, lower + step) if width > 0 and (rounding == "nearest" or madds(width) <= budget)
    ]
    if not candidates:
        raise InvalidValue(f"`reference` (={reference}) is too narrow for equal multiply-adds: use {step} or more")
    chosen = min(candidates, key=lambda width: abs(madds(width) - budget))
    return chosen, madds(chosen) / budget - 1
