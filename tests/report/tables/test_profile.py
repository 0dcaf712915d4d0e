"""The table of operators: their sums."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effbench.report.tables.profile import layer_rows

pytestmark = pytest.mark.quick

COUNTS = st.tuples(*[st.integers(0, 10**10)] * 3)


@given(st.lists(COUNTS, min_size=1))
@settings(deadline=None)
def test_totals_add_up(counts: list[tuple[int, int, int]]) -> None:
    names = ("madds", "activations", "memory_access")
    layers = [
        {
            "name": "",
            "op": "add",
            "kind": "elementwise",
            "output_shapes": ((2, 3),),
            **dict(zip(names, each, strict=True)),
        }
        for each in counts
    ]
    table = layer_rows({"model": "net", "layers": layers})
    assert table.totals is not None
    totals = dict(zip([column.heading for column in table.columns], table.totals, strict=True))
    assert totals["name"].text == "total" and totals["op"].text == ""
    for place, name in enumerate(names):
        assert totals[name.replace("_", " ")].raw == sum(each[place] for each in counts)
