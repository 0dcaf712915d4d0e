"""Run one step in a separate process."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import time
import traceback
from pathlib import Path
from types import FrameType

from benchmarks.gpu import processes
from benchmarks.gpu.context import Context, Stopped
from benchmarks.gpu.outcome import Outcome
from benchmarks.gpu.steps import STEPS


def main(arguments: list[str]) -> int:
    """Run one step. Its findings are in its result file; the exit code tells whether it completed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.one_step", description="one step of a session")
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("session", type=Path)
    parser.add_argument("--device", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--limit", type=float, required=True)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args(arguments)
    processes.die_with_parent()
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    step = STEPS[options.step]
    folder = step.folder(options.session)
    # Findings of an earlier attempt stay until they are found again.
    outcome = Outcome.load(folder) or Outcome(folder, step.name, options.device)
    outcome.ended, outcome.reason, outcome.limit_s, outcome.began = None, "", options.limit, time.time()
    outcome.save()
    context = Context(folder, options.device, options.seconds, options.limit, options.tiny, outcome)
    module, _, work = step.work.partition(":")
    try:
        getattr(importlib.import_module(f"benchmarks.gpu.{module}"), work)(context)
    except Stopped:
        outcome.ended = "stopped"
    except Exception as error:  # a failing step is a finding and must not stop the others
        traceback.print_exc()
        message = (str(error).strip() or "without words").splitlines()[0][:200]
        outcome.ended, outcome.reason = "crash", f"{type(error).__name__}: {message}"
    else:
        outcome.ended = outcome.ended or "complete"
    outcome.save()
    return 0 if outcome.ended == "complete" else 1


def _stop(number: int, frame: FrameType | None) -> None:
    # Only once: afterwards the step cleans up.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise Stopped


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
