"""Small made-up runs for the tests of tables and figures: the shapes of G2, G3, G4 and of a comparison."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace

from effbench.analysis.cell_summary import CellSummary
from effbench.core.cost import Cost, Traffic
from effbench.core.estimate import Comparison, Estimate, PairEvidence, Verdict
from effbench.core.peaks import Peaks
from effbench.core.run import Environment, Launch, Metric, Result, Run
from effbench.core.study import Case, Cell, Experiment, Label, Sampling
from effbench.report.tables.table_model import Table, render_csv


def cost(params: int, madds: int, memory_access: int, uncounted: Mapping[str, int] | None = None) -> Cost:
    traffic = Traffic(weights=params, activations=memory_access - params)
    levels = dict.fromkeys(("layer", "eager", "pointwise", "epilogue"), traffic)
    status = "partial" if uncounted else "complete"
    return Cost(params, madds, madds // 10, 0, levels, status, uncounted or {})


def around(point: float, width: float = 0.02) -> Estimate:
    """An estimate with a relative half-width."""
    return Estimate(point, point * (1 - width), point * (1 + width), n=5)


def run_of(
    cells: Sequence[CellSummary],
    *,
    title: str,
    factor: str,
    levels: tuple[Label, ...],
    device: str = "cpu",
    clock: str = "wall",
    complete: bool = True,
    facts: Mapping[str, object] | None = None,
    probes: Mapping[str, Mapping[str, object]] | None = None,
) -> Run:
    experiment = Experiment(
        "example", title, "a claim", factor, levels, levels[0], tuple(cell.cell.case for cell in cells)
    )
    return Run(
        experiment,
        Environment(device, "eager", facts or {}),
        Sampling(),
        tuple(Result(cell.cell, cell.cost, skipped=cell.skipped) for cell in cells),
        (Launch(0, 0, "precision", probes=probes or {}),),
        clock=clock,
        complete=complete,
    )


def study_cells(
    factor: str,
    ratios: Mapping[str, Sequence[tuple[Label, float | None, float | None]]],
    *,
    base_s: float = 0.01,
    group: str = "scale",
    width: float = 0.02,
) -> list[CellSummary]:
    """Cells of groups: level, our ratio (None: skipped), the paper's ratio. The first level is the reference."""
    cells = []
    for place, (name, rows) in enumerate(ratios.items()):
        base = base_s * 3**place
        for level, ratio, paper in rows:
            labels = {"channels": "ARM", group: name, factor: level}
            cell = Cell(Case("probe", (64, 56, 56), labels=labels))
            if ratio is None:
                cells.append(CellSummary(cell, skipped="out of memory"))
                continue
            reference = f"channels=ARM,{group}={name},{factor}={rows[0][0]}"
            cells.append(
                CellSummary(
                    cell,
                    cost(40_960 * 4**place, 128_450_560 * 4**place, 4_055_040 * 2**place),
                    latency=around(base * ratio, width),
                    busy=around(base * ratio, width),
                    ratio=Estimate(1.0) if cell.id == reference else around(ratio, width),
                    reference=reference,
                    throughput=1 / (base * ratio),
                    paper_speed=None if paper is None else 40.0 / paper,
                    paper_unit="images/s",
                    paper_ratio=paper,
                    bound="device",
                    launches=5,
                    blocks=60,
                )
            )
    return cells


def verdict(
    claim: str,
    word: str,
    group: Mapping[str, Label],
    pair: tuple[Label, Label, Estimate | None, float | None],
    reason: str = "",
) -> Verdict:
    headline = PairEvidence(pair[0], pair[1], pair[2], word, "", pair[3])
    return Verdict(claim, f"what {claim} says", group, word, headline, (headline,), reason)


GROUPS = {
    "x1": [(1, 1.0, 1.0), (2, 1.21, 1.08), (4, 1.55, 1.25), (8, 2.12, 1.73)],
    "x2": [(1, 1.0, 1.0), (2, 1.32, 1.04), (4, 1.8, 1.15), (8, 2.87, 1.39)],
    "x4": [(1, 1.0, 1.0), (2, 1.11, 1.03), (4, 1.35, 1.12), (8, 1.81, 1.23)],
}


