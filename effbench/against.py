"""The interleaved gate and its calibration: launch after launch of both sides until every cell is decided."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from effbench import gate
from effbench.baseline import name_of
from effbench.decision import Decision, Finding
from effbench.duel import Duel
from effbench.errors import NotComparable
from effbench.gate import Gate, Rule
from effbench.measurement.launcher import Site
from effbench.pairs import Pair
from effbench.plan import Plan
from effbench.runner import CostOf, Watch

ROUNDS = 20
"""Of every launch, decided beforehand: a test of what was measured until it looked good is none."""
SAMPLING: Mapping[str, int] = {"min_rounds": ROUNDS, "max_rounds": ROUNDS}


@dataclass(frozen=True)
class Sides:
    """What is measured against each other: where the code of both lies, what each costs, what each is called."""

    sites: tuple[Site, Site] = (Site(), Site())
    costs: tuple[CostOf, CostOf] = field(kw_only=True)
    names: tuple[str, str] = ("baseline", "candidate")


def decide(
    plan: Plan,
    sides: Sides,
    directory: Path,
    *,
    rule: Rule,
    tolerances: Mapping[str, float] | None = None,
    budget_s: float,
    same_costs: bool = False,
    command: str = "",
    watch: Watch,
) -> Decision:
    """Measure until every cell has a verdict, the looks of the rule are used up, or the next would overrun `budget_s`.

    `tolerances` are by cell id. Raises StorageError, EffbenchError, runner.Interrupted; what was measured is in
    `directory`.
    """
    begun = time.monotonic()
    judge = Gate([cell.id for cell in plan.cells], rule, tolerances or {})
    notes: tuple[str, ...] = ()
    pair: Pair | None = None
    with Duel(plan, sides.sites, directory, sides.costs, planned=rule.looks[-1], command=command, watch=watch) as duel:
        try:
            for number, launches in enumerate(rule.looks):
                while duel.launches < launches and duel.launch(judge.undecided):
                    pass
                if duel.launches < launches:
                    break
                judge.look_at(number, duel.pair())
                if not judge.undecided:
                    break
                spent_s = time.monotonic() - begun
                following = rule.looks[number + 1 :]
                if following and spent_s * following[0] / launches > budget_s:
                    notes = (
                        f"the budget of {budget_s:g} s ended it after {launches} of up to {rule.looks[-1]} launches",
                    )
                    break
        except NotComparable as error:
            return _decision(plan, sides, directory, begun, tuple(_unlike(cell, error) for cell in judge.cells))
        if duel.launches:
            pair = duel.finish()
        found = gate.findings(judge, pair, duel.skipped(), same_costs=same_costs)
    decided = _decision(plan, sides, directory, begun, found, pair)
    measured = [item.cell for item in found if item.change is not None]
    mean = gate.geomean(pair, measured) if pair is not None and len(measured) > 1 else None
    return replace(decided, geomean=mean, notes=notes)


def record(plan: Plan, sides: Sides, directory: Path, *, launches: int, command: str = "", watch: Watch) -> Pair:
    """Measure every cell on both sides this often, whatever comes out. Raises as `decide` does."""
    cells = [cell.id for cell in plan.cells]
    with Duel(plan, sides.sites, directory, sides.costs, planned=launches, command=command, watch=watch) as duel:
        while duel.launches < launches and duel.launch(cells):
            pass
        return duel.finish()


def _unlike(cell: str, error: Exception) -> Finding:
    return Finding("against", cell, "ENVIRONMENT", str(error))


def _decision(
    plan: Plan, sides: Sides, directory: Path, begun: float, found: Sequence[Finding], pair: Pair | None = None
) -> Decision:
    names = {cell.id: name_of(cell.case) for cell in plan.cells}
    return Decision(
        findings=tuple(replace(item, cell=names[item.cell]) for item in found),
        baseline=sides.names[0],
        candidate=sides.names[1],
        facts={} if pair is None else _facts(pair),
        directory=str(directory),
        seconds=time.monotonic() - begun,
    )


def _facts(pair: Pair) -> dict[str, str]:
    known = pair.candidate.environment.facts
    wanted = {"machine": "cpu.model", "gpu": "gpu.name", "threads": "run.threads", "torch": "torch.version"}
    return {word: str(known[name]) for word, name in wanted.items() if known.get(name)}
