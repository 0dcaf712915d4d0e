"""The command that tries the gate on this machine: aa."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from effbench import console, words
from effbench.commands.measuring import say_threads
from effbench.errors import InvalidValue

if TYPE_CHECKING:
    from effbench.gates.config import Config
    from effbench.gates.pairs import Pair

MODELS = ("shufflenet_v2_x0_5", "mobilenet_v2", "resnet18")
"""Measured where nothing else is asked for: some milliseconds to some tens."""


def aa(
    context: typer.Context,
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help=f"As for `effbench check`. Default: all of ./effbench.toml, else {', '.join(MODELS)}.",
            autocompletion=words.complete_model,
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="An effbench.toml.")] = None,
    replay: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Measure nothing; read what `aa` or `check --against` stored.",
            autocompletion=words.complete_run,
        ),
    ] = None,
    suites: Annotated[int, typer.Option(help="Gates to resample from what was measured.")] = 300,
    inputs: words.Inputs = None,
    tolerance: Annotated[str | None, typer.Option(help="That of the gate: 3%.")] = None,
    launches: Annotated[int | None, typer.Option(help="Fresh processes of each side. Default: 20.")] = None,
    device: words.Device = "cpu",
    threads: words.Threads = 1,
    batch: words.Batch = None,
    dtype: words.Dtype = None,
    allocator: words.Allocator = "retain",
    seed: words.Seed = 0,
    out: words.Out = None,
    as_json: words.Json = False,
) -> None:
    """Measure the same code against itself: how often a gate would cry wolf here, and what it could see."""
    from effbench.gates import against, pairs, same_code
    from effbench.gates import config as configuration
    from effbench.progress import watching
    from effbench.report import aa_table, table, write_text

    if suites < 1:
        raise InvalidValue(f"suites (={suites}) must be 1 or more")
    given = {"device": device, "threads": threads, "allocator": allocator, "seed": seed}
    said: dict[str, Any] = {name: value for name, value in given.items() if words.is_typed(context, name)}
    said |= {
        "tolerance": None if tolerance is None else words.share(tolerance, "--tolerance"),
        "launches": launches,
        "batch": batch,
        "dtype": dtype,
        "inputs": words.inputs(inputs),
    }
    if replay is not None:
        words.refuse_others(context, ("replay", "suites", "seed", "tolerance"), "--replay measures nothing")
        found, pair, folder = configuration.with_options(configuration.Config(), said, {}), pairs.load(replay), replay
        same_code.require(pair, against.rule_of(found))
    else:
        found = configuration.with_options(_chosen(models, config), said, {})
        with redirect_stdout(sys.stderr):
            pair, folder = _measure(found, out, console.typed.get())
    with watching() as watch:
        survey, replayed = against.calibrate(found, pair, suites, found.seed or 0, watch)
    if replay is not None:
        replayed = dataclasses.replace(replayed, caveats=(*replayed.caveats, *same_code.caveats(replay)))
    document, tables = aa_table.document(survey, replayed), aa_table.tables(survey, replayed)
    if replay is None:
        write_text(folder / "table.md", "\n\n".join(map(table.render_markdown, tables)) + "\n")
    if as_json:
        console.print_json({**document, "run_dir": str(folder)})
        return
    console.print_tables(tables)
    print(f"\nraw     {console.plain(str(folder))}")


def _chosen(models: list[str] | None, path: Path | None) -> Config:
    from effbench.gates import config

    is_asked = models or path is not None or Path(config.FILE).is_file()
    return config.find(path, models or () if is_asked else MODELS)


def _measure(found: Config, out: Path | None, command: str) -> tuple[Pair, Path]:
    from effbench import api
    from effbench.gates import against, checking
    from effbench.progress import watching
    from effbench.runner import Interrupted

    folder = out or api.new_directory("aa", found.device or "cpu")
    checking.require_free(folder)
    said = found.options()
    say_threads(said["device"], said["threads"])
    try:
        with watching() as watch:
            return against.alike(found, folder, command=command, watch=watch), folder
    except Interrupted:
        again = shlex.join(["effbench", "aa", "--replay", str(folder)])
        raise typer.Exit(console.answer_interrupt(f"interrupted; see what was measured with: {again}")) from None
