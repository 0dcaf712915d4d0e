"""Tables and JSON of `effbench aa`: slowdowns that the gate detects on this machine, and its false-alarm rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from effbench.analysis import stats
from effbench.core import units
from effbench.core.estimate import Estimate
from effbench.gates.alarm_rate import AlarmRate, GateOutcome
from effbench.gates.calibration import Answer, Scatter, Survey, median_answer
from effbench.gates.decision_rule import POWER
from effbench.report.tables import values
from effbench.report.tables.table_model import NOTHING, Column, Table, Value


def tables(survey: Survey, found: AlarmRate) -> tuple[Table, ...]:
    """The table of the machine, then that of the gate by slowdown.

    The second is left out if no gate could be simulated.
    """
    return (machine_rows(survey, found), gate_rows(found)) if found.gate else (machine_rows(survey, found),)


def machine_rows(survey: Survey, found: AlarmRate) -> Table:
    """One row per cell: its noise and scatter, what a gate detects, the launches that a slowdown takes. Raw values are
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
            values.text(item.cell),
            values.whole(item.launches),
            values.whole(item.rounds),
            values.percent(item.within),
            values.percent(item.between),
            *(_percent_answer(answers[item.cell]) for answers in survey.detectable.values()),
            *(_count_answer(answers[item.cell]) for answers in survey.needed.values()),
            _remark(item),
        )
        for item in survey.scatter
    ]
    totals = (
        values.text("median cell"),
        *[NOTHING] * 4,
        *(_percent_answer(median_answer(answers)) for answers in survey.detectable.values()),
        *(_count_answer(median_answer(answers)) for answers in survey.needed.values()),
        NOTHING,
    )
    if all(row[-1] is NOTHING for row in rows):
        columns, rows, totals = columns[:-1], [row[:-1] for row in rows], totals[:-1]
    return Table("On this machine", columns, tuple(rows), _machine_notes(survey, found), totals if rows else None)


def gate_rows(found: AlarmRate) -> Table:
    """One row per slowdown: what the gate said of the slowed cell, and the launches it took."""
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


def document(survey: Survey, found: AlarmRate) -> dict[str, Any]:
    """``aa --json``. Shares are of 1 with exact 95 % intervals; missing is null, with its reason beside it."""
    return {
        "clock": found.clock,
        "rule": asdict(found.rule),
        "suites": found.suites,
        "launches": {"recorded": found.recorded, "drawn": found.launches},
        "cells": [_cell_document(item, survey) for item in survey.scatter],
        "median_cell": {
            "detectable": _answers(survey.detectable, "launches", "slowdown"),
            "needed": _answers(survey.needed, "slowdown", "launches"),
        },
        "gate": [
            {
                "slowdown": item.slowdown,
                "regression": item.called.to_dict(),
                "inconclusive": item.undecided.to_dict(),
                "pass": item.passed.to_dict(),
                "suite_regression": item.suite_called.to_dict(),
                "suite_inconclusive": item.suite_undecided.to_dict(),
                "suite_pass": item.suite_passed.to_dict(),
                "launches": item.launches,
            }
            for item in found.gate
        ],
        "caveats": list(found.caveats),
    }


def alarm_sentence(found: AlarmRate) -> str:
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


def _machine_notes(survey: Survey, found: AlarmRate) -> tuple[str, ...]:
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


def _gate_notes(found: AlarmRate) -> tuple[str, ...]:
    return (
        f"{found.suites} suites of {len(found.cells)} cells resampled from {found.recorded} recorded launches. In each "
        "one cell's candidate times are multiplied, which is not a slowdown injected into the code; at 0 none is and "
        f"every cell counts. PASS is right below the tolerance of {100 * found.rule.tolerance:.3g} % and wrong from "
        "there on. Brackets are exact 95 % intervals, as if the suites were independent.",
        *found.caveats,
    )


def _remark(item: Scatter) -> Value:
    aside = f"{item.set_aside} rounds set aside" if item.set_aside and item.rounds else ""
    return values.text("; ".join(filter(None, [item.reason, aside])))


def _share(share: Estimate | None, *, bounds: bool = False) -> Value:
    if share is None:
        return NOTHING
    text = f"{100 * share.point:.1f}"
    if bounds and share.low is not None and share.high is not None:
        text += f" [{100 * share.low:.1f}, {100 * share.high:.1f}]"
    return Value(text, share)


def _percent_answer(answer: Answer) -> Value:
    return _bound(answer, 100) if answer.value is None else values.percent(answer.value)


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
        answer = median_answer(answers) if cell is None else answers[cell]
        found.append({key: at, value: answer.value, "reason": answer.reason})
    return found
