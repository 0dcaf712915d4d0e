"""The command line: parse, call, print, exit codes. No arithmetic.

Exit codes: 0 done, 2 the user can put it right, 70 a bug in effbench, 130 interrupted. With ``--json``
standard output holds exactly one object; progress and notes go to standard error.
"""

from __future__ import annotations

import errno
import io
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from effbench import console, words
from effbench.errors import EffbenchError, InvalidValue, NotComparable, StorageError, UnknownName

if TYPE_CHECKING:
    from effbench.api import Results

# The base of typer's usage errors, reached through a public class: typer ships click under another name from 0.16 on.
_ClickError: type[Exception] = typer.BadParameter.__mro__[2]

COMMANDS = ("run", "compare", "profile", "diff", "list", "doctor")

_command: ContextVar[str] = ContextVar("command", default="effbench")
"""The command line as it can be typed again."""

app = typer.Typer(
    name="effbench",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Which efficiency guidelines hold on your hardware? Measures networks, and says so with evidence.",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Lets no traceback out; EFFBENCH_DEBUG=1 prints it for bug reports."""
    typed = list(sys.argv[1:] if arguments is None else arguments)
    _command.set(shlex.join(["effbench", *typed]))
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show × gets an escape, not a crash.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = app(typed or ["--help"], prog_name="effbench", standalone_mode=False)
        return console.flushed(code if isinstance(code, int) else 0)
    except EffbenchError as error:
        return console.complain(str(error))
    except _ClickError as error:
        return console.complain(_usage(error, typed))
    except (KeyboardInterrupt, typer.Abort):
        return console.complain("interrupted", 130)
    except SystemExit as stop:
        # typer turns a closed pipe into exit 1. The reader (`| head`) has read enough, so nothing is wrong.
        return console.mute() if isinstance(stop.__context__, BrokenPipeError) else console.flushed(int(stop.code or 0))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return _bug(error)
        console.mute()
        return console.complain(f"cannot write: {error.strerror}; free space there and begin again")
    except Exception as error:
        return _bug(error)


def _bug(error: Exception) -> int:
    """The last line of defence for people; the bug is still a bug."""
    if os.environ.get("EFFBENCH_DEBUG"):
        traceback.print_exception(error)
    where = traceback.extract_tb(error.__traceback__)[-1]
    text = f"{type(error).__name__}: {error}".partition("\n")[0]
    place = f"{Path(where.filename).name}:{where.lineno}"
    return console.complain(f"internal error ({text}, {place}); EFFBENCH_DEBUG=1 shows more", 70)


def _usage(error: Any, typed: Sequence[str]) -> str:
    message = str(error.format_message())
    if message.startswith("No such command"):
        wrong = next((word for word in typed if not word.startswith("-")), "")
        return str(UnknownName("command", wrong, COMMANDS))
    command = next((word for word in typed if word in COMMANDS), "")
    again = shlex.join(["effbench", *([command] if command else []), "--help"])
    return f"{message.partition(chr(10))[0].rstrip('.')}; see {again}"


@app.callback(invoke_without_command=True)
def about(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        from effbench import __version__

        print(f"effbench {__version__}")


# --- commands ----------------------------------------------------------------------------------------


@app.command()
def run(
    context: typer.Context,
    study: Annotated[
        str | None, typer.Argument(help="A study's name, or a file of your own.", autocompletion=words.complete_study)
    ] = None,
    device: words.Device = "cpu",
    runtime: words.Runtime = "eager",
    threads: words.Threads = 1,
    batch: words.Batch = 1,
    dtype: words.Dtype = None,
    allocator: words.Allocator = "retain",
    scale: Annotated[str | None, typer.Option(help="Scales to run, such as x1,x4.")] = None,
    select: Annotated[
        list[str] | None, typer.Option(help="LABEL=VALUE[,VALUE]: run these values of a label; repeatable.")
    ] = None,
    launches: words.Launches = None,
    budget: words.Budget = None,
    precision: words.Precision = None,
    quick: words.Quick = False,
    seed: words.Seed = 0,
    out: words.Out = None,
    resume: Annotated[
        Path | None, typer.Option(help="Finish the interrupted run in this folder.", autocompletion=words.complete_run)
    ] = None,
    cuda_precision: words.CudaPrecision = "fp32",
    autotune: words.Autotune = False,
    cache: words.Cache = "steady",
    as_json: words.Json = False,
) -> None:
    """Carry out a guideline study and say whether the guideline holds here."""
    from effbench import api

    if (study is None) == (resume is None):
        raise InvalidValue(
            "name one study to run, or give --resume DIR to finish one; `effbench list studies` names them"
        )
    if resume is not None:
        _refuse_others(context, "resume")
        folder = resume
        _finish(lambda watch: api.resume(folder, watch), as_json)
        return
    chosen = words.selection(select or [])
    if scale:
        chosen["scale"] = scale.split(",")
    options = _measuring(
        device, runtime, threads, batch, dtype, allocator, launches, budget, precision, quick, seed, out
    )
    options["device_options"] = words.device_options(device, cuda_precision, autotune, cache)
    name = str(study)
    _finish(lambda watch: api.run(name, select=chosen, watch=watch, **options), as_json)


@app.command()
def compare(
    models: Annotated[
        list[str],
        typer.Argument(
            help="Names from `effbench list models`, or path/file.py:factory.", autocompletion=words.complete_model
        ),
    ],
    device: words.Device = "cpu",
    runtime: words.Runtime = "eager",
    threads: words.Threads = 1,
    batch: words.Batch = 1,
    dtype: words.Dtype = None,
    allocator: words.Allocator = "retain",
    input: Annotated[str | None, typer.Option(help="Input without the batch, such as 3x224x224.")] = None,
    launches: words.Launches = None,
    budget: words.Budget = None,
    precision: words.Precision = None,
    quick: words.Quick = False,
    seed: words.Seed = 0,
    out: words.Out = None,
    cuda_precision: words.CudaPrecision = "fp32",
    autotune: words.Autotune = False,
    cache: words.Cache = "steady",
    as_json: words.Json = False,
) -> None:
    """Measure models side by side: costs, speed, the paper's row, scatter plots. Ratios are to the first."""
    from effbench import api

    options = _measuring(
        device, runtime, threads, batch, dtype, allocator, launches, budget, precision, quick, seed, out
    )
    options["device_options"] = words.device_options(device, cuda_precision, autotune, cache)
    shape = words.shape(input) if input else None
    _finish(lambda watch: api.compare(*models, input_shape=shape, watch=watch, **options), as_json)


@app.command()
def profile(
    model: Annotated[
        str, typer.Argument(help="A model's name, or path/file.py:factory.", autocompletion=words.complete_model)
    ],
    input: Annotated[str | None, typer.Option(help="Input without the batch, such as 3x224x224.")] = None,
    batch: words.Batch = 1,
    dtype: words.Dtype = None,
    layers: Annotated[bool, typer.Option("--layers", help="One row an operator.")] = False,
    crosscheck: Annotated[
        bool, typer.Option("--crosscheck", help="Count with fvcore and torch too, and explain each difference.")
    ] = False,
    as_json: words.Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV to standard output.")] = False,
) -> None:
    """Count what a model costs: parameters, multiply-adds, activations, memory access. Analytic; no clock."""
    from effbench import api
    from effbench.plan import DTYPES
    from effbench.report import findings, table

    shape = words.shape(input) if input else None
    if as_json and as_csv:
        raise InvalidValue("--json and --csv both want standard output; choose one")
    if batch < 1:
        raise InvalidValue(f"batch (={batch}) must be 1 or more")
    if dtype is not None and dtype not in DTYPES:
        raise UnknownName("dtype", dtype, DTYPES)
    with redirect_stdout(sys.stderr):
        found = api.profile(model, shape, batch=batch, dtype=dtype or "float32")
        checks = _crosscheck(model, found) if crosscheck else []
    if as_json:
        document = found.to_dict(layers=layers)
        console.print_json({**document, "crosscheck": checks} if crosscheck else document)
        return
    whole = found.to_dict(layers=True)
    tables = [findings.cost_rows(whole)]
    if layers:
        tables.append(findings.layer_rows(whole))
    if checks:
        tables.append(findings.crosscheck_rows(checks))
    if as_csv:
        sys.stdout.write(table.render_csv(tables[1] if layers else tables[0]))
        return
    console.print_tables(tables)


@app.command()
def diff(
    baseline: Annotated[str, typer.Argument(help="A run's folder or file.", autocompletion=words.complete_run)],
    candidate: Annotated[str, typer.Argument(help="Another run's folder or file.", autocompletion=words.complete_run)],
    ignore_environment: Annotated[
        bool, typer.Option("--ignore-environment", help="Compare runs of unlike machines all the same.")
    ] = False,
    as_json: words.Json = False,
) -> None:
    """Compare two stored runs, a verdict per cell. Refuses unlike conditions, naming them."""
    from effbench import environment, storage
    from effbench.diff import compare_runs
    from effbench.report import document, table

    runs = [storage.load(reference) for reference in (baseline, candidate)]
    if not ignore_environment:
        try:
            environment.require_alike(runs[0].environment, runs[1].environment)
        except NotComparable as error:
            raise NotComparable(f"{error}, or compare them all the same with --ignore-environment") from None
    comparisons = compare_runs(*runs)
    if as_json:
        console.print_json(
            {"baseline": baseline, "candidate": candidate, "comparisons": document.diff_document(comparisons)}
        )
        return
    console.print_tables([table.diff_rows(comparisons)])


@app.command(name="list")
def list_names(
    what: Annotated[str | None, typer.Argument(help="models, studies, devices or runtimes; all when left out.")] = None,
    as_json: words.Json = False,
) -> None:
    """Names that the other commands take."""
    if what is not None and what not in words.LISTS:
        raise UnknownName("list", what, words.LISTS)
    found = {name: words.names(name) for name in ((what,) if what else words.LISTS)}
    if as_json:
        console.print_json(found)
        return
    for name, entries in found.items():
        if len(found) > 1:
            print(f"{name}:")
        width = max((len(entry) for entry in entries), default=0)
        for entry, about in entries.items():
            print(f"  {entry:<{width}}  {about}".rstrip())


@app.command()
def doctor(as_json: words.Json = False) -> None:
    """What this machine is, what about it will make timings noisy, and what to do about each."""
    from effbench import doctor as examining
    from effbench.report import findings

    found = [finding.to_dict() for finding in examining.examine()]
    if as_json:
        console.print_json({"findings": found})
        return
    console.print_tables([findings.doctor_rows(found)])


# --- shared steps ------------------------------------------------------------------------------------


def _finish(work: Callable[[Any], Results], as_json: bool) -> None:
    """Run with progress, write tables and figures beside the run, and print what was found."""
    from effbench.progress import watching
    from effbench.runner import Interrupted

    try:
        # Whatever a study or a network prints as it is loaded is not part of our output.
        with watching() as watch, redirect_stdout(sys.stderr):
            results = work(watch)
    except Interrupted as stop:
        _ignore_impatience()
        # 130 is what a shell reports for a program that Ctrl-C ended.
        raise typer.Exit(_interrupted(stop.directory)) from None
    except KeyboardInterrupt:
        _ignore_impatience()
        raise typer.Exit(console.complain("interrupted before anything was measured", 130)) from None
    try:
        files = results.write()
    except StorageError as error:
        # What was measured is on disk already, and is worth more than its table.
        _show(results, {}, as_json)
        raise StorageError(f"{error}; the measured blocks are kept in {results.run.path}") from error
    except KeyboardInterrupt:
        _ignore_impatience()
        again = shlex.join(["effbench", "run", "--resume", str(results.directory)])
        raise typer.Exit(console.complain(f"interrupted; the run is complete, this shows it: {again}", 130)) from None
    _show(results, files, as_json)


def _show(results: Results, files: Mapping[str, Path], as_json: bool) -> None:
    if as_json:
        console.print_json(results.to_dict())
        return
    console.print_tables(results.tables())
    places = {"table": files.get("table.md"), "figure": files.get("figure.png"), "raw": results.run.path}
    print("\n" + "\n".join(f"{what:<8}{console.plain(str(path))}" for what, path in places.items() if path))


def _ignore_impatience() -> None:
    """A second Ctrl-C while we say what the first one did would only end in some library's traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _refuse_others(context: typer.Context, allowed: str) -> None:
    """A resumed run goes on as it was begun; an option that would be ignored is not accepted."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if name not in (allowed, "as_json") and source is not None and source.name == "COMMANDLINE":
            raise InvalidValue(
                f"--{allowed} goes on with the options of the stored run; leave out {name.replace('_', '-')}"
            )


def _interrupted(directory: Path) -> int:
    from effbench import storage

    if (directory / storage.RUN_FILE).exists() and (directory / storage.RUN_FILE).stat().st_size:
        blocks = sum(len(result.blocks) for result in storage.load(directory).results)
        again = shlex.join(["effbench", "run", "--resume", str(directory)])
        return console.complain(f"interrupted; {blocks} blocks are saved, finish with: {again}", 130)
    return console.complain("interrupted before anything was measured", 130)


def _measuring(
    device: str,
    runtime: str,
    threads: int,
    batch: int,
    dtype: str | None,
    allocator: str,
    launches: int | None,
    budget: str | None,
    precision: str | None,
    quick: bool,
    seed: int,
    out: Path | None,
) -> dict[str, Any]:
    return {
        "device": device,
        "runtime": runtime,
        "threads": threads,
        "batch": batch,
        "dtype": dtype,
        "allocator": allocator,
        "launches": launches,
        "budget_s": words.seconds(budget) if budget is not None else None,
        "precision": words.share(precision) if precision is not None else None,
        "quick": quick,
        "seed": seed,
        "out": out,
        "command": _command.get(),
    }


def _crosscheck(model: str, found: Any) -> list[dict[str, Any]]:
    import dataclasses

    from effbench import cost, zoo

    checks = cost.crosscheck(zoo.resolve(model, {}), found.input_shape, batch=found.batch)
    return [dataclasses.asdict(check) for check in checks]
