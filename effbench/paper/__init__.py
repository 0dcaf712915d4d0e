"""The published figures of ShuffleNetV2 (arXiv:1807.11164), to print beside our own. No torch, no pandas.

Every cell is in a CSV file of this folder; `PROVENANCE.md` says where each comes from and how the paper measured.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources

from effbench.core import Label
from effbench.errors import UnknownName

_FACTORS = {
    "g1_channel_ratio": "ratio",
    "g2_groups": "groups",
    "g3_fragmentation": "structure",
    "g4_elementwise": "ops",
}
_G4_CHANNELS = {"x1": "32", "x2": "64", "x4": "128"}

# Zoo name: row of Table 8 that measured this very network. Left out are the authors' own MobileNetV2 at 0.15, 0.4, 0.6
# and 0.75: two use smaller images, and their multiply-adds fit no known rounding of the widths.
_TABLE_8 = {
    "mobilenet_v1_x0_25": "0.25 MobileNet v1",
    "mobilenet_v1_x0_5": "0.5 MobileNet v1",
    "mobilenet_v1_x0_75": "0.75 MobileNet v1",
    "mobilenet_v1_x1_0": "1.0 MobileNet v1",
    "mobilenet_v1": "1.0 MobileNet v1",
    "mobilenet_v2_x1_0": "1.0 MobileNet v2",
    "mobilenet_v2": "1.0 MobileNet v2",
    "mobilenet_v2_x1_4": "1.4 MobileNet v2",
    "shufflenet_v1_g3_x0_5": "ShuffleNet v1 0.5x (g=3)",
    "shufflenet_v1_g3_x1_0": "ShuffleNet v1 1x (g=3)",
    "shufflenet_v1": "ShuffleNet v1 1x (g=3)",
    "shufflenet_v1_g3_x1_5": "ShuffleNet v1 1.5x (g=3)",
    "shufflenet_v1_g3_x2_0": "ShuffleNet v1 2x (g=3)",
    "shufflenet_v2_x0_5": "ShuffleNet v2 0.5x (ours)",
    "shufflenet_v2_x1_0": "ShuffleNet v2 1x (ours)",
    "shufflenet_v2": "ShuffleNet v2 1x (ours)",
    "shufflenet_v2_x1_5": "ShuffleNet v2 1.5x (ours)",
    "shufflenet_v2_x2_0": "ShuffleNet v2 2x (ours)",
}


def tables() -> tuple[str, ...]:
    """Names that `table` takes."""
    files = resources.files(__name__).iterdir()
    return tuple(sorted(file.name.removesuffix(".csv") for file in files if file.name.endswith(".csv")))


def table(name: str) -> tuple[dict[str, str], ...]:
    """The rows of one table, cells as printed; an empty cell is not given in the paper. Raises UnknownName."""
    return tuple(dict(row) for row in _rows(name))


def speed(experiment: str, labels: Mapping[str, Label]) -> tuple[float, str] | None:
    """The paper's speed and its unit for a case of the G1-G4 studies, by its labels; None where it has no such row.

    `channels` chooses the platform: "GPU" is a GTX 1080 Ti (batches/s), "ARM" one Snapdragon 810 core (images/s).
    Labels that only choose a reading of the paper (block, widths, merge, unit, norm) are ignored: it printed one
    figure, whatever it built.
    """
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
    row = _one(experiment, wanted)
    return None if row is None else (float(row["value"]), row["unit"])


def model_speed(model: str, platform: str) -> tuple[float, str, int] | None:
    """Table 8's speed of a zoo network on "GPU" or "ARM", its unit and the batch it was taken at; None where absent."""
    row = _table_8(model, {"metric": "speed", "platform": platform})
    return None if row is None else (float(row["value"]), row["unit"], int(row["batch"]))


def complexity(model: str) -> float | None:
    """Table 8's million multiply-adds ("FLOPs" there) of a network of the zoo; None where absent."""
    row = _table_8(model, {"metric": "complexity"})
    return None if row is None else float(row["value"])


def top1_error(model: str) -> float | None:
    """Table 8's ImageNet top-1 error, in percent, of a network of the zoo; None where absent."""
    row = _table_8(model, {"metric": "top1_error"})
    return None if row is None else float(row["value"])


@lru_cache
def _rows(name: str) -> tuple[dict[str, str], ...]:
    if name not in tables():
        raise UnknownName("table", name, tables())
    text = resources.files(__name__).joinpath(f"{name}.csv").read_text(encoding="utf-8")
    return tuple(csv.DictReader(text.splitlines()))


def _one(name: str, wanted: Mapping[str, str]) -> dict[str, str] | None:
    """The first row with these cells that has a value."""
    matching = (row for row in _rows(name) if all(row[key] == value for key, value in wanted.items()))
    return next((row for row in matching if row["value"]), None)


def _table_8(model: str, wanted: Mapping[str, str]) -> dict[str, str] | None:
    return _one("full_models", {"model": _TABLE_8[model], **wanted}) if model in _TABLE_8 else None
