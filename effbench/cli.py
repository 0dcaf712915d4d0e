"""The command line: parse, call, print, exit codes. No arithmetic.

Exit codes: 0 done, 2 the user can put it right, 70 a bug in effbench, 130 interrupted. With ``--json``
standard output holds exactly one object; progress and notes go to standard error.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
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

from effbench.errors import EffbenchError, InvalidValue, NotComparable, StorageError, UnknownName

if TYPE_CHECKING:
    from effbench.api import Results
    from effbench.report.grid import Table

# The base of typer's usage errors, reached through a public class: typer ships click under another name from 0.16 on.
_ClickError: type[Exception] = typer.BadParameter.__mro__[2]

COMMANDS = ("run", "compare", "profile", "diff", "list", "doctor")
_LISTS = ("models", "studies", "devices", "runtimes")

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
    words = list(sys.argv[1:] if arguments is None else arguments)
    _command.set(shlex.join(["effbench", *words]))
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show × gets an escape, not a crash.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = app(words or ["--help"], prog_name="effbench", standalone_mode=False)
        return _flushed(code if isinstance(code, int) else 0)
    except EffbenchError as error:
        return _complain(str(error))
    except _ClickError as error:
        return _complain(_usage(error, words))
    except (KeyboardInterrupt, typer.Abort):
        return _complain("interrupted", 130)
    except SystemExit as stop:
        # typer turns a closed pipe into exit 1. The reader (`| head`) has read enough, so nothing is wrong.
        return _mute() if isinstance(stop.__context__, BrokenPipeError) else _flushed(int(stop.code or 0))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return _bug(error)
        _mute()
        return _complain(f"cannot write: {error.strerror}; free space there and begin again")
    except Exception as error:
        return _bug(error)


def _bug(error: Exception) -> int:
    """The last line of defence for people; the bug is still a bug."""
    if os.environ.get("EFFBENCH_DEBUG"):
        traceback.print_exception(error)
    where = traceback.extract_tb(error.__traceback__)[-1]
    text = f"{type(error).__name__}: {error}".partition("\n")[0]
    place = f"{Path(where.filename).name}:{where.lineno}"
    return _complain(f"internal error ({text}, {place}); EFFBENCH_DEBUG=1 shows more", 70)


def _flushed(code: int) -> int:
    """The exit code, once everything printed has left; what Python finds out only at its own end, it reports badly."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        return _mute()
    except OSError as error:
        _mute()
        return _complain(f"cannot write to standard output: {error.strerror or error}; nothing measured is lost")
    return code


def _mute() -> int:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 0


def _complain(message: str, code: int = 2) -> int:
    if sys.stderr is not None:
        print(f"effbench: {_plain(message)}", file=sys.stderr)
    return code


