"""Command-line options that several commands share: measuring options for typer, parsing, completion."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from effbench.core import plugins
from effbench.core.errors import InvalidValue, UnknownName
from effbench.core.measure_options import METRICS, MeasureOptions, default_of, help_of
from effbench.core.parsing import inputs as inputs
from effbench.core.parsing import seconds as seconds
from effbench.core.parsing import share as share

LISTS = ("models", "studies", "devices", "runtimes")


def names(what: str) -> dict[str, str]:
    """The names of one of the `LISTS`, each with a description."""
    if what == "models":
        from effbench import zoo
        from effbench.core import units

        entries = {name: zoo.entry(name) for name in zoo.names()}
        return {
            name: f"{units.count(entry.params):>7} params, {entry.madds_million} M multiply-adds ({entry.source})"
            if entry.params is not None
            else entry.source
            for name, entry in entries.items()
        }
    if what == "studies":
        from effbench.studies import catalog

        return catalog.titles()
    if what == "runtimes":
        from effbench import runtimes

        found = {name: (runtimes.summary(name), runtimes.why_unavailable(name)) for name in runtimes.names()}
        return {name: f"{about} (missing: {absent})" if absent else about for name, (about, absent) in found.items()}
    from effbench import devices

    return dict(devices.SUMMARIES)


# --- completion ---------------------------------------------------------------------------------------


def complete_study(incomplete: str) -> list[str]:
    """Complete the name of a study."""
    from effbench.studies import catalog

    return [name for name in catalog.names() if name.startswith(incomplete)]


def complete_model(incomplete: str) -> list[str]:
    """Complete the name of a network of the zoo."""
    from effbench import zoo

    return [name for name in zoo.names() if name.startswith(incomplete)]


def complete_device(incomplete: str) -> list[str]:
    """Complete the name of a device."""
    from effbench import devices

    return [name for name in devices.NAMES if name.startswith(incomplete)]


def complete_runtime(incomplete: str) -> list[str]:
    """Complete the name of a runtime, also after a comma."""
    from effbench import runtimes

    *before, last = incomplete.split(",")
    return [",".join([*before, name]) for name in (*runtimes.names(), "all") if name.startswith(last)]


def complete_metric(incomplete: str) -> list[str]:
    """Complete the name of a metric."""
    return [name for name in (*METRICS, *plugins.names(plugins.METRIC_GROUP)) if name.startswith(incomplete)]


def complete_run(incomplete: str) -> list[str]:
    """Complete the path of a run in the default folder of runs."""
    from effbench.runs import run_file

    found = [str(path.parent) for path in run_file.RUNS.glob(f"*/{run_file.RUN_FILE}")]
    return sorted(path for path in found if path.startswith(incomplete))


def complete_fleet_run(incomplete: str) -> list[str]:
    """Complete the path of a folder with a fleet's run: in the current folder, in fleet/ or below what is typed."""
    from effbench.runs import run_file

    places = (Path(), Path("fleet"), Path(incomplete))
    found = {str(path.parent) for place in places for path in place.glob(f"*/{run_file.FLEET_ORDERS}")}
    return sorted(path for path in found if path.startswith(incomplete))


def complete_format(incomplete: str) -> list[str]:
    """Complete the name of an export format."""
    from effbench import export

    return [name for name in export.FORMATS if name.startswith(incomplete)]


# --- the options of a measurement ---------------------------------------------------------------------

_KINDS: dict[str, type] = {"threads": int, "batch": int, "launches": int, "seed": int, "quick": bool, "autotune": bool}
"""The type that typer converts a value to; others are text."""
_COMPLETERS = {"device": complete_device, "runtime": complete_runtime}
_PARSERS: dict[str, tuple[str, str, Callable[[str], Any]]] = {
    "budget_s": ("budget", "such as 60s or 5m", seconds),
    "spread_s": ("spread", "such as 2h", functools.partial(seconds, option="--spread")),
    "precision": ("precision", "such as 1%", share),
}
"""Options with a unit: the name on the command line, examples, and the parser."""
_METRICS = {
    "percentiles": "Also measure latency percentiles of single calls: p50, p90, p99.",
    "peak_memory": "Also measure the peak memory of each model, in a process of its own.",
    "energy": "Also measure the energy per call in joules, where the machine reports it.",
}
"""Metrics with their own flag."""
COUNTABLE = ("instructions",)
"""Metrics that --count names."""

RUN_OPTIONS = tuple(item.name for item in fields(MeasureOptions) if item.name != "device_options")
"""The options of every command that measures."""

METRIC = "Also measure this metric, such as one of a plug-in; may be given several times."
COUNT = "instructions: count the instructions of a call too; they are the same on a noisy machine."

FLOATS_ONLY = "Data type to measure in: float32, float64, float16 or bfloat16."
"""The help of --dtype where int8 is refused: it stands for a model that a runtime quantises."""

_Parameters = dict[str, tuple[Any, Any]]
"""Annotation and default by the name of the parameter."""


