"""The table of verdicts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import report_examples as examples
from report_examples import rows_of

from effbench.report.tables.verdicts import verdict_rows

pytestmark = pytest.mark.quick


def test_verdict_rows_use_words_and_leave_out_labels_that_do_not_vary() -> None:
    verdicts = [replace(verdict, group={"channels": "ARM", **verdict.group}) for verdict in examples.g4()[2]]
    rows = rows_of(verdict_rows(verdicts))
    assert [row["verdict"] for row in rows] == ["holds", "fails", "unsure"]
    assert [row["group"] for row in rows] == ["scale x1", "scale x2", "scale x4"]
    assert rows_of(verdict_rows(verdicts[:1]))[0]["group"] == "channels ARM, scale x1"
