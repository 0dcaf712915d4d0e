"""Give pytest-benchmark the times of blocks that were measured already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from effbench.core.errors import InvalidValue
from effbench.core.run import Timing
from effbench.devices import Call


class BlockClock:
    """A clock for pytest-benchmark that returns the times of blocks already measured, so that they become its
    rounds.
    """

    def __init__(self) -> None:
        self._remaining: list[float] = []

    def block_clock(self) -> float:
        """Return zero at the start of a round, and the block's time in seconds at its end."""
        return self._remaining.pop()

    def run_rounds(self, benchmark: Any, call: Call, blocks: Sequence[Timing]) -> None:
        """Pass the blocks to pytest-benchmark, which makes calls of its own. Raises InvalidValue for another clock."""
        self._remaining = [value for block in reversed(blocks) for value in (block.wall_ns * 1e-9, 0.0)]
        remaining = self._remaining
        benchmark.pedantic(lambda: None if remaining else call(), rounds=len(blocks), iterations=blocks[0].calls)
        if remaining:
            benchmark.has_error = True
            raise InvalidValue("the fixture benchmark was made before effbench; let this test take only effbench")
