"""Tables of cells, verdicts, run comparisons and operators: their columns, units and notes. No torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from effbench.analysis.cell_summary import CellSummary
from effbench.analysis.rank_agreement import Agreement
from effbench.core import units
from effbench.core.cost import DEFAULT_LEVEL
from effbench.core.estimate import Comparison, Estimate, Verdict
from effbench.core.run import Run
from effbench.core.study import Label
from effbench.paper import FullModel, full_models
from effbench.report import text as report_text
from effbench.report.tables import metric_columns
from effbench.report.tables.table_model import (
    NOTHING,
    Column,
    Table,
    Value,
    drop_empty,
    escape_markdown,
    render_csv,
    render_markdown,
    render_terminal,
)
from effbench.report.text import verdict_sentence, verdict_sentences

__all__ = [
    "Column",
    "Table",
    "Value",
    "absent_rows",
    "compare_rows",
    "diff_rows",
    "escape_markdown",
    "profile_rows",
    "ranking_rows",
    "render_csv",
    "render_markdown",
    "render_terminal",
    "study_rows",
    "verdict_rows",
    "verdict_sentence",
    "verdict_sentences",
]

_Field = tuple[Column, Callable[[CellSummary], Value]]
"""A column of a table of cells, and a function that returns its value for a cell."""

_SUMMED = re.compile(
    r"params|madds|activations|elementwise|memory_access|calls|.*(_bytes|_elements|reads?|writes|written)"
)
"""Quantities of operators that add up over a network."""


def study_rows(run: Run, cells: Sequence[CellSummary]) -> Table:
    """Build the table of a guideline study with one row per cell. Columns without any value are left out.

    Raw values are in base units: elements, seconds, ratios as plain numbers.
    """
    factor = run.experiment.factor
    labels = (*report_text.grouping(run, cells), factor)
    fields: list[_Field] = [(Column(label, align="left"), _label(label)) for label in labels]
    fields += [
        *_costs(),
        _LATENCY,
        *_throughput(cells),
        *_ROOFLINE,
        *_RATIOS,
        *_SPEEDUP,
        *metric_columns.columns(cells),
    ]
    return _of_cells(run.experiment.title, [*fields, _BOUND, _FLAGS], run, cells)


def compare_rows(run: Run, cells: Sequence[CellSummary]) -> Table:
    """Build the table of a comparison with one row per model: costs, speed, memory, and the paper's Table 8."""
    groups = report_text.grouping(run, cells)
    models = Counter((report_text.model_name(cell), *_group_of(cell, groups)) for cell in cells)
    once = max(models.values(), default=1) == 1

    def name(cell: CellSummary) -> Value:
        return _text(report_text.model_name(cell) if once else cell.cell.id)

    def printed(read: Callable[[FullModel], float]) -> Callable[[CellSummary], Value]:
        return lambda cell: NOTHING if cell.full_model is None else _scaled(read(cell.full_model), 1)

    def shape(cell: CellSummary) -> Value:
        return _text(report_text.shape_text(cell.cell.case.input_shape))

    fields: list[_Field] = [(Column(label, align="left"), _label(label)) for label in groups] if once else []
    fields.append((Column("model", align="left"), name))
    if len({cell.cell.case.input_shape for cell in cells}) > 1:
        fields.append((Column("input", align="left"), shape))
    fields += [
        *_costs(),
        (Column("paper's madds", "M"), printed(lambda row: row.complexity)),
        (Column("paper's top-1 error", "%"), printed(lambda row: row.top1_error)),
        _LATENCY,
        *_throughput(cells),
        *_ROOFLINE,
        *metric_columns.columns(cells),
    ]
    fields += [*_RATIOS, *_SPEEDUP, *_paper_speed(cells), _BOUND, _FLAGS]
    return _of_cells(run.experiment.title, fields, run, cells)


