"""Counts of networks that are not ours against torchvision's published figures and against fvcore's stored ones.

fvcore's counts in results/coverage/timm_fvcore.csv are its own, made by benchmarks/coverage.py; ours are made anew.
"""

from __future__ import annotations

import importlib.util
import random
import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from networks import without_initialisers

ROOT = Path(__file__).resolve().parents[2]

if not (ROOT / "benchmarks" / "coverage.py").exists():  # as in an installed copy of the tests
    pytest.skip("benchmarks/ is not here", allow_module_level=True)
for needed in ("torchvision", "timm"):
    if importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed", allow_module_level=True)


pytestmark = pytest.mark.bulk


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two forks for every network and initialisers of what has no values would take two thirds of the time."""
    monkeypatch.setattr("effbench.cost.forked_call.can_fork", lambda: False)
    with without_initialisers():
        yield


@pytest.fixture(scope="module")
def benchmark_files() -> Any:
    """The two scripts, by path: benchmarks/ is no package, and `coverage` is another one's name."""
    specification = importlib.util.spec_from_file_location("network_coverage", ROOT / "benchmarks" / "coverage.py")
    assert specification is not None and specification.loader is not None
    script = importlib.util.module_from_spec(specification)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        specification.loader.exec_module(script)
    return script, script.coverage_page


def test_every_figure_that_torchvision_publishes(benchmark_files: Any):
    """All weights of its classification, segmentation and video networks: 131 in release 0.28."""
    script, page = benchmark_files
    rows = [{key: str(value) for key, value in row.items()} for row in script.torchvision_rows(set())]
    assert len(rows) >= 131
    unlike = [row for row in rows if not page.published({"error": "", **row})]
    assert not unlike
    assert {row["traced_on"] for row in rows} == {"meta"}
    assert {row["status"] for row in rows} == {"complete"}


def families(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Forty networks, each of another family by the letters that its name begins with. Large ones only take longer."""
    drawn = random.Random(1807).sample(rows, len(rows))
    first = {re.match(r"[a-z]+", row["network"])[0]: row for row in drawn}  # type: ignore[index]
    return sorted(first.values(), key=lambda row: int(row["products"]))[:40]


def test_networks_of_forty_families_of_timm_equal_fvcores_count(benchmark_files: Any):
    from effbench import api

    _, page = benchmark_files
    known = [row for row in page.read("timm_fvcore") if not row["error"] and not row["blind"]]
    known = [row for row in known if page.cause({**row, "blind": ""}) == "unknown"]
    chosen = families(known)
    assert len(chosen) == 40
    if f"timm {version('timm')}" not in chosen[0]["release"]:
        pytest.skip("the stored counts are of another release of timm")
    for row in chosen:
        found = api.profile(f"timm:{row['network']}")
        assert "x".join(map(str, found.input_shape)) == row["input"]
        assert found.cost.madds == int(row["products"]), row["network"]
        assert found.cost.traced_on == "meta"


def test_the_page_says_what_the_files_say(benchmark_files: Any):
    _, page = benchmark_files
    text = page.PAGE.read_text()
    assert text == page.page(text, page.coverage()), "run: python benchmarks/coverage.py docs"
    assert "| unknown |" not in text, "every exception has a cause"


def test_the_stored_coverage_is_what_is_asked_for(benchmark_files: Any):
    _, page = benchmark_files
    found = page.coverage()
    assert not found.entries_unlike
    assert found.counted_share >= 0.99
    assert found.equal_share >= 0.98
    names = [row["network"] for row in (*found.counted, *found.uncounted)]
    assert len(set(names)) == len(names) > 1000
    assert {row["traced_on"] for row in found.counted} == {"meta"}


def test_no_network_of_the_installed_timm_is_left_out(benchmark_files: Any):
    from effbench.zoo import libraries

    _, page = benchmark_files
    found = page.coverage()
    if f"timm {version('timm')}" not in found.counted[0]["release"]:
        pytest.skip("the stored counts are of another release of timm")
    names = {row["network"] for row in (*found.counted, *found.uncounted)}
    assert names == set(libraries.library("timm").list_models())


def test_a_difference_without_a_known_cause_is_called_so(benchmark_files: Any):
    _, page = benchmark_files
    row = {"network": "new_net", "blind": "", "error": ""}
    assert page.cause(row) == "unknown"
    assert "fused attention" in page.cause({**row, "blind": "aten::scaled_dot_product_attention:12"})
    entry = {"error": "", "params": "5", "published_params": "5", "madds": "1499500000", "published_gmadds": "1.5"}
    assert page.published(entry)
    assert not page.published({**entry, "madds": "1499499000"})
    assert not page.published({**entry, "params": "6"})