def _plain(text: str) -> str:
    """One line without control characters: a label or a path must not be able to drive the terminal."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", text).strip()


def _usage(error: Any, words: Sequence[str]) -> str:
    message = str(error.format_message())
    if message.startswith("No such command"):
        wrong = next((word for word in words if not word.startswith("-")), "")
        return str(UnknownName("command", wrong, COMMANDS))
    about = next((word for word in words if word in COMMANDS), "")
    again = shlex.join(["effbench", *([about] if about else []), "--help"])
    return f"{message.partition(chr(10))[0].rstrip('.')}; see {again}"


# --- completion: names only, without torch -----------------------------------------------------------


def _complete_study(incomplete: str) -> list[str]:
    from effbench import catalog

    return [name for name in catalog.names() if name.startswith(incomplete)]


def _complete_model(incomplete: str) -> list[str]:
    from effbench import zoo

    return [name for name in zoo.names() if name.startswith(incomplete)]


def _complete_device(incomplete: str) -> list[str]:
    from effbench import devices

    return [name for name in devices.NAMES if name.startswith(incomplete)]


def _complete_run(incomplete: str) -> list[str]:
    from effbench import storage

    found = [str(path.parent) for path in storage.RUNS.glob(f"*/{storage.RUN_FILE}")]
    return sorted(path for path in found if path.startswith(incomplete))


# --- options that several commands share -------------------------------------------------------------

Device = Annotated[
    str, typer.Option(help="cpu, cuda, cuda:1, or fake (a scripted clock).", autocompletion=_complete_device)
]
Runtime = Annotated[str, typer.Option(help="How the network is executed: eager.")]
Threads = Annotated[int, typer.Option(help="CPU threads; 0 means every core this process may use.")]
Batch = Annotated[int, typer.Option(help="Images per call.")]
Dtype = Annotated[str | None, typer.Option(help="float32, float64, float16 or bfloat16.")]
Allocator = Annotated[
    str, typer.Option(help="retain: keep freed pages, so that kernels are measured; system: as deployed.")
]
Launches = Annotated[int | None, typer.Option(help="Fresh processes. A verdict needs 5.")]
Budget = Annotated[str | None, typer.Option(help="Time to measure, such as 60s or 5m.")]
Precision = Annotated[str | None, typer.Option(help="Stop a launch when every ratio is known this well, such as 1%.")]
Quick = Annotated[bool, typer.Option("--quick", help="A look in under a minute; no verdicts.")]
Seed = Annotated[int, typer.Option(help="Seed of weights, inputs and the order of rounds.")]
Out = Annotated[Path | None, typer.Option(help="Folder for this run. Default: a new one under results/runs/.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to standard output.")]
CudaPrecision = Annotated[
    str, typer.Option("--cuda-precision", help="fp32 or tf32: set for matrix products and cuDNN alike.")
]
Autotune = Annotated[
    bool, typer.Option("--autotune", help="Let cuDNN time its algorithms and choose, as the paper did.")
]
Cache = Annotated[str, typer.Option(help="CUDA L2 cache between calls: steady, cold or hot.")]


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
        str | None, typer.Argument(help="A study's name, or a file of your own.", autocompletion=_complete_study)
    ] = None,
    device: Device = "cpu",
    runtime: Runtime = "eager",
    threads: Threads = 1,
    batch: Batch = 1,
    dtype: Dtype = None,
    allocator: Allocator = "retain",
    scale: Annotated[str | None, typer.Option(help="Scales to run, such as x1,x4.")] = None,
    select: Annotated[
        list[str] | None, typer.Option(help="LABEL=VALUE[,VALUE]: run these values of a label; repeatable.")
    ] = None,
    launches: Launches = None,
    budget: Budget = None,
    precision: Precision = None,
    quick: Quick = False,
    seed: Seed = 0,
    out: Out = None,
    resume: Annotated[
        Path | None, typer.Option(help="Finish the interrupted run in this folder.", autocompletion=_complete_run)
    ] = None,
    cuda_precision: CudaPrecision = "fp32",
    autotune: Autotune = False,
    cache: Cache = "steady",
    as_json: Json = False,
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
    chosen = _selection(select or [])
    if scale:
        chosen["scale"] = scale.split(",")
    options = _measuring(
        device, runtime, threads, batch, dtype, allocator, launches, budget, precision, quick, seed, out
    )
    options["device_options"] = _device_options(device, cuda_precision, autotune, cache)
    name = str(study)
    _finish(lambda watch: api.run(name, select=chosen, watch=watch, **options), as_json)


@app.command()
def compare(
    models: Annotated[
        list[str],
        typer.Argument(
            help="Names from `effbench list models`, or path/file.py:factory.", autocompletion=_complete_model
        ),
    ],
    device: Device = "cpu",
    runtime: Runtime = "eager",
    threads: Threads = 1,
    batch: Batch = 1,
    dtype: Dtype = None,
    allocator: Allocator = "retain",
    input: Annotated[str | None, typer.Option(help="Input without the batch, such as 3x224x224.")] = None,
    launches: Launches = None,
    budget: Budget = None,
    precision: Precision = None,
    quick: Quick = False,
    seed: Seed = 0,
    out: Out = None,
    cuda_precision: CudaPrecision = "fp32",
    autotune: Autotune = False,
    cache: Cache = "steady",
    as_json: Json = False,
) -> None:
    """Measure models side by side: costs, speed, the paper's row, scatter plots. Ratios are to the first."""
    from effbench import api

    options = _measuring(
        device, runtime, threads, batch, dtype, allocator, launches, budget, precision, quick, seed, out
    )
    options["device_options"] = _device_options(device, cuda_precision, autotune, cache)
    shape = _shape(input) if input else None
    _finish(lambda watch: api.compare(*models, input_shape=shape, watch=watch, **options), as_json)


