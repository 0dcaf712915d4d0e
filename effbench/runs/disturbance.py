"""Tell early whether other work on the machine makes a launch worthless."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from typing import Any

from effbench.analysis import summary
from effbench.core.run import Conditions
from effbench.timing.sampling import MIN_ROUNDS_ON_BUDGET

CORES_MISSING = 0.5
"""A launch with several threads is disturbed where it and the others needed this many cores more than there are. Its
blocks do not show that: only the calling thread's waiting is known.
"""


class Disturbance:
    """Counts the disturbed blocks of one launch, from its events."""

    def __init__(self) -> None:
        self._every: Counter[str] = Counter()
        self._disturbed: Counter[str] = Counter()
        self._causes: Counter[str] = Counter()

    def handle_event(self, event: Mapping[str, Any]) -> None:
        if event["event"] != "block":
            return
        flags = event["timing"].get("flags", ())
        self._every[event["cell"]] += 1
        self._disturbed[event["cell"]] += bool(flags)
        self._causes.update(flags)

    def reason(self, conditions: Conditions | None, threads: int, cores: int | None = None) -> str:
        """Return what disturbed the launch, such as "others disturbed 43 % of the blocks (waited for a core)".

        "" if most of its cells are fit to use, or if it has measured too few rounds to tell. `conditions` are those
        since the launch began, `cores` those of the machine.
        """
        if not self._every or min(self._every.values()) < MIN_ROUNDS_ON_BUDGET:
            return ""
        contaminated = sum(summary.are_too_many(self._disturbed[cell], every) for cell, every in self._every.items())
        if 2 * contaminated > len(self._every):
            share = self._disturbed.total() / self._every.total()
            return f"others disturbed {100 * share:.0f} % of the blocks ({', '.join(sorted(self._causes))})"
        cores = cores or os.cpu_count()
        others = None if conditions is None else conditions.other_cores
        if threads > 1 and others is not None and cores and others + threads > cores + CORES_MISSING:
            return f"others kept {others:.1f} of {cores} cores busy, beside {threads} threads"
        return ""
