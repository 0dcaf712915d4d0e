"""The command aa: measure the false-alarm rate of the A/B gate on unchanged code."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from effbench.cli import options as cli_options
from effbench.cli import output
from effbench.cli.measure import warn_of_threads
from effbench.cli.options import with_measure_options
from effbench.core.errors import InvalidValue

if TYPE_CHECKING:
    from effbench.gates.ab_pairs import Pair
    from effbench.gates.config import Config

MODELS = ("shufflenet_v2_x0_5", "mobilenet_v2", "resnet18")
"""Default models: a forward pass takes some milliseconds to some tens."""


@with_measure_options(
    "launches",
    "device",
    "threads",
    "batch",
    "dtype",
    "allocator",
    "seed",
    launches="Fresh worker processes of each side. Default: 20.",
    batch="Images per call. Default: 1.",
    dtype=cli_options.FLOATS_ONLY,
)
def aa(
    context: typer.Context,
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help=f"As for `effbench check`. Default: all of ./effbench.toml, else {', '.join(MODELS)}.",
            autocompletion=cli_options.complete_model,
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="An effbench.toml.")] = None,
    replay: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Measure nothing; read what `aa` or `check --against` stored.",
            autocompletion=cli_options.complete_run,
        ),
    ] = None,
    suites: Annotated[int, typer.Option(help="Gates to resample from the measurements.")] = 300,
    inputs: cli_options.Inputs = None,
    tolerance: Annotated[str | None, typer.Option(help="Tolerance of the gate. Default: 3%.")] = None,
    *,
    options: dict[str, Any],
    out: cli_options.Out = None,
    as_json: cli_options.Json = False,
) -> None:
    """Measure how often a gate raises a false alarm here.

    Both sides of the gate are the same code. Also estimates which slowdowns the gate can detect.
    """
    from effbench.cli.progress import show_progress
    from effbench.gates import ab_gate, ab_pairs, same_code
    from effbench.gates import config as configuration
    from effbench.report import write_text
    from effbench.report.tables import calibration
    from effbench.report.tables.table_model import render_markdown

    if suites < 1:
        raise InvalidValue(f"suites (={suites}) must be 1 or more")
    said = {
        **options,
        "tolerance": None if tolerance is None else cli_options.share(tolerance, "--tolerance"),
        "inputs": cli_options.inputs(inputs),
    }
    if replay is not None:
        cli_options.refuse_others(context, ("replay", "suites", "seed", "tolerance"), "--replay measures nothing")
        found, pair, folder = (
            configuration.with_options(configuration.Config(), said, {}),
            ab_pairs.load(replay),
            replay,
        )
        same_code.require_same_code(pair, ab_gate.rule_of(found))
    else:
        found = configuration.with_options(_choose_models(models, config), said, {})
        with redirect_stdout(sys.stderr):
            pair, folder = _measure(found, out, output.typed_command.get())
    with show_progress() as watch:
        survey, rate = ab_gate.calibrate(found, pair, suites, found.seed or 0, watch)
    if replay is not None:
        rate = dataclasses.replace(rate, caveats=(*rate.caveats, *same_code.caveats(replay)))
    document, tables = calibration.document(survey, rate), calibration.tables(survey, rate)
    if replay is None:
        write_text(folder / "table.md", "\n\n".join(map(render_markdown, tables)) + "\n")
    if as_json:
        output.print_json({**document, "run_dir": str(folder)})
        return
    output.print_tables(tables)
    print(f"\nraw     {output.plain(str(folder))}")


def _choose_models(models: list[str] | None, path: Path | None) -> Config:
    from effbench.gates import config

    is_asked = models or path is not None or Path(config.FILE).is_file()
    return config.find(path, models or () if is_asked else MODELS)


def _measure(found: Config, out: Path | None, command: str) -> tuple[Pair, Path]:
    from effbench import api
    from effbench.cli.progress import show_progress
    from effbench.gates import ab_gate, run_gates
    from effbench.runs.runner import Interrupted

    folder = out or api.new_directory("aa", found.device or "cpu")
    run_gates.require_free(folder)
    warn_of_threads(dataclasses.asdict(found.options()))
    try:
        with show_progress() as watch:
            return ab_gate.measure_same_code(found, folder, command=command, watch=watch), folder
    except Interrupted:
        again = shlex.join(["effbench", "aa", "--replay", str(folder)])
        raise typer.Exit(output.report_interrupt(f"interrupted; see what was measured with: {again}")) from None
