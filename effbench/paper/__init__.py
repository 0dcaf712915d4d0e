"""Read the published figures of ShuffleNetV2 (arXiv:1807.11164), to print beside our own. Imports no torch and no
pandas.

Every figure is in a CSV file of this folder. `PROVENANCE.md` gives the sources and says how the paper measured.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

from effbench.core.errors import UnknownName
from effbench.core.study import Label

_FACTORS = {
    "g1_channel_ratio": "ratio",
    "g2_groups": "groups",
    "g3_fragmentation": "structure",
    "g4_elementwise": "ops",
}
_STUDIES = {study[:2].upper(): study for study in _FACTORS}
_G4_CHANNELS = {"x1": "32", "x2": "64", "x4": "128"}

# Zoo name: row of Figure 2.
_FIGURE_2 = {
    "shufflenet_v1": "ShuffleNet v1 1x (g=3)",
    "shufflenet_v1_g3_x1_0": "ShuffleNet v1 1x (g=3)",
    "mobilenet_v2": "MobileNet v2 1x",
    "mobilenet_v2_x1_0": "MobileNet v2 1x",
}

# Zoo name and input size: row of Table 8. The exact widths of the authors' own MobileNetV2 at 0.15, 0.4, 0.6 and 0.75
# are unknown. Those rows stand beside networks with the usual rounding, and `complexity` shows how far that is off.
_TABLE_8 = {
    ("condensenet", 224): "CondenseNet (G=C=4)",
    ("condensenet_74_g4", 224): "CondenseNet (G=C=4)",
    ("condensenet_74_g8", 224): "CondenseNet (G=C=8)",
    ("igcv3_x0_7", 224): "IGCV3-D (0.7)",
    ("igcv3", 224): "IGCV3-D",
    ("igcv3_x1_0", 224): "IGCV3-D",
    ("igcv3_x1_4", 224): "IGCV3-D (1.4)",
    ("mobilenet_v1_x0_25", 224): "0.25 MobileNet v1",
    ("mobilenet_v1_x0_5", 224): "0.5 MobileNet v1",
    ("mobilenet_v1_x0_75", 224): "0.75 MobileNet v1",
    ("mobilenet_v1_x1_0", 224): "1.0 MobileNet v1",
    ("mobilenet_v1", 224): "1.0 MobileNet v1",
    ("mobilenet_v2_x0_15", 224): "0.15 MobileNet v2 (our impl.)",
    ("mobilenet_v2_x0_4", 160): "0.4 MobileNet v2 (our impl.)",
    ("mobilenet_v2_x0_6", 224): "0.6 MobileNet v2 (our impl.)",
    ("mobilenet_v2_x0_75", 192): "0.75 MobileNet v2 (our impl.)",
    ("mobilenet_v2_x1_0", 224): "1.0 MobileNet v2",
    ("mobilenet_v2", 224): "1.0 MobileNet v2",
    ("mobilenet_v2_x1_4", 224): "1.4 MobileNet v2",
    ("nasnet_a", 224): "NASNet-A (4 @ 1056, our impl.)",
    ("nasnet_a_4_1056", 224): "NASNet-A (4 @ 1056, our impl.)",
    ("pnasnet5", 224): "PNASNet-5 (our impl.)",
    ("pnasnet5_mobile", 224): "PNASNet-5 (our impl.)",
    ("se_shufflenet_v2_x2_0", 224): "ShuffleNet v2 2x (ours, with SE)",
    ("shufflenet_v1_g3_x0_5", 224): "ShuffleNet v1 0.5x (g=3)",
    ("shufflenet_v1_g3_x1_0", 224): "ShuffleNet v1 1x (g=3)",
    ("shufflenet_v1", 224): "ShuffleNet v1 1x (g=3)",
    ("shufflenet_v1_g3_x1_5", 224): "ShuffleNet v1 1.5x (g=3)",
    ("shufflenet_v1_g3_x2_0", 224): "ShuffleNet v1 2x (g=3)",
    ("shufflenet_v2_x0_5", 224): "ShuffleNet v2 0.5x (ours)",
    ("shufflenet_v2_x1_0", 224): "ShuffleNet v2 1x (ours)",
    ("shufflenet_v2", 224): "ShuffleNet v2 1x (ours)",
    ("shufflenet_v2_x1_5", 224): "ShuffleNet v2 1.5x (ours)",
    ("shufflenet_v2_x2_0", 224): "ShuffleNet v2 2x (ours)",
    ("xception_light_x0_5", 224): "Xception 0.5x (our impl.)",
    ("xception_light", 224): "Xception 1x (our impl.)",
    ("xception_light_x1_0", 224): "Xception 1x (our impl.)",
    ("xception_light_x1_5", 224): "Xception 1.5x (our impl.)",
    ("xception_light_x2_0", 224): "Xception 2x (our impl.)",
}


@dataclass(frozen=True)
class FullModel:
    """One row of Table 8 of the ShuffleNetV2 paper (arXiv 1807.11164).

    Attributes
    ----------
    row
        Name of the network, as printed.
    level
        Part of the table that holds it: ``"40"``, ``"140"``, ``"300"`` or ``"500"`` (million multiply-adds), or
        ``"bottom section"``.
    complexity
        Multiply-adds, in millions.
    top1_error
        ImageNet top-1 error, %.
    gpu_speed
        Batches of 8 images per second on a GTX 1080 Ti; None where the paper prints none.
    arm_speed
        Images per second on one core of a Snapdragon 810, at batch 1; None where the paper prints none.
    """

    row: str
    level: str
    complexity: float
    top1_error: float
    gpu_speed: float | None
    arm_speed: float | None


def tables() -> tuple[str, ...]:
    """Return the names that `table` takes."""
    files = resources.files(__name__).iterdir()
    return tuple(sorted(file.name.removesuffix(".csv") for file in files if file.name.endswith(".csv")))


def table(name: str) -> tuple[dict[str, str], ...]:
    """Return the rows of one table, cells as printed. An empty cell is not given in the paper. Raises UnknownName."""
    return tuple(dict(row) for row in _rows(name))


def speed(experiment: str, labels: Mapping[str, Label]) -> tuple[float, str] | None:
    """Return the paper's speed and its unit for a case of the G1-G4 studies, by its labels; None if it has no such row.

    `channels` selects the platform: "GPU" is a GTX 1080 Ti (batches/s), "ARM" one Snapdragon 810 core (images/s).
    Labels that only select an interpretation of the paper (block, widths, merge, unit, norm) are ignored: the paper
    printed one figure, whatever it built.
    """
    if experiment == "guidelines_by_runtime":
        experiment = _STUDIES.get(str(labels.get("guideline")), "")
        labels = {**labels, _FACTORS.get(experiment, ""): labels.get("variant", "")}
    factor = _FACTORS.get(experiment)
    if factor is None or not {"channels", "scale", factor} <= labels.keys():
        return None
    wanted = {"platform": str(labels["channels"])}
    scale, level = str(labels["scale"]), str(labels[factor])
    if factor == "ops":
        present = level.split("+")
        wanted["c"] = _G4_CHANNELS.get(scale, "")
        wanted |= {name: "yes" if name in present else "no" for name in ("relu", "shortcut")}
    else:
        wanted["scale"] = scale
        # The table writes "2-fragment-series" for our "2-series".
        wanted[factor] = level.replace("-series", "-fragment-series").replace("-parallel", "-fragment-parallel")
    row = _first_row(experiment, wanted)
    return None if row is None else (float(row["value"]), row["unit"])


@lru_cache(maxsize=1)
def full_models() -> tuple[FullModel, ...]:
    """Return the rows of Table 8 as printed. `level` is the million multiply-adds in the heading of the row's
    section.
    """
    rows: dict[str, dict[str, dict[str, str]]] = {}
    for cell in _rows("full_models"):
        rows.setdefault(cell["model"], {})[f"{cell['metric']} {cell['platform']}".strip()] = cell
    return tuple(
        FullModel(
            row=name,
            level=cells["complexity"]["level_mflops"],
            complexity=float(cells["complexity"]["value"]),
            top1_error=float(cells["top1_error"]["value"]),
            gpu_speed=_number(cells.get("speed GPU")),
            arm_speed=_number(cells.get("speed ARM")),
        )
        for name, cells in rows.items()
    )


def full_model(model: str, input_shape: Sequence[int] = (3, 224, 224)) -> FullModel | None:
    """Return Table 8's row of a zoo network at this input size, or None."""
    row = _TABLE_8.get((model, input_shape[-1] if input_shape else 0))
    return next((found for found in full_models() if found.row == row), None)


