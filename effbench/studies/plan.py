"""From a study and a user's options to a plan: which cells, on what, how often. Pure, no torch."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from effbench import devices, runtimes
from effbench.core import inputs
from effbench.core.errors import InvalidValue, UnknownName
from effbench.core.run import READINGS
from effbench.core.study import Case, Cell, Experiment, Label, Sampling
from effbench.host.worker_process import ALLOCATORS

DTYPES = ("float32", "float64", "float16", "bfloat16", "int8")
MEMORY_FORMATS = ("contiguous", "channels_last")
MODES = ("infer", "train")

MAX_THREADS = 1024
"""Far above any machine; OpenMP ends the process where it cannot start as many as it was told to."""

QUICK: Mapping[str, Any] = {
    "launches": 3,
    "min_rounds": 4,
    "max_rounds": 8,
    "warmup_s": 0.03,
    "max_warmup_s": 0.3,
    "budget_s": 45.0,
}
"""What ``--quick`` changes: a look in under a minute. Three launches carry an interval, but no verdict."""


@dataclass(frozen=True)
class Bundled:
    """Models that were exported elsewhere: the `folder` of their bundle, its `digest`, and by cell the folder of each
    model, or why it is `absent` here.
    """

    folder: str
    digest: str
    models: Mapping[str, str] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """Everything a run needs to know before it starts.

    `runtime` names the runtimes of its cells, comma between them; `readings` what is read beside the rounds. A run that
    is `bundled` builds nothing and needs no torch.
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
    readings: tuple[str, ...] = ()
    bundled: Bundled | None = None

    @property
    def runtimes(self) -> tuple[str, ...]:
        return tuple(self.runtime.split(","))


def make(
    experiment: Experiment,
    *,
    device: str = "cpu",
    runtime: str | None = None,
    threads: int = 1,
    batch: int | None = None,
    dtype: str | None = None,
    allocator: str = "retain",
    select: Mapping[str, Sequence[str]] | None = None,
    quick: bool = False,
    sampling: Mapping[str, Any] | None = None,
    seed: int = 0,
    device_options: Mapping[str, Any] | None = None,
    memory_format: str = "contiguous",
    mode: str = "infer",
    readings: Sequence[str] = (),
) -> Plan:
    """The plan for a study under these options. `sampling` overrides single fields of the study's own, and so does
    `batch` where it is given.

    `runtime` (default: the study's own) may name several, such as "eager,onnxruntime": every case then runs under
    each of them, in the same rounds, and carries the label `runtime`; "all" are those that are installed and have the
    device. Raises UnknownName and InvalidValue for options that name nothing or break a rule.
    """
    kind = devices.kind_of(device)
    runtime = experiment.runtime if runtime is None else runtime
    names = runtimes.present(kind) if runtime == "all" else tuple(dict.fromkeys(runtime.split(",")))
    for name in names:
        if name not in runtimes.NAMES:
            raise UnknownName("runtime", name, (*runtimes.NAMES, "all"))
    for what, word, known in (
        ("memory format", memory_format, MEMORY_FORMATS),
        ("mode", mode, MODES),
        *(("reading", reading, READINGS) for reading in readings),
    ):
        if word not in known:
            raise UnknownName(what, word, known)
    if allocator not in ALLOCATORS:
        raise UnknownName("allocator policy", allocator, ALLOCATORS)
    if dtype is not None and dtype not in DTYPES:
        raise UnknownName("dtype", dtype, DTYPES)
    if batch is not None and any(case.batch is not None for case in experiment.cases):
        raise InvalidValue(f"{experiment.name} varies the batch itself; choose with --select batch={batch}")
    batch = experiment.batch.get(kind, 1) if batch is None else batch
    batch = inputs.whole(batch, "batch")
    threads = _threads(threads)
    if threads > MAX_THREADS:
        raise InvalidValue(f"threads (={threads}) must be at most {MAX_THREADS}")
    seed = inputs.whole(seed, "seed", least=0)
    if seed >= 2**63:
        raise InvalidValue(f"seed (={seed}) must be 0 or more and below 2**63")
    if kind == "cpu":
        from effbench.devices.cpu import threads_on

        threads = threads_on(threads, str((device_options or {}).get("cluster", "")))
    else:
        threads = 0
    cases = choose(experiment, kind, select or {})
    if dtype is not None:
        cases = tuple(replace(case, dtype=dtype) for case in cases)
    if len(names) > 1:
        cases = tuple(replace(case, labels={"runtime": name, **case.labels}) for name in names for case in cases)
    options = dict(device_options or {})
    if kind == "cpu":
        options["threads"] = threads
        if names != ("eager",):
            # Some compute in threads of their own, whose time this one's clock does not see.
            options["whole_process"] = True
    if kind == "fake":
        options.setdefault("seed", seed)
    merged = {**dataclasses.asdict(experiment.sampling), **(QUICK if quick else {}), **(sampling or {})}
    return Plan(
        experiment=experiment.with_cases(cases),
        cells=tuple(
            Cell(
                case,
                device,
                str(case.labels["runtime"]) if len(names) > 1 else names[0],
                threads,
                batch if case.batch is None else inputs.whole(case.batch, f"batch of {case.id}"),
                memory_format,
                mode,
            )
            for case in cases
        ),
        device=device,
        device_options=options,
        runtime=",".join(names),
        threads=threads,
        allocator=allocator,
        sampling=check(Sampling(**merged)),
        seed=seed,
        clock=clock_of(kind, threads),
        readings=tuple(dict.fromkeys(readings)),
    )


def _threads(threads: Any) -> int:
    if isinstance(threads, int) and threads < 0:
        raise InvalidValue(f"threads (={threads}) must be 1 or more, or 0 for every core")
    return inputs.whole(threads, "threads", least=0)


def clock_of(kind: str, threads: int) -> str:
    """Which clock ratios use. One CPU thread: its CPU time, which a busy neighbour does not lengthen. Several: wall
    time, since CPU time misses waiting. CUDA: the time between device events.
    """
    if kind == "cuda":
        return "device"
    return "cpu" if kind == "fake" or threads == 1 else "wall"


def check(sampling: Sampling) -> Sampling:
    """The sampling, if its numbers make sense. Raises InvalidValue."""
    counts = {
        name: inputs.whole(getattr(sampling, name), name.replace("_", " "))
        for name in ("launches", "min_rounds", "max_rounds")
    }
    sampling = replace(sampling, **counts)
    for name in ("budget_s", "precision", "block_s"):
        value = getattr(sampling, name)
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not (is_number and value > 0 and math.isfinite(value)):
            shown = f"{value:g}" if is_number else repr(value)
            raise InvalidValue(f"{name.removesuffix('_s')} (={shown}) must be a positive number")
        sampling = replace(sampling, **{name: float(value)})  # type: ignore[arg-type]
    if sampling.max_rounds < sampling.min_rounds:
        return replace(sampling, max_rounds=sampling.min_rounds)
    return sampling


def choose(experiment: Experiment, kind: str, select: Mapping[str, Sequence[str]]) -> tuple[Case, ...]:
    """The cases that run: `select` names values of labels; every other label is narrowed by the study's defaults.

    Selecting values of the factor keeps the reference, without which there is no ratio. Raises UnknownName.
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
            allowed[label] = {str(value) for value in _for_device(default, kind)}
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


def _for_device(default: Any, kind: str) -> tuple[Label, ...]:
    """A default may be one value, several, or depend on the device kind (any other kind follows "cpu")."""
    if isinstance(default, Mapping):
        default = default.get(kind, default.get("cpu"))
    return tuple(default) if isinstance(default, (tuple, list)) else (default,)
