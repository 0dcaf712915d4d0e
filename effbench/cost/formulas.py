"""What one ATen operator costs, as a pure function of its shapes: one table, no torch.

Conventions, counted per operator:

=================================  ========================================================================
``madds``                          convolutions, matrix products, attention and recurrent layers only
``elementwise``, per output        1 for every element-wise operator, whatever its arithmetic (add, gelu, …)
``elementwise``, norm              2 per element where the statistics are given (batch norm in eval mode: one
                                   scale, one shift), 5 where they are computed (layer, group, instance, RMS norm)
``elementwise``, softmax           5 per element (maximum, subtract, exponential, sum, divide); also inside attention
``elementwise``, pooling           1 per element of the window and output; adaptive pooling and reductions 1 per input
``elementwise``, interpolation     taps per output: 2 linear, 4 bilinear, 8 trilinear, 16 bicubic, nearest 0
``elementwise``, recurrent         per row and hidden unit: 9 LSTM (4 gates, 3 products, 1 sum, 1 tanh), 8 GRU, 1 RNN
bias additions                     never counted, as in the papers
data movement                      0 (concat, copy, pad, gather, …); it shows in the memory traffic
=================================  ========================================================================

The multiply-adds of a convolution count padded positions, and attention counts the full matrix under a causal mask:
both as in the published figures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

Kind = Literal["conv", "matmul", "attention", "recurrent", "norm", "pool", "reduce", "elementwise", "data", "unknown"]

PRODUCTS = ("conv", "matmul", "attention", "recurrent")
"""The kinds whose multiply-adds and output elements are counted."""


class Shape(tuple[int, ...]):
    """The shape of a tensor, told apart from a plain list of integers among an operator's arguments."""

    @property
    def numel(self) -> int:
        return prod(self)


@dataclass(frozen=True)
class Call:
    """One operator call as a formula sees it: tensors are replaced by their `Shape`."""

    op: str
    args: tuple[Any, ...]
    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    @property
    def out(self) -> int:
        return self.outputs[0].numel if self.outputs else 0


Count = Callable[[Call], int]
Reads = Literal["all", "gathered", "overwritten", "scattered", "like", "nothing"]
Fusion = Literal["none", "start", "pointwise", "norm", "row", "reduce", "data", "concat"]


@dataclass(frozen=True)
class Formula:
    """How one operator is counted.

    `reads`: "all" operands; "gathered" reads of the first only as many elements as come out; "overwritten" does not
    read the first; "scattered" touches of the first only as many elements as the last tensor holds; "like" and
    "nothing" look at shapes alone, the result of "like" growing with its operand. `primary` counts the first output
    alone (indices of a max pool and saved statistics are by-products). `fusion` is what a compiler can do: "start" a
    loop that later operators join, or join one as "pointwise", "norm" (a scale and shift), "row" (needs a whole row),
    "reduce" (runs over its input), "data" (a copy, inlined as an index) or "concat" (takes in what it joins, but is
    itself written out).
    """

    kind: Kind
    madds: Count | None = None
    elementwise: Count | None = None
    reads: Reads = "all"
    primary: bool = False
    fusion: Fusion = "none"


# --- multiply-adds ----------------------------------------------------------------------------------


def convolution(call: Call) -> int:
    """Multiply-adds of an N-d convolution, weight (c2, c1/g, *kernel), transposed (c1, c2/g, *kernel)."""
    x, weight = call.inputs[:2]
    transposed = bool(call.argument(6, "transposed", False))
    return (x.numel if transposed else call.out) * prod(weight[1:])


def product(call: Call) -> int:
    """Multiply-adds of ``(…, n, k) @ (k, m)`` in any of its forms: k for every output element."""
    first = call.inputs[-2]
    return call.out * first[-1]


def linear(call: Call) -> int:
    """Multiply-adds of a linear layer, weight (out, in)."""
    return call.out * call.inputs[1][-1]


def batch_reduced_product(call: Call) -> int:
    """Multiply-adds of addbmm: the sum over b of (n, k) @ (k, m)."""
    batch, rows, inner = call.inputs[1]
    return batch * rows * inner * call.inputs[2][-1]


