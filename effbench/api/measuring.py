"""Profile, measure and compare models, carry out studies, load and resume runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effbench.analysis import time_shares
from effbench.core.errors import InvalidValue, UnknownName
from effbench.core.inputs import InputsLike
from effbench.core.measure_options import MeasureKeywords, MeasureOptions, document_options, dtype_name
from effbench.core.study import Analysis, Experiment
from effbench.cost import count_in_subprocess, helper_process
from effbench.cost.count_in_subprocess import CellCosts
from effbench.host import optional_packages, temporary_folders
from effbench.results import Results
from effbench.runs import run_file, runner
from effbench.runs.destination import Destination, RunKeywords, WatchKeywords, split_keywords
from effbench.runs.runner import Progress, Watch
from effbench.studies import catalog, model_comparison, plan
from effbench.zoo import check_model, libraries
from effbench.zoo.load_model import DEFAULT_SHAPE

if TYPE_CHECKING:
    import torch
    from torch import nn
    from typing_extensions import Unpack

    from effbench.cost import Profile
    from effbench.report.analysis_outcome import Outcome


class AllKeywords(MeasureKeywords, RunKeywords, total=False):
    """The options of calls that measure and store a run."""


def profile(
    model: str | nn.Module,
    input_shape: InputsLike | None = None,
    *,
    batch: int | None = None,
    dtype: str | torch.dtype | None = None,
    arguments: Mapping[str, Any] | None = None,
    inputs: InputsLike | None = None,
) -> Profile:
    """Count the analytic cost of one forward pass. Measures no time and leaves the model as it was.

    Parameters
    ----------
    model
        A name (``"shufflenet_v2"``, ``"torchvision:resnet18"``, ``"path/file.py:factory"``) or a module.
    input_shape
        Shape without the batch, such as ``(3, 224, 224)``, or an example tensor with the batch, whose values are used
        where values matter. Default: the published shape, or the one that the model's code declares.
    batch
        Images per call. Default: that of the tensors, else 1.
    dtype
        Data type of weights and inputs, which decides the bytes. Default: that of the tensors, else float32.
    arguments
        Keyword arguments that a named model is built with.
    inputs
        Several inputs, or inputs of other dtypes: shapes, `Input`s or tensors, in order or by name, such as
        ``{"ids": Input((128,), dtype="int64")}``. Replaces `input_shape`.

    Returns
    -------
    Profile
        Parameters, multiply-adds, activations and memory access, in total (`cost`), by operator and by module.

    Raises
    ------
    UnknownName
        If no model has that name.
    ModelError
        If the model cannot be built, or its forward pass fails.
    InvalidValue
        If `batch`, `dtype` or an input breaks a rule.
    """
    model, dtype = check_model.require_model(model), None if dtype is None else dtype_name(dtype)
    given = input_shape if inputs is None else inputs
    if isinstance(model, str):
        model_comparison.require_models([model])
        shape = given if given is not None else model_comparison.published_shape(model, arguments)
        found = count_in_subprocess.profile(model, shape, batch=batch, dtype=dtype, arguments=arguments)
        return dataclasses.replace(found, model=model)
    from effbench import cost

    shape = given if given is not None else libraries.declared_shape(model) or DEFAULT_SHAPE
    return cost.profile(model, shape, batch=batch, dtype=dtype)


@document_options(AllKeywords, MeasureOptions, Destination)
def measure(
    model: str | nn.Module | Sequence[str | nn.Module] | Mapping[str, str | nn.Module],
    input_shape: InputsLike | None = None,
    *,
    inputs: InputsLike | None = None,
    select: Mapping[str, Sequence[str]] | None = None,
    **options: Unpack[AllKeywords],
) -> Results:
    """Measure a model, or several side by side, in fresh worker processes.

    Every measured block is on disk before the next one starts. `batch` and `dtype` default to those of the tensors that
    are passed. Without `dtype` and tensors a module is measured in the dtype of its first weight, a named model in
    float32.

    Parameters
    ----------
    model
        A name or a module as for `profile`, a list of them, or a mapping that names each for the tables. Modules are
        sent to the workers by cloudpickle. Ratios are to the first.
    input_shape
        Shape without the batch, or an example tensor, as for `profile`. Tensors are sent to the workers; the run keeps
        their shape and SHA-256.
    inputs
        Several inputs, or inputs of other dtypes, as for `profile`.
    select
        Label to values: measure these cells only.
    **options

    Returns
    -------
    Results
        Estimates, tables and figures of what was measured.

    Raises
    ------
    UnknownName
        If a model or the value of an option is unknown.
    ModelError
        If a model is given by a path that is missing, is no Python file, or names no network in it.
    InvalidValue
        If an option or an input breaks a rule.
    DeviceUnavailable
        If this machine has no such device.
    StorageError
        If the folder cannot be written, or holds a run already.
    EffbenchError
        If nothing could be measured.
    KeyboardInterrupt
        On Ctrl-C. The message names the folder, and how to finish the run.
    """
    destination, given = split_keywords(options)
    passed_inputs = input_shape if inputs is None else inputs
    return _measure_models(model, passed_inputs, select, destination, MeasureOptions.of(given))


def _measure_models(
    model: str | nn.Module | Sequence[str | nn.Module] | Mapping[str, str | nn.Module],
    passed_inputs: InputsLike | None,
    select: Mapping[str, Sequence[str]] | None,
    destination: Destination,
    chosen: MeasureOptions,
) -> Results:
    if isinstance(model, Mapping) and all(hasattr(value, "dtype") for value in model.values()):
        check_model.require_model(model, "effbench.measure")  # a state dict, or empty
    named = model if isinstance(model, Mapping) else {}
    models = [model] if isinstance(model, str) or not isinstance(model, (Sequence, Mapping)) else list(model)
    models = list(named.values()) or models
    with temporary_folders.folder() as scratch, destination.progress_watch() as tell, helper_process.reuse_process():
        experiment = model_comparison.make_comparison(
            models, passed_inputs, chosen.dtype, scratch, names=tuple(named), batch=chosen.batch
        )
        chosen = model_comparison.without_batch_of_tensors(experiment, chosen)
        return _measure_study(experiment, chosen, select, destination, tell)


@document_options(AllKeywords, MeasureOptions, Destination)
def compare(
    *models: str | nn.Module | Mapping[str, str | nn.Module],
    input_shape: InputsLike | None = None,
    inputs: InputsLike | None = None,
    select: Mapping[str, Sequence[str]] | None = None,
    **options: Unpack[AllKeywords],
) -> Results:
    """Measure models side by side: costs, speed, the paper's row. Same as `measure` with a list, but stops early.

    It ends once it is decided which model is faster than the first, or that both take the same time, unless `until`,
    `launches`, `precision` or `quick` ask for another end.

    Parameters
    ----------
    *models
        Two models or more, or one mapping of names to models, as for `measure`. Ratios are to the first.
    input_shape
        Shape without the batch, or an example tensor, as for `profile`.
    inputs
        Several inputs, or inputs of other dtypes, as for `profile`.
    select
        Label to values: measure these cells only.
    **options

    Returns
    -------
    Results
        Estimates, tables and figures of what was measured.

    Raises
    ------
    InvalidValue
        If there are fewer than two models.
    EffbenchError
        As for `measure`.
    KeyboardInterrupt
        On Ctrl-C. The message names the folder, and how to finish the run.
    """
    chosen: Any = models[0] if len(models) == 1 and isinstance(models[0], Mapping) else list(models)
    if len(chosen) < 2:
        raise InvalidValue(f"compare needs two models or more, and was given {len(chosen)}")
    destination, given = split_keywords(options)
    asked = MeasureOptions.of(given).for_comparison
    return _measure_models(chosen, input_shape if inputs is None else inputs, select, destination, asked)


@document_options(AllKeywords, MeasureOptions, Destination)
def run(
    study: str | Experiment,
    *,
    scale: str | Sequence[str] | None = None,
    models: Sequence[str] = (),
    depthwise: bool = False,
    select: Mapping[str, Sequence[str]] | None = None,
    **options: Unpack[AllKeywords],
) -> Results:
    """Carry out a study. Every measured block is on disk before the next one starts.

    Parameters
    ----------
    study
        A name (``"g2_groups"``), the path of a study file, or an `Experiment`.
    scale
        Values of the label "scale" to run, such as ``"x1,x4"``.
    models
        Models instead of those of a study that compares models.
    depthwise
        Show depthwise convolutions separately in a study that splits the run time by operator.
    select
        Label to values: measure these cells only. The reference stays.
    **options

    Returns
    -------
    Results
        Estimates, verdicts, tables and figures of what was measured.

    Raises
    ------
    UnknownName
        If the study, a model or the value of an option is unknown.
    ModelError
        If a model is given by a path that is missing, is no Python file, or names no network in it.
    InvalidValue
        If an option breaks a rule, or the study is an `Analysis` (use `analyse`).
    DeviceUnavailable
        If this machine has no such device.
    StorageError
        If the folder cannot be written, or holds a run already.
    EffbenchError
        If the study file fails, or nothing could be measured.
    KeyboardInterrupt
        On Ctrl-C. The message names the folder, and how to finish the run.
    """
    destination, given = split_keywords(options)
    asked = MeasureOptions.of(given)
    experiment = catalog.load(study) if isinstance(study, str) else study
    if isinstance(experiment, Analysis):
        raise InvalidValue(f"{experiment.name} measures nothing; carry it out with effbench.analyse")
    with destination.progress_watch() as tell, helper_process.reuse_process():
        if models:
            experiment = model_comparison.with_models(experiment, models)
        if depthwise:
            experiment = time_shares.with_depthwise_part(experiment)
        if scale:
            select = {**(select or {}), "scale": scale.split(",") if isinstance(scale, str) else list(scale)}
        return _measure_study(experiment, asked, select, destination, tell)


@document_options(WatchKeywords, Destination)
def analyse(
    study: str | Analysis,
    *,
    select: Mapping[str, Sequence[str]] | None = None,
    **options: Unpack[WatchKeywords],
) -> Outcome:
    """Carry out an analysis. Measures nothing and writes nothing.

    Parameters
    ----------
    study
        A name (``"metric_predicts_speed"``), the path of a file, or an `Analysis`.
    select
        Label to values; `Analysis.options` names the labels.
    **options

    Returns
    -------
    Outcome
        Tables and figures, and `write` to store them.

    Raises
    ------
    UnknownName
        If the analysis or a label is unknown.
    InvalidValue
        If the study is an `Experiment` (use `run`).
    EffbenchError
        If the study file is missing or fails.
    """
    found = catalog.load(study) if isinstance(study, str) else study
    if not isinstance(found, Analysis):
        raise InvalidValue(f"{found.name} is measured, not analysed; carry it out with effbench.run")
    for label in select or {}:
        if label not in found.options:
            raise UnknownName(f"selection of {found.name}", label, found.options)
    with Destination(**options).progress_watch() as tell:
        outcome: Outcome = found.analyse(select or {}, lambda done, doing: tell(Progress(done, doing)))
    return outcome


@document_options(WatchKeywords, Destination)
def resume(directory: str | Path, *, launches_now: int | None = None, **options: Unpack[WatchKeywords]) -> Results:
    """Finish an interrupted run. Measures only the launches and rounds that are missing.

    Parameters
    ----------
    directory
        The run's folder.
    launches_now
        Carry out so many launches now, whatever time they are planned for, and leave the others; `Run.complete` of the
        returned run is False while any is left. Default: all of them, each at its time.
    **options

    Returns
    -------
    Results
        Estimates, verdicts, tables and figures of the whole run.

    Raises
    ------
    InvalidValue
        If `launches_now` is not 1 or more.
    StorageError
        If there is no run in that folder, or another process is writing to it.
    CorruptRun
        If its file cannot be read.
    NotComparable
        If the machine or a model's file differs from that at the start of the run.
    EffbenchError
        If it is a run of a bundle (use `run_bundle`), of a module or tensors of a Python session that has ended, or was
        stopped before anything was measured; also if nothing could be measured.
    KeyboardInterrupt
        On Ctrl-C. The message names the folder, and how to finish the run.
    """
    with Destination(**options).progress_watch() as tell:
        return Results(runner.resume(Path(directory), watch=tell, launches_now=launches_now))


def load(reference: str | Path) -> Results:
    """Load a stored run. Parses JSON and executes no code.

    Parameters
    ----------
    reference
        The run's folder, or its run.jsonl.

    Returns
    -------
    Results
        Estimates, verdicts, tables and figures of the run.

    Raises
    ------
    StorageError
        If there is no run there.
    CorruptRun
        If its file cannot be read.
    """
    return Results(run_file.load(reference))


def _measure_study(
    experiment: Experiment,
    options: MeasureOptions,
    select: Mapping[str, Sequence[str]] | None,
    destination: Destination,
    tell: Watch,
) -> Results:
    optional_packages.require("torch")
    planned = plan.make(experiment, options, select=select)
    if options.device.startswith("cuda"):
        from effbench.devices import require_cuda

        require_cuda(options.device)  # early, and without a CUDA context in this process
    model_comparison.require_models(cell.case.model for cell in planned.cells)
    counts = CellCosts(planned.cells, planned.sampling.silence_s)
    with destination.folder(experiment.name, options.device) as folder:
        finished = runner.execute(
            planned,
            folder,
            profile=counts.cost,
            bounds=counts.bounds_s,
            command=destination.command,
            watch=tell,
            **destination.ending,
        )
        return Results(destination.without_temporary_path(finished))