def absent_rows(run: Run) -> Table:
    """Build the table of networks in the paper's table that the study cannot measure: their figures, and the reason."""
    columns = (
        Column("network of the paper", align="left"),
        Column("madds", "M"),
        Column("top-1 error", "%"),
        Column("GPU", "batches/s"),
        Column("ARM", "images/s"),
        Column("why it is not measured", align="left"),
    )
    printed = {row.row: row for row in full_models()}
    rows = []
    for name, reason in run.experiment.absent.items():
        row = printed.get(name)
        numbers = (None,) * 4 if row is None else (row.complexity, row.top1_error, row.gpu_speed, row.arm_speed)
        rows.append((_text(name), *(_scaled(number, 1) for number in numbers), _text(reason)))
    return Table("In the paper and not measured here", columns, tuple(rows))


def ranking_rows(found: Sequence[Agreement], group: str = "") -> Table:
    """Build the table of rank correlations with one row per metric: Kendall's tau with measured times, over all
    networks and, where there are several groups, within each `group`.
    """
    columns = (
        Column("metric", align="left"),
        Column("Kendall's tau with measured time"),
        Column(f"tau within the same {group}"),
        Column("networks"),
    )
    rows = tuple(
        (_text(item.metric), _tau(item.tau), _tau(item.within), Value(str(item.tau.n), item.tau.n)) for item in found
    )
    note = (
        "1 is the same order, 0 none. Brackets are 95 % intervals over families of networks; two metrics are compared "
        "by them only roughly, since both rank the same networks."
    )
    return drop_empty(Table("Which metric ranks the networks as the clock does?", columns, rows, (note,)))


def verdict_rows(verdicts: Sequence[Verdict], *, title: str = "Verdicts") -> Table:
    """Build the table of verdicts: the verdict of each claim and group, the headline ratio, the paper's, the reason."""
    keys = report_text.varying_labels(verdict.group for verdict in verdicts) or tuple(
        dict.fromkeys(key for verdict in verdicts for key in verdict.group)
    )
    columns = (
        Column("claim", align="left"),
        Column("group", align="left"),
        Column("verdict", align="left"),
        Column("pair", align="left"),
        Column("time ratio"),
        Column("by the wall clock"),
        Column("paper's ratio"),
        Column("reason", align="left"),
    )
    rows = []
    for verdict in verdicts:
        headline = verdict.headline
        group = report_text.group_text({key: verdict.group[key] for key in keys if key in verdict.group})
        pair = f"{report_text.label_text(headline.slower)} over {report_text.label_text(headline.faster)}"
        rows.append(
            (
                _text(verdict.claim),
                _text(group),
                _text(verdict.verdict),
                _text(pair),
                _ratio(headline.ratio),
                _ratio(headline.wall),
                _plain_ratio(headline.paper_ratio),
                _text(verdict.reason or headline.reason),
            )
        )
    texts = dict.fromkeys(f"{verdict.claim}: {verdict.text}" for verdict in verdicts if verdict.text)
    intervals = {item.headline.ratio.confidence for item in verdicts if item.headline.ratio is not None}
    levels = " and ".join(report_text.percent(confidence) for confidence in sorted(intervals))
    shared = (f"Brackets are {levels} intervals: the pairs of one claim share its error.",) if levels else ()
    return drop_empty(Table(title, columns, tuple(rows), (*texts, *shared)))


def diff_rows(comparisons: Sequence[Comparison], *, title: str = "Candidate against baseline") -> Table:
    """Build the table that compares two runs cell by cell. The note also counts cells that could not be compared."""
    columns = (
        Column("cell", align="left"),
        Column("verdict", align="left"),
        Column("candidate ÷ baseline", raw_unit=""),
        Column("by the wall clock"),
        Column("reason", align="left"),
    )
    names, everywhere = report_text.split_ids([item.cell for item in comparisons])
    rows = tuple(
        (_text(name), _text(item.verdict), _ratio(item.change), _ratio(item.wall), _text(item.reason))
        for name, item in zip(names, comparisons, strict=True)
    )
    counts: Counter[str] = Counter(item.verdict for item in comparisons)
    words = ("slower", "faster", "same", "unsure", "missing")
    note = ", ".join(f"{counts[word]} {word}" for word in words if counts[word]) or "Nothing to compare"
    notes = [f"{note}. Above 1 the candidate is slower.", *([f"In every row: {everywhere}."] if everywhere else [])]
    return drop_empty(Table(title, columns, rows, tuple(notes)))


