"""Does an analytic metric predict the speed of a network from a family it has not seen?"""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from effbench.analysis import prediction, rank_agreement, summary
from effbench.analysis.prediction import Sample, Score
from effbench.core import units
from effbench.core.cost import LEVELS
from effbench.core.errors import InvalidValue, UnknownName
from effbench.core.estimate import Estimate
from effbench.core.study import Analysis, ReportProgress
from effbench.report.analysis_outcome import Outcome
from effbench.report.tables.table_model import NOTHING, Column, Table, Value
from effbench.runs import run_file

DATA = Path(__file__).parent / "data" / "timm_throughput"
NAME = "metric_predicts_speed"
TITLE = "Which analytic metric predicts speed?"
CLAIM = (
    "Multiply-adds alone predict speed badly; with the memory access that the runtime really makes, they predict it."
)
SIZES = ("all", "smallest")
ASSUMED_PEAKS_RUN = "i7_12700h_compiled"
"""The run whose peaks are an assumption instead of the device's nominal figures."""


def analyse(selected: Mapping[str, Sequence[str]], tell: ReportProgress = lambda done, doing: None) -> Outcome:
    """Analyse the published runs of timm's networks, or stored comparisons if ``runs`` names their folders."""
    if "runs" in selected and "sizes" in selected:
        raise InvalidValue("sizes chooses among the published networks; leave it out beside runs")
    sizes = selected.get("sizes", SIZES[:1])
    if len(sizes) != 1:
        raise InvalidValue(f"sizes takes one of {', '.join(SIZES)}, and was given {len(sizes)}")
    if sizes[0] not in SIZES:
        raise UnknownName("choice of sizes", sizes[0], SIZES)
    samples = [stored(folder) for folder in selected["runs"]] if "runs" in selected else published(sizes[0])
    found = []
    for number, sample in enumerate(samples):
        tell(number / (len(samples) + 1), f"fitting {sample.title}")
        found.append((sample, prediction.assess(sample)))
    tell(len(samples) / (len(samples) + 1), "varying what is assumed, drawing")
    tables = {"table": score_table(found)}
    if "runs" not in selected:
        tables["assumption"] = assumption_table(
            next(each for each in samples if each.name == ASSUMED_PEAKS_RUN), sizes[0]
        )
    return Outcome(
        {
            "analysis": NAME,
            "claim": CLAIM,
            "samples": [_sample_document(sample, scores) for sample, scores in found],
            "notes": [note for table in tables.values() for note in table.notes],
        },
        tables,
        lambda: _figures(found),
    )


# --- where networks and times come from ---------------------------------------------------------------


