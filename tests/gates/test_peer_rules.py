"""The rules of other tools against hand-worked cases, scipy and what their names promise."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effbench.gates.peers import RULES, bootstrap_is_slower

FLAT = [1.0] * 20
SPREAD = [0.9, 1.1] * 10
"""Mean 1.0, deviation 0.1026, minimum 0.9, third quartile 1.1."""
RISING = [1 + 0.001 * place for place in range(20)]

HAND_WORKED = [
    ("mean > 5 %", SPREAD, [1.06] * 20, True),
    ("mean > 5 %", SPREAD, [1.04] * 20, False),
    ("min > 5 %", SPREAD, [0.95, *[9.0] * 19], True),
    ("min > 5 %", SPREAD, [0.94, *[9.0] * 19], False),
    ("median > 7 %", [1.0, 1.0, 9.0], [1.08, 1.08, 1.0], True),
    ("median > 7 %", [1.0, 1.0, 1.0], [1.06, 1.06, 9.0], False),
    # Pooled deviation 0.1026: a change of 0.07 is t = 2.16, one of 0.06 is t = 1.85; the limit at 38 degrees is 2.02.
    ("t, p < 0.05", SPREAD, [value + 0.07 for value in SPREAD], True),
    ("t, p < 0.05", SPREAD, [value + 0.06 for value in SPREAD], False),
    # Four against four, all above: 2 of 70 orders are as far out; three against three, 2 of 20.
    ("U, p < 0.05", [1, 2, 3, 4], [5, 6, 7, 8], True),
    ("U, p < 0.05", [1, 2, 3], [5, 6, 7], False),
    ("U, p < 0.002, factor 1.1", [1, 2, 3, 4], [5, 6, 7, 8], False),
    ("U, p < 0.002, factor 1.1", RISING, [1.2 * value for value in RISING], True),
    ("U, p < 0.002, factor 1.1", RISING, [1.09 * value for value in RISING], False),
    # Significant, and below the noise threshold.
    ("bootstrap t, p < 0.05, 1 %", RISING, [1.009 * value for value in RISING], False),
    # Beyond it, and the interval (± 0.4 %) is not.
    ("bootstrap t, p < 0.05, 1 %", RISING, [1.011 * value for value in RISING], False),
    ("bootstrap t, p < 0.05, 1 %", RISING, [1.05 * value for value in RISING], True),
    ("bootstrap t, p < 0.05, 1 %", SPREAD, [value + 0.03 for value in SPREAD], False),
    # The smaller coefficient of variation decides: 0 on one side lets anything through.
    ("difference > smaller cv", SPREAD, [1.001] * 20, True),
    ("difference > smaller cv", SPREAD, [1.1 * value for value in SPREAD], False),
    ("difference > smaller cv", SPREAD, [1.11 * value for value in SPREAD], True),
    ("[min, q3] 0.5 % apart", SPREAD, [1.11] * 20, True),
    ("[min, q3] 0.5 % apart", SPREAD, [*[1.2] * 19, 1.1], False),
    # Of 20 pairs the interval leaves out 5 at each end (binomial: 4.1 %), not 6 (11.5 %); of 6 none (3.1 %).
    ("paired sign interval", FLAT, [*[0.5] * 5, *[1.01] * 15], True),
    ("paired sign interval", FLAT, [*[0.5] * 6, *[1.01] * 14], False),
    ("paired sign interval", FLAT[:6], [1.01] * 6, True),
    ("paired sign interval", FLAT[:5], [1.01] * 5, False),
    ("ratio > 200 %", FLAT, [2.01] * 20, True),
    ("ratio > 200 %", FLAT, [1.99] * 20, False),
]


@pytest.mark.parametrize(("name", "baseline", "candidate", "expected"), HAND_WORKED)
def test_hand_worked(name: str, baseline: list[float], candidate: list[float], expected: bool) -> None:
    assert RULES[name].is_slower(baseline, candidate) is expected


def test_every_rule_has_a_case_either_way_and_names_its_tool() -> None:
    assert {(name, said) for name, _, _, said in HAND_WORKED} == {
        (name, said) for name in RULES for said in (True, False)
    }
    assert all(rule.about for rule in RULES.values())


def samples(count: int, size: int, shift: float) -> list[tuple[list[float], list[float]]]:
    draw = random.Random(7)
    return [
        ([draw.gauss(1, 0.05) for _ in range(size)], [draw.gauss(1 + shift, 0.05) for _ in range(size + 3)])
        for _ in range(count)
    ]


def test_tests_agree_with_scipy() -> None:
    """Two-sided there, with the direction beside it."""
    from scipy.stats import mannwhitneyu, ttest_ind

    said: set[bool] = set()
    for baseline, candidate in samples(60, 20, 0.03):
        t = ttest_ind(candidate, baseline)
        assert RULES["t, p < 0.05"].is_slower(baseline, candidate) == (t.pvalue < 0.05 and t.statistic > 0)
        # The rank test's own direction could differ from that of the medians only where it sees no difference.
        u = mannwhitneyu(baseline, candidate, alternative="less").pvalue
        assert RULES["U, p < 0.05"].is_slower(baseline, candidate) == (2 * u < 0.05)
        said.add(bool(t.pvalue < 0.05))
    assert said == {True, False}


def test_the_bootstrapped_t_test_is_welchs_on_normal_data() -> None:
    from scipy.stats import ttest_ind

    agreeing, called = 0, 0
    for baseline, candidate in samples(200, 20, 0.02):
        t = ttest_ind(candidate, baseline, equal_var=False)
        expected = bool(t.pvalue < 0.05 and t.statistic > 0)
        called += expected
        agreeing += bootstrap_is_slower(baseline, candidate, noise_threshold=0.0) == expected
    assert agreeing >= 190 and 20 < called < 180


times = st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=12)


@settings(deadline=None, max_examples=60)
@given(times)
def test_the_same_blocks_twice_are_never_slower(blocks: list[float]) -> None:
    assert not [name for name, rule in RULES.items() if rule.is_slower(blocks, list(blocks))]


@settings(deadline=None, max_examples=40)
@given(times, times, st.integers(-8, 8))
def test_no_rule_depends_on_the_unit(baseline: list[float], candidate: list[float], power: int) -> None:
    """Unequal numbers of blocks and single blocks included."""
    for rule in RULES.values():
        scaled = [[value * 2.0**power for value in side] for side in (baseline, candidate)]
        assert rule.is_slower(*scaled) == rule.is_slower(baseline, candidate)


def test_a_single_block_a_side_passes_no_test() -> None:
    """A tool that calls one value against another significant would be wrong half of the time."""
    tests = [name for name in RULES if "p <" in name or "cv" in name or "paired" in name]
    assert len(tests) == 6
    assert not [name for name in tests if RULES[name].is_slower([1.0], [3.0])]
    assert not [name for name in tests if RULES[name].is_slower([1.0, 1.0, 1.0], [3.0])]
