"""Every operator and module that torch samples for its own tests, counted on real and on meta tensors.

The multiply-adds are held against torch's own counter, with closed forms worked out here for the products it lacks.
Four samples an operator always; all of them behind the mark `slow`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice
from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.flop_counter import FlopCounterMode

from effbench.core.errors import EffbenchError
from effbench.cost import profile

pytestmark = [pytest.mark.bulk, pytest.mark.filterwarnings("ignore")]

aten = torch.ops.aten
SHARDS = 12


@cache
def databases() -> tuple[list[Any], list[Any]]:
    """Operators and modules with samples. To import them takes seconds, which whoever only lists the tests saves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db
        from torch.testing._internal.common_modules import module_db
    # That import forbids every later test of this process to set torch's switches.
    torch.backends.flags_frozen.__globals__["__allow_nonbracketed_mutation_flag"] = True
    can_run = [one for one in op_db if torch.float32 in one.supported_dtypes("cpu") and one.sample_inputs_func]
    return can_run, module_db


# --- products that torch's counter lacks, two operations a multiply-add as it counts them --------------


def matrix_vector(matrix: Any, vector: Any, *_: Any, **__: Any) -> int:
    return 2 * prod(matrix)


def added_matrix_vector(added: Any, matrix: Any, vector: Any, *_: Any, **__: Any) -> int:
    return 2 * prod(matrix)


def inner(one: Any, two: Any, *_: Any, **__: Any) -> int:
    return 2 * one[0]


def reduced_batch(added: Any, one: Any, two: Any, *_: Any, **__: Any) -> int:
    batch, rows, width = one
    return 2 * batch * rows * width * two[-1]


def bilinear(x: Any, weight: Any, y: Any, *_: Any, **__: Any) -> int:
    """x (n, i), weight (o, i, j), y (n, j), as nn.Bilinear calls it."""
    return 2 * x[0] * prod(weight)


