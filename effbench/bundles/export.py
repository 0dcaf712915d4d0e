"""Write a bundle: export every cell in a worker process, then write the description of the files."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from effbench import runtimes
from effbench._version import __version__
from effbench.bundles import bundle
from effbench.bundles.bundle import Bundle, Model
from effbench.core.cost import Cost
from effbench.core.errors import EffbenchError, InvalidValue, StorageError
from effbench.core.inputs import without_empty_values
from effbench.core.plugins import BrokenPlugin
from effbench.core.study import Cell
from effbench.host import optional_packages
from effbench.host.worker_process import Worker, WorkerEvents, worker_environment
from effbench.runs.recorder import cell_description
from effbench.runs.runner import CostOf, Progress, Watch
from effbench.runtimes.model_file import ModelFileRuntime
from effbench.studies.plan import Plan

SILENCE_S = 1800.0
"""Seconds without an event after which an export counts as hung. Exporters may compute for long."""

_README = """\
A bundle of effbench {version}: {models} for {runtimes}, made {created} with torch {torch}.

On the machine that is to be measured (Python 3.10 or newer, no torch):

    python3 -m venv env && . env/bin/activate
    pip install -r {requirements}
    pip install --no-deps ./effbench-{version}-py3-none-any.whl
    effbench run-bundle . --quick         # a look; without --quick for a verdict

