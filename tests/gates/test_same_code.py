"""The check that a stored pair is an A/A measurement: any other pair is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from runs import CELLS, run_of

from effbench.core.errors import InvalidValue
from effbench.gates import same_code
from effbench.gates.ab_pairs import Pair
from effbench.gates.decision_rule import Rule

TIMES = dict.fromkeys(CELLS, 0.01)


@pytest.mark.parametrize(("factor", "told"), [(1.0, ""), (1.2, "shown to be slower"), (0.8, "shown to be faster")])
def test_sides_of_which_one_is_slower(factor: float, told: str) -> None:
    before = run_of(TIMES, launches=13)
    pair = Pair(before, run_of({**TIMES, CELLS[1]: 0.01 * factor}, launches=13, seed=1))
    if not told:
        same_code.require_same_code(pair, Rule())
        return
    with pytest.raises(InvalidValue, match=f"{told} .{CELLS[1]}.*effbench aa"):
        same_code.require_same_code(pair, Rule())
    by_itself = replace(pair.candidate, command="effbench aa --launches 13")
    same_code.require_same_code(Pair(before, by_itself), Rule())


def test_sides_of_other_counts() -> None:
    run = run_of(TIMES, launches=4)
    cost = run.results[0].cost
    assert cost is not None
    other = replace(run.results[0], cost=replace(cost, madds=2 * cost.madds))
    with pytest.raises(InvalidValue, match=f"not the same code .{CELLS[0]}: madds"):
        same_code.require_same_code(Pair(run, replace(run, results=(other, *run.results[1:]))), Rule())


def test_revisions_that_may_differ_are_named(tmp_path: Path) -> None:
    assert same_code.caveats(tmp_path / "against") == ()
    told = {"candidate": "working tree (1a2b3c4 and uncommitted changes)", "baseline": "HEAD~1 (0a1b2c3)"}
    (tmp_path / "check.json").write_text(json.dumps(told))
    (said,) = same_code.caveats(tmp_path / "against")
    assert said.startswith("The two sides were working tree (1a2b3c4 and uncommitted changes) and HEAD~1 (0a1b2c3)")
