"""A machine of a fleet inside of dask's worker: it carries out orders, one process for each launch."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed.diagnostics.plugin import WorkerPlugin

from effbench.fleet.machine_folder import MachineFolder
from effbench.fleet.orders import Order

if TYPE_CHECKING:
    from distributed import Worker

TOPIC = "effbench"
"""dask's topic of what a machine tells."""

STEP_END_S = 3.0
"""Time that a step has to end after its input has ended."""


class Machine(WorkerPlugin):
    """A machine with its folder and its lock. dask's worker holds it as a plugin, where tasks find it.

    Parameters
    ----------
    name
        Name of the machine.
    folder
        Folder of its runs and bundles.
    lock
        File that a launch holds while it measures.
    """

    name = "effbench-machine"

    def __init__(self, name: str, folder: Path, lock: Path) -> None:
        self.machine, self.folder, self.lock = name, MachineFolder(folder), lock
        self._worker: Worker | None = None
        self._steps: set[subprocess.Popen[str]] = set()
        self._is_closed = False

    def setup(self, worker: Worker) -> None:
        """Remember the worker, through which the machine tells what it does."""
        self._worker = worker

    def teardown(self, worker: Worker) -> None:
        """End launches that are being carried out: whoever ordered them cannot hear of them any more."""
        self._is_closed = True
        for step in tuple(self._steps):
            _end(step)

    def tell(self, **values: Any) -> None:
        """Tell the scheduler something about this machine."""
        if self._worker is not None:
            with suppress(OSError):
                self._worker.log_event(TOPIC, {"machine": self.machine, **values})

    def carry_out(self, order: Order) -> Mapping[str, Any]:
        """Carry out one launch in a process of its own. Returns its ``end`` line."""
        began = {"run": order.run, "by": order.by, "subject": order.subject}
        self.tell(event="begin", **began)
        answer: Mapping[str, Any] = {}
        try:
            answer = self.launch(order)
        finally:
            is_unfit = answer.get("state") in ("busy", "unfit")
            self.tell(event="end", run=order.run, unfit=answer["why"] if is_unfit else "")
        return answer

    def launch(self, order: Order) -> Mapping[str, Any]:
        """Run the process of a launch, and pass its progress on."""
        line = {**asdict(order), "folder": str(self.folder.path), "lock": str(self.lock)}
        with subprocess.Popen(
            [sys.executable, "-m", "effbench.fleet.step"],  # as `effbench fleet step`, without the command line
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        ) as step:
            self._steps.add(step)
            try:
                if self._is_closed:
                    _end(step)
                return self._read(step, json.dumps(line), order)
            finally:
                self._steps.discard(step)
                _end(step)

    def _read(self, step: subprocess.Popen[str], line: str, order: Order) -> Mapping[str, Any]:
        assert step.stdin is not None and step.stdout is not None
        with suppress(OSError):
            step.stdin.write(line + "\n")
            step.stdin.flush()
        for said in step.stdout:
            values = json.loads(said)
            if values.get("event") == "end":
                return dict(values)
            self.tell(event="progress", run=order.run, done=values["done"], doing=values["doing"])
        code = step.wait()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return {"event": "end", "state": "died", "why": f"the process of the launch ended with {how}"}


def _end(step: subprocess.Popen[str]) -> None:
    """End a step by closing its input; kill it if that does not end it."""
    with suppress(OSError, ValueError):
        assert step.stdin is not None
        step.stdin.close()
    deadline = time.monotonic() + STEP_END_S
    while step.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    if step.poll() is None:
        step.kill()