def profile_rows(
    rows: Sequence[Mapping[str, Any]],
    *,
    title: str,
    totals: Mapping[str, Any] | None = None,
    notes: Iterable[str] = (),
) -> Table:
    """Build the table of operators or modules, with columns in order of appearance and a row of totals.

    Counts are summed over the rows unless `totals` gives the network's own, in which tied weights count once. A sum
    with missing terms is a lower bound: it is shown with ``≥`` and left empty in the CSV.
    """
    keys = tuple(dict.fromkeys(key for row in rows for key in row))
    columns = tuple(_profile_column(key, rows) for key in keys)
    body = tuple(tuple(_profile_value(key, row.get(key)) for key in keys) for row in rows)
    known = dict(totals or {})
    last = [_profile_value(key, known[key]) if key in known else _total(key, rows) for key in keys]
    if last and last[0].raw is None:
        last[0] = _text("total")
    return drop_empty(Table(title, columns, body, tuple(notes), tuple(last) if rows else None))


def _of_cells(title: str, fields: Sequence[_Field], run: Run, cells: Sequence[CellSummary]) -> Table:
    columns = tuple(column for column, _ in fields)
    rows = tuple(tuple(read(cell) for _, read in fields) for cell in cells)
    return drop_empty(Table(title, columns, rows, (*report_text.notes(run, cells), *metric_columns.notes(run, cells))))


def _text(text: str | None) -> Value:
    return Value(text, text) if text else NOTHING


def _scaled(value: float | None, scale: float) -> Value:
    return NOTHING if value is None else Value(units.digits(value / scale), value)


def _plain_ratio(value: float | None) -> Value:
    return NOTHING if value is None else Value(units.ratio(value), value)


def _ratio(estimate: Estimate | None) -> Value:
    return NOTHING if estimate is None else Value(units.ratio_interval(estimate), estimate)


def _tau(estimate: Estimate | None) -> Value:
    if estimate is None:
        return NOTHING
    if estimate.low is None or estimate.high is None:
        return Value(f"{estimate.point:.2f}", estimate)
    return Value(f"{estimate.point:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]", estimate)


def _group_of(cell: CellSummary, keys: Sequence[str]) -> tuple[Label | None, ...]:
    return tuple(cell.cell.case.labels.get(key) for key in keys)


def _label(name: str) -> Callable[[CellSummary], Value]:
    def read(cell: CellSummary) -> Value:
        value: Label | None = cell.cell.case.labels.get(name)
        return NOTHING if value is None else Value(report_text.label_text(value), value)

    return read


def _costs() -> tuple[_Field, ...]:
    def count(name: str) -> Callable[[CellSummary], Value]:
        return lambda cell: _scaled(None if cell.cost is None else getattr(cell.cost, name), 1e6)

    return (
        (Column("params", "M", raw_unit=""), count("params")),
        (Column("madds", "M", raw_unit=""), count("madds")),
        (
            Column("memory access", "M elements", raw_unit="elements"),
            count("memory_access"),
        ),
    )


def _latency(cell: CellSummary) -> Value:
    time = cell.latency
    if time is None:
        return NOTHING
    text = units.digits(1e3 * time.point)
    return Value(text if time.half_width is None else f"{text} {units.plus_minus(time)}", time)


