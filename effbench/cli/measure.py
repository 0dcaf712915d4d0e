"""The commands run and compare: measure a study or a list of models."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from effbench.cli import options as cli_options
from effbench.cli import output
from effbench.cli.options import RUN_OPTIONS, with_measure_options
from effbench.core.errors import InvalidValue, StorageError
from effbench.host import optional_packages

if TYPE_CHECKING:
    from effbench.core.run import Run
    from effbench.report.analysis_outcome import Outcome
    from effbench.results import Results

MORE_TO_DO = 5
"""Exit code of ``--now`` where launches are left."""

DISTURBED = 4
"""Exit code of a run that stopped since others disturbed it, as for a gate without a verdict (ENVIRONMENT)."""


@with_measure_options(*RUN_OPTIONS)
def run(
    context: typer.Context,
    options: dict[str, Any],
    study: Annotated[
        str | None,
        typer.Argument(help="A study's name, or a file of your own.", autocompletion=cli_options.complete_study),
    ] = None,
    scale: cli_options.Scale = None,
    select: cli_options.Select = None,
    model: cli_options.Models = None,
    depthwise: cli_options.Depthwise = False,
    out: cli_options.Out = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Finish the interrupted run in this folder.", autocompletion=cli_options.complete_run),
    ] = None,
    now: cli_options.Now = None,
    as_json: cli_options.Json = False,
) -> None:
    """Carry out a study and check whether its guideline holds here.

    Exit code: 0 done, 2 a mistake, 4 stopped since others disturbed it, 5 launches are left (--now).
    """
    from effbench import api
    from effbench.core.study import Analysis
    from effbench.studies import catalog

    if study is None and resume is None:
        raise InvalidValue(
            "name one study to run, or give --resume DIR to finish one; `effbench list studies` names them"
        )
    at_once = cli_options.launches_now(now)
    if resume is not None:
        cli_options.refuse_others(
            context, ("study", "resume", "now"), "--resume goes on with the options of the stored run"
        )
        folder = resume
        if study is not None:
            _require_same_study(study, folder)
        finish(lambda watch: api.resume(folder, watch=watch, **at_once), as_json)
        return
    chosen = cli_options.parse_selection(select or [])
    with redirect_stdout(sys.stderr):
        found = catalog.load(str(study))
    if isinstance(found, Analysis):
        cli_options.refuse_others(context, ("study", "select", "out"), f"{found.name} measures nothing")
        from effbench.cli.progress import show_progress

        with show_progress() as watch:
            outcome = api.analyse(found, select=chosen, watch=watch)
        files = outcome.write(out or api.new_directory(found.name, "analysis"))
        if as_json:
            output.print_json({**outcome.to_dict(), "files": {name: str(path) for name, path in files.items()}})
        else:
            _show(outcome, as_json)
            _show_places(files)
        return
    if scale:
        chosen["scale"] = scale.split(",")
    warn_of_threads(options)
    of_study: dict[str, Any] = {"models": tuple(model or ()), "depthwise": depthwise, "select": chosen}
    finish(lambda watch: api.run(found, **of_study, **_destination(out, watch), **at_once, **options), as_json)


def _require_same_study(study: str, folder: Path) -> None:
    """Raise InvalidValue if the run in the folder is of another study."""
    from effbench.runs import run_file
    from effbench.studies import catalog

    held = run_file.load(folder).experiment.name
    with redirect_stdout(sys.stderr):
        wanted = catalog.load(study).name
    if held != wanted:
        raise InvalidValue(f"{folder} holds a run of {held}, not of {wanted}; leave out {study} to finish that run")


@with_measure_options(*RUN_OPTIONS)
def compare(
    models: Annotated[
        list[str],
        typer.Argument(
            help="Names from `effbench list models`, torchvision:NAME, timm:NAME, or path/file.py:factory.",
            autocompletion=cli_options.complete_model,
        ),
    ],
    options: dict[str, Any],
    inputs: cli_options.Inputs = None,
    out: cli_options.Out = None,
    now: cli_options.Now = None,
    as_json: cli_options.Json = False,
) -> None:
    """Measure models side by side: costs, speed, the paper's row.

    Ratios are to the first model.
    """
    from effbench import api

    warn_of_threads(options)
    given: dict[str, Any] = {"input_shape": cli_options.inputs(inputs), **cli_options.launches_now(now)}
    finish(lambda watch: api.compare(*models, **given, **_destination(out, watch), **options), as_json)


def _destination(out: Path | None, watch: Any) -> dict[str, Any]:
    return {"out": out, "command": output.typed_command.get(), "watch": watch}


def finish(work: Callable[[Any], Results], as_json: bool, bundle: Path | None = None) -> None:
    """Measure with a progress bar, write tables and figures beside the run, and print the results.

    `bundle` is the folder of the measured bundle, if any: its machine may lack the packages for tables and figures.
    Raises typer.Exit with `MORE_TO_DO` or `DISTURBED` for a run that is not complete.
    """
    from effbench.cli.progress import show_progress
    from effbench.runs import launch_history
    from effbench.runs.runner import Interrupted

    try:
        # Keep what a study or a model prints while loading out of standard output.
        with show_progress() as watch, redirect_stdout(sys.stderr):
            results = work(watch)
    except Interrupted as stop:
        output.ignore_signals()
        raise typer.Exit(_report_interrupt(stop.directory, bundle)) from None
    except KeyboardInterrupt:
        raise typer.Exit(output.report_interrupt("interrupted before anything was measured")) from None
    if bundle is not None and not optional_packages.has("scipy"):
        _show_raw(results, as_json)
        _exit_unless_complete(results, bundle)
        return
    # The answer first: drawing the figures takes seconds. It also stands where they cannot be written.
    _show(results, as_json)
    with suppress(OSError):  # `| head` has closed the pipe; the files are written all the same
        sys.stdout.flush()
    try:
        files = results.write()
    except StorageError as error:
        if not as_json:
            _show_places({}, results.run.path)
        raise StorageError(f"{error}; the measured blocks are kept in {results.run.path}") from error
    except KeyboardInterrupt:
        output.ignore_signals()
        said = _stands(results.run, bundle)
        if results.run.complete:
            said = f"the run is complete, this shows it: {_resume_command(results.directory or Path(), bundle)}"
        raise typer.Exit(output.report_interrupt(f"interrupted; {said}")) from None
    if not as_json:
        _show_places(files, results.run.path)
    if (over := launch_history.overrun(results.run)) and not as_json:
        print(f"{'time':<8}{over}")
    if not optional_packages.has("matplotlib"):
        output.note("no figures: matplotlib is not installed here; effbench report draws them where it is")
    _exit_unless_complete(results, bundle)


def _exit_unless_complete(results: Results, bundle: Path | None) -> None:
    """Say where an incomplete run stands and how to go on, and raise typer.Exit with its code."""
    if results.run.complete:
        return
    output.note(_stands(results.run, bundle))
    raise typer.Exit(DISTURBED if results.run.disturbance else MORE_TO_DO)


def _stands(run: Run, bundle: Path | None) -> str:
    """Say why an incomplete run ended, how many launches are done, and how to go on."""
    from effbench.runs import schedule

    return "; ".join(filter(None, (run.disturbance, schedule.standing(run, bundle))))


def _show_raw(results: Results, as_json: bool) -> None:
    """Print where a run is stored, without tables: scipy, which computes intervals, is not installed."""
    if as_json:
        output.print_json({"run_dir": str(results.directory)})
    else:
        print(f"{'raw':<8}{output.plain(str(results.run.path))}")
    again = shlex.join(["effbench", "report", str(results.directory)])
    output.note(f"no tables: scipy is not installed here; pip install scipy, or on another machine: {again}")


def _resume_command(directory: Path, bundle: Path | None) -> str:
    from effbench.runs.recorder import resume_command
    from effbench.studies.plan import Bundled

    return resume_command(directory, None if bundle is None else Bundled(str(bundle), ""))


def _show(results: Results | Outcome, as_json: bool) -> None:
    if as_json:
        output.print_json(results.to_dict())
    else:
        output.print_tables(results.tables())


def _show_places(files: Mapping[str, Path], raw: str | None = None) -> None:
    places = {"table": files.get("table.md"), "figure": files.get("figure.png"), "raw": raw}
    print("\n" + "\n".join(f"{what:<8}{output.plain(str(path))}" for what, path in places.items() if path))


def _report_interrupt(directory: Path, bundle: Path | None) -> int:
    from effbench.runs import run_file

    if (directory / run_file.RUN_FILE).exists() and (directory / run_file.RUN_FILE).stat().st_size:
        blocks = sum(len(result.blocks) for result in run_file.load(directory).results)
        again = _resume_command(directory, bundle)
        return output.report_interrupt(f"interrupted; {blocks} blocks are saved, finish with: {again}")
    return output.report_interrupt("interrupted before anything was measured")


def warn_of_threads(options: Mapping[str, Any]) -> None:
    """Warn if the machine has fewer cores than the requested threads. Raises InvalidValue, UnknownName."""
    from effbench.core.measure_options import MeasureOptions
    from effbench.devices import cpu

    asked = MeasureOptions.of(options)
    trouble = cpu.thread_warning(asked.threads, asked.cluster) if asked.device == "cpu" else None
    if trouble is not None:
        output.note(trouble)
