"""The words of the command line: names, their completion, the options that commands share, how values are read."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from effbench.core.errors import InvalidValue, UnknownName
from effbench.core.parsing import inputs as inputs
from effbench.core.parsing import seconds as seconds
from effbench.core.parsing import share as share

LISTS = ("models", "studies", "devices", "runtimes")


def names(what: str) -> dict[str, str]:
    """The names on one of the `LISTS`, each with what it stands for."""
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

        found = {name: (runtimes.get(name).summary, runtimes.missing(name)) for name in runtimes.NAMES}
        return {name: f"{about} (missing: {absent})" if absent else about for name, (about, absent) in found.items()}
    return {
        "cpu": "the CPU, with --threads",
        "cuda": "an NVIDIA GPU; cuda:1 is the second",
        "fake": "a scripted clock: for trying things out, proves nothing",
    }


# --- completion ---------------------------------------------------------------------------------------


def complete_study(incomplete: str) -> list[str]:
    """Studies that begin so."""
    from effbench.studies import catalog

    return [name for name in catalog.names() if name.startswith(incomplete)]


def complete_model(incomplete: str) -> list[str]:
    """Networks of the zoo that begin so."""
    from effbench import zoo

    return [name for name in zoo.names() if name.startswith(incomplete)]


def complete_device(incomplete: str) -> list[str]:
    """Devices that begin so."""
    from effbench import devices

    return [name for name in devices.NAMES if name.startswith(incomplete)]


def complete_runtime(incomplete: str) -> list[str]:
    """Runtimes that begin so, also behind a comma."""
    from effbench import runtimes

    *before, last = incomplete.split(",")
    return [",".join([*before, name]) for name in (*runtimes.NAMES, "all") if name.startswith(last)]


def complete_run(incomplete: str) -> list[str]:
    """Folders of runs that begin so, in the place where runs go by default."""
    from effbench.runs import run_file

    found = [str(path.parent) for path in run_file.RUNS.glob(f"*/{run_file.RUN_FILE}")]
    return sorted(path for path in found if path.startswith(incomplete))


def complete_format(incomplete: str) -> list[str]:
    """Formats of other tools that begin so."""
    from effbench import export

    return [name for name in export.FORMATS if name.startswith(incomplete)]


# --- options that several commands share -------------------------------------------------------------

Device = Annotated[
    str, typer.Option(help="cpu, cuda, cuda:1, or fake (a scripted clock).", autocompletion=complete_device)
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="[NAME=]SIZES[:DTYPE]",
        help="Input without the batch, such as 3x224x224, mask=1x224x224 or ids=128:int64; repeatable.",
    ),
]
Runtime = Annotated[
    str | None,
    typer.Option(
        help="How networks are executed (`effbench list runtimes`); several, such as eager,onnxruntime, or all run in "
        "the same rounds.",
        autocompletion=complete_runtime,
    ),
]
MemoryFormat = Annotated[str, typer.Option(help="contiguous or channels_last.")]
Mode = Annotated[str, typer.Option(help="infer, or train: forward, backward and an optimiser's step.")]
Percentiles = Annotated[bool, typer.Option("--percentiles", help="Latency of single calls: p50, p90, p99.")]
PeakMemory = Annotated[
    bool, typer.Option("--peak-memory", help="The most memory that each network needs, in a process of its own.")
]
Energy = Annotated[bool, typer.Option("--energy", help="Joules per call, where the machine can tell.")]
Count = Annotated[
    str | None, typer.Option(help="instructions: count them too; the same on a noisy machine as on a quiet one.")
]
Threads = Annotated[int, typer.Option(help="CPU threads; 0 means every core this process may use.")]
Cluster = Annotated[
    str, typer.Option(help="big or little: keep to the CPU's cores of that kind; all does not pin (Linux).")
]
Batch = Annotated[int | None, typer.Option(help="Images per call. Default: the study's own, else 1.")]
Dtype = Annotated[
    str | None, typer.Option(help="float32, float64, float16, bfloat16, or int8 where the runtime has it.")
]
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


# --- values -------------------------------------------------------------------------------------------


def device_options(device: str, precision: str, autotune: bool, cache: str, cluster: str = "all") -> dict[str, Any]:
    """The options that a CUDA device has, or a CPU; none for any other. Raises UnknownName, InvalidValue."""
    for kind, word, known in (
        ("precision", precision, ("fp32", "tf32")),
        ("cache policy", cache, ("steady", "cold", "hot")),
    ):
        if word not in known:
            raise UnknownName(kind, word, known)
    if cluster != "all":
        if device != "cpu":
            raise InvalidValue(f"--cluster chooses cores of the CPU, and the device is {device}; leave --cluster out")
        return {"cluster": cluster}
    if not device.startswith("cuda"):
        return {}
    return {"precision": precision, "autotune": autotune, "cache": cache}


def readings(percentiles: bool, peak_memory: bool, energy: bool, count: str | None) -> tuple[str, ...]:
    """What the options want to be read beside the rounds (`core.run.READINGS`). Raises UnknownName."""
    if count not in (None, "instructions"):
        raise UnknownName("thing to count", str(count), ("instructions",))
    wanted = {"percentiles": percentiles, "peak_memory": peak_memory, "energy": energy, "instructions": bool(count)}
    return tuple(name for name, is_wanted in wanted.items() if is_wanted)


def selection(words: Sequence[str]) -> dict[str, list[str]]:
    """``groups=1,8`` and the like: the wanted values by label. Raises InvalidValue."""
    chosen: dict[str, list[str]] = {}
    for word in words:
        label, equals, values = word.partition("=")
        if not equals or not values:
            raise InvalidValue(f"--select {word}: expected LABEL=VALUE[,VALUE], such as --select groups=1,8")
        chosen.setdefault(label, []).extend(values.split(","))
    return chosen


# --- what was typed -----------------------------------------------------------------------------------


def is_typed(context: typer.Context, name: str) -> bool:
    """Was this option given on the command line, rather than left at its default?"""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def refuse_others(context: typer.Context, allowed: Collection[str], why: str) -> None:
    """An option that would be ignored is not accepted. Raises InvalidValue."""
    for name in context.params:
        if name not in (*allowed, "as_json") and is_typed(context, name):
            raise InvalidValue(f"{why}; leave out {name.replace('_', '-')}")
