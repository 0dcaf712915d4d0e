"""Export a run to the formats of other benchmarking tools. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from effbench.core.errors import InvalidValue, UnknownName
from effbench.core.run import Run
from effbench.export import bencher, csv_rows, github_action, openmetrics, pyperf_suite, pytest_benchmark
from effbench.export.measured import MeasuredCell, describe_left_out, measured_cells, select_blocks

Render = Callable[[Run, Sequence[MeasuredCell]], str]


@dataclass(frozen=True)
class Format:
    """One format. `directions` has one render function per file; a format with a single file has only "".

    `ending` is the file extension. `values` says which raw values the format has: "none", "all" blocks, or an "even"
    number of blocks per launch, which its reader needs for comparisons.
    """

    directions: Mapping[str, Render]
    ending: str = "json"
    values: Literal["none", "all", "even"] = "none"


FORMATS: Mapping[str, Format] = {
    "pytest-benchmark": Format({"": pytest_benchmark.render}, values="all"),
    "bmf": Format({"": bencher.render}),
    "github-action": Format(
        {"smaller-is-better": github_action.smaller, "bigger-is-better": github_action.bigger},
    ),
    "pyperf": Format({"": pyperf_suite.render}, values="even"),
    "openmetrics": Format({"": openmetrics.render}, ending="txt"),
    "csv": Format({"": csv_rows.render}, ending="csv"),
}


@dataclass(frozen=True)
class Export:
    """The texts of one format by direction, the number of cells in them, and the cells left out, with reasons.

    `notes` are messages for the user: what is missing, and what to be aware of.
    """

    texts: Mapping[str, str]
    cells: int
    left_out: Mapping[str, str]
    notes: tuple[str, ...]


def find(name: str) -> Format:
    """Return the format of this name. Raises UnknownName."""
    if name not in FORMATS:
        raise UnknownName("format", name, FORMATS)
    return FORMATS[name]


def export(run: Run, name: str, *, values: int | Literal["all"] | None = None) -> Export:
    """Export the run in the format of this name. `values` is the number of blocks per launch, by default all.

    For an "even" format the default is the study's least number of rounds, which two runs that stopped at their
    precision have in common. Raises UnknownName, and InvalidValue where no cell was measured, where a launch has fewer
    blocks than requested, or where the format has no blocks.
    """
    format = find(name)
    if values is not None and format.values == "none":
        having = " and ".join(key for key, item in FORMATS.items() if item.values != "none")
        raise InvalidValue(f"--values chooses raw values, and {name} holds none (only {having} do): leave it out")
    cells, told = _select_blocks(run, measured_cells(run), format, values)
    missing = describe_left_out(run, cells)
    notes = [f"left out: {cell}: {reason}" for cell, reason in missing.items()]
    flagged: dict[str, list[str]] = {}
    for cell in cells:
        if cell.summary.flags:
            flagged.setdefault(", ".join(cell.summary.flags), []).append(cell.id)
    notes += [f"cannot confirm a claim, flagged as {flags}: {'; '.join(ids)}" for flags, ids in flagged.items()]
    if not run.complete:
        notes.append("this run was never finished; `effbench run --resume` finishes it")
    return Export(
        {direction: render(run, cells) for direction, render in format.directions.items()},
        len(cells),
        missing,
        (*notes, *told),
    )


def _select_blocks(
    run: Run, cells: tuple[MeasuredCell, ...], format: Format, values: int | Literal["all"] | None
) -> tuple[tuple[MeasuredCell, ...], tuple[str, ...]]:
    """Select blocks of each launch, as requested or as the format needs. Returns the cells and notes for the user."""
    if format.values == "none" or values == "all" or (values is None and format.values == "all"):
        return cells, ()
    counts = [len(blocks) for cell in cells for blocks in cell.launches.values()]
    least, most = min(counts), max(counts)
    wanted = run.sampling.min_rounds if values is None else values
    if values is not None and not 0 < values <= least:
        raise InvalidValue(f"--values {values}: expected 1 to {least}, which every launch of every cell holds, or all")
    if least < wanted:
        return cells, (
            f"some launches hold only {least} values where the study asks for {wanted}, so all are given; "
            f"`pyperf compare_to` needs equal numbers: for it export both sides with --values {least}",
        )
    told = (
        f"{wanted} values of each launch, of up to {most}, so that two runs have equally many; --values all gives all"
    )
    return tuple(select_blocks(cell, wanted) for cell in cells), (told,) if values is None and wanted < most else ()
