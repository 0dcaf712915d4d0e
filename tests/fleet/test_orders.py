"""Orders: what a machine refuses before it carries anything out."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from effbench.core.errors import EffbenchError
from effbench.fleet import orders
from effbench.fleet.orders import Order

GOOD: dict[str, Any] = {
    "run": "20261129-101500-g2_groups-3fa9c1d2",
    "machine": "pi5-a",
    "study": "g2_groups",
    "arguments": {"scale": "x1", "select": {"groups": ["1", "2"]}, "models": [], "depthwise": False},
    "options": {"device": "cpu", "launches": 5, "budget_s": 60.0},
    "by": "alice@laptop",
    "command": "effbench fleet run g2_groups",
}


def test_an_order_is_the_same_after_it_was_sent() -> None:
    order = orders.parse(json.dumps(GOOD))
    assert order == Order(**GOOD)
    assert orders.parse(order.to_json()) == order and "\n" not in order.to_json()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"run": "../../etc"}, "cannot be the name of a run's folder"),
        ({"run": ".hidden"}, "cannot be the name of a run's folder"),
        ({"run": "a" * 121}, "cannot be the name of a run's folder"),
        ({"run": "a\nb"}, "cannot be the name of a run's folder"),
        ({"study": ""}, "names a study or a bundle"),
        ({"bundle": "0" * 64}, "names a study or a bundle"),
        ({"study": "", "bundle": "../../../x"}, "is no SHA-256"),
        ({"arguments": {"out": "/etc"}}, "no argument of a study in an order named 'out'"),
        ({"options": {"launchs": 5}}, "no option in an order named 'launchs'. Did you mean 'launches'"),
        ({"options": [1]}, "this is no order"),
        ({"run": 5}, "this is no order"),
        ({"folder": "/etc"}, "this is no order"),
    ],
)
def test_a_wrong_order_is_refused_in_a_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(EffbenchError, match=said) as refused:
        orders.parse(json.dumps({**GOOD, **changes}))
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 1000


@pytest.mark.parametrize("text", ["", "[]", "{}", "nonsense", '{"run": NaN}', "[" * 100_000])
def test_what_is_no_order_is_refused(text: str) -> None:
    with pytest.raises(EffbenchError):
        orders.parse(text)


def test_the_subject_names_what_is_measured() -> None:
    assert Order(**GOOD).subject == "g2_groups"
    assert dataclasses.replace(Order(**GOOD), study="", bundle="ab" * 32).subject == "bundle abababababab"
