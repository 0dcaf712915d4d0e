"""Count what named networks cost. User code is counted in a separate process, since it may crash, hang or exit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from effbench.core import Cell, Cost, Traffic
from effbench.errors import EffbenchError, ModelError, NeedsValues
from effbench.feeding import Input
from effbench.measurement import reasons
from effbench.measurement.builds import BUILDS, Build, NotBuilt, built, on_meta
from effbench.measurement.launcher import Site, Worker, WorkerFailed, worker_environment
from effbench.zoo import external, libraries

if TYPE_CHECKING:
    from effbench.cost import Kernel, Profile


@dataclass(frozen=True)
class Counted:
    """The part of a `Profile` that a run needs."""

    cost: Cost
    kernels: Mapping[str, Sequence[Kernel]]


def profile(
    model: str, input_shape: Any, *, batch: int, dtype: str, arguments: Mapping[str, Any] | None = None
) -> Profile:
    """Count a named network, fed with `input_shape` (`feeding.described`), or as it says itself.

    A network of the zoo is built and counted in this process: its code keeps nothing. Others are built and counted in
    forked children (`cost.apart`), a new one for each way to build them.
    Raises UnknownName, ModelError, InvalidValue.
    """
    from effbench import cost

    def count(build: Build) -> Profile | NotBuilt:
        network = built(build, model, arguments or {})
        if isinstance(network, NotBuilt):
            return network
        shape = input_shape if input_shape is not None else libraries.own_shape(network) or external.DEFAULT_SHAPE
        by = cost.profile if ":" in model else cost.count
        return by(network, shape, batch=batch, dtype=dtype)

    external.imported(model)  # before the fork, so that it is imported once
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
    Raises EffbenchError where no process can be started.
    """
    found: dict[str, Counted | str] = {}
    while left := [cell for cell in cells if cell.id not in found]:
        working = ""
        job = {"task": "count", "cells": [_order(cell) for cell in left]}
        with Worker(job, worker_environment(1, "system"), silence_s, site) as worker:
            try:
                for event in worker.events():
                    if event["event"] == "error":
                        raise EffbenchError(event["message"])
                    working = event["cell"]
                    if event["event"] == "cost":
                        found[working] = Counted(_cost(event["cost"]), _kernels(event["kernels"]))
                    elif event["event"] == "skip":
                        found[working] = event["reason"]
                reason = "the process ended early, without an error"
            except WorkerFailed as failure:
                reason = str(failure)
        if not working:
            raise EffbenchError(f"the counting process could not start: {reason}")
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


def answer(orders: Sequence[Mapping[str, Any]], emit: Callable[..., None]) -> None:
    """The other end of `count_apart`, in the process of its own: one event as each count begins, one as it ends."""
    for order in orders:
        emit("working", cell=order["cell"])
        try:
            found = profile(
                order["model"],
                [Input(tuple(item["shape"]), item["name"], item["dtype"]) for item in order["inputs"]],
                batch=order["batch"],
                dtype=order["dtype"],
                arguments=order["arguments"],
            )
        except EffbenchError as error:
            emit("skip", cell=order["cell"], reason=reasons.out_of_memory(error) or str(error))
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
