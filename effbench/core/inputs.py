"""The inputs of a model: one or several, by position or by name; shapes or example tensors.

Random inputs are made from these descriptions. Floating-point and complex values are normally distributed, integers are
0 or 1, and booleans are random: valid as token ids, masks and class labels.
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

InputsLike = Sequence[Any] | Mapping[str, Any]
"""What a caller may pass as inputs: a shape, several shapes, `Input`s or tensors, or any of them by name."""


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
        object.__setattr__(self, "shape", as_int_tuple(self.shape))
        object.__setattr__(self, "dtype", str(self.dtype or "").removeprefix("torch."))

    def __str__(self) -> str:
        """The notation of the command line: ``ids=128:int64``."""
        sides = "x".join(map(str, self.shape)) or "scalar"
        return f"{self.name}={sides}".lstrip("=") + (f":{self.dtype}" if self.dtype else "")


@dataclass(frozen=True)
class GivenInputs:
    """The inputs that a caller passed, normalised.

    `tensors` are the example tensors or arrays, one an input. An entry is None if that input was only described or has
    no values (meta device); the tuple is empty if no input has values. `batch` is the first dimension of all tensors,
    None without any. `dtype` is that of the first floating-point tensor, "" without one. In `inputs`, tensors of this
    dtype have the dtype "", so that they follow the model's.
    """

    inputs: tuple[Input, ...]
    tensors: tuple[Any, ...] = ()
    batch: int | None = None
    dtype: str = ""

    def agreed_batch(self, asked: Any = None) -> int:
        """The requested batch, else that of the tensors, else 1. Raises InvalidValue if the first two differ."""
        if asked is None:
            return self.batch or 1
        batch = whole_number(asked, "batch")
        if self.batch not in (None, batch):
            raise InvalidValue(
                f"batch (={batch}) is not that of the tensors ({self.batch}, their first side); leave out batch, or "
                "pass shapes without the batch"
            )
        return batch


def missing_values_reason(inputs: Iterable[Input]) -> str:
    """The error for inputs that were tensors whose values no longer exist; "" if there is none."""
    for item in inputs:
        if item.sha256 and not os.path.isfile(item.values):
            return f"input {item} was a tensor of a Python session that has ended (SHA-256 {item.sha256[:12]}…)"
    return ""


def as_inputs(given: Any) -> tuple[Input, ...]:
    """What a caller passes as `Input`s, without tensors and batch. Takes what `normalise` takes."""
    return normalise(given).inputs


def normalise(given: Any) -> GivenInputs:
    """Normalise what a caller passes as inputs.

    Parameters
    ----------
    given
        One shape without the batch, several shapes and `Input`s, or a mapping of either by name. Dimensions may be
        integers of any type (NumPy's too). Text has the notation of the command line: ``"3x224x224"``,
        ``"ids=128:int64"``. A tensor or array is an example input: its first dimension is the batch, and its dtype and
        values are used. A one-dimensional NumPy array of integers is a shape.

    Raises
    ------
    InvalidValue
        For a dimension that is no positive integer, an unknown dtype, a name that is given twice, tensors of
        different batches, and a tensor that is sparse, nested, or has no dimensions.
    """
    if isinstance(given, Mapping):
        values = list(given.values())
        items = [replace(_as_input(item), name=name) for name, item in given.items()]
    elif _is_one(given):
        values = [given]
        items = [_as_input(given)]
    elif isinstance(given, Iterable):
        values = list(given)
        items = [_as_input(item) for item in values]
    else:
        raise InvalidValue(f"input (={_shown(given)}) must be a shape without the batch, such as (3, 224, 224)")
    names = [item.name for item in items if item.name]
    for name in names:
        if not isinstance(name, str) or not name.isidentifier() or names.count(name) > 1:
            raise InvalidValue(f"input '{name}' must be named once, as the network's forward names it")
    batches = dict.fromkeys(int(item.shape[0]) for item in values if _is_tensor(item))
    if len(batches) > 1:
        raise InvalidValue(
            f"the input tensors have batches of {' and '.join(map(str, batches))} (their first side); "
            "give all of them the same"
        )
    pairs = list(zip(items, map(_is_tensor, values), strict=True))
    dtype = next((item.dtype for item, is_tensor in pairs if is_tensor and item.dtype in FLOATS), "")
    inputs = tuple(replace(item, dtype="") if is_tensor and item.dtype == dtype else item for item, is_tensor in pairs)
    tensors = tuple(one if _is_tensor(one) and not _lacks_values(one) else None for one in values)
    has_values = any(one is not None for one in tensors)
    return GivenInputs(inputs, tensors if has_values else (), next(iter(batches), None), dtype)


def parse(word: str) -> Input:
    """``3x224x224``, ``mask=1x224x224``, ``ids=128:int64`` or ``t=scalar:int64`` as an `Input`.

    Raises InvalidValue.
    """
    name, equals, rest = word.rpartition("=")
    sizes, colon, dtype = rest.partition(":")
    if sizes != "scalar" and not re.fullmatch(r"0*[1-9][0-9]{0,8}(x0*[1-9][0-9]{0,8})*", sizes):
        raise InvalidValue(f"--input {word}: expected sizes above zero without the batch, such as 3x224x224")
    if (equals and not name) or (colon and dtype not in DTYPES):
        known = ", ".join(DTYPES)
        raise InvalidValue(f"--input {word}: expected [NAME=]SIZES[:DTYPE], such as ids=128:int64; dtypes are {known}")
    return Input(() if sizes == "scalar" else tuple(int(size) for size in sizes.split("x")), name, dtype)


def whole_number(value: Any, what: str, *, least: int = 1) -> int:
    """Convert `value` to an int of `least` or more. `what` names the value in the message.

    NumPy's integers are accepted, bool and float are not. Raises InvalidValue.
    """
    number = _index(value)
    if number is None:
        raise InvalidValue(f"{what} (={_shown(value)}) must be a whole number of {least} or more")
    if number < least:
        raise InvalidValue(f"{what} (={number}) must be {least} or more")
    return number


def without_empty_values(fields: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A `dict_factory` for `dataclasses.asdict` that leaves out empty `values` and `sha256`, as older files do."""
    return {name: value for name, value in fields if value != "" or name not in ("values", "sha256")}


def as_int_tuple(shape: Any) -> Any:
    """The shape as a tuple of int if all its dimensions are integers (NumPy's too), else unchanged."""
    if isinstance(shape, str) or not isinstance(shape, Iterable):
        return shape
    sides = tuple(shape)
    numbers = [_index(side) for side in sides]
    return sides if None in numbers else tuple(numbers)


def shape_of(inputs: Sequence[Input]) -> tuple[Any, ...]:
    """The shape of a single input, or a tuple of the shapes of several."""
    shapes = tuple(item.shape for item in inputs)
    return shapes[0] if len(shapes) == 1 else shapes


def explicit_inputs(inputs: Sequence[Input]) -> tuple[Input, ...]:
    """The inputs; () if they are one random floating-point tensor, for which `Case.input_shape` alone suffices."""
    says_more = len(inputs) != 1 or inputs[0].name or inputs[0].dtype or inputs[0].sha256
    return tuple(inputs) if says_more else ()


def _as_input(item: Any) -> Input:
    if isinstance(item, Input):
        found = item
    elif isinstance(item, str):
        try:
            return parse(item)
        except InvalidValue:
            raise InvalidValue(
                f"input (={_shown(item)}) must be a shape without the batch, such as '3x224x224' or 'ids=128:int64'"
            ) from None
    elif _is_tensor(item):
        _require_dense(item)
        found = Input(tuple(item.shape[1:]), dtype=getattr(item.dtype, "name", str(item.dtype)))
        whole_number(int(item.shape[0]), "batch, which an input tensor has as its first side")
    elif _is_number(item) and hasattr(item, "dtype") and hasattr(item, "__len__"):
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
    """Whether this is one input, not a collection of several."""
    if isinstance(given, (Input, str)) or _is_tensor(given) or (_is_number(given) and hasattr(given, "dtype")):
        return True
    return isinstance(given, Iterable) and all(_is_number(side) for side in given)


def _require_dense(tensor: Any) -> None:
    """Raise InvalidValue for nested and sparse tensors."""
    layout = str(getattr(tensor, "layout", "torch.strided")).removeprefix("torch.")
    if getattr(tensor, "is_nested", False) or layout != "strided":
        kind = "nested" if getattr(tensor, "is_nested", False) else f"sparse ({layout})"
        raise InvalidValue(f"an input tensor is {kind}; make it dense first (to_dense, to_padded_tensor)")


def _lacks_values(tensor: Any) -> bool:
    return bool(getattr(tensor, "is_meta", False)) or type(tensor).__name__ == "FakeTensor"


def _is_tensor(item: Any) -> bool:
    """Whether this is an example tensor, not a NumPy scalar (has a dtype too) or an array of integers (a shape)."""
    if getattr(item, "is_nested", False):
        return True
    if not hasattr(item, "dtype") or not hasattr(item, "shape") or not hasattr(item, "__len__"):
        return False
    kind = getattr(item.dtype, "kind", "")
    return not (_is_number(item) or (kind in ("i", "u") and len(item.shape) == 1))


def _is_number(side: Any) -> bool:
    """Whether this is one number of any type. Dimensions must be integers; others are refused later."""
    if isinstance(side, (bool, int, float, complex)) or side is None:
        return True
    # A 0-d tensor of torch or array of NumPy, or one of NumPy's numbers.
    return getattr(side, "shape", None) == () and hasattr(side, "item")


def _index(value: Any) -> int | None:
    """The value as an int; None for a bool, a float, and everything that is no number."""
    if isinstance(value, bool) or "bool" in str(getattr(value, "dtype", "")):
        return None
    try:
        return operator.index(value)
    except Exception:  # array libraries raise various types
        return None


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:60]}…"


def runs_uncast(own: Sequence[str], dtype: str) -> bool:
    """Whether to run a model uncast after it failed with all weights cast to `dtype`. `own` are its weights' dtypes.

    True for a model with several dtypes, if no other dtype was requested: `dtype` is the default float32, or that of
    the first weight.
    """
    return len(own) > 1 and dtype in ("float32", own[0])
