"""Widths at equal multiply-adds: the paper's widths are found, and no neighbour is nearer."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effbench.core.errors import InvalidValue
from effbench.zoo import equal_cost


@pytest.mark.parametrize(
    ("reference", "ratio", "printed"),
    [
        (128, 1, (128, 128)),
        (128, 2, (90, 180)),
        (128, 6, (52, 312)),
        (128, 12, (36, 432)),
        (32, 1, (32, 32)),
        (32, 2, (22, 44)),
        (32, 6, (13, 78)),
        (32, 12, (9, 108)),
    ],
)
def test_printed_channel_ratios_are_the_widest_within_the_budget(reference: int, ratio: int, printed: tuple[int, int]):
    """Table 1 of arXiv:1807.11164."""
    found = equal_cost.channel_ratio(reference, ratio, "floor")
    assert found.channels == printed
    assert found.residual == pytest.approx(printed[0] * printed[1] / reference**2 - 1)


@pytest.mark.parametrize(
    ("reference", "groups", "printed"),
    [(128, 1, 128), (128, 2, 180), (128, 4, 256), (128, 8, 360), (64, 2, 90), (64, 4, 128)],
)
def test_printed_group_widths_are_the_widest_within_the_budget(reference: int, groups: int, printed: int):
    """Table 2 of arXiv:1807.11164, but for its 180 in 8 groups on ARM."""
    assert equal_cost.groups(reference, groups, "floor").channels == (printed,)


def test_180_channels_in_8_groups_is_a_slip_for_184():
    assert equal_cost.groups(64, 8, "floor").channels == (176,)
    assert equal_cost.groups(64, 8, "nearest").channels == (184,)
    with pytest.raises(InvalidValue, match="use 184 or 176"):
        equal_cost.check_groups(180, 8)


def test_fragments():
    """c/sqrt(2) = 90.5 and 45.3, c/2: the nearest whole widths; the full width where branches are concatenated."""
    assert [equal_cost.fragments(128, k).channels for k in (1, 2, 4)] == [(128,), (91,), (64,)]
    assert [equal_cost.fragments(64, k).channels for k in (1, 2, 4)] == [(64,), (45,), (32,)]
    assert equal_cost.fragments(128, 2).residual == pytest.approx(2 * 91**2 / 128**2 - 1)
    assert equal_cost.fragments(128, 4, "concat") == equal_cost.Widths((128,), 0.0)
    with pytest.raises(InvalidValue, match="use"):
        equal_cost.fragments(66, 4, "concat")


@pytest.mark.parametrize(("channels", "groups"), [(0, 1), (8, 0), (-8, 2), (3, 8)])
def test_impossible_groups_are_refused(channels: int, groups: int):
    with pytest.raises(InvalidValue, match="use"):
        equal_cost.check_groups(channels, groups)


WIDTH, PARTS = st.integers(8, 4096), st.integers(1, 16)


def costs(reference: int, parts: int):
    """Each solver's width, its residual, the multiply-adds of a width, and the step between valid widths."""
    ratio = equal_cost.channel_ratio(reference, parts)
    groups = equal_cost.groups(reference, parts)
    fragments = equal_cost.fragments(reference, parts)
    assert ratio.channels[1] == parts * ratio.channels[0]
    assert groups.channels[0] % parts == 0
    return [
        (ratio, ratio.channels[0], lambda c: parts * c * c, 1),
        (groups, groups.channels[0], lambda c: c * c / parts, parts),
        (fragments, fragments.channels[0], lambda c: parts * c * c, 1),
    ]


@settings(deadline=None)
@given(WIDTH, PARTS)
def test_no_valid_neighbour_is_nearer_to_the_budget(reference: int, parts: int):
    for found, width, madds, step in costs(reference, parts):
        assert found.residual == pytest.approx(madds(width) / reference**2 - 1)
        for neighbour in (width - step, width + step):
            if neighbour > 0:
                assert abs(madds(neighbour) / reference**2 - 1) >= abs(found.residual) - 1e-12


@settings(deadline=None)
@given(st.integers(64, 4096), PARTS)
def test_floor_is_the_widest_that_does_not_exceed_the_budget(reference: int, parts: int):
    width, _ = equal_cost.channel_ratio(reference, parts, "floor").channels
    assert parts * width**2 <= reference**2 < parts * (width + 1) ** 2
    (width,) = equal_cost.groups(reference, parts, "floor").channels
    assert width**2 <= parts * reference**2 < (width + parts) ** 2


def test_too_narrow_a_reference_is_refused():
    with pytest.raises(InvalidValue, match="too narrow"):
        equal_cost.channel_ratio(2, 12, "floor")
