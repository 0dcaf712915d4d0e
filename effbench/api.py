"""The Python API: what notebooks and scripts call, and what the command line is a thin skin over."""

from __future__ import annotations

import dataclasses
import datetime
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effbench import breakdown, catalog, claims, lineup, plan, runner, storage, summary
from effbench.analysis import Analysis
from effbench.breakdown import Split
from effbench.core import Cell, Cost, Experiment, Run, Verdict
from effbench.errors import InvalidValue, ModelError, StorageError, UnknownName
from effbench.lineup import Fed
from effbench.measurement import counting
from effbench.runner import Progress, Watch
from effbench.summary import CellSummary
from effbench.zoo import libraries
from effbench.zoo.external import DEFAULT_SHAPE

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure
    from torch import nn

    from effbench.cost import Kernel, Profile
    from effbench.measurement.counting import Counted
    from effbench.peaks import Peaks
    from effbench.report.grid import Table
    from effbench.report.outcome import Outcome


def profile(
    model: str | nn.Module,
    input_shape: Fed | None = None,
    *,
    batch: int = 1,
    dtype: str = "float32",
    arguments: Mapping[str, Any] | None = None,
    inputs: Fed | None = None,
) -> Profile:
    """Analytic cost of one forward pass: counts, no clock. Nothing about the model is changed.

    `model` is a name (``"shufflenet_v2"``, ``"path/file.py:factory"``) or a module; `input_shape` excludes the batch
    and defaults to what the network was published with, or says itself (`libraries.own_shape`). A network of several
    inputs, or of others than floats, takes `inputs`: shapes, `core.Input`s or tensors, in order or by name
    (``{"ids": Input((128,), dtype="int64")}``). Raises UnknownName, ModelError, InvalidValue.
    """
    fed = input_shape if inputs is None else inputs
    if isinstance(model, str):
        lineup.require([model])
        shape = fed if fed is not None else lineup.published_shape(model, arguments)
        found = counting.profile(model, shape, batch=batch, dtype=dtype, arguments=arguments)
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
    names the models as tables shall call them. Options are those of `run`, less `scale` and `select`. With several
    models every ratio is to the first. Raises EffbenchError and its kin.
    """
    named = model if isinstance(model, Mapping) else {}
    models = [model] if isinstance(model, str) or not isinstance(model, (Sequence, Mapping)) else list(model)
    models = list(named.values()) or models
    with tempfile.TemporaryDirectory(prefix="effbench-") as scratch:
        fed = input_shape if inputs is None else inputs
        dtype = options.pop("dtype", None) or "float32"
        experiment = lineup.side_by_side(models, fed, dtype, Path(scratch), names=tuple(named))
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
    run's folder), `device_options`, `watch`. Everything measured is on disk before this returns. Raises UnknownName,
    InvalidValue, DeviceUnavailable, StorageError, runner.Interrupted.
    """
    experiment = catalog.load(study) if isinstance(study, str) else study
    if isinstance(experiment, Analysis):
        raise InvalidValue(f"{experiment.name} measures nothing; carry it out with effbench.analyse")
    if models:
        experiment = lineup.of_models(experiment, models)
    if depthwise:
        experiment = breakdown.depthwise_apart(experiment)
    if scale:
        wanted = scale.split(",") if isinstance(scale, str) else list(scale)
        options["select"] = {**(options.get("select") or {}), "scale": wanted}
    return _execute(experiment, experiment.name, **options)


def analyse(study: str | Analysis, *, select: Mapping[str, Sequence[str]] | None = None) -> Outcome:
    """Carry out an analysis by name (``"metric_predicts_speed"``) or by path. Measures nothing and writes nothing.

    `select` goes to the analysis by label, whose `options` say what it understands. Raises UnknownName, InvalidValue.
    """
    found = catalog.load(study) if isinstance(study, str) else study
    if not isinstance(found, Analysis):
        raise InvalidValue(f"{found.name} is measured, not analysed; carry it out with effbench.run")
    for label in select or {}:
        if label not in found.options:
            raise UnknownName(f"selection of {found.name}", label, found.options)
    outcome: Outcome = found.analyse(select or {})
    return outcome


def resume(directory: str | Path, watch: Watch | None = None) -> Results:
    """Finish an interrupted run without measuring what it already holds."""
    return Results(runner.resume(Path(directory), watch=watch or _unwatched))


def load(reference: str | Path) -> Results:
    """A stored run. Parses JSON and executes nothing. Raises StorageError, CorruptRun."""
    return Results(storage.load(reference))


