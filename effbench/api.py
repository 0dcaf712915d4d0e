"""The Python API: what notebooks and scripts call, and what the command line is a thin skin over."""

from __future__ import annotations

import dataclasses
import datetime
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effbench.analysis import time_shares
from effbench.bundles import bundle as stored_bundle
from effbench.bundles import export
from effbench.bundles.bundle import Bundle
from effbench.core.cost import Cost
from effbench.core.errors import InvalidValue, ModelError, UnknownName
from effbench.core.study import Analysis, Cell, Experiment
from effbench.cost import in_subprocess
from effbench.cost.in_subprocess import CellCosts
from effbench.host import optional_packages, temporary_folders
from effbench.results import Results
from effbench.runs import run_file, runner
from effbench.runs.runner import Progress, Watch
from effbench.studies import catalog, model_comparison, plan
from effbench.studies.model_comparison import Fed
from effbench.zoo import accepted, libraries
from effbench.zoo.external import DEFAULT_SHAPE

if TYPE_CHECKING:
    from torch import nn

    from effbench.cost import Profile
    from effbench.report.analysis_outcome import Outcome


def profile(
    model: str | nn.Module,
    input_shape: Fed | None = None,
    *,
    batch: int | None = None,
    dtype: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    inputs: Fed | None = None,
) -> Profile:
    """Analytic cost of one forward pass: counts, no clock. Nothing about the model is changed.

    `model` is a name (``"shufflenet_v2"``, ``"path/file.py:factory"``) or a module; `input_shape` excludes the batch
    and defaults to what the network was published with, or says itself (`libraries.own_shape`). A network of several
    inputs, or of others than floats, takes `inputs`: shapes, `core.inputs.Input`s or tensors, in order or by name
    (``{"ids": Input((128,), dtype="int64")}``). A tensor is an example input, with its batch: `batch` and `dtype`
    default to its own (else 1 and float32), and its values are used where values matter. Raises UnknownName,
    ModelError, InvalidValue.
    """
    model = accepted.model(model)
    fed = input_shape if inputs is None else inputs
    if isinstance(model, str):
        model_comparison.require([model])
        shape = fed if fed is not None else model_comparison.published_shape(model, arguments)
        found = in_subprocess.profile(model, shape, batch=batch, dtype=dtype, arguments=arguments)
        return dataclasses.replace(found, model=model)
    from effbench import cost

    shape = fed if fed is not None else libraries.own_shape(model) or DEFAULT_SHAPE
    return cost.profile(model, shape, batch=batch, dtype=dtype)


def measure(
    model: str | nn.Module | Sequence[str | nn.Module] | Mapping[str, str | nn.Module],
    input_shape: Fed | None = None,
    *,
    inputs: Fed | None = None,
    **options: Any,
) -> Results:
    """Measure a model, or several side by side, in fresh worker processes.

    `model`, `input_shape` and `inputs` as for `profile`; a module is sent to the workers by cloudpickle. A mapping
    names the models as tables shall call them. Tensors are sent along; `batch` and `dtype` default to theirs. Without
    `dtype` and tensors a module is measured in its own dtype (that of its first weight), a name in float32.
    Options are those of `run`, less `scale` and `select`. With several models every ratio is to the first. Raises
    EffbenchError and its kin.
    """
    if isinstance(model, Mapping) and all(hasattr(value, "dtype") for value in model.values()):
        accepted.model(model, "effbench.measure")  # a state dict, or empty
    named = model if isinstance(model, Mapping) else {}
    models = [model] if isinstance(model, str) or not isinstance(model, (Sequence, Mapping)) else list(model)
    models = list(named.values()) or models
    with temporary_folders.folder() as folder:
        fed = input_shape if inputs is None else inputs
        dtype = options.pop("dtype", None)
        if dtype not in (None, *plan.DTYPES):
            raise UnknownName("dtype", str(dtype), plan.DTYPES)
        experiment = model_comparison.side_by_side(
            models, fed, dtype, folder, names=tuple(named), batch=options.get("batch")
        )
        if any(case.batch is not None for case in experiment.cases):  # that of the tensors, as was just agreed
            options.pop("batch", None)
        return _execute(experiment, experiment.name, **options)


