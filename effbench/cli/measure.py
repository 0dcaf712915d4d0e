"""The commands that measure: run and compare."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from effbench.cli import options as cli_options
from effbench.cli import output
from effbench.core.errors import InvalidValue, StorageError
from effbench.host import optional_packages

if TYPE_CHECKING:
    from effbench.report.analysis_outcome import Outcome
    from effbench.results import Results


def run(
    context: typer.Context,
    study: Annotated[
        str | None,
        typer.Argument(help="A study's name, or a file of your own.", autocompletion=cli_options.complete_study),
    ] = None,
    device: cli_options.Device = "cpu",
    runtime: cli_options.Runtime = None,
    threads: cli_options.Threads = 1,
    cluster: cli_options.Cluster = "all",
    batch: cli_options.Batch = None,
    dtype: cli_options.Dtype = None,
    memory_format: cli_options.MemoryFormat = "contiguous",
    mode: cli_options.Mode = "infer",
    allocator: cli_options.Allocator = "retain",
    scale: Annotated[str | None, typer.Option(help="Scales to run, such as x1,x4.")] = None,
    select: Annotated[
        list[str] | None, typer.Option(help="LABEL=VALUE[,VALUE]: run these values of a label; repeatable.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Instead of the models of a study that compares models; repeatable.",
            autocompletion=cli_options.complete_model,
        ),
    ] = None,
    depthwise: Annotated[
        bool, typer.Option("--depthwise", help="Depthwise convolutions as a part of their own (runtime_breakdown).")
    ] = False,
    launches: cli_options.Launches = None,
    budget: cli_options.Budget = None,
    precision: cli_options.Precision = None,
    quick: cli_options.Quick = False,
    seed: cli_options.Seed = 0,
    out: cli_options.Out = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Finish the interrupted run in this folder.", autocompletion=cli_options.complete_run),
    ] = None,
    cuda_precision: cli_options.CudaPrecision = "fp32",
    autotune: cli_options.Autotune = False,
    cache: cli_options.Cache = "steady",
    percentiles: cli_options.Percentiles = False,
    peak_memory: cli_options.PeakMemory = False,
    energy: cli_options.Energy = False,
    count: cli_options.Count = None,
    as_json: cli_options.Json = False,
) -> None:
    """Carry out a guideline study and say whether the guideline holds here."""
    from effbench import api
    from effbench.core.study import Analysis
    from effbench.studies import catalog

    if study is None and resume is None:
        raise InvalidValue(
            "name one study to run, or give --resume DIR to finish one; `effbench list studies` names them"
        )
    if resume is not None:
        cli_options.refuse_others(context, ("study", "resume"), "--resume goes on with the options of the stored run")
        folder = resume
        if study is not None:
            _require_same(study, folder)
        finish(lambda watch: api.resume(folder, watch), as_json)
        return
    chosen = cli_options.selection(select or [])
    with redirect_stdout(sys.stderr):
        found = catalog.load(str(study))
    if isinstance(found, Analysis):
        cli_options.refuse_others(context, ("study", "select", "out"), f"{found.name} measures nothing")
        from effbench.cli.progress import watching

        with watching() as watch:
            outcome = api.analyse(found, select=chosen, watch=watch)
        files = outcome.write(out or api.new_directory(found.name, "analysis"))
        if as_json:
            output.print_json({**outcome.to_dict(), "files": {name: str(path) for name, path in files.items()}})
        else:
            _show(outcome, files, as_json)
        return
    if scale:
        chosen["scale"] = scale.split(",")
    options = measuring(
        budget,
        precision,
        device=device,
        runtime=runtime,
        threads=threads,
        batch=batch,
        dtype=dtype,
        memory_format=memory_format,
        mode=mode,
        allocator=allocator,
        launches=launches,
        quick=quick,
        seed=seed,
        out=out,
        device_options=cli_options.device_options(device, cuda_precision, autotune, cache, cluster),
        readings=cli_options.readings(percentiles, peak_memory, energy, count),
    )
    options |= {"models": tuple(model or ()), "depthwise": depthwise}
    finish(lambda watch: api.run(found, select=chosen, watch=watch, **options), as_json)


def _require_same(study: str, folder: Path) -> None:
    """Raises InvalidValue where the run in the folder is of another study than the one that was named."""
    from effbench.runs import run_file
    from effbench.studies import catalog

    held = run_file.load(folder).experiment.name
    with redirect_stdout(sys.stderr):
        wanted = catalog.load(study).name
    if held != wanted:
        raise InvalidValue(f"{folder} holds a run of {held}, not of {wanted}; leave out {study} to finish that run")


def compare(
    models: Annotated[
        list[str],
        typer.Argument(
            help="Names from `effbench list models`, torchvision:NAME, timm:NAME, or path/file.py:factory.",
            autocompletion=cli_options.complete_model,
        ),
    ],
    device: cli_options.Device = "cpu",
    runtime: cli_options.Runtime = None,
    threads: cli_options.Threads = 1,
    cluster: cli_options.Cluster = "all",
    batch: cli_options.Batch = None,
    dtype: cli_options.Dtype = None,
    memory_format: cli_options.MemoryFormat = "contiguous",
    mode: cli_options.Mode = "infer",
    allocator: cli_options.Allocator = "retain",
    inputs: cli_options.Inputs = None,
    launches: cli_options.Launches = None,
    budget: cli_options.Budget = None,
    precision: cli_options.Precision = None,
    quick: cli_options.Quick = False,
    seed: cli_options.Seed = 0,
    out: cli_options.Out = None,
    cuda_precision: cli_options.CudaPrecision = "fp32",
    autotune: cli_options.Autotune = False,
    cache: cli_options.Cache = "steady",
    percentiles: cli_options.Percentiles = False,
    peak_memory: cli_options.PeakMemory = False,
    energy: cli_options.Energy = False,
    count: cli_options.Count = None,
    as_json: cli_options.Json = False,
) -> None:
    """Measure models side by side: costs, speed, the paper's row, scatter plots. Ratios are to the first."""
    from effbench import api

    options = measuring(
        budget,
        precision,
        device=device,
        runtime=runtime,
        threads=threads,
        batch=batch,
        dtype=dtype,
        memory_format=memory_format,
        mode=mode,
        allocator=allocator,
        launches=launches,
        quick=quick,
        seed=seed,
        out=out,
        device_options=cli_options.device_options(device, cuda_precision, autotune, cache, cluster),
        readings=cli_options.readings(percentiles, peak_memory, energy, count),
    )
    finish(lambda watch: api.compare(*models, input_shape=cli_options.inputs(inputs), watch=watch, **options), as_json)


