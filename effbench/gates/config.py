"""What `effbench check` holds networks to: read from effbench.toml, or from the words of the command line."""

from __future__ import annotations

import codecs
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from effbench.core import inputs as core_inputs
from effbench.core import parsing, units
from effbench.core.errors import EffbenchError, InvalidValue, StorageError, UnknownName
from effbench.core.inputs import FLOATS, Input
from effbench.core.options import Allocator, MeasureOptions

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = "effbench.toml"

QUANTITIES = ("madds", "params", "memory_access", "memory_access_bytes", "activations")
"""What a budget can be given for: ``max_madds`` and so on, of one forward pass of the whole batch."""

YARDSTICK = "yardstick"
"""The name of the network that a stored baseline measures beside the user's; no other may have it."""

TOLERANCE = 0.03
COUNT_TOLERANCE = 0.005
"""Of instructions: five times what two counts of the same code may differ by."""
BUDGET_S = 600.0


@dataclass(frozen=True)
class Subject:
    """One network that is held to something, under the `name` that every report calls it by.

    `model` is what `zoo.resolve` takes, a file's path as it was written. `inputs` is None where the network's own are
    to be found out; `budgets` are the most of each of `QUANTITIES`. None elsewhere is "as the whole check has it".
    """

    name: str
    model: str
    inputs: tuple[Input, ...] | None = None
    batch: int | None = None
    dtype: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float | None = None
    budgets: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Config:
    """What to check and how. `folder` is what relative model files and `baseline` are relative to.

    None is "not said", so that a stored run can say it instead; `options` fills it in. `tolerance` and `alpha` are
    shares, `budget_s` seconds. `paths` are the places in `folder` that modules are imported from.
    """

    subjects: tuple[Subject, ...] = ()
    folder: Path = Path()
    device: str | None = None
    threads: int | None = None
    batch: int | None = None
    dtype: str | None = None
    allocator: str | None = None
    seed: int | None = None
    tolerance: float | None = None
    launches: int | None = None
    budget_s: float | None = None
    alpha: float | None = None
    inconclusive: str = "fail"
    same_costs: bool = False
    count: str | None = None
    baseline: str | None = None
    paths: tuple[str, ...] = (".", "src")

    def tolerance_of(self, name: str) -> float:
        """The tolerance of the subject with this name, else that of the whole check."""
        own = next((item.tolerance for item in self.subjects if item.name == name), None)
        return own or self.tolerance or (COUNT_TOLERANCE if self.count else TOLERANCE)

    def options(self) -> MeasureOptions:
        """How to measure, with every default filled in; `batch` and `dtype` are those of each subject."""
        said = {name: getattr(self, name) for name in ("device", "threads", "allocator", "seed", "launches")}
        said["budget_s"] = self.budget_s or BUDGET_S
        return MeasureOptions.of({name: value for name, value in said.items() if value is not None})

    def located(self, subject: Subject) -> str:
        """The subject's model with its file's path from here.

        Only a relative ``path/file.py:factory`` depends on a folder; every other word stays as it is.
        """
        name, question, query = subject.model.partition("?")
        place, _, attribute = name.rpartition(":")
        if not place.endswith(".py") or Path(place).is_absolute():
            return subject.model
        path = os.path.normpath(self.folder / place)
        return f"{path}:{attribute}{question}{query}"


def find(path: Path | None = None, models: Sequence[str] = (), *, needs_models: bool = True) -> Config:
    """The configuration of these models, of all without any: from this file, else from ./effbench.toml.

    A file that was not asked for is read only where it has all the models. `needs_models` says that nothing else could
    name them. Raises StorageError, InvalidValue, UnknownName.
    """
    here = Path(FILE)
    if path is not None or (here.is_file() and not models):
        found = load(path or here)
        return chosen(found, models) if models else found
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
            return chosen(found, models)
    return chosen(Config(), models)


def load(path: Path) -> Config:
    """The configuration in a file. Raises StorageError, InvalidValue, UnknownName in one line that names the key."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read {path} ({error.strerror or error}); check the path") from error
    try:
        tables = tomllib.loads(_decoded(path, data))
    except (ValueError, RecursionError) as error:  # a number may have too many digits
        reason = (str(error) or type(error).__name__).partition("\n")[0][:120]
        raise InvalidValue(f"{path} is not TOML: {reason}; correct that place") from error
    for key in tables:
        if key not in ("check", "models"):
            raise UnknownName(f"table in {path}", key, ("check", "models"))
    models = tables.get("models", {})
    if not isinstance(models, dict) or not all(isinstance(table, dict) for table in models.values()):
        raise InvalidValue(f"{path}: models must be tables, such as [models.small]")
    whole = tables.get("check", {})
    if not isinstance(whole, dict):
        raise InvalidValue(f"{path}: check = {_shown(whole)}: expected a table, [check]")
    subjects = tuple(_subject(path, name, table) for name, table in models.items())
    return replace(Config(**_read(path, "check", whole, _CHECK)), subjects=subjects, folder=path.parent)


def _decoded(path: Path, data: bytes) -> str:
    """The text of a file that some editor or shell has written. Raises InvalidValue where it is not UTF-8."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in data:
        raise InvalidValue(f"{path} is UTF-16, as PowerShell's > writes it, or no text; save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")  # Notepad and PowerShell write a byte order mark
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InvalidValue(
            f"{path} is not UTF-8: byte {data[error.start]:#x} in line {line}; save it as UTF-8"
        ) from None
    # Files are named as the locale names them, also by one that knows ASCII alone.
    return text if text.isascii() else os.fsdecode(text.encode())


