"""Turn the events of worker processes into records of a run file.

All state is also on disk, so a killed process loses nothing.
"""

from __future__ import annotations

import dataclasses
import datetime
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from effbench._version import __version__
from effbench.core import decoding
from effbench.core.cost import Cost
from effbench.core.errors import EffbenchError, NotComparable, Reason, error_from_reason
from effbench.core.run import Block, Conditions, Environment, Result, Run, Timing
from effbench.core.study import Cell
from effbench.host import facts
from effbench.host.emulation import is_emulated
from effbench.host.noise import Observation
from effbench.runs import run_file, schema, sitting_ledger
from effbench.runs.run_file import RunWriter
from effbench.studies.plan import Bundled, Plan
from effbench.user_code import file_hashes


@dataclass
class Recording:
    """The recording of one run in one folder. `stored` is its environment once the header is written.

    `can_resume` is False for one side of an A/B run, which cannot be resumed without the other.
    """

    plan: Plan
    writer: RunWriter
    scratch: Path
    command: str = ""
    stored: Environment | None = None
    costs: dict[str, Cost | None] = field(default_factory=dict)
    bounds: dict[str, Mapping[str, float]] = field(default_factory=dict)
    peaks: dict[str, Any] = field(default_factory=dict)
    """Facts about the device's peaks, for the environment."""
    skipped: dict[str, str] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    """Source files of the models with their SHA-256 (`user_code.file_hashes`). Later launches must match."""
    measured_metrics: set[tuple[str, str]] = field(default_factory=set)
    """Pairs (cell, secondary metric) that are already measured."""
    has_scatter: bool = False
    """Whether the scatter between sittings is recorded."""
    can_resume: bool = True
    matched: bool = False
    """Whether this machine was compared with the stored environment."""
    changed: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    """Facts that changed since the run began and are not written yet: name to (then, now)."""

    def job(self, number: int, first_round: int, budget_s: float, **stopwatch: float) -> dict[str, Any]:
        """Return the job of launch `number`, for all cells that are not skipped.

        `budget_s` is its part of the budget, process start included. `stopwatch` holds further inputs of
        `timing.launch_budget.Stopwatch`.
        """
        plan = self.plan
        return {
            "launch": number,
            "seed": plan.seed,
            "first_round": first_round,
            "budget_s": budget_s,
            **stopwatch,
            "clock": plan.clock,
            "device": plan.device,
            # A fake device draws different noise in every launch, as a real one would.
            "device_options": dict(plan.device_options) | ({"seed": number} if plan.device == "fake" else {}),
            "runtimes": list(plan.runtimes),
            "mode": plan.cells[0].mode,
            "sampling": dataclasses.asdict(plan.sampling),
            "breakdown": bool(plan.experiment.breakdown),
            "yardstick": plan.device != "fake",
            "cells": [self.cell_spec(cell) for cell in plan.cells if cell.id not in self.skipped],
        }

    def cell_spec(self, cell: Cell) -> dict[str, Any]:
        """Return the part of a job that describes one cell."""
        reference, cost = self.plan.experiment.reference_of(cell.case), self.costs[cell.id]
        # A runtime exports its model files into this folder once; later launches reuse them.
        folder = self._models.get(cell.id) or str(self.scratch / str(self.plan.cells.index(cell)))
        return {
            **cell_description(cell, folder),
            "bundled": cell.id in self._models,
            "calls": self.calls.get(cell.id),
            "reference": None if reference is None else reference.id,
            "cost": {}
            if cost is None
            else {name: getattr(cost, name) for name in ("params", "madds", "memory_access_bytes")},
        }

    @property
    def _models(self) -> Mapping[str, str]:
        return self.plan.bundled.models if self.plan.bundled else {}

    def record_environment(self, ready: Mapping[str, Any]) -> None:
        """Record the environment that the first event of a worker holds, or compare it with the recorded one.

        The first worker of a run makes the header. The first one after a resume must match it, else NotComparable is
        raised. Raises StorageError.
        """
        plan = self.plan
        found = facts.collect(
            ready["facts"],
            plan.runtime,
            threads=plan.threads,
            allocator=plan.allocator,
            runtime_facts=ready["runtime_facts"],
        )
        extra = {"run.device_options": dict(plan.device_options), **_non_default_facts(plan)}
        found = replace(found, facts={**found.facts, **self.peaks, **extra})
        if self.stored is None:
            run = Run(
                experiment=plan.experiment,
                environment=found,
                sampling=plan.sampling,
                results=(),
                clock=plan.clock,
                seed=plan.seed,
                created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                command=self.command,
            )
            self.writer.header(run, __version__)
            for cell in plan.cells:
                skipped, bounds = self.skipped.get(cell.id), self.bounds.get(cell.id)
                self.writer.cell(Result(cell, self.costs[cell.id], skipped=skipped, bounds_s=bounds))
            self.stored = found
        elif not self.matched:
            facts.require_comparable(self.stored, found)
            self.changed = {item.field: (item.baseline, item.candidate) for item in facts.changes(self.stored, found)}
        self.matched = True

    def begin_launch(self, number: int, slot: int, observed: Observation) -> None:
        """Record the start of a launch, its conditions, and what changed since the run was interrupted."""
        changed = {name: list(pair) for name, pair in self.changed.items()}
        self.changed = {}
        self.writer.append(
            "launch",
            launch=number,
            slot=slot,
            start=observed.start,
            conditions=known_conditions(observed.at_start),
            **({"changed": changed} if changed else {}),
        )

    def end_launch(self, number: int, observed: Observation, at_s: float) -> Conditions:
        """Record the end of a launch's process and the conditions since its start, however it ended. Returns them."""
        end, conditions = observed.end()
        self.writer.append("exit", launch=number, at_s=round(at_s, 3), end=end, conditions=known_conditions(conditions))
        return conditions

    def record_event(self, launch: int, event: Mapping[str, Any]) -> None:
        """Record one event of a worker. Raises StorageError, and EffbenchError if the event is a fatal error."""
        kind, values = event["event"], {key: value for key, value in event.items() if key != "event"}
        if kind == "ready":
            self.record_environment(values)
        elif kind == "block":
            timing = decoding.decode(values["timing"], Timing)
            self._require_calls(values["cell"], timing.calls)
            place = (launch, values["round"], values["position"], values["cell"])
            self.writer.block(Block(*place, _without_negative_times(timing), values.get("at_s")))
        elif kind == "skip":
            self.skip(values["cell"], values["reason"])
        elif kind == "calls":
            self._require_calls(values["cell"], values["calls"])
            if values["cell"] not in self.calls:
                self.calls[values["cell"]] = values["calls"]
                self.writer.append("calls", cell=values["cell"], calls=values["calls"])
        elif kind == "files":
            try:
                file_hashes.require_same(self.files, values["files"])
            except NotComparable as error:
                raise NotComparable(f"{error}{self.resume_advice()}") from None
            new = {name: digest for name, digest in values["files"].items() if name not in self.files}
            if new:
                self.files |= new
                self.writer.append("files", launch=launch, files=new)
        elif kind == "error":
            raise error_from_reason(Reason(values["message"] + self.resume_advice(), values.get("cause", "")))
        else:
            self.writer.append(kind, launch=launch, **values)

    def _require_calls(self, cell: str, calls: int) -> None:
        """Raise EffbenchError unless `calls` is the fixed number of calls per block of this cell.

        Blocks with another number of calls would be biased differently.
        """
        frozen = self.calls.get(cell, calls)
        if calls != frozen:
            raise EffbenchError(
                f"a block of {cell} came back with {calls} calls, and every other has {frozen}; this is a fault of "
                f"effbench or of its environment, please report it{self.resume_advice()}"
            )

    def skip(self, cell: str, reason: str) -> None:
        """Leave a cell out of all further launches, and record the reason."""
        self.skipped[cell] = reason
        self.writer.append("skip", cell=cell, reason=reason)

    def record_scatter(self) -> None:
        """Record once how far this machine's results differ between sittings, after the first launch of a run."""
        if self.has_scatter or self.plan.device == "fake" or self.stored is None or is_emulated(self.stored):
            return
        scatter = sitting_ledger.look_up(run_file.load(self.writer.path))
        self.writer.append("between_sittings", **dataclasses.asdict(scatter))
        self.has_scatter = True

    def complete(self) -> Run:
        """Record that the run is complete, and add its sittings to the machine's ledger. Returns the run."""
        self.writer.append("complete")
        run = run_file.load(self.writer.path)
        if self.has_scatter:
            sitting_ledger.add(run)
        return run

    def resume_advice(self) -> str:
        """Return the end of an error message, with the command to resume; "" if nothing is measured yet."""
        if self.stored is None or not self.can_resume:
            return ""
        return f"; what was measured is kept, go on with: {resume_command(self.writer.directory, self.plan.bundled)}"


