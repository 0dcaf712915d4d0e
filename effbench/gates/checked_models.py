"""Turn a configuration into a study, a plan and the costs of each model under check."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from effbench.analysis import summary
from effbench.core import inputs
from effbench.core.cost import Cost
from effbench.core.errors import CannotStart, EffbenchError, Reason, error_from_reason
from effbench.core.inputs import Input
from effbench.core.run import Environment, Run
from effbench.core.study import Case, Cell, Experiment, Sampling
from effbench.cost import count_in_subprocess
from effbench.cost.count_in_subprocess import Counted
from effbench.gates.baseline import name_of
from effbench.gates.config import YARDSTICK, Config
from effbench.host.worker_process import Site
from effbench.studies import model_comparison, plan
from effbench.studies.plan import Plan

Counts = Mapping[str, Cost | str]
"""The cost of each subject by name, or the reason why it does not run."""

YARDSTICK_CASE = Case("mobilenet_v2", (3, 96, 96), labels={"model": YARDSTICK})
"""A zoo model with wide and depthwise convolutions, norms, activations and additions that runs in a few ms."""


def study(config: Config) -> Experiment:
    """The study of all subjects, each under its name. Ratios are to the first.

    Raises UnknownName, ModelError, InvalidValue for a subject whose model does not exist.
    """
    models = [config.located(subject) for subject in config.subjects]
    model_comparison.require_models(models)
    asked = [(model, item.arguments) for model, item in zip(models, config.subjects, strict=True) if not item.inputs]
    names, arguments = [model for model, _ in asked], [given for _, given in asked]
    shapes = iter(model_comparison.input_shapes(names, arguments, working_tree_site(config)))
    cases = []
    for subject, model in zip(config.subjects, models, strict=True):
        given = subject.inputs or (Input(next(shapes)),)
        cases.append(
            Case(
                model,
                given[0].shape,
                arguments=subject.arguments,
                dtype=subject.dtype or config.dtype or "float32",
                labels={"model": subject.name},
                inputs=inputs.explicit_inputs(given),
            )
        )
    return study_of(cases)


def study_of(cases: Sequence[Case]) -> Experiment:
    """The study of these cases. Ratios are to the first."""
    return model_comparison.comparison_of(cases, "check", "Models under check")


def make_plan(config: Config, experiment: Experiment) -> Plan:
    """The plan of the study under the configuration's options, every cell with its own batch."""
    found = plan.make(experiment, config.options())
    batches = {subject.name: subject.batch or config.batch or 1 for subject in config.subjects}
    return replace(found, cells=tuple(replace(cell, batch=batches.get(name_of(cell.case), 1)) for cell in found.cells))


def remarks(runs: Iterable[Run]) -> tuple[str, ...]:
    """Remarks on the models of a gate.

    They name process-wide settings that a model changes, its side effects, and its dtype if it is not the model's own.
    """
    told: list[str] = []
    for run in runs:
        for result in run:
            told += summary.process_change_notes(run, result.cell.id)
            told += [f"{name_of(result.cell.case)}: {note}" for note in summary.side_effect_notes(run, result.cell.id)]
    return tuple(dict.fromkeys(told))


def working_tree_site(config: Config) -> Site:
    """The site of the working tree: modules are imported from the configuration's `paths` first."""
    return Site(Path.cwd(), tuple(os.path.abspath(config.folder / path) for path in config.paths))


def count_costs(cells: Sequence[Cell], site: Site | None = None) -> Counts:
    """Count the cost of each cell, by name. User code runs in a child process, which it may crash or hang.

    `site` is the location of that code. Default: the current process's. Raises ForeignCode where a side would run code
    of the other side.
    """
    user_cells = [cell for cell in cells if count_in_subprocess.is_user_code(cell.case.model)]
    counted_apart: Mapping[str, Counted | str] = {}
    try:
        counted_apart = (
            count_in_subprocess.count_in_worker(user_cells, Sampling().silence_s, site) if user_cells else {}
        )
    except CannotStart as error:
        counted_apart = {cell.id: Reason.of(error) for cell in user_cells}
    found: dict[str, Cost | str] = {}
    for cell in cells:
        name = name_of(cell.case)
        if cell.id in counted_apart:
            counted = counted_apart[cell.id]
            found[name] = counted if isinstance(counted, str) else counted.cost
            continue
        try:
            found[name] = count_in_subprocess.count_cell(cell).cost
        except EffbenchError as error:
            found[name] = Reason.of(error)
    return found


class CostsOf:
    """A function from a cell of the plan to its cost. All cells are counted at the first call.

    It raises EffbenchError for a cell that does not run.
    """

    def __init__(self, planned: Plan, site: Site | None = None) -> None:
        self._cells, self._site = planned.cells, site
        self._counts: Counts = {}

    def __call__(self, cell: Cell) -> Cost:
        self._counts = self._counts or count_costs(self._cells, self._site)
        found = self._counts[name_of(cell.case)]
        if isinstance(found, str):
            raise error_from_reason(found)
        return found


def facts(found: Environment) -> dict[str, str]:
    """The facts about the machine that the gate's report shows."""
    wanted = {"machine": "cpu.model", "gpu": "gpu.name", "threads": "run.threads", "torch": "torch.version"}
    return {word: str(found.facts[name]) for word, name in wanted.items() if found.facts.get(name)}
