"""The costs gate, against counts made by hand and a figure that torchvision publishes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import COST

from effbench import api
from effbench.core.errors import InvalidValue, Reason
from effbench.core.study import Case, Cell
from effbench.gates import budgets, checked_models, run_gates
from effbench.gates.budgets import StoredProfile
from effbench.gates.config import QUANTITIES, Config, Subject
from effbench.gates.result import CountCheck

pytestmark = pytest.mark.quick

CELL = Cell(Case("net", (3, 8, 8), labels={"model": "net"}))
HERE = "input 3x8x8, batch 1, float32"
PARTIAL = replace(COST, status="partial", uncounted={"aten::fft": 2})


def stored(**counts: int) -> StoredProfile:
    own = {name: getattr(COST, name) for name in QUANTITIES}
    return StoredProfile("net", "net", ("3x8x8",), 1, "float32", {**own, **counts})


def test_a_budget_is_kept_up_to_itself() -> None:
    kept = budgets.judge("net", COST, {"madds": 1000, "params": 10, "memory_access_bytes": 400})
    assert kept.verdict == "PASS" and kept.gate == "costs" and kept.reason == ""
    assert kept.costs[0] == CountCheck("madds", 1000, 1000, "at most")
    broken = budgets.judge("net", COST, {"madds": 999, "params": 10, "activations": 0})
    assert broken.verdict == "REGRESSION"
    assert broken.reason == "madds 1.00 k (+0.1 %), at most 999; activations 90, at most 0"


def test_a_stored_profile_must_be_equal_in_every_count() -> None:
    assert budgets.judge("net", COST, {}, stored(), HERE).verdict == "PASS"
    for name in QUANTITIES:
        for change in (-1, 1):
            found = budgets.judge("net", COST, {}, stored(**{name: getattr(COST, name) + change}), HERE)
            assert found.verdict == "REGRESSION" and name in found.reason, (name, change)
            assert [item.name for item in found.costs if not item.is_met] == [name]


def test_counts_that_look_alike_are_told_in_full() -> None:
    found = budgets.judge("net", replace(COST, madds=300_000_001), {"madds": 300_000_000})
    assert found.reason == "madds 300_000_001, at most 300_000_000"


def test_a_profile_of_another_input_says_nothing() -> None:
    found = budgets.judge("net", COST, {"madds": 1000}, stored(), "input 3x16x16, batch 1, float32")
    assert found.verdict == "INCONCLUSIVE" and "3x8x8" in found.reason and "3x16x16" in found.reason


def test_what_is_not_counted_cannot_pass_and_can_fail() -> None:
    unsure = budgets.judge("net", PARTIAL, {"madds": 1000})
    assert unsure.verdict == "INCONCLUSIVE" and unsure.reason == "there is no formula for aten::fft ×2"
    assert budgets.judge("net", PARTIAL, {"madds": 999}).verdict == "REGRESSION"
    # Parameters are counted without running anything.
    assert budgets.judge("net", PARTIAL, {"params": 10}).verdict == "PASS"


def test_a_network_that_does_not_run_fails() -> None:
    found = budgets.judge("net", "ValueError: broken", {"madds": 10**15})
    assert found.verdict == "REGRESSION" and found.reason == "it does not run: ValueError: broken"
    assert budgets.judge("m", "out of memory: 160 GB", {"madds": 100}).verdict == "ENVIRONMENT"
    assert budgets.judge("m", Reason("no process", "start"), {"madds": 100}).verdict == "ENVIRONMENT"
    assert found.costs == (CountCheck("madds", None, 10**15, "at most"),) and not found.costs[0].is_met


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(QUANTITIES), st.integers(0, 2000)))
def test_it_fails_exactly_where_a_count_is_above_its_budget(limits: dict[str, int]) -> None:
    above = [name for name, most in limits.items() if getattr(COST, name) > most]
    assert (budgets.judge("net", COST, limits).verdict == "REGRESSION") == bool(above)


def test_published_parameters_are_the_border() -> None:
    """3,504,872 parameters: torchvision's page of mobilenet_v2 (MobileNet_V2_Weights.IMAGENET1K_V1)."""
    published = 3_504_872
    verdicts = []
    for most in (published, published - 1):
        config = Config((Subject("m", "mobilenet_v2", budgets={"params": most}),))
        cells = checked_models.make_plan(config, checked_models.study(config)).cells
        verdicts += [item.verdict for item in run_gates.costs(config, cells, checked_models.count_costs(cells))]
    assert verdicts == ["PASS", "REGRESSION"]


def test_what_profile_prints_can_be_held_to() -> None:
    profile = api.profile("shufflenet_v2", (3, 64, 64))
    document = json.loads(json.dumps(profile.to_dict(layers=True)))
    cell = Cell(Case("shufflenet_v2", (3, 64, 64), labels={"model": "mine"}))
    for given_as in (document, [document], {"verdict": "PASS", "costs": [document]}):
        (found,) = budgets.read_profiles(given_as, "costs.json")
        assert budgets.judge("mine", profile.cost, {}, found, budgets.conditions(cell)).verdict == "PASS"
        assert budgets.find_profile([found], "mine", "shufflenet_v2") is found
    own = budgets.read_profiles([budgets.document(cell, "mine", profile.cost)], "costs.json")
    assert own[0].name == "mine" and own[0].counts == found.counts


def test_profiles_are_found_by_name_then_by_model() -> None:
    named, other = replace(stored(), name="a", model="x.py:f"), replace(stored(), name="", model="y.py:g")
    assert budgets.find_profile([named, other], "a", "z.py:h") is named
    assert budgets.find_profile([named, other], "b", "y.py:g") is other
    assert budgets.find_profile([named, other], "b", "x.py:f") is None
    assert budgets.find_profile([other, other], "b", "y.py:g") is None


@pytest.mark.parametrize("document", [{}, [], 3, "x", None, [None], [{"madds": True}], {"costs": []}, {"costs": {}}])
def test_what_is_no_profile_is_refused(document: object) -> None:
    with pytest.raises(InvalidValue, match=r"--save-costs costs\.json") as refused:
        budgets.read_profiles(document, "costs.json")
    assert "\n" not in str(refused.value)


def test_only_what_differs_is_shown() -> None:
    other = replace(COST, madds=1100)
    assert budgets.differing_counts(other, COST) == (CountCheck("madds", 1100, 1000),)
    assert budgets.differing_counts(other, COST, rule=True) == (CountCheck("madds", 1100, 1000, "equal"),)
    assert budgets.differing_counts(COST, COST) == budgets.differing_counts(None, COST) == ()