def trilinear(call: Call) -> int:
    """Multiply-adds of a bilinear layer, x (n, i), weight (o, i, j), y (n, j): i·j for every output."""
    return call.out * prod(call.inputs[1][1:])


def attention(call: Call) -> int:
    """Multiply-adds of ``softmax(q @ k^T) @ v``: query (…, n, e), key (…, m, e), value (…, m, f)."""
    query, key, value = call.inputs[:3]
    return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def recurrent(call: Call, weights: int) -> int:
    """Multiply-adds of a recurrent layer, inputs (x, *weights, *states): every weight matrix once per row.

    A row is one time step of one sequence; `weights` says how many of the inputs are weights and biases.
    """
    rows = prod(call.inputs[0][:-1])
    return rows * sum(shape.numel for shape in call.inputs[1 : 1 + weights] if len(shape) == 2)


# --- everything else --------------------------------------------------------------------------------


def per_output(each: int) -> Count:
    return lambda call: each * call.out


def per_input(each: int) -> Count:
    return lambda call: each * call.inputs[0].numel


def batch_norm(call: Call) -> int:
    return call.out * (5 if call.argument(5, "training", False) else 2)


def window(call: Call) -> int:
    """Elements of the window of an N-d pooling operator, per output; one number stands for every side."""
    kernel = call.argument(1, "kernel_size")
    sides: tuple[int, ...] = (kernel,) if isinstance(kernel, int) else tuple(kernel)
    dimensions = int(call.op.split("pool")[1][0])
    return call.out * (sides[0] ** dimensions if len(sides) == 1 else prod(sides))


def attention_softmax(call: Call) -> int:
    query, key = call.inputs[:2]
    return 5 * prod(query[:-1]) * key[-2]


# --- the table --------------------------------------------------------------------------------------

POINTWISE = Formula("elementwise", elementwise=per_output(1), fusion="pointwise")
"""Every operator that torch tags as pointwise, and the ones below that it forgets to."""

UNKNOWN = Formula("unknown")

_CONVOLUTION = Formula("conv", madds=convolution)
_PRODUCT = Formula("matmul", madds=product)
_ATTENTION = Formula("attention", madds=attention, elementwise=attention_softmax, primary=True)
_BATCH_NORM = Formula("norm", elementwise=batch_norm, primary=True, fusion="norm")
_GIVEN_NORM = Formula("norm", elementwise=per_output(2), primary=True, fusion="norm")
_NORM = Formula("norm", elementwise=per_output(5), primary=True, fusion="row")
_SOFTMAX = Formula("elementwise", elementwise=per_output(5), fusion="row")
_REDUCE = Formula("reduce", elementwise=per_input(1), fusion="reduce")
_POOL = Formula("pool", elementwise=window, primary=True, fusion="start")
_ADAPTIVE = Formula("pool", elementwise=per_input(1), primary=True, fusion="start")
_CONCAT = Formula("data", fusion="concat")
_DATA = Formula("data", fusion="data")
_LIKE = Formula("data", reads="like", fusion="data")
_MADE = Formula("data", reads="nothing", fusion="data")
_GATHER = Formula("data", reads="gathered")
_SCATTER = Formula("data", reads="scattered")
_OVERWRITE = Formula("data", reads="overwritten", fusion="data")
_MOVE = Formula("data")


def _interpolation(taps: int) -> Formula:
    return Formula("pool", elementwise=per_output(taps), fusion="start")


def _each(entry: Formula, names: str) -> dict[str, Formula]:
    return dict.fromkeys(names.split(), entry)


