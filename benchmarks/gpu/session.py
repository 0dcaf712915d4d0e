"""Run a session: steps one after the other, each in a process with its own time limit, until the minutes are used."""

from __future__ import annotations

import fcntl
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.gpu import files, page, processes
from benchmarks.gpu.outcome import ENDINGS, Outcome
from benchmarks.gpu.steps import STEPS, Step

SETTINGS = "session.json"
LOG = "log.txt"
OVERRUN_FACTOR = 1.3
"""A step is killed after this many times its share. What it overruns is missing for later steps."""

LEAST_SHARE = 0.7
"""If there are too few minutes for all, each step gets at least this share of its need and the last steps get none.
Complete results of few steps are worth more than incomplete ones of many, and the next session continues with the
others.
"""

CLOSING_S = 10.0
"""Seconds reserved for the page and the archive."""

TINY_LIMIT_S = 300.0
"""Time limit of a step of a tiny session, which takes seconds on a quiet machine."""

SECOND_TRY_S = 30.0
"""If this many seconds are left at the end, a step that was cut short is tried again."""


class Refused(Exception):
    """The request cannot be carried out. The message is one line."""


@dataclass
class Session:
    """`only` lists the steps to run, `again` those whose earlier results are deleted first."""

    folder: Path
    device: str
    minutes: float
    is_tiny: bool = False
    only: Sequence[str] = ()
    again: Sequence[str] = ()
    limit_s: float | None = None
    began: float = field(default_factory=time.monotonic)
    is_stopping: bool = False

    def carry_out(self) -> int:
        """Run every missing step. Returns 0 if all steps passed, 1 if one did not, 130 if the session was stopped."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked(), self._signals():
            self._record_settings()
            for name in self.again:
                shutil.rmtree(STEPS[name].folder(self.folder), ignore_errors=True)
            if self.is_tiny and not self.device.startswith("cuda"):
                processes.load_once()
            todo = [step for step in STEPS.values() if step.name in (self.only or STEPS) and not self._is_done(step)]
            self._pass(todo)
            cut = [step for step in todo if not self._is_done(step)]
            if not self.is_tiny and not self.is_stopping:
                # Unused time of early steps goes to steps that were cut short, in the order of the steps.
                self._pass([step for step in cut if self.left_s() > SECOND_TRY_S], is_second=True)
            outcomes = self.outcomes()
            text = page.write(self.folder, self.settings(), outcomes)
            self._pack()
        print("\n" + text)
        if self.is_stopping:
            print(f"stopped; go on with: {self._again()}", file=sys.stderr)
            return 130
        wanted = [outcomes[name] for name in (self.only or STEPS)]
        return 0 if all(found and found.verdict in ("pass", "skip") for found in wanted) else 1

    def _again(self) -> str:
        arguments = ["python", "-m", "benchmarks.gpu", "--out", str(self.folder)]
        arguments += ["--device", self.device] if self.device != "cuda" else []
        return shlex.join(arguments + (["--tiny"] if self.is_tiny else []))

    def left_s(self) -> float:
        return 60 * self.minutes - (time.monotonic() - self.began) - (0.0 if self.is_tiny else CLOSING_S)

    def outcomes(self) -> dict[str, Outcome | None]:
        return {step.name: Outcome.load(step.folder(self.folder)) for step in STEPS.values()}

    # --- steps ------------------------------------------------------------------------------------------

    def _pass(self, steps: Sequence[Step], is_second: bool = False) -> None:
        for number, step in enumerate(steps):
            if self.is_stopping:
                return
            left = self.left_s()
            seconds = step.need_s * share_of_need(left, sum(item.need_s for item in steps[number:]))
            if is_second:
                seconds = left
            limit = min(OVERRUN_FACTOR * seconds, left)
            if self.is_tiny:
                seconds, limit = min(5.0, left), min(TINY_LIMIT_S, left)
            if self.limit_s is not None:
                limit = min(limit, self.limit_s)
            if limit < (1.0 if self.is_tiny else step.least_s):
                if not is_second:
                    self._leave_out(step, limit)
                continue
            self._step(step, seconds, limit)
            page.write(self.folder, self.settings(), self.outcomes())
            self._pack()

    def _step(self, step: Step, seconds: float, limit: float) -> None:
        folder = step.folder(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        outcome = Outcome.load(folder) or Outcome(folder, step.name, self.device)
        outcome.ended, outcome.limit_s = None, limit
        outcome.save()
        print(f"{step.name:22} at most {limit:4.0f} s: {step.title}", file=sys.stderr, flush=True)
        start, log = time.monotonic(), folder / LOG
        arguments = [step.name, str(self.folder.resolve()), "--device", self.device]
        arguments += ["--seconds", f"{min(seconds, limit):.1f}", "--limit", f"{limit:.1f}"]
        arguments += ["--tiny"] if self.is_tiny else []
        child = processes.start(
            "benchmarks.gpu.one_step", arguments, out=log, errors=log, folder=folder, is_leader=True
        )
        code = child.wait(limit, lambda: self.is_stopping)
        was_running = code is None
        child.end(signal.SIGTERM, processes.GRACE_S if not self.is_tiny else 2.0)
        outcome = Outcome.load(folder) or outcome
        if was_running:
            outcome.ended = "stopped" if self.is_stopping else "time"
        elif outcome.ended is None:
            outcome.ended, outcome.reason = (
                "crash",
                f"its process ended with {_exit_text(code)}; see {folder.name}/{LOG}",
            )
        outcome.seconds = round(time.monotonic() - start, 1)
        outcome.save()
        print(f"{'':22} {outcome.verdict}, {outcome.seconds:.0f} s {outcome.why()[:300]}", file=sys.stderr, flush=True)

    def _leave_out(self, step: Step, limit: float) -> None:
        known = Outcome.load(step.folder(self.folder))
        if known is not None and known.checks:
            return
        step.folder(self.folder).mkdir(parents=True, exist_ok=True)
        found_text = f"{max(0.0, limit):.0f} s were left, and it is not begun with less than {step.least_s:.0f}"
        Outcome(step.folder(self.folder), step.name, self.device, ended="no time", reason=found_text).save()

    def _is_done(self, step: Step) -> bool:
        found = Outcome.load(step.folder(self.folder))
        return found is not None and found.is_complete

    # --- the folder -------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        return files.read_json(self.folder / SETTINGS) or {}

    def _record_settings(self) -> None:
        """Record the settings. A folder belongs to one device, because one page must not mix two. Raises Refused."""
        known = self.settings()
        settings = {"device": self.device, "tiny": self.is_tiny}
        if known and {name: known.get(name) for name in settings} != settings:
            raise Refused(
                f"{self.folder} holds a session of device {known.get('device')}"
                f"{', tiny' if known.get('tiny') else ''}; give it the same or another --out"
            )
        launched = [*known.get("begun", []), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())]
        files.write_json(self.folder / SETTINGS, {**settings, "minutes": self.minutes, "begun": launched})

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Lock the folder: two sessions in one folder would delete each other's results. Raises Refused."""
        with (self.folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise Refused(f"another session is at work in {self.folder}") from None
            yield

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """On Ctrl-C, SIGTERM or a closed terminal, end the running step, keep its results, and write the page."""

        def stop(number: int, frame: FrameType | None) -> None:
            self.is_stopping = True

        wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, stop) for number in wanted}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _pack(self) -> None:
        try:
            files.pack(self.folder, [path.name for path in sorted(self.folder.iterdir()) if _is_packed(path)])
        except OSError as error:  # the archive is only a convenience
            print(f"no archive: {error}", file=sys.stderr)


def _is_packed(path: Path) -> bool:
    return not path.name.startswith(".") and path.name != files.ARCHIVE


def share_of_need(left_s: float, need_s: float) -> float:
    """Return the share of its needed time that a step gets: above 1 if there is time to spare, at least
    `LEAST_SHARE`.
    """
    return max(LEAST_SHARE, left_s / need_s) if need_s > 0 else 1.0


def _exit_text(code: int | None) -> str:
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"


def listed(folder: Path | None) -> str:
    """List the steps in order, with their state in this folder."""
    lines = []
    for step in STEPS.values():
        found = Outcome.load(step.folder(folder)) if folder else None
        state = "" if found is None else f"{found.verdict} ({ENDINGS.get(str(found.ended), 'at work')})"
        lines.append(f"{step.name:22} {state:34} {step.title}".rstrip())
    return "\n".join(lines)
