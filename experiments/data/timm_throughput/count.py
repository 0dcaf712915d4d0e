"""Count the costs of every network in the published runs of this folder, with the installed timm release.

    python experiments/data/timm_throughput/count.py [FOLDER]

Writes costs.csv, bounds.csv and missing.csv into FOLDER (default: this one). Takes minutes. What an interrupted count
has finished is kept in counted.jsonl and not counted again, until the count is complete.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from effbench.core.cost import LEVELS
from effbench.core.errors import EffbenchError
from effbench.cost import count_in_subprocess
from effbench.zoo import libraries

HERE = Path(__file__).parent
FACTORS = (1 / 3, 1.0, 3.0)
"""Factors on an assumed peak of arithmetic, to show how much the result depends on the assumption."""
ASSUMED = ("i7_12700h_compiled",)
COUNTS = ("params", "madds", "activations", "elementwise")


def rows(name: str) -> list[dict[str, str]]:
    with (HERE / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def count(model: str, size: int) -> dict[str, Any]:
    """Return the costs of one image, and per level the kernels as (madds, bytes of weights, bytes of activations)."""
    timm = libraries.library("timm")
    found = count_in_subprocess.profile(f"timm:{model}", (3, size, size), batch=1, dtype="float32")
    levels = found.cost.memory_access_levels
    kernels = {
        level: [(item.madds, item.traffic.weight_bytes, item.traffic.activation_bytes) for item in each]
        for level, each in found.kernels.items()
    }
    return {
        "family": timm.model_entrypoint(model).__module__.rpartition(".")[2],
        **{name: getattr(found.cost, name) for name in COUNTS},
        **{
            f"{level}_{part}": getattr(levels[level], part)
            for level in LEVELS
            for part in ("weights", "activations", "weight_bytes", "activation_bytes")
        },
        "status": found.cost.status,
        "kernels": kernels,
    }


def bound_s(
    kernels: Iterable[tuple[int, int, int]], batch: int, flops_per_s: float, bytes_per_s: float, narrower: float
) -> float:
    """Return the roofline bound in seconds per image.

    Weights are read once per batch. `narrower` is the bytes moved per byte counted.
    """
    return sum(
        max(2 * madds / flops_per_s, narrower * (weights / batch + activations) / bytes_per_s)
        for madds, weights, activations in kernels
    )


def all_counts(partial_file: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Return every network and size of the runs. An entry that could not be counted holds only its ``reason``."""
    found = {}
    if partial_file.exists():
        for line in partial_file.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            found[entry.pop("model"), entry.pop("img_size")] = entry
    wanted = {(row["model"], int(row["infer_img_size"])) for run in rows("runs.csv") for row in rows(run["file"])}
    with partial_file.open("a", encoding="utf-8") as file:
        for number, (model, size) in enumerate(sorted(wanted - set(found))):
            try:
                entry = count(model, size)
            except EffbenchError as error:
                entry = {"reason": str(error)}
            found[model, size] = entry
            file.write(json.dumps({"model": model, "img_size": size, **entry}) + "\n")
            if number % 50 == 0:
                print(f"{len(found)} of {len(wanted)}: {model}", file=sys.stderr, flush=True)
    return {key: found[key] for key in sorted(wanted)}


def write(path: Path, lines: list[dict[str, Any]], columns: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(columns), lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(lines)


def main(folder: Path) -> None:
    partial_file = folder / "counted.jsonl"
    found = all_counts(partial_file)
    counted = {key: entry for key, entry in found.items() if "reason" not in entry}
    named = [{"model": model, "img_size": size, **entry} for (model, size), entry in found.items()]
    costs = [entry for entry in named if "reason" not in entry]
    write(folder / "costs.csv", costs, [name for name in costs[0] if name != "kernels"])
    write(folder / "missing.csv", [entry for entry in named if "reason" in entry], ("model", "img_size", "reason"))
    bounds = []
    for run in rows("runs.csv"):
        flops, moved, width = (float(run[name]) for name in ("flops_per_s", "bytes_per_s", "bytes_per_element"))
        for factor in FACTORS if run["run"] in ASSUMED else (1.0,):
            for row in rows(run["file"]):
                key = row["model"], int(row["infer_img_size"])
                if key in counted:
                    values = {
                        level: bound_s(each, int(row["infer_batch_size"]), factor * flops, moved, width / 4)
                        for level, each in counted[key]["kernels"].items()
                    }
                    texts = {level: f"{value:.5g}" for level, value in values.items()}
                    bounds.append(
                        {"run": run["run"], "factor": f"{factor:.3g}", "model": key[0], "img_size": key[1], **texts}
                    )
    write(folder / "bounds.csv", bounds, ("run", "factor", "model", "img_size", *LEVELS))
    partial_file.unlink()
    print(f"{len(costs)} counted with timm {libraries.library('timm').__version__}, {len(named) - len(costs)} missing")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
