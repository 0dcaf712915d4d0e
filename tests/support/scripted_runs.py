"""Runs on the scripted clock: what their cells cost, a job of a worker, its events, a worker in this process."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from runs import COST

from effbench.core.cost import LEVELS, Cost, Traffic
from effbench.core.study import Cell
from effbench.runs import launch, run_file, worker


def cost_of(cell: Cell) -> Cost:
    """Equal multiply-adds, and memory access that grows with the groups, so that the scripted clock orders them."""
    traffic = Traffic(activation_bytes=4_000_000 * int(cell.case.labels["groups"]))
    return replace(COST, memory_access_levels=dict.fromkeys(LEVELS, traffic))


class Killed(BaseException):
    """The run ends here, as if by kill -9: what is written later did not happen."""

    def __init__(self, size: int) -> None:
        self.size = size


class InProcess:
    """A stand-in for the worker process on the scripted clock: it may be interrupted before any of its events."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.jobs = folder, []  # type: ignore[var-annotated]
        self.ends: list[tuple[int, str]] = []
        """Of the next processes: before which event the run ends, and how. Before -3, the last, the rounds are over."""

    def __call__(self, job: dict[str, Any], *_: Any) -> InProcess:
        self.jobs.append(job)
        return self

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def events(self) -> Iterator[dict[str, Any]]:
        seen: list[dict[str, Any]] = []
        worker.launch(self.jobs[-1], lambda event, **fields: seen.append({"event": event, **fields}), dict)
        last, how = self.ends.pop(0) if self.ends else (len(seen) + 1, "")
        for number, event in enumerate(seen):
            if number == last % (len(seen) + 2):
                raise KeyboardInterrupt if how == "ctrl-c" else Killed(os.path.getsize(self.folder / run_file.RUN_FILE))
            yield json.loads(json.dumps(event))


@contextmanager
def in_process(folder: Path) -> Iterator[InProcess]:
    with pytest.MonkeyPatch.context() as patch:
        stand_in = InProcess(folder)
        patch.setattr(launch, "Worker", stand_in)
        patch.setattr(worker, "_freeze_garbage", lambda: None)
        yield stand_in


def job(**changes: Any) -> dict[str, Any]:
    cells = [
        {
            "id": name, "model": "none", "arguments": {}, "dtype": "float32", "batch": 1,
            "inputs": [{"shape": [1], "name": "", "dtype": ""}],
            "calls": None, "reference": "a", "runtime": "eager", "threads": 1, "memory_format": "contiguous",
            "mode": "infer", "folder": "unused", "cost": {"madds": madds, "memory_access_bytes": 1000},
        }
        for name, madds in (("a", 1e8), ("b", 2e8))
    ]  # fmt: skip
    return {
        "launch": 0, "seed": 0, "first_round": 0, "budget_s": 9.0, "clock": "cpu", "device": "fake",
        "device_options": {"noise": 0.001}, "runtimes": ["eager"], "mode": "infer", "sampling": {},
        "cells": cells, **changes,
    }  # fmt: skip


def events_of(task: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    seen: list[tuple[str, dict[str, Any]]] = []
    emit = lambda event, **fields: seen.append((event, json.loads(json.dumps(fields))))  # noqa: E731
    worker.launch(task, emit, dict)
    return seen