@app.command()
def profile(
    model: Annotated[
        str, typer.Argument(help="A model's name, or path/file.py:factory.", autocompletion=_complete_model)
    ],
    input: Annotated[str | None, typer.Option(help="Input without the batch, such as 3x224x224.")] = None,
    batch: Batch = 1,
    dtype: Dtype = None,
    layers: Annotated[bool, typer.Option("--layers", help="One row an operator.")] = False,
    crosscheck: Annotated[
        bool, typer.Option("--crosscheck", help="Count with fvcore and torch too, and explain each difference.")
    ] = False,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV to standard output.")] = False,
) -> None:
    """Count what a model costs: parameters, multiply-adds, activations, memory access. Analytic; no clock."""
    from effbench import api
    from effbench.plan import DTYPES
    from effbench.report import findings, table

    shape = _shape(input) if input else None
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
        _print_json({**document, "crosscheck": checks} if crosscheck else document)
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
    _print_tables(tables)


@app.command()
def diff(
    baseline: Annotated[str, typer.Argument(help="A run's folder or file.", autocompletion=_complete_run)],
    candidate: Annotated[str, typer.Argument(help="Another run's folder or file.", autocompletion=_complete_run)],
    ignore_environment: Annotated[
        bool, typer.Option("--ignore-environment", help="Compare runs of unlike machines all the same.")
    ] = False,
    as_json: Json = False,
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
        _print_json({"baseline": baseline, "candidate": candidate, "comparisons": document.diff_document(comparisons)})
        return
    _print_tables([table.diff_rows(comparisons)])


@app.command(name="list")
def list_names(
    what: Annotated[str | None, typer.Argument(help="models, studies, devices or runtimes; all when left out.")] = None,
    as_json: Json = False,
) -> None:
    """Names that the other commands take."""
    if what is not None and what not in _LISTS:
        raise UnknownName("list", what, _LISTS)
    found = {name: _names(name) for name in ((what,) if what else _LISTS)}
    if as_json:
        _print_json(found)
        return
    for name, entries in found.items():
        if len(found) > 1:
            print(f"{name}:")
        width = max((len(entry) for entry in entries), default=0)
        for entry, about in entries.items():
            print(f"  {entry:<{width}}  {about}".rstrip())


def _names(what: str) -> dict[str, str]:
    if what == "models":
        from effbench import units, zoo

        entries = {name: zoo.entry(name) for name in zoo.names()}
        return {
            name: f"{units.count(entry.params):>7} params, {entry.madds_million} M multiply-adds ({entry.source})"
            for name, entry in entries.items()
        }
    if what == "studies":
        from effbench import catalog

        return catalog.titles()
    if what == "runtimes":
        return {"eager": "PyTorch as written"}
    return {
        "cpu": "the CPU, with --threads",
        "cuda": "an NVIDIA GPU; cuda:1 is the second",
        "fake": "a scripted clock: for trying things out, proves nothing",
    }


@app.command()
def doctor(as_json: Json = False) -> None:
    """What this machine is, what about it will make timings noisy, and what to do about each."""
    from effbench import doctor as examining
    from effbench.report import findings

    found = [finding.to_dict() for finding in examining.examine()]
    if as_json:
        _print_json({"findings": found})
        return
    _print_tables([findings.doctor_rows(found)])


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
        raise typer.Exit(_complain("interrupted before anything was measured", 130)) from None
    try:
        files = results.write()
    except StorageError as error:
        # What was measured is on disk already, and is worth more than its table.
        _show(results, {}, as_json)
        raise StorageError(f"{error}; the measured blocks are kept in {results.run.path}") from error
    except KeyboardInterrupt:
        _ignore_impatience()
        again = shlex.join(["effbench", "run", "--resume", str(results.directory)])
        raise typer.Exit(_complain(f"interrupted; the run is complete, this shows it: {again}", 130)) from None
    _show(results, files, as_json)


def _show(results: Results, files: Mapping[str, Path], as_json: bool) -> None:
    if as_json:
        _print_json(results.to_dict())
        return
    _print_tables(results.tables())
    places = {"table": files.get("table.md"), "figure": files.get("figure.png"), "raw": results.run.path}
    print("\n" + "\n".join(f"{what:<8}{_plain(str(path))}" for what, path in places.items() if path))


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
        return _complain(f"interrupted; {blocks} blocks are saved, finish with: {again}", 130)
    return _complain("interrupted before anything was measured", 130)


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
        "budget_s": _seconds(budget) if budget is not None else None,
        "precision": _share(precision) if precision is not None else None,
        "quick": quick,
        "seed": seed,
        "out": out,
        "command": _command.get(),
    }


