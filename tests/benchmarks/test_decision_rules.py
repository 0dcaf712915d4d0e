"""The rules of other tools against hand-worked cases and scipy, and on recorded blocks beside the gate."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import flat, recorded

from effbench.core.errors import InvalidValue

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.decision_rules.__main__ import main
from benchmarks.decision_rules.outcome import OURS, as_markdown, document
from benchmarks.decision_rules.replay import Replay, replay
from benchmarks.decision_rules.rules import RULES, bootstrap_is_slower

AA = Path(__file__).parents[2] / "results" / "benchmarks" / "intel-xeon-kvm-2-cores" / "aa"

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


# --- on recorded blocks --------------------------------------------------------------------------------


def by_rule(found: Replay, arrangement: str) -> dict[str, float]:
    return {item.rule: item.alarm.point for item in found.rules if item.arrangement == arrangement}


PAIRED = "paired sign interval"
UNPAIRED = ["mean > 5 %", "min > 5 %", "median > 7 %", "t, p < 0.05", "U, p < 0.05", "bootstrap t, p < 0.05, 1 %"]


@pytest.mark.bulk
def test_drift_between_launches_breaks_rules_that_do_not_pair() -> None:
    """Both sides drift by 15 % from launch to launch: harmless within one, ruinous between two."""
    drifting = replay(flat(recorded(drift=0.15, between=0.0)), suites=60, seed=1)
    calm = replay(flat(recorded(drift=0.0, between=0.0)), suites=60, seed=1)
    sequential, interleaved = by_rule(drifting, "sequential"), by_rule(drifting, "interleaved")
    assert all(sequential[name] > 0.2 for name in UNPAIRED)
    assert all(interleaved[name] < 0.07 for name in [*UNPAIRED, PAIRED])
    assert sequential[PAIRED] > 0.2, "pairs across launches are no pairs"
    assert all(share < 0.07 for name, share in by_rule(calm, "sequential").items() if name in UNPAIRED)
    assert drifting.ours.gate[0].suite_called.point == 0 == calm.ours.gate[0].suite_called.point


def test_a_sitting_of_several_launches_sees_several() -> None:
    """Twelve rounds of four launches pair better than of one: the paired rule sees 3 % more often."""
    source = flat(recorded(cells=1, between=0.0, within=0.06))
    found = [replay(source, suites=60, slowdowns=[0.03], sitting=sitting) for sitting in (1, 4)]
    powers = [
        next(item.power[0.03].point for item in each.rules if (item.rule, item.arrangement) == (PAIRED, "interleaved"))
        for each in found
    ]
    assert powers[1] > powers[0] + 0.2


@pytest.mark.bulk
def test_a_rule_calls_more_of_what_is_slower() -> None:
    for rule in replay(flat(recorded(launches=26, between=0.01)), suites=60).rules:
        assert 0 <= rule.alarm.point <= rule.suite_alarm.point <= 1
        powers = [share.point for share in rule.power.values()]
        assert powers == sorted(powers), rule.rule


def test_the_gate_beside_them_is_the_products() -> None:
    """Of the same seed: `effbench aa --replay` and this speak of the same suites."""
    from recordings import evidence

    from effbench.gates.alarm_rate import resample

    source = recorded(between=0.02)
    assert replay(flat(source), suites=20, seed=3).ours == resample(evidence(source), suites=20, seed=3)


def test_one_launch_has_no_sequential_comparison_and_it_says_so() -> None:
    found = replay(flat(recorded(launches=1, within=0.001)), suites=30)
    assert any("sequential" in line for line in found.ours.caveats)
    assert {item.arrangement for item in found.rules} == {"interleaved"}


def test_what_is_disturbed_or_missing_is_compared_by_no_rule() -> None:
    source = recorded(cells=3)
    source["cell1"] = [[replace(item, flags=("shared",)) for item in items] for items in source["cell1"]]
    source["cell2"] = source["cell2"][:3]
    found = replay(flat(source), suites=40)
    assert all(item.alarm.n <= 80 for item in found.rules), "cell2 is in three launches only"
    assert replay(flat({"cell1": source["cell1"]}), suites=5).rules == ()
    with pytest.raises(InvalidValue, match="sitting"):
        replay(flat(source), sitting=0)


def test_the_table_and_the_document_hold_all_of_it() -> None:
    found = replay(flat(recorded(cells=2, launches=14)), suites=20)
    lines = as_markdown(found).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2 : 3 + len(RULES)]] == [OURS, *RULES]
    for honest in ("approximations", "not runs of the tools", "14 launches", "not injected"):
        assert honest in lines[-3] + lines[-5] + lines[-1]
    said = json.loads(json.dumps(document(found), allow_nan=False))
    assert len(said["rules"]) == 2 * len(RULES)
    for item, outcome in zip(said["rules"], found.rules, strict=True):
        assert (item["rule"], item["arrangement"]) == (outcome.rule, outcome.arrangement)
        assert item["alarm"]["point"] == outcome.alarm.point
        assert {each["slowdown"]: each["point"] for each in item["power"]} == {
            share: called.point for share, called in outcome.power.items()
        }
    assert "nothing to decide on" in as_markdown(replay({}, suites=5))


def test_the_command_reads_what_aa_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(AA), "--suites", "5", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["launches"] == {"recorded": 20, "drawn": 13, "sitting": 1} and len(said["rules"]) == 2 * len(RULES)
    with pytest.raises(SystemExit) as stopped:
        main(["no such folder"])
    assert stopped.value.code == 2 and "there is no pair of runs" in capsys.readouterr().err
