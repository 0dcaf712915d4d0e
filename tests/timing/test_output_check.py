"""The output check of runtimes against eager: every wrong output is refused, every equal one passes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from effbench.runtimes import Unsupported
from effbench.timing import output_check

EXPECTED = torch.tensor([[1.0, -4.0, 2.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    "found",
    [
        EXPECTED.clone(),
        EXPECTED.numpy(),
        [EXPECTED.numpy()],
        (EXPECTED.float(),),
        {"out": EXPECTED},
        EXPECTED + 4e-4 * torch.tensor([1.0, -1.0, 1.0]),
    ],
    ids=["tensor", "array", "list", "other dtype", "mapping", "rounded otherwise"],
)
def test_the_same_numbers_pass_in_any_wrapping(found: Any) -> None:
    told = output_check.check(EXPECTED, found, "float32")
    assert told["output_error"] <= 1.0001e-4 and told["output_tolerance"] == 1e-3


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (EXPECTED.roll(1, 1), "differs from eager float32 by 1.5 of the largest value, more than 0.001"),
        (EXPECTED.T, "shapes 3x1 where eager float32 returns 1x3"),
        ([EXPECTED, EXPECTED], "shapes 1x3, 1x3 where"),
        ([], "shapes of nothing where"),
        (EXPECTED * 1.01, "more than 0.001"),
        (EXPECTED * float("nan"), "differs from eager float32 by nan"),
    ],
    ids=["another order", "turned", "two", "none", "1 % off", "nan"],
)
def test_anything_else_is_refused_with_the_reason(found: Any, message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        output_check.check(EXPECTED, found, "float32")


def test_the_error_is_relative_to_the_largest_value() -> None:
    """A small entry may be off by as much as a large one: sums round by what went into them."""
    assert output_check.check(EXPECTED, EXPECTED + torch.tensor([0.0, 0.0, 0.002]), "float32")[
        "output_error"
    ] == pytest.approx(0.0005)


def test_narrower_numbers_have_a_wider_tolerance() -> None:
    off = EXPECTED * 1.02
    assert output_check.check(EXPECTED, off, "float16")["output_error"] == pytest.approx(0.02)
    with pytest.raises(Unsupported):
        output_check.check(EXPECTED, off, "float32")
    kinds = ("float64", "float32", "float16", "bfloat16", "int8")
    assert sorted(output_check.TOLERANCES, key=output_check.TOLERANCES.__getitem__) == sorted(
        kinds, key=lambda kind: kinds.index(kind)
    )


def test_where_nothing_can_be_said_nothing_is_refused() -> None:
    blank = torch.full((2,), float("inf"))
    assert output_check.check(blank, blank, "float32")["output_error"] == 0.0
    assert output_check.check(torch.zeros(0), torch.zeros(0), "float32")["output_error"] == 0.0
    assert output_check.check(torch.zeros(2), torch.zeros(2), "float32")["output_error"] == 0.0
    with pytest.raises(Unsupported):
        output_check.check(torch.zeros(2), torch.ones(2), "float32")


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8), st.floats(-10, 10))
def test_the_error_is_that_of_its_definition(values: list[float], off: float) -> None:
    expected, scale = np.array(values), max(map(abs, values))
    found = expected + off
    error = float(np.abs(expected - found).max()) / scale if scale else float(np.abs(found).max())
    if error <= 0.5:
        assert output_check.check(expected, found, "int8")["output_error"] == pytest.approx(error)
    else:
        with pytest.raises(Unsupported):
            output_check.check(expected, found, "int8")


@pytest.mark.parametrize("dtype", output_check.TOLERANCES)
def test_tf32_is_given_the_tolerance_of_a_type_with_as_many_bits(dtype: str) -> None:
    """Ten bits of a number are kept, as float16 has. The reference is float32, so that it is off for every dtype."""
    usual, half = output_check.TOLERANCES[dtype], output_check.TOLERANCES["float16"]
    told = output_check.check(EXPECTED, EXPECTED * 1.01, dtype, tf32=True)
    assert told["output_tolerance"] == max(usual, half)
    assert output_check.tolerance_of(dtype) == usual
    if usual <= half:
        with pytest.raises(Unsupported, match=r"more than 0\.03"):
            output_check.check(EXPECTED, EXPECTED * 1.04, dtype, tf32=True)
