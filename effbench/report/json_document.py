"""Build the JSON documents of ``--json``. Scripts and CI rely on their keys."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from effbench import report
from effbench.analysis import decision, saturation, sequential, time_shares
from effbench.analysis.cell_summary import CellSummary
from effbench.analysis.rank_agreement import Agreement
from effbench.analysis.saturation import Saturation
from effbench.analysis.time_shares import Split
from effbench.core.estimate import Comparison, Estimate, PairEvidence, Verdict
from effbench.core.run import Run
from effbench.gates.result import Decision, Finding
from effbench.host.emulation import is_emulated
from effbench.report.cell_row import cell_row
from effbench.report.tables import metric_columns
from effbench.runs import launch_history, schedule


def run_document(
    run: Run,
    cells: Sequence[CellSummary],
    verdicts: Sequence[Verdict],
    agreed: Sequence[Agreement] | None = None,
) -> dict[str, Any]:
    """Keys: run_dir, study, environment, clock, launches, remarks, cells, verdicts. Times in seconds, memory access in
    elements; missing is null. `agreed` are the run's `report.agreements`, where they are known already.
    """
    return {
        "run_dir": None if run.path is None else str(Path(run.path).parent),
        "study": run.experiment.name,
        "claim": run.experiment.claim,
        "complete": run.complete,
        "launches_done": len(schedule.finished_slots(run)),
        "launches_planned": run.sampling.launches,
        "next_launch_at": schedule.next_launch_at(run),
        "disturbance": run.disturbance or None,
        "clock": run.clock,
        "environment": dataclasses.asdict(run.environment),
        "sampling": dataclasses.asdict(run.sampling),
        "launches": launch_history.describe_launches(run),
        "used_s": None if is_emulated(run.environment) else round(launch_history.total_used_s(run), 3),
        "remarks": list(launch_history.remarks(run)),
        "between_sittings": None if run.between_sittings is None else dataclasses.asdict(run.between_sittings),
        "cells": [cell_document(cell) for cell in cells],
        "verdicts": [verdict_document(verdict) for verdict in verdicts],
        "decision": run_decision_document(run),
        "ranking": _ranking(report.agreements(run, cells) if agreed is None else agreed),
        "breakdown": [breakdown_document(item) for item in time_shares.split(run, depthwise=True)],
        "absent": dict(run.experiment.absent),
        "saturation": [saturation_document(item) for item in saturation.saturations(run, cells)],
    }


def cell_document(cell: CellSummary) -> dict[str, Any]:
    """One cell: its row, and what takes more than a plain value.

    A key that is also a column of `Results.to_frame` means the same. A quantity with an interval is an object with the
    estimate and its two ends.
    """
    return {
        **dataclasses.asdict(cell_row(cell)),
        "labels": dict(cell.cell.case.labels),
        "input_shape": list(cell.cell.case.input_shape),
        **({"inputs": [str(item) for item in cell.cell.case.inputs]} if cell.cell.case.inputs else {}),
        **({} if cell.cost is None else cell.cost.to_dict()),
        "latency_s": _time(cell.latency),
        "busy_s": _time(cell.busy),
        "ratio": _ratio(cell.ratio),
        "ratio_wall": _ratio(cell.ratio_wall),
        "speedup_over_eager": _ratio(cell.speedup),
        "speedup_over_eager_wall": _ratio(cell.speedup_wall),
        "prepared": dict(cell.prepared),
        "paper": {
            "speed": cell.paper_speed,
            "unit": cell.paper_unit,
            "ratio": cell.paper_ratio,
            "madds_million": None if cell.full_model is None else cell.full_model.complexity,
            "top1_error": None if cell.full_model is None else cell.full_model.top1_error,
        },
        "bounds_s": None if cell.bounds_s is None else dict(cell.bounds_s),
        "over_bounds": None if cell.bounds_s is None else {level: cell.over_bound(level) for level in cell.bounds_s},
        "flags": list(cell.flags),
        "notes": list(cell.notes),
        "disturbed": dict(cell.disturbed),
        **metric_columns.document(cell),
    }


def run_decision_document(run: Run) -> dict[str, Any] | None:
    """What a run that stops by itself has decided; None for a run of a fixed number of launches."""
    found = decision.decide(run)
    if found is None:
        return None
    return {
        "until": found.until,
        "decided": run.complete and found.is_decided,
        "after_launches": found.after_launches,
        "looks": list(sequential.looks(run.sampling.launches)),
        "seconds": round(launch_history.total_used_s(run), 3),
        "stopped": run.stop.reason if run.stop is not None else "launches" if run.complete else None,
        "answers": [
            {
                "cell": item.cell,
                "reference": item.reference,
                "verdict": item.verdict if run.complete else "undecided",
                "ratio": _ratio(item.estimate if item.reference is not None else None),
                "flags": item.flags or None,
            }
            for item in found.answers
        ],
    }


def breakdown_document(item: Split) -> dict[str, Any]:
    """One cell's latency in parts, depthwise convolutions apart from the others, and every operator it called."""
    return {
        "cell": item.cell,
        "latency_s": _ratio(item.latency_s),
        "overhead": _ratio(item.overhead),
        "shares": {name: _ratio(share) for name, share in item.shares.items()},
        "unattributed": _ratio(item.unattributed),
        "between_operators": _ratio(item.between),
        "paper": None if item.paper is None else {"platform": item.platform, "shares": dict(item.paper)},
        "operators": [
            {
                "operator": operator.called,
                "kind": operator.kind,
                "part": time_shares.part_of(operator.called, operator.kind),
                "calls": operator.times,
                "seconds": operator.seconds,
                "share": share,
            }
            for operator, share in item.operators
        ],
        "missing": item.missing,
    }


