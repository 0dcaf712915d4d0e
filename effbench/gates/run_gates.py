"""Run the costs gate and the baseline gate, which need no second revision."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from effbench import devices
from effbench.core import inputs
from effbench.core.errors import CorruptRun, DeviceUnavailable, EffbenchError, InvalidValue, NotComparable, StorageError
from effbench.core.run import Run
from effbench.core.study import Cell
from effbench.gates import baseline, budgets
from effbench.gates.baseline import name_of
from effbench.gates.budgets import StoredProfile
from effbench.gates.checked_models import YARDSTICK_CASE, CostsOf, Counts, facts, make_plan, remarks, study, study_of
from effbench.gates.config import YARDSTICK, Config
from effbench.gates.decision_rule import Rule
from effbench.gates.result import Decision, Finding
from effbench.host import facts as host_facts
from effbench.runs import run_file, runner
from effbench.runs.runner import Progress, Watch
from effbench.studies import model_comparison, plan
from effbench.studies.plan import Plan

_KNOWN_BEFORE_START = ("run.", "host.", "cpu.", "python.", "env.")
"""Conditions that are known before a worker has started."""


def require_free(folder: Path) -> None:
    """Raise StorageError if this folder holds an earlier `check` or `aa`, since neither can resume."""
    if any((folder / place / run_file.RUN_FILE).exists() for place in ("candidate", "against/candidate")):
        raise StorageError(f"{folder} already holds what was measured; choose another --out, or remove that folder")


# --- the costs gate ------------------------------------------------------------------------------


def profiles(path: Path) -> tuple[StoredProfile, ...] | None:
    """Read the stored profiles in a file; None if it holds a run. Raises StorageError, InvalidValue."""
    if path.is_dir() or path.suffix == ".jsonl":
        return None
    try:
        text = path.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read {path} ({error.strerror or error}); check the path") from error
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        try:
            run_file.load(path)
        except CorruptRun:
            raise InvalidValue(
                f"{path} is neither a run nor a profile; store one with `effbench check --save-baseline DIR` or "
                "`--save-costs FILE`"
            ) from None
        return None
    if isinstance(document, dict) and document.get("kind") == "header":
        return None
    return budgets.read_profiles(document, str(path))


def costs(
    config: Config, cells: Sequence[Cell], counts: Counts, stored: Sequence[StoredProfile] = ()
) -> tuple[Finding, ...]:
    """The findings of the costs gate: for every subject with a budget, or for all if there are stored profiles."""
    findings = []
    for subject, cell in zip(config.subjects, cells, strict=True):
        match = budgets.find_profile(stored, subject.name, subject.model)
        if stored and match is None and not subject.budgets:
            findings.append(Finding("costs", subject.name, "NEW", "it is not among the stored profiles"))
        elif stored or subject.budgets:
            found = counts[subject.name]
            findings.append(budgets.judge(subject.name, found, subject.budgets, match, budgets.conditions(cell)))
    return tuple(findings)


# --- the baseline gate -----------------------------------------------------------------------


def save_baseline(config: Config, directory: Path, *, command: str = "", watch: Watch | None = None) -> Run:
    """Measure the subjects and the yardstick into a baseline for `compare_with_run`. Raises what `api.run` raises."""
    if (directory / run_file.RUN_FILE).exists():
        raise StorageError(f"{directory} already holds a run; remove it, or name another folder")
    if (config.device or "").startswith("cuda"):
        devices.require_cuda(str(config.device))
    experiment = study_of([YARDSTICK_CASE, *study(config).cases])
    return _measure(make_plan(config, experiment), directory, command, watch)


def compare_with_run(
    config: Config, reference: Path, directory: Path, *, command: str = "", watch: Watch | None = None
) -> Decision:
    """Measure the subjects as the stored run was measured, and compare. Without subjects, measure all its cells.

    Where the machine is known to differ from the baseline's, nothing is measured. Raises StorageError, CorruptRun,
    InvalidValue for options that contradict the stored run, and what `api.run` raises.
    """
    started, stored = time.monotonic(), run_file.load(reference)
    _refuse_other_options(config, stored)
    cells, found = _cells_to_measure(stored, config)
    yardstick_id = baseline.yardstick_of(stored, [cell.id for cell in cells if name_of(cell.case) != YARDSTICK])
    judged = [cell.id for cell in cells if cell.id != yardstick_id]
    decision = Decision(
        tuple(found),
        baseline=f"{reference} ({stored.created})",
        candidate="working tree",
        notes=baseline.notes(yardstick_id),
    )
    if not judged:
        return decision
    names = [name_of(cell.case) for cell in cells if cell.id != yardstick_id]
    if differences := _known_differences(stored):
        return replace(decision, findings=(*baseline.findings_on_other_machine(differences, names), *found))
    if yardstick_id is not None and yardstick_id not in [cell.id for cell in cells]:
        cells = [stored.result(yardstick_id).cell, *cells]
    try:
        run = _measure(
            _plan_for(stored, cells, config),
            directory,
            command,
            _watch_for_other_machine(stored, directory, watch),
            can_resume=False,
        )
    except NotComparable as error:
        differences = host_facts.differences(stored.environment, run_file.load(directory).environment)
        unlike = [Finding("baseline", name, "ENVIRONMENT", str(error)) for name in names]  # a file changed meanwhile
        if differences:
            unlike = list(baseline.findings_on_other_machine(differences, names))
        return replace(decision, findings=(*unlike, *found), directory=str(directory))
    rule = Rule(tolerance=config.tolerance_of(""), alpha=config.alpha or Rule().alpha)
    tolerances = {cell.id: config.tolerance_of(name_of(cell.case)) for cell in cells}
    verdicts = baseline.judge(
        stored, run, judged, rule, tolerances, yardstick=yardstick_id, same_costs=config.same_costs
    )
    return replace(
        decision,
        findings=(*verdicts, *found),
        geomean=baseline.geomean(stored, run, judged, yardstick_id),
        notes=(*decision.notes, *baseline.remarks(stored, run, judged, yardstick_id), *remarks([run])),
        facts=facts(run.environment),
        directory=str(directory),
        seconds=time.monotonic() - started,
    )


def merge(decisions: Sequence[Decision]) -> Decision:
    """Merge the decisions of several gates. Fields that only a timed gate has are taken from the last of those."""
    timed = next((item for item in reversed(decisions) if item.baseline), Decision(()))
    return replace(
        timed,
        findings=tuple(finding for item in decisions for finding in item.findings),
        notes=tuple(dict.fromkeys(note for item in decisions for note in item.notes)),
        facts={name: value for item in decisions for name, value in item.facts.items()},
        seconds=sum(item.seconds for item in decisions),
    )


# --- parts ------------------------------------------------------------------------------------------


def _measure(chosen: Plan, directory: Path, command: str, watch: Watch | None, *, can_resume: bool = True) -> Run:
    try:
        unwatched: Watch = lambda step: None  # noqa: E731
        return runner.execute(
            chosen,
            directory,
            profile=CostsOf(chosen),
            command=command,
            watch=watch or unwatched,
            can_resume=can_resume,
        )
    except NotComparable:
        raise
    except EffbenchError:
        # If every model failed, the run holds the reasons, and the gate reports them.
        run = run_file.load(directory) if (directory / run_file.RUN_FILE).exists() else None
        if run is None or not all(result.skipped for result in run):
            raise
        return run


def _cells_to_measure(stored: Run, config: Config) -> tuple[list[Cell], list[Finding]]:
    """The cells to measure under the stored conditions, and a finding for each subject that cannot be compared."""
    if not config.subjects:
        return [result.cell for result in stored], []
    cells, findings = [], []
    named = {name_of(result.cell.case): result.cell for result in stored}
    models = [config.located(subject) for subject in config.subjects]
    model_comparison.require_models(models)
    for subject, model in zip(config.subjects, models, strict=True):
        like = named.get(subject.name)
        if like is None:
            findings.append(Finding("baseline", subject.name, "NEW", "it is not in the baseline"))
            continue
        new_inputs = subject.inputs or like.case.all_inputs
        case = replace(
            like.case,
            model=model,
            arguments=subject.arguments,
            input_shape=new_inputs[0].shape,
            inputs=inputs.explicit_inputs(new_inputs),
            dtype=subject.dtype or config.dtype or like.case.dtype,
        )
        cell = replace(like, case=case, batch=subject.batch or config.batch or like.batch)
        then, now = budgets.conditions(like), budgets.conditions(cell)
        if then == now:
            cells.append(cell)
        else:
            reason = f"the baseline is of {then}, this is {now}; store it anew"
            findings.append(Finding("baseline", subject.name, "INCONCLUSIVE", reason))
    return cells, findings


def _plan_for(stored: Run, cells: Sequence[Cell], config: Config) -> Plan:
    like, sampling = _plan_of(stored), stored.sampling
    # A gate compares two runs of equal length, so it does not stop by itself where its baseline did. It measures at
    # once, since CI waits for it, however long its baseline was spread.
    sampling = replace(
        sampling,
        until="launches",
        launches=config.launches or (stored.stop.launches if stored.stop else sampling.launches),
        budget_s=config.budget_s or sampling.budget_s,
        spread_s=0.0,
    )
    return replace(
        like,
        experiment=like.experiment.with_cases(cell.case for cell in cells),
        cells=tuple(cells),
        sampling=plan.checked_sampling(sampling),
    )


def _plan_of(stored: Run) -> Plan:
    """The plan of a stored run. Raises CorruptRun if the run lacks the conditions of its measurement."""
    try:
        return runner.plan_of(stored)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise CorruptRun(
            f"{stored.path} does not hold its measuring options; store the baseline anew with --save-baseline"
        ) from error


def _refuse_other_options(config: Config, stored: Run) -> None:
    """Raise InvalidValue for options that differ from those of the baseline, since it is compared under its own."""
    for result in stored:
        if result.cell.case.model.startswith("pickle:"):
            raise InvalidValue(f"{result.cell.id} was a module of a Python session; store models that have a name")
    own = _plan_of(stored)
    asked = {"device": config.device, "threads": config.threads, "allocator": config.allocator}
    if not own.device.startswith("cpu") and config.threads == 1:
        # threads only affects the CPU; on other devices the default in effbench.toml is no contradiction.
        del asked["threads"]
    for name, value in asked.items():
        if value is not None and value != getattr(own, name) and (name, value) != ("threads", 0):
            raise InvalidValue(
                f"the baseline was measured with {name} {getattr(own, name)}, not {value}: leave {name} out, or store "
                "a new one with --save-baseline"
            )


def _known_differences(stored: Run) -> tuple[host_facts.Difference, ...]:
    """The conditions that differ from the baseline's, as far as they are known without a worker process."""
    own = _plan_of(stored)
    if own.device.startswith("cuda"):
        try:
            devices.require_cuda(own.device)
        except DeviceUnavailable as error:
            return (host_facts.Difference("device", stored.environment.device, str(error)),)
    here = host_facts.collect({}, own.runtime, threads=own.threads, allocator=own.allocator)
    return tuple(
        item for item in host_facts.differences(stored.environment, here) if item.field.startswith(_KNOWN_BEFORE_START)
    )


def _watch_for_other_machine(stored: Run, directory: Path, watch: Watch | None) -> Watch:
    """A watch that raises NotComparable once the new run's environment is known to differ from the baseline's."""
    is_checked = False

    def look(progress: Progress) -> None:
        nonlocal is_checked
        file = directory / run_file.RUN_FILE
        if not is_checked and file.exists() and file.stat().st_size:
            is_checked = True
            host_facts.require_comparable(stored.environment, run_file.load(directory).environment)
        if watch is not None:
            watch(progress)

    return look