def compare(
    *models: str | nn.Module | Mapping[str, str | nn.Module], input_shape: Fed | None = None, **options: Any
) -> Results:
    """Models side by side: costs, speed, the paper's row. The same as `measure` on a list of at least two, or on a
    mapping of names to models.
    """
    chosen: Any = models[0] if len(models) == 1 and isinstance(models[0], Mapping) else list(models)
    if len(chosen) < 2:
        raise InvalidValue(f"compare needs two models or more, and was given {len(chosen)}")
    return measure(chosen, input_shape, **options)


def run(
    study: str | Experiment,
    *,
    scale: str | Sequence[str] | None = None,
    models: Sequence[str] = (),
    depthwise: bool = False,
    **options: Any,
) -> Results:
    """Carry out a study: by name (``"g2_groups"``), by path, or an `Experiment` of your own.

    `models` take the place of those of a study that compares models; `depthwise` shows depthwise convolutions as a part
    of their own in a study that breaks the run time down. Further options: `device`, `runtime`, `threads`, `batch`,
    `dtype`, `allocator`, `select` (label → values), `quick`, `launches`, `budget_s`, `precision`, `seed`, `out` (the
    run's folder), `device_options`, `memory_format`, `mode`, `readings` (`core.run.READINGS`), `watch`. Everything
    measured is on disk before this returns. Raises UnknownName, InvalidValue, DeviceUnavailable, StorageError,
    runner.Interrupted.
    """
    experiment = catalog.load(study) if isinstance(study, str) else study
    if isinstance(experiment, Analysis):
        raise InvalidValue(f"{experiment.name} measures nothing; carry it out with effbench.analyse")
    if models:
        experiment = model_comparison.of_models(experiment, models)
    if depthwise:
        experiment = time_shares.depthwise_apart(experiment)
    if scale:
        wanted = scale.split(",") if isinstance(scale, str) else list(scale)
        options["select"] = {**(options.get("select") or {}), "scale": wanted}
    return _execute(experiment, experiment.name, **options)


def analyse(
    study: str | Analysis, *, select: Mapping[str, Sequence[str]] | None = None, watch: Watch | None = None
) -> Outcome:
    """Carry out an analysis by name (``"metric_predicts_speed"``) or by path. Measures nothing and writes nothing.

    `select` goes to the analysis by label, whose `options` say what it understands. Raises UnknownName, InvalidValue.
    """
    found = catalog.load(study) if isinstance(study, str) else study
    if not isinstance(found, Analysis):
        raise InvalidValue(f"{found.name} is measured, not analysed; carry it out with effbench.run")
    for label in select or {}:
        if label not in found.options:
            raise UnknownName(f"selection of {found.name}", label, found.options)
    told = watch or _unwatched
    outcome: Outcome = found.analyse(select or {}, lambda done, doing: told(Progress(done, doing)))
    return outcome


def resume(directory: str | Path, watch: Watch | None = None) -> Results:
    """Finish an interrupted run without measuring what it already holds."""
    return Results(runner.resume(Path(directory), watch=watch or _unwatched))


def load(reference: str | Path) -> Results:
    """A stored run. Parses JSON and executes nothing. Raises StorageError, CorruptRun."""
    return Results(run_file.load(reference))


def bundle(
    subject: Experiment | Sequence[str],
    directory: str | Path,
    *,
    runtime: str,
    input_shape: Fed | None = None,
    batch: int | None = None,
    dtype: str | None = None,
    select: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
    command: str = "",
    watch: Watch | None = None,
) -> Bundle:
    """Export models, or the cells of a study, for machines without torch, into a folder that is not there yet.

    `runtime` names one or several runtimes of model files, comma between them. What cannot be exported stays in the
    bundle with the reason. Of tensors the bundle keeps the values. Raises UnknownName, InvalidValue,
    StorageError, MissingPackage, and EffbenchError where nothing could be exported.
    """
    optional_packages.require("torch")
    with temporary_folders.folder() as scratch:
        experiment = (
            subject
            if isinstance(subject, Experiment)
            else model_comparison.side_by_side(subject, input_shape, dtype, scratch, batch=batch)
        )
        if not isinstance(subject, Experiment) and experiment.cases[0].batch is not None:
            batch = None  # that of the tensors, as was just agreed
        options: dict[str, Any] = {"batch": batch, "dtype": dtype, "select": select, "seed": seed}
        names = dict.fromkeys(runtime.split(","))
        # plan.make knows the names; one runtime a plan, since a label for it belongs to the run.
        plans = [plan.make(experiment, runtime=name, **options) for name in names]
        model_comparison.require(cell.case.model for cell in plans[0].cells)
        counts = CellCosts(plans[0].cells, plans[0].sampling.silence_s)
        return export.write(plans, Path(directory), cost=counts.cost, command=command, watch=watch or _unwatched)


