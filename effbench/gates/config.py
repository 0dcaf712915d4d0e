"""The configuration of `effbench check`: models, budgets and tolerances, from effbench.toml or the command line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
from msgspec import Meta

from effbench.core import inputs as core_inputs
from effbench.core import parsing, toml_file, units
from effbench.core.errors import EffbenchError, InvalidValue, UnknownName
from effbench.core.inputs import FLOATS, Input
from effbench.core.measure_options import Allocator, MeasureOptions

FILE = "effbench.toml"

QUANTITIES = ("madds", "params", "memory_access", "memory_access_bytes", "activations")
"""Counts that can have a budget (``max_madds`` and so on), of one forward pass of the whole batch."""

YARDSTICK = "yardstick"
"""The reserved name of the model that a stored baseline measures beside the user's."""

TOLERANCE = 0.03
COUNT_TOLERANCE = 0.005
"""The default tolerance of instruction counts: five times the largest difference between two counts of one code."""
BUDGET_S = 600.0


def _number_or_text(parse: Callable[[str], Any], kind: Any) -> Callable[[Any], Any]:
    """A converter for values that are a number, or a string such as "3%"."""
    return lambda value: parse(value) if isinstance(value, str) else msgspec.convert(value, kind)


def _count(value: Any) -> int:
    found = _number_or_text(units.amount, Annotated[int, Meta(ge=0)])(value)
    if found >= 10**30:
        raise ValueError
    return int(found)


def _inputs(value: Any) -> tuple[Input, ...]:
    found = parsing.inputs(msgspec.convert(value if isinstance(value, list) else [value], list[str]))
    if not found:
        raise ValueError
    return found


def _arguments(value: Any) -> dict[str, Any]:
    json.dumps(value, allow_nan=False)  # refuses TOML dates
    return msgspec.convert(value, dict[str, Any])


@dataclass(frozen=True)
class _Key:
    """A key of effbench.toml: its expected value for error messages, and a converter where the type is not enough.

    `name` is the name of the key where it differs from that of the field.
    """

    expected: str
    read: Callable[[Any], Any] | None = None
    name: str = ""


_Keys = dict[str, tuple[str, Any, _Key]]
"""Each key with its field, its type and its `_Key`."""

Text = Annotated[str, Meta(pattern=r"\S")]
Above = Annotated[int, Meta(ge=1, lt=2**31)]
Dtype = Annotated[str, Meta(pattern=rf"^({'|'.join(FLOATS)})\Z")]

_SHARE = _number_or_text(parsing.share, Annotated[float, Meta(gt=0, lt=1)])
_TIME = _number_or_text(parsing.seconds, Annotated[float, Meta(gt=0, lt=1e9)])

_BATCH = _Key("a whole number of 1 or more")
_DTYPE = _Key(f"one of {', '.join(FLOATS)}")
_TOLERANCE = _Key('a share such as "3%" or 0.03', _SHARE)


