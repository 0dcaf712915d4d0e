"""Render the result of a gate: tables, Markdown for a CI step summary, JUnit XML. Pure, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from effbench.core import units
from effbench.core.estimate import Estimate
from effbench.gates.result import CountCheck, Decision, Finding
from effbench.report.tables import values
from effbench.report.tables.table_model import (
    NOTHING,
    Column,
    Table,
    Value,
    drop_empty,
    escape_markdown,
    one_line,
    render_markdown,
)

_SIGNS = {"PASS": "✅", "REGRESSION": "❌", "INCONCLUSIVE": "❔", "ENVIRONMENT": "⚠️", "NEW": "🆕"}


def tables(decision: Decision) -> list[Table]:
    """Return the table of cells, and that of costs that were checked or differ, if there are any."""
    found = [finding_rows(decision)]
    if any(finding.costs for finding in decision.findings):
        found.append(cost_rows(decision.findings))
    return found


def finding_rows(decision: Decision) -> Table:
    """Build one row per cell and gate: the verdict, the ratio, the smallest detectable slowdown, the reason."""
    columns = (
        Column("cell", align="left"),
        Column("gate", align="left"),
        Column("verdict", align="left"),
        Column("time ratio"),
        Column("by the wall clock"),
        Column("tolerance", "%", raw_unit=""),
        Column("detectable", "%", raw_unit=""),
        Column("launches"),
        Column("set aside", "blocks"),
        Column("reason", align="left"),
    )
    rows = tuple(
        (
            values.text(item.cell),
            values.text(item.gate),
            values.text(item.verdict),
            _ratio(item.change),
            _ratio(item.wall if item.clock != "wall" else None),
            values.percent(item.tolerance),
            values.percent(item.detectable),
            values.whole(item.launches or None),
            values.whole(item.set_aside or None),
            values.text(item.reason or ("shown to be faster" if item.is_improved else "")),
        )
        for item in decision.findings
    )
    timed = any(item.change is not None for item in decision.findings)
    notes = [
        *(
            ["Time ratio: candidate over baseline, with its 95 % interval; above 1 the candidate is slower. Detectable:"
             " the smallest slowdown that this measurement finds with a probability of 80 %."]
            if timed
            else []
        ),
        *decision.notes,
    ]  # fmt: skip
    return drop_empty(Table(title(decision), columns, rows, tuple(notes)))


def cost_rows(findings: Sequence[Finding]) -> Table:
    """Build one row per cost: its value, its baseline or limit, and whether it passes."""
    columns = (
        Column("cell", align="left"),
        Column("count", align="left"),
        Column("found"),
        Column("rule", align="left"),
        Column("wanted"),
        Column("kept", align="left"),
    )
    rows = tuple(
        (
            values.text(finding.cell),
            values.text(item.name),
            found,
            values.text(item.rule or "was"),
            wanted,
            NOTHING if not item.rule else values.text("yes" if item.is_met else "no"),
        )
        for finding in findings
        for item in finding.costs
        for found, wanted in [_counts(item)]
    )
    return Table("Costs", columns, rows)


def title(decision: Decision) -> str:
    """Return what was compared with what."""
    sides = [side for side in (decision.candidate, decision.baseline) if side]
    return " against ".join(sides) if len(sides) == 2 else "effbench check"


def last_line(decision: Decision) -> str:
    """Return the verdict in one line: ``PASS: 12 cells`` or ``REGRESSION: 2 of 12 cells``."""
    cells = {finding.cell for finding in decision.findings}
    hit = {finding.cell for finding in decision.findings if finding.verdict == decision.verdict}
    plural = "" if len(cells) == 1 else "s"
    share = f"{len(cells)} cell{plural}" if hit == cells else f"{len(hit)} of {len(cells)} cell{plural}"
    mean = "" if decision.geomean is None else f"; geometric mean {_ratio(decision.geomean).text}"
    return f"{decision.verdict}: {share}{mean}"


def markdown(decision: Decision) -> str:
    """Render as GitHub Markdown: the verdict as a heading, the tables, the machine. Ends in a newline."""
    lines = [f"## {_SIGNS[decision.verdict]} {escape_markdown(last_line(decision))}", ""]
    lines += [render_markdown(item) for item in tables(decision)]
    facts = [f"- {escape_markdown(name)}: {escape_markdown(value)}" for name, value in decision.facts.items()]
    if facts:
        lines += ["<details><summary>Measured on</summary>", "", *facts, "", "</details>", ""]
    return "\n".join(lines)


def junit(decision: Decision, *, inconclusive_passes: bool = False) -> str:
    """Render as JUnit XML with one test case per cell and gate.

    REGRESSION and INCONCLUSIVE are failures, ENVIRONMENT is an error. NEW is skipped, and so is INCONCLUSIVE with
    `inconclusive_passes`. Names and order of attributes follow Jenkins' schema, the strictest in use.
    """
    kinds = {"REGRESSION": "failure", "ENVIRONMENT": "error", "INCONCLUSIVE": "failure", "NEW": "skipped"}
    if inconclusive_passes:
        kinds["INCONCLUSIVE"] = "skipped"
    counted = [kinds.get(finding.verdict) for finding in decision.findings]
    numbers = {
        "tests": str(len(counted)),
        "failures": str(counted.count("failure")),
        "errors": str(counted.count("error")),
    }
    seconds = f"{decision.seconds:.3f}"
    root = ElementTree.Element("testsuites", {"name": "effbench check", **numbers, "time": seconds})
    suite = ElementTree.SubElement(
        root,
        "testsuite",
        {"name": "effbench check", **numbers, "skipped": str(counted.count("skipped")), "time": seconds},
    )
    if decision.facts:
        properties = ElementTree.SubElement(suite, "properties")
        for name, value in decision.facts.items():
            ElementTree.SubElement(properties, "property", {"name": one_line(name), "value": one_line(value)})
    for finding, kind in zip(decision.findings, counted, strict=True):
        case = ElementTree.SubElement(
            suite, "testcase", {"name": one_line(finding.cell), "classname": f"effbench.{finding.gate}", "time": "0"}
        )
        if kind is not None:
            message = one_line(f"{finding.verdict}: {sentence(finding)}")
            attributes = {"message": message} | ({} if kind == "skipped" else {"type": finding.verdict})
            ElementTree.SubElement(case, kind, attributes).text = message
        else:
            ElementTree.SubElement(case, "system-out").text = one_line(sentence(finding))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=False) + "\n"


def sentence(finding: Finding) -> str:
    """Describe the result of one cell in one line: the ratio, the smallest detectable slowdown, the reason."""
    parts = []
    if finding.change is not None:
        parts.append(f"time {_ratio(finding.change).text}")
    if finding.tolerance is not None:
        parts.append(f"tolerance {values.percent(finding.tolerance).text} %")
    if finding.detectable is not None:
        parts.append(f"detectable {values.percent(finding.detectable).text} %")
    if finding.launches:
        parts.append(f"{finding.launches} launches a side")
    return "; ".join([*([finding.reason] if finding.reason else []), ", ".join(parts)]).strip("; ") or "as expected"


def _ratio(found: Estimate | None) -> Value:
    """Format with three decimals, since a gate is about changes of a few per cent."""
    return values.estimate(found, 3, "×")


def _counts(item: CountCheck) -> tuple[Value, Value]:
    """Return the cost and its baseline or limit."""
    found, wanted = item.found, item.wanted
    known = next((number for number in (found, wanted) if number is not None), 0)
    texts = units.counts_to_compare(known if found is None else found, known if wanted is None else wanted)
    return (
        NOTHING if found is None else Value(texts[0], found),
        NOTHING if wanted is None else Value(texts[1], wanted),
    )
