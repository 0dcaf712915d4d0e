"""Load and check a bundle, and make the plan of its run. Without torch.

Schema history
    1   2026-11: first.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from effbench import runtimes
from effbench.core import decoding
from effbench.core.cost import Cost
from effbench.core.errors import EffbenchError, StorageError, UnknownName
from effbench.core.measure_options import DTYPES, MeasureOptions
from effbench.core.study import Cell, Experiment
from effbench.host import streams
from effbench.runs import schema
from effbench.runtimes.model_file import FACTS_FILE
from effbench.studies import plan
from effbench.studies.plan import Bundled, Plan
from effbench.timing.reference_io import EXPECTED_FILE, INPUTS_FILE

BUNDLE_FILE = "bundle.json"
REQUIREMENTS_FILE = "requirements.txt"
SCHEMA = 1


class CorruptBundle(EffbenchError):
    """A bundle that is incomplete or was changed. The message names the fault."""


@dataclass(frozen=True)
class Model:
    """A cell with its cost and the files of its model.

    Attributes
    ----------
    cell
        What is measured.
    cost
        Counts of the network; None if they could not be made.
    folder
        Folder of the files, relative to the bundle; ``""`` without files.
    files
        Names in that folder, with their SHA-256.
    facts
        What the export recorded, such as ``prepare_s`` (seconds) and ``artefact_bytes``.
    skipped
        Why there are no files; None if there are.
    """

    cell: Cell
    cost: Cost | None = None
    folder: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    skipped: str | None = None


@dataclass(frozen=True)
class _Description:
    """The fields of `BUNDLE_FILE` that are read."""

    experiment: Experiment
    cells: tuple[Model, ...]
    versions: Mapping[str, Any]


@dataclass(frozen=True)
class Bundle:
    """The content of a bundle: a study, and one model for each runtime and case.

    Attributes
    ----------
    directory
        Folder of the bundle.
    experiment
        The study.
    models
        Exported models, in the study's order.
    versions
        Versions of effbench, torch, numpy and the packages of the runtimes that made the bundle.
    digest
        SHA-256 of ``bundle.json``, which a run of the bundle records.
    """

    directory: Path
    experiment: Experiment
    models: tuple[Model, ...]
    versions: Mapping[str, Any]
    digest: str

    @property
    def runtimes(self) -> tuple[str, ...]:
        """Names of the runtimes, in order."""
        return tuple(dict.fromkeys(model.cell.runtime for model in self.models))


def load(directory: str | Path) -> Bundle:
    """Load the description of a bundle. Reads no model and executes no code.

    Raises StorageError for a folder without a bundle, CorruptBundle for an invalid one.
    """
    path = Path(directory) / BUNDLE_FILE
    if streams.readable(str(path.absolute())) != str(path.absolute()):
        raise StorageError(
            f"the locale cannot encode the path of {directory}, which runtimes need; set PYTHONUTF8=1, or move it"
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StorageError(
            f"there is no bundle at {directory} ({path.name}: {error.strerror or error}); make one with effbench bundle"
        ) from error
    try:
        values = decoding.parse(data)
        if (newer := schema.newer_schema_message(values["bundle"], SCHEMA)) is None:
            raise ValueError("it has no schema number")
        if newer:
            raise CorruptBundle(f"{path} {newer}")
        found = decoding.decode(values, _Description, closed=False)
        models = tuple(map(_require_measurable, found.cells))
        bundle = Bundle(Path(directory), found.experiment, models, found.versions, hashlib.sha256(data).hexdigest())
        _require_whole(bundle)
    except schema.FAULTS as error:
        raise CorruptBundle(
            f"{path} does not describe a bundle: {schema.describe_error(error)}; copy it again"
        ) from error
    return bundle


def verify(bundle: Bundle, models: Mapping[str, Model]) -> None:
    """Raise CorruptBundle if a file of these models is missing, is a link, or has another SHA-256."""
    for model in models.values():
        for name, digest in model.files.items():
            path = bundle.directory / model.folder / name
            if path.resolve() != bundle.directory.resolve() / model.folder / name or not path.is_file():
                raise CorruptBundle(f"{path} is missing, or is not a file of the bundle's own; copy the bundle again")
            if sha256(path) != digest:
                raise CorruptBundle(f"{path} is not what was exported: its SHA-256 differs; copy the bundle again")
            if name == FACTS_FILE:
                _require_facts(path)


def make_plan(bundle: Bundle, options: MeasureOptions | None = None) -> tuple[Plan, dict[str, Model]]:
    """The plan of a run of this bundle, and the model of each cell by id.

    The option `runtime` selects from the bundle's runtimes. Default: all. The run has a fixed number of launches, even
    where its study stops by itself: to decide that takes scipy. Raises UnknownName, InvalidValue.
    """
    asked = options or MeasureOptions()
    names = bundle.runtimes if asked.runtime is None else tuple(dict.fromkeys(asked.runtime.split(",")))
    for name in names:
        if name not in bundle.runtimes:
            raise UnknownName("runtime in this bundle", name, bundle.runtimes)
    without_torch = {**asked.device_options, "torch": False}
    planned = plan.make(
        bundle.experiment, asked, runtime=",".join(names), device_options=without_torch, until="launches"
    )
    found = [model for name in names for model in bundle.models if model.cell.runtime == name]
    cells = [replace(cell, batch=model.cell.batch) for cell, model in zip(planned.cells, found, strict=True)]
    models = {cell.id: model for cell, model in zip(cells, found, strict=True)}
    bundled = Bundled(
        folder=str(bundle.directory),
        digest=bundle.digest,
        models={name: str((bundle.directory / model.folder).resolve()) for name, model in models.items()},
        absent={
            name: reason for name, model in models.items() if (reason := _why_unavailable(bundle, model)) is not None
        },
    )
    return replace(planned, cells=tuple(cells), bundled=bundled), models


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest()


def _why_unavailable(bundle: Bundle, model: Model) -> str | None:
    """Why this model cannot be measured here, if that is known before the run; else None."""
    missing = runtimes.why_unavailable(model.cell.runtime)
    if model.skipped is not None or missing is None:
        return model.skipped
    # Not an extra of effbench, which would install torch as well.
    return f"{missing.partition(';')[0]}; pip install -r {bundle.directory / REQUIREMENTS_FILE}"


def _require_measurable(model: Model) -> Model:
    """Check one model. Raises ValueError if it cannot be measured, or its files are outside of the bundle."""
    cell = model.cell
    schema.require_possible_values(cell, model.cost)
    if not runtimes.exists(cell.runtime):
        raise ValueError(f"there is no runtime {cell.runtime[:40]!r}")
    if cell.case.dtype not in DTYPES:
        raise ValueError(f"there is no dtype {cell.case.dtype[:40]!r}")
    if model.skipped is not None:
        return Model(cell, model.cost, skipped=model.skipped)
    for name in (model.folder, *model.files):
        require_inside(name)
    for name in (FACTS_FILE, INPUTS_FILE, EXPECTED_FILE):
        if name not in model.files:
            raise ValueError(f"{model.folder} has no {name}")
    return model


def require_inside(name: str) -> None:
    """Raise ValueError for a path that may lead out of its folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or not path.parts or ".." in path.parts or "\\" in name or ":" in name or "\0" in name:
        raise ValueError(f"{name[:60]!r} may lie outside of the bundle")


def _require_facts(path: Path) -> None:
    """Raise CorruptBundle if the facts of the export cannot be stored in a run."""
    try:
        json.dumps(schema.check_probe(decoding.parse(path.read_bytes())), allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise CorruptBundle(
            f"{path} does not describe a model ({schema.describe_error(error)}); bundle it again"
        ) from error


def _require_whole(bundle: Bundle) -> None:
    """Raise ValueError unless there is one model for each case under each runtime, in order."""
    cases = bundle.experiment.cases
    wanted = [(runtime, case) for runtime in bundle.runtimes for case in cases]
    if [(model.cell.runtime, model.cell.case) for model in bundle.models] != wanted or not wanted:
        raise ValueError("its cells are not those of its study")
    if len({case.id for case in cases}) < len(cases):
        raise ValueError("two of its cases have the same name")
