"""Names of the runs on one page: number, folder (of a fleet: the machine's name), and the facts that differ."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from effbench.analysis.cell_summary import CellSummary
from effbench.core.run import Run
from effbench.report import text as report_text
from effbench.runs import run_file

_DATED = re.compile(r"\d{8}-\d{6}-")
"""How a folder begins that effbench named itself. It says when, but nobody calls a machine so."""


class CellsOfRun(Protocol):
    """A run with its summaries."""

    @property
    def run(self) -> Run: ...
    @property
    def cells(self) -> tuple[CellSummary, ...]: ...


@dataclass(frozen=True)
class RunName:
    """What a run is called among others. As text: ``2: pi5-b, ARM Cortex-A76 (cpu), 1 thread``.

    Attributes
    ----------
    number
        Its place on the page.
    folder
        Name of its folder; "" where it is not stored, and where effbench chose the name and other facts suffice.
    facts
        The facts in which the runs differ, by name.
    hardware
        Its hardware, whether the runs differ in it or not.
    """

    number: int
    folder: str
    facts: Mapping[str, str]
    hardware: str

    def __str__(self) -> str:
        said = ", ".join(filter(None, [self.folder, *self.facts.values()]))
        return f"{self.number}: {said}" if said else str(self.number)

    @property
    def title(self) -> str:
        """The short name: ``2: pi5-b``."""
        return f"{self.number}: {self.folder}" if self.folder else f"run {self.number}"

    @property
    def setting(self) -> str:
        """Hardware and differing facts, without what the headings of a figure by study and runtime say already."""
        said = {name: fact for name, fact in self.facts.items() if name not in ("study", "hardware", "runtime")}
        return ", ".join([self.hardware, *said.values()])


def run_names(runs: Mapping[int, CellsOfRun]) -> dict[int, RunName]:
    """Name each run, by number. Two machines of one model differ in their folders, as do two runs of one machine."""
    facets = {number: _setting_facts(item.run, item.cells) for number, item in runs.items()}
    found = {}
    for number, item in runs.items():
        # Labels of other studies are not comparable.
        peers = [each for each, other in runs.items() if other.run.experiment.name == item.run.experiment.name]
        labels = {each: report_text.shared_labels(runs[each].run, runs[each].cells) for each in peers}
        facts = {key: text for key, text in facets[number].items() if len({each[key] for each in facets.values()}) > 1}
        varying = report_text.varying_labels(labels.values())
        own = report_text.group_text({key: value for key, value in labels[number].items() if key in varying})
        told = {name: fact for name, fact in {**facts, "labels": own}.items() if fact}
        folder = _folder(item.run)
        chosen = "" if _DATED.match(folder) else folder
        found[number] = RunName(number, chosen, told, report_text.hardware(item.run, item.cells))
    for depth in (1, 2):
        alike = Counter((name.folder, *name.facts.values()) for name in found.values())
        for number, name in found.items():
            if alike[(name.folder, *name.facts.values())] > 1 or not (name.folder or name.facts):
                folder = _folder(runs[number].run, depth) or runs[number].run.created
                found[number] = replace(name, folder=folder)
    return found


def _folder(run: Run, depth: int = 1) -> str:
    """The name of the run's folder, or its last `depth` names; "" where it is not stored.

    Several runs may lie in one folder as files of other names than usual, so such a file goes by its own name.
    """
    if not run.path:
        return ""
    path = Path(os.path.abspath(run.path))
    place = path.parent if path.name == run_file.RUN_FILE else path.with_suffix("")
    return "/".join(place.parts[1:][-depth:])


def _setting_facts(run: Run, cells: Sequence[CellSummary]) -> dict[str, str]:
    threads = sorted({cell.cell.threads for cell in cells} - {0})
    batches = sorted({cell.cell.batch for cell in cells})
    return {
        "study": run.experiment.title,
        "hardware": report_text.hardware(run, cells),
        "threads": f"{'/'.join(map(str, threads))} thread{'' if threads == [1] else 's'}" if threads else "",
        "runtime": "/".join(dict.fromkeys(cell.cell.runtime for cell in cells)) or run.environment.runtime,
        "batch": "batch " + "/".join(map(str, batches)) if batches else "",
        "dtype": "/".join(dict.fromkeys(cell.cell.case.dtype for cell in cells)),
        "memory format": "/".join(dict.fromkeys(cell.cell.memory_format for cell in cells)),
        "mode": "/".join(dict.fromkeys(cell.cell.mode for cell in cells)),
        "allocator": f"allocator {run.environment.facts.get('run.allocator')}",
    }