def with_measure_options(*wanted: str, **texts: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command, so that its parameter `options` becomes one command-line option for each of these fields.

    The command gets a dictionary of the options that were typed, with values for `MeasureOptions`. `texts` replace
    help texts.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        shared: _Parameters = {}
        for name in wanted:
            shared |= _parameters(name, texts.get(name))
        parameters = []
        if "context" not in signature.parameters:
            parameters.append(inspect.Parameter("context", _KEYWORD, annotation=typer.Context))
        for item in signature.parameters.values():
            if item.name != "options":
                parameters.append(item.replace(kind=_KEYWORD))
                continue
            parameters += [
                inspect.Parameter(name, _KEYWORD, annotation=kind, default=default)
                for name, (kind, default) in shared.items()
            ]

        @functools.wraps(command)
        def carry_out(context: typer.Context, **values: Any) -> None:
            typed = {name: values.pop(name) for name in shared}
            typed = {name: value for name, value in typed.items() if is_typed(context, name)}
            if "context" in signature.parameters:
                values["context"] = context
            command(**values, options=_parse_options(typed))

        carry_out.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        carry_out.__annotations__ = {item.name: item.annotation for item in parameters}
        return carry_out

    return decorate


_KEYWORD = inspect.Parameter.KEYWORD_ONLY


def _parameters(name: str, text: str | None) -> _Parameters:
    """The command-line parameters for one field of `MeasureOptions`."""
    if name == "metrics":
        flags: _Parameters = {
            metric: (Annotated[bool, typer.Option(_option_name(metric), help=about)], False)
            for metric, about in _METRICS.items()
        }
        named = typer.Option(help=METRIC, metavar="NAME", autocompletion=complete_metric)
        return {
            **flags,
            "count": (Annotated[str | None, typer.Option(help=COUNT)], None),
            "metric": (Annotated[list[str] | None, named], None),
        }
    about = text or help_of(name)
    if name in _PARSERS:
        word, example, _ = _PARSERS[name]
        first, stop, rest = about.partition(".")
        about = about if text else f"{first}, {example}{stop}{rest}"
        return {word: (Annotated[str | None, typer.Option(help=about)], None)}
    kind, default = _KINDS.get(name, str), default_of(name)
    if kind is bool:
        return {name: (Annotated[bool, typer.Option(_option_name(name), help=about)], default)}
    option = typer.Option(help=about, autocompletion=_COMPLETERS.get(name))
    return {name: (Annotated[kind if default is not None else kind | None, option], default)}


def _option_name(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _parse_options(typed: dict[str, Any]) -> dict[str, Any]:
    """Parse the typed options; the result is by field of `MeasureOptions`. Raises InvalidValue, UnknownName."""
    words = {word: (name, read) for name, (word, _, read) in _PARSERS.items()}
    metrics = [name for name in _METRICS if typed.pop(name, False)]
    if (count := typed.pop("count", None)) is not None:
        metrics.append(parse_count(count))
    metrics += typed.pop("metric", None) or []
    found = {}
    for name, value in typed.items():
        field, read = words.get(name, (name, None))
        found[field] = value if read is None else read(value)
    return {**found, "metrics": tuple(metrics)} if metrics else found


def parse_count(what: str) -> str:
    """The metric that ``--count`` names. Raises UnknownName."""
    if what not in COUNTABLE:
        raise UnknownName("thing to count", what, COUNTABLE)
    return what


# --- other options ------------------------------------------------------------------------------------

Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="[NAME=]SIZES[:DTYPE]",
        help="Input without the batch, such as 3x224x224, mask=1x224x224 or ids=128:int64; repeatable.",
    ),
]
Scale = Annotated[str | None, typer.Option(help="Scales to run, such as x1,x4.")]
Select = Annotated[
    list[str] | None, typer.Option(help="LABEL=VALUE[,VALUE]: run only these values of a label; repeatable.")
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        help="Measure this model instead of those of a study that compares models; repeatable.",
        autocompletion=complete_model,
    ),
]
Depthwise = Annotated[
    bool, typer.Option("--depthwise", help="Show depthwise convolutions separately (runtime_breakdown).")
]
Out = Annotated[Path | None, typer.Option(help="Folder of the run. Default: a new one under results/runs/.")]
Now = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Carry out N launches now, whatever time they are planned for, and leave the others to --resume: exit 5.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to standard output.")]


def parse_selection(words: Sequence[str]) -> dict[str, list[str]]:
    """Parse selections such as ``groups=1,8`` into values by label. Raises InvalidValue."""
    chosen: dict[str, list[str]] = {}
    for word in words:
        label, equals, values = word.partition("=")
        if not equals or not values:
            raise InvalidValue(f"--select {word}: expected LABEL=VALUE[,VALUE], such as --select groups=1,8")
        chosen.setdefault(label, []).extend(values.split(","))
    return chosen


def launches_now(now: int | None) -> dict[str, Any]:
    """The argument of the API for ``--now N``; none without the option. Raises InvalidValue."""
    if now is None:
        return {}
    if now < 1:
        raise InvalidValue(f"--now {now}: expected the number of launches to carry out now, 1 or more")
    return {"launches_now": now}


# --- what was typed -----------------------------------------------------------------------------------


def is_typed(context: typer.Context, name: str) -> bool:
    """Whether this option was given on the command line, not left at its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def refuse_others(context: typer.Context, allowed: Collection[str], why: str) -> None:
    """Raise InvalidValue for typed options that would be ignored."""
    for name in context.params:
        if name not in (*allowed, "as_json") and is_typed(context, name):
            raise InvalidValue(f"{why}; leave out {name.replace('_', '-')}")
