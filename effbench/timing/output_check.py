"""Does a network still compute the same? What a runtime returns, held against eager float32 on the same input."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from effbench.runtimes import Unsupported

if TYPE_CHECKING:
    import numpy as np

TOLERANCES: Mapping[str, float] = {
    "float64": 1e-3,
    "float32": 1e-3,
    "float16": 3e-2,
    "bfloat16": 1e-1,
    "int8": 5e-1,
}
"""The largest error that still passes for the same network, as a share of the largest expected value. Wide enough for
other algorithms (Winograd, fused norms) and for the rounding of the dtype through some hundred layers with random
weights; a wrong axis, a lost branch or a stale input is an error near 1."""


class Incomparable(Unsupported):
    """An output of a kind that nothing here can turn into numbers. That says nothing against the network."""


def tolerance_of(dtype: str, *, tf32: bool = False) -> float:
    """The largest error that passes. Where float32 is multiplied as `tf32`, at least that of float16, since both keep
    ten bits: so it is in what is checked, or in the reference of every other dtype.
    """
    return max(TOLERANCES[dtype], TOLERANCES["float16"]) if tf32 else TOLERANCES[dtype]


def check(expected: Any, found: Any, dtype: str, *, tf32: bool = False) -> dict[str, float]:
    """``output_error`` (largest absolute difference over the largest absolute expected value) and its ``tolerance``.

    Both are outputs as a network returns them: tensors or arrays, or sequences or mappings of them. `tf32` says that
    float32 is multiplied as TF32, in the reference or in what is checked. Raises Unsupported for outputs of another
    number or shape, and for an error above the tolerance; Incomparable.
    """
    wanted, got = _both(expected, found)
    _require_shapes(wanted, got)
    largest = max((error(*pair) for pair in zip(wanted, got, strict=True)), default=0.0)
    tolerance = tolerance_of(dtype, tf32=tf32)
    if not largest <= tolerance:
        raise Unsupported(
            f"its output differs from eager float32 by {largest:.2g} of the largest value, more than {tolerance:g}"
        )
    return {"output_error": largest, "output_tolerance": tolerance}


def require_shapes(expected: Any, found: Any) -> None:
    """Raises Unsupported for outputs of another number or shape, as `check` does: of a network whose output is random
    more cannot be said.
    """
    _require_shapes(*_both(expected, found))


def _both(expected: Any, found: Any) -> tuple[list[np.ndarray[Any, Any]], list[np.ndarray[Any, Any]]]:
    """The arrays of both. Runtimes without complex numbers return pairs of real and imaginary parts instead."""
    import numpy as np

    wanted, got = list(arrays(expected)), list(arrays(found))
    for place, (one, other) in enumerate(zip(wanted, got, strict=False)):
        if np.iscomplexobj(one) and not np.iscomplexobj(other) and other.shape == (*one.shape, 2):
            got[place] = other[..., 0] + 1j * other[..., 1]
    return wanted, got


def _require_shapes(wanted: list[np.ndarray[Any, Any]], got: list[np.ndarray[Any, Any]]) -> None:
    if [array.shape for array in wanted] != [array.shape for array in got]:
        raise Unsupported(
            f"its output has the shapes {_shapes(got)} where eager float32 returns {_shapes(wanted)}; "
            "this runtime cannot stand for the network"
        )


def error(expected: np.ndarray[Any, Any], found: np.ndarray[Any, Any]) -> float:
    """The largest absolute difference over the largest absolute expected value; of complex numbers, that of their
    distance.
    """
    import numpy as np

    if not expected.size:
        return 0.0
    if not np.isfinite(expected).all():
        # Nothing can be said of numbers that are none; the run notes that the output is not finite.
        return 0.0
    largest = float(np.abs(expected).max())
    difference = float(np.abs(expected - found).max())
    return difference / largest if largest else difference


def arrays(value: Any) -> Iterator[np.ndarray[Any, Any]]:
    """Every tensor or array in the output, in order, as float64, or as complex128 where it is complex.

    A sparse or quantised tensor counts as the dense one that it stands for, a nested one as several. Raises
    Incomparable.
    """
    import numpy as np

    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from arrays(item)
    elif getattr(value, "is_nested", False):
        yield from arrays(list(value.unbind()))
    elif isinstance(value, np.ndarray) or hasattr(value, "detach") or hasattr(value, "__array__"):
        try:
            yield _array(value)
        except Exception as error:  # torch and numpy raise what they like
            kind = type(value).__name__
            raise Incomparable(f"its output holds a {kind} that cannot be read as numbers") from error


def _array(value: Any) -> np.ndarray[Any, Any]:
    import numpy as np

    if hasattr(value, "detach"):
        value = dense(value.detach()).cpu()
        # A lazy conjugate or negation is none to numpy.
        found: np.ndarray[Any, Any] = (value.cdouble().resolve_conj() if value.is_complex() else value.double()).numpy()
        return found
    array = np.asarray(value)  # also of an output that its runtime left on the device
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)


def dense(tensor: Any) -> Any:
    """The tensor with a value for each of its elements, where it is quantised or of another layout than strided."""
    import torch

    if tensor.is_quantized:
        return tensor.dequantize()
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


def _shapes(arrays: list[np.ndarray[Any, Any]]) -> str:
    return ", ".join("x".join(map(str, array.shape)) or "scalar" for array in arrays) or "of nothing"


def is_finite(output: Any) -> bool:
    """Whether an output holds only numbers. A network that computes NaN may run at another speed than one in use."""
    import numpy as np

    if getattr(output, "is_nested", False):
        return all(map(is_finite, output.unbind()))
    if hasattr(output, "is_floating_point"):  # a tensor: where a bundle runs there may be no torch to ask
        if not (output.is_floating_point() or output.is_complex()):
            return True
        with contextlib.suppress(Exception):  # of a kind that cannot be read: nothing is known of it
            return bool(dense(output).isfinite().all())
        return True
    if hasattr(output, "__array__"):
        array = np.asarray(output)
        return not np.issubdtype(array.dtype, np.inexact) or bool(np.isfinite(array).all())
    inner = output.values() if isinstance(output, Mapping) else output if isinstance(output, (list, tuple)) else ()
    return all(map(is_finite, inner))
