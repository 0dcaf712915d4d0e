"""The table of rank correlations: which metric orders networks as their measured times do. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from effbench.analysis.rank_agreement import Agreement
from effbench.report.tables import values
from effbench.report.tables.table_model import Column, Table, drop_empty


def ranking_rows(found: Sequence[Agreement], group: str = "") -> Table:
    """Build the table of rank correlations with one row per metric: Kendall's tau with measured times, over all
    networks and, where there are several groups, within each `group`.
    """
    columns = (
        Column("metric", align="left"),
        Column("Kendall's tau with measured time"),
        Column(f"tau within the same {group}"),
        Column("networks"),
    )
    rows = tuple(
        (
            values.text(item.metric),
            values.estimate(item.tau, 2),
            values.estimate(item.within, 2),
            values.whole(item.tau.n),
        )
        for item in found
    )
    note = (
        "1 is the same order, 0 none. Brackets are 95 % intervals over families of networks; two metrics are compared "
        "by them only roughly, since both rank the same networks."
    )
    return drop_empty(Table("Which metric ranks the networks as the clock does?", columns, rows, (note,)))