@dataclass(frozen=True)
class Subject:
    """One model to check, under the `name` that reports show.

    `model` is a spec for `zoo.resolve`; the path of a file is kept as it was written. `inputs` is None where the
    model's own input shape is looked up. `budgets` are the upper limits of `QUANTITIES`. In every other field None
    means the value of the whole check.
    """

    name: str
    model: Annotated[Text, _Key('a model such as "nets.py:small" or "mobilenet_v2"')]
    inputs: Annotated[
        tuple[Input, ...] | None, _Key('an input such as "3x32x32", or a list of such inputs', _inputs, "input")
    ] = None
    batch: Annotated[Above | None, _BATCH] = None
    dtype: Annotated[Dtype | None, _DTYPE] = None
    arguments: Annotated[Mapping[str, Any], _Key("a table of keyword arguments for the model", _arguments)] = field(
        default_factory=dict
    )
    tolerance: Annotated[float | None, _TOLERANCE] = None
    budgets: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Config:
    """The models to check and the options of the check. Paths of models and `baseline` are relative to `folder`.

    None means not given: a stored run may provide the value, and `options` fills in the default. `tolerance` and
    `alpha` are shares, `budget_s` is in seconds. `paths` are the folders inside `folder` that modules are imported
    from.
    """

    subjects: tuple[Subject, ...] = ()
    folder: Path = Path()
    device: Annotated[Text | None, _Key('a device such as "cpu" or "cuda:1"')] = None
    threads: Annotated[Annotated[int, Meta(ge=0, lt=2**31)] | None, _Key("a whole number, 0 for every core")] = None
    batch: Annotated[Above | None, _BATCH] = None
    dtype: Annotated[Dtype | None, _DTYPE] = None
    allocator: Annotated[Allocator | None, _Key('"retain" or "system"')] = None
    seed: int | None = None
    tolerance: Annotated[float | None, _TOLERANCE] = None
    launches: Annotated[Above | None, _Key("a whole number of 1 or more")] = None
    budget_s: Annotated[float | None, _Key('a time such as "10m" or "90s"', _TIME, "budget")] = None
    alpha: Annotated[float | None, _Key('a share such as "5%" or 0.05', _SHARE)] = None
    inconclusive: Annotated[Literal["fail", "pass"], _Key('"fail" or "pass"')] = "fail"
    same_costs: Annotated[bool, _Key("true or false")] = False
    count: Annotated[Literal["instructions"] | None, _Key('"instructions"')] = None
    baseline: Annotated[Text | None, _Key("the path of a stored run or profile")] = None
    paths: Annotated[
        Annotated[tuple[Text, ...], Meta(min_length=1)], _Key('a list of folders to import from, such as ["src"]')
    ] = (".", "src")

    def tolerance_of(self, name: str) -> float:
        """The tolerance of this subject: its own, else that of the check, else the default."""
        own = next((item.tolerance for item in self.subjects if item.name == name), None)
        return own or self.tolerance or (COUNT_TOLERANCE if self.count else TOLERANCE)

    def options(self) -> MeasureOptions:
        """The measuring options with defaults filled in, without `batch` and `dtype`, which each subject has."""
        said = {name: getattr(self, name) for name in ("device", "threads", "allocator", "seed", "launches")}
        said["budget_s"] = self.budget_s or BUDGET_S
        return MeasureOptions.of({name: value for name, value in said.items() if value is not None})

    def located(self, subject: Subject) -> str:
        """The subject's model with its path relative to the current folder.

        Only a relative ``path/file.py:factory`` depends on the folder; every other spec is returned unchanged.
        """
        name, question, query = subject.model.partition("?")
        place, _, attribute = name.rpartition(":")
        if not place.endswith(".py") or Path(place).is_absolute():
            return subject.model
        path = os.path.normpath(self.folder / place)
        return f"{path}:{attribute}{question}{query}"


def find(path: Path | None = None, models: Sequence[str] = (), *, needs_models: bool = True) -> Config:
    """Load the configuration from `path`, else from ./effbench.toml, and keep `models` only (all if none are given).

    ./effbench.toml is used only if it defines all of `models`; otherwise the models are checked without a file. With
    `needs_models` false, no models and no file give an empty configuration instead of an error. Raises StorageError,
    InvalidValue, UnknownName.
    """
    here = Path(FILE)
    if path is not None or (here.is_file() and not models):
        found = load(path or here)
        return choose_models(found, models) if models else found
    if not models:
        if not needs_models:
            return Config()
        raise InvalidValue(
            f"there is no MODEL and no {FILE} here; name a model, or begin an {FILE} with three lines: "
            '[models.small], model = "nets.py:small", max_madds = "10M"'
        )
    if here.is_file():
        found = load(here)
        if {subject.name for subject in found.subjects}.issuperset(models):
            return choose_models(found, models)
    return choose_models(Config(), models)


