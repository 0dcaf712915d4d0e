"""The result of a gate: findings, verdicts and exit codes of `effbench check`. Without torch.

The verdict of a check is the worst verdict of its findings. Each verdict has its own exit code, so that a crash is
never taken for a slowdown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from effbench.core.estimate import Estimate

GateVerdict = Literal["REGRESSION", "ENVIRONMENT", "INCONCLUSIVE", "PASS", "NEW"]
"""The verdict of a gate on one cell. NEW: the baseline lacks the cell, which does not fail the check."""

GATE_VERDICTS: tuple[GateVerdict, ...] = ("REGRESSION", "ENVIRONMENT", "INCONCLUSIVE", "PASS", "NEW")
"""From worst to best."""

EXIT_CODES: Mapping[str, int] = {"PASS": 0, "REGRESSION": 1, "INCONCLUSIVE": 3, "ENVIRONMENT": 4}
"""As for every command, 2 is a usage error and 70 a crash."""


@dataclass(frozen=True)
class CountCheck:
    """One count of a model, compared with a limit. None means unknown, never zero.

    `name` is "madds", "params", "memory_access", … `rule` is the required relation of `found` to `wanted`: "at most"
    for a budget, "equal" for a stored profile, "" where both are only shown.
    """

    name: str
    found: int | None
    wanted: int | None
    rule: Literal["at most", "equal", ""] = ""

    @property
    def is_met(self) -> bool:
        if not self.rule:
            return True
        if self.found is None or self.wanted is None:
            return False
        return self.found <= self.wanted if self.rule == "at most" else self.found == self.wanted


@dataclass(frozen=True)
class Finding:
    """The finding of one gate on one cell.

    `gate` is "costs" (budgets and stored profiles), "baseline" (a stored run), "against" (another revision, measured
    interleaved with the working tree) or "instructions" (another revision, by the instructions that it executes).
    `change` is candidate time over baseline time on `clock` with its 95 % interval. It is shown; the tests decide.
    `wall` is the same ratio on the wall clock. `detectable` is the smallest slowdown, as a share (0.03 is 3 %), that
    this measurement detects with power 0.8. `launches` is the number per side, `rounds` the number over all launches.
    `set_aside` counts the disturbed rounds. `is_improved` is true where the candidate is significantly faster. `costs`
    are the counts that have a limit, or that differ between the two sides.
    """

    gate: str
    cell: str
    verdict: GateVerdict
    reason: str = ""
    change: Estimate | None = None
    wall: Estimate | None = None
    clock: str = "wall"
    tolerance: float | None = None
    detectable: float | None = None
    launches: int = 0
    rounds: int = 0
    set_aside: int = 0
    is_improved: bool = False
    costs: tuple[CountCheck, ...] = ()


@dataclass(frozen=True)
class Decision:
    """The result of `effbench check`: all findings, and the facts they share.

    `geomean` is the geometric mean of the changes over the cells of a timed gate. `notes` are remarks that do not
    affect the verdict. `baseline` and `candidate` name the two sides, such as "main (1a2b3c4)" and "working tree".
    `facts` describe the machine. `directory` holds the raw blocks.
    """

    findings: tuple[Finding, ...]
    baseline: str = ""
    candidate: str = ""
    geomean: Estimate | None = None
    notes: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    directory: str | None = None
    seconds: float = 0.0

    @property
    def verdict(self) -> GateVerdict:
        """The worst verdict of the findings. INCONCLUSIVE if all are NEW, or none: a check needs evidence to pass."""
        seen = {finding.verdict for finding in self.findings} - {"NEW"}
        return next((word for word in GATE_VERDICTS if word in seen), "INCONCLUSIVE")

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.verdict]