def cell_description(cell: Cell, folder: str) -> dict[str, Any]:
    """Describe a cell for the worker that prepares it. Its runtime keeps model files in `folder`."""
    return {
        "id": cell.id,
        "model": cell.case.model,
        "arguments": dict(cell.case.arguments),
        "inputs": [dataclasses.asdict(item) for item in cell.case.all_inputs],
        "dtype": cell.case.dtype,
        "batch": cell.batch,
        "runtime": cell.runtime,
        "threads": cell.threads,
        "memory_format": cell.memory_format,
        "mode": cell.mode,
        "folder": folder,
    }


def resume_command(directory: Path, bundled: Bundled | None = None) -> str:
    """Return the command that finishes the run in this folder. A machine of a fleet finishes its run there."""
    if run_file.is_fleet_copy(directory):
        return shlex.join(["effbench", "fleet", "run", "--resume", str(directory.parent)])
    first = ["run"] if bundled is None else ["run-bundle", bundled.folder]
    return shlex.join(["effbench", *first, "--resume", str(directory)])


def require_same_bundle(run: Run, directory: Path, digest: str | None) -> None:
    """Raise EffbenchError unless the run was measured from the bundle of this digest; None stands for no bundle."""
    known = run.environment.facts.get("run.bundle")
    if known == digest:
        return
    if known is None:
        command = resume_command(directory)
        raise EffbenchError(f"the run in {directory} was not measured from a bundle; go on with: {command}")
    other, its_own = "a bundle" if digest is None else "another bundle", Bundled("BUNDLE", "")
    raise EffbenchError(
        f"the run in {directory} was measured from {other}; go on with: {resume_command(directory, its_own)}, "
        "with the bundle it was begun with"
    )


