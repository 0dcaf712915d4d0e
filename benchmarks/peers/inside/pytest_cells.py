"""Time the suite's cells with pytest-benchmark in a real pytest process."""

from __future__ import annotations

from typing import Any

import cells
import pytest


@pytest.fixture(scope="module")
def calls() -> dict[str, Any]:
    return cells.calls()


@pytest.mark.parametrize("cell", cells.NAMES)
def test_cell(benchmark: Any, calls: dict[str, Any], cell: str) -> None:
    benchmark.extra_info["cell"] = cell
    benchmark(calls[cell])
