"""What `effbench aa` says: what the gate sees on this machine, and the rules side by side. As tables, as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from effbench.analysis import stats
from effbench.core import units
from effbench.core.estimate import Estimate
from effbench.gates.calibration import Answer, Scatter, Survey, middle
from effbench.gates.decision_rule import POWER
from effbench.gates.peers import RULES
from effbench.gates.replay import ARRANGEMENTS, GateOutcome, Replay, RuleOutcome
from effbench.report.tables.table_model import NOTHING, Column, Table, Value

OURS = "effbench's gate"


def tables(survey: Survey, found: Replay) -> tuple[Table, ...]:
    """The machine, the gate at every slowdown, and the rules side by side; without a decision only the first."""
    rest = (gate_rows(found), rule_rows(found)) if found.gate else ()
    return (machine_rows(survey, found), *rest)


def machine_rows(survey: Survey, found: Replay) -> Table:
    """One row a cell: its noise and scatter, what a gate detects, the launches that a slowdown takes. Raw values are
    shares of 1.
    """
    columns = (
        Column("cell", align="left"),
        Column("launches"),
        Column("rounds a launch"),
        Column("noise of a round", "%", raw_unit=""),
        Column("scatter of launches", "%", raw_unit=""),
        *(Column(f"detectable at {count} launches", "%", raw_unit="") for count in survey.detectable),
        *(Column(f"launches for {share:.0%}".replace("%", " %")) for share in survey.needed),
        Column("remarks", align="left"),
    )
    rows = [
        (
            Value(item.cell, item.cell),
            Value(str(item.launches), item.launches),
            Value(str(item.rounds), item.rounds),
            _percent(item.within),
            _percent(item.between),
            *(_percent_answer(answers[item.cell]) for answers in survey.detectable.values()),
            *(_count_answer(answers[item.cell]) for answers in survey.needed.values()),
            _remark(item),
        )
        for item in survey.scatter
    ]
    totals = (
        Value("median cell", "median cell"),
        *[NOTHING] * 4,
        *(_percent_answer(middle(answers)) for answers in survey.detectable.values()),
        *(_count_answer(middle(answers)) for answers in survey.needed.values()),
        NOTHING,
    )
    if all(row[-1] is NOTHING for row in rows):
        columns, rows, totals = columns[:-1], [row[:-1] for row in rows], totals[:-1]
    return Table("On this machine", columns, tuple(rows), _machine_notes(survey, found), totals if rows else None)


def gate_rows(found: Replay) -> Table:
    """One row a slowdown: what the gate said of the slowed cell, and the launches it took."""
    columns = (
        Column("slowdown of one cell", "%", raw_unit=""),
        *(
            Column(word, "%", raw_unit="")
            for word in ("REGRESSION", "INCONCLUSIVE", "PASS", "suite REGRESSION", "suite PASS")
        ),
        Column("launches taken"),
    )
    rows = tuple(
        (
            Value(f"{100 * item.slowdown:.4g}", item.slowdown),
            *(
                _share(share, bounds=True)
                for share in (item.called, item.undecided, item.passed, item.suite_called, item.suite_passed)
            ),
            Value(f"{item.launches:.1f}", item.launches),
        )
        for item in found.gate
    )
    return Table("What the gate says", columns, rows, _gate_notes(found))


def rule_rows(found: Replay) -> Table:
    """One row a rule, ours first: alarms where nothing is slower, and the share of slowed cells that it calls."""
    shares = [item.slowdown for item in found.gate if item.slowdown]
    columns = (
        Column("rule", align="left"),
        *(Column(f"{name} alarm", "%", raw_unit="") for name in ("sequential", "sequential suite")),
        *(Column(f"{name} alarm", "%", raw_unit="") for name in ("interleaved", "interleaved suite")),
        *(Column(f"calls {100 * share:.3g} %", "%", raw_unit="") for share in shares),
        Column("decides like", align="left"),
    )
    none, slower = _split(found.gate)
    ours = (
        Value(OURS, OURS),
        NOTHING,
        NOTHING,
        _share(none.called),
        _share(none.suite_called),
        *(_share(item.called) for item in slower),
        Value("effbench check --against", "effbench check --against"),
    )
    by_key = {(item.rule, item.arrangement): item for item in found.rules}
    rows = [ours]
    for name, rule in RULES.items():
        told = [by_key.get((name, arrangement)) for arrangement in reversed(ARRANGEMENTS)]
        if any(told):
            rows.append(
                (
                    Value(name, name),
                    *(value for item in told for value in _alarms(item)),
                    *(_share(told[-1].power.get(share) if told[-1] else None) for share in shares),
                    Value(rule.about, rule.about),
                )
            )
    return Table("The rules side by side", columns, tuple(rows), _rule_notes(found))


def document(survey: Survey, found: Replay) -> dict[str, Any]:
    """``aa --json``. Shares are of 1 with exact 95 % intervals; missing is null, with its reason beside it."""
    return {
        "clock": found.clock,
        "rule": asdict(found.rule),
        "suites": found.suites,
        "launches": {"recorded": found.recorded, "drawn": found.launches, "sitting": found.sitting},
        "cells": [_cell_document(item, survey) for item in survey.scatter],
        "median_cell": {
            "detectable": _answers(survey.detectable, "launches", "slowdown"),
            "needed": _answers(survey.needed, "slowdown", "launches"),
        },
        "gate": [
            {
                "slowdown": item.slowdown,
                "regression": _bounds(item.called),
                "inconclusive": _bounds(item.undecided),
                "pass": _bounds(item.passed),
                "suite_regression": _bounds(item.suite_called),
                "suite_inconclusive": _bounds(item.suite_undecided),
                "suite_pass": _bounds(item.suite_passed),
                "launches": item.launches,
            }
            for item in found.gate
        ],
        "rules": [
            {
                "rule": item.rule,
                "decides_like": RULES[item.rule].about,
                "arrangement": item.arrangement,
                "alarm": _bounds(item.alarm),
                "suite_alarm": _bounds(item.suite_alarm),
                "power": [{"slowdown": share, **_bounds(called)} for share, called in item.power.items()],
            }
            for item in found.rules
        ],
        "caveats": list(found.caveats),
    }


def alarm_sentence(found: Replay) -> str:
    """How often the gate raised an alarm over suites in which nothing was slower, with its bound; "" without any."""
    if not found.gate:
        return ""
    none, _ = _split(found.gate)
    alarms, suites = round(none.suite_called.point * none.suite_called.n), none.suite_called.n
    most = stats.proportion_interval(alarms, suites, 0.90).high
    assert most is not None, "a share always has a bound"
    return (
        f"The gate raised an alarm in {alarms} of {suites} resampled suites in which nothing was slower: at most "
        f"{units.rounded(100 * most)} % at 95 % confidence, if the suites were independent."
    )


def _split(outcomes: Sequence[GateOutcome]) -> tuple[GateOutcome, list[GateOutcome]]:
    """What the gate said without a slowdown, and with each."""
    return next(item for item in outcomes if not item.slowdown), [item for item in outcomes if item.slowdown]


def _machine_notes(survey: Survey, found: Replay) -> tuple[str, ...]:
    clock = {"cpu": "CPU time of the thread", "wall": "wall clock", "device": "device time"}[found.clock]
    notes = [
        f"Ratios of candidate to baseline within a round, on the {clock}. Noise: the deviation of rounds around the "
        "median of their launch, by the median absolute deviation. Scatter: the standard deviation of those medians.",
        f"Detectable: called {100 * POWER:.0f} % of the time in a gate of these {len(survey.scatter)} cells, if this "
        "one alone is slower; launches for: as many as that takes. Both are simulated from normal launches and rounds "
        "with this noise and scatter.",
    ]
    if found.gate:
        notes.append(alarm_sentence(found))
        return tuple(notes)
    return (*notes, *found.caveats)


def _gate_notes(found: Replay) -> tuple[str, ...]:
    return (
        f"{found.suites} suites of {len(found.cells)} cells resampled from {found.recorded} recorded launches. In each "
        "one cell's candidate times are multiplied, which is not a slowdown injected into the code; at 0 none is and "
        f"every cell counts. PASS is right below the tolerance of {100 * found.rule.tolerance:.3g} % and wrong from "
        "there on. Brackets are exact 95 % intervals, as if the suites were independent.",
        *found.caveats,
    )


def _rule_notes(found: Replay) -> tuple[str, ...]:
    one = found.sitting == 1
    seen = "one launch" if one else f"{found.sitting} launches"
    return (
        f"Alarm: says slower where nothing is, by comparison and by suite of {len(found.cells)} cells. Resampled from "
        f"{found.recorded} launches of one recording. The peers' rules are approximations written from what the tools "
        "document, not runs of the tools, on the same undisturbed blocks as ours.",
        f"A peer's rule sees the blocks of {seen} a side, the gate up to {found.launches}. Interleaved: both sides "
        f"measured in alternation. Sequential: the baseline of {seen}, the candidate of {'a' if one else ''} later "
        f"{'one' if one else 'ones'}, as those tools are used. Calls: the share of cells called slower when "
        "interleaved times are multiplied (not injected).",
    )


def _remark(item: Scatter) -> Value:
    aside = f"{item.set_aside} rounds set aside" if item.set_aside and item.rounds else ""
    words = "; ".join(filter(None, [item.reason, aside]))
    return Value(words, words) if words else NOTHING


def _alarms(item: RuleOutcome | None) -> tuple[Value, Value]:
    return (NOTHING, NOTHING) if item is None else (_share(item.alarm), _share(item.suite_alarm))


def _share(share: Estimate | None, *, bounds: bool = False) -> Value:
    if share is None:
        return NOTHING
    text = f"{100 * share.point:.1f}"
    if bounds and share.low is not None and share.high is not None:
        text += f" [{100 * share.low:.1f}, {100 * share.high:.1f}]"
    return Value(text, share)


def _percent(value: float | None) -> Value:
    return NOTHING if value is None else Value(units.digits(100 * value, 2), value)


def _percent_answer(answer: Answer) -> Value:
    return _bound(answer, 100) if answer.value is None else _percent(answer.value)


def _count_answer(answer: Answer) -> Value:
    return _bound(answer, 1) if answer.value is None else Value(f"{answer.value:.0f}", int(answer.value))


def _bound(answer: Answer, scale: int) -> Value:
    return NOTHING if answer.above is None else Value(f"> {scale * answer.above:.0f}", None)


def _cell_document(item: Scatter, survey: Survey) -> dict[str, Any]:
    return {
        "id": item.cell,
        "launches": item.launches,
        "rounds": item.rounds,
        "set_aside": item.set_aside,
        "noise_of_a_round": item.within,
        "scatter_of_launches": item.between,
        "centre": item.centre,
        "detectable": _answers(survey.detectable, "launches", "slowdown", item.cell),
        "needed": _answers(survey.needed, "slowdown", "launches", item.cell),
        "reason": item.reason,
    }


def _answers(
    by_key: Mapping[Any, Mapping[str, Answer]], key: str, value: str, cell: str | None = None
) -> list[dict[str, Any]]:
    found = []
    for at, answers in by_key.items():
        answer = middle(answers) if cell is None else answers[cell]
        found.append({key: at, value: answer.value, "reason": answer.reason})
    return found


def _bounds(share: Estimate) -> dict[str, float | None]:
    return {"point": share.point, "low": share.low, "high": share.high}