def g2() -> tuple[Run, list[CellSummary], list[Verdict]]:
    cells = study_cells("groups", GROUPS)
    run = run_of(
        cells,
        title="G2: group convolution raises memory access cost",
        factor="groups",
        levels=(1, 2, 4, 8),
        facts={"cpu.model": "Intel Xeon 8370C", "gpu.name": None},
    )
    verdicts = []
    for name, rows in GROUPS.items():
        pair = (8, 1, around(rows[3][1] or 0.0), rows[3][2])
        verdicts.append(verdict("G2", "unsure" if name == "x1" else "holds", {"scale": name}, pair, _UNSURE[name]))
    return run, cells, verdicts


_UNSURE = {"x1": "the launches disagree", "x2": "", "x4": ""}

STRUCTURES = ("1-fragment", "2-series", "4-series", "2-parallel", "4-parallel")


def g3() -> tuple[Run, list[CellSummary], list[Verdict]]:
    ours = {"x1": (1, 1.08, 1.3, 1.2, 1.6), "x2": (1, 1.05, 1.2, 1.15, 1.4), "x4": (1, 1.02, 1.1, 1.05, 1.22)}
    paper = {"x1": (1, 1.1, 1.41, 1.22, 1.6), "x2": (1, 1.15, 1.3, 1.2, 1.5), "x4": (1, 1.1, 1.2, 1.15, 1.3)}
    cells = study_cells(
        "structure", {name: list(zip(STRUCTURES, ours[name], paper[name], strict=True)) for name in ours}
    )
    run = run_of(cells, title="G3: fragmentation reduces parallelism", factor="structure", levels=STRUCTURES)
    verdicts = [
        verdict(f"G3 {how}", "holds", {"scale": name}, (f"4-{how}", "1-fragment", around(1.4), 1.3))
        for name in ours
        for how in ("series", "parallel")
    ]
    return run, cells, verdicts


OPS = ("relu+shortcut", "relu", "shortcut", "none")


def g4() -> tuple[Run, list[CellSummary], list[Verdict]]:
    ours = {"x1": (1, 0.95, 0.93, 0.85), "x2": (1, 0.96, 0.92, 0.88), "x4": (1, 0.97, None, 0.9)}
    paper = {"x1": (1, 0.98, 0.97, 0.95), "x2": (1, 0.96, 0.92, 0.9), "x4": (1, 0.97, 0.94, 0.92)}
    cells = study_cells("ops", {name: list(zip(OPS, ours[name], paper[name], strict=True)) for name in ours})
    run = run_of(
        cells, title="G4: element-wise operations are not free", factor="ops", levels=OPS, complete=False, clock="cpu"
    )
    verdicts = [
        verdict("G4", "holds", {"scale": "x1"}, ("relu+shortcut", "none", around(1.17), 1.06)),
        verdict("G4", "fails", {"scale": "x2"}, ("relu+shortcut", "none", around(0.97), 1.06), "the order is reversed"),
        verdict("G4", "unsure", {"scale": "x4"}, ("relu+shortcut", "none", None, 1.06), "a cell was skipped"),
    ]
    return run, cells, verdicts


MODELS = (
    ("shufflenet_v2_x1_0", 2.28, 144.9, 14.1, 9.1),
    ("mobilenet_v2_x1_0", 3.5, 300.8, 26.7, 16.2),
    ("resnet18", 11.69, 1814.1, 24.1, 21.0),
    ("resnet50", 25.56, 4089.2, 99.0, 58.4),
    ("shufflenet_v1_g3_x1_0", 1.87, 137.5, 15.2, 10.4),
    ("mobilenet_v1_x1_0", 4.23, 568.7, 30.1, 17.9),
    ("shufflenet_v2_x0_5", 1.37, 40.5, 7.6, 5.2),
    ("shufflenet_v2_x1_5", 3.5, 295.8, 20.9, 13.6),
    ("shufflenet_v2_x2_0", 7.39, 583.3, 30.3, 20.8),
    ("mobilenet_v2_x1_4", 6.11, 582.2, 38.5, 25.1),
    ("timm:efficientnet_b0", 5.29, 385.9, 33.0, 23.5),
    ("torchvision:regnet_x_400mf", 5.5, 413.8, 20.2, 17.7),
)