def chosen(config: Config, models: Sequence[str]) -> Config:
    """The configuration of these models alone: names of its own subjects, or words that it does not know yet.

    Raises InvalidValue for one that is named twice.
    """
    known = {subject.name: subject for subject in config.subjects}
    for name in models:
        if models.count(name) > 1:
            raise InvalidValue(f"'{name}' is named twice; name each model once")
        _refuse_name(name, f"'{name}'")
    return replace(config, subjects=tuple(known.get(name, Subject(name, name)) for name in models))


def with_options(config: Config, options: Mapping[str, Any], budgets: Mapping[str, int]) -> Config:
    """The configuration with what the command line says instead: fields of `Config`, and budgets for every subject.

    What it says of batch, dtype, inputs and tolerance holds for every subject too. Raises InvalidValue, UnknownName.
    """
    dtype = options.get("dtype")
    for name in ("batch", "launches"):
        if options.get(name) is not None:
            core_inputs.whole(options[name], name)
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
        taken = f"'{YARDSTICK}' is what effbench calls its own" if name else "it is empty"
        raise InvalidValue(f"{where} cannot be the name of a model: {taken}; choose another")


@dataclass(frozen=True)
class _Key:
    """What a key holds: in words for the message, and the function that reads it or raises ValueError."""

    expected: str
    read: Callable[[Any], Any]
    field: str = ""
    """The field of the noun where it is not called like the key."""


def _read(path: Path, table: str, found: Mapping[str, Any], keys: Mapping[str, _Key]) -> dict[str, Any]:
    fields = {}
    for name, value in found.items():
        if name not in keys:
            raise UnknownName(f"key in [{table}] of {path}", name, keys)
        try:
            fields[keys[name].field or name] = keys[name].read(value)
        except (ValueError, EffbenchError):
            raise InvalidValue(f"{path}: [{table}] {name} = {_shown(value)}: expected {keys[name].expected}") from None
    return fields


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError
    return tuple(_text(item) for item in value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _whole(smallest: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not smallest <= value < 2**31:
            raise ValueError
        return value

    return read


def _count(value: Any) -> int:
    if isinstance(value, str):
        return units.amount(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 10**30:
        raise ValueError
    return value


def _share(value: Any) -> float:
    if isinstance(value, str):
        return parsing.share(value)
    if not isinstance(value, float) or not 0 < value < 1:
        raise ValueError
    return value


def _time(value: Any) -> float:
    if isinstance(value, str):
        return parsing.seconds(value)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1e9:
        raise ValueError
    return float(value)


def _one_of(*known: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in known:
            raise ValueError
        return str(value)

    return read


def _inputs(value: Any) -> tuple[Input, ...] | None:
    words = value if isinstance(value, list) else [value]
    if not words or not all(isinstance(word, str) for word in words):
        raise ValueError
    return parsing.inputs(words)


def _arguments(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError
    try:
        json.dumps(value, allow_nan=False)
    except TypeError:  # a date
        raise ValueError from None
    return value


_BATCH = _Key("a whole number of 1 or more", _whole(1))
_DTYPE = _Key(f"one of {', '.join(FLOATS)}", _one_of(*FLOATS))
_TOLERANCE = _Key('a share such as "3%" or 0.03', _share)

_CHECK: Mapping[str, _Key] = {
    "device": _Key('a device such as "cpu" or "cuda:1"', _text),
    "threads": _Key("a whole number, 0 for every core", _whole(0)),
    "batch": _BATCH,
    "dtype": _DTYPE,
    "allocator": _Key('"retain" or "system"', _one_of(*get_args(Allocator))),
    "tolerance": _TOLERANCE,
    "launches": _Key("a whole number of 1 or more", _whole(1)),
    "budget": _Key('a time such as "10m" or "90s"', _time, "budget_s"),
    "alpha": _Key('a share such as "5%" or 0.05', _share),
    "inconclusive": _Key('"fail" or "pass"', _one_of("fail", "pass")),
    "same_costs": _Key("true or false", _flag),
    "count": _Key('"instructions"', _one_of("instructions")),
    "baseline": _Key("the path of a stored run or profile", _text),
    "paths": _Key('a list of folders to import from, such as ["src"]', _texts),
}

_MODEL: Mapping[str, _Key] = {
    "model": _Key('a model such as "nets.py:small" or "mobilenet_v2"', _text),
    "input": _Key('an input such as "3x32x32", or a list of such words', _inputs, "inputs"),
    "batch": _BATCH,
    "dtype": _DTYPE,
    "arguments": _Key("a table of what the model is made with", _arguments),
    "tolerance": _TOLERANCE,
    **{f"max_{name}": _Key('a count such as "300M" or 20_000', _count) for name in QUANTITIES},
}
