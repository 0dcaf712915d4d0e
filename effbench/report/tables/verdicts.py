"""The table of verdicts: one row per claim and group. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from effbench.core.estimate import Verdict
from effbench.report import text as report_text
from effbench.report.tables import values
from effbench.report.tables.table_model import Column, Table, drop_empty


def verdict_rows(verdicts: Sequence[Verdict]) -> Table:
    """Build the table of verdicts: the verdict of each claim and group, the headline ratio, the paper's, the reason."""
    keys = report_text.varying_labels(verdict.group for verdict in verdicts) or tuple(
        dict.fromkeys(key for verdict in verdicts for key in verdict.group)
    )
    columns = (
        Column("claim", align="left"),
        Column("group", align="left"),
        Column("verdict", align="left"),
        Column("pair", align="left"),
        Column("time ratio"),
        Column("by the wall clock"),
        Column("paper's ratio"),
        Column("reason", align="left"),
    )
    rows = []
    for verdict in verdicts:
        headline = verdict.headline
        group = report_text.group_text({key: verdict.group[key] for key in keys if key in verdict.group})
        pair = f"{report_text.label_text(headline.slower)} over {report_text.label_text(headline.faster)}"
        rows.append(
            (
                values.text(verdict.claim),
                values.text(group),
                values.text(verdict.verdict),
                values.text(pair),
                values.ratio(headline.ratio),
                values.ratio(headline.wall),
                values.ratio(headline.paper_ratio),
                values.text(verdict.reason or headline.reason),
            )
        )
    texts = dict.fromkeys(f"{verdict.claim}: {verdict.text}" for verdict in verdicts if verdict.text)
    intervals = {item.headline.ratio.confidence for item in verdicts if item.headline.ratio is not None}
    levels = " and ".join(report_text.percent(confidence) for confidence in sorted(intervals))
    shared = (f"Brackets are {levels} intervals: the pairs of one claim share its error.",) if levels else ()
    return drop_empty(Table("Verdicts", columns, tuple(rows), (*texts, *shared)))
