"""In which order a round visits the cells: seeded, different every round, reproducible. Pure."""

from __future__ import annotations

import random
from collections.abc import Sequence


def order(cells: Sequence[str], *, seed: int, launch: int, round: int) -> list[str]:
    """The cells in random order. The same arguments always give the same order, on any machine."""
    shuffled = list(cells)
    random.Random(f"{seed}/{launch}/{round}").shuffle(shuffled)
    return shuffled
