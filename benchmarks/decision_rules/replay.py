"""The gate and the rules of other tools over suites resampled from one recorded A/A measurement: alarms and power.

The gate decides as `effbench aa` says (`effbench.gates.alarm_rate`). The rules of other tools see the same undisturbed
blocks, twice: *interleaved*, both sides from the same launches as recorded, and *sequential*, as their users run them,
the baseline from one launch and the candidate from a later one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy
from numpy.typing import NDArray

from benchmarks.decision_rules.rules import RULES
from effbench.core.errors import InvalidValue
from effbench.core.estimate import Estimate
from effbench.gates import ab_pairs, alarm_rate
from effbench.gates.ab_pairs import Pair, Round
from effbench.gates.alarm_rate import SLOWDOWNS, SUITES, AlarmRate, draw, draw_suites, proportion
from effbench.gates.decision_rule import Rule
from effbench.gates.evidence import Evidence

Array = NDArray[Any]
Rounds = Mapping[str, Sequence[Round]]
"""By cell, in the order of time."""

_Said = Mapping[str, bool]

Arrangement = Literal["interleaved", "sequential"]
ARRANGEMENTS: tuple[Arrangement, ...] = ("interleaved", "sequential")


@dataclass(frozen=True)
class RuleOutcome:
    """How often one tool's rule said "slower": at no slowdown by comparison and by suite, and of cells slowed."""

    rule: str
    arrangement: Arrangement
    alarm: Estimate
    suite_alarm: Estimate
    power: Mapping[float, Estimate]


@dataclass(frozen=True)
class Replay:
    """What the gate and the rules of other tools said. `sitting` is how many launches a side such a rule sees."""

    ours: AlarmRate
    sitting: int
    rules: tuple[RuleOutcome, ...]


def replay(
    source: Pair | Rounds,
    *,
    suites: int = SUITES,
    slowdowns: Sequence[float] = SLOWDOWNS,
    seed: int = 0,
    rule: Rule | None = None,
    sitting: int = 1,
) -> Replay:
    """Resample suites and let every rule decide. Raises as `alarm_rate.resample`, and for sittings below one."""
    if sitting < 1:
        raise InvalidValue(f"sitting (={sitting}) must be at least 1")
    if isinstance(source, Pair):
        recorded, rounds = Evidence.of(source), {cell: ab_pairs.rounds(source, cell) for cell in source.cells}
    else:
        recorded, rounds = Evidence.of_rounds(source), dict(source)
    recorded = recorded.recorded()
    ours = alarm_rate.resample(recorded, suites=suites, slowdowns=slowdowns, seed=seed, rule=rule)
    if 2 * sitting > ours.recorded and ours.gate:
        none = f"A sequential comparison takes {2 * sitting} launches, {ours.recorded} were recorded: there is none."
        ours = replace(ours, caveats=(*ours.caveats, none))
    if not ours.gate:
        return Replay(ours, sitting, ())
    generator = numpy.random.default_rng(seed)
    slowed = draw_suites(recorded, ours.launches, suites, generator).slowed
    return Replay(ours, sitting, _rule_outcomes(recorded, rounds, slowed, slowdowns, sitting, generator))


def _rule_outcomes(
    recorded: Evidence,
    rounds: Rounds,
    slowed: Array,
    slowdowns: Sequence[float],
    sitting: int,
    generator: numpy.random.Generator,
) -> tuple[RuleOutcome, ...]:
    outcomes: list[RuleOutcome] = []
    sittings = _Sittings(recorded, rounds)
    for arrangement in ARRANGEMENTS:
        needed = sitting if arrangement == "interleaved" else 2 * sitting
        if needed > len(recorded.launches):
            continue
        drawn = draw(len(recorded.launches), needed, len(slowed), generator)
        drawn.sort(axis=1)
        alike: list[list[_Said]] = []
        slower: dict[float, list[_Said]] = {slowdown: [] for slowdown in slowdowns}
        for suite, places in enumerate(drawn.tolist()):
            sides = tuple(places[:sitting]), tuple(places[-sitting:])
            alike.append([said for cell in recorded.usable if (said := sittings.said(cell, *sides))])
            for slowdown, found in slower.items():
                if said := sittings.said(recorded.cells[slowed[suite]], *sides, slowdown):
                    found.append(said)
        outcomes += [_rule_outcome(name, arrangement, alike, slower) for name in RULES if any(alike)]
    return tuple(outcomes)


def _rule_outcome(
    name: str, arrangement: Arrangement, alike: Sequence[Sequence[_Said]], slower: Mapping[float, Sequence[_Said]]
) -> RuleOutcome:
    return RuleOutcome(
        name,
        arrangement,
        proportion([said[name] for suite in alike for said in suite]),
        proportion([any(said[name] for said in suite) for suite in alike]),
        {slowdown: proportion([said[name] for said in found]) for slowdown, found in slower.items() if found},
    )


class _Sittings:
    """What every tool's rule says of one cell between two sets of launches, each worked out once."""

    def __init__(self, recorded: Evidence, rounds: Rounds) -> None:
        self._seconds = [
            {
                cell: [
                    [getattr(item, side) for item in rounds[cell] if item.launch == launch and not item.flags]
                    for launch in recorded.launches
                ]
                for cell in recorded.cells
            }
            for side in ("baseline_s", "candidate_s")
        ]
        self._known: dict[tuple[Any, ...], _Said] = {}

    def said(self, cell: str, before: Sequence[int], after: Sequence[int], slowdown: float = 0.0) -> _Said:
        """By rule, whether the candidate is slower; {} where a side has no undisturbed block."""
        key = (cell, before, after, slowdown)
        if key not in self._known:
            baseline, candidate = (
                [value for place in places for value in seconds[cell][place]]
                for seconds, places in zip(self._seconds, (before, after), strict=True)
            )
            candidate = [value * (1 + slowdown) for value in candidate]
            self._known[key] = (
                {name: rule.is_slower(baseline, candidate) for name, rule in RULES.items()}
                if baseline and candidate
                else {}
            )
        return self._known[key]
