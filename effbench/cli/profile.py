"""The command profile: count the costs of a model."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import Annotated, Any

import typer

from effbench.cli import options as cli_options
from effbench.cli import output
from effbench.cli.options import with_measure_options
from effbench.core.errors import InvalidValue
from effbench.core.measure_options import MeasureOptions


@with_measure_options(
    "batch",
    "dtype",
    batch="Images per call. Default: 1.",
    dtype="Data type of weights and inputs, which decides the bytes: float32, float64, float16 or bfloat16.",
)
def profile(
    model: Annotated[
        str,
        typer.Argument(
            help="A model's name, torchvision:NAME, timm:NAME, or path/file.py:factory.",
            autocompletion=cli_options.complete_model,
        ),
    ],
    options: dict[str, Any],
    inputs: cli_options.Inputs = None,
    layers: Annotated[bool, typer.Option("--layers", help="Show one row for each operator.")] = False,
    crosscheck: Annotated[
        bool, typer.Option("--crosscheck", help="Count with fvcore and torch too, and explain each difference.")
    ] = False,
    as_json: cli_options.Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV to standard output.")] = False,
) -> None:
    """Count what a model costs: parameters, multiply-adds, memory access.

    Activations too. Counts are analytic: nothing is timed.
    """
    from effbench import api
    from effbench.report.tables import profile as profile_table
    from effbench.report.tables.table_model import render_csv

    given = cli_options.inputs(inputs)
    if as_json and as_csv:
        raise InvalidValue("--json and --csv both print to standard output; choose one")
    asked = MeasureOptions.of(options)
    with redirect_stdout(sys.stderr):
        found = api.profile(model, given, batch=asked.batch or 1, dtype=asked.dtype or "float32")
        checks = _crosscheck(model, found) if crosscheck else []
    if as_json:
        document = found.to_dict(layers=layers)
        output.print_json({**document, "crosscheck": checks} if crosscheck else document)
        return
    whole = found.to_dict(layers=True)
    tables = [profile_table.cost_rows(whole)]
    if layers:
        tables.append(profile_table.layer_rows(whole))
    if checks:
        tables.append(profile_table.crosscheck_rows(checks))
    if as_csv:
        sys.stdout.write(render_csv(tables[1] if layers else tables[0]))
        return
    output.print_tables(tables)


def _crosscheck(model: str, found: Any) -> list[dict[str, Any]]:
    import dataclasses
    import warnings

    from effbench import cost, zoo
    from effbench.zoo import libraries

    with libraries.without_weights(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # api.profile has already shown them
        network = zoo.resolve(model, {})
    checks = cost.crosscheck(network, found.inputs or found.input_shape, batch=found.batch)
    return [dataclasses.asdict(check) for check in checks]
