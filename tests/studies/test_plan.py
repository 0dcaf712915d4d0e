"""Plans from options: defaults by device, selections, and errors for invalid options."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from runs import study

from effbench.core.errors import EffbenchError, InvalidValue, UnknownName
from effbench.core.study import Case, Experiment, Sampling
from effbench.studies import catalog, plan

pytestmark = pytest.mark.quick


def made(**options: Any) -> plan.Plan:
    return plan.make(options.pop("experiment", study()), **options)


def test_the_clock_follows_device_and_threads() -> None:
    assert made(device="cpu", threads=1).clock == "cpu"
    assert made(device="cpu", threads=2).clock == "wall"
    assert made(device="cuda").clock == "device"
    assert made(device="cuda").threads == 0, "threads mean nothing there"
    assert made(device="cpu", threads=0).threads >= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tpu"}, "no device named 'tpu'.*cpu, cuda, fake"),
        ({"runtime": "eagre"}, "Did you mean 'eager'"),
        ({"allocator": "none"}, "retain, system"),
        ({"dtype": "float31"}, "Did you mean 'float32'"),
        ({"batch": 0}, r"batch \(=0\)"),
        ({"threads": -2}, r"threads \(=-2\)"),
        ({"sampling": {"launches": 0}}, r"launches \(=0\)"),
        ({"sampling": {"budget_s": -1.0}}, r"budget \(=-1\)"),
        ({"sampling": {"precision": float("nan")}}, "precision"),
        ({"select": {"colour": ["red"]}}, "no label of made_up named 'colour'.*scale, groups"),
        ({"select": {"groups": ["3"]}}, "no groups in made_up named '3'.*1, 2, 4"),
    ],
)
def test_nonsense_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises((InvalidValue, UnknownName), match=message):
        made(**options)


def test_selecting_levels_keeps_the_reference() -> None:
    cells = made(select={"groups": ["4"]}).cells
    assert [cell.case.labels["groups"] for cell in cells] == [1, 4]


@pytest.mark.parametrize(("device", "channels"), [("cpu", "ARM"), ("fake", "ARM"), ("cuda", "GPU")])
def test_defaults_follow_the_device(device: str, channels: str) -> None:
    cells = made(experiment=catalog.load("g2_groups"), device=device).cells
    assert len(cells) == 12
    assert {cell.case.labels["channels"] for cell in cells} == {channels}
    assert {cell.case.labels["widths"] for cell in cells} == {"paper"}


def test_a_reading_can_be_selected() -> None:
    cells = made(experiment=catalog.load("g2_groups"), select={"block": ["conv_bn_relu"], "scale": ["x2"]}).cells
    assert len(cells) == 4
    assert {cell.case.arguments["block"] for cell in cells} == {"conv_bn_relu"}


def test_choices_that_exclude_each_other_say_so() -> None:
    cases = tuple(Case("m", (1,), labels={"a": 1, "b": value, "c": value}) for value in (1, 2))
    experiment = Experiment("e", "", "", "a", (1,), 1, cases)
    assert len(plan.choose_cases(experiment, "cpu", {"b": ["1"], "c": ["1"]})) == 1
    with pytest.raises(InvalidValue, match="no case of e has all of"):
        plan.choose_cases(experiment, "cpu", {"b": ["1"], "c": ["2"]})


def test_quick_and_single_fields_override_the_study() -> None:
    quick = made(quick=True, sampling={"launches": 2}).sampling
    assert quick.launches == 2 and quick.max_rounds == plan.QUICK["max_rounds"]
    assert made().sampling == Sampling()
    assert made(sampling={"min_rounds": 90}).sampling.max_rounds == 90


@pytest.mark.parametrize(
    ("options", "launches", "rounds"),
    [
        ({"until": "faster"}, 13, 20),
        ({"until": "precision"}, 13, 60),
        ({"until": "faster", "launches": 6}, 6, 20),
        ({"until": "faster", "quick": True}, 13, plan.QUICK["max_rounds"]),
        ({"until": "launches"}, 5, 60),
    ],
)
def test_a_run_that_stops_by_itself_plans_more_launches_of_fewer_rounds(
    options: dict[str, Any], launches: int, rounds: int
) -> None:
    found = made(**options).sampling
    assert (found.launches, found.max_rounds, found.until) == (launches, rounds, options["until"])


def test_a_study_with_an_unknown_stopping_rule_is_refused() -> None:
    odd = replace(study(), sampling=Sampling(until="fastest"))  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match=r"stopping rule named 'fastest'.*launches, faster, precision"):
        plan.make(odd, device="fake")


def test_the_catalog_finds_studies_and_names_what_is_wrong(tmp_path: Any) -> None:
    assert set(catalog.names()) >= {"g1_channel_ratio", "g2_groups", "g3_fragmentation", "g4_elementwise"}
    assert all(title.endswith("?") for title in catalog.titles().values()), "a study's first line is its question"
    with pytest.raises(UnknownName, match="Did you mean 'g2_groups'"):
        catalog.load("g2_group")
    bad = tmp_path / "bad.py"
    for source, message in (
        ("x = (", "line 1"),
        ("1 / 0", "ZeroDivisionError"),
        ("EXPERIMENT = 3", "defines no EXPERIMENT"),
        ("raise SystemExit", "SystemExit"),
    ):
        bad.write_text(source)
        with pytest.raises(EffbenchError, match=message):
            catalog.load(str(bad))
    with pytest.raises(EffbenchError, match="no study file"):
        catalog.load(str(tmp_path / "absent.py"))


def test_a_study_says_its_batch_by_device_and_an_option_says_otherwise() -> None:
    """Table 8 is measured at batch 8 on a GPU and at 1 on a CPU, as the paper has it."""
    table_8 = catalog.load("full_models")

    def batches(study: Any, device: str, **options: Any) -> set[int]:
        return {cell.batch for cell in plan.make(study, device=device, **options).cells}

    assert batches(table_8, "cuda") == {8}
    assert batches(table_8, "cpu") == {1} == batches(catalog.load("g2_groups"), "cuda")
    assert batches(table_8, "cuda", batch=3) == {3}
