"""The A/B gate: measure another git revision of the user's project interleaved with the working tree, and judge it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from effbench.core.errors import CannotStart, EffbenchError, InvalidValue, NotComparable
from effbench.cost import count_in_subprocess
from effbench.gates import ab_findings, alarm_rate, calibration, checked_models, git_revision, tree_files
from effbench.gates.ab_pairs import Pair
from effbench.gates.ab_run import MIN_ROUNDS, AbRun
from effbench.gates.alarm_rate import AlarmRate
from effbench.gates.baseline import name_of
from effbench.gates.calibration import Survey
from effbench.gates.config import BUDGET_S, Config, Subject
from effbench.gates.decision_rule import LOOKS, Gate, Rule
from effbench.gates.evidence import Evidence
from effbench.gates.result import Decision, Finding
from effbench.host.worker_process import Site
from effbench.runs.runner import CostOf, Interrupted, Progress, Watch
from effbench.studies.plan import Plan
from effbench.timing.least_duration import Forecast, format_seconds, is_overrun

ROUNDS = 20
"""Rounds of every launch. The number is fixed in advance: stopping on good-looking data would invalidate the tests."""
RECORDED_LAUNCHES = 20
"""Launches of `effbench aa`: enough to resample many different gates of at most 13 launches."""


@dataclass(frozen=True)
class Sides:
    """The two sides, baseline first: the site of the code, the function that counts its costs, its name."""

    sites: tuple[Site, Site] = (Site(), Site())
    costs: tuple[CostOf, CostOf] = field(kw_only=True)
    names: tuple[str, str] = ("baseline", "candidate")
    notes: tuple[str, ...] = ()


def check(
    config: Config, name: str, directory: Path, *, python: Path | None = None, command: str = "", watch: Watch
) -> Decision:
    """Compare the working tree with the git revision `name`.

    `python` is the interpreter of the revision's own environment. Raises what `prepare_sides` and `decide` raise.
    """
    with prepare_sides(config, name, python) as (plan, sides):
        decision = decide(
            plan,
            sides,
            directory,
            rule=rule_of(config),
            tolerances={cell.id: config.tolerance_of(name_of(cell.case)) for cell in plan.cells},
            budget_s=config.budget_s or BUDGET_S,
            same_costs=config.same_costs,
            command=command,
            watch=watch,
        )
    return replace(decision, notes=(*decision.notes, *sides.notes, *note_on_shared_code(config, python)))


@contextmanager
def prepare_sides(config: Config, name: str, python: Path | None = None) -> Iterator[tuple[Plan, Sides]]:
    """Check out the git revision `name` beside the working tree; yield the plan and both sides.

    `python` is the interpreter of the revision's own environment. Raises EffbenchError where there is no such
    revision, InvalidValue where `python` is not executable.
    """
    folder = config.folder.resolve()
    top = git_revision.repository(folder)
    wanted, inside = git_revision.find(top, name), folder.relative_to(top)
    if python is not None and not os.access(python, os.X_OK):
        raise InvalidValue(f"--against-python {python} is no program; name the python of an environment with effbench")
    plan = _plan(config, folder, top)
    notes: list[str] = []
    with git_revision.check_out(top, wanted, notes) as tree:
        if not (tree / inside).is_dir():
            raise EffbenchError(f"{wanted} has no folder {inside}; choose a revision that holds the project")
        with tree_files.write_listings(tree, top) as (before, now):
            # Absolute but not resolved: a virtual environment is found by the path of its python, which is a link.
            own_python = None if python is None else os.path.abspath(python)
            sites = (
                Site(tree / inside, config.paths, top, tree, (before, now), own_python),
                Site(folder, config.paths, tree, top, (now, before)),
            )
            sides = Sides(
                sites,
                costs=(checked_models.CostsOf(plan, sites[0]), checked_models.CostsOf(plan, sites[1])),
                names=(str(wanted), git_revision.working_tree(top)),
                notes=tuple(notes),
            )
            yield plan, sides


def note_on_shared_code(config: Config, python: Path | None) -> tuple[str, ...]:
    """A note that names the models whose code is not part of the project, so that both sides run the same."""
    shared = [subject.name for subject in config.subjects if not count_in_subprocess.is_user_code(subject.model)]
    if shared and python is None:
        return (f"{', '.join(shared)}: not this project's code, so both sides ran the same",)
    return ()


def rule_of(config: Config) -> Rule:
    """The decision rule of this configuration: tolerance, alpha, and looks up to the number of launches."""
    rule = Rule(tolerance=config.tolerance_of(""), alpha=config.alpha or Rule().alpha)
    return replace(rule, looks=calibration.looks_of(config.launches or LOOKS[-1], rule))


def decide(
    plan: Plan,
    sides: Sides,
    directory: Path,
    *,
    rule: Rule,
    tolerances: Mapping[str, float] | None = None,
    budget_s: float,
    same_costs: bool = False,
    command: str = "",
    watch: Watch,
) -> Decision:
    """Measure until every cell has a verdict, the last look is done, or the next look would overrun `budget_s`.

    `tolerances` are by cell id. Raises StorageError, EffbenchError, runner.Interrupted; blocks measured until then
    stay in `directory`.
    """
    begun = time.monotonic()
    judge = Gate([cell.id for cell in plan.cells], rule, tolerances or {})
    notes: tuple[str, ...] = ()
    pair: Pair | None = None
    forecast = Forecast(
        plan.sampling, budget_s, cells=len(plan.cells), launches_left=rule.looks[0], sides=2, min_rounds=MIN_ROUNDS
    )
    with _ab_run(plan, sides, directory, rule.looks[-1], command, watch, forecast) as ab:
        try:
            for number, launches in enumerate(rule.looks):
                while ab.launches < launches and ab.launch(judge.undecided):
                    pass
                if ab.launches < launches:
                    break
                judge.look_at(number, ab.pair())
                if not judge.undecided:
                    break
                following = (*rule.looks, None)[number + 1]
                if following and (time.monotonic() - begun) * following / launches > budget_s:
                    most = f"{launches} of at most {rule.looks[-1]} launches"
                    notes = (f"the next look would overrun the budget of {budget_s:g} s, so it ended after {most}",)
                    break
        except (NotComparable, CannotStart) as error:
            unlike = [Finding("against", cell, "ENVIRONMENT", str(error)) for cell in judge.cells]
            return _decision(plan, sides, directory, begun, unlike)
        except KeyboardInterrupt:
            raise Interrupted(directory) from None
        if (fewest := min(ab.rounds, default=ROUNDS)) < ROUNDS:
            shown = str(fewest) if max(ab.rounds) == fewest else f"{fewest} to {max(ab.rounds)}"
            notes += (f"{shown} rounds a launch instead of {ROUNDS}, since the budget has no time for more",)
        if is_overrun(spent := time.monotonic() - begun, budget_s):
            notes += (f"it used {format_seconds(spent)} of a budget of {budget_s:g} s",)
        if ab.launches:
            pair = ab.finish()
        found = ab_findings.findings(judge, pair, ab.skipped(), same_costs=same_costs)
    decided = _decision(plan, sides, directory, begun, found, pair)
    measured = [item.cell for item in found if item.change is not None]
    mean = ab_findings.geomean(pair, measured) if pair is not None and len(measured) > 1 else None
    runs = () if pair is None else (pair.baseline, pair.candidate)
    return replace(decided, geomean=mean, notes=(*notes, *checked_models.remarks(runs)))


def record(plan: Plan, sides: Sides, directory: Path, *, launches: int, command: str = "", watch: Watch) -> Pair:
    """Measure every cell in a fixed number of launches. Raises what `decide` raises, and NotComparable."""
    cells = [cell.id for cell in plan.cells]
    with _ab_run(plan, sides, directory, launches, command, watch) as ab:
        try:
            while ab.launches < launches and ab.launch(cells):
                pass
        except KeyboardInterrupt:
            raise Interrupted(directory) from None
        if not ab.launches:
            reasons = {cell: reason for side in ab.skipped().values() for cell, reason in side.items()}
            raise EffbenchError("nothing could be measured; " + "; ".join(f"{c}: {why}" for c, why in reasons.items()))
        return ab.finish()


def measure_same_code(config: Config, directory: Path, *, command: str = "", watch: Watch) -> Pair:
    """Measure the working tree on both sides (A/A), in more launches than a gate takes. Raises what `record` raises."""
    plan = checked_models.make_plan(config, checked_models.study(config))
    costs = checked_models.CostsOf(plan)
    sides = Sides(costs=(costs, costs))
    return record(plan, sides, directory, launches=config.launches or RECORDED_LAUNCHES, command=command, watch=watch)


def calibrate(config: Config, pair: Pair, suites: int, seed: int, watch: Watch) -> tuple[Survey, AlarmRate]:
    """Evaluate an A/A measurement: the detectable slowdowns on its machine, and the rate of false alarms.

    A simulated gate always has the launches of a whole gate, however many were recorded.
    """
    rule, recorded = rule_of(replace(config, launches=None)), Evidence.of(pair).recorded()
    watch(Progress(0.0, "simulating the power of the gate"))
    survey = calibration.survey(recorded, rule=rule)
    watch(Progress(0.5, "resampling gates"))
    found = alarm_rate.resample(recorded, suites=suites, seed=seed, rule=rule)
    watch(Progress(1.0, "done"))
    return survey, found


def _ab_run(
    plan: Plan,
    sides: Sides,
    directory: Path,
    launches: int,
    command: str,
    watch: Watch,
    forecast: Forecast | None = None,
) -> AbRun:
    fixed = replace(plan.sampling, launches=launches, min_rounds=ROUNDS, max_rounds=ROUNDS)
    planned = replace(plan, sampling=fixed)
    return AbRun(
        planned,
        sides.sites,
        directory,
        sides.costs,
        planned=launches,
        command=command,
        watch=watch,
        forecast=forecast,
    )


def _decision(
    plan: Plan, sides: Sides, directory: Path, begun: float, found: Sequence[Finding], pair: Pair | None = None
) -> Decision:
    names = {cell.id: name_of(cell.case) for cell in plan.cells}
    return Decision(
        findings=tuple(replace(item, cell=names[item.cell]) for item in found),
        baseline=sides.names[0],
        candidate=sides.names[1],
        facts={} if pair is None else checked_models.facts(pair.candidate.environment),
        directory=str(directory) if pair is not None else None,
        seconds=time.monotonic() - begun,
    )


def _plan(config: Config, folder: Path, top: Path) -> Plan:
    """The plan of both sides. Paths of model files stay relative, since each side has its own files."""
    study = checked_models.study(config)
    pairs = zip(study.cases, config.subjects, strict=True)
    cases = [replace(case, model=_relative(subject, folder, top)) for case, subject in pairs]
    return checked_models.make_plan(config, study.with_cases(cases))


def _relative(subject: Subject, folder: Path, top: Path) -> str:
    """The subject's model with its path relative to the side's folder.

    Raises InvalidValue for a file outside of the repository.
    """
    place, colon, attribute = subject.model.rpartition(":")
    if not place.endswith(".py"):
        return subject.model
    path = Path(os.path.normpath(folder / place))
    if not path.is_relative_to(top) and not path.resolve().is_relative_to(top):
        raise InvalidValue(f"{place} is outside of the repository, so no other revision has it")
    return os.path.relpath(path if path.is_relative_to(top) else path.resolve(), folder) + colon + attribute