def runtime_shares(model: str, platform: str) -> dict[str, float] | None:
    """Return Figure 2's shares of run time (of 1) on "GPU" or "ARM" by component; None for a network that it does not
    show.

    A component that the figure does not draw for a network (Shuffle of MobileNet v2) is left out. The batch is not
    stated.
    """
    row = _FIGURE_2.get(model)
    cells = [cell for cell in _rows("runtime_breakdown") if (cell["model"], cell["platform"]) == (row, platform)]
    return {cell["component"]: float(cell["value"]) / 100 for cell in cells} or None


@lru_cache
def _rows(name: str) -> tuple[dict[str, str], ...]:
    if name not in tables():
        raise UnknownName("table", name, tables())
    text = resources.files(__name__).joinpath(f"{name}.csv").read_text(encoding="utf-8")
    return tuple(csv.DictReader(text.splitlines()))


def _first_row(name: str, wanted: Mapping[str, str]) -> dict[str, str] | None:
    """Return the first row with these cells that has a value."""
    matching = (row for row in _rows(name) if all(row[key] == value for key, value in wanted.items()))
    return next((row for row in matching if row["value"]), None)


def _number(cell: Mapping[str, str] | None) -> float | None:
    return float(cell["value"]) if cell is not None and cell["value"] else None
