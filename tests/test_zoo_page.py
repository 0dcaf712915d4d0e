"""docs/zoo.md says what the code says today."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

pytestmark = pytest.mark.bulk

ROOT = Path(__file__).parent.parent


def test_the_page_is_up_to_date() -> None:
    page = runpy.run_path(str(ROOT / "benchmarks" / "zoo_page.py"))["page"]()
    assert page == (ROOT / "docs" / "zoo.md").read_text(encoding="utf-8"), "run python benchmarks/zoo_page.py"
    lines = page.splitlines()
    rows = [line for line in lines if line.count(" | ") >= 6 and not line.startswith("| network")]
    unexplained = [line for line in rows if line.endswith("|  |") and "| met |" not in line and "| – |" not in line]
    assert len(rows) > 200 and not unexplained
