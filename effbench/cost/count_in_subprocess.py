"""Count what named networks cost. User code is counted in a separate process, since it may crash, hang or exit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from effbench.core import decoding
from effbench.core.cost import Cost, Kernel, Traffic
from effbench.core.errors import (
    CannotStart,
    EffbenchError,
    ForeignCode,
    ModelError,
    NeedsValues,
    Reason,
    error_from_reason,
)
from effbench.core.inputs import Input
from effbench.core.study import Cell
from effbench.cost import helper_process
from effbench.cost.network_builds import BUILDS, Build, BuildFailed, build_network, build_on_meta
from effbench.host.worker_process import Site, WorkerEvents
from effbench.user_code import code_origins, failure_reasons, global_state
from effbench.zoo import libraries, load_model

if TYPE_CHECKING:
    from effbench.core.peaks import Peaks
    from effbench.cost import Kernel, Profile

IMPORT_SILENCE_S = 60.0
"""A model that takes longer than this to be built is taken for hung."""


@dataclass(frozen=True)
class Counted:
    """The part of a `Profile` that a run needs."""

    cost: Cost
    kernels: Mapping[str, tuple[Kernel, ...]]


def profile(
    model: str,
    input_shape: Any,
    *,
    batch: int | None = None,
    dtype: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    check: Callable[[], None] = lambda: None,
) -> Profile:
    """Count a named network on `input_shape` (`core.inputs.as_inputs`), or on its own declared inputs.

    A network of the zoo is built and counted in this process, since its code keeps no state. Others are built and
    counted in forked children (`cost.run_in_child_process`), a new one for each way to build them. Process-wide
    settings that a user's file changes on import are restored. `check` is called in the process that loaded the user's
    code, after the count; an exception that it raises takes precedence.

    Raises UnknownName, ModelError, InvalidValue.
    """
    with global_state.interop_threads_ignored() if ":" in model else nullcontext():
        return _profile(model, input_shape, batch, dtype, arguments, check)


def count_cell(cell: Cell) -> Profile | Counted:
    """Count the model of a cell on the cell's inputs, in this process if its code is known.

    Raises UnknownName, ModelError, InvalidValue.
    """
    case = cell.case
    dtype = "float32" if case.dtype == "int8" else case.dtype
    found = profile(case.model, case.all_inputs, batch=cell.batch, dtype=dtype, arguments=case.arguments)
    return as_int8(found) if case.dtype == "int8" else found


def _profile(
    model: str,
    input_shape: Any,
    batch: int | None,
    dtype: str | None,
    arguments: Mapping[str, Any] | None,
    check: Callable[[], None],
) -> Profile:
    from effbench import cost

    def count(build: Build) -> Profile | BuildFailed:
        try:
            network = build_network(build, model, arguments or {})
            if isinstance(network, BuildFailed):
                return network
            shape = (
                input_shape
                if input_shape is not None
                else libraries.declared_shape(network) or load_model.DEFAULT_SHAPE
            )
            by = cost.profile if ":" in model else cost.count
            return by(network, shape, batch=batch, dtype=dtype)
        finally:
            check()

    try:
        with global_state.settings_restored() if ":" in model else nullcontext():
            _import(model)
    finally:
        check()
    builds = list(BUILDS)
    while True:
        build = builds.pop(0)
        try:
            found = cost.run_in_child_process(partial(count, build)) if ":" in model else count(build)
        except NeedsValues:
            builds = builds[-1:]  # a forward pass that reads values needs weights with values
            if not builds:
                raise
        except SystemExit as stop:
            raise ModelError(
                f"{model} calls sys.exit({stop.code!r}); a network has to raise an error instead"
            ) from stop
        else:
            if not isinstance(found, BuildFailed):
                return found
            if not builds:
                raise found.error


_imported: set[str] = set()
"""Files and modules that this process has imported to read declared shapes."""


def _import(model: str) -> None:
    """Import what a model's code imports, before a fork, so that no child does it again. Raises ModelError."""
    place = load_model.split_arguments(model)[0].rpartition(":")[0]
    if place not in _imported:
        load_model.import_module_of(model)


def as_int8(found: Counted | Profile) -> Counted:
    """Convert a float32 cost to int8: the same number of elements, one byte each."""

    def in_bytes(moved: Traffic) -> Traffic:
        return replace(moved, weight_bytes=moved.weights, activation_bytes=moved.activations)

    levels = {level: in_bytes(moved) for level, moved in found.cost.memory_access_levels.items()}
    kernels = {
        level: tuple(replace(kernel, traffic=in_bytes(kernel.traffic)) for kernel in each)
        for level, each in found.kernels.items()
    }
    return Counted(replace(found.cost, memory_access_levels=levels), kernels)


def is_user_code(model: str) -> bool:
    """Return whether a model's code is neither from the zoo nor from torchvision or timm."""
    return ":" in model and not load_model.is_of_library(model)


