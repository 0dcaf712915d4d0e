"""Track dependencies between kernels while fusion merges them: must one kernel finish before another? Pure, no torch.

Fusion asks this for every record. Storing all predecessors of every kernel would take quadratic time and memory.
Instead a kernel stores its direct neighbours and a level, which is higher than the levels of all its predecessors.
Levels answer most queries at once; the others need a bidirectional search. Every record adds to a budget of search
steps, so that the total is linear in the number of records. A query that exceeds the budget is answered "yes", which
fuses less but is never wrong.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from heapq import heappop, heappush

STEPS_AT_FIRST = 20_000
STEPS_PER_RECORD = 64


class KernelGraph:
    """A graph of kernels, numbered in order of creation. A merged kernel has the number of the one it was merged into.

    ``steps`` counts the neighbours visited, for tests of the running time.
    """

    def __init__(self) -> None:
        self.steps = 0
        self._allowed = STEPS_AT_FIRST
        self._parents: list[int] = []
        self._levels: list[int] = []
        self._slack: list[int] = []
        self._producers: list[set[int]] = []
        self._consumers: list[set[int]] = []

    def find(self, kernel: int) -> int:
        """Return the current number of this kernel, after merges."""
        parents = self._parents
        while (parent := parents[kernel]) != kernel:
            parents[kernel] = kernel = parents[parent]
        return kernel

    def add(self, needed: Collection[int]) -> int:
        """Create a kernel that depends on those in `needed`, and return its number. Numbers start from 0."""
        self._allowed += STEPS_PER_RECORD
        kernel = len(self._parents)
        self._parents.append(kernel)
        self._levels.append(1 + max([self._levels[one] for one in needed], default=-1))
        self._slack.append(0)
        self._producers.append(set(needed))
        self._consumers.append(set())
        for one in needed:
            self._consumers[one].add(kernel)
        return kernel

    def join(self, homes: Sequence[int], needed: Collection[int]) -> bool:
        """Merge `homes` into one kernel with the number of the first, which also depends on the others in `needed`.

        `needed` includes `homes`. None of `homes` may precede another or one of `needed` (`preceding`). Returns False,
        and changes nothing, if the budget does not suffice to raise the levels of all successors.
        """
        self._allowed += STEPS_PER_RECORD
        if len(needed) == 1:
            return True  # only the one home itself
        levels = self._levels
        home, *others = homes
        outside = [one for one in needed if one not in homes]
        least = 1 + max([levels[one] for one in outside], default=-1)
        level = max([levels[one] for one in homes])
        lifted = least > level
        if lifted:
            # A kernel whose level rises repeatedly rises by twice as much each time, so successors move rarely.
            level = least + self._slack[home]
        if lifted or others:
            moves = self._raised_levels(homes, level)
            if moves is None:
                return False
            for kernel, higher in moves.items():
                levels[kernel] = higher
        if lifted:
            self._slack[home] = 2 * self._slack[home] + 1
        levels[home] = level
        for other in others:
            self._parents[other] = home
            self._slack[home] = max(self._slack[home], self._slack[other])
            for sides in (self._producers, self._consumers):
                small, large = sorted((sides[home], sides[other]), key=len)
                large |= small
                sides[home], sides[other] = large, set()
        for one in outside:
            self._producers[home].add(one)
            self._consumers[one].add(home)
        return True

    def preceding(self, candidates: Sequence[int], targets: Collection[int]) -> set[int]:
        """Return those of `candidates` that one of `targets`, other than itself, depends on.

        Candidates that the budget leaves undecided are included.
        """
        highest = max([self._levels[one] for one in targets])
        still_open = {one for one in candidates if self._levels[one] < highest}
        targets = set(targets)
        found = {one for one in still_open if not self._consumers[one].isdisjoint(targets)}
        still_open -= found
        if not still_open:
            return found
        before = set(targets)
        backward = self._backward(still_open, before, found)
        forward = self._forward(still_open, before, found, highest)
        for _ in zip(backward, forward, strict=False):  # until either search is exhausted
            self.steps += 2
            self._allowed -= 2
            if self._allowed < 0:
                return found | still_open
        return found

    def _backward(self, still_open: set[int], before: set[int], found: set[int]) -> Iterator[None]:
        """Search from the targets to their predecessors, which are added to `before`."""
        lowest = min(self._levels[one] for one in still_open)
        stack = list(before)
        while stack:
            for stale in self._producers[stack.pop()]:
                yield
                kernel = self.find(stale)
                if kernel in still_open:
                    found.add(kernel)
                    still_open.discard(kernel)
                    if not still_open:
                        return
                if kernel not in before and self._levels[kernel] >= lowest:
                    before.add(kernel)
                    stack.append(kernel)

    def _forward(self, still_open: set[int], before: set[int], found: set[int], highest: int) -> Iterator[None]:
        """Search from each candidate to its successors, until one is a predecessor of the targets."""
        fruitless: set[int] = set()
        for start in sorted(still_open, reverse=True):
            seen, stack, met = {start}, [start], False
            while stack and not met and start in still_open:
                for stale in self._consumers[stack.pop()]:
                    yield
                    kernel = self.find(stale)
                    if kernel in before:
                        met = True
                        break
                    if kernel not in seen and kernel not in fruitless and self._levels[kernel] < highest:
                        seen.add(kernel)
                        stack.append(kernel)
            if met:
                found.add(start)
            elif start in still_open:
                fruitless |= seen
            still_open.discard(start)

    def _raised_levels(self, homes: Sequence[int], level: int) -> dict[int, int] | None:
        """Return new levels of all successors of `homes` when these are at `level`; None if the budget is too low."""
        moves: dict[int, int] = {}
        heap: list[tuple[int, int]] = []

        def push(kernel: int, higher: int) -> None:
            for stale in self._consumers[kernel]:
                self.steps += 1
                self._allowed -= 1
                one = self.find(stale)
                if self._levels[one] <= higher and moves.get(one, -1) <= higher:
                    if one not in moves:
                        heappush(heap, (self._levels[one], one))
                    moves[one] = higher + 1

        for home in homes:
            push(home, level)
        while heap:
            if self._allowed < 0:
                return None
            _, kernel = heappop(heap)
            push(kernel, moves[kernel])
        return moves
