"""Sentences on what a run that stops by itself has decided: which network is faster, after how many launches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from effbench.analysis import decision, sequential
from effbench.analysis.cell_summary import CellSummary
from effbench.analysis.decision import Answer
from effbench.core import units
from effbench.core.run import Run
from effbench.report import text as report_text
from effbench.runs import launch_history
from effbench.timing.least_duration import format_seconds


def sentences(run: Run, cells: Sequence[CellSummary]) -> list[str]:
    """Return a sentence for each cell that was judged, and when the intervals hold; none for a run of fixed launches.

    Of a study, whose table has many rows, one sentence says how many are decided.
    """
    found = decision.decide(run)
    if found is None or not run.complete:
        return []
    launches = report_text.count_of_launches(found.after_launches)
    spent = f"after {launches} in {format_seconds(launch_history.total_used_s(run))}"
    names = _names(cells)
    if not found.answers:
        said = [f"Stopped {spent}: there is nothing to decide."]
    elif report_text.is_comparison(run):
        shared = f", at the confidence that {len(found.answers)} networks share" if len(found.answers) > 1 else ""
        said = [_sentence(run, item, names, spent, shared) for item in found.answers]
    else:
        undecided = [item for item in found.answers if item.verdict == "undecided"]
        decided = len(found.answers) - len(undecided)
        more = _more(run, undecided, "more") if undecided else ""
        said = [f"{decided} of {len(found.answers)} ratios are decided {spent}{more}."]
    if all(item.estimate is None or item.estimate.low is None for item in found.answers):
        return said
    looks = ", ".join(map(str, sequential.looks(run.sampling.launches)))
    return [*said, f"Intervals hold at 95 % whenever the run stops (looks after {looks} launches)."]


def _names(cells: Sequence[CellSummary]) -> dict[str, str]:
    """Return the name of each cell: that of its model, or its id where a model has several cells."""
    short = {cell.cell.id: report_text.model_name(cell) for cell in cells}
    return short if len(set(short.values())) == len(short) else {name: name for name in short}


def _sentence(run: Run, item: Answer, names: Mapping[str, str], spent: str, shared: str) -> str:
    name = names.get(item.cell, item.cell)
    other = "" if item.reference is None else names.get(item.reference, item.reference)
    found = "not measured" if item.estimate is None else _estimate(item)
    if item.verdict in ("faster", "slower"):
        return f"{name} is {item.verdict} than {other}: {found}, decided {spent}."
    if item.verdict == "same":
        share = f"{100 * sequential.TOLERANCE:g} %"
        return f"{name} and {other} take the same time to within ±{share}: {found}, decided {spent}."
    pair = f"{name} against {other}" if other else name
    if item.verdict == "precise":
        return f"{pair} is known to within ±{100 * run.sampling.precision:g} %: {found}, {spent}."
    doubt = f", since it is flagged ({item.flags})" if item.flags else ""
    return f"{pair}: undecided {spent}{doubt}, {found}{_more(run, [item], shared=shared)}."


def _estimate(item: Answer) -> str:
    assert item.estimate is not None
    if item.reference is not None:
        return f"×{item.estimate}"
    return f"{units.digits(1e3 * item.estimate.point)} ms {units.plus_minus(item.estimate)}".rstrip()


def _more(run: Run, undecided: Sequence[Answer], what: str = "it", shared: str = "") -> str:
    """Return what would decide them: a quiet machine, another sitting, more time, or more launches.

    `what` stands for them, and `shared` says that the width is not that of the table.
    """
    if all("contaminated" in item.flags for item in undecided):
        return "; stop other work on this machine and measure again"
    widths = {f"{100 * item.between:.2g}" for item in undecided if item.is_futile and item.between is not None}
    if widths and all(item.is_futile for item in undecided):
        widest = max(widths, key=float)
        return (
            f"; more launches in this sitting cannot decide {what}, since results differ by "
            f"{'up to ' if len(widths) > 1 else ''}±{widest} % between sittings{shared}; spread the launches with "
            "--spread 2h"
        )
    if run.stop is not None and run.stop.reason == "budget":
        return f"; ask for more time with --budget {2 * run.sampling.budget_s:.0f}s"
    launches = max(2 * run.sampling.launches, sequential.FIRST_LOOK)
    return f"; ask for more launches with --until {run.sampling.until} --launches {launches}"
