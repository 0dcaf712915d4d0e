"""The paper's figures as package data: complete, found by labels and by network, consistent with its prose."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from effbench import paper
from effbench.core.errors import UnknownName

pytestmark = pytest.mark.bulk

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


def test_a_network_of_table_8():
    row = paper.full_model("shufflenet_v2")
    assert row == paper.FullModel("ShuffleNet v2 1x (ours)", "140", 146, 30.6, 341, 24.4)
    assert paper.full_model("shufflenet_v2_x1_0") == row
    assert paper.full_model("mobilenet_v2_x0_75") is None
    assert paper.full_model("mobilenet_v2_x0_75", (3, 192, 192)).gpu_speed == 235
    assert paper.full_model("resnet50") is None


def test_table_8_is_whole():
    """39 rows in five sections; CondenseNet alone has no speeds."""
    rows = paper.full_models()
    assert len(rows) == 39
    assert [row.row for row in rows if row.gpu_speed is None or row.arm_speed is None] == [
        "CondenseNet (G=C=8)",
        "CondenseNet (G=C=4)",
    ]


def test_speed_ratios_that_the_paper_states_in_words():
    """Section 4: 58 % faster than MobileNetV2 at 500 M on the GPU; error 3.5 points below v1's at 40 M."""
    ours, theirs = paper.full_model("shufflenet_v2_x2_0"), paper.full_model("mobilenet_v2_x1_4")
    assert round(100 * (ours.gpu_speed / theirs.gpu_speed - 1)) == 58
    v1, v2 = paper.full_model("shufflenet_v1_g3_x0_5"), paper.full_model("shufflenet_v2_x0_5")
    assert v1.top1_error - v2.top1_error == pytest.approx(3.5)


def test_an_unknown_table_is_named():
    with pytest.raises(UnknownName, match="Did you mean 'g2_groups'"):
        paper.table("g2_group")
