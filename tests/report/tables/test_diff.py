"""The table of two runs compared."""

from __future__ import annotations

import pytest
import report_examples as examples

from effbench.report.tables.diff import diff_rows

pytestmark = pytest.mark.quick


def test_diff_counts_what_could_not_be_compared() -> None:
    assert diff_rows(examples.COMPARISONS).notes == ("1 slower, 1 same, 1 missing. Above 1 the candidate is slower.",)
    assert diff_rows([]).notes[0].startswith("Nothing to compare")
