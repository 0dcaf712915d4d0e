"""What a gate says: the nouns that `effbench check` decides with and every report of it is made of. Pure, no torch.

The verdict of the whole is the worst of its findings, and each has an exit code of its own, so that a crash is never
read as a slowdown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from effbench.core.estimate import Estimate

Word = Literal["REGRESSION", "ENVIRONMENT", "INCONCLUSIVE", "PASS", "NEW"]
"""What a gate can say of one cell. NEW: there is nothing to compare it with, which fails nothing."""

WORDS: tuple[Word, ...] = ("REGRESSION", "ENVIRONMENT", "INCONCLUSIVE", "PASS", "NEW")
"""From worst to best."""

EXIT_CODES: Mapping[str, int] = {"PASS": 0, "REGRESSION": 1, "INCONCLUSIVE": 3, "ENVIRONMENT": 4}
"""2 is a wrong word on the command line and 70 a crash, as everywhere in effbench."""

GATES = ("costs", "baseline", "against", "instructions")
"""Budgets and stored profiles; a stored run; another revision measured in alternation, or its instructions counted."""


@dataclass(frozen=True)
class Costed:
    """One count of a network beside what it was held to. None is "not known", never zero.

    `name` is "madds", "params", "memory_access", …; `rule` says how the two must stand: "at most" for a budget,
    "equal" for a stored profile, "" where the two are only shown.
    """

    name: str
    found: int | None
    wanted: int | None
    rule: Literal["at most", "equal", ""] = ""

    @property
    def is_kept(self) -> bool:
        if not self.rule:
            return True
        if self.found is None or self.wanted is None:
            return False
        return self.found <= self.wanted if self.rule == "at most" else self.found == self.wanted


@dataclass(frozen=True)
class Finding:
    """What one gate found about one cell.

    `change` is candidate time over baseline time on `clock`, with its 95 % interval, shown and not what decides;
    `wall` the same on the wall clock. `detectable` is the smallest slowdown, as a share (0.03 is 3 %), that this
    measurement would have called a regression four times in five. `launches` is per side, `rounds` over all launches;
    `set_aside` counts the rounds that an outside cause disturbed. `is_improved` says that it is shown to be faster.
    `costs` are the counts that the cell was held to, or that differ between the two sides.
    """

    gate: str
    cell: str
    verdict: Word
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
    costs: tuple[Costed, ...] = ()


@dataclass(frozen=True)
class Decision:
    """What `effbench check` decides: every finding, and what holds for all of them.

    `geomean` is the geometric mean of the changes over the cells of a timed gate. `notes` are sentences worth reading
    that decide nothing. `baseline` and `candidate` name what was compared, such as "main (1a2b3c4)" and "working tree".
    `facts` are the machine in words, `directory` where the raw blocks are.
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
    def verdict(self) -> Word:
        """The worst of the findings. INCONCLUSIVE where none of them says anything: no gate passes on nothing."""
        seen = {finding.verdict for finding in self.findings} - {"NEW"}
        return next((word for word in WORDS if word in seen), "INCONCLUSIVE")

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.verdict]