def saturation_document(item: Saturation) -> dict[str, Any]:
    """One network of a batch sweep; `losses` are times per image over that of the fastest batch."""
    return {
        "group": dict(item.group),
        "verdict": item.verdict,
        "batch": item.batch,
        "fastest_batch": item.best,
        "losses": {str(batch): _ratio(loss) for batch, loss in item.losses.items()},
        "reason": item.reason,
    }


def verdict_document(verdict: Verdict) -> dict[str, Any]:
    """One claim in one group; `scale` repeats the group's scale, since most studies have one."""
    return {
        "claim": verdict.claim,
        "text": verdict.text,
        "scale": verdict.group.get("scale"),
        "group": dict(verdict.group),
        "verdict": verdict.verdict,
        "reason": verdict.reason,
        "headline": _evidence(verdict.headline),
        "evidence": [_evidence(item) for item in verdict.evidence],
    }


def diff_document(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """``diff --json``: one object per cell."""
    return [
        {
            "cell": item.cell,
            "verdict": item.verdict,
            "change": _ratio(item.change),
            "change_wall": _ratio(item.wall),
            "reason": item.reason,
            "costs": {name: {"baseline": was, "candidate": now} for name, (was, now) in item.costs.items()},
        }
        for item in comparisons
    ]


def decision_document(decision: Decision, exit_code: int) -> dict[str, Any]:
    """``check --json``: the verdict, every finding, what was compared. `exit_code` is the one that is returned."""
    return {
        "verdict": decision.verdict,
        "exit_code": exit_code,
        "baseline": decision.baseline or None,
        "candidate": decision.candidate or None,
        "geomean": _ratio(decision.geomean),
        "cells": [_finding(item) for item in decision.findings],
        "notes": list(decision.notes),
        "environment": dict(decision.facts),
        "run_dir": decision.directory,
        "seconds": decision.seconds,
    }


def _finding(item: Finding) -> dict[str, Any]:
    return {
        "id": item.cell,
        "gate": item.gate,
        "verdict": item.verdict,
        "reason": item.reason,
        "ratio": _ratio(item.change),
        "ratio_wall": _ratio(item.wall),
        "clock": item.clock if item.change is not None else None,
        "tolerance": item.tolerance,
        "detectable": item.detectable,
        "launches": item.launches,
        "rounds": item.rounds,
        "set_aside": item.set_aside,
        "improved": item.is_improved,
        "costs": [{**dataclasses.asdict(count), "kept": count.is_met} for count in item.costs],
    }


def _ranking(agreed: Sequence[Agreement]) -> list[dict[str, Any]]:
    """Per metric, Kendall's tau with measured time."""
    return [
        {"metric": item.metric, "tau": _ratio(item.tau), "tau_within_group": _ratio(item.within)} for item in agreed
    ]


def _evidence(item: PairEvidence) -> dict[str, Any]:
    return {
        "slower": item.slower,
        "faster": item.faster,
        "ratio": _ratio(item.ratio),
        "ratio_wall": _ratio(item.wall),
        "paper_ratio": item.paper_ratio,
        "verdict": item.verdict,
        "reason": item.reason,
    }


def _time(estimate: Estimate | None) -> dict[str, float | None] | None:
    return None if estimate is None else {"median": estimate.point, "low": estimate.low, "high": estimate.high}


def _ratio(estimate: Estimate | None) -> dict[str, float | None] | None:
    return None if estimate is None else estimate.to_dict()
