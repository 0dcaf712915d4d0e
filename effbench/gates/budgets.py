"""The costs gate: compare the counts of models with budgets and stored profiles. Without torch.

Counts do not depend on the machine, so this gate has the same result everywhere and needs no tolerance.
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
from effbench.gates.result import CountCheck, Finding

KNOWN_WITHOUT_FORMULAS = ("params",)
"""Counts that are complete even where an operator has no formula."""


@dataclass(frozen=True)
class StoredProfile:
    """The stored counts of one model and its inputs, each written as on the command line."""

    name: str
    model: str
    inputs: tuple[str, ...]
    batch: int
    dtype: str
    counts: Mapping[str, int]

    @property
    def conditions(self) -> str:
        """The inputs, batch and dtype that the counts are valid for, as text."""
        return conditions_text(self.inputs, self.batch, self.dtype)


def judge(
    name: str,
    found: Cost | str,
    budgets: Mapping[str, int],
    stored: StoredProfile | None = None,
    conditions: str = "",
) -> Finding:
    """Compare the counts of one model with its budgets (at most) and a stored profile (equal).

    `found` is the reason where the model does not run. That is a REGRESSION, or ENVIRONMENT where this machine is the
    cause. Counts that lack an operator are lower bounds: they can exceed a budget but not show that it is kept.
    `conditions` are those of the counts, as `StoredProfile.conditions` has them. A profile stored under others is
    INCONCLUSIVE.
    """
    if isinstance(found, str):
        if getattr(found, "cause", "") == CannotStart.cause or "out of memory" in found:
            return Finding("costs", name, "ENVIRONMENT", f"it cannot be counted here: {found}")
        return Finding(
            "costs", name, "REGRESSION", f"it does not run: {found}", costs=_count_checks(None, budgets, stored)
        )
    if stored is not None and stored.conditions != conditions:
        reason = f"the profile is of {stored.conditions}, this is {conditions}; store it anew"
        return Finding("costs", name, "INCONCLUSIVE", reason, costs=_count_checks(found, budgets, None))
    costs = _count_checks(found, budgets, stored)
    broken = [_describe_broken(item) for item in costs if not item.is_met]
    if broken:
        return Finding("costs", name, "REGRESSION", "; ".join(broken), costs=costs)
    if found.status == "partial" and any(item.name not in KNOWN_WITHOUT_FORMULAS for item in costs):
        missing = ", ".join(f"{operator} ×{calls}" for operator, calls in found.uncounted.items())
        return Finding("costs", name, "INCONCLUSIVE", f"there is no formula for {missing}", costs=costs)
    return Finding("costs", name, "PASS", costs=costs)


def differing_counts(found: Cost | None, wanted: Cost | None, *, rule: bool = False) -> tuple[CountCheck, ...]:
    """The counts that differ between two costs, to be shown, or with `rule` required to be equal. () if one is None."""
    if found is None or wanted is None:
        return ()
    pairs = ((name, getattr(found, name), getattr(wanted, name)) for name in QUANTITIES)
    return tuple(CountCheck(name, now, before, "equal" if rule else "") for name, now, before in pairs if now != before)


def document(cell: Cell, name: str, cost: Cost) -> dict[str, Any]:
    """The counts of one model as ``check --json`` and ``--save-costs`` write them: as `profile --json` plus `id`."""
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
    """The inputs, batch and dtype of a cell, in the format of `StoredProfile.conditions`."""
    return conditions_text(cell.case.all_inputs, cell.batch, cell.case.dtype)


def conditions_text(inputs: Iterable[object], batch: int, dtype: str) -> str:
    """What counts are valid for, as text: ``input 3x224x224 and ids=128:int64, batch 1, float32``."""
    return f"input {' and '.join(map(str, inputs))}, batch {batch}, {dtype}"


def read_profiles(stored: object, source: str) -> tuple[StoredProfile, ...]:
    """Read the profiles in a document: one of ``profile --json``, a list of those, or one of ``check --json``.

    Raises InvalidValue that names what is missing.
    """
    listed = stored.get("costs", stored) if isinstance(stored, dict) else stored
    entries = listed if isinstance(listed, list) else [listed]
    if not entries:
        raise InvalidValue(f"{source} holds no profile; write one with `effbench check --save-costs {source}`")
    return tuple(_read_profile(entry, source) for entry in entries)


def find_profile(stored: Sequence[StoredProfile], name: str, model: str) -> StoredProfile | None:
    """The stored profile of a model: the one with its name, else the only one of the same model."""
    named = [item for item in stored if item.name == name]
    alike = named or [item for item in stored if not item.name and item.model in (model, name)]
    return alike[0] if len(alike) == 1 else None


def _count_checks(
    found: Cost | None, budgets: Mapping[str, int], stored: StoredProfile | None
) -> tuple[CountCheck, ...]:
    def count(name: str) -> int | None:
        return None if found is None else int(getattr(found, name))

    limits = [CountCheck(name, count(name), most, "at most") for name, most in budgets.items()]
    equal = [] if stored is None else [CountCheck(name, count(name), n, "equal") for name, n in stored.counts.items()]
    return (*limits, *equal)


def _describe_broken(item: CountCheck) -> str:
    """A broken limit as text, with enough digits to see the difference."""
    found, wanted = item.found, item.wanted
    if found is None or wanted is None:
        return f"{item.name} is not known"
    now, then = units.counts_to_compare(found, wanted)
    change = f" ({100 * (found / wanted - 1):+.1f} %)" if wanted and 0.0005 <= abs(found / wanted - 1) < 1 else ""
    return f"{item.name} {now}{change}, {'at most' if item.rule == 'at most' else 'stored'} {then}"


@dataclass(frozen=True)
class _ProfileFields:
    """The fields of one entry of a document. `id` and `inputs` are ignored unless they have the type that we write."""

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


def _read_profile(entry: object, source: str) -> StoredProfile:
    try:
        found = decoding.decode(entry, _ProfileFields, closed=False)
    except ValueError as error:
        raise InvalidValue(
            f"{source} is no profile: {error}; write one with `effbench check --save-costs {source}` or `effbench "
            "profile --json`"
        ) from None
    words = found.inputs if isinstance(found.inputs, list) else ["x".join(map(str, found.input_shape))]
    return StoredProfile(
        name=found.id if isinstance(found.id, str) else "",
        model=found.model,
        inputs=tuple(map(str, words)),
        batch=found.batch,
        dtype=found.dtype,
        counts={name: getattr(found, name) for name in QUANTITIES},
    )
