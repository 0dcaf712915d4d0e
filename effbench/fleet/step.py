"""Carry out one launch of a run that stays in a folder of this machine: ``effbench fleet step``.

The step knows no engine. It reads one line of JSON, the order, and writes lines of JSON: ``progress`` while it
measures, then one ``end``. It ends when its input ends, so a launch never outlives whoever ordered it. Any program that
can start a process with two pipes can use it: a fleet's worker does, ssh can.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
import threading
import time
import traceback
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from effbench.core import decoding
from effbench.core.errors import EffbenchError, InvalidValue, StorageError, first_line
from effbench.core.run import Run
from effbench.fleet import machine_lock, orders, readiness
from effbench.fleet.machine_folder import MachineFolder, default_folder, is_begun
from effbench.fleet.orders import Order
from effbench.runs import run_file
from effbench.runs.progress import Progress

CODES = {"complete": 0, "error": 2, "busy": 4, "unfit": 4, "more": 5}
"""Exit code by the state of the ``end`` line, as of ``effbench run --now``."""

PROGRESS_S = 1.0
"""Least time between two lines of progress."""

END_S = 0.7
"""Time to stop in order after the input has ended."""

INTERRUPTED = 130


def carry_out(stdin: BinaryIO | None = None, stdout: TextIO | None = None) -> int:
    """Read the order, carry out one launch, and return the exit code.

    The order has the fields of `fleet.orders.Order`, and may have ``folder`` (the fleet's folder on this machine) and
    ``lock`` (the file to hold while measuring).
    """
    source = sys.stdin.buffer if stdin is None else stdin
    lines = _Lines(sys.stdout if stdout is None else stdout)
    try:
        line = source.readline()
        if stdin is None:
            _end_with_input()
        with redirect_stdout(sys.stderr):  # what a study prints is no line of ours
            try:
                state, why, run = _measure(*_parse(line), lines)
            except EffbenchError as error:
                state, why, run = "error", str(error), None
            except Exception as error:  # such as an option of a wrong type: whoever ordered waits for a last line
                traceback.print_exc()
                state, why, run = "error", f"{type(error).__name__}: {first_line(error, 200)}", None
            standing = _standing(line, run)
        if stdin is None:  # whoever has read the last line closes the input, and the exit code shall stay
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    except KeyboardInterrupt:  # also where the input has ended: nobody reads a last line
        return INTERRUPTED
    lines.write(event="end", state=state, why=why, **standing)
    return CODES[state]


def _parse(line: bytes) -> tuple[Order, MachineFolder, Path]:
    try:
        values = decoding.parse(line)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise InvalidValue("the first line of standard input must be an order: one object of JSON")
    folder, lock = values.pop("folder", None), values.pop("lock", None)
    for name, path in (("folder", folder), ("lock", lock)):
        if path is not None and (not isinstance(path, str) or "\0" in path):
            raise InvalidValue(f"{name} = {str(path)[:60]!r}: expected a path")
    return (
        orders.parse(json.dumps(values)),
        MachineFolder(Path(folder) if folder else default_folder()),
        Path(lock) if lock else machine_lock.default_path(),
    )


def _standing(line: bytes, run: Run | None) -> dict[str, Any]:
    """Return how far the run is, which is known where it was just loaded; nothing where it cannot be read."""
    try:
        order, folder, _ = _parse(line)
        return asdict(folder.standing(order, run))
    except EffbenchError:
        return {}


def _measure(order: Order, folder: MachineFolder, lock: Path, lines: _Lines) -> tuple[str, str, Run | None]:
    """Carry out one launch if the machine is fit for it now. Returns the state, why, and the run if it was measured."""
    from effbench import api

    place = folder.run(order)
    before = folder.standing(order)
    if before.complete:
        return "complete", "", None
    with machine_lock.try_lock(lock) as is_free:
        if not is_free:
            return "busy", f"another launch holds {lock}", None
        if order.options.get("device") != "fake":
            if why := readiness.why_unfit():
                return "unfit", why, None
            if why := readiness.why_busy():
                return "busy", why, None
        begun = before.size > 0 or _begun(place)  # a file only grows, and loading one takes a slow board long
        how: dict[str, Any] = {"watch": lines.watch, "launches_now": 1}
        bundle = folder.bundle(order.bundle) if order.bundle else None
        if begun:
            results = api.resume(place, **how) if bundle is None else api.run_bundle(bundle, resume=place, **how)
        else:
            how |= {"out": place, "command": order.command, **order.options}
            results = (
                api.run(order.study, **order.arguments, **how) if bundle is None else api.run_bundle(bundle, **how)
            )
    run = results.run
    return ("complete" if run.complete else "more"), run.disturbance or "", run


def _begun(place: Path) -> bool:
    """Whether the folder holds a run to go on with. Removes one that was stopped before anything was measured."""
    path = place / run_file.RUN_FILE
    if not path.exists():
        return False
    try:
        if b"\n" in path.read_bytes() and is_begun(run_file.load(path)):
            return True
        path.unlink()
    except OSError as error:
        raise StorageError(f"cannot begin again in {place}: {error.strerror or error}") from error
    return False


class _Lines:
    """Write lines of JSON. An output that nobody reads any more is no error: the launch counts all the same."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._told_s = stream, -PROGRESS_S

    def watch(self, step: Progress) -> None:
        now = time.monotonic()
        if now - self._told_s >= PROGRESS_S:
            self._told_s = now
            self.write(event="progress", done=round(step.done, 4), doing=step.doing)

    def write(self, **values: Any) -> None:
        try:
            self._stream.write(json.dumps(values) + "\n")
            self._stream.flush()
        except (BrokenPipeError, ValueError):
            self._stream = open(os.devnull, "w")  # noqa: SIM115 until the process ends


def _end_with_input() -> None:
    """From now on, end this process when its standard input ends: in order if it can, at once if not.

    The end of a file says nothing of whoever ordered, so that ``effbench fleet step < order.json`` measures too.
    """
    if stat.S_ISREG(os.fstat(0).st_mode):
        return

    def wait() -> None:
        while os.read(0, 4096):
            pass
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        time.sleep(END_S)
        os._exit(INTERRUPTED)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    sys.exit(carry_out())
