"""Export models into a bundle, and measure a bundle on a machine without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from effbench.bundles import bundle as stored_bundle
from effbench.bundles import export
from effbench.bundles.bundle import Bundle
from effbench.core.cost import Cost
from effbench.core.errors import InvalidValue, ModelError
from effbench.core.inputs import InputsLike
from effbench.core.measure_options import BundleKeywords, MeasureOptions, document_options
from effbench.core.study import Cell, Experiment
from effbench.cost import helper_process
from effbench.cost.count_in_subprocess import CellCosts
from effbench.host import optional_packages, temporary_folders
from effbench.results import Results
from effbench.runs import recorder, run_file, runner
from effbench.runs.destination import Destination, RunKeywords, WatchKeywords, split_keywords
from effbench.studies import model_comparison, plan

if TYPE_CHECKING:
    import torch
    from typing_extensions import Unpack


class BundleRunKeywords(BundleKeywords, RunKeywords, total=False):
    """The options of `run_bundle`."""


@document_options(WatchKeywords, Destination)
def bundle(
    subject: str | Experiment | Sequence[str],
    directory: str | Path,
    *,
    runtime: str,
    input_shape: InputsLike | None = None,
    batch: int | None = None,
    dtype: str | torch.dtype | None = None,
    select: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
    command: str = "",
    **options: Unpack[WatchKeywords],
) -> Bundle:
    """Export models, or the cells of a study, for machines without torch.

    Parameters
    ----------
    subject
        The name of a model, a list of names, or an `Experiment`.
    directory
        Folder of the bundle, which must be empty or not exist yet.
    runtime
        Runtimes of model files, separated by commas, such as ``"onnxruntime,ncnn"``.
    input_shape
        Shape without the batch, or an example tensor, as for `profile`. The bundle keeps the values of tensors.
    batch
        Images per call. Default: that of the study or of the tensors, else 1.
    dtype
        Data type of the measurement. Default: that of the tensors, else float32.
    select
        Label to values: export these cells only.
    seed
        Seed of weights and inputs.
    command
        Command line to record in the bundle.
    **options

    Returns
    -------
    Bundle
        The exported models. A model that could not be exported is listed with the reason.

    Raises
    ------
    UnknownName
        If a model, a runtime or a label is unknown.
    ModelError
        If a model is given by a path that is missing, is no Python file, or names no network in it.
    InvalidValue
        If a runtime runs no model files, or an option breaks a rule.
    MissingPackage
        If a runtime or its exporter is not installed.
    StorageError
        If the folder is not empty, or cannot be written.
    EffbenchError
        If nothing could be exported.
    """
    optional_packages.require("torch")
    asked = MeasureOptions.of({"batch": batch, "dtype": dtype, "seed": seed})
    with (
        Destination(**options).progress_watch() as tell,
        helper_process.reuse_process(),
        temporary_folders.folder() as scratch,
    ):
        if isinstance(subject, Experiment):
            experiment = subject
        else:
            models = [subject] if isinstance(subject, str) else subject
            if not isinstance(models, Sequence) or not all(isinstance(model, str) for model in models):
                raise InvalidValue(
                    "bundle takes names of models, as `effbench bundle` does; put a module into a file and name it "
                    "'path/file.py:factory'"
                )
            experiment = model_comparison.make_comparison(models, input_shape, asked.dtype, scratch, batch=asked.batch)
            asked = model_comparison.without_batch_of_tensors(experiment, asked)
        names = dict.fromkeys(runtime.split(","))
        # plan.make checks the names. One runtime a plan, since the label `runtime` is added when the bundle is run.
        plans = [plan.make(experiment, asked, runtime=name, select=select) for name in names]
        model_comparison.require_models(cell.case.model for cell in plans[0].cells)
        counts = CellCosts(plans[0].cells, plans[0].sampling.silence_s)
        return export.write(plans, Path(directory), cost=counts.cost, command=command, watch=tell)


@document_options(BundleRunKeywords, MeasureOptions, Destination)
def run_bundle(
    directory: str | Path,
    *,
    resume: str | Path | None = None,
    **options: Unpack[BundleRunKeywords],
) -> Results:
    """Measure the models of a bundle. Needs no torch.

    A model whose output differs from that of eager float32 becomes a skipped cell.

    Parameters
    ----------
    directory
        Folder of the bundle.
    resume
        Folder of an interrupted run of this bundle: finish it, with its own options. Of the others only `progress`,
        `watch` and `launches_now` may be given then.
    **options

    Returns
    -------
    Results
        Estimates, verdicts, tables and figures of what was measured.

    Raises
    ------
    StorageError
        If there is no bundle in that folder, or the run cannot be written.
    CorruptBundle
        If a file of the bundle is missing or was changed.
    UnknownName
        If the bundle has no such runtime.
    InvalidValue
        If an option breaks a rule, or is given together with `resume`.
    CorruptRun
        If the file of the run to resume cannot be read.
    NotComparable
        If the machine differs from that at the start of the run to resume.
    EffbenchError
        If the run to resume is not of this bundle, or nothing could be measured.
    KeyboardInterrupt
        On Ctrl-C. The message names the folder, and how to finish the run.
    """
    optional_packages.require("numpy")
    destination, given = split_keywords(options)
    if resume is not None:
        _refuse_options(options)
    found = stored_bundle.load(directory)
    if resume is not None:
        begun = run_file.load(resume)
        recorder.require_same_bundle(begun, Path(resume), found.digest)
        planned, models = stored_bundle.make_plan(found, MeasureOptions(runtime=begun.environment.runtime))
        stored_bundle.verify(found, models)
        with destination.progress_watch() as tell:
            return Results(
                runner.resume(Path(resume), watch=tell, bundled=planned.bundled, launches_now=destination.launches_now)
            )
    planned, models = stored_bundle.make_plan(found, MeasureOptions.of(given))
    stored_bundle.verify(found, models)

    def cost(cell: Cell) -> Cost:
        counted = models[cell.id].cost
        if counted is None:
            raise ModelError(models[cell.id].skipped or "the bundle lacks its cost; bundle it again")
        return counted

    name, command = found.experiment.name, destination.command
    with destination.progress_watch() as tell, destination.folder(name, planned.device) as folder:
        run = runner.execute(planned, folder, profile=cost, command=command, watch=tell, **destination.ending)
        return Results(destination.without_temporary_path(run))


def _refuse_options(given: Mapping[str, object]) -> None:
    """Raise InvalidValue for options of a new run, which a resumed one would ignore. None counts as not given."""
    taken = (*WatchKeywords.__annotations__, "launches_now")
    ignored = [name for name, value in given.items() if value is not None and name not in taken]
    if ignored:
        raise InvalidValue(f"resume goes on with the options of the stored run; leave out {', '.join(ignored)}")
