"""Formulas are pure functions of shapes: known values, and every promise of the table at the top of the module."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from effbench.cost import formulas
from effbench.cost.formulas import FORMULAS, FREE, POINTWISE, UNKNOWN, Call, Shape, formula

pytestmark = pytest.mark.quick


def call(op: str, *args: object, out: tuple[int, ...], inputs: tuple[tuple[int, ...], ...] = ()) -> Call:
    shapes = tuple(Shape(shape) for shape in inputs) or tuple(item for item in args if isinstance(item, Shape))
    return Call(op, args, shapes, (Shape(out),))


def madds(op: str, *args: object, out: tuple[int, ...], inputs: tuple[tuple[int, ...], ...] = ()) -> int:
    count = formula(op).madds
    assert count is not None
    return count(call(op, *args, out=out, inputs=inputs))


def elementwise(op: str, *args: object, out: tuple[int, ...], pointwise: bool = False) -> int:
    count = formula(op, pointwise).elementwise
    assert count is not None
    return count(call(op, *args, out=out))


def test_table_5_of_the_paper_first_convolution() -> None:
    # ShuffleNetV2 (arXiv 1807.11164) table 5: Conv1 3x3 stride 2, 3 -> 24 channels, 224 -> 112.
    x, weight = Shape((1, 3, 224, 224)), Shape((24, 3, 3, 3))
    assert madds("convolution", x, weight, None, [2, 2], [1, 1], [1, 1], False, out=(1, 24, 112, 112)) == 8_128_512


def test_transposed_convolution_costs_what_the_convolution_it_reverses_costs() -> None:
    small, big, weight = (1, 6, 4, 4), (1, 3, 8, 8), Shape((6, 3, 2, 2))
    forward = madds("convolution", Shape(big), weight, None, 2, 0, 1, False, out=small)
    assert madds("convolution", Shape(small), weight, None, 2, 0, 1, True, out=big) == forward == 16 * 6 * 12


@pytest.mark.parametrize(
    ("op", "inputs", "out", "expected"),
    [
        ("mm", ((3, 4), (4, 5)), (3, 5), 60),
        ("addmm", ((5,), (3, 4), (4, 5)), (3, 5), 60),
        ("bmm", ((2, 3, 4), (2, 4, 5)), (2, 3, 5), 120),
        ("baddbmm", ((2, 3, 5), (2, 3, 4), (2, 4, 5)), (2, 3, 5), 120),
        ("addbmm", ((3, 5), (2, 3, 4), (2, 4, 5)), (3, 5), 120),
        ("mv", ((3, 4), (4,)), (3,), 12),
        ("dot", ((4,), (4,)), (), 4),
        ("linear", ((7, 4), (5, 4), (5,)), (7, 5), 140),
        ("scaled_dot_product_attention", ((2, 5, 4), (2, 7, 4), (2, 7, 3)), (2, 5, 3), 2 * 5 * 7 * (4 + 3)),
    ],
)
def test_products(op: str, inputs: tuple[tuple[int, ...], ...], out: tuple[int, ...], expected: int) -> None:
    assert madds(op, inputs=inputs, out=out) == expected


def test_elementwise_conventions() -> None:
    x, channel = Shape((2, 3, 4, 4)), Shape((3,))
    assert elementwise("add", x, x, out=x, pointwise=True) == 96
    assert elementwise("native_batch_norm", x, channel, channel, channel, channel, False, out=x) == 2 * 96
    assert elementwise("native_batch_norm", x, None, None, None, None, True, out=x) == 5 * 96
    assert elementwise("native_layer_norm", x, [4], out=x) == 5 * 96
    assert elementwise("_softmax", x, -1, False, out=x) == 5 * 96
    assert elementwise("max_pool2d_with_indices", x, [3, 3], out=(2, 3, 2, 2)) == 9 * 24
    assert elementwise("avg_pool2d", x, [2], out=(2, 3, 2, 2)) == 4 * 24
    assert elementwise("avg_pool3d", x, 2, out=(2, 3, 2, 2)) == 8 * 24
    assert elementwise("mean", x, [-1, -2], out=(2, 3)) == 96
    assert elementwise("upsample_bilinear2d", x, [8, 8], out=(2, 3, 8, 8)) == 4 * 384
    assert formula("cat").elementwise is None


def test_names() -> None:
    assert formula("relu_", pointwise=True) is POINTWISE
    assert formula("hardswish_") is POINTWISE
    assert formula("my_operator") is UNKNOWN
    assert UNKNOWN.madds is None
    assert formula("scatter_").reads == "scattered"
    assert formula("scatter").reads == "all"
    assert not FREE & set(FORMULAS)


def test_no_torch() -> None:
    """Neither the table nor what it imports of ours."""
    waiting, seen = [Path(formulas.__file__)], set[Path]()
    while waiting:
        path = waiting.pop()
        seen.add(path)
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                modules = [str(node.module)] if node.module else [alias.name for alias in node.names]
            assert not any(name.split(".")[0] == "torch" for name in modules), path
            ours = [path.parent / f"{name.split('.')[-1]}.py" for name in modules]
            waiting += [file for file in ours if file.exists() and file not in seen]
    assert {"formulas.py", "formula_types.py", "madds_formulas.py", "element_counts.py", "elementwise_formulas.py"} == {
        path.name for path in seen
    }
