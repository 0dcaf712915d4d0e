"""Select the measured cells of a run for export, under names that every format can represent."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from effbench.analysis import summary
from effbench.analysis.cell_summary import CellSummary
from effbench.core.errors import CorruptRun, InvalidValue
from effbench.core.estimate import Estimate
from effbench.core.run import Block, Run
from effbench.host.emulation import EMULATED, is_emulated
from effbench.report.tables.table_model import one_line


@dataclass(frozen=True)
class MeasuredCell:
    """One measured cell. `id` and `name` are one line of printable text, unique within the export.

    `name` is the study with the cell in brackets, as in pytest's parametrised tests. `latency` is the summary's: wall
    seconds per call of the whole batch. `launches` are the cell's undisturbed blocks by launch, in order. If too many
    were disturbed, they include all blocks, and the summary is flagged as contaminated.
    """

    id: str
    name: str
    summary: CellSummary
    latency: Estimate
    launches: Mapping[int, tuple[Block, ...]]

    @property
    def blocks(self) -> tuple[Block, ...]:
        return tuple(block for blocks in self.launches.values() for block in blocks)

    @property
    def place(self) -> dict[str, str | int]:
        """The labels of the cell, its device and its conditions. `batch` is images per call."""
        cell = self.summary.cell
        return {
            "model": cell.case.model,
            "device": cell.device,
            "runtime": cell.runtime,
            "threads": cell.threads,
            "batch": cell.batch,
            "dtype": cell.case.dtype,
        }

    @property
    def batch(self) -> int:
        return self.summary.cell.batch


def measured_cells(run: Run) -> tuple[MeasuredCell, ...]:
    """Return the measured cells in study order. Raises InvalidValue where there is none."""
    found: list[MeasuredCell] = []
    taken: set[str] = set()
    for result, cell in zip(run.results, summary.summarise(run), strict=True):
        if cell.latency is None or cell.skipped is not None:
            continue
        launches: dict[int, list[Block]] = {}
        for (launch, _), block in sorted(summary.undisturbed_rounds(result).items()):
            if block.timing.wall_ns:
                launches.setdefault(launch, []).append(block)
        name = _unique(one_line(cell.cell.id), taken)
        quiet = {number: tuple(blocks) for number, blocks in launches.items()}
        found.append(MeasuredCell(name, f"{one_line(run.experiment.name)}[{name}]".strip(), cell, cell.latency, quiet))
    if not found:
        reasons = [f"{result.cell.id}: {result.skipped}" for result in run.results if result.skipped]
        if is_emulated(run.environment):
            raise InvalidValue(
                f"there is nothing to export ({EMULATED}); measure it on the hardware, or give its counts with "
                "`effbench profile --json`"
            )
        why = f" ({reasons[0]})" if reasons else ""
        raise InvalidValue(f"there is nothing to export: no cell of this run was measured{why}; measure it again")
    return tuple(found)


def select_blocks(cell: MeasuredCell, values: int) -> MeasuredCell:
    """Return the cell with `values` blocks per launch, spread evenly over it, or all if a launch has no more."""
    return replace(cell, launches={number: _spread_evenly(blocks, values) for number, blocks in cell.launches.items()})


def seconds(blocks: Iterable[Block]) -> list[float]:
    """Return wall seconds per call of each block."""
    return [block.timing.wall_ns / block.timing.calls * 1e-9 for block in blocks]


def as_json(document: object) -> str:
    """Return JSON text in ASCII, ending in a newline. Raises CorruptRun for NaN and infinity, which JSON lacks."""
    try:
        return json.dumps(document, indent=2, allow_nan=False) + "\n"
    except ValueError as error:
        raise CorruptRun(
            "this run holds a number that is not finite, which JSON cannot say; restore the file"
        ) from error


def describe_left_out(run: Run, cells: Sequence[MeasuredCell]) -> dict[str, str]:
    """Return the cells that are not exported, with reasons."""
    exported = {cell.summary.cell.id for cell in cells}
    return {
        result.cell.id: result.skipped or "nothing was timed"
        for result in run.results
        if result.cell.id not in exported
    }


def _unique(name: str, taken: set[str]) -> str:
    """Number a name that is taken: cleaning can make names equal, and a format keyed by name would lose a cell."""
    found, number = name, 1
    while found in taken:
        number += 1
        found = f"{name} ({number})"
    taken.add(found)
    return found


def _spread_evenly(blocks: tuple[Block, ...], values: int) -> tuple[Block, ...]:
    if len(blocks) <= values:
        return blocks
    return tuple(blocks[(2 * place + 1) * len(blocks) // (2 * values)] for place in range(values))
