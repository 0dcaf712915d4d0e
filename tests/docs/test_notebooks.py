"""The committed notebooks: small, complete, without paths of the machine that made them. CI executes them (nbmake)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import effbench

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
HOME = re.compile(r"/(work|root|home|tmp|Users|var|opt|usr)/")


def cells(path: Path, kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def source(path: Path, kind: str) -> str:
    return "\n".join("".join(cell["source"]) for cell in cells(path, kind))


def test_there_are_three_and_the_table_lists_each() -> None:
    assert [path.name[:3] for path in NOTEBOOKS] == ["01_", "02_", "03_"]
    listed = re.findall(r"\]\((\S+\.ipynb)\)", (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8"))
    assert listed == [path.name for path in NOTEBOOKS]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_is_whole_and_small(path: Path) -> None:
    """Executed from top to bottom in one go, without an error or a warning, and small enough to review."""
    code = cells(path, "code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 1
    assert path.stat().st_size < 200_000
    assert json.loads(path.read_text(encoding="utf-8"))["metadata"]["kernelspec"]["name"] == "python3"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_output_names_a_place_on_the_machine_that_made_it(path: Path) -> None:
    for cell in cells(path, "code"):
        for output in cell["outputs"]:
            texts = [
                output.get("text", ""),
                *(output.get("data", {}).get(kind, "") for kind in ("text/plain", "text/html")),
            ]
            assert not HOME.search("".join("".join(text) for text in texts))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_lead_somewhere_and_runs_go_to_a_temporary_folder(path: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", source(path, "markdown")):
        assert link.startswith("http") or (path.parent / link).exists(), link
    calls = re.findall(r"effbench\.(?:run|compare|measure)\((.*)", source(path, "code"))
    assert calls and all("out=" in call for call in calls), "a notebook leaves nothing behind under results/"


def test_results_at_the_end_of_a_cell_stay_short() -> None:
    """A cell that ends in results stores their repr beside the tables; the raw blocks would fill the notebook."""
    results = effbench.load(ROOT / "results" / "reference" / "amd-epyc-zen5-kvm-2-cores" / "g2_groups")
    assert repr(results) == "<Results of g2_groups: 12 cells>"
