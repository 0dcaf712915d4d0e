"""Decode JSON into dataclasses with strict type checks and readable error messages.

msgspec checks the types. The only conversion is from int to float. Unknown fields, infinite numbers and integers beyond
64 bits are errors too, except in fields of type Any.
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


class WrongType(ValueError):
    """A value of the wrong type. The message names the field and the expected type."""


def parse(text: bytes) -> Any:
    """Parse JSON. Raises ValueError, also for NaN and Infinity, and RecursionError."""
    return _JSON.decode(text.decode())


def decode(value: Any, kind: type[T], *, at: str = "", closed: bool = True) -> T:
    """Convert `value` to a `kind`, nested dataclasses included. Unknown fields are allowed unless `closed`.

    `at` is the path of the value, for the error message. Raises WrongType, and what the dataclasses themselves raise.
    """
    try:
        checked: Any = kind
        msgspec.convert(value, _bounded(checked, closed))
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise WrongType(reword(str(error), at)) from None


def reword(said: str, at: str = "") -> str:
    """Reword a message of msgspec: ``timing.calls: expected a whole number, got text``."""
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
        what = _in_words(expected).replace("Expected", "expected").replace("a decimal", "a") + got + _in_words(given)
    return f"{place}: {what}" if place else what


def _in_words(kinds: str) -> str:
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
    """The type that msgspec checks instead of `kind`: with bounds on numbers, and no unknown fields if `closed`."""
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
