"""Rank agreement of metrics with measured time, and the families that its intervals resample."""

from __future__ import annotations

from dataclasses import replace

import pytest
import report_examples as examples

from effbench.analysis import rank_agreement
from effbench.analysis.cell_summary import CellSummary
from effbench.core.cost import LEVELS, Cost, Traffic
from effbench.core.estimate import Estimate
from effbench.core.study import Case, Cell

pytestmark = pytest.mark.quick


def cell(name: str, madds: int, traffic: int, seconds: float, level: int = 0) -> CellSummary:
    levels = {each: Traffic(activations=traffic) for each in LEVELS}
    cost = Cost(madds, madds, 7, 0, levels)
    case = Case(name, (3, 8, 8), labels={"level": level, "model": name})
    return CellSummary(Cell(case), cost, busy=Estimate(seconds))


def tau(found: tuple[rank_agreement.Agreement, ...], metric: str) -> rank_agreement.Agreement:
    return next(item for item in found if item.metric == metric)


def test_the_order_of_time_and_its_opposite() -> None:
    """Five networks: madds in the order of time, memory access against it."""
    cells = [cell(f"m:{name}", at + 1, 9 - at, 1.0 + at) for at, name in enumerate("abcde")]
    found = rank_agreement.agreements(cells)
    assert tau(found, "madds").tau.point == 1
    assert tau(found, "memory access, eager").tau.point == -1
    assert tau(found, "madds").tau.n == 5
    assert "activations" not in {item.metric for item in found}, "the same everywhere has no order"
    assert rank_agreement.agreements(cells[:4]) == ()
    skipped = replace(cells[4], busy=None, skipped="out of memory")
    assert rank_agreement.agreements([*cells[:4], skipped]) == ()


def test_within_groups_only_pairs_of_the_same_group_count() -> None:
    """Two levels far apart: across them the order is right, within each it is wrong."""
    cells = [
        cell(f"m:{level}{at}", 100 * level - at, 5, 100.0 * level + at, level) for level in (1, 2) for at in (0, 1, 2)
    ]
    found = tau(rank_agreement.agreements(cells, ("level",)), "madds")
    # 9 pairs across agree, 3 within each level do not.
    assert found.tau.point == pytest.approx((9 - 6) / 15)
    assert found.within is not None and found.within.point == -1
    assert tau(rank_agreement.agreements(cells), "madds").within is None


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("shufflenet_v2_x0_5", "shufflenet_v2"),
        ("mobilenet_v2_x0_33", "mobilenet_v2"),
        ("torchvision:resnet18", "resnet"),
        ("timm:vit_tiny_patch16_224?img_size=64", "vit"),
        ("nets/mine.py:Build", "build"),
    ],
)
def test_families(model: str, family: str) -> None:
    assert rank_agreement.family(model) == family


def test_a_comparison_of_many_models_has_the_table_and_one_of_two_has_not() -> None:
    from effbench import report

    run, cells = examples.models(2)
    assert "ranking" not in report.run_tables(run, cells, ())
    run, cells = examples.models(8)
    assert "ranking" in report.run_tables(run, cells, ())
