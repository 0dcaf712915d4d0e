"""The gate and its peers' rules over suites resampled from one recorded A/A measurement: alarms and power. No torch.

A suite draws launches of the record, the same for all its cells. The gate meets them in the order drawn. The rules of
other tools see the same undisturbed blocks, twice: *interleaved*, both sides from the same launches as recorded, and
*sequential*, as their users run them, the baseline from one launch and the candidate from a later one. A slowdown is a
multiplication of one cell's candidate times: multiplied, not injected.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from effbench.analysis import stats
from effbench.core.errors import InvalidValue
from effbench.core.estimate import Estimate
from effbench.core.study import Tell
from effbench.gates.decision_rule import Rule
from effbench.gates.many import PASS, REGRESSION, Record, arrays, decide, record
from effbench.gates.peers import RULES

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    Array = NDArray[Any]

SLOWDOWNS = (0.03, 0.05, 0.10)
SUITES = 300
"""No alarm in so many suites is what supports "at most 1 %" at 95 % confidence (one-sided)."""

_Said = Mapping[str, bool]

Arrangement = Literal["interleaved", "sequential"]
ARRANGEMENTS: tuple[Arrangement, ...] = ("interleaved", "sequential")


@dataclass(frozen=True)
class GateOutcome:
    """What the gate said when one cell of each suite was this much slower (0: none was).

    `called`, `undecided` (INCONCLUSIVE or ENVIRONMENT) and `passed` are shares of the slowed cells, at 0 of all cells;
    the `suite_…` are shares of whole suites by their worst cell. `launches` is the mean number that a suite took until
    every cell was decided.
    """

    slowdown: float
    called: Estimate
    undecided: Estimate
    passed: Estimate
    suite_called: Estimate
    suite_undecided: Estimate
    suite_passed: Estimate
    launches: float


@dataclass(frozen=True)
class RuleOutcome:
    """How often one peer's rule said "slower": at no slowdown by comparison and by suite, and of cells slowed."""

    rule: str
    arrangement: Arrangement
    alarm: Estimate
    suite_alarm: Estimate
    power: Mapping[float, Estimate]


@dataclass(frozen=True)
class Replay:
    """One replay. `launches` is the most that a suite draws, `recorded` what there was to draw from.

    `sitting` is how many launches a side a peer's rule sees. `caveats` are sentences on what these figures are worth;
    without any undisturbed round there is nothing else.
    """

    cells: tuple[str, ...]
    clock: str
    rule: Rule
    suites: int
    launches: int
    recorded: int
    sitting: int
    gate: tuple[GateOutcome, ...]
    rules: tuple[RuleOutcome, ...]
    caveats: tuple[str, ...]


def replay(
    source: Any,
    *,
    launches: int | None = None,
    suites: int = SUITES,
    slowdowns: Sequence[float] = SLOWDOWNS,
    seed: int = 0,
    rule: Rule | None = None,
    sitting: int = 1,
    tell: Tell = lambda done, doing: None,
) -> Replay:
    """Resample suites from a record (or what `many_gates.record` makes one of) and let every rule decide.

    `launches` is the most that a suite may take, by default as many as the rule's last look. They are drawn without
    replacement where the record holds enough. Raises InvalidValue for suites, sittings, launches below one or a
    slowdown of zero or less.
    """
    import numpy

    judged, recorded = rule or Rule(), record(source)
    most = judged.looks[-1] if launches is None else launches
    for name, value in (("suites", suites), ("sitting", sitting), ("launches", most)):
        if value < 1:
            raise InvalidValue(f"{name} (={value}) must be at least 1")
    if min(slowdowns, default=1.0) <= 0:
        raise InvalidValue(f"a slowdown (={min(slowdowns)}) must be above zero, such as 0.03 for 3 %")
    made = partial(
        Replay,
        recorded.cells,
        recorded.clock,
        judged,
        suites,
        most,
        len(recorded.launches),
        sitting,
        caveats=_caveats(recorded, most, judged, sitting),
    )
    if not recorded.usable:
        return made((), ())
    generator = numpy.random.default_rng(seed)
    slowed = generator.choice([recorded.cells.index(cell) for cell in recorded.usable], suites)
    drawn = _draw(len(recorded.launches), most, suites, generator)
    outcomes = _gate_outcomes(recorded, drawn, slowed, (0.0, *slowdowns), judged)
    tell(0.1, "the gate has decided")
    return made(outcomes, _rule_outcomes(recorded, slowed, slowdowns, sitting, generator, tell))


