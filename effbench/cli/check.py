"""The command check: compare models with budgets, a stored run or another revision, and set the exit code."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from effbench.cli import options as cli_options
from effbench.cli import output
from effbench.cli.measure import warn_of_threads
from effbench.cli.options import with_measure_options
from effbench.core import units
from effbench.core.errors import EffbenchError, InvalidValue, StorageError, UnknownName

if TYPE_CHECKING:
    from effbench.gates.budgets import StoredProfile
    from effbench.gates.config import Config
    from effbench.gates.result import Decision

STEP_SUMMARY = "GITHUB_STEP_SUMMARY"
"""The file whose Markdown GitHub shows beside a job."""

_Limit = Annotated[str | None, typer.Option(metavar="COUNT", help="Upper limit, such as 300M, 4k or 20_000.")]


@with_measure_options(
    "launches",
    "budget_s",
    "device",
    "threads",
    "batch",
    "dtype",
    "allocator",
    "seed",
    launches="Fresh worker processes of each side. Default: the baseline's, else 5; --against: 4 to 13.",
    budget_s="Time to measure, such as 90s. Default: 10m.",
    batch="Images per call. Default: 1.",
    dtype=cli_options.FLOATS_ONLY,
)
def check(
    context: typer.Context,
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="Names in effbench.toml, or models as for `effbench compare`. Default: all of effbench.toml.",
            autocompletion=cli_options.complete_model,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="File of models, inputs, budgets and options. Default: ./effbench.toml, if it has every MODEL."
        ),
    ] = None,
    inputs: cli_options.Inputs = None,
    max_madds: _Limit = None,
    max_params: _Limit = None,
    max_memory_access: _Limit = None,
    max_memory_access_bytes: _Limit = None,
    max_activations: _Limit = None,
    baseline: Annotated[
        str | None,
        typer.Option(metavar="RUN|FILE", help="Stored run or profile to compare with."),
    ] = None,
    save_baseline: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Measure the models and a yardstick model, for --baseline DIR later."),
    ] = None,
    save_costs: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the costs of the models, for --baseline FILE later.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="GITREF", help="Git revision to compare with, measured interleaved with the working tree."
        ),
    ] = None,
    against_python: Annotated[
        Path | None, typer.Option(metavar="PATH", help="The Python of the other revision's own environment.")
    ] = None,
    count: Annotated[
        str | None,
        typer.Option(help="instructions: with --against, compare instruction counts instead of times."),
    ] = None,
    same_costs: Annotated[
        bool, typer.Option("--same-costs", help="Also fail if the costs of a timed model have changed.")
    ] = False,
    tolerance: Annotated[
        str | None, typer.Option(help="Slowdown that a PASS rules out. Default: 3%; 0.5% for counts.")
    ] = None,
    *,
    options: dict[str, Any],
    inconclusive: Annotated[str, typer.Option(help="If INCONCLUSIVE: fail (exit 3) or pass (exit 0).")] = "fail",
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML here, one test case per model and gate.")] = None,
    summary: Annotated[
        Path | None, typer.Option(help=f"Write Markdown here. It is also added to ${STEP_SUMMARY} where that is set.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for what is measured. Default: a new one under results/runs/.")
    ] = None,
    as_json: cli_options.Json = False,
) -> None:
    """Check models against budgets, a stored run or another revision.

    Exit code: 0 PASS, 1 REGRESSION, 2 a mistake on the command line, 3 INCONCLUSIVE, 4 ENVIRONMENT.

    Four gates, usable alone or together: costs (--max-madds and other budgets, or --baseline FILE with stored costs;
    exact, since nothing is timed), a stored run (--baseline RUN, on the same machine), another revision (--against
    main, measured interleaved with the working tree), instructions (--against main --count instructions).
    """
    from effbench.cost import helper_process
    from effbench.gates import config as configuration
    from effbench.runs.runner import Interrupted

    if inconclusive not in ("fail", "pass"):
        raise UnknownName("meaning of --inconclusive", inconclusive, ("fail", "pass"))
    if count is not None:
        cli_options.parse_count(count)
        if against is None:
            raise InvalidValue("--count compares two revisions: add --against GITREF, such as --against main")
    counts = {
        "madds": max_madds,
        "params": max_params,
        "memory_access": max_memory_access,
        "memory_access_bytes": max_memory_access_bytes,
        "activations": max_activations,
    }
    found = configuration.find(config, models or (), needs_models=baseline is None)
    said = {
        **options,
        "tolerance": None if tolerance is None else cli_options.share(tolerance, "--tolerance"),
        "inputs": cli_options.inputs(inputs),
        "same_costs": same_costs or None,
        "count": count,
        "baseline": baseline,
    }
    if cli_options.is_typed(context, "inconclusive"):
        said["inconclusive"] = inconclusive
    found = configuration.with_options(
        found, said, {name: _parse_limit(name, text) for name, text in counts.items() if text}
    )
    asked = _Request(
        found, against, against_python, save_baseline, save_costs, out, output.typed_command.get(), baseline
    )
    try:
        with redirect_stdout(sys.stderr), helper_process.reuse_process():
            decision, costs = _carry_out(asked)
    except Interrupted as stop:
        raise typer.Exit(
            output.report_interrupt(f"interrupted; nothing is decided, what was measured is in {stop.directory}")
        ) from None
    files = {"costs": save_costs, "junit": junit, "summary": summary}
    raise typer.Exit(_report(decision, costs, files, found.inconclusive == "pass", as_json, save_baseline))


@dataclass(frozen=True)
class _Request:
    """The arguments of a check."""

    config: Config
    against: str | None
    against_python: Path | None
    save_baseline: Path | None
    save_costs: Path | None
    out: Path | None
    command: str
    typed_baseline: str | None

    @property
    def baseline(self) -> Path | None:
        """The stored run or profile. A typed path is relative to here, one of effbench.toml to that file."""
        if self.typed_baseline is not None:
            return Path(self.typed_baseline)
        return None if self.config.baseline is None else self.config.folder / self.config.baseline


def _carry_out(asked: _Request) -> tuple[Decision | None, list[dict[str, Any]]]:
    """Run the gates. Returns their decision (None without a gate) and the costs of each model."""
    from effbench import api
    from effbench.gates import run_gates

    config = asked.config
    reference = asked.baseline if asked.save_baseline is None else None
    stored = run_gates.profiles(reference) if reference is not None else ()
    run = reference if stored is None else None
    has_budgets = any(subject.budgets for subject in config.subjects)
    if not (has_budgets or stored or run or asked.against or asked.save_baseline or asked.save_costs):
        raise InvalidValue(
            "nothing to check: give budgets (--max-madds 300M), a stored run or profile (--baseline PATH), or another "
            "revision (--against GITREF)"
        )
    if not config.subjects and (run is None or asked.against or has_budgets):
        raise InvalidValue(
            "no model is named: name one, or add it to an effbench.toml, such as [models.small] with "
            'model = "nets.py:small"'
        )
    decisions: list[Decision] = []
    costs: list[dict[str, Any]] = []
    folder = asked.out or api.new_directory("check", config.device or "cpu")
    run_gates.require_free(folder)
    if has_budgets or stored or asked.save_costs:
        decisions, costs = _check_costs(asked, stored or ())
    decisions += _check_times(asked, run, folder)
    return (run_gates.merge(decisions) if decisions or asked.against else None), costs


def _check_costs(asked: _Request, stored: Sequence[StoredProfile]) -> tuple[list[Decision], list[dict[str, Any]]]:
    """Count the models. Returns the decision on budgets and `stored` costs, if there are any, and the costs."""
    from effbench.gates import budgets, checked_models, run_gates
    from effbench.gates.result import Decision

    config = asked.config
    planned = checked_models.make_plan(config, checked_models.study(config))
    counts = checked_models.count_costs(planned.cells, checked_models.working_tree_site(config))
    findings = run_gates.costs(config, planned.cells, counts, stored)
    costs: list[dict[str, Any]] = []
    for subject, cell in zip(config.subjects, planned.cells, strict=True):
        cost = counts[subject.name]
        if not isinstance(cost, str):
            costs.append(budgets.document(cell, subject.name, cost))
        elif asked.save_costs:
            raise EffbenchError(f"{subject.name} does not run, so its costs cannot be stored: {cost}")
    return [Decision(findings)] if findings else [], costs


def _check_times(asked: _Request, run: Path | None, folder: Path) -> list[Decision]:
    """Measure what is asked for: a baseline to save, a comparison with `run`, one with another revision. Returns the
    decisions of the comparisons, whose runs go into `folder`.
    """
    from effbench.cli.progress import show_progress
    from effbench.gates import run_gates

    config = asked.config
    if not config.count and (run is not None or asked.against or asked.save_baseline):
        warn_of_threads(asdict(config.options()))
    decisions: list[Decision] = []
    with show_progress() as watch:
        if asked.save_baseline is not None:
            run_gates.save_baseline(config, asked.save_baseline, command=asked.command, watch=watch)
        if run is not None:
            decisions.append(
                run_gates.compare_with_run(config, run, folder / "candidate", command=asked.command, watch=watch)
            )
        if asked.against is not None and config.count:
            from effbench.gates import instruction_gate

            decisions.append(instruction_gate.check(config, asked.against, python=asked.against_python, watch=watch))
        elif asked.against is not None:
            from effbench.gates import ab_gate

            decisions.append(
                ab_gate.check(
                    config,
                    asked.against,
                    folder / "against",
                    python=asked.against_python,
                    command=asked.command,
                    watch=watch,
                )
            )
    return decisions


def _report(
    decision: Decision | None,
    costs: Sequence[Mapping[str, Any]],
    files: Mapping[str, Path | None],
    passes: bool,
    as_json: bool,
    saved: Path | None,
) -> int:
    """Print the decision and write all requested files. Returns the exit code.

    The path of the figure is printed only after it was written. If a file cannot be written, exit code 0 becomes 2; any
    other stays.
    """
    from effbench.report import json_document
    from effbench.report.tables import gate

    code = 0 if decision is None or (passes and decision.verdict == "INCONCLUSIVE") else decision.exit_code
    texts: dict[str, str] = {"costs": json.dumps({"costs": list(costs)}, indent=2) + "\n"}
    if decision is not None:
        texts["junit"] = gate.junit(decision, inconclusive_passes=passes)
        texts["summary"] = gate.markdown(decision)
    told = {} if decision is None else json_document.decision_document(decision, code)
    whole = {**told, "costs": list(costs), "baseline_dir": None if saved is None else str(saved)}
    with _ignore_print_errors():
        if as_json:
            output.print_json(whole)
        elif decision is not None:
            output.print_tables(gate.tables(decision))
    trouble = 0
    figure: Path | None = None
    if decision is not None and decision.directory is not None:
        beside = Path(decision.directory).parent
        trouble |= _write(beside / "check.json", json.dumps(whole, indent=2, allow_nan=False) + "\n")
        trouble |= _write(beside / "check.md", texts["summary"])
        try:
            figure = _draw(decision, beside)
        except StorageError as error:
            trouble |= output.print_error(str(error))
    if decision is not None and not as_json:
        with _ignore_print_errors():
            if decision.directory is not None:
                places = {"figure": figure, "raw": Path(decision.directory)}
                print("\n" + "\n".join(f"{what:<9}{output.plain(str(path))}" for what, path in places.items() if path))
            print(f"\n{gate.last_line(decision)}")
    for what, path in files.items():
        if path is not None and what in texts:
            trouble |= _write(path, texts[what])
    if decision is not None and (place := os.environ.get(STEP_SUMMARY)):
        _append(Path(place), texts["summary"])
    if not as_json:
        written = {"costs": files["costs"], "baseline": saved}
        with _ignore_print_errors():
            print("".join(f"{what:<9}{output.plain(str(path))}\n" for what, path in written.items() if path), end="")
    return code or trouble


@contextmanager
def _ignore_print_errors() -> Iterator[None]:
    """Ignore failures to print, so that they change neither exit code nor files: the reader may be gone (`| head`)."""
    try:
        yield
    except OSError as error:
        output.discard_output()
        if not isinstance(error, BrokenPipeError):
            output.note(f"cannot write to standard output: {error.strerror or error}")
    output.flush_failed()


def _write(path: Path, text: str) -> int:
    """Replace a file atomically. Returns 0, or 2 after an error message."""
    half = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, half = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        os.chmod(half, 0o666 & ~_umask())
        os.replace(half, path)
    except OSError as error:
        if half is not None:
            with suppress(OSError):
                os.unlink(half)
        return output.print_error(f"cannot write {path} ({error.strerror or error}); choose another place")
    return 0


def _draw(decision: Decision, folder: Path) -> Path | None:
    """Draw the figure beside the raw blocks; None if nothing was timed, or after a warning why it cannot be drawn.

    Raises StorageError where it cannot be written.
    """
    from effbench.report.figures import failures, style
    from effbench.report.figures import gate as gate_figure

    def draw() -> dict[str, Path]:
        figure = gate_figure.gate_figure(decision)
        return {} if figure is None else {"figure": style.save(figure, folder, "figure")[0]}

    return failures.draw_or_warn(draw).get("figure")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _append(path: Path, text: str) -> None:
    """Append to a file that other steps write to as well. A failure is only reported: no option named the file."""
    try:
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except OSError as error:
        output.print_error(f"cannot add to ${STEP_SUMMARY} ({error.strerror or error}); unset it")


def _parse_limit(name: str, text: str) -> int:
    try:
        return units.amount(text)
    except InvalidValue as error:
        raise InvalidValue(f"--max-{name.replace('_', '-')}: {error}") from None