def _own_ratio(cell: CellSummary) -> Value:
    if report_text.is_reference(cell):
        return Value("reference", cell.ratio)
    return _ratio(cell.ratio)


def _flags(cell: CellSummary) -> Value:
    words = [*cell.flags, *cell.notes, *metric_columns.missing(cell)]
    if cell.cost is not None and cell.cost.status == "partial":
        words.append("counts partial: " + ", ".join(f"{name} ×{n}" for name, n in cell.cost.uncounted.items()))
    if cell.skipped is not None:
        words.append(f"skipped: {cell.skipped}")
    return _text("; ".join(words))


_LATENCY: _Field = (Column("latency", "ms", raw_unit="s"), _latency)
_RATIOS: tuple[_Field, ...] = (
    (Column("time ratio"), _own_ratio),
    (Column("by the wall clock"), lambda cell: _ratio(cell.ratio_wall)),
    (Column("paper's ratio"), lambda cell: _plain_ratio(cell.paper_ratio)),
)
_SPEEDUP: tuple[_Field, ...] = (
    (Column("speed-up over eager"), lambda cell: _ratio(cell.speedup)),
    (Column("speed-up by the wall clock"), lambda cell: _ratio(cell.speedup_wall)),
)
_ROOFLINE: tuple[_Field, ...] = (
    (
        Column(f"roofline, {DEFAULT_LEVEL}", "ms", raw_unit="s"),
        lambda cell: _scaled(None if cell.bounds_s is None else cell.bounds_s[DEFAULT_LEVEL], 1e-3),
    ),
    (Column("time ÷ roofline"), lambda cell: _plain_ratio(cell.over_bound())),
)
_BOUND: _Field = (Column("bound", align="left"), lambda cell: _text(cell.bound))
_FLAGS: _Field = (Column("flags", align="left"), _flags)


def _throughput(cells: Sequence[CellSummary]) -> list[_Field]:
    def of(unit: str) -> Callable[[CellSummary], Value]:
        return lambda cell: _scaled(cell.throughput if cell.throughput_unit == unit else None, 1)

    return [(Column("throughput", unit), of(unit)) for unit in dict.fromkeys(cell.throughput_unit for cell in cells)]


def _paper_speed(cells: Sequence[CellSummary]) -> list[_Field]:
    def of(unit: str) -> Callable[[CellSummary], Value]:
        return lambda cell: _scaled(cell.paper_speed if cell.paper_unit == unit else None, 1)

    return [(Column("paper", unit), of(unit)) for unit in dict.fromkeys(c.paper_unit for c in cells if c.paper_unit)]


def _profile_column(key: str, rows: Sequence[Mapping[str, Any]]) -> Column:
    number = any(isinstance(row.get(key), (int, float)) and not isinstance(row.get(key), bool) for row in rows)
    heading = key.removesuffix("_bytes").replace("_", " ")
    raw_unit = "bytes" if key.endswith("_bytes") else "elements" if key == "memory_access" else ""
    return Column(heading, raw_unit, "right" if number else "left", raw_unit)


def _profile_value(key: str, value: Any) -> Value:
    if value is None:
        return NOTHING
    if isinstance(value, (list, tuple)):
        return _text(report_text.shape_text(value))
    if isinstance(value, (bool, str)):
        return Value(report_text.label_text(value), value)
    if not isinstance(value, (int, float)):
        return _text(str(value))
    if key.endswith("_bytes"):
        return Value(units.size(value), value)
    return Value(units.count(value) if _SUMMED.fullmatch(key) else units.digits(value), value)


def _total(key: str, rows: Sequence[Mapping[str, Any]]) -> Value:
    terms = [row.get(key) for row in rows]
    known = [term for term in terms if isinstance(term, (int, float))]
    if not known or not _SUMMED.fullmatch(key):
        return Value("", None)
    total = _profile_value(key, sum(known))
    return total if len(known) == len(terms) else Value(f"≥ {total.text}", None)