def finish(work: Callable[[Any], Results], as_json: bool, bundle: Path | None = None) -> None:
    """Run with progress, write tables and figures beside the run, and print what was found.

    `bundle` is what is measured, where it is one: its machine may lack what tables and figures are made with.
    """
    from effbench.cli.progress import watching
    from effbench.runs import launches as launch_times
    from effbench.runs.runner import Interrupted

    try:
        # Whatever a study or a network prints as it is loaded is not part of our output.
        with watching() as watch, redirect_stdout(sys.stderr):
            results = work(watch)
    except Interrupted as stop:
        output.ignore_impatience()
        raise typer.Exit(_interrupted(stop.directory, bundle)) from None
    except KeyboardInterrupt:
        raise typer.Exit(output.answer_interrupt("interrupted before anything was measured")) from None
    if bundle is not None and not optional_packages.has("scipy"):
        _show_raw(results, as_json)
        return
    try:
        files = results.write()
    except StorageError as error:
        # What was measured is on disk already, and is worth more than its table.
        _show(results, {}, as_json, results.run.path)
        raise StorageError(f"{error}; the measured blocks are kept in {results.run.path}") from error
    except KeyboardInterrupt:
        output.ignore_impatience()
        again = _again(results.directory or Path(), bundle)
        said = f"interrupted; the run is complete, this shows it: {again}"
        raise typer.Exit(output.answer_interrupt(said)) from None
    _show(results, files, as_json, results.run.path)
    if (over := launch_times.overrun(results.run)) and not as_json:
        print(f"{'time':<8}{over}")
    if not optional_packages.has("matplotlib"):
        output.note("no figures: matplotlib is not installed here; effbench report draws them where it is")


def _show_raw(results: Results, as_json: bool) -> None:
    """What there is to say of a run without the arithmetic of its intervals."""
    if as_json:
        output.print_json({"run_dir": str(results.directory)})
    else:
        print(f"{'raw':<8}{output.plain(str(results.run.path))}")
    again = shlex.join(["effbench", "report", str(results.directory)])
    output.note(f"no tables: scipy is not installed here; pip install scipy, or on another machine: {again}")


def _again(directory: Path, bundle: Path | None) -> str:
    from effbench.runs.recorder import how_to_resume
    from effbench.studies.plan import Bundled

    return how_to_resume(directory, None if bundle is None else Bundled(str(bundle), ""))


def _show(results: Results | Outcome, files: Mapping[str, Path], as_json: bool, raw: str | None = None) -> None:
    if as_json:
        output.print_json(results.to_dict())
        return
    output.print_tables(results.tables())
    places = {"table": files.get("table.md"), "figure": files.get("figure.png"), "raw": raw}
    print("\n" + "\n".join(f"{what:<8}{output.plain(str(path))}" for what, path in places.items() if path))


def _interrupted(directory: Path, bundle: Path | None) -> int:
    from effbench.runs import run_file

    if (directory / run_file.RUN_FILE).exists() and (directory / run_file.RUN_FILE).stat().st_size:
        blocks = sum(len(result.blocks) for result in run_file.load(directory).results)
        again = _again(directory, bundle)
        return output.answer_interrupt(f"interrupted; {blocks} blocks are saved, finish with: {again}")
    return output.answer_interrupt("interrupted before anything was measured")


def say_threads(device: str, threads: int, cluster: str = "") -> None:
    """A line where the machine has not the cores that a measurement wants. Raises InvalidValue, UnknownName."""
    from effbench.devices import cpu

    trouble = cpu.thread_warning(threads, cluster) if device == "cpu" else None
    if trouble is not None:
        output.note(trouble)


def measuring(budget: str | None, precision: str | None, **options: Any) -> dict[str, Any]:
    """The options that commands which measure share, as `api.run` takes them. Raises InvalidValue."""
    cluster = str(options.get("device_options", {}).get("cluster", ""))
    say_threads(options.get("device", "cpu"), options.get("threads", 1), cluster)
    return {
        **options,
        "budget_s": cli_options.seconds(budget) if budget is not None else None,
        "precision": cli_options.share(precision) if precision is not None else None,
        "command": output.typed.get(),
    }