@dataclass(frozen=True)
class Results:
    """A run with what follows from it: estimates, verdicts, tables and figures, computed when asked for."""

    run: Run

    @cached_property
    def cells(self) -> tuple[CellSummary, ...]:
        """One estimate per cell, in study order."""
        return summary.summarise(self.run)

    @cached_property
    def verdicts(self) -> tuple[Verdict, ...]:
        """One verdict per claim and scale; empty for a comparison of models."""
        return claims.judge(self.run, self.cells)

    @cached_property
    def breakdown(self) -> tuple[Split, ...]:
        """Where each model's time went; empty for a study that does not ask."""
        return breakdown.split(self.run)

    @property
    def directory(self) -> Path | None:
        """The folder that holds the raw blocks."""
        return None if self.run.path is None else Path(self.run.path).parent

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of ``--json``."""
        from effbench.report import document

        return document.run_document(self.run, self.cells, self.verdicts)

    def to_frame(self) -> pandas.DataFrame:
        """One row a cell: labels, costs, `latency_s`, `ratio` with bounds, the paper's ratio, flags.

        A label that is called like one of these, such as G1's ratio, has ``_label`` behind its name.
        """
        import pandas

        return pandas.DataFrame([_frame_row(cell) for cell in self.cells])

    def blocks_frame(self) -> pandas.DataFrame:
        """One row a raw block: launch, round, position, cell, calls and every clock in nanoseconds."""
        import pandas

        return pandas.DataFrame(
            {"launch": block.launch, "round": block.round, "position": block.position, "cell": block.cell}
            | dataclasses.asdict(block.timing)
            for result in self.run.results
            for block in result.blocks
        )

    def plot(self) -> Figure:
        """The run's main figure: ratios against the factor of a study, or models against their costs.

        Raises InvalidValue for a run without cells.
        """
        from effbench import report

        found = report.figures(self.run, self.cells, self.verdicts)
        if not found:
            raise InvalidValue("this run holds no cells, so there is nothing to draw")
        return found["figure"]

    def tables(self) -> list[Table]:
        """What the command line prints: the cells, then whatever else the run holds."""
        from effbench import report

        return list(report.tables(self.run, self.cells, self.verdicts).values())

    def write(self, directory: str | Path | None = None) -> dict[str, Path]:
        """Write tables and figures beside the run, or into `directory`. Returns the files by what they are. Raises
        StorageError.
        """
        from effbench import report

        target = self.directory if directory is None else Path(directory)
        if target is None:
            raise StorageError("this run was never stored; name a directory to write to")
        return report.write_all(self.run, self.cells, self.verdicts, target)

    def __str__(self) -> str:
        from effbench.report import table

        return "\n\n".join(table.render_markdown(item) for item in self.tables())

    def __repr__(self) -> str:
        # A notebook stores this beside the tables: the raw blocks would fill it.
        return f"<Results of {self.run.experiment.name}: {len(self.run.results)} cells>"

    def _repr_markdown_(self) -> str:
        return str(self)


def _frame_row(cell: CellSummary) -> dict[str, Any]:
    cost = cell.cost
    measured = {
        "batch": cell.cell.batch,
        "params": None if cost is None else cost.params,
        "madds": None if cost is None else cost.madds,
        "memory_access": None if cost is None else cost.memory_access,
        "memory_access_bytes": None if cost is None else cost.memory_access_bytes,
        "latency_s": None if cell.latency is None else cell.latency.point,
        "latency_low_s": None if cell.latency is None else cell.latency.low,
        "latency_high_s": None if cell.latency is None else cell.latency.high,
        "throughput": cell.throughput,
        "ratio": None if cell.ratio is None else cell.ratio.point,
        "ratio_low": None if cell.ratio is None else cell.ratio.low,
        "ratio_high": None if cell.ratio is None else cell.ratio.high,
        "paper_ratio": cell.paper_ratio,
        "bound": cell.bound,
        "flags": ", ".join(cell.flags),
        "skipped": cell.skipped,
    }
    # G1's factor is called ratio, and so is what is measured.
    labels = {f"{name}_label" if name in measured else name: value for name, value in cell.cell.case.labels.items()}
    return {"id": cell.cell.id, **labels, **measured}


def _unwatched(progress: Progress) -> None:
    return None


def _execute(
    experiment: Experiment,
    name: str,
    *,
    device: str = "cpu",
    runtime: str = "eager",
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
    command: str = "",
    watch: Watch | None = None,
) -> Results:
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
    )
    _require_device(device)
    lineup.require(cell.case.model for cell in planned.cells)
    directory = Path(out) if out is not None else new_directory(name, device)
    counts = _Counts(planned)
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
    number, path = 1, storage.RUNS / stem
    while path.exists():
        number += 1
        path = storage.RUNS / f"{stem}-{number}"
    return path


class _Counts:
    """What the cells of a plan cost. A stranger's networks are all counted when the first is asked for."""

    def __init__(self, planned: plan.Plan) -> None:
        self._planned = planned
        self._apart: dict[str, Counted | str] = {}
        self._kernels: dict[str, Mapping[str, Sequence[Kernel]]] = {}

    def cost(self, cell: Cell) -> Cost:
        """Raises ModelError, InvalidValue."""
        case = cell.case
        if counting.is_foreign(case.model):
            if not self._apart:
                foreign = [cell for cell in self._planned.cells if counting.is_foreign(cell.case.model)]
                self._apart.update(counting.count_apart(foreign, self._planned.sampling.silence_s))
            found: Counted | Profile | str = self._apart[cell.id]
        else:
            found = profile(case.model, case.fed, batch=cell.batch, dtype=case.dtype, arguments=case.arguments)
        if isinstance(found, str):
            raise ModelError(found)
        self._kernels[cell.id] = found.kernels
        return found.cost

    def bounds_s(self, cell: Cell, peaks: Peaks) -> dict[str, float]:
        """The least seconds of one call at each level, of a cell whose cost was asked for."""
        from effbench.cost import bounds_s

        return bounds_s(self._kernels[cell.id], peaks)