FORMULAS: Mapping[str, Formula] = {
    **_each(_CONVOLUTION, "convolution _convolution convolution_overrideable"),
    **_each(_PRODUCT, "mm bmm mv dot vdot addmm baddbmm addmv _addmm_activation"),
    "linear": Formula("matmul", madds=linear),
    "addbmm": Formula("matmul", madds=batch_reduced_product),
    "_trilinear": Formula("matmul", madds=trilinear),
    **_each(
        _ATTENTION,
        "scaled_dot_product_attention _scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu "
        "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
        "_scaled_dot_product_fused_attention_overrideable",
    ),
    **_each(Formula("recurrent", primary=True), "lstm gru rnn"),
    **_each(_BATCH_NORM, "native_batch_norm _native_batch_norm_legit _batch_norm_with_update cudnn_batch_norm"),
    **_each(_GIVEN_NORM, "_native_batch_norm_legit_no_training _batch_norm_no_update"),
    **_each(_NORM, "native_layer_norm native_group_norm _fused_rms_norm rms_norm"),
    **_each(_SOFTMAX, "_softmax _log_softmax _safe_softmax"),
    **_each(
        _REDUCE,
        "sum mean amax amin max min prod any all var std var_mean std_mean norm linalg_vector_norm argmax argmin "
        "aminmax cumsum cumprod logsumexp nansum count_nonzero",
    ),
    **_each(_POOL, "avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d"),
    **_each(_POOL, "max_pool2d_with_indices max_pool3d_with_indices"),
    **_each(_ADAPTIVE, "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d"),
    **_each(_ADAPTIVE, "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d"),
    **_each(_DATA, "upsample_nearest1d upsample_nearest2d upsample_nearest3d"),
    **_each(_DATA, "_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d"),
    "upsample_linear1d": _interpolation(2),
    **_each(_interpolation(4), "upsample_bilinear2d _upsample_bilinear2d_aa grid_sampler_2d"),
    **_each(_interpolation(8), "upsample_trilinear3d grid_sampler_3d"),
    **_each(_interpolation(16), "upsample_bicubic2d _upsample_bicubic2d_aa"),
    **_each(
        POINTWISE,
        "hardswish hardsigmoid prelu _prelu_kernel glu log_sigmoid_forward log_sigmoid rrelu_with_noise_functional "
        "softshrink hardshrink relu6 native_dropout bernoulli addcmul addcdiv square masked_fill floor_divide",
    ),
    **_each(_CONCAT, "cat stack"),
    **_each(
        _DATA,
        "clone contiguous _to_copy constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d "
        "replication_pad1d replication_pad2d replication_pad3d channel_shuffle native_channel_shuffle pixel_shuffle "
        "pixel_unshuffle roll flip repeat tril triu im2col col2im unfold_copy slice_scatter select_scatter "
        "as_strided_scatter diagonal_scatter "
        "view_copy expand_copy permute_copy split_copy split_with_sizes_copy unbind_copy transpose_copy slice_copy "
        "select_copy squeeze_copy unsqueeze_copy t_copy alias_copy detach_copy lift lift_fresh_copy diag_embed",
    ),
    **_each(_LIKE, "zeros_like ones_like full_like rand_like randn_like randint_like"),
    **_each(_MADE, "zeros ones full new_zeros new_ones new_full arange linspace eye scalar_tensor"),
    **_each(_MADE, "rand randn randint randperm"),
    **_each(_GATHER, "index gather embedding index_select take _unsafe_index masked_select"),
    **_each(_SCATTER, "scatter_ index_put_ _index_put_impl_ index_copy_ index_add_ scatter_add_"),
    **_each(_MOVE, "scatter index_put index_copy index_add scatter_add scatter_reduce masked_scatter"),
    **_each(_OVERWRITE, "copy_ fill fill_ zero_ uniform_ normal_ bernoulli_ random_ exponential_"),
    **_each(_MOVE, "sort topk argsort searchsorted bucketize nonzero nonzero_static _unique2 unique_dim"),
}
"""By operator name without namespace and overload; an in-place name without an entry takes that of its base name."""

_FREE = (
    "empty empty_like empty_strided empty_permuted new_empty new_empty_strided detach detach_ alias lift_fresh "
    "as_strided_ squeeze_ unsqueeze_ transpose_ t_ swapaxes_ swapdims_ "
    "_local_scalar_dense item resize_ set_ is_same_size device sym_size sym_stride sym_numel sym_storage_offset "
    "is_contiguous _assert_async _assert_scalar _assert_tensor_metadata"
)
FREE = frozenset(_FREE.split())
"""Operators that move no data by definition; views are recognised by their storage, not by name."""


def formula(op: str, pointwise: bool = False) -> Formula:
    """The formula of an operator by its bare name (``add_``); `pointwise` is torch's own tag. `UNKNOWN` without one."""
    base = op.rstrip("_") if not op.startswith("__") else op
    found = FORMULAS.get(op) or FORMULAS.get(base)
    return found or (POINTWISE if pointwise else UNKNOWN)
