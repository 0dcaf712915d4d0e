"""Check that a stored pair of runs is an A/A measurement, on which false alarms can be counted. Without torch."""

from __future__ import annotations

import json
from pathlib import Path

from effbench.core import units
from effbench.core.errors import InvalidValue
from effbench.gates import budgets
from effbench.gates.ab_pairs import Pair
from effbench.gates.decision_rule import Gate, Rule

_ADVICE = "measure the same code on both sides with `effbench aa`"


def require_same_code(pair: Pair, rule: Rule) -> None:
    """Raise unless both sides are the same code: equal costs, and neither side significantly slower.

    A pair of `effbench aa` is the same code by construction, so only its costs are compared: alarms there are false
    alarms and must count.

    Raises
    ------
    InvalidValue
        Naming the first cell in which the two sides differ.
    """
    sides = [{result.cell.id: result for result in run} for run in (pair.candidate, pair.baseline)]
    for cell in pair.cells:
        found, wanted = (side[cell].cost if cell in side else None for side in sides)
        if differing := budgets.differing_counts(found, wanted):
            item = differing[0]
            texts = units.counts_to_compare(item.found or 0, item.wanted or 0)
            raise InvalidValue(
                f"the two sides are not the same code ({cell}: {item.name} {texts[0]} against {texts[1]}), so no alarm "
                f"would be a false one; {_ADVICE}"
            )
    if pair.candidate.command.split()[:2] == ["effbench", "aa"]:
        return
    gate = Gate(pair.cells, rule)
    for cell, looked in gate.look_at(len(rule.looks) - 1, pair).items():
        if looked.verdict == "REGRESSION" or looked.is_improved:
            told = "slower" if looked.verdict == "REGRESSION" else "faster"
            raise InvalidValue(
                f"the candidate is shown to be {told} ({cell}), so the two sides are not the same code and no alarm "
                f"would be a false one; {_ADVICE}"
            )


def caveats(directory: Path) -> tuple[str, ...]:
    """Remarks on a pair that `effbench check --against` measured, whose sides may be different code."""
    try:
        told = json.loads((directory.parent / "check.json").read_text(encoding="utf-8"))
        sides = [str(told[name]) for name in ("candidate", "baseline")]
    except (OSError, ValueError, KeyError, TypeError):
        return ()
    return (
        f"The two sides were {sides[0]} and {sides[1]}: differences between them count as noise of the machine here, "
        "and alarms about them as false.",
    )