def rows(name: str) -> list[dict[str, str]]:
    """Return the rows of one file of published data or counted costs."""
    with (DATA / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def published(sizes: str = "all") -> list[Sample]:
    """Return three published runs of timm's networks; with ``smallest`` each network once, at its smallest image
    size.
    """
    costs = {(row["model"], row["img_size"]): row for row in rows("costs.csv")}
    bounds = bounds_s()
    samples = []
    for run in rows("runs.csv"):
        lines = counted_lines(run, sizes)
        metrics: dict[str, list[float]] = {name: [] for name in metric_names()}
        for row in lines:
            model, size = row["model"], row["infer_img_size"]
            cost, bound = costs[model, size], bounds[run["run"], "1", model, size]
            metrics["multiply-adds"].append(float(cost["madds"]))
            metrics["activations"].append(float(cost["activations"]))
            for level in LEVELS:
                # Weights are read once per batch, whatever its size.
                weights = float(cost[f"{level}_weights"]) / int(row["infer_batch_size"])
                metrics[f"memory access, {level}"].append(weights + float(cost[f"{level}_activations"]))
                metrics[f"roofline bound, {level}"].append(float(bound[level]))
        times = [1 / float(row["infer_samples_per_sec"]) for row in lines]
        families = [costs[row["model"], row["infer_img_size"]]["family"] for row in lines]
        samples.append(Sample(run["run"], run["title"], metrics, times, families))
    return samples


def bounds_s() -> dict[tuple[str, str, str, str], dict[str, str]]:
    """Return roofline bounds per image at each level, by run, factor on the assumed peak, model and image size."""
    return {(row["run"], row["factor"], row["model"], row["img_size"]): row for row in rows("bounds.csv")}


def counted_lines(run: Mapping[str, str], sizes: str) -> list[dict[str, str]]:
    """Return the rows of a published run whose network could be counted."""
    missing = {(row["model"], row["img_size"]) for row in rows("missing.csv")}
    lines = [row for row in rows(run["file"]) if (row["model"], row["infer_img_size"]) not in missing]
    if sizes == "all":
        return lines
    largest_first = sorted(lines, key=lambda row: -int(row["infer_img_size"]))
    return list({row["model"]: row for row in largest_first}.values())


def metric_names() -> tuple[str, ...]:
    """Return every metric that is tried. Multiply-adds come first, because every other metric is combined with them."""
    levels = (f"{what}, {level}" for what in ("memory access", "roofline bound") for level in LEVELS)
    return ("multiply-adds", "activations", *levels)


def stored(folder: str) -> Sample:
    """Return the measured networks of a stored run. Raises StorageError, CorruptRun, InvalidValue."""
    run = run_file.load(folder)
    cells = [cell for cell in summary.summarise(run) if cell.latency is not None and cell.cost is not None]
    metrics: dict[str, list[float]] = {}
    for cell in cells:
        batch = cell.cell.batch
        metrics.setdefault("multiply-adds", []).append(cell.cost.madds / batch)
        metrics.setdefault("activations", []).append(cell.cost.activations / batch)
        for level, traffic in cell.cost.memory_access_levels.items():
            metrics.setdefault(f"memory access, {level}", []).append(traffic.elements / batch)
        for level, least_s in (cell.bounds_s or {}).items():
            metrics.setdefault(f"roofline bound, {level}", []).append(least_s / batch)
    # Bounds need the device's peaks. A metric that some cells lack is left out.
    metrics = {name: values for name, values in metrics.items() if len(values) == len(cells)}
    times = [cell.latency.point / cell.cell.batch for cell in cells]
    families = [rank_agreement.family(cell.cell.case.model) for cell in cells]
    return Sample(folder, f"{run.environment.device}, {Path(folder).name}", metrics, times, families)


# --- what is shown ------------------------------------------------------------------------------------


def score_table(found: Sequence[tuple[Sample, Sequence[Score]]]) -> Table:
    """Return one row for each set of metrics on each device."""
    columns = (
        Column("device", align="left"),
        Column("predicted from", align="left"),
        Column("median error", "%", raw_unit="share"),
        Column("within 25 %", "%", raw_unit="share"),
        Column("Kendall tau"),
        Column("Spearman"),
    )
    lines = tuple(
        (
            Value(sample.title, sample.title),
            Value(" + ".join(score.metrics), " + ".join(score.metrics)),
            _percent(score.error),
            _percent(score.close),
            _correlation(score.tau),
            _correlation(score.rho),
        )
        for sample, scores in found
        for score in scores
    )
    notes = (
        *(headline(sample, scores) for sample, scores in found),
        f"Time per image = c0 + c1·a (+ c2·b), non-negative least squares on relative error, {prediction.FOLDS} folds "
        "that share no family; errors are of networks whose family the fit has not seen. Intervals (95 %) draw whole "
        "families. Rank correlations are of the metric itself, or of the out-of-fold prediction where two are joined.",
    )
    return Table(TITLE, columns, lines, notes)


def headline(sample: Sample, scores: Sequence[Score]) -> str:
    """State the main result of one device in a sentence."""
    first = scores[0]
    alone = min((score for score in scores if len(score.metrics) == 1), key=lambda score: score.error.point)
    best = min(scores, key=lambda score: score.error.point)
    says = f"{sample.title}: {len(sample.times_s)} networks and sizes of {len(set(sample.families))} families. "
    says += f"Median error {_percent(first.error).text} % from {first.metrics[0]} alone"
    if alone is not best and alone is not first:
        says += f", {_percent(alone.error).text} % from {alone.metrics[0]} alone"
    return says + f", {_percent(best.error).text} % from {' + '.join(best.metrics)}, the least of all."


def assumption_table(sample: Sample, sizes: str) -> Table:
    """Return the median error of the bound alone under other assumed peaks of arithmetic."""
    run = next(row for row in rows("runs.csv") if row["run"] == sample.name)
    networks = counted_lines(run, sizes)
    bounds = bounds_s()
    lines = []
    for factor in dict.fromkeys(key[1] for key in bounds if key[0] == sample.name):
        errors = []
        for level in LEVELS:
            column = [
                float(bounds[sample.name, factor, row["model"], row["infer_img_size"]][level]) for row in networks
            ]
            predicted = prediction.out_of_fold([column], sample.times_s, sample.families)
            errors.append(_percent(prediction.median_error(predicted, sample.times_s, sample.families)))
        peak = float(factor) * float(run["flops_per_s"]) / 1e12
        lines.append((Value(units.digits(peak, 2), peak), *errors))
    columns = (Column("assumed peak", "TFLOP/s"), *(Column(level, "%", raw_unit="share") for level in LEVELS))
    flops, moved = float(run["flops_per_s"]) / 1e12, float(run["bytes_per_s"]) / 1e9
    note = (
        "Median error of the roofline bound alone at each level. The processor's peaks are not published with the run: "
        f"{flops:g} TFLOP/s is six performance cores at 32 operations a cycle and 4.1 GHz, {moved:g} GB/s two channels "
        "of DDR5-4800. Only their quotient matters to the fit."
    )
    return Table(f"How much hangs on the assumed peaks: {sample.title}", columns, tuple(lines), (note,))


def _percent(estimate: Estimate) -> Value:
    text = f"{100 * estimate.point:.1f}"
    if estimate.low is not None and estimate.high is not None:
        text += f" [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"
    return Value(text, estimate)


def _correlation(estimate: Estimate | None) -> Value:
    if estimate is None:
        return NOTHING
    text = f"{estimate.point:.3f}"
    if estimate.low is not None and estimate.high is not None:
        text += f" [{estimate.low:.3f}, {estimate.high:.3f}]"
    return Value(text, estimate)


def _sample_document(sample: Sample, scores: Sequence[Score]) -> dict[str, Any]:
    return {
        "name": sample.name,
        "title": sample.title,
        "networks": len(sample.times_s),
        "families": len(set(sample.families)),
        "scores": [score.to_dict() for score in scores],
    }


def _figures(found: Sequence[tuple[Sample, Sequence[Score]]]) -> dict[str, Any]:
    from effbench.report.figures import prediction as prediction_figure

    return {"figure": prediction_figure.prediction_figure(TITLE, found)}


ANALYSIS = Analysis(
    name=NAME,
    title=TITLE,
    claim=CLAIM,
    analyse=analyse,
    options={
        "runs": "folders of stored comparisons to analyse instead of the published runs",
        "sizes": "all published image sizes of a network, or only its smallest",
    },
)

if __name__ == "__main__":
    from effbench.cli import main

    raise SystemExit(main(["run", __file__, *sys.argv[1:]]))
