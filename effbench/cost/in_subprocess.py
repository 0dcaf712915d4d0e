"""Count what named networks cost. User code is counted in a separate process, since it may crash, hang or exit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, astuple, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from effbench.core.cost import Cost, Traffic
from effbench.core.errors import CannotStart, EffbenchError, ForeignCode, ModelError, NeedsValues, Reason, of_reason
from effbench.core.inputs import Input
from effbench.core.study import Cell
from effbench.cost.builds import BUILDS, Build, NotBuilt, built, on_meta
from effbench.host.worker_process import Site, Worker, WorkerFailed, worker_environment
from effbench.user_code import code_origins, failure_reasons, global_state
from effbench.zoo import external, libraries

if TYPE_CHECKING:
    from effbench.core.peaks import Peaks
    from effbench.cost import Kernel, Profile


@dataclass(frozen=True)
class Counted:
    """The part of a `Profile` that a run needs."""

    cost: Cost
    kernels: Mapping[str, Sequence[Kernel]]


def profile(
    model: str,
    input_shape: Any,
    *,
    batch: int | None = None,
    dtype: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    check: Callable[[], None] = lambda: None,
) -> Profile:
    """Count a named network, fed with `input_shape` (`core.inputs.described`), or as it says itself.

    A network of the zoo is built and counted in this process: its code keeps nothing. Others are built and counted in
    forked children (`cost.apart`), a new one for each way to build them. What a stranger's file sets for the whole
    process as it is imported is put back. `check` is called where its code is loaded, after everything that it does,
    and may raise what matters more than the outcome.
    Raises UnknownName, ModelError, InvalidValue.
    """
    with global_state.interop_threads_left() if ":" in model else nullcontext():
        return _profiled(model, input_shape, batch, dtype, arguments, check)


def count_cell(cell: Cell) -> Profile | Counted:
    """Count the model of a cell on its own inputs, in this process where its code is known.

    Raises UnknownName, ModelError, InvalidValue.
    """
    case = cell.case
    dtype = "float32" if case.dtype == "int8" else case.dtype
    found = profile(case.model, case.fed, batch=cell.batch, dtype=dtype, arguments=case.arguments)
    return quantised(found) if case.dtype == "int8" else found


def _profiled(
    model: str,
    input_shape: Any,
    batch: int | None,
    dtype: str | None,
    arguments: Mapping[str, Any] | None,
    check: Callable[[], None],
) -> Profile:
    from effbench import cost

    def count(build: Build) -> Profile | NotBuilt:
        try:
            network = built(build, model, arguments or {})
            if isinstance(network, NotBuilt):
                return network
            shape = input_shape if input_shape is not None else libraries.own_shape(network) or external.DEFAULT_SHAPE
            by = cost.profile if ":" in model else cost.count
            return by(network, shape, batch=batch, dtype=dtype)
        finally:
            check()

    try:
        with global_state.kept() if ":" in model else nullcontext():
            external.imported(model)  # before the fork, so that it is imported once
    finally:
        check()
    builds = list(BUILDS)
    while True:
        build = builds.pop(0)
        try:
            found = cost.apart(partial(count, build)) if ":" in model else count(build)
        except NeedsValues:
            builds = builds[-1:]  # a forward pass that looks at values needs weights that have some
            if not builds:
                raise
        except SystemExit as stop:
            raise ModelError(
                f"{model} calls sys.exit({stop.code!r}); a network has to raise an error instead"
            ) from stop
        else:
            if not isinstance(found, NotBuilt):
                return found
            if not builds:
                raise found.error


def quantised(found: Counted | Profile) -> Counted:
    """What a network counted in float32 costs in int8: the same elements, one byte each."""

    def in_bytes(moved: Traffic) -> Traffic:
        return replace(moved, weight_bytes=moved.weights, activation_bytes=moved.activations)

    levels = {level: in_bytes(moved) for level, moved in found.cost.memory_access_levels.items()}
    kernels = {
        level: [replace(kernel, traffic=in_bytes(kernel.traffic)) for kernel in each]
        for level, each in found.kernels.items()
    }
    return Counted(replace(found.cost, memory_access_levels=levels), kernels)


def is_foreign(model: str) -> bool:
    """Is this code that neither we nor torchvision nor timm wrote?"""
    return ":" in model and not external.is_of_library(model)


def count_apart(cells: Sequence[Cell], silence_s: float, site: Site | None = None) -> dict[str, Counted | str]:
    """Each cell's cost and kernels, or the reason why it has none.

    What ends the process is that cell's reason; the rest goes on. `site` is where the code lies, if not here.
    Raises CannotStart where no process can be started, ForeignCode where a side runs what is not its own.
    """
    found: dict[str, Counted | str] = {}
    while left := [cell for cell in cells if cell.id not in found]:
        working = ""
        job = {"task": "count", "cells": [_order(cell) for cell in left]}
        with Worker(job, worker_environment(1, "system"), silence_s, site) as worker:
            try:
                for event in worker.events():
                    if event["event"] == "error":
                        raise of_reason(Reason(event["message"], event.get("cause", "")))
                    working = event["cell"]
                    if event["event"] == "cost":
                        found[working] = Counted(_cost(event["cost"]), _kernels(event["kernels"]))
                    elif event["event"] == "skip":
                        found[working] = Reason(event["reason"], event.get("cause", ""))
                reason = "the process ended early, without an error"
            except WorkerFailed as failure:
                reason = str(failure)
        if not working:
            needs = "; its environment needs the same effbench, and torch" if site and site.python else ""
            raise CannotStart(f"the counting process could not start: {reason}{needs}")
        found.setdefault(working, reason)
    return found


def shapes_apart(models: Sequence[str], silence_s: float = 60.0) -> dict[str, tuple[int, ...] | None]:
    """What a stranger's networks say that they take, read in a process of its own.

    One that fails there, or ends the process, is left out: why is found out when it is counted.
    """
    found = {}
    with (
        Worker({"task": "shapes", "models": list(models)}, worker_environment(1, "system"), silence_s) as worker,
        suppress(WorkerFailed),
    ):
        for event in worker.events():
            found[event["model"]] = None if event["shape"] is None else tuple(event["shape"])
    return found


def tell_shapes(models: Sequence[str], emit: Callable[..., None]) -> None:
    """The other end of `shapes_apart`."""
    for model in models:
        with suppress(EffbenchError, *external.NETWORK_FAILURES):
            emit("shape", model=model, shape=libraries.own_shape(on_meta(model, {})))


def answer(job: Mapping[str, Any], emit: Callable[..., None]) -> None:
    """The other end of `count_apart`, in the process of its own: one event as each count begins, one as it ends."""
    for order in job["cells"]:
        emit("working", cell=order["cell"])
        try:
            found = profile(
                order["model"],
                [Input(**item) for item in order["inputs"]],
                batch=order["batch"],
                dtype=order["dtype"],
                arguments=order["arguments"],
                check=partial(code_origins.refuse_foreign, job),
            )
        except ForeignCode:
            raise
        except EffbenchError as error:
            reason = code_origins.explained(error, job)
            said = failure_reasons.out_of_memory(error) or str(reason)
            emit("skip", cell=order["cell"], reason=said, cause=reason.cause)
        else:
            kernels = {
                level: [[kernel.madds, *astuple(kernel.traffic)] for kernel in each]
                for level, each in found.kernels.items()
            }
            emit("cost", cell=order["cell"], cost=asdict(found.cost), kernels=kernels)


def _order(cell: Cell) -> dict[str, Any]:
    case = cell.case
    return {
        "cell": cell.id,
        "model": case.model,
        "arguments": dict(case.arguments),
        "inputs": [asdict(item) for item in case.fed],
        "batch": cell.batch,
        "dtype": "float32" if case.dtype == "int8" else case.dtype,
    }


def _cost(values: Mapping[str, Any]) -> Cost:
    levels = {name: Traffic(**traffic) for name, traffic in values["memory_access_levels"].items()}
    return Cost(**{**values, "memory_access_levels": levels})


def _kernels(values: Mapping[str, Sequence[Sequence[int]]]) -> dict[str, tuple[Kernel, ...]]:
    from effbench.cost import Kernel

    return {level: tuple(Kernel(madds, Traffic(*moved)) for madds, *moved in each) for level, each in values.items()}


class CellCosts:
    """What the cells of a plan cost. All models of user code are counted when the first of them is asked for."""

    def __init__(self, cells: Sequence[Cell], silence_s: float) -> None:
        self._cells, self._silence_s = cells, silence_s
        self._apart: dict[str, Counted | str] = {}
        self._kernels: dict[str, Mapping[str, Sequence[Kernel]]] = {}

    def cost(self, cell: Cell) -> Cost:
        """The cost of one forward pass of the cell's batch. Raises ModelError, InvalidValue."""
        found: Counted | Profile | str
        if is_foreign(cell.case.model):
            if not self._apart:
                foreign = [other for other in self._cells if is_foreign(other.case.model)]
                self._apart.update(count_apart(foreign, self._silence_s))
            found = self._apart[cell.id]
            if isinstance(found, str):
                raise ModelError(found)
            if cell.case.dtype == "int8":
                found = quantised(found)
        else:
            found = count_cell(cell)
        self._kernels[cell.id] = found.kernels
        return found.cost

    def bounds_s(self, cell: Cell, peaks: Peaks) -> dict[str, float]:
        """The least seconds of one call at each level of memory access, of a cell whose cost was asked for."""
        from effbench.cost import bounds_s

        return bounds_s(self._kernels[cell.id], peaks)
