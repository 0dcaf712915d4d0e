"""What a network is fed: one input or several, by position or by name, from their description to tensors.

Floats and complex numbers are normal values, whole numbers 0 or 1, truth values either: legal as token numbers, masks
and classes alike.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from effbench.core.errors import InvalidValue

if TYPE_CHECKING:
    pass

FLOATS = ("float32", "float64", "float16", "bfloat16")
COMPLEX = ("complex64", "complex128")
DTYPES = (*FLOATS, "int64", "int32", "int16", "int8", "uint8", "bool", *COMPLEX)


@dataclass(frozen=True)
class Input:
    """One input tensor of a network.

    Parameters
    ----------
    shape
        Shape without the batch, such as ``(3, 224, 224)``.
    name
        Parameter of the network's ``forward`` that takes it; ``""`` to pass it by position.
    dtype
        Such as ``"int64"`` for tokens or ``"bool"`` for masks; ``""`` for the dtype of the case.
    """

    shape: tuple[int, ...]
    name: str = ""
    dtype: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", plain_sides(self.shape))
        object.__setattr__(self, "dtype", str(self.dtype or "").removeprefix("torch."))

    def __str__(self) -> str:
        """As the command line writes it: ``ids=128:int64``."""
        sides = "x".join(map(str, self.shape)) or "scalar"
        return f"{self.name}={sides}".lstrip("=") + (f":{self.dtype}" if self.dtype else "")


def described(given: Any) -> tuple[Input, ...]:
    """Normalise what a caller passes as inputs.

    Parameters
    ----------
    given
        One shape without the batch, several shapes and `Input`s, or a mapping of either by name. Sides may be whole
        numbers of any type (NumPy's too). Text is read as the command line reads it: ``"3x224x224"``,
        ``"ids=128:int64"``. A tensor stands for its dtype and for its shape without the first side, the batch.

    Raises
    ------
    InvalidValue
        For a side that is no whole number above zero, an unknown dtype, or a name that is given twice.
    """
    if isinstance(given, Mapping):
        items = [replace(_described(item), name=name) for name, item in given.items()]
    elif _is_one(given):
        items = [_described(given)]
    elif isinstance(given, Iterable):
        items = [_described(item) for item in given]
    else:
        raise InvalidValue(f"input (={_shown(given)}) must be a shape without the batch, such as (3, 224, 224)")
    names = [item.name for item in items if item.name]
    for name in names:
        if not isinstance(name, str) or not name.isidentifier() or names.count(name) > 1:
            raise InvalidValue(f"input '{name}' must be named once, as the network's forward names it")
    return tuple(items)


def parsed(word: str, said: str = "input") -> Input:
    """``3x224x224``, ``mask=1x224x224``, ``ids=128:int64`` or ``t=scalar:int64`` as an `Input`.

    `said` is where the word stands, for the message. Raises InvalidValue.
    """
    name, equals, rest = word.rpartition("=")
    sizes, colon, dtype = rest.partition(":")
    if sizes != "scalar" and not re.fullmatch(r"0*[1-9][0-9]{0,8}(x0*[1-9][0-9]{0,8})*", sizes):
        raise InvalidValue(f"{said} {word}: expected sizes above zero without the batch, such as 3x224x224")
    if (equals and not name) or (colon and dtype not in DTYPES):
        known = ", ".join(DTYPES)
        raise InvalidValue(f"{said} {word}: expected [NAME=]SIZES[:DTYPE], such as ids=128:int64; dtypes are {known}")
    return Input(() if sizes == "scalar" else tuple(int(size) for size in sizes.split("x")), name, dtype)


def whole(value: Any, what: str, *, least: int = 1) -> int:
    """`value` as an int, if it is a whole number of `least` or more; `what` names it in the message.

    NumPy's integers are whole numbers; a bool or a float is none, even where it is equal to one. Raises InvalidValue.
    """
    number = _index(value)
    if number is None:
        raise InvalidValue(f"{what} (={_shown(value)}) must be a whole number of {least} or more")
    if number < least:
        raise InvalidValue(f"{what} (={number}) must be {least} or more")
    return number


def plain_sides(shape: Any) -> Any:
    """The shape as a tuple of int where all its sides are whole numbers, NumPy's too; else as it came."""
    if isinstance(shape, str) or not isinstance(shape, Iterable):
        return shape
    sides = tuple(shape)
    numbers = [_index(side) for side in sides]
    return sides if None in numbers else tuple(numbers)


def plain_shape(inputs: Sequence[Input]) -> tuple[Any, ...]:
    """The one shape, or the tuple of several."""
    shapes = tuple(item.shape for item in inputs)
    return shapes[0] if len(shapes) == 1 else shapes


def beyond_shape(inputs: Sequence[Input]) -> tuple[Input, ...]:
    """The inputs where they say more than the shape of one tensor of floats, else ()."""
    return () if len(inputs) == 1 and not (inputs[0].name or inputs[0].dtype) else tuple(inputs)


def _described(item: Any) -> Input:
    if isinstance(item, Input):
        found = item
    elif isinstance(item, str):
        try:
            return parsed(item)
        except InvalidValue:
            raise InvalidValue(
                f"input (={_shown(item)}) must be a shape without the batch, such as '3x224x224' or 'ids=128:int64'"
            ) from None
    elif _is_tensor(item):
        found = Input(tuple(item.shape[1:]), dtype=str(item.dtype))
    elif isinstance(item, Iterable):
        found = Input(tuple(item))
    else:
        raise InvalidValue(f"input (={_shown(item)}) must be a shape without the batch, an Input or a tensor")
    if not isinstance(found.shape, tuple) or any(type(side) is not int or side <= 0 for side in found.shape):
        raise InvalidValue(
            f"input shape (={_shown(found.shape)}) must consist of positive integers, such as (3, 224, 224)"
        )
    if found.dtype and found.dtype not in DTYPES:
        raise InvalidValue(f"input dtype (='{found.dtype}') must be one of {', '.join(DTYPES)}")
    return found


def _is_one(given: Any) -> bool:
    """Does this describe one input, rather than hold several?"""
    if isinstance(given, (Input, str)) or _is_tensor(given):
        return True
    return isinstance(given, Iterable) and all(_is_number(side) for side in given)


def _is_tensor(item: Any) -> bool:
    """Is this an example input? A number of NumPy has a dtype too, and an array of whole numbers is a shape."""
    if not hasattr(item, "dtype") or not hasattr(item, "shape") or not hasattr(item, "__len__"):
        return False
    kind = getattr(item.dtype, "kind", "")
    return not (_is_number(item) or (kind in ("i", "u") and len(item.shape) == 1))


def _is_number(side: Any) -> bool:
    """Is this one number, of whatever kind? Only whole ones make a side, and the message for the others says so."""
    if isinstance(side, (bool, int, float, complex)) or side is None:
        return True
    # A 0-d tensor of torch or array of NumPy, or one of NumPy's numbers.
    return getattr(side, "shape", None) == () and hasattr(side, "item")


def _index(value: Any) -> int | None:
    """The whole number that this is; None for a bool, a float, and all that is no number."""
    if isinstance(value, bool) or "bool" in str(getattr(value, "dtype", "")):
        return None
    try:
        return operator.index(value)
    except Exception:  # an array of several raises as its library likes
        return None


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:60]}…"


def runs_uncast(own: Sequence[str], dtype: str) -> bool:
    """Whether a network whose weights are `own`, and which does not run once all are cast, is to be run as it is.

    Only where nobody asked for another dtype: `dtype` is float32, which a cell is unless it is told, or that of the
    first weight. For a network of one dtype there is a `dtype` that leaves it as it is.
    """
    return len(own) > 1 and dtype in ("float32", own[0])