def models(number: int, *, skipped: Sequence[str] = (), prefix: str = "") -> tuple[Run, list[CellSummary]]:
    cells = []
    rows = list(MODELS)
    while len(rows) < number:
        rows += [(f"{name}_again{len(rows)}", p, madds * 1.01, mem, ms * 1.01) for name, p, madds, mem, ms in MODELS]
    reference = prefix + rows[0][0]
    memory_read = {"peak_memory_bytes": 48_200_000, "source": "max_memory_allocated of torch"}
    for place, (name, params, madds, memory, ms) in enumerate(rows[:number]):
        cell = Cell(Case(prefix + name, (3, 224, 224), labels={"model": prefix + name}), device="cuda:0", threads=0)
        if name in skipped:
            cells.append(CellSummary(cell, skipped="out of memory: 12.4 GB needed, 8 GB on the device"))
            continue
        cells.append(
            CellSummary(
                cell,
                cost(int(params * 1e6), int(madds * 1e6), int(memory * 1e6), {"aten::roll": 3} if place == 3 else None),
                latency=around(ms * 1e-3),
                busy=around(ms * 1e-3),
                ratio=Estimate(1.0) if place == 0 else around(ms / MODELS[0][4]),
                reference=f"model={reference}",
                throughput=1e3 / ms,
                paper_speed=57.0 - place if place % 3 == 0 else None,
                paper_unit="images/s" if place % 3 == 0 else None,
                bound="device" if place % 2 else "host",
                flags=() if place % 2 else ("host-bound",),
                notes=("page faults",) if place == 1 else (),
                launches=3,
                blocks=30,
                set_aside=1 if place == 2 else 0,
                metrics=(Metric("peak_memory", memory_read),) if place == 0 else (),
            )
        )
    run = run_of(
        cells,
        title="Models side by side",
        factor="model",
        levels=tuple(cell.cell.case.model for cell in cells),
        device="cuda:0",
        clock="device",
        facts={"cpu.model": "AMD EPYC 9554", "gpu.name": "NVIDIA H100 80GB HBM3"},
        # Of a GPU that holds every model at once: no model's own.
        probes={cell.cell.id: {"peak_memory_bytes": 99_900_000} for cell in cells},
    )
    return run, cells


PEAKS = Peaks(flops_per_s=2e11, bytes_per_s=4e10, threads=1, flops_samples=(1.9e11, 2e11), bytes_samples=(4e10,))


def bounded(run: Run, cells: Sequence[CellSummary], peaks: Peaks = PEAKS) -> tuple[Run, list[CellSummary]]:
    """The run with these peaks, each cell's arithmetic alone for its bound at every level, 4 bytes an element."""
    facts = {**run.environment.facts, **peaks.facts()}
    found = []
    for cell in cells:
        if cell.cost is not None:
            levels = {
                level: replace(traffic, activation_bytes=4 * traffic.elements)
                for level, traffic in cell.cost.memory_access_levels.items()
            }
            cost = replace(cell.cost, memory_access_levels=levels)
            cell = replace(cell, cost=cost, bounds_s=dict.fromkeys(levels, 2 * cost.madds / peaks.flops_per_s))
        found.append(cell)
    return replace(run, environment=replace(run.environment, facts=facts)), found


COMPARISONS = [
    Comparison("groups=1", "slower", around(1.05)),
    Comparison("groups=2", "same", around(1.0)),
    Comparison("groups=8", "missing", None, "not in the baseline"),
]


def rows_of(table: Table) -> list[dict[str, str]]:
    """The table as its CSV has it."""
    return list(csv.DictReader(io.StringIO(render_csv(table))))