def _device_options(device: str, precision: str, autotune: bool, cache: str) -> dict[str, Any]:
    for kind, word, known in (
        ("precision", precision, ("fp32", "tf32")),
        ("cache policy", cache, ("steady", "cold", "hot")),
    ):
        if word not in known:
            raise UnknownName(kind, word, known)
    if not device.startswith("cuda"):
        return {}
    return {"precision": precision, "autotune": autotune, "cache": cache}


def _selection(words: Sequence[str]) -> dict[str, list[str]]:
    chosen: dict[str, list[str]] = {}
    for word in words:
        label, equals, values = word.partition("=")
        if not equals or not values:
            raise InvalidValue(f"--select {word}: expected LABEL=VALUE[,VALUE], such as --select groups=1,8")
        chosen.setdefault(label, []).extend(values.split(","))
    return chosen


def _shape(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"0*[1-9][0-9]{0,8}(x0*[1-9][0-9]{0,8})*", text):
        raise InvalidValue(f"--input {text}: expected sizes above zero without the batch, such as 3x224x224")
    return tuple(int(size) for size in text.split("x"))


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h)?", text)
    if not match or float(match[1]) == 0:
        raise InvalidValue(f"--budget {text}: expected a time above zero, such as 60s or 5m")
    return float(match[1]) * {"s": 1, "m": 60, "min": 60, "h": 3600}[match[2] or "s"]


def _share(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%)?", text)
    value = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not 0 < value < 1:
        raise InvalidValue(f"--precision {text}: expected a share between 0 and 1, such as 1% or 0.01")
    return value


def _crosscheck(model: str, found: Any) -> list[dict[str, Any]]:
    import dataclasses

    from effbench import cost, zoo

    checks = cost.crosscheck(zoo.resolve(model, {}), found.input_shape, batch=found.batch)
    return [dataclasses.asdict(check) for check in checks]


def _print_json(document: object) -> None:
    print(json.dumps(document, indent=2, allow_nan=False))


def _print_tables(tables: Sequence[Table]) -> None:
    """Rich tables in a terminal; Markdown where the output is piped, so that it can be pasted."""
    from effbench.report import table

    if sys.stdout.isatty():
        from rich.console import Console

        console = Console()
        for item in tables:
            table.render_terminal(item, console)
        return
    print("\n\n".join(table.render_markdown(item) for item in tables))