The wheel is effbench itself, which is on no package index. `pip wheel --no-deps .` in the folder of effbench's source
makes it, on any machine; copy it here. Or let pip build it from the repository that yours is from:
pip install --no-deps "effbench @ git+https://github.com/OWNER/effbench"
The run lies in results/runs/ then. Any machine can read it: effbench report, effbench diff, effbench export.
A version of a runtime that this machine cannot have may be changed in {requirements}; the run records what it used.
"""


def _is_exported(name: str) -> bool:
    try:
        return isinstance(runtimes.get(name), ModelFileRuntime)
    except BrokenPlugin:
        return False


def export_runtimes(names: Sequence[str]) -> list[ModelFileRuntime]:
    """The runtimes of these names.

    Raises UnknownName, InvalidValue for a runtime without model files, and MissingPackage if it cannot export here.
    """
    found = []
    for name in names:
        runtime = runtimes.get(name)
        if not isinstance(runtime, ModelFileRuntime):
            known = [other for other in runtimes.names() if _is_exported(other)]
            raise InvalidValue(f"{name} runs no model files, so there is nothing to bundle; use {', '.join(known)}")
        for module in (*runtime.modules, *runtime.export_modules):
            if not optional_packages.has(module):
                raise optional_packages.MissingPackage(
                    f"{module} is not installed; pip install 'effbench[{runtime.extra}]'"
                )
        found.append(runtime)
    return found


def write(
    plans: Sequence[Plan], directory: Path, *, cost: CostOf, command: str = "", watch: Watch = lambda progress: None
) -> Bundle:
    """Export the cells of these plans into a new folder. There is one plan per runtime; all are of the same study.

    A cell that cannot be exported stays in the bundle with the reason. If the export fails, no folder is left behind.
    Raises StorageError, EffbenchError if no cell could be exported, and what `export_runtimes` raises.
    """
    adapters = export_runtimes([plan.runtime for plan in plans])
    _require_free(directory)
    made: Path | None = None
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=".effbench-bundle-", dir=directory.parent))
        made.chmod(0o755)
        models: list[Model] = []
        watch(Progress(0.0, "counting costs"))
        costs = {cell.id: _count_cost(cost, cell) for cell in plans[0].cells}
        for number, plan in enumerate(plans):
            share = (number / len(plans), 1 / len(plans))
            models += _export_cells(
                plan, costs, made, lambda done, what, s=share: watch(Progress(s[0] + s[1] * done, what))
            )
        if all(model.skipped is not None for model in models):
            first = models[0]
            raise EffbenchError(f"nothing could be exported; {first.cell.id} for {first.cell.runtime}: {first.skipped}")
        _write_description(plans[0], models, made, adapters, command)
        made.replace(directory)
    except OSError as error:
        raise StorageError(f"cannot write {directory}: {error.strerror or error}; choose another --out") from error
    finally:
        if made is not None and made.exists():
            shutil.rmtree(made, ignore_errors=True)
    return bundle.load(directory)


def _require_free(directory: Path) -> None:
    if directory.is_symlink() or (directory.exists() and not (directory.is_dir() and not any(directory.iterdir()))):
        raise StorageError(f"{directory} is there already; name a folder of the bundle's own with --out")


def _count_cost(cost: CostOf, cell: Any) -> Cost | str:
    try:
        return cost(cell)
    except EffbenchError as error:
        return str(error)


def _export_cells(plan: Plan, costs: Mapping[str, Cost | str], folder: Path, watch: Any) -> list[Model]:
    """Export every cell of this plan under `folder`. If a worker dies, the cell that it was at is skipped."""
    places = {cell.id: folder.resolve() / f"{number:03}-{plan.runtime}" for number, cell in enumerate(plan.cells)}
    skipped = {cell: reason for cell, reason in costs.items() if isinstance(reason, str)}
    facts: dict[str, dict[str, Any]] = {cell.id: {} for cell in plan.cells}
    done: set[str] = set()
    while left := [cell for cell in plan.cells if cell.id not in done and cell.id not in skipped]:
        working = ""
        job = _job(plan, left, places)
        with Worker(job, worker_environment(plan.threads, plan.allocator), SILENCE_S) as worker:
            events = WorkerEvents(worker)
            for event in events:
                kind = event["event"]
                if kind in ("working", "prepared") and working and working not in skipped:
                    done.add(working)
                if kind == "working":
                    working = event["cell"]
                    watch(len(done | set(skipped)) / len(plan.cells), f"{working} for {plan.runtime}")
                elif kind == "skip":
                    skipped[event["cell"]] = event["reason"]
                elif kind == "probe":
                    facts[event["cell"]] |= event["values"]
                elif kind == "error":
                    raise EffbenchError(event["message"])
                elif kind == "prepared":
                    break
            else:
                if events.failure and not working:
                    raise EffbenchError(f"the exporting process could not start: {events.failure}")
                skipped[working or left[0].id] = events.failure or "it ended the process without an error"
    return [
        _model_of(cell, costs[cell.id], places[cell.id], facts[cell.id], skipped.get(cell.id)) for cell in plan.cells
    ]


def _job(plan: Plan, cells: Sequence[Cell], places: Mapping[str, Path]) -> dict[str, Any]:
    """Return the job of a worker that exports these cells, each into its folder."""
    return {
        "launch": 0,
        "seed": plan.seed,
        "device": plan.device,
        "device_options": dict(plan.device_options),
        "runtimes": [plan.runtime],
        "mode": "infer",
        "sampling": dataclasses.asdict(plan.sampling),
        # Wait after the preparation, which exports the models. No order follows.
        "obeys": True,
        "cells": [
            {**cell_description(cell, str(places[cell.id])), "keep": True, "calls": None, "cost": {}} for cell in cells
        ],
    }


def _model_of(cell: Cell, counted: Cost | str, place: Path, facts: Mapping[str, Any], skipped: str | None) -> Model:
    """Describe the model that was exported into the folder `place`. Removes the folder of a skipped cell."""
    cost = None if isinstance(counted, str) else counted
    if skipped is not None:
        shutil.rmtree(place, ignore_errors=True)
        return Model(cell, cost, skipped=skipped)
    paths = [path for path in sorted(place.rglob("*")) if path.is_file()]
    files = {path.relative_to(place).as_posix(): bundle.sha256(path) for path in paths}
    return Model(cell, cost, place.name, files, facts)


def _write_description(
    plan: Plan, models: Sequence[Model], folder: Path, adapters: Sequence[ModelFileRuntime], command: str
) -> None:
    """Write the description of the bundle: bundle.json, requirements.txt and README.txt."""
    needed = dict.fromkeys(module for adapter in adapters for module in adapter.modules)
    exporting = dict.fromkeys(module for adapter in adapters for module in adapter.export_modules)
    versions = {name: _version(name) for name in ("torch", "numpy", *needed, *exporting)}
    created = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    # The cells are already selected, so the stored study has no defaults that would select again.
    study = dataclasses.replace(plan.experiment, defaults={}, runtime=",".join(adapter.name for adapter in adapters))
    text = {
        "bundle": bundle.SCHEMA,
        "versions": {"effbench": __version__, **versions},
        "created": created,
        "command": command,
        "seed": plan.seed,
        "experiment": dataclasses.asdict(study, dict_factory=without_empty_values),
        "cells": [dataclasses.asdict(model, dict_factory=without_empty_values) for model in models],
    }
    (folder / bundle.BUNDLE_FILE).write_text(json.dumps(text, indent=1, allow_nan=False), encoding="utf-8")
    lines = [
        "# Packages that the measuring machine needs. README.txt explains how to install effbench itself.",
        "filelock>=3.12",
        "msgspec>=0.18",
        "numpy",
        "typer>=0.12",
        "# For tables and verdicts on that machine. Optional: without it, the run is still measured and stored.",
        "scipy>=1.11",
        *(f"{name}=={str(versions[name]).partition('+')[0]}" for name in needed),
    ]
    (folder / bundle.REQUIREMENTS_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    count = sum(model.skipped is None for model in models)
    said = _README.format(
        version=__version__,
        models="1 model" if count == 1 else f"{count} models",
        runtimes=", ".join(adapter.name for adapter in adapters),
        created=created[:10],
        torch=versions["torch"],
        requirements=bundle.REQUIREMENTS_FILE,
    )
    (folder / "README.txt").write_text(said, encoding="utf-8")


def _version(module: str) -> str | None:
    try:
        return importlib.metadata.version(module)
    except importlib.metadata.PackageNotFoundError:
        return None