def run_bundle(
    directory: str | Path,
    *,
    runtime: str | None = None,
    threads: int = 1,
    allocator: str = "retain",
    quick: bool = False,
    launches: int | None = None,
    budget_s: float | None = None,
    precision: float | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    device_options: Mapping[str, Any] | None = None,
    readings: Sequence[str] = (),
    resume: str | Path | None = None,
    command: str = "",
    watch: Watch | None = None,
) -> Results:
    """Measure the models of a bundle as `run` does. Needs no torch.

    `runtime` chooses some of the bundle's; `resume` finishes an interrupted run of it. A model whose output is not the
    one that eager float32 had is a recorded skip. Raises StorageError, CorruptBundle, UnknownName, InvalidValue,
    runner.Interrupted, and EffbenchError where nothing could be measured.
    """
    optional_packages.require("numpy")
    found = stored_bundle.load(directory)
    if resume is not None:
        begun = run_file.load(resume)
        planned, models = stored_bundle.make_plan(found, runtime=begun.environment.runtime)
        stored_bundle.verify(found, models)
        return Results(runner.resume(Path(resume), watch=watch or _unwatched, bundled=planned.bundled))
    chosen = {"launches": launches, "budget_s": budget_s, "precision": precision}
    planned, models = stored_bundle.make_plan(
        found,
        runtime=runtime,
        threads=threads,
        allocator=allocator,
        quick=quick,
        sampling={key: value for key, value in chosen.items() if value is not None},
        seed=seed,
        device_options=device_options,
        readings=readings,
    )
    stored_bundle.verify(found, models)

    def cost(cell: Cell) -> Cost:
        counted = models[cell.id].cost
        if counted is None:
            raise ModelError(models[cell.id].skipped or "the bundle does not know what it costs; bundle it again")
        return counted

    target = Path(out) if out is not None else new_directory(found.experiment.name, planned.device)
    return Results(runner.execute(planned, target, profile=cost, command=command, watch=watch or _unwatched))


def _unwatched(progress: Progress) -> None:
    return None


def _execute(
    experiment: Experiment,
    name: str,
    *,
    device: str = "cpu",
    runtime: str | None = None,
    threads: int = 1,
    batch: int | None = None,
    dtype: str | None = None,
    allocator: str = "retain",
    select: Mapping[str, Sequence[str]] | None = None,
    quick: bool = False,
    launches: int | None = None,
    budget_s: float | None = None,
    precision: float | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    device_options: Mapping[str, Any] | None = None,
    memory_format: str = "contiguous",
    mode: str = "infer",
    readings: Sequence[str] = (),
    command: str = "",
    watch: Watch | None = None,
) -> Results:
    optional_packages.require("torch")
    chosen = {"launches": launches, "budget_s": budget_s, "precision": precision}
    planned = plan.make(
        experiment,
        device=device,
        runtime=runtime,
        threads=threads,
        batch=batch,
        dtype=dtype,
        allocator=allocator,
        select=select,
        quick=quick,
        sampling={key: value for key, value in chosen.items() if value is not None},
        seed=seed,
        device_options=device_options,
        memory_format=memory_format,
        mode=mode,
        readings=readings,
    )
    _require_device(device)
    model_comparison.require(cell.case.model for cell in planned.cells)
    directory = Path(out) if out is not None else new_directory(name, device)
    counts = CellCosts(planned.cells, planned.sampling.silence_s)
    finished = runner.execute(
        planned, directory, profile=counts.cost, bounds=counts.bounds_s, command=command, watch=watch or _unwatched
    )
    return Results(finished)


def _require_device(name: str) -> None:
    """Fail before anything is built when the device is not there. Only asks; makes no context on it."""
    if name.startswith("cuda"):
        from effbench.devices import require_cuda

        require_cuda(name)


def new_directory(name: str, device: str) -> Path:
    """A folder that is not there yet, under results/runs: time, study, device."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    # A study's name is its author's, a folder's is ours.
    stem = f"{stamp}-{re.sub(r'[^A-Za-z0-9_]+', '-', name)[:60]}-{device.replace(':', '')}"
    number, path = 1, run_file.RUNS / stem
    while path.exists():
        number += 1
        path = run_file.RUNS / f"{stem}-{number}"
    return path
