"""What a replay found, as a Markdown table and as JSON."""

from __future__ import annotations

from typing import Any

from benchmarks.decision_rules.replay import ARRANGEMENTS, Replay
from benchmarks.decision_rules.rules import RULES
from benchmarks.peers.tables import percent, table
from effbench.core.estimate import Estimate

OURS = "effbench's gate"


def as_markdown(found: Replay) -> str:
    """One row a rule, ours first: alarms where nothing is slower, and the share of slowed cells that it calls."""
    if not found.ours.gate:
        return "\n".join(found.ours.caveats)
    none, *slower = found.ours.gate
    rows = [
        (OURS, "–", "–", *map(_point, (none.called, none.suite_called, *(item.called for item in slower))), "effbench")
    ]
    by_key = {(item.rule, item.arrangement): item for item in found.rules}
    for name, rule in RULES.items():
        told = [by_key.get((name, arrangement)) for arrangement in reversed(ARRANGEMENTS)]
        if any(told):
            alarms = [each for item in told for each in ((item.alarm, item.suite_alarm) if item else (None, None))]
            power = [told[-1].power.get(item.slowdown) if told[-1] else None for item in slower]
            rows.append((name, *map(_point, (*alarms, *power)), rule.about))
    head = ("rule", *(f"{each} alarm{of}" for each in reversed(ARRANGEMENTS) for of in ("", ", suite")))
    calls = [f"calls {100 * item.slowdown:.3g} %" for item in slower]
    return "\n\n".join((table((*head, *calls, "decides like"), rows), *_notes(found)))


def document(found: Replay) -> dict[str, Any]:
    """The JSON of `--json`. Shares are of 1 with exact 95 % intervals."""
    return {
        "clock": found.ours.clock,
        "suites": found.ours.suites,
        "launches": {"recorded": found.ours.recorded, "drawn": found.ours.launches, "sitting": found.sitting},
        "gate": [
            {
                "slowdown": item.slowdown,
                "regression": _bounds(item.called),
                "suite_regression": _bounds(item.suite_called),
            }
            for item in found.ours.gate
        ],
        "rules": [
            {
                "rule": item.rule,
                "decides_like": RULES[item.rule].about,
                "arrangement": item.arrangement,
                "alarm": _bounds(item.alarm),
                "suite_alarm": _bounds(item.suite_alarm),
                "power": [{"slowdown": slowdown, **_bounds(called)} for slowdown, called in item.power.items()],
            }
            for item in found.rules
        ],
        "caveats": list(found.ours.caveats),
    }


def _notes(found: Replay) -> tuple[str, ...]:
    one = found.sitting == 1
    seen = "one launch" if one else f"{found.sitting} launches"
    later = "a later one" if one else "later ones"
    return (
        f"Alarm: says slower where nothing is, by comparison and by suite of {len(found.ours.cells)} cells. Resampled "
        f"from {found.ours.recorded} launches of one recording. The other tools' rules are approximations written from "
        "what the tools document, not runs of the tools, on the same undisturbed blocks as ours.",
        f"Another tool's rule sees the blocks of {seen} a side, the gate up to {found.ours.launches}. Interleaved: "
        f"both sides measured interleaved. Sequential: the baseline of {seen}, the candidate of {later}, as those "
        "tools are used. Calls: the share of cells called slower when interleaved times are multiplied (not injected).",
        *found.ours.caveats,
    )


def _point(share: Estimate | None) -> str:
    return percent(None if share is None else share.point)


def _bounds(share: Estimate) -> dict[str, float | None]:
    return {"point": share.point, "low": share.low, "high": share.high}
