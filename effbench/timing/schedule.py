"""In which order a round visits the cells: seeded, different every round, reproducible. Pure."""

from __future__ import annotations

import random
from collections.abc import Sequence


def order(cells: Sequence[str], *, seed: int, launch: int, round: int) -> list[str]:
    """The cells in random order. The same arguments always give the same order, on any machine."""
    shuffled = list(cells)
    random.Random(f"{seed}/{launch}/{round}").shuffle(shuffled)
    return shuffled


def first_side(cell: str, *, seed: int, launch: int, round: int) -> int:
    """Which of two sides comes first: 0 or 1 at random in even rounds, the other one in the odd round that follows.

    Two rounds are ABBA or BAAB, in which a linear drift cancels.
    """
    # Bytes of UTF-8 seed as their text does. In an ASCII locale a name may hold bytes that are no text.
    drawn = random.Random(f"{seed}/{launch}/{round // 2}/{cell}".encode("utf-8", "surrogateescape")).randrange(2)
    return drawn ^ (round % 2)
