"""One row a cell: the same names and values in the frame, in CSV and in JSON."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, replace
from typing import Any, get_type_hints

import pytest
from runs import CELLS, run_of

from effbench import export
from effbench.analysis.cpu_share import CpuShare
from effbench.analysis.summary import summarise
from effbench.core.estimate import Estimate
from effbench.core.run import Reading, Result, Run
from effbench.paper import FullModel
from effbench.report import json_document
from effbench.report.cell_row import CellRow, cell_row, columns
from effbench.results import Results

TIMES = dict(zip(CELLS, (0.01, 0.013, 0.02), strict=True))
PERCENTILES = {f"p{share}{end}_s": 0.001 * share for share in (50, 90, 99) for end in ("", "_low", "_high")}
READINGS = (
    Reading("percentiles", {**PERCENTILES, "n": 500, "id": "no column"}),
    Reading("peak_memory", {"peak_memory_bytes": 1e6, "weights_bytes": 40, "source": "VmHWM"}),
    Reading("energy", {"energy_j_per_image": 0.2, "power_w": 30.0, "idle_w": 10.0, "source": "RAPL"}),
    Reading("instructions", missing="no counter"),
)


def with_label(result: Result, **labels: Any) -> Result:
    case = replace(result.cell.case, labels={**result.cell.case.labels, **labels})
    return replace(result, cell=replace(result.cell, case=case))


@pytest.fixture(scope="module")
def run() -> Run:
    made = run_of(TIMES)
    first, *others = made.results
    bounds = dict.fromkeys(("layer", "eager", "pointwise", "epilogue"), 0.005)
    return replace(made, results=(replace(first, readings=READINGS, bounds_s=bounds), *others))


def test_a_column_stands_for_the_same_everywhere(run: Run) -> None:
    results = Results(run)
    frame, told = results.to_frame(), results.to_dict()["cells"]
    read = list(csv.DictReader(io.StringIO(export.export(run, "csv").texts[""])))
    assert list(frame.columns) == list(read[0])
    for (_, row), line, cell in zip(frame.iterrows(), read, told, strict=True):
        for name in frame.columns:
            value, inside = row[name], cell["labels"][name] if name in cell["labels"] else cell[name]
            if isinstance(inside, dict):
                inside = inside.get("median", inside.get("point"))
            if isinstance(inside, list):
                inside = {"flags": ", ", "notes": "; "}[name].join(inside)
            if inside is None:
                assert (value is None or value != value) and line[name] == "", name
            else:
                assert value == inside and line[name] == str(inside), name


def test_the_row_holds_what_was_measured(run: Run) -> None:
    cell = summarise(run)[0]
    row = cell_row(cell)
    assert cell.latency is not None and (row.latency_s, row.latency_low_s) == (cell.latency.point, cell.latency.low)
    assert (row.device, row.runtime, row.dtype, row.model) == ("cpu", "eager", "float32", "probe")
    assert (row.p99_s, row.peak_memory_bytes, row.energy_j_per_image) == (0.099, 1e6, 0.2)
    assert row.instructions_per_call is None and row.id == cell.cell.id, "a reading adds no columns of its own"
    assert row.roofline_s == 0.005 and row.time_over_roofline == pytest.approx(2, rel=0.01)
    assert (row.madds, row.memory_access, row.memory_access_bytes) == (1000, 100, 400)
    assert cell_row(replace(cell, cost=None)).madds is None


def test_each_column_holds_what_it_is_called_after(run: Run) -> None:
    """Every field of a summary that becomes a column, each with a value of its own."""
    (cell, *_) = summarise(run)
    names = ("latency", "busy", "ratio", "ratio_wall", "speedup", "speedup_wall")
    estimates = {name: Estimate(number, number - 0.5, number + 0.5) for number, name in enumerate(names, start=1)}
    place = replace(cell.cell, device="cuda:1", runtime="compile", threads=3, batch=5, memory_format="f", mode="train")
    plain = {"reference": "r", "throughput": 7.0, "throughput_unit": "u", "paper_speed": 8.0, "paper_unit": "v"}
    plain |= {"paper_ratio": 9.0, "bound": "host", "launches": 10, "blocks": 11, "set_aside": 12, "skipped": "s"}
    row = asdict(
        cell_row(
            replace(
                cell,
                cell=place,
                full_model=FullModel("row", "140", 13.0, 14.0, None, None),
                prepared={"output_error": 15.0},
                cpu=CpuShare(16.0),
                flags=("a", "b"),
                notes=("c", "d"),
                **estimates,
                **plain,
            )
        )
    )
    columns = ("latency_s", "busy_s", "ratio", "ratio_wall", "speedup_over_eager", "speedup_over_eager_wall")
    for name, found in zip(columns, estimates.values(), strict=True):
        stem, unit = name.removesuffix("_s"), "_s" * name.endswith("_s")
        assert [row[name], row[f"{stem}_low{unit}"], row[f"{stem}_high{unit}"]] == [found.point, found.low, found.high]
    assert plain.items() <= row.items()
    wanted = {"device": "cuda:1", "runtime": "compile", "threads": 3, "batch": 5, "memory_format": "f", "mode": "train"}
    wanted |= {"paper_madds_million": 13.0, "paper_top1_error": 14.0, "output_error": 15.0, "cpu_share": 16.0}
    assert wanted.items() <= row.items() and (row["flags"], row["notes"]) == ("a, b", "c; d")


def test_labels_are_columns_and_hide_no_number(run: Run) -> None:
    result = with_label(run.results[0], ratio="1:2", batch=8, model="mine", free=3)
    (cell,) = summarise(replace(run, results=(result,)))
    found = columns(cell)
    assert (found["ratio_label"], found["batch_label"], found["batch"], found["free"]) == ("1:2", 8, 1, 3)
    assert found["model"] == "mine" and "model_label" not in found, "models are known by their labels"
    assert json_document.cell_document(cell)["model"] == "probe"
    assert list(found)[:3] == ["id", "scale", "groups"]


def test_every_column_is_explained() -> None:
    kinds = get_type_hints(CellRow, include_extras=True)
    assert all(kind.__metadata__[0].description for kind in kinds.values())
