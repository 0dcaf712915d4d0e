"""The configuration of a fleet's user, fleet.toml: what they do not want to type for each command."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import msgspec
from msgspec import Meta

from effbench.core import parsing, toml_file
from effbench.core.errors import EffbenchError, InvalidValue, UnknownName
from effbench.core.measure_options import MeasureOptions
from effbench.fleet.labels import Label

FILE = "fleet.toml"


@dataclass(frozen=True)
class FleetConfig:
    """Where the scheduler is, the folder of one's certificate, and measuring options by label.

    `patience_s` is how long a run waits for a machine that is absent or not fit to measure. `options` has fields of
    `MeasureOptions` by label, such as ``device=cuda`` or ``machine=gpu-1``.
    """

    scheduler: str = "tcp://127.0.0.1:8786"
    certs: Path | None = None
    patience_s: float = 600.0
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def options_for(self, labels: Iterable[str]) -> dict[str, Any]:
        """The options of a machine with these labels, its name among them; of two tables, the later one wins."""
        own = {str(Label.parse(label)) for label in labels}
        return {name: value for label, table in self.options.items() if label in own for name, value in table.items()}


def load(path: Path | None = None) -> FleetConfig:
    """Read `path`, else ./fleet.toml, else that of the user; without any, the defaults.

    Raises StorageError, InvalidValue, UnknownName in one line that names the file and the key.
    """
    if path is None:
        path = next((place for place in (Path(FILE), _user_file()) if place.is_file()), None)
        if path is None:
            return FleetConfig()
    tables = toml_file.read(path)
    by_label = tables.pop("options", {})
    if not isinstance(by_label, dict) or not all(isinstance(table, dict) for table in by_label.values()):
        raise InvalidValue(f'{path}: options must be tables by label, such as [options."device=cuda"]')
    found = _read(tables, {**_KEYS, "options": _OPTIONS_KEY}, str(path), f"{path}: ")
    if "certs" in found:
        try:
            found["certs"] = path.parent / Path(found["certs"]).expanduser()
        except RuntimeError as error:  # ~ of nobody
            raise InvalidValue(f"{path}: certs = {found['certs']!r}: {error}") from error
    options: dict[str, dict[str, Any]] = {}
    for label, table in by_label.items():
        where = f'[options."{label}"]'
        try:
            key = str(Label.parse(label))
        except InvalidValue as error:
            raise InvalidValue(f"{path}: {where}: {error}") from error
        said = _read(table, _OPTIONS, f"{where} of {path}", f"{path}: {where} ")
        options[key] = {**options.get(key, {}), **said}  # a machine can be named in two ways
        try:
            MeasureOptions.of(options[key])
        except EffbenchError as error:
            raise InvalidValue(f"{path}: {where}: {error}") from error
    return FleetConfig(**found, options=options)


def _user_file() -> Path:
    folder = os.environ.get("XDG_CONFIG_HOME", "")
    return Path(folder if os.path.isabs(folder) else os.path.expanduser("~/.config")) / "effbench" / FILE


# --- keys ---------------------------------------------------------------------------------------------

_Key = tuple[str, str, Callable[[Any], Any]]
"""The field of a key, its expected value for messages, and its converter."""


def _read(table: Mapping[str, Any], keys: Mapping[str, _Key], named: str, place: str) -> dict[str, Any]:
    found = {}
    for name, value in table.items():
        if name not in keys:
            raise UnknownName(f"key in {named}", name, keys)
        target, expected, convert = keys[name]
        try:
            found[target] = convert(value)
        except (ValueError, EffbenchError, msgspec.ValidationError):
            shown = repr(value)
            shown = shown if len(shown) <= 60 else f"{shown[:60]}…"
            raise InvalidValue(f"{place}{name} = {shown}: expected {expected}") from None
    return found


def _number_or_text(value: Any, parse: Callable[[str], float], kind: Any) -> Any:
    return parse(value) if isinstance(value, str) else msgspec.convert(value, kind)


_text = partial(msgspec.convert, type=Annotated[str, Meta(pattern=r"\S")])
_time = partial(_number_or_text, parse=parsing.seconds, kind=Annotated[float, Meta(gt=0, lt=1e9)])
_share = partial(_number_or_text, parse=parsing.share, kind=Annotated[float, Meta(gt=0, lt=1)])
_A_TIME = 'a time such as "10m" or "90s"'

_KEYS: dict[str, _Key] = {
    "scheduler": ("scheduler", 'an address such as "tls://hub.lab:8786"', _text),
    "certs": ("certs", 'a folder such as "~/.config/effbench/alice"', _text),
    "patience": ("patience_s", _A_TIME, _time),
}
_OPTIONS_KEY: _Key = ("options", "tables by label", _text)

_WITH_UNITS: dict[str, _Key] = {
    "budget": ("budget_s", _A_TIME, _time),
    "spread": ("spread_s", _A_TIME, _time),
    "precision": ("precision", 'a share such as "1%" or 0.01', _share),
}
_EXPECTED = {bool: "true or false", int: "a whole number", str: "text", tuple[str, ...]: "a list of names"}


def _option_keys() -> dict[str, _Key]:
    """The measuring options by their names on the command line, with ``_`` for ``-``."""
    converted = {target for target, *_ in _WITH_UNITS.values()}
    kinds = get_type_hints(MeasureOptions)
    found = dict(_WITH_UNITS)
    for item in fields(MeasureOptions):
        if item.name in converted or item.name == "device_options":
            continue
        kind, choices = kinds[item.name], item.metadata["choices"]
        expected = next((text for plain, text in _EXPECTED.items() if kind in (plain, plain | None)), "text")
        if choices:
            expected = f"one of {', '.join(choices)}"
        found[item.name] = (item.name, expected, partial(msgspec.convert, type=kind))
    return found


_OPTIONS = _option_keys()
