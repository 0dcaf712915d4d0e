"""The gate of costs: what networks are counted to cost against budgets and stored profiles. Pure, no torch.

Counts do not depend on the machine, so this gate says the same everywhere and has no tolerance.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from effbench.core import decoding, units
from effbench.core.cost import Cost
from effbench.core.errors import CannotStart, InvalidValue
from effbench.core.study import Cell
from effbench.gates.config import QUANTITIES
from effbench.gates.result import Costed, Finding

FOUND_FREELY = ("params",)
"""What no operator without a formula can hide."""


@dataclass(frozen=True)
class Stored:
    """The counts of one network as they were stored, with what it was fed. `fed` is as the command line writes it."""

    name: str
    model: str
    fed: str
    batch: int
    dtype: str
    counts: Mapping[str, int]

    @property
    def conditions(self) -> str:
        """In words: what the counts hold for."""
        return f"input {self.fed}, batch {self.batch}, {self.dtype}"


def judge(
    name: str,
    found: Cost | str,
    budgets: Mapping[str, int],
    stored: Stored | None = None,
    conditions: str = "",
) -> Finding:
    """One network's counts against its budgets (at most) and a stored profile (equal).

    `found` is the reason where the network does not run, which fails the gate: its budgets cannot hold. Where only this
    machine is why, nothing is known of them. Counts that
    lack an operator are a lower bound: they can break a budget but not keep it. `conditions` are those of the counts
    (`Stored.conditions`); a profile stored under others says nothing.
    """
    if isinstance(found, str):
        if getattr(found, "cause", "") == CannotStart.cause or "out of memory" in found:
            return Finding("costs", name, "ENVIRONMENT", f"it cannot be counted here: {found}")
        return Finding("costs", name, "REGRESSION", f"it does not run: {found}", costs=_held(None, budgets, stored))
    if stored is not None and stored.conditions != conditions:
        reason = f"the profile is of {stored.conditions}, this is {conditions}; store it anew"
        return Finding("costs", name, "INCONCLUSIVE", reason, costs=_held(found, budgets, None))
    costs = _held(found, budgets, stored)
    broken = [_words(item) for item in costs if not item.is_kept]
    if broken:
        return Finding("costs", name, "REGRESSION", "; ".join(broken), costs=costs)
    if found.status == "partial" and any(item.name not in FOUND_FREELY for item in costs):
        missing = ", ".join(f"{operator} ×{calls}" for operator, calls in found.uncounted.items())
        return Finding("costs", name, "INCONCLUSIVE", f"there is no formula for {missing}", costs=costs)
    return Finding("costs", name, "PASS", costs=costs)


def differing(found: Cost | None, wanted: Cost | None, *, rule: bool = False) -> tuple[Costed, ...]:
    """The counts in which two costs differ: shown only, or with `rule` held to be equal. () where one is missing."""
    if found is None or wanted is None:
        return ()
    pairs = ((name, getattr(found, name), getattr(wanted, name)) for name in QUANTITIES)
    return tuple(Costed(name, now, before, "equal" if rule else "") for name, now, before in pairs if now != before)


def document(cell: Cell, name: str, cost: Cost) -> dict[str, Any]:
    """The counts of one network as ``check --json`` and ``--save-costs`` write them: as `profile --json` plus `id`."""
    return {
        "id": name,
        "model": cell.case.model,
        "input_shape": list(cell.case.input_shape),
        **({"inputs": [str(item) for item in cell.case.inputs]} if cell.case.inputs else {}),
        "batch": cell.batch,
        "dtype": cell.case.dtype,
        **cost.to_dict(),
    }


def conditions(cell: Cell) -> str:
    """What the counts of a cell hold for, as `Stored.conditions` writes it."""
    return f"input {_fed(map(str, cell.case.fed))}, batch {cell.batch}, {cell.case.dtype}"


def read(stored: object, source: str) -> tuple[Stored, ...]:
    """The profiles in a document: one of ``profile --json``, a list of such, or what ``check --json`` wrote.

    Raises InvalidValue naming what is not there.
    """
    listed = stored.get("costs", stored) if isinstance(stored, dict) else stored
    entries = listed if isinstance(listed, list) else [listed]
    if not entries:
        raise InvalidValue(f"{source} holds no profile; write one with `effbench check --save-costs {source}`")
    return tuple(_stored(entry, source) for entry in entries)


def matching(stored: Sequence[Stored], name: str, model: str) -> Stored | None:
    """The profile of a network: that under its name, else the only one of its model."""
    named = [item for item in stored if item.name == name]
    alike = named or [item for item in stored if not item.name and item.model in (model, name)]
    return alike[0] if len(alike) == 1 else None


def _held(found: Cost | None, budgets: Mapping[str, int], stored: Stored | None) -> tuple[Costed, ...]:
    def count(name: str) -> int | None:
        return None if found is None else int(getattr(found, name))

    limits = [Costed(name, count(name), most, "at most") for name, most in budgets.items()]
    equal = [] if stored is None else [Costed(name, count(name), n, "equal") for name, n in stored.counts.items()]
    return (*limits, *equal)


def _words(item: Costed) -> str:
    """A broken rule as a sentence, in digits enough to see the difference."""
    found, wanted = item.found, item.wanted
    if found is None or wanted is None:
        return f"{item.name} is not known"
    now, then = units.counts_apart(found, wanted)
    change = f" ({100 * (found / wanted - 1):+.1f} %)" if wanted and 0.0005 <= abs(found / wanted - 1) < 1 else ""
    return f"{item.name} {now}{change}, {'at most' if item.rule == 'at most' else 'stored'} {then}"


@dataclass(frozen=True)
class _Profile:
    """What is read of one entry; `id` and `inputs` only where they are what we write."""

    model: str
    dtype: str
    batch: int
    input_shape: list[Any]
    madds: int
    params: int
    memory_access: int
    memory_access_bytes: int
    activations: int
    id: Any = ""
    inputs: Any = None


def _stored(entry: object, source: str) -> Stored:
    try:
        found = decoding.make(entry, _Profile, closed=False)
    except ValueError as error:
        raise InvalidValue(
            f"{source} is no profile: {error}; write one with `effbench check --save-costs {source}` or `effbench "
            "profile --json`"
        ) from None
    words = found.inputs if isinstance(found.inputs, list) else ["x".join(map(str, found.input_shape))]
    return Stored(
        name=found.id if isinstance(found.id, str) else "",
        model=found.model,
        fed=_fed(map(str, words)),
        batch=found.batch,
        dtype=found.dtype,
        counts={name: getattr(found, name) for name in QUANTITIES},
    )


def _fed(words: Iterable[str]) -> str:
    return " and ".join(words)
