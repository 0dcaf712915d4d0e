"""The models of a comparison: check their names, find their input shapes, and make the study that compares them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effbench import zoo
from effbench.core import inputs
from effbench.core.errors import EffbenchError, InvalidValue, ModelError, first_line
from effbench.core.inputs import GivenInputs, Input, InputsLike
from effbench.core.measure_options import MeasureOptions
from effbench.core.study import Case, Experiment
from effbench.cost import count_in_subprocess, example_inputs
from effbench.cost.user_formulas import WithFormulas
from effbench.host.worker_process import Site
from effbench.timing import dtype_cast
from effbench.zoo import check_model, libraries, load_model, model_files, suggest_factories
from effbench.zoo.load_model import DEFAULT_SHAPE

if TYPE_CHECKING:
    from torch import nn


def require_models(models: Iterable[str]) -> None:
    """Raise early for unknown model names. A model that exists but fails to run becomes a skipped cell.

    For a file, folder or module without the name of a model, the error shows the correct form. Raises UnknownName,
    ModelError.
    """
    for model in models:
        name, _ = load_model.split_arguments(model)
        place, _, attribute = name.rpartition(":")
        if load_model.is_of_library(name):
            libraries.require(name)
        elif place and attribute:
            _require_file(place)
            if not place.endswith(".py") and place != "pickle" and Path(place).suffix.lower() in model_files.SUFFIXES:
                raise ModelError(model_files.description(place) or f"there is no file {place}")
        elif zoo.exists(name):
            zoo.entry(name)
        else:
            word = place or name
            _require_file(word)
            said = (suggest_factories.advice(word) or model_files.description(word)) if word else None
            if said:
                raise ModelError(said)
            zoo.entry(name)


def _require_file(place: str) -> None:
    # Path.is_file raises OSError for names that are too long.
    if place.endswith(".py") and not os.path.isfile(place):
        raise ModelError(f"there is no file {place[:200]}; check the path (now in {Path.cwd()})")


def published_shape(model: str, arguments: Mapping[str, Any] | None = None) -> tuple[int, ...] | None:
    """The published input shape of a named model; None for a user's own model."""
    name, _ = load_model.split_arguments(model)
    return load_model.published_shape(model, arguments) if ":" in name else tuple(zoo.entry(name).input_shape)


def input_shapes(
    models: Sequence[str], arguments: Sequence[Mapping[str, Any]] = (), site: Site | None = None
) -> list[tuple[int, ...]]:
    """Find the input shape of each named model: the published one, else the one that its code declares, else a default.

    `arguments` are those of each model's factory, if any. `site` is where the code of user models lies.
    """
    published = [published_shape(model, given) for model, given in itertools.zip_longest(models, arguments)]
    user_models = [model for model in models if count_in_subprocess.is_user_code(model)]
    declared = count_in_subprocess.declared_shapes(user_models, site) if user_models else {}
    return [shape or declared.get(model) or DEFAULT_SHAPE for model, shape in zip(models, published, strict=True)]


def _inputs_of(models: Sequence[str | nn.Module], given: InputsLike | None) -> list[GivenInputs]:
    """The inputs of each model: those given, else those of its shape (`input_shapes`)."""
    if given is not None:
        return [inputs.normalise(given)] * len(models)
    shapes = iter(input_shapes([model for model in models if isinstance(model, str)]))
    return [
        GivenInputs(
            (Input(next(shapes) if isinstance(model, str) else libraries.declared_shape(model) or DEFAULT_SHAPE),)
        )
        for model in models
    ]


