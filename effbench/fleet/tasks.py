"""All that a fleet calls on a machine, through dask: functions of this module, with JSON text, bytes and numbers.

dask sends a function of a module by its name, so that machines with another Python can be called. It would send a
closure or a lambda as bytecode, which ends a worker of another Python.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from distributed import get_worker

from effbench.core.errors import EffbenchError
from effbench.fleet import bundle_transfer, orders
from effbench.fleet.machine import Machine


def step(order: str, offset: int = 0, most: int = 0) -> bytes:
    """Carry out one launch. Returns its ``end`` line, and after it what `pull` returns, which saves a second call."""
    end = _answer(lambda machine: machine.carry_out(orders.parse(order)))
    return end.encode() + b"\n" + pull(order, offset, most)


def standing(order: str, size: int, sha256: str) -> str:
    """Return how far the run is (`Standing`), and whether a copy of `size` bytes with this SHA-256 can be added to."""

    def look(machine: Machine) -> Mapping[str, Any]:
        wanted = orders.parse(order)
        return {
            **asdict(machine.folder.standing(wanted)),
            "has_prefix": machine.folder.has_prefix(wanted, size, sha256),
        }

    return _answer(look)


def pull(order: str, offset: int, most: int) -> bytes:
    """Return whole lines of the run's file from byte `offset` on; nothing where it cannot be read."""
    try:
        return _machine().folder.growth(orders.parse(order), offset, most)
    except EffbenchError:
        return b""


def missing_files(manifest: str) -> str:
    """Return which files of a bundle this machine lacks (`bundle_transfer.missing`)."""
    return _answer(lambda machine: {"missing": bundle_transfer.missing(machine.folder, manifest)})


def put(manifest: str, name: str, offset: int, piece: bytes) -> str:
    """Write a piece of one file of a bundle."""

    def write(machine: Machine) -> Mapping[str, Any]:
        bundle_transfer.put(machine.folder, manifest, name, offset, piece)
        return {}

    return _answer(write)


def seal(manifest: str) -> str:
    """Check every file of a bundle against its SHA-256, and make the bundle usable."""

    def check(machine: Machine) -> Mapping[str, Any]:
        bundle_transfer.seal(machine.folder, manifest)
        return {}

    return _answer(check)


FUNCTIONS: tuple[Callable[..., str | bytes], ...] = (step, standing, pull, missing_files, put, seal)
"""Nothing else is called on a machine."""


def _machine() -> Machine:
    machine: Any = get_worker().plugins[Machine.name]
    assert isinstance(machine, Machine)
    return machine


def _answer(work: Callable[[Machine], Mapping[str, Any]]) -> str:
    """Return the answer as JSON. An error of ours is an answer too: exceptions would be pickled."""
    try:
        return json.dumps(work(_machine()))
    except EffbenchError as error:
        return json.dumps({"error": str(error), "kind": type(error).__name__})
