"""The commands bundle, which exports models, and run-bundle, which measures them on a machine without torch."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from effbench.cli import options as cli_options
from effbench.cli import output
from effbench.cli.measure import finish, warn_of_threads
from effbench.cli.options import with_measure_options
from effbench.core import units
from effbench.core.errors import InvalidValue
from effbench.core.measure_options import BUNDLE_OPTIONS

if TYPE_CHECKING:
    from effbench.bundles.bundle import Bundle


@with_measure_options("batch", "dtype", "seed")
def bundle(
    out: Annotated[Path, typer.Option(help="Folder of the bundle, which must be empty or not exist yet.")],
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="Names from `effbench list models`, torchvision:NAME, timm:NAME, or path/file.py:factory.",
            autocompletion=cli_options.complete_model,
        ),
    ] = None,
    runtime: Annotated[
        str,
        typer.Option(
            help="Runtimes of model files, such as onnxruntime,ncnn.", autocompletion=cli_options.complete_runtime
        ),
    ] = "onnxruntime",
    study: Annotated[
        str | None,
        typer.Option(help="Bundle the cells of this study, not models.", autocompletion=cli_options.complete_study),
    ] = None,
    scale: Annotated[str | None, typer.Option(help="Scales of the study, such as x1,x4.")] = None,
    select: Annotated[
        list[str] | None, typer.Option(help="LABEL=VALUE[,VALUE]: these values of a label of the study; repeatable.")
    ] = None,
    inputs: cli_options.Inputs = None,
    *,
    options: dict[str, Any],
    as_json: cli_options.Json = False,
) -> None:
    """Export models for a machine without torch.

    A bundle holds model files, inputs, expected outputs and costs.
    """
    from effbench import api
    from effbench.cli.progress import show_progress
    from effbench.core.study import Analysis
    from effbench.studies import catalog

    if bool(models) == (study is not None):
        raise InvalidValue("name the models to bundle, or a study with --study: one of the two")
    if study is None and (scale or select):
        raise InvalidValue("--scale and --select choose cells of a study; name it with --study, or leave them out")
    if study is not None and inputs:
        raise InvalidValue("a study defines its own inputs; leave --input out")
    chosen = cli_options.parse_selection(select or [])
    if scale:
        chosen["scale"] = scale.split(",")
    try:
        # Keep what a study or a model prints while loading out of standard output.
        with show_progress() as watch, redirect_stdout(sys.stderr):
            subject: Any = models if study is None else catalog.load(study)
            if isinstance(subject, Analysis):
                raise InvalidValue(f"{subject.name} measures nothing, so there is nothing to bundle")
            made = api.bundle(
                subject,
                out,
                runtime=runtime,
                input_shape=cli_options.inputs(inputs),
                select=chosen,
                command=output.typed_command.get(),
                watch=watch,
                **options,
            )
    except KeyboardInterrupt:
        raise typer.Exit(output.report_interrupt("interrupted; nothing was bundled")) from None
    if as_json:
        output.print_json(_json_document(made))
        return
    _show(made)


@with_measure_options(
    *(name for name in BUNDLE_OPTIONS if name != "device_options"),
    runtime="Runtimes of the bundle to measure, such as onnxruntime,ncnn. Default: all of them.",
)
def run_bundle(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `effbench bundle` made.")],
    options: dict[str, Any],
    out: cli_options.Out = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Finish the interrupted run in this folder.", autocompletion=cli_options.complete_run),
    ] = None,
    now: cli_options.Now = None,
    as_json: cli_options.Json = False,
) -> None:
    """Measure a bundle on this machine, without torch.

    The output of every model is checked first.
    """
    from effbench import api

    at_once: dict[str, Any] = {**cli_options.launches_now(now)}
    if resume is not None:
        cli_options.refuse_others(
            context, ("folder", "resume", "now"), "--resume goes on with the options of the stored run"
        )
        begun = resume
        finish(lambda watch: api.run_bundle(folder, resume=begun, watch=watch, **at_once), as_json, folder)
        return
    warn_of_threads(options)
    given = {"out": out, "command": output.typed_command.get(), **at_once, **options}
    finish(lambda watch: api.run_bundle(folder, watch=watch, **given), as_json, folder)


def _show(made: Bundle) -> None:
    whole = [model for model in made.models if model.skipped is None]
    left_out = [model for model in made.models if model.skipped is not None]
    models = "1 model" if len(whole) == 1 else f"{len(whole)} models"
    print(f"{models} for {', '.join(made.runtimes)}, {units.size(_size(made))} in all")
    for model in left_out:
        print(output.plain(f"left out: {model.cell.id} for {model.cell.runtime}: {model.skipped}"))
    place = output.plain(str(made.directory))
    print(f"\nbundle  {place}\nnext    {place}/README.txt explains how to measure it without torch")


def _json_document(made: Bundle) -> dict[str, Any]:
    """The JSON object of ``bundle --json``."""
    return {
        "bundle": str(made.directory),
        "bytes": _size(made),
        "versions": dict(made.versions),
        "cells": [
            {
                "id": model.cell.id,
                "runtime": model.cell.runtime,
                "labels": dict(model.cell.case.labels),
                "batch": model.cell.batch,
                "dtype": model.cell.case.dtype,
                "cost": None if model.cost is None else model.cost.to_dict(),
                "folder": model.folder or None,
                "facts": dict(model.facts),
                "skipped": model.skipped,
            }
            for model in made.models
        ],
    }


def _size(made: Bundle) -> int:
    return sum(path.stat().st_size for path in made.directory.rglob("*") if path.is_file())