def _gate_outcomes(
    recorded: Record, drawn: Array, slowed: Array, slowdowns: Sequence[float], rule: Rule
) -> tuple[GateOutcome, ...]:
    import numpy

    numbers = arrays(recorded)
    own = numpy.arange(len(recorded.cells)) == slowed[:, None]
    usable = numpy.isin(recorded.cells, recorded.usable)
    outcomes = []
    for slowdown in slowdowns:
        verdicts, taken = decide(numbers, drawn, rule, numpy.where(own, math.log1p(slowdown), 0.0))
        seen = verdicts[own] if slowdown else verdicts[:, usable].ravel()
        called, passed = (verdicts == REGRESSION).any(axis=1), (verdicts == PASS).all(axis=1)
        outcomes.append(
            GateOutcome(
                slowdown,
                _share(seen == REGRESSION),
                _share((seen != REGRESSION) & (seen != PASS)),
                _share(seen == PASS),
                _share(called),
                _share(~called & ~passed),
                _share(passed),
                float(numpy.where(taken > 0, taken, drawn.shape[1]).mean()),
            )
        )
    return tuple(outcomes)


def _rule_outcomes(
    recorded: Record,
    slowed: Array,
    slowdowns: Sequence[float],
    sitting: int,
    generator: numpy.random.Generator,
    tell: Tell,
) -> tuple[RuleOutcome, ...]:
    outcomes: list[RuleOutcome] = []
    sittings = _Sittings(recorded)
    for number, arrangement in enumerate(ARRANGEMENTS):
        needed = sitting if arrangement == "interleaved" else 2 * sitting
        if needed > len(recorded.launches):
            continue
        drawn = _draw(len(recorded.launches), needed, len(slowed), generator)
        drawn.sort(axis=1)
        alike: list[list[_Said]] = []
        slower: dict[float, list[_Said]] = {share: [] for share in slowdowns}
        for suite, places in enumerate(drawn.tolist()):
            sides = tuple(places[:sitting]), tuple(places[-sitting:])
            alike.append([said for cell in recorded.usable if (said := sittings.said(cell, *sides))])
            for share, found in slower.items():
                if said := sittings.said(recorded.cells[slowed[suite]], *sides, share):
                    found.append(said)
            tell(0.1 + 0.45 * (number + (suite + 1) / len(drawn)), f"the peers' rules, {arrangement}")
        outcomes += [_rule_outcome(name, arrangement, alike, slower) for name in RULES if any(alike)]
    return tuple(outcomes)


def _rule_outcome(
    name: str, arrangement: Arrangement, alike: Sequence[Sequence[_Said]], slower: Mapping[float, Sequence[_Said]]
) -> RuleOutcome:
    return RuleOutcome(
        name,
        arrangement,
        _share([said[name] for suite in alike for said in suite]),
        _share([any(said[name] for said in suite) for suite in alike]),
        {share: _share([said[name] for said in found]) for share, found in slower.items() if found},
    )


class _Sittings:
    """What every peer's rule says of one cell between two sets of launches, each worked out once."""

    def __init__(self, recorded: Record) -> None:
        self._seconds = [
            {
                cell: [
                    [getattr(item, side) for item in recorded.rounds[cell].get(launch, ())]
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


def _draw(recorded: int, launches: int, suites: int, generator: numpy.random.Generator) -> Array:
    """Places of launches (suites × launches): no launch twice in a suite where there are enough."""
    import numpy

    if launches > recorded:
        return generator.integers(recorded, size=(suites, launches))
    return generator.permuted(numpy.tile(numpy.arange(recorded), (suites, 1)), axis=1)[:, :launches]


def _share(said: Any) -> Estimate:
    return stats.proportion_interval(int(sum(said)), len(said))


def _caveats(recorded: Record, launches: int, rule: Rule, sitting: int) -> tuple[str, ...]:
    count, usable = len(recorded.launches), recorded.usable
    if not usable:
        return ("No cell has an undisturbed round on both sides, so there is nothing to decide on.",)
    found = []
    if min(launches, rule.looks[-1]) > count:
        found.append(
            f"A suite takes up to {launches} launches and {count} were recorded, so they are drawn with replacement: "
            "the same launch counts more than once, which makes the gate surer than it is."
        )
    elif min(launches, rule.looks[-1]) == count:
        found.append(
            f"Every suite ends with the same {count} launches, only met in another order: with twice as many the "
            "shares begin to mean something."
        )
    else:
        found.append(
            f"Suites draw up to {launches} of {count} recorded launches without replacement, so they share launches: "
            "the figures rank rules and do not certify a rate."
        )
    if launches < rule.looks[0]:
        found.append(f"The gate first looks at {rule.looks[0]} launches: with {launches} it decides nothing.")
    if 2 * sitting > count:
        found.append(f"A sequential comparison takes {2 * sitting} launches, {count} were recorded: there is none.")
    for cell in recorded.cells:
        if cell not in usable:
            aside = recorded.set_aside(cell)
            reason = f"all its {aside} rounds were disturbed" if aside else "it has no rounds on both sides"
            found.append(f"{cell} says nothing: {reason}.")
        elif split := recorded.split(cell):
            found.append(f"{cell}: {split}, so a verdict needs both clocks to agree.")
    return tuple(found)
