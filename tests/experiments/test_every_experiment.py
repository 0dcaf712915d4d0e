"""Every study in experiments/: unique cases, networks that build and run, controlled quantity really constant."""

from __future__ import annotations

import runpy
import subprocess
import sys
from functools import cache
from itertools import groupby
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from effbench import paper, zoo
from effbench.core.study import Analysis, Case, Experiment
from effbench.studies import catalog

pytestmark = pytest.mark.bulk

FOLDER = Path(__file__).parents[2] / "experiments"
FILES = tuple(sorted(path.stem for path in FOLDER.glob("*.py")))
ANALYSES = ("metric_predicts_speed",)
NAMES = tuple(name for name in FILES if name not in ANALYSES)
GUIDELINES = tuple(name for name in NAMES if name[0] == "g" and name[1].isdigit())

# Largest |multiply-adds / reference - 1| by study, channel set and widths: what the paper's printed widths leave.
RESIDUAL = {
    ("g1_channel_ratio", "GPU", "paper"): 0.0508,
    ("g1_channel_ratio", "ARM", "paper"): 0.0547,
    ("g1_channel_ratio", "GPU", "equal"): 0.0109,
    ("g1_channel_ratio", "ARM", "equal"): 0.0508,
    ("g2_groups", "GPU", "paper"): 0.0112,
    ("g2_groups", "ARM", "paper"): 0.0332,
    ("g2_groups", "GPU", "equal"): 0.0112,
    ("g2_groups", "ARM", "equal"): 0.0332,
    ("g3_fragmentation", "GPU", None): 0.0109,
    ("g3_fragmentation", "ARM", None): 0.0112,
    ("g4_elementwise", "GPU", None): 0.0,
    ("g4_elementwise", "ARM", None): 0.0,
}

OF_THE_ZOO = {(zoo.entry(name).name, zoo.entry(name).input_shape) for name in zoo.names()}


@cache
def load(name: str) -> Experiment:
    return runpy.run_path(str(FOLDER / f"{name}.py"))["EXPERIMENT"]


