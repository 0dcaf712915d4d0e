"""Store what a step found: checks with their limits, numbers, runs. Saved after each of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.gpu import files

RESULT = "result.json"
Verdict = Literal["pass", "fail", "skip", "note"]
"""A "skip" has a reason; a "note" is a number without a limit."""

ENDINGS = {
    "complete": "ended by itself",
    "time": "stopped at its time limit",
    "crash": "ended without a result",
    "stopped": "stopped with the session",
    "no time": "not begun: too little time was left",
}


@dataclass
class Outcome:
    """The result file of one step. `ended` is one of `ENDINGS`, or None while the step runs."""

    folder: Path
    step: str
    device: str
    ended: str | None = None
    reason: str = ""
    seconds: float = 0.0
    limit_s: float = 0.0
    began: float = field(default_factory=time.time)
    checks: list[dict[str, str]] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)
    runs: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, folder: Path) -> Outcome | None:
        found = files.read_json(folder / RESULT)
        return None if not isinstance(found, dict) else cls(folder, **found)

    def save(self) -> None:
        files.write_json(
            self.folder / RESULT, {name: value for name, value in vars(self).items() if name not in ("folder",)}
        )

    def check(self, what: str, verdict: bool | Verdict, found: object = "", wanted: str = "", reason: str = "") -> bool:
        """Record a check, replacing an earlier one of the same name. Returns True unless it failed."""
        word = verdict if isinstance(verdict, str) else ("pass" if verdict else "fail")
        entry = {"what": what, "verdict": word, "found": str(found), "wanted": wanted, "reason": reason}
        self.checks = [item for item in self.checks if item["what"] != what] + [entry]
        self.save()
        return word != "fail"

    def skip(self, what: str, reason: str) -> None:
        self.check(what, "skip", reason=reason)

    def number(self, name: str, value: Any) -> None:
        self.numbers[name] = value
        self.save()

    @property
    def is_complete(self) -> bool:
        return self.ended == "complete"

    @property
    def verdict(self) -> str:
        """Whether any check failed ("fail"), the step did not complete ("incomplete"), or it only skipped ("skip");
        else "pass".
        """
        verdicts = [item["verdict"] for item in self.checks]
        if "fail" in verdicts:
            return "fail"
        if not self.is_complete:
            return "incomplete"
        return "pass" if any(word in ("pass", "note") for word in verdicts) else "skip"

    def why(self) -> str:
        """Return one line for the page: what failed, or why the step is incomplete or was skipped."""
        failed = [item for item in self.checks if item["verdict"] == "fail"]
        reasons = [_line(item) for item in failed]
        if not self.is_complete:
            reasons.append(self.reason or ENDINGS.get(str(self.ended), "at work"))
        elif not reasons and self.verdict == "skip":
            reasons = [item["reason"] for item in self.checks if item["verdict"] == "skip"]
        return "; ".join(dict.fromkeys(reasons))


def _line(check: Mapping[str, str]) -> str:
    wanted = f" (wanted {check['wanted']})" if check["wanted"] else ""
    return f"{check['what']}: {check['found'] or check['reason']}{wanted}"


def median(values: Sequence[float]) -> float:
    """Return the median; for an even number of values the mean of the middle two. Raises ValueError without values."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no values")
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
