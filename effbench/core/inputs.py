"""What a network is fed: one input or several, by position or by name, from their description to tensors.

Floats and complex numbers are normal values, whole numbers 0 or 1, truth values either: legal as token numbers, masks
and classes alike.
"""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from effbench.core.errors import InvalidValue

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
    values
        File with the values of a tensor that the caller passed, as long as the session lasts; ``""`` for random values.
    sha256
        Digest of those values (`cost.example_inputs.digest`); ``""`` for random values.
    """

    shape: tuple[int, ...]
    name: str = ""
    dtype: str = ""
    values: str = field(default="", repr=False)
    sha256: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", plain_sides(self.shape))
        object.__setattr__(self, "dtype", str(self.dtype or "").removeprefix("torch."))

    def __str__(self) -> str:
        """As the command line writes it: ``ids=128:int64``."""
        sides = "x".join(map(str, self.shape)) or "scalar"
        return f"{self.name}={sides}".lstrip("=") + (f":{self.dtype}" if self.dtype else "")


@dataclass(frozen=True)
class GivenInputs:
    """What a caller passed as inputs.

    `tensors` are the example tensors or arrays as they came, one an input, None where an input was only described or
    has no values (meta device); () where no input has any. `batch` is the first side of all tensors, `dtype` that of
    the first of floats; None and "" without one. Tensors of that dtype say none in `inputs`: they follow the network's.
    """

    inputs: tuple[Input, ...]
    tensors: tuple[Any, ...] = ()
    batch: int | None = None
    dtype: str = ""

    def agreed_batch(self, asked: Any = None) -> int:
        """The batch that was asked for or that the tensors have, 1 where nobody says. Raises InvalidValue where the
        two differ.
        """
        if asked is None:
            return self.batch or 1
        batch = whole(asked, "batch")
        if self.batch not in (None, batch):
            raise InvalidValue(
                f"batch (={batch}) is not that of the tensors ({self.batch}, their first side); leave out batch, or "
                "pass shapes without the batch"
            )
        return batch


def lost(inputs: Iterable[Input]) -> str:
    """What to say of inputs that were tensors whose values cannot be had any more; "" where none was."""
    for item in inputs:
        if item.sha256 and not os.path.isfile(item.values):
            return f"input {item} was a tensor of a Python session that has ended (SHA-256 {item.sha256[:12]}…)"
    return ""


def described(given: Any) -> tuple[Input, ...]:
    """The descriptions alone of what `read` takes."""
    return read(given).inputs


def read(given: Any) -> GivenInputs:
    """Normalise what a caller passes as inputs.

    Parameters
    ----------
    given
        One shape without the batch, several shapes and `Input`s, or a mapping of either by name. Sides may be whole
        numbers of any type (NumPy's too). Text is read as the command line reads it: ``"3x224x224"``,
        ``"ids=128:int64"``. A tensor or array is an example input: its first side is the batch, and its dtype and
        values count. A one-dimensional NumPy array of whole numbers is a shape.

    Raises
    ------
    InvalidValue
        For a side that is no whole number above zero, an unknown dtype, a name that is given twice, tensors of
        different batches, and a tensor that is sparse, nested, or has no dimensions.
    """
    if isinstance(given, Mapping):
        held = list(given.values())
        items = [replace(_described(item), name=name) for name, item in given.items()]
    elif _is_one(given):
        held = [given]
        items = [_described(given)]
    elif isinstance(given, Iterable):
        held = list(given)
        items = [_described(item) for item in held]
    else:
        raise InvalidValue(f"input (={_shown(given)}) must be a shape without the batch, such as (3, 224, 224)")
    names = [item.name for item in items if item.name]
    for name in names:
        if not isinstance(name, str) or not name.isidentifier() or names.count(name) > 1:
            raise InvalidValue(f"input '{name}' must be named once, as the network's forward names it")
    batches = dict.fromkeys(int(item.shape[0]) for item in held if _is_tensor(item))
    if len(batches) > 1:
        raise InvalidValue(
            f"the input tensors have batches of {' and '.join(map(str, batches))} (their first side); "
            "give all of them the same"
        )
    pairs = list(zip(items, map(_is_tensor, held), strict=True))
    dtype = next((item.dtype for item, is_tensor in pairs if is_tensor and item.dtype in FLOATS), "")
    inputs = tuple(replace(item, dtype="") if is_tensor and item.dtype == dtype else item for item, is_tensor in pairs)
    tensors = tuple(one if _is_tensor(one) and not _lacks_values(one) else None for one in held)
    has_values = any(one is not None for one in tensors)
    return GivenInputs(inputs, tensors if has_values else (), next(iter(batches), None), dtype)


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


def without_empty_values(fields: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """For `dataclasses.asdict`: an `Input` without values of its own is written as it was before there were any."""
    return {name: value for name, value in fields if value != "" or name not in ("values", "sha256")}


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
    """The inputs where they say more than the shape of one tensor of random floats, else ()."""
    says_more = len(inputs) != 1 or inputs[0].name or inputs[0].dtype or inputs[0].sha256
    return tuple(inputs) if says_more else ()


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
        _require_dense(item)
        found = Input(tuple(item.shape[1:]), dtype=getattr(item.dtype, "name", str(item.dtype)))
        whole(int(item.shape[0]), "batch, which an input tensor has as its first side")
    elif _is_number(item) and hasattr(item, "dtype"):
        raise InvalidValue(
            f"input (={_shown(item)}) is a tensor without dimensions; an example input has the batch as its first side"
        )
    elif isinstance(item, (list, tuple)) and any(map(_is_tensor, item)):
        raise InvalidValue("an input is one tensor, not a list of tensors; pass a flat list, or a mapping by name")
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
    if isinstance(given, (Input, str)) or _is_tensor(given) or (_is_number(given) and hasattr(given, "dtype")):
        return True
    return isinstance(given, Iterable) and all(_is_number(side) for side in given)


def _require_dense(tensor: Any) -> None:
    """Raises InvalidValue for a layout that has no shape, or no values in a row."""
    layout = str(getattr(tensor, "layout", "torch.strided")).removeprefix("torch.")
    if getattr(tensor, "is_nested", False) or layout != "strided":
        kind = "nested" if getattr(tensor, "is_nested", False) else f"sparse ({layout})"
        raise InvalidValue(f"an input tensor is {kind}; make it dense first (to_dense, to_padded_tensor)")


def _lacks_values(tensor: Any) -> bool:
    return bool(getattr(tensor, "is_meta", False)) or type(tensor).__name__ == "FakeTensor"


def _is_tensor(item: Any) -> bool:
    """Is this an example input? A number of NumPy has a dtype too, and an array of whole numbers is a shape."""
    if getattr(item, "is_nested", False):
        return True
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