def make_comparison(
    models: Sequence[str | nn.Module],
    given: InputsLike | None,
    dtype: str | None,
    scratch: Path,
    names: Sequence[str] = (),
    batch: int | None = None,
) -> Experiment:
    """Make the study that compares these models. The first is the reference; `names` label them, if given.

    Without `dtype`, all are measured in the dtype of the given tensors, else each module in its own. `batch` must match
    the tensors. Modules and tensors are written into `scratch`, which must exist until the run ends. Raises
    UnknownName, ModelError, InvalidValue.
    """
    cases, seen = [], set()
    if not models:
        raise InvalidValue("no model was given; pass one or several")
    for model in models:
        check_model.require_model(model, "effbench.measure")
    require_models(model for model in models if isinstance(model, str))
    for number, (model, model_inputs) in enumerate(zip(models, _inputs_of(models, given), strict=True)):
        if isinstance(model, str):
            spec, name = model, model
        else:
            spec, name = _pickle(model, scratch / f"{number}.pkl"), type(model).__name__
        name = names[number] if names else name
        if name in seen:
            if isinstance(model, str):
                raise InvalidValue(
                    f"'{name}' is named twice; a model is compared with itself by `effbench diff` of two runs"
                )
            name = f"{name}-{number + 1}"
        seen.add(name)
        kind = dtype or model_inputs.dtype or ("float32" if isinstance(model, str) else _dtype_of(model))
        model_inputs.agreed_batch(batch)
        items = example_inputs.store_values(model_inputs, scratch)
        beyond = inputs.explicit_inputs(items)
        cases.append(
            Case(spec, items[0].shape, dtype=kind, labels={"model": name}, inputs=beyond, batch=model_inputs.batch)
        )
    is_single = len(cases) == 1
    name, title = ("measure", str(cases[0].labels["model"])) if is_single else ("compare", "Models side by side")
    return comparison_of(cases, name, title)


def comparison_of(cases: Sequence[Case], name: str, title: str) -> Experiment:
    """Make the study of these cases, each labelled with its model. Ratios are to the first."""
    levels = tuple(case.labels["model"] for case in cases)
    return Experiment(
        name=name,
        title=title,
        claim="How fast is each model on this device, and what does it cost?",
        factor="model",
        levels=levels,
        reference=levels[0],
        cases=tuple(cases),
    )


def without_batch_of_tensors(experiment: Experiment, options: MeasureOptions) -> MeasureOptions:
    """The options for a study of `make_comparison`, without the batch if the study's cases have that of the tensors."""
    return replace(options, batch=None) if experiment.cases[0].batch is not None else options


def _dtype_of(module: nn.Module) -> str:
    """The dtype of the module's first weight if it can be measured in it, else float32."""
    own = dtype_cast.own_dtype(module)
    return own if own in inputs.FLOATS else "float32"


def with_models(study: Experiment, models: Sequence[str]) -> Experiment:
    """The study with its models replaced by `models`. All its other labels are varied for each model.

    Raises InvalidValue for a study that does not compare models.
    """
    if not all("model" in case.labels for case in study.cases):
        raise InvalidValue(
            f"{study.name} varies {study.factor}, not the model; leave out --model, or use `effbench compare`"
        )
    chosen = make_comparison(models, None, "float32", Path())
    if study.factor != "model":
        first = [case for case in study.cases if case.labels["model"] == study.cases[0].labels["model"]]
        pairs = itertools.product(chosen.cases, first)
        return study.with_cases(
            replace(model, batch=case.batch, labels={**case.labels, **model.labels}) for model, case in pairs
        )
    return replace(study, cases=chosen.cases, levels=chosen.levels, reference=chosen.reference, defaults={}, absent={})


def _pickle(module: nn.Module, path: Path) -> str:
    """Pickle a module for the worker processes. `path` is in a temporary folder that only this user can read."""
    import cloudpickle

    try:
        path.write_bytes(cloudpickle.dumps(WithFormulas(module)))
    except Exception as error:  # cloudpickle raises whatever the module's own state raises
        raise EffbenchError(
            f"{type(module).__name__} cannot be sent to a worker process ({first_line(error)}); "
            "put it into a file and name it 'path/file.py:factory'"
        ) from error
    return f"pickle:{path}"
