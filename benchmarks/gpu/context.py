"""Give a step its device, time, folder, and effbench as a command."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu import files, processes
from benchmarks.gpu.outcome import Outcome

Document = dict[str, Any]
"""What ``effbench run --json`` prints."""

DISTURBED = 4
"""The exit code of a run that stopped since others disturbed it."""

WRITING_S = 3.0
"""Seconds of a step that are reserved for writing its results."""

STARTING_S = 12.0
"""Seconds that `effbench run` takes besides its budget: starting, counting costs, tables and figures."""


class Stopped(BaseException):
    """The session asks this step to end now."""


@dataclass
class Context:
    """`seconds` is what the step should take, `limit_s` when it is killed. `is_tiny` asks for the smallest possible
    work.
    """

    folder: Path
    device: str
    seconds: float
    limit_s: float
    is_tiny: bool
    outcome: Outcome
    began: float = field(default_factory=time.monotonic)

    @property
    def kind(self) -> str:
        return self.device.partition(":")[0]

    def left_s(self) -> float:
        return self.limit_s - (time.monotonic() - self.began) - WRITING_S

    # --- effbench as a command --------------------------------------------------------------------------

    def command(
        self, arguments: Sequence[str], out: Path, *, module: str = "effbench", limit_s: float | None = None
    ) -> tuple[int | None, str]:
        """Run `python -m effbench arguments` with its output in a file.

        Returns the exit code (None: out of time) and the last line on standard error.
        """
        errors = out.with_suffix(".log")
        for path in (out, errors):
            path.unlink(missing_ok=True)
        child = processes.start(module, arguments, out=out, errors=errors, folder=self.folder)
        try:
            code = child.wait(max(1.0, self.left_s() if limit_s is None else limit_s))
        except BaseException:
            child.end(signal.SIGINT, 2.0)
            raise
        if code is None:
            child.end(signal.SIGINT, 4.0)
        message = [line for line in errors.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return code, message[-1].strip() if message else ""

    def study(
        self, name: str, arguments: Sequence[str], *, share: float = 1.0, launches: int = 5, tiny: Sequence[str] = ()
    ) -> Document | None:
        """Run effbench with its results in `runs/name`. A finished run is read, an interrupted one is resumed.

        `arguments` are those of `effbench run` or `compare`; `tiny` are added in a tiny session. The budget is `share`
        of the step's time. Returns the document of ``--json``, or None with a check that gives the reason; `so_far`
        then returns what an interrupted run holds.
        """
        runs = self.folder / "runs"
        runs.mkdir(parents=True, exist_ok=True)
        target, document = runs / name, runs / f"{name}.json"
        found = files.read_json(document)
        if found and found.get("complete"):
            return self._known(name, found)
        if not self.is_tiny and self.left_s() < STARTING_S:
            self.cut_short(f"run {name}", "too little of the step's time was left for it")
            return None
        if _is_begun(target):
            command_line = ["run", "--resume", f"runs/{name}", "--json"]
        else:
            shutil.rmtree(target, ignore_errors=True)
            budget_s = max(5.0, share * self.seconds - STARTING_S)
            how = ["--launches", str(launches), "--budget", f"{budget_s:.0f}s"]
            if self.is_tiny:
                how = ["--launches", "1", "--budget", "0.3s", *tiny]
            command_line = [*arguments, "--device", self.device, *how, "--out", f"runs/{name}", "--json"]
        printed = runs / f".{name}.out"
        code, message = self.command(command_line, printed, limit_s=self.left_s() - (0 if self.is_tiny else WRITING_S))
        if code == DISTURBED and "--resume" not in command_line:
            # Others disturbed it. Time on a GPU is rare, so it goes on regardless, and flags tell.
            return self.study(name, arguments, share=share, launches=launches, tiny=tiny)
        if code and "--resume" in command_line and self.left_s() > STARTING_S:
            # The run was started on another machine or its file is damaged. A run that cannot be resumed is started
            # again.
            shutil.rmtree(target, ignore_errors=True)
            return self.study(name, arguments, share=share, launches=launches, tiny=tiny)
        found = _parsed(printed)
        if code is None and not (found and found.get("complete")):
            self.cut_short(f"run {name}", f"its time was up; a session with the same --out finishes it ({name})")
            self._keep_partial(name, document)
            return None
        if code or found is None or "cells" not in found:
            self.outcome.check(f"run {name}", False, message or f"exit code {code}", "a finished run")
            return None
        files.write_json(document, found)
        return self._known(name, found)

    def cut_short(self, what: str, reason: str) -> None:
        """Skip a check for lack of time. The step is then incomplete, and a later session continues it."""
        self.outcome.ended = "time"
        self.outcome.skip(what, reason)

    def so_far(self, name: str) -> Document | None:
        """Return what a run of this step holds, finished or not."""
        found: Document | None = files.read_json(self.folder / "runs" / f"{name}.json")
        return found

    def _keep_partial(self, name: str, document: Path) -> None:
        """Write tables, figures and the document of an unfinished run. Its numbers are shown but not judged."""
        if not _is_begun(self.folder / "runs" / name):
            return
        printed, limit_s = document.with_name(f".{name}_partial.out"), max(2 * WRITING_S, self.left_s())
        code, _ = self.command([f"runs/{name}"], printed, module="benchmarks.gpu.partial", limit_s=limit_s)
        found = _parsed(printed)
        if code != 0 or found is None or "cells" not in found:
            return
        files.write_json(document, found)
        ratios = {cell["id"]: cell["ratio"]["point"] for cell in found["cells"] if cell["ratio"]}
        self.outcome.number(f"{name}, ratios so far", ratios)
        done = sum(1 for cell in found["cells"] if cell["latency_s"])
        launches = max((cell["launches"] for cell in found["cells"]), default=0)
        found_text = f"{done} of {len(found['cells'])} cells in {launches} launches"
        self.outcome.check(f"run {name}, so far", "note", found_text)

    def _known(self, name: str, document: Document) -> Document:
        self.outcome.runs = [*dict.fromkeys([*self.outcome.runs, name])]
        counted = [cell for cell in document["cells"] if cell["latency_s"]]
        self.outcome.check(
            f"run {name}", bool(counted), f"{len(counted)} of {len(document['cells'])} cells measured", "some measured"
        )
        return document

    # --- what other steps found -------------------------------------------------------------------------

    def other(self, step: str) -> Outcome | None:
        """Return what another step of this session has found so far."""
        (*found,) = self.folder.parent.glob(f"*_{step}")
        return Outcome.load(found[0]) if found else None

    def other_run(self, step: str, name: str) -> Document | None:
        (*found,) = self.folder.parent.glob(f"*_{step}/runs/{name}.json")
        return files.read_json(found[0]) if found else None

    def saturating_batch(self) -> int:
        """Return the batch that the sweep found, or a batch that keeps a large GPU busy if there was no sweep."""
        sweep = self.other("batch_sweep")
        found = sweep.numbers.get("saturating_batch") if sweep else None
        if self.is_tiny:
            return 2
        return int(found) if found else {"cuda": 64}.get(self.kind, 4)


def _is_begun(target: Path) -> bool:
    run = target / "run.jsonl"
    return run.exists() and b'"kind":"block"' in run.read_bytes()


def _parsed(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def skipped_by_reason(cells: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Count the skipped cells by reason."""
    reasons: dict[str, int] = {}
    for cell in cells:
        if cell["skipped"]:
            reasons[cell["skipped"]] = reasons.get(cell["skipped"], 0) + 1
    return reasons
