"""From the plain values of JSON to dataclasses, every field of its declared type, with errors in plain words.

msgspec checks the types and coerces nothing, but for a whole number where any number will do. Unknown fields, infinite
numbers and whole numbers beyond 64 bits are refused as well, except where a field may hold anything.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from functools import cache, reduce
from operator import or_
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

T = TypeVar("T")


class Misfit(ValueError):
    """A value that is not of the type that was declared: the message names the field and what was expected there."""


def parse(text: bytes) -> Any:
    """The JSON value in this text. Raises ValueError, also for NaN and Infinity, and RecursionError."""
    return _JSON.decode(text.decode())


def make(value: Any, kind: type[T], *, at: str = "", closed: bool = True) -> T:
    """The `kind` that `value` describes, with all that it consists of. Not `closed`, it may have more fields.

    `at` is where the value stands, for the message. Raises Misfit, and what the dataclasses raise as they are made.
    """
    try:
        checked: Any = kind
        msgspec.convert(value, _bounded(checked, closed))
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise Misfit(plain(str(error), at)) from None


def plain(said: str, at: str = "") -> str:
    """A message of msgspec's in our words: ``timing.calls: expected a whole number, got text``."""
    what, _, path = said.partition(" - at `")
    place = (at + path.rpartition("$")[2].rstrip("`")).lstrip(".")
    if found := re.fullmatch(r"Object missing required field `(.*)`", what, re.DOTALL):
        return f"missing '{f'{place}.{found[1]}'.lstrip('.')}'"
    if found := re.fullmatch(r"Object contains unknown field `(.*)`", what, re.DOTALL):
        what = f"there is no field '{found[1][:40]}'"
    elif found := re.fullmatch(r"Invalid enum value (.*)", what, re.DOTALL):
        what = f"it cannot be {found[1][:40]}"
    else:
        expected, got, given = what.partition(", got ")
        what = _worded(expected).replace("Expected", "expected").replace("a decimal", "a") + got + _worded(given)
    return f"{place}: {what}" if place else what


def _worded(kinds: str) -> str:
    return re.sub(r"`(.*?)`", lambda found: " or ".join(_WORDS.get(one, one) for one in found[1].split(" | ")), kinds)


_WORDS = {
    "int": "a whole number",
    "float": "a decimal number",
    "str": "text",
    "bool": "true or false",
    "object": "an object",
    "array": "a list",
}


@cache
def _bounded(kind: Any, closed: bool = True) -> Any:
    """The type of what `make` accepts for `kind`, where its annotations say too little for msgspec."""
    if kind is int:
        return Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
    if kind is float:
        return Annotated[float, msgspec.Meta(ge=-sys.float_info.max, le=sys.float_info.max)]
    if dataclasses.is_dataclass(kind):
        hints, missing = get_type_hints(kind), dataclasses.MISSING
        fields: list[Any] = []
        for item in dataclasses.fields(kind):
            needed = item.default is missing and item.default_factory is missing
            fields.append((item.name, _bounded(hints[item.name]), *([] if needed else [None])))
        return msgspec.defstruct("Object", fields, kw_only=True, forbid_unknown_fields=closed)
    origin: Any = get_origin(kind)
    inner = get_args(kind)
    if origin in (Union, UnionType):
        return reduce(or_, map(_bounded, inner))
    if origin not in (None, Literal):
        return origin[tuple(each if each in (..., Any) else _bounded(each) for each in inner)]
    return kind


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a measurement")


_JSON = json.JSONDecoder(parse_constant=_refuse_constant)
