"""Turn a study and the user's options into a plan: cells, device, sampling. Without torch."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, get_args

from effbench import devices, runtimes
from effbench.analysis import sequential
from effbench.core import inputs
from effbench.core.errors import InvalidValue, UnknownName
from effbench.core.measure_options import MeasureKeywords, MeasureOptions
from effbench.core.study import Case, Cell, Experiment, Label, Sampling, Until

if TYPE_CHECKING:
    from typing_extensions import Unpack

QUICK: Mapping[str, Any] = {
    "launches": 3,
    "min_rounds": 4,
    "max_rounds": 8,
    "warmup_s": 0.03,
    "max_warmup_s": 0.3,
    "budget_s": 45.0,
}
"""Sampling of ``--quick``, for a run of under a minute. Three launches give an interval, but no verdict."""

MAX_LAUNCHES = 10_000
MAX_SPREAD_S = 366 * 86400
"""Longest time that a run may be spread over: a year, so that every launch has a date."""


@dataclass(frozen=True)
class Bundled:
    """Models that were exported on another machine.

    `folder` and `digest` identify the bundle. `models` holds the folder of each cell's model, `absent` the reasons why
    cells cannot be measured on this machine.
    """

    folder: str
    digest: str
    models: Mapping[str, str] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """All settings of a run.

    `runtime` names the runtimes of its cells, separated by commas. `metrics` are secondary metrics, measured after the
    rounds. The run of a bundle (`bundled`) builds no model and needs no torch.
    """

    experiment: Experiment
    cells: tuple[Cell, ...]
    device: str = "cpu"
    device_options: Mapping[str, Any] = field(default_factory=dict)
    runtime: str = "eager"
    threads: int = 1
    allocator: str = "retain"
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    clock: str = "wall"
    metrics: tuple[str, ...] = ()
    bundled: Bundled | None = None

    @property
    def runtimes(self) -> tuple[str, ...]:
        return tuple(self.runtime.split(","))


def make(
    experiment: Experiment,
    options: MeasureOptions | None = None,
    *,
    select: Mapping[str, Sequence[str]] | None = None,
    sampling: Mapping[str, Any] | None = None,
    **given: Unpack[MeasureKeywords],
) -> Plan:
    """The plan for a study under these options, which may also be given one by one.

    `select` chooses values by label. `sampling` overrides single fields of the study's sampling, as the options
    `launches`, `budget_s`, `spread_s` and `precision` do. With several runtimes, such as "eager,onnxruntime", every
    case runs under each of them in the same rounds and gets the label `runtime`. "all" means every installed runtime
    that supports the device. Raises UnknownName for unknown names and InvalidValue for values that break a rule.
    """
    options = MeasureOptions.of(given, options)
    kind = devices.kind_of(options.device)
    runtime = experiment.runtime if options.runtime is None else options.runtime
    names = _runtime_names(runtime, kind)
    if options.batch is not None and any(case.batch is not None for case in experiment.cases):
        raise InvalidValue(f"{experiment.name} varies the batch itself; choose with --select batch={options.batch}")
    batch = inputs.whole_number(experiment.batch.get(kind, 1), "batch") if options.batch is None else options.batch
    chosen = options.device_arguments
    threads = 0
    if kind == "cpu":
        from effbench.devices.cpu import thread_count

        threads = chosen["threads"] = thread_count(options.threads, str(chosen.get("cluster", "")))
        if names != ("eager",):
            # Some runtimes compute in their own threads, which the clock of this thread does not cover.
            chosen["whole_process"] = True
    if kind == "fake":
        chosen.setdefault("seed", options.seed)
    cases = choose_cases(experiment, kind, select or {})
    if options.dtype is not None:
        cases = tuple(replace(case, dtype=options.dtype) for case in cases)
    if len(names) > 1:
        cases = tuple(replace(case, labels={"runtime": name, **case.labels}) for name in names for case in cases)
    merged = {**dataclasses.asdict(experiment.sampling), **(QUICK if options.quick else {}), **options.sampling}
    if merged["until"] != "launches" and options.launches is None:
        merged["launches"] = sequential.MAX_LAUNCHES
    if merged["until"] == "faster":
        merged["max_rounds"] = min(merged["max_rounds"], sequential.MAX_ROUNDS)
    return Plan(
        experiment=experiment.with_cases(cases),
        cells=tuple(
            _cell(case, options, str(case.labels["runtime"]) if len(names) > 1 else names[0], threads, batch)
            for case in cases
        ),
        device=options.device,
        device_options=chosen,
        runtime=",".join(names),
        threads=threads,
        allocator=options.allocator,
        sampling=checked_sampling(Sampling(**{**merged, **(sampling or {})})),
        seed=options.seed,
        clock=clock_of(kind, threads),
        metrics=options.metrics,
    )


def _runtime_names(runtime: str, kind: str) -> tuple[str, ...]:
    """The names of the runtimes that "all", or a list separated by commas, stands for. Raises UnknownName."""
    names = runtimes.available_on(kind) if runtime == "all" else tuple(dict.fromkeys(runtime.split(",")))
    for name in names:
        if not runtimes.exists(name):
            raise UnknownName("runtime", name, (*runtimes.names(), "all"))
        if name not in runtimes.NAMES:
            runtimes.get(name)  # raises if a plug-in cannot be loaded
    return names


def _cell(case: Case, options: MeasureOptions, runtime: str, threads: int, batch: int) -> Cell:
    """A case under these options. `batch` is that of cases that have none of their own."""
    own = batch if case.batch is None else inputs.whole_number(case.batch, f"batch of {case.id}")
    return Cell(case, options.device, runtime, threads, own, options.memory_format, options.mode)


def clock_of(kind: str, threads: int) -> str:
    """The clock of a run's ratios.

    With one CPU thread it is CPU time, which other processes do not lengthen. With several it is wall time, since CPU
    time misses waiting. On CUDA it is the time between device events.
    """
    if kind == "cuda":
        return "device"
    return "cpu" if kind == "fake" or threads == 1 else "wall"


def checked_sampling(sampling: Sampling) -> Sampling:
    """Validate the values of a sampling and return it with plain types. Raises InvalidValue, UnknownName."""
    if sampling.until not in get_args(Until):
        raise UnknownName("stopping rule", str(sampling.until), get_args(Until))
    counts = {
        name: inputs.whole_number(getattr(sampling, name), name.replace("_", " "))
        for name in ("launches", "min_rounds", "max_rounds")
    }
    sampling = replace(sampling, **counts)  # type: ignore[arg-type]
    if sampling.launches > MAX_LAUNCHES:
        raise InvalidValue(f"launches (={sampling.launches}) must be at most {MAX_LAUNCHES}")
    for name in ("budget_s", "precision", "block_s"):
        value = getattr(sampling, name)
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not (is_number and value > 0 and math.isfinite(value)):
            shown = f"{value:g}" if is_number else repr(value)
            raise InvalidValue(f"{name.removesuffix('_s')} (={shown}) must be a positive number")
        sampling = replace(sampling, **{name: float(value)})  # type: ignore[arg-type]
    spread = sampling.spread_s
    if not isinstance(spread, numbers.Real) or isinstance(spread, bool) or not 0 <= spread <= MAX_SPREAD_S:
        raise InvalidValue(f"spread (={spread!r}) must be a number of seconds, from 0 to {MAX_SPREAD_S} (a year)")
    sampling = replace(sampling, spread_s=float(spread))
    if sampling.max_rounds < sampling.min_rounds:
        return replace(sampling, max_rounds=sampling.min_rounds)
    return sampling


def choose_cases(experiment: Experiment, kind: str, select: Mapping[str, Sequence[str]]) -> tuple[Case, ...]:
    """The cases to run: `select` chooses values by label; the study's defaults choose those of all other labels.

    The reference cases are always kept, since ratios need them. Raises UnknownName, InvalidValue.
    """
    values = experiment.label_values()
    allowed: dict[str, set[str]] = {}
    for label, wanted in select.items():
        if label not in values:
            raise UnknownName(f"label of {experiment.name}", label, values)
        known = [str(value) for value in values[label]]
        for value in wanted:
            if value not in known:
                raise UnknownName(f"{label} in {experiment.name}", value, known)
        allowed[label] = set(wanted)
    for label, default in experiment.defaults.items():
        if label not in allowed:
            allowed[label] = {str(value) for value in _default_for_device(default, kind)}
    chosen = {
        case.id
        for case in experiment.cases
        if all(str(case.labels[label]) in wanted for label, wanted in allowed.items() if label in case.labels)
    }
    if not chosen:
        raise InvalidValue(f"no case of {experiment.name} has all of {dict(select)}; drop one of these choices")
    references = (experiment.reference_of(case) for case in experiment.cases if case.id in chosen)
    chosen |= {reference.id for reference in references if reference is not None}
    return tuple(case for case in experiment.cases if case.id in chosen)


def _default_for_device(default: Any, kind: str) -> tuple[Label, ...]:
    """The values of a default, which may depend on the device kind. Kinds without an entry use that of "cpu"."""
    if isinstance(default, Mapping):
        default = default.get(kind, default.get("cpu"))
    return tuple(default) if isinstance(default, (tuple, list)) else (default,)