@cache
def counted(model: str, arguments: tuple, input_shape: tuple[int, ...]) -> int:
    with torch.device("meta"):
        network = zoo.resolve(model, dict(arguments)).eval()
        x = torch.empty(1, *input_shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(x)
    return counter.get_total_flops() // 2


def madds(case: Case, **changed: int) -> int:
    """Those of one block and of each further one, where a network is a stack of equal blocks."""
    blocks = case.arguments.get("blocks")
    if blocks is None or changed:
        return counted(case.model, tuple({**case.arguments, **changed}.items()), case.input_shape)
    one, two = (madds(case, blocks=number) for number in (1, 2))
    return one + (blocks - 1) * (two - one)


def by_default(experiment: Experiment, kind: str) -> list[Case]:
    def allowed(case: Case) -> bool:
        for label, value in experiment.defaults.items():
            wanted = value[kind] if isinstance(value, dict) else value
            if case.labels[label] not in (wanted if isinstance(wanted, tuple) else (wanted,)):
                return False
        return True

    return [case for case in experiment.cases if allowed(case)]


@pytest.mark.parametrize("name", NAMES)
def test_a_study_is_well_formed(name: str):
    study = load(name)
    assert study.name == name
    ids = [case.id for case in study.cases]
    assert len(set(ids)) == len(ids)
    values = study.label_values()
    assert list(study.levels) == list(values[study.factor]) or set(study.levels) == set(values[study.factor])
    assert study.reference in study.levels
    assert set(study.defaults) <= set(values)
    for claim in study.claims:
        assert {level for pair in (*claim.pairs, claim.headline) for level in pair} <= set(study.levels)
    for case in study.cases:
        assert list(case.labels) == list(study.cases[0].labels)
        assert study.reference_of(case) is not None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_defaults_leave_one_reading(name: str, kind: str):
    study = load(name)
    cases = by_default(study, kind)
    assert cases
    free = {label for label in study.label_values() if len({case.labels[label] for case in cases}) > 1}
    assert free <= {study.factor, "scale", "level", "model", "guideline"}


@pytest.mark.parametrize("name", NAMES)
def test_every_case_builds_and_runs_on_shapes_alone(name: str):
    """With two blocks; the first and the last case of each size with all of them.

    What the zoo has at its own size is built by its tests (tests/zoo/test_every_network.py).
    """
    whole = {}
    for case in load(name).cases:
        if not case.arguments and (zoo.entry(case.model).name, case.input_shape) in OF_THE_ZOO:
            continue
        assert madds(case) > 0
        whole.setdefault((case.model, case.labels.get("scale")), []).append(case)
    for cases in whole.values():
        for case in (cases[0], cases[-1]):
            if "blocks" in case.arguments:
                assert madds(case, blocks=case.arguments["blocks"]) == madds(case)


@pytest.mark.parametrize("name", GUIDELINES)
def test_the_input_is_as_wide_as_the_probe(name: str):
    for case in load(name).cases:
        assert case.input_shape[0] == case.arguments.get("channels", case.arguments.get("c1"))
        assert case.input_shape[1:] == ((28, 28) if case.labels.get("unit") == "equal_28" else (56, 56))
        assert case.arguments["blocks"] == 10


@pytest.mark.parametrize("name", GUIDELINES)
def test_multiply_adds_are_constant_within_the_stated_residual(name: str):
    study = load(name)
    worst: dict[tuple, float] = {}
    for case in study.cases:
        reference = study.reference_of(case)
        assert reference is not None
        key = (name, case.labels["channels"], case.labels.get("widths"))
        worst[key] = max(worst.get(key, 0.0), abs(madds(case) / madds(reference) - 1))
    for key, residual in worst.items():
        print(key, f"{residual:.4f}")
        assert residual == pytest.approx(RESIDUAL[key], abs=5e-5)


@pytest.mark.parametrize("name", GUIDELINES)
@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_the_paper_has_a_speed_for_every_default_case(name: str, kind: str):
    study = load(name)
    unit = {"cuda": "batches/s", "cpu": "images/s"}[kind]
    for case in by_default(study, kind):
        found = paper.speed(str(study.paper), case.labels)
        assert found is not None
        assert found[0] > 0
        assert found[1] == unit


@pytest.mark.parametrize("name", ["g1_channel_ratio", "g2_groups"])
def test_default_widths_are_the_papers(name: str):
    """The widths printed in Tables 1 and 2, times the scale; the one typo apart."""
    rows = {(row["platform"], row["scale"], row.get("ratio", row.get("groups"))): row for row in paper.table(name)}
    for case in load(name).cases:
        if case.labels["widths"] == "paper":
            factor = str(case.labels[load(name).factor])
            row = rows[str(case.labels["channels"]), str(case.labels["scale"]), factor]
            if name == "g1_channel_ratio":
                assert (case.arguments["c1"], case.arguments["c2"]) == (
                    int(row["c1_scaled_derived"]),
                    int(row["c2_scaled_derived"]),
                )
            elif (row["platform"], row["groups"]) == ("ARM", "8"):
                assert case.arguments["channels"] == 184 * int(row["scale"][1])
            else:
                assert case.arguments["channels"] == int(row["c_scaled_derived"])


def test_multiply_adds_of_the_references_are_those_derived_from_the_paper():
    for name in ("g1_channel_ratio", "g2_groups", "g3_fragmentation"):
        study = load(name)
        for row in paper.table(name):
            if row[study.factor] in ("1:1", "1", "1-fragment"):
                case = next(
                    case
                    for case in study.cases
                    if (case.labels["channels"], case.labels["scale"]) == (row["platform"], row["scale"])
                    and case.labels[study.factor] == study.reference
                )
                assert madds(case) == round(float(row["mmadds_derived"]) * 1e6)


def test_the_papers_own_figures_bear_out_g1_and_g2():
    """A claim the paper's own table contradicts would be a wrong claim: every pair, both platforms, all scales."""
    for name in ("g1_channel_ratio", "g2_groups", "g4_elementwise"):
        study = load(name)
        for kind in ("cuda", "cpu"):
            cases = sorted(by_default(study, kind), key=lambda case: str(case.labels["scale"]))
            for _, group in groupby(cases, key=lambda case: case.labels["scale"]):
                speeds = {case.labels[study.factor]: paper.speed(str(study.paper), case.labels)[0] for case in group}
                for claim in study.claims:
                    assert all(speeds[slower] < speeds[faster] for slower, faster in claim.pairs), (claim.name, speeds)


def test_the_evidence_for_the_reading_of_g4_is_as_the_notes_say():
    """Implied speed in G multiply-adds/s on ARM, and time of a shortcut's addition, under both readings."""
    others = [
        float(row["value"]) * float(row["mmadds_derived"]) / 1e3
        for name in ("g1_channel_ratio", "g2_groups", "g3_fragmentation")
        for row in paper.table(name)
        if row["platform"] == "ARM"
    ]
    assert [round(value, 1) for value in (min(others), max(others))] == [3.5, 5.6]
    study = load("g4_elementwise")
    for unit, expected, bandwidth in (("outer_56", [1.9, 2.7], 400), ("equal_28", [5.0, 7.1], 100)):
        cases = {
            (case.labels["channels"], case.labels["scale"], case.labels["ops"]): case
            for case in study.cases
            if (case.labels["unit"], case.labels["norm"]) == (unit, "none")
        }
        speeds = {key: paper.speed(study.name, case.labels)[0] for key, case in cases.items()}
        rates = [
            speeds["ARM", s, "relu+shortcut"] * madds(cases["ARM", s, "relu+shortcut"]) / 1e9 for s in ("x1", "x4")
        ]
        assert [round(rate, 1) for rate in rates] == expected
        seconds = (1 / speeds["GPU", "x4", "relu+shortcut"] - 1 / speeds["GPU", "x4", "relu"]) / 10
        channels, height, width = cases["GPU", "x4", "relu"].input_shape
        assert 3 * 4 * channels * height * width / seconds / 1e9 == pytest.approx(bandwidth, rel=0.02)


@pytest.mark.parametrize("name", ANALYSES)
def test_an_analysis_is_found_by_name_and_says_what_it_asks(name: str):
    found = catalog.load(name)
    assert isinstance(found, Analysis)
    assert (found.name, catalog.titles()[name][-1]) == (name, "?")


def test_loading_a_study_imports_no_torch():
    code = (
        "import runpy, sys\n"
        "for path in sys.argv[1:]:\n"
        "    runpy.run_path(path)\n"
        "    assert 'torch' not in sys.modules, path\n"
    )
    paths = [FOLDER / f"{name}.py" for name in FILES]
    subprocess.run([sys.executable, "-c", code, *paths], check=True, cwd=FOLDER.parent)
