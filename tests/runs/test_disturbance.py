"""Whether others made a launch worthless, told from its blocks and from the cores they kept busy."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from effbench.core.run import Conditions
from effbench.runs.disturbance import Disturbance


def launch(flags: Mapping[str, str]) -> Disturbance:
    """Cells by name with one character per round: "w" waited, "s" steal, "." undisturbed."""
    found = Disturbance()
    causes = {"w": ["waited for a core"], "s": ["steal"], ".": []}
    for cell, rounds in flags.items():
        for one in rounds:
            found.handle_event({"event": "block", "cell": cell, "timing": {"flags": causes[one]}})
    found.handle_event({"event": "end", "stopped": "rounds"})
    return found


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({}, ""),
        ({"a": "......", "b": "w....."}, ""),
        ({"a": "ww"}, ""),
        ({"a": "www", "b": "...", "c": "..."}, ""),
        ({"a": "ww..", "b": "...."}, ""),
        ({"a": "ww..", "b": "ws.."}, "others disturbed 50 % of the blocks (steal, waited for a core)"),
        ({"a": "ww..", "b": "ww..", "c": "...."}, "others disturbed 33 % of the blocks (waited for a core)"),
    ],
)
def test_most_cells_must_be_contaminated_and_three_rounds_measured(flags: Mapping[str, str], reason: str) -> None:
    assert launch(flags).reason(None, 1) == reason


@pytest.mark.parametrize(
    ("threads", "others", "is_disturbed"), [(1, 8.0, False), (4, 3.0, False), (4, 4.6, True), (8, None, False)]
)
def test_with_several_threads_the_cores_must_be_enough(threads: int, others: float | None, is_disturbed: bool) -> None:
    reason = launch({"a": "..."}).reason(Conditions(other_cores=others), threads, cores=8)
    assert reason == (f"others kept 4.6 of 8 cores busy, beside {threads} threads" if is_disturbed else "")
