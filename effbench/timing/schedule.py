"""Draw the order in which a round visits the cells: seeded, different in every round, reproducible. Pure."""

from __future__ import annotations

import random
from collections.abc import Sequence


def order(cells: Sequence[str], *, seed: int, launch: int, round: int) -> list[str]:
    """Return the cells in random order. The same arguments give the same order on any machine."""
    shuffled = list(cells)
    random.Random(f"{seed}/{launch}/{round}").shuffle(shuffled)
    return shuffled


def first_side(cell: str, *, seed: int, launch: int, round: int) -> int:
    """Return which side of an A/B run comes first in this round, 0 or 1.

    It is random in even rounds, and the other side in the odd round that follows. Two rounds are thus ABBA or BAAB, in
    which a linear drift cancels.
    """
    # UTF-8 bytes give the same seed as the text. In an ASCII locale a name may hold bytes that are not text.
    drawn = random.Random(f"{seed}/{launch}/{round // 2}/{cell}".encode("utf-8", "surrogateescape")).randrange(2)
    return drawn ^ (round % 2)
