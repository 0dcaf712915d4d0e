"""Formatting and parsing of numbers with units."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from effbench.core import units
from effbench.core.errors import InvalidValue
from effbench.core.estimate import Estimate

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.00123, "1.23 ms"),
        (1.5e-6, "1.50 µs"),
        (62e-9, "62.0 ns"),
        (123.4, "123 s"),
        (None, "–"),
        (0, "0 ns"),
        (0.99999, "1.00 s"),
    ],
)
def test_seconds(value: float | None, text: str) -> None:
    assert units.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(145e6, "145 M"), (4089e6, "4.09 G"), (999_999, "1.00 M"), (12, "12.0"), (None, "–")]
)
def test_counts(value: float | None, text: str) -> None:
    assert units.count(value) == text


def test_sizes_and_ratios() -> None:
    assert units.size(6_500_000) == "6.50 MB"
    assert units.ratio(2.867) == "×2.87"
    assert units.ratio_interval(Estimate(2.87, 2.71, 3.05)) == "×2.87 [2.71, 3.05]"
    assert units.ratio_interval(Estimate(2.87)) == "×2.87"
    assert units.ratio_interval(None) == units.ratio(None) == units.plus_minus(None) == "–"
    assert units.plus_minus(Estimate(2.0, 1.9, 2.1)) == "±5.0 %"


@given(st.floats(1e-12, 1e12))
def test_three_digits_mean_within_half_a_percent(value: float) -> None:
    assert abs(float(units.digits(value)) / value - 1) < 0.00501


def test_counts_that_are_compared_can_be_told_apart() -> None:
    assert units.counts_to_compare(300_000_001, 300_000_000) == ("300_000_001", "300_000_000")
    assert units.counts_to_compare(56_300_000, 900_000) == ("56.3 M", "900 k")
    assert units.counts_to_compare(5, 5) == ("5", "5") and units.counts_to_compare(0, 4200) == ("0", "4.20 k")


@pytest.mark.parametrize(
    ("text", "value"),
    [("300M", 300_000_000), ("4k", 4000), ("1.5G", 1_500_000_000), ("20_000", 20_000), ("0", 0), ("2.3M", 2_300_000)],
)
def test_amounts(text: str, value: int) -> None:
    assert units.amount(text) == value


@pytest.mark.parametrize("text", ["", "M", "-3", "1.5", "3 MB", "300m", "1e6", "nan", "2_0", "0x10", "٣", "9" * 5000])
def test_what_is_no_amount_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(InvalidValue, match=r"is no count: write a whole number such as 20_000") as refused:
        units.amount(text)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 200


@pytest.mark.parametrize(("value", "text"), [(100.0, "100"), (0.254, "0.25"), (3.0, "3"), (12345.0, "12000"), (0, "0")])
def test_rounded_without_an_exponent(value: float, text: str) -> None:
    """`:.2g` would make 1e+02 of a hundred percent."""
    assert units.rounded(value) == text
