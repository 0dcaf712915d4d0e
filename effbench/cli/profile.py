"""The command that counts: profile."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import Annotated, Any

import typer

from effbench.cli import options, output
from effbench.core import inputs as core_inputs
from effbench.core.errors import InvalidValue, UnknownName


def profile(
    model: Annotated[
        str,
        typer.Argument(
            help="A model's name, torchvision:NAME, timm:NAME, or path/file.py:factory.",
            autocompletion=options.complete_model,
        ),
    ],
    inputs: options.Inputs = None,
    batch: Annotated[int, typer.Option(help="Images per call.")] = 1,
    dtype: options.Dtype = None,
    layers: Annotated[bool, typer.Option("--layers", help="One row an operator.")] = False,
    crosscheck: Annotated[
        bool, typer.Option("--crosscheck", help="Count with fvcore and torch too, and explain each difference.")
    ] = False,
    as_json: options.Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV to standard output.")] = False,
) -> None:
    """Count what a model costs: parameters, multiply-adds, activations, memory access. Analytic; no clock."""
    from effbench import api
    from effbench.report.tables import cells, misc
    from effbench.studies.plan import DTYPES

    fed = options.inputs(inputs)
    if as_json and as_csv:
        raise InvalidValue("--json and --csv both want standard output; choose one")
    core_inputs.whole(batch, "batch")
    if dtype is not None and dtype not in DTYPES:
        raise UnknownName("dtype", dtype, DTYPES)
    with redirect_stdout(sys.stderr):
        found = api.profile(model, fed, batch=batch, dtype=dtype or "float32")
        checks = _crosscheck(model, found) if crosscheck else []
    if as_json:
        document = found.to_dict(layers=layers)
        output.print_json({**document, "crosscheck": checks} if crosscheck else document)
        return
    whole = found.to_dict(layers=True)
    tables = [misc.cost_rows(whole)]
    if layers:
        tables.append(misc.layer_rows(whole))
    if checks:
        tables.append(misc.crosscheck_rows(checks))
    if as_csv:
        sys.stdout.write(cells.render_csv(tables[1] if layers else tables[0]))
        return
    output.print_tables(tables)


def _crosscheck(model: str, found: Any) -> list[dict[str, Any]]:
    import dataclasses
    import warnings

    from effbench import cost, zoo
    from effbench.zoo import libraries

    with libraries.without_weights(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the count has passed them on
        network = zoo.resolve(model, {})
    checks = cost.crosscheck(network, found.inputs or found.input_shape, batch=found.batch)
    return [dataclasses.asdict(check) for check in checks]