def count_in_worker(cells: Sequence[Cell], silence_s: float, site: Site | None = None) -> dict[str, Counted | str]:
    """Count cells in a separate process. Returns each cell's cost and kernels, or the reason why it has none.

    If a cell ends the process, that is its reason, and a new process counts the other cells. `site` is where the code
    is, if not in the current tree. Raises CannotStart where no process can be started, and ForeignCode where a side of
    a comparison runs code that is not its own.
    """
    found: dict[str, Counted | str] = {}
    while left := [cell for cell in cells if cell.id not in found]:
        working = ""
        job = {"task": "count", "cells": [_order_of(cell) for cell in left]}
        with helper_process.worker_for(job, silence_s, site) as (worker, is_used):
            events = WorkerEvents(worker)
            for event in events:
                if event["event"] == "error":
                    raise error_from_reason(Reason(event["message"], event.get("cause", "")))
                working = event["cell"]
                if event["event"] == "cost":
                    found[working] = decoding.decode(event["counted"], Counted)
                elif event["event"] == "skip":
                    found[working] = Reason(event["reason"], event.get("cause", ""))
        if not working and is_used:
            continue  # a reused process may have ended between its jobs, so a new one is tried
        if not working:
            needs = "; its environment needs the same effbench, and torch" if site and site.python else ""
            raise CannotStart(f"the counting process could not start: {events.ending}{needs}")
        found.setdefault(working, events.ending)
    return found


def declared_shapes(models: Sequence[str], site: Site | None = None) -> dict[str, tuple[int, ...] | None]:
    """Read the declared input shapes of user models in a separate process. `site` is where their code lies.

    A model that fails there is left out. The reason is reported when it is counted, which the same process does within
    `helper_process.reuse_process`.
    """
    found: dict[str, tuple[int, ...] | None] = {}
    job = {"task": "shapes", "models": list(models)}
    with helper_process.worker_for(job, IMPORT_SILENCE_S, site, waits=True) as (worker, _):
        for event in WorkerEvents(worker):
            if event["event"] == helper_process.WAITS:
                helper_process.keep_for_next_job(worker, site)
                break
            if event["event"] == "shape":
                found[event["model"]] = None if event["shape"] is None else tuple(event["shape"])
    return found


def emit_declared_shapes(models: Sequence[str], emit: Callable[..., None]) -> None:
    """Report the declared input shapes, in the worker process of `declared_shapes`.

    Models are built in forked children, so that a count finds the process as it was.
    """
    from effbench import cost

    for model in models:
        with suppress(EffbenchError, *load_model.NETWORK_FAILURES):
            with global_state.settings_restored():
                _import(model)
            _imported.add(load_model.split_arguments(model)[0].rpartition(":")[0])
            emit("shape", model=model, shape=cost.run_in_child_process(partial(_declared_shape, model)))


def _declared_shape(model: str) -> tuple[int, ...] | None:
    return libraries.declared_shape(build_on_meta(model, {}))


def emit_counts(job: Mapping[str, Any], emit: Callable[..., None]) -> None:
    """Count in the worker process of `count_in_worker`, with one event as each count begins and one as it ends."""
    for order in job["cells"]:
        emit("working", cell=order["cell"])
        try:
            found = profile(
                order["model"],
                decoding.decode(order["inputs"], tuple[Input, ...]),
                batch=order["batch"],
                dtype=order["dtype"],
                arguments=order["arguments"],
                check=partial(code_origins.refuse_foreign, job),
            )
        except ForeignCode:
            raise
        except EffbenchError as error:
            reason = code_origins.explain(error, job)
            said = failure_reasons.out_of_memory_reason(error) or str(reason)
            emit("skip", cell=order["cell"], reason=said, cause=reason.cause)
        else:
            emit("cost", cell=order["cell"], counted=asdict(Counted(found.cost, found.kernels)))


def _order_of(cell: Cell) -> dict[str, Any]:
    case = cell.case
    return {
        "cell": cell.id,
        "model": case.model,
        "arguments": dict(case.arguments),
        "inputs": [asdict(item) for item in case.all_inputs],
        "batch": cell.batch,
        "dtype": "float32" if case.dtype == "int8" else case.dtype,
    }


class CellCosts:
    """Costs of the cells of a plan. All user models are counted together, on the first request for one of them."""

    def __init__(self, cells: Sequence[Cell], silence_s: float) -> None:
        self._cells, self._silence_s = cells, silence_s
        self._user_costs: dict[str, Counted | str] = {}
        self._kernels: dict[str, Mapping[str, Sequence[Kernel]]] = {}

    def cost(self, cell: Cell) -> Cost:
        """Return the cost of one forward pass of the cell's batch. Raises ModelError, InvalidValue."""
        found: Counted | Profile | str
        if is_user_code(cell.case.model):
            if not self._user_costs:
                user_cells = [other for other in self._cells if is_user_code(other.case.model)]
                self._user_costs.update(count_in_worker(user_cells, self._silence_s))
            found = self._user_costs[cell.id]
            if isinstance(found, str):
                raise ModelError(found)
            if cell.case.dtype == "int8":
                found = as_int8(found)
        else:
            found = count_cell(cell)
        self._kernels[cell.id] = found.kernels
        return found.cost

    def bounds_s(self, cell: Cell, peaks: Peaks) -> dict[str, float]:
        """Return the roofline bound of one call in seconds at each level of memory access. Call `cost` first."""
        from effbench.cost import bounds_s

        return bounds_s(self._kernels[cell.id], peaks)