def load(path: Path) -> Config:
    """Read a configuration file. Raises StorageError, InvalidValue, UnknownName in one line that names the key."""
    tables = toml_file.read(path)
    for key in tables:
        if key not in ("check", "models"):
            raise UnknownName(f"table in {path}", key, ("check", "models"))
    models = tables.get("models", {})
    if not isinstance(models, dict) or not all(isinstance(table, dict) for table in models.values()):
        raise InvalidValue(f"{path}: models must be tables, such as [models.small]")
    whole = tables.get("check", {})
    if not isinstance(whole, dict):
        raise InvalidValue(f"{path}: check = {_shorten(whole)}: expected a table, [check]")
    subjects = tuple(_subject(path, name, table) for name, table in models.items())
    return replace(Config(**_read(path, "check", whole, _CHECK)), subjects=subjects, folder=path.parent)


def choose_models(config: Config, models: Sequence[str]) -> Config:
    """The configuration with these models only: subjects of `config` by name, or new model specs.

    Raises InvalidValue for a model that is given twice.
    """
    known = {subject.name: subject for subject in config.subjects}
    for name in models:
        if models.count(name) > 1:
            raise InvalidValue(f"'{name}' is named twice; name each model once")
        _refuse_name(name, f"'{name}'")
    return replace(config, subjects=tuple(known.get(name, Subject(name, name)) for name in models))


def with_options(config: Config, options: Mapping[str, Any], budgets: Mapping[str, int]) -> Config:
    """The configuration with the options of the command line: fields of `Config`, and budgets for every subject.

    Options batch, dtype, inputs and tolerance override those of every subject. Raises InvalidValue, UnknownName.
    """
    dtype = options.get("dtype")
    for name in ("batch", "launches"):
        if options.get(name) is not None:
            core_inputs.whole_number(options[name], name)
    if dtype is not None and dtype not in FLOATS:
        raise UnknownName("dtype", dtype, FLOATS)
    own = {key: options[key] for key in ("batch", "dtype", "tolerance", "inputs") if options.get(key) is not None}
    subjects = tuple(replace(subject, **own, budgets={**subject.budgets, **budgets}) for subject in config.subjects)
    said = {key: value for key, value in options.items() if value is not None and key != "inputs"}
    return replace(config, subjects=subjects, **said)


# --- reading ----------------------------------------------------------------------------------------


def _subject(path: Path, name: str, table: Mapping[str, Any]) -> Subject:
    _refuse_name(name, f"{path}: [models.{name}]")
    found = _read(path, f"models.{name}", table, _MODEL)
    budgets = {key: found.pop(f"max_{key}") for key in QUANTITIES if f"max_{key}" in found}
    return Subject(name, found.pop("model", name), budgets=budgets, **found)


def _refuse_name(name: str, where: str) -> None:
    if not name.strip() or name == YARDSTICK:
        taken = f"effbench reserves '{YARDSTICK}' for its own model" if name else "it is empty"
        raise InvalidValue(f"{where} cannot be the name of a model: {taken}; choose another")


def _read(
    path: Path, table: str, found: Mapping[str, Any], keys: Mapping[str, tuple[str, Any, _Key]]
) -> dict[str, Any]:
    """Convert the keys of a table to fields. Raises UnknownName and InvalidValue that name the key."""
    fields = {}
    for name, value in found.items():
        if name not in keys:
            raise UnknownName(f"key in [{table}] of {path}", name, keys)
        field, kind, key = keys[name]
        try:
            fields[field] = msgspec.convert(value, kind) if key.read is None else key.read(value)
        except (TypeError, ValueError, EffbenchError, msgspec.ValidationError):
            raise InvalidValue(f"{path}: [{table}] {name} = {_shorten(value)}: expected {key.expected}") from None
    return fields


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _keys(noun: type) -> _Keys:
    """The keys of the table that holds a `noun`, from its annotations."""
    found = {}
    for name, kind in get_type_hints(noun, include_extras=True).items():
        key = getattr(kind, "__metadata__", ())[-1:]
        if key and isinstance(key[0], _Key):
            found[key[0].name or name] = (name, kind, key[0])
    return found


_CHECK = _keys(Config)
_MODEL = _keys(Subject)
_MODEL |= {f"max_{name}": (f"max_{name}", int, _Key('a count such as "300M" or 20_000', _count)) for name in QUANTITIES}
