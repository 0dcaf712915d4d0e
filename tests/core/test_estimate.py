"""Formatting of estimates: with interval, and with enough digits to tell the ends apart."""

from __future__ import annotations

import math
import pickle

import pytest

import effbench
from effbench.core.cost import Cost, Traffic
from effbench.core.estimate import Estimate


@pytest.mark.parametrize(
    ("estimate", "spec", "text"),
    [
        (Estimate(1.234, 1.2, 1.26), "", "1.23 [1.20, 1.26]"),
        (Estimate(1.234, 1.2, 1.26), ".3f", "1.234 [1.200, 1.260]"),
        (Estimate(1.234, 1.2, 1.26), "+.0%", "+123% [+120%, +126%]"),
        (Estimate(0.0012345, 0.00123, 0.00124), "", "0.001234 [0.001230, 0.001240]"),
        (Estimate(1.00001, 0.99999, 1.00003), "", "1.00001 [0.999990, 1.00003]"),
        (Estimate(2.0), "", "2.00 (no interval)"),
        (Estimate(2.0), ".1f", "2.0 (no interval)"),
        (Estimate(2.0, 1.0, None), "", "2.00 (no interval)"),
        (Estimate(math.nan, 1.0, math.inf), "", "nan [1.00, inf]"),
        (Estimate(-1.5, -2.0, -1.0), "", "-1.50 [-2.00, -1.00]"),
        (Estimate(1.0, 1.0, 1.0), "", "1.00 [1.00, 1.00]"),
    ],
)
def test_an_estimate_formats_point_and_interval(estimate: Estimate, spec: str, text: str):
    assert format(estimate, spec) == text
    if not spec:
        assert str(estimate) == f"{estimate}" == text


def test_an_estimate_as_a_dictionary_keeps_a_missing_end():
    assert Estimate(1.25, 1.0, 1.5, n=5).to_dict() == {"point": 1.25, "low": 1.0, "high": 1.5}
    assert Estimate(1.25).to_dict() == {"point": 1.25, "low": None, "high": None}


def test_ends_that_differ_look_different():
    assert f"{Estimate(1.2345, 1.2344, 1.2346)}" == "1.2345 [1.2344, 1.2346]"


def test_its_repr_is_short_and_says_how_sure_it_is():
    assert repr(Estimate(1.234, 1.2, 1.26, 0.95, 5)) == "<Estimate 1.23 [1.20, 1.26], 95 %, n=5>"
    assert repr(Estimate(1.234, n=2)) == "<Estimate 1.23 (no interval), n=2>"


def test_a_spec_that_is_none_of_a_float_is_refused_as_a_float_refuses_it():
    with pytest.raises(ValueError, match=r"format code|format specifier"):
        format(Estimate(1.0, 0.9, 1.1), "x")


def test_it_is_exported_and_still_a_plain_value():
    assert effbench.Estimate is Estimate
    assert pickle.loads(pickle.dumps(Estimate(1.0, 0.9, 1.1))) == Estimate(1.0, 0.9, 1.1)


def test_costs_and_traffic_are_one_line():
    moved = Traffic(1000, 2000, 4000, 8000)
    cost = Cost(2_278_604, 145_000_000, 10, 20, dict.fromkeys(("layer", "eager", "pointwise", "epilogue"), moved))
    assert str(moved) == "3.00 k elements, 12.0 kB"
    assert str(cost) == "2.28 M params, 145 M madds, 10.0 activations, memory access 3.00 k elements, 12.0 kB"