def euclidean(one: Any, two: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    return 2 * prod(out_shape) * one[-1]


def affine(theta: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    return 2 * prod(out_shape) * theta[-1]


def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    *rows, width = query
    return 2 * prod(rows) * key[-2] * (width + value[-1])


def recurrent(x: Any, w_input: Any, w_hidden: Any, *_: Any, **__: Any) -> int:
    return 2 * prod(x[:-1]) * (prod(w_input) + prod(w_hidden))


def time_first(x: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    return 2 * prod(out_shape) * weight[0] * weight[1]


def integer(one: Any, two: Any, *_: Any, **__: Any) -> int:
    return 2 * prod(one) * two[-1]


LACKING: dict[Any, Callable[..., int]] = {
    aten.mv: matrix_vector,
    aten.addmv: added_matrix_vector,
    aten.dot: inner,
    aten.vdot: inner,
    aten.addbmm: reduced_batch,
    aten._trilinear: bilinear,
    aten._euclidean_dist: euclidean,
    aten.affine_grid_generator: affine,
    aten._scaled_dot_product_flash_attention_for_cpu: attention,
    aten.mkldnn_rnn_layer: recurrent,
    aten.conv_tbc: time_first,
    aten._int_mm: integer,
}

DISAGREE: dict[str, str] = {"sparse.sampled_addmm": "torch sees no products where a sparse matrix samples them"}
"""Operators whose multiply-adds differ from the oracle's, and why ours are right."""


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Thousands of forks would take most of the time, and what an operator returned stays in the child."""
    monkeypatch.setattr("effbench.cost.forked_call.can_fork", lambda: False)
    # Seeding keeps the stack as text, once for every kind of device that is not here, and each operator and each sample
    # looks through the stack for a test of torch's own: together most of the time, under pytest's deep stack.
    monkeypatch.setattr(torch, "manual_seed", torch.default_generator.manual_seed)
    databases()
    for place in ("common_utils", "opinfo.core"):
        monkeypatch.setattr(f"torch.testing._internal.{place}.extract_test_fn", lambda: None)
    # torch's counter does not see into its fast path for a whole encoder layer; ours is turned off as well.
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


class Call(nn.Module):
    """An operator with its arguments; keeps what it returned."""

    def __init__(self, operator: Callable[..., Any], spec: Any) -> None:
        super().__init__()
        self.operator, self.spec = operator, spec

    def forward(self, *leaves: Any) -> Any:
        args, kwargs = tree_unflatten(list(leaves), self.spec)
        return self.operator(*args, **kwargs)


def dense(leaf: Any) -> Any:
    """A sample with a layout of its own: tensors with gaps come to meta without them."""
    if not isinstance(leaf, Tensor) or leaf.layout is not torch.strided:
        return leaf
    return leaf.detach().clone()


def copied(leaves: list[Any]) -> list[Any]:
    return [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]


def samples(entry: Any, most: int | None) -> Iterator[tuple[Callable[..., Any], list[Any], Any]]:
    torch.manual_seed(0)
    for sample in islice(entry.sample_inputs("cpu", torch.float32), most):
        leaves, spec = tree_flatten(((sample.input, *sample.args), sample.kwargs))
        if any(isinstance(leaf, Tensor) and leaf.dtype in (torch.float64, torch.float16) for leaf in leaves):
            continue  # a profile has one floating dtype
        yield entry.op, [dense(leaf) for leaf in leaves], spec


def oracle(operator: Callable[..., Any], leaves: list[Any], spec: Any) -> tuple[int, Any]:
    """Multiply-adds by torch's counter, and the result without any counter."""
    args, kwargs = tree_unflatten(copied(leaves), spec)
    torch.manual_seed(0)
    with torch.no_grad():
        expected = operator(*args, **kwargs)
    args, kwargs = tree_unflatten(copied(leaves), spec)
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=LACKING) as counter:
        operator(*args, **kwargs)
    return counter.get_total_flops() // 2, expected


def same(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        if one.layout is not torch.strided or two.layout is not torch.strided:
            return one.layout == two.layout and one.shape == two.shape
        return one.shape == two.shape and one.dtype == two.dtype and torch.allclose(one, two, equal_nan=True)
    return type(one) is type(two) and (isinstance(one, Tensor) or one == two or one != one)


def faults(name: str, operator: Callable[..., Any], leaves: list[Any], spec: Any) -> Iterator[str]:
    """Everything that is wrong with the count of one call."""
    where = f"{name} {[tuple(leaf.shape) if isinstance(leaf, Tensor) else leaf for leaf in leaves]}"
    try:
        madds, expected = oracle(operator, leaves, spec)
    except Exception:
        return  # what does not run on this machine cannot be counted on it
    kept: list[Any] = []

    def keeping(*args: Any, **kwargs: Any) -> Any:
        torch.manual_seed(0)
        kept.append(operator(*args, **kwargs))
        return kept[-1]

    try:
        real = profile(Call(keeping, spec), (1,), inputs=tuple(copied(leaves)), device="real").cost
    except EffbenchError as error:
        yield f"{where}: refused on real tensors: {error}"
        return
    if real.madds != madds and name not in DISAGREE:
        yield f"{where}: {real.madds} multiply-adds, {madds} by the oracle ({real.status} {dict(real.uncounted)})"
    if unexpected := set(real.uncounted) - UNCOUNTED:
        yield f"{where}: {sorted(unexpected)} not counted"
    if real.status != ("partial" if real.uncounted else "complete"):
        yield f"{where}: {real.status} with {dict(real.uncounted)}"
    if "empty" not in name and not all(
        same(*pair) for pair in zip(tree_flatten(expected)[0], tree_flatten(kept[-1])[0], strict=True)
    ):
        yield f"{where}: another result while counted"
    try:
        meta = profile(Call(operator, spec), (1,), inputs=tuple(copied(leaves)), device="meta").cost
    except EffbenchError:
        return  # looks at values, or has no rule for shapes: counted on real tensors
    masks = any(isinstance(leaf, Tensor) and leaf.dtype == torch.bool for leaf in leaves)
    for what in ("madds", "activations", "elementwise", "memory_access", "uncounted"):
        if getattr(meta, what) != getattr(real, what) and not masks:
            yield f"{where}: {what} {getattr(meta, what)} on meta, {getattr(real, what)} on real tensors"


def shard(number: int, most: int | None) -> tuple[int, list[str]]:
    found, seen = [], 0
    for entry in databases()[0][number::SHARDS]:
        try:
            drawn = list(samples(entry, most))
        except Exception:  # no samples without a GPU or an optional library
            continue
        for operator, leaves, spec in drawn:
            seen += 1
            found += faults(entry.name, operator, leaves, spec)
    return seen, found


@pytest.mark.parametrize("number", range(SHARDS))
def test_four_samples_of_every_operator(number: int) -> None:
    seen, found = shard(number, 4)
    assert seen > 100
    assert not found, "\n".join(found)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(SHARDS))
def test_all_samples_of_every_operator(number: int) -> None:
    _, found = shard(number, None)
    assert not found, "\n".join(found)


# What is left out on purpose, and nothing else: factorisations, and an operator with products of its own in Python.
_UNCOUNTED = (
    "cholesky cholesky_inverse cholesky_solve geqrf linalg_cholesky_ex linalg_eig _linalg_eigh linalg_eigh "
    "linalg_eigvals _linalg_eigvals _linalg_det linalg_householder_product linalg_inv_ex linalg_ldl_factor_ex "
    "linalg_ldl_solve linalg_lstsq linalg_lu linalg_lu_factor_ex linalg_lu_solve linalg_matrix_exp linalg_pinv "
    "linalg_qr _linalg_slogdet linalg_solve_triangular _linalg_solve_ex _linalg_svd lu_unpack ormqr "
    "triangular_solve _sparse_mm_reduce_impl torch_nn::_linear_cross_entropy_batch_chunked "
    "torch_nn::_linear_cross_entropy_batch_chunked_no_reduction"
)
UNCOUNTED = frozenset(_UNCOUNTED.split())


# --- modules ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(2))
def test_every_module(number: int) -> None:
    found, seen = [], 0
    for entry in databases()[1][number::2]:
        torch.manual_seed(0)
        drawn = entry.module_inputs_func(entry, device="cpu", dtype=torch.float32, requires_grad=False, training=False)
        for sample in drawn[:4]:
            if sample.forward_input is None:
                continue
            build, call = sample.constructor_input, sample.forward_input
            module = entry.module_cls(*build.args, **build.kwargs).eval()
            leaves, spec = tree_flatten((call.args, call.kwargs))
            seen += 1
            found += faults(entry.name, module, [dense(leaf) for leaf in leaves], spec)
    assert seen > 100
    assert not found, "\n".join(found)
