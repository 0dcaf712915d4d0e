"""The paper's figures as package data: complete, found by labels and by network, consistent with its prose."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from effbench import paper
from effbench.errors import UnknownName

FOLDER = Path(paper.__file__).parent


def test_no_heavy_import():
    code = "import sys; from effbench import paper; paper.table('g2_groups');"
    code += "assert not {'torch', 'pandas', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=FOLDER.parent.parent)


def test_every_table_has_rows_and_a_line_in_the_provenance():
    provenance = (FOLDER / "PROVENANCE.md").read_text(encoding="utf-8")
    for name in paper.tables():
        rows = paper.table(name)
        assert rows
        assert None not in rows[0], f"{name}: a row is longer than the header"
        assert all(None not in row.values() for row in rows), f"{name}: a row is shorter than the header"
        assert f"`{name}.csv`" in provenance
    for code in {code for row in paper.table("g2_groups") for code in row["sources"].split(";")}:
        assert re.search(rf"\b{code}\b", provenance)


def test_a_caller_cannot_change_the_tables():
    paper.table("g2_groups")[0]["value"] = "0"
    assert paper.table("g2_groups")[0]["value"] == "2451"


@pytest.mark.parametrize(
    ("study", "labels", "expected"),
    [
        ("g1_channel_ratio", {"channels": "GPU", "scale": "x1", "ratio": "1:1"}, (1480, "batches/s")),
        ("g1_channel_ratio", {"channels": "ARM", "scale": "x4", "ratio": "1:12"}, (4.4, "images/s")),
        ("g2_groups", {"channels": "GPU", "scale": "x1", "groups": 8, "block": "conv"}, (634, "batches/s")),
        ("g2_groups", {"channels": "ARM", "scale": "x1", "groups": 8}, (27.8, "images/s")),
        ("g3_fragmentation", {"channels": "GPU", "scale": "x2", "structure": "4-parallel"}, (572, "batches/s")),
        ("g3_fragmentation", {"channels": "GPU", "scale": "x1", "structure": "2-series"}, (1790, "batches/s")),
        ("g3_fragmentation", {"channels": "ARM", "scale": "x1", "structure": "1-fragment"}, (40.2, "images/s")),
        ("g4_elementwise", {"channels": "GPU", "scale": "x2", "ops": "relu"}, (2256, "batches/s")),
        ("g4_elementwise", {"channels": "GPU", "scale": "x2", "ops": "shortcut"}, (2121, "batches/s")),
        ("g4_elementwise", {"channels": "ARM", "scale": "x4", "ops": "relu+shortcut"}, (5.0, "images/s")),
        ("g2_groups", {"channels": "GPU", "scale": "x3", "groups": 8}, None),
        ("g4_elementwise", {"channels": "GPU", "scale": "x3", "ops": "none"}, None),
        ("g2_groups", {"channels": "GPU"}, None),
        ("my_own_study", {"channels": "GPU", "scale": "x1"}, None),
    ],
)
def test_speed_of_a_case(study: str, labels: dict, expected: tuple | None):
    assert paper.speed(study, labels) == expected


def test_speed_of_a_network():
    assert paper.model_speed("shufflenet_v2", "GPU") == (341, "batches/s", 8)
    assert paper.model_speed("shufflenet_v2_x1_0", "ARM") == (24.4, "images/s", 1)
    assert paper.model_speed("mobilenet_v2_x0_75", "GPU") is None
    assert paper.model_speed("resnet50", "GPU") is None
    assert paper.complexity("shufflenet_v1_g3_x0_5") == 38
    assert paper.top1_error("mobilenet_v1_x0_25") == 49.4
    assert paper.complexity("resnet50") is None is paper.top1_error("resnet50")


def test_speed_ratios_that_the_paper_states_in_words():
    """Section 4: 58 % faster than MobileNetV2 at 500 M on the GPU; error 3.5 points below v1's at 40 M."""
    ours, _, _ = paper.model_speed("shufflenet_v2_x2_0", "GPU")
    theirs, _, _ = paper.model_speed("mobilenet_v2_x1_4", "GPU")
    assert round(100 * (ours / theirs - 1)) == 58
    assert paper.top1_error("shufflenet_v1_g3_x0_5") - paper.top1_error("shufflenet_v2_x0_5") == pytest.approx(3.5)


def test_the_networks_of_table_8_are_those_of_the_zoo():
    """The printed complexity is within 3 % of what our network counts, so that the speeds are of the same network."""
    from effbench import zoo

    for name in paper._TABLE_8:
        assert paper.complexity(name) == pytest.approx(zoo.entry(name).madds_million, rel=0.03)


def test_an_unknown_table_is_named():
    with pytest.raises(UnknownName, match="Did you mean 'g2_groups'"):
        paper.table("g2_group")
