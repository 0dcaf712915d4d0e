"""The instructions gate: compare the instructions executed by another revision and by the working tree.

Both sides are counted in fresh processes. A count does not depend on the load of the machine, so counts are compared
without a statistical test. Effects of caches, memory bandwidth and waiting do not show in a count.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from effbench.core import units
from effbench.core.cost import Cost
from effbench.core.errors import CannotStart, EffbenchError, ForeignCode, InvalidValue, Reason
from effbench.core.run import Metric
from effbench.core.study import Cell
from effbench.gates import ab_gate, budgets
from effbench.gates.ab_findings import verdict_without_times
from effbench.gates.ab_gate import Sides
from effbench.gates.ab_pairs import SIDES
from effbench.gates.baseline import name_of
from effbench.gates.config import Config
from effbench.gates.result import CountCheck, Decision, Finding
from effbench.host import temporary_folders
from effbench.host.worker_process import worker_environment
from effbench.metrics import instructions
from effbench.runs.recorder import cell_description
from effbench.runs.runner import Progress, Watch
from effbench.studies.plan import Plan

GATE = "instructions"


def check(config: Config, name: str, *, python: Path | None = None, watch: Watch) -> Decision:
    """Compare the instructions of the working tree with those of the git revision `name`.

    Raises what `ab_gate.prepare_sides` raises, and InvalidValue for a device without instruction counts.
    """
    begun, device = time.monotonic(), config.options().device
    if device.startswith("cuda"):
        raise InvalidValue(f"{instructions.why_unavailable(device)}")
    with ab_gate.prepare_sides(config, name, python) as (plan, sides):
        why = None if device == "fake" else instructions.why_unavailable(device)
        if why is not None:
            found = [Finding(GATE, name_of(cell.case), "ENVIRONMENT", why) for cell in plan.cells]
            return Decision(tuple(found), *sides.names, seconds=time.monotonic() - begun)
        if expected := len(SIDES) * instructions.expected_s(device, len(plan.cells)):
            watch(Progress(0.0, f"counting instructions, which takes about {expected / 60:.0f} min of CPU"))
        costs = [_costs(plan, sides, side) for side in range(len(SIDES))]
        try:
            counts = [_count(plan, sides, side, costs[side], watch) for side in range(len(SIDES))]
        except CannotStart as error:
            found = [Finding(GATE, name_of(cell.case), "ENVIRONMENT", str(error)) for cell in plan.cells]
            return Decision(tuple(found), *sides.names, seconds=time.monotonic() - begun)
    findings = []
    for cell in plan.cells:
        before, after = (side[cell.id] for side in counts)
        tolerance = config.tolerance_of(name_of(cell.case))
        unlike = _differing_counts(costs[0][cell.id], costs[1][cell.id], config.same_costs)
        findings.append(judge(name_of(cell.case), before, after, tolerance, unlike))
    methods = [str(metric.values.get("method_version", "")) for side in counts for metric in side.values()]
    watch(Progress(1.0, "done"))
    return Decision(
        tuple(findings),
        *sides.names,
        notes=(*sides.notes, *ab_gate.note_on_shared_code(config, python)),
        facts={"counted by": ", ".join(dict.fromkeys(filter(None, methods)))} if any(methods) else {},
        seconds=time.monotonic() - begun,
    )


def judge(cell: str, before: Metric, after: Metric, tolerance: float, costs: tuple[CountCheck, ...] = ()) -> Finding:
    """Compare the instruction counts of one cell. `costs` are its other counts that differ or must be equal.

    Each side was counted twice. The verdict is REGRESSION if every candidate count exceeds every baseline count by more
    than the tolerance, PASS if none does, and INCONCLUSIVE otherwise.
    """
    if before.missing or after.missing:
        return Finding(
            GATE, cell, *verdict_without_times(before.missing, after.missing), tolerance=tolerance, costs=costs
        )
    was, now = (int(metric.values["instructions_per_call"]) for metric in (before, after))
    apart = [float(metric.values["repeatability"]) for metric in (before, after)]
    ratio, room = now / was, sum(apart) / 2
    shown = (CountCheck("instructions", now, was), *costs)
    reason = f"×{ratio:.4f} instructions: {now:,} against {was:,}"
    if broken := [item.name for item in costs if not item.is_met]:
        return Finding(GATE, cell, "REGRESSION", f"{', '.join(broken)} must be equal", tolerance=tolerance, costs=shown)
    if ratio - room > 1 + tolerance:
        return Finding(GATE, cell, "REGRESSION", reason, tolerance=tolerance, costs=shown)
    if ratio + room > 1 + tolerance:
        reason += (
            f"; two counts of the same code differ by up to {units.rounded(100 * max(apart))} %, raise the tolerance"
        )
        return Finding(GATE, cell, "INCONCLUSIVE", reason, tolerance=tolerance, costs=shown)
    return Finding(GATE, cell, "PASS", reason, tolerance=tolerance, costs=shown)


def _costs(plan: Plan, sides: Sides, side: int) -> dict[str, Cost | str]:
    """The cost of each cell on this side, or the reason why it does not run there."""
    found: dict[str, Cost | str] = {}
    for cell in plan.cells:
        try:
            found[cell.id] = sides.costs[side](cell)
        except ForeignCode:
            raise
        except EffbenchError as error:
            found[cell.id] = Reason.of(error)
    unable = next((why for why in found.values() if isinstance(why, Reason) and why.cause == CannotStart.cause), None)
    return found if unable is None else dict.fromkeys(found, unable)


def _count(plan: Plan, sides: Sides, side: int, costs: Mapping[str, Cost | str], watch: Watch) -> dict[str, Metric]:
    """Count the instructions of each cell on this side."""
    broken = {cell: why for cell, why in costs.items() if isinstance(why, str)}
    able = [cell for cell in plan.cells if cell.id not in broken]
    job = {
        "seed": plan.seed,
        "device": plan.device,
        "device_options": dict(plan.device_options),
        "mode": "infer",
    }

    def tell(cell: str) -> None:
        place = [item.id for item in able].index(cell)
        watch(Progress((side + place / len(able)) / len(SIDES), f"counting {cell} of the {SIDES[side]}"))

    with temporary_folders.folder() as folder:
        orders = [_order(cell, costs[cell.id], folder / str(place)) for place, cell in enumerate(able)]
        variables = worker_environment(1, plan.allocator)
        counted = instructions.measure_cells(job, orders, variables, plan.sampling.silence_s, sides.sites[side], tell)
    return counted | {cell: Metric(GATE, missing=why) for cell, why in broken.items()}


def _order(cell: Cell, cost: Cost | str, folder: Path) -> dict[str, Any]:
    known = {} if isinstance(cost, str) else {"madds": cost.madds, "memory_access_bytes": cost.memory_access_bytes}
    return {**cell_description(cell, str(folder)), "cost": known}


def _differing_counts(before: Cost | str, after: Cost | str, must_be_equal: bool) -> tuple[CountCheck, ...]:
    if isinstance(before, str) or isinstance(after, str):
        return ()
    return budgets.differing_counts(after, before, rule=must_be_equal)
