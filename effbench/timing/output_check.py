"""Check that a runtime computes the same as eager PyTorch in float32, by comparing outputs on the same input."""

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
"""The largest error that passes, as a share of the largest expected value. Wide enough for other algorithms (Winograd,
fused norms) and for rounding in the dtype through some hundred layers with random weights. A wrong axis, a lost branch
or a stale input gives an error near 1."""


class Incomparable(Unsupported):
    """The output has a type that cannot be read as numbers and compared. The network may still be fine."""


def tolerance_of(dtype: str, *, tf32: bool = False) -> float:
    """Return the largest error that passes.

    With `tf32` it is at least that of float16, since both have a mantissa of ten bits. TF32 affects float32 cells, and
    for every other dtype the float32 reference.
    """
    return max(TOLERANCES[dtype], TOLERANCES["float16"]) if tf32 else TOLERANCES[dtype]


def check(expected: Any, found: Any, dtype: str, *, tf32: bool = False) -> dict[str, float]:
    """Return ``output_error`` (largest absolute difference over largest absolute expected value) and its tolerance.

    Both outputs are as a network returns them: tensors or arrays, or sequences or mappings of them. `tf32` means that
    float32 products use TF32, in the reference or in the checked runtime. Raises Unsupported if the number or shapes of
    the outputs differ, and for an error above the tolerance; Incomparable if an output cannot be read.
    """
    wanted, got = _arrays_of_both(expected, found)
    _require_shapes(wanted, got)
    largest = max((output_error(*pair) for pair in zip(wanted, got, strict=True)), default=0.0)
    tolerance = tolerance_of(dtype, tf32=tf32)
    if not largest <= tolerance:
        raise Unsupported(
            f"its output differs from eager float32 by {largest:.2g} of the largest value, more than {tolerance:g}"
        )
    return {"output_error": largest, "output_tolerance": tolerance}


def require_shapes(expected: Any, found: Any) -> None:
    """Raise Unsupported if the number or shapes of the outputs differ. For random outputs this is all that can be
    checked.
    """
    _require_shapes(*_arrays_of_both(expected, found))


def _arrays_of_both(expected: Any, found: Any) -> tuple[list[np.ndarray[Any, Any]], list[np.ndarray[Any, Any]]]:
    """Return the arrays of both outputs. Pairs of real and imaginary parts, which runtimes without complex numbers
    return, become complex arrays.
    """
    import numpy as np

    wanted, got = list(output_arrays(expected)), list(output_arrays(found))
    for place, (one, other) in enumerate(zip(wanted, got, strict=False)):
        if np.iscomplexobj(one) and not np.iscomplexobj(other) and other.shape == (*one.shape, 2):
            got[place] = other[..., 0] + 1j * other[..., 1]
    return wanted, got


def _require_shapes(wanted: list[np.ndarray[Any, Any]], got: list[np.ndarray[Any, Any]]) -> None:
    if [array.shape for array in wanted] != [array.shape for array in got]:
        raise Unsupported(
            f"its output has the shapes {_shapes(got)} where eager float32 returns {_shapes(wanted)}; "
            "this runtime does not compute the same network"
        )


def output_error(expected: np.ndarray[Any, Any], found: np.ndarray[Any, Any]) -> float:
    """Return the largest absolute difference over the largest absolute expected value (the modulus, if complex)."""
    import numpy as np

    if not expected.size:
        return 0.0
    if not np.isfinite(expected).all():
        # NaN and infinity cannot be compared; the run notes that the output is not finite.
        return 0.0
    largest = float(np.abs(expected).max())
    difference = float(np.abs(expected - found).max())
    return difference / largest if largest else difference


def output_arrays(value: Any) -> Iterator[np.ndarray[Any, Any]]:
    """Yield every tensor or array in the output, in order, as float64, or as complex128 if it is complex.

    Sparse and quantised tensors become dense, a nested tensor yields its parts. Raises Incomparable.
    """
    import numpy as np

    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from output_arrays(item)
    elif getattr(value, "is_nested", False):
        yield from output_arrays(list(value.unbind()))
    elif isinstance(value, np.ndarray) or hasattr(value, "detach") or hasattr(value, "__array__"):
        try:
            yield _array(value)
        except Exception as error:  # torch and numpy document no exception types
            kind = type(value).__name__
            raise Incomparable(f"its output holds a {kind} that cannot be read as numbers") from error


def _array(value: Any) -> np.ndarray[Any, Any]:
    import numpy as np

    if hasattr(value, "detach"):
        value = to_dense(value.detach()).cpu()
        # numpy ignores the lazy conjugate bit of a tensor.
        found: np.ndarray[Any, Any] = (value.cdouble().resolve_conj() if value.is_complex() else value.double()).numpy()
        return found
    array = np.asarray(value)  # also copies an output that is still on the device
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)


def to_dense(tensor: Any) -> Any:
    """Return a strided tensor of floats for a sparse or quantised one; other tensors as they are."""
    import torch

    if tensor.is_quantized:
        return tensor.dequantize()
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


def _shapes(arrays: list[np.ndarray[Any, Any]]) -> str:
    return ", ".join("x".join(map(str, array.shape)) or "scalar" for array in arrays) or "of nothing"


def is_finite(output: Any) -> bool:
    """Return whether all values of an output are finite. NaN may run at another speed than ordinary numbers."""
    import numpy as np

    if getattr(output, "is_nested", False):
        return all(map(is_finite, output.unbind()))
    if hasattr(output, "is_floating_point"):  # a tensor, recognised without importing torch, which may not be installed
        if not (output.is_floating_point() or output.is_complex()):
            return True
        with contextlib.suppress(Exception):  # a tensor type that cannot be read counts as finite
            return bool(to_dense(output).isfinite().all())
        return True
    if hasattr(output, "__array__"):
        array = np.asarray(output)
        return not np.issubdtype(array.dtype, np.inexact) or bool(np.isfinite(array).all())
    inner = output.values() if isinstance(output, Mapping) else output if isinstance(output, (list, tuple)) else ()
    return all(map(is_finite, inner))
