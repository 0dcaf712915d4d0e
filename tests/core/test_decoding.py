"""Decoding of JSON into dataclasses: types are strict, and errors name the field in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pytest

from effbench.core import decoding
from effbench.core.cost import Cost, Traffic
from effbench.core.decoding import WrongType


@dataclass(frozen=True)
class Inner:
    calls: int
    at_s: float | None = None


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner
    label: str | int | float | bool = ""
    kind: Literal["", "merged"] = ""
    pair: tuple[int, int] = (0, 0)
    parts: tuple[Inner, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


LEAST = {"name": "a", "inner": {"calls": 1}}
HUGE = 10**400


def test_what_fits_is_made_of_the_nouns() -> None:
    full = LEAST | {"label": True, "kind": "merged", "pair": [1, 2], "parts": [{"calls": 2, "at_s": 3}]}
    found = decoding.decode(full | {"counts": {"x": 1}, "facts": {"x": [HUGE]}}, Outer)
    assert found == Outer("a", Inner(1), True, "merged", (1, 2), (Inner(2, 3.0),), {"x": 1}, {"x": [HUGE]})
    assert found.label is True and isinstance(found.parts[0].at_s, float)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": 1}, "run.name: expected text, got a whole number"),
        ({"name": None}, "run.name: expected text, got null"),
        ({"inner": {}}, "missing 'run.inner.calls'"),
        ({"inner": []}, "run.inner: expected an object, got a list"),
        ({"inner": {"calls": 1.0}}, "run.inner.calls: expected a whole number, got a decimal number"),
        ({"inner": {"calls": "1"}}, "run.inner.calls: expected a whole number, got text"),
        ({"inner": {"calls": True}}, "run.inner.calls: expected a whole number, got true or false"),
        ({"inner": {"calls": 2**63}}, "run.inner.calls: expected a whole number <= 9223372036854775807"),
        ({"inner": {"calls": 1, "at_s": "2"}}, "run.inner.at_s: expected a number or null, got text"),
        ({"inner": {"calls": 1, "at_s": True}}, "run.inner.at_s: expected a number or null, got true or false"),
        ({"inner": {"calls": 1, "at_s": float("inf")}}, "run.inner.at_s: expected a number <= 1.79769"),
        ({"inner": {"calls": 1, "mood": 1}}, "run.inner: there is no field 'mood'"),
        ({"inner": {"calls": 1, "x" * 300: 1}}, f"run.inner: there is no field '{'x' * 40}'"),
        ({"label": HUGE}, "run.label: expected"),
        ({"label": None}, "got null"),
        ({"kind": "other"}, "run.kind: it cannot be 'other'"),
        ({"pair": [1]}, "run.pair: expected a list of length 2, got 1"),
        ({"pair": "ab"}, "run.pair: expected a list, got text"),
        ({"parts": [{"calls": 1}, {"calls": ""}]}, "run.parts[1].calls: expected a whole number, got text"),
        ({"counts": {"x": "y"}}, "run.counts[...]: expected a whole number, got text"),
        ({"counts": []}, "run.counts: expected an object, got a list"),
    ],
)
def test_what_does_not_fit_is_named_with_what_was_expected(change: dict[str, Any], said: str) -> None:
    with pytest.raises(WrongType) as refused:
        decoding.decode(LEAST | change, Outer, at="run")
    assert said in str(refused.value) and "`" not in str(refused.value)


def test_an_open_record_may_have_more_fields_and_its_parts_may_not() -> None:
    assert decoding.decode(LEAST | {"later": 1}, Outer, closed=False) == Outer("a", Inner(1))
    with pytest.raises(WrongType, match="there is no field 'later'"):
        decoding.decode(LEAST | {"later": 1}, Outer)
    with pytest.raises(WrongType, match="inner: there is no field 'later'"):
        decoding.decode({"name": "a", "inner": {"calls": 1, "later": 1}}, Outer, closed=False)


@pytest.mark.parametrize("text", [b"", b"{", b"NaN", b"[-Infinity]", b"\xff", b"9" * 5000])
def test_what_is_no_json_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError):
        decoding.parse(text)


def test_of_a_key_that_is_there_twice_the_last_counts() -> None:
    assert decoding.parse(b'{"a": 1, "a": 2}') == {"a": 2}


def test_a_cost_survives() -> None:
    cost = Cost(1, 2, 3, 4, {"eager": Traffic(1, 2, 3, 4)}, "partial", {"odd": 2}, "cpu")
    assert decoding.decode(asdict(cost), Cost) == cost