def known_conditions(conditions: Conditions) -> dict[str, Any]:
    """Return the conditions that could be read, by name."""
    return {name: value for name, value in dataclasses.asdict(conditions).items() if value is not None}


def _non_default_facts(plan: Plan) -> dict[str, Any]:
    """Return the facts that are recorded only if they differ from their defaults, since older runs do not have them."""
    extra = {
        "run.memory_format": (plan.cells[0].memory_format, "contiguous"),
        "run.mode": (plan.cells[0].mode, "infer"),
        schema.METRICS_FACT: (" ".join(plan.metrics), ""),
        "run.bundle": (plan.bundled.digest if plan.bundled else "", ""),
    }
    return {name: value for name, (value, usual) in extra.items() if value != usual}


def _without_negative_times(timing: Timing) -> Timing:
    """Drop negative times of a block, whose clock went backwards, and flag the block."""
    wall, cpu, device, process = timing.wall_ns, timing.cpu_ns, timing.device_ns, timing.process_ns
    if min(wall, cpu or 0, device or 0, process or 0) >= 0:
        return timing
    return replace(
        timing,
        wall_ns=max(wall, 0),
        cpu_ns=None if cpu is None or cpu < 0 else cpu,
        device_ns=None if device is None or device < 0 else device,
        process_ns=None if process is None or process < 0 else process,
        flags=(*timing.flags, "clock went backwards"),
    )
