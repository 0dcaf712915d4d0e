"""The table of cost formulas: what one ATen operator costs, as a function of its shapes. No torch.

Conventions, counted per operator:

=================================  ========================================================================
``madds``                          convolutions, matrix products, attention and recurrent layers only; with a sparse
                                   operand, its stored elements only
``elementwise``, per output        1 for every element-wise operator, whatever its arithmetic (add, gelu, …)
``elementwise``, norm              2 per element where the statistics are given (batch norm in eval mode: one
                                   scale, one shift) or only a norm is (weight norm), 5 where they are computed (layer,
                                   group, instance, RMS norm)
``elementwise``, softmax           5 per element (maximum, subtract, exponential, sum, divide); also inside attention
``elementwise``, pooling           1 per element of the window and output; adaptive pooling and reductions 1 per input
``elementwise``, interpolation     taps per output: 2 linear, 4 bilinear, 8 trilinear, 16 bicubic, nearest 0
``elementwise``, recurrent         per row and hidden unit: 9 LSTM (4 gates, 3 products, 1 sum, 1 tanh), 8 GRU, 1 RNN
``elementwise``, loss              1 per element compared
``elementwise``, distance          3 per pair and coordinate (subtract, power, sum); Euclidean distances that torch
                                   computes by a matrix product count as such
``elementwise``, Fourier           5 log2(n) per element, n along all transformed dimensions (Cooley and Tukey); half of
                                   it where one side is real
``elementwise``, gradient          as the forward operator, per element of its gradient
bias additions                     never counted, as in the papers
data movement                      0 (concat, copy, pad, gather, …); it counts as memory traffic. A write that adds to
                                   existing values (index_add, scatter_add) is 1 per element added
=================================  ========================================================================

The multiply-adds of a convolution include padded positions, and those of attention the full matrix under a causal mask,
as in published figures.

Reported as uncounted on purpose: factorisations and operators based on them (det, inverse, solve, Cholesky, LU, QR,
SVD, eigenvalues, matrix exponential, least squares), since their work depends on the library's algorithm.
"""

from __future__ import annotations

from collections.abc import Mapping

from effbench.cost import madds_formulas
from effbench.cost.element_counts import (
    accumulates,
    elements_along_index,
    elements_at_index,
    elements_under_mask,
    embedding_bag_elements,
    indexed_elements,
)
from effbench.cost.elementwise_formulas import (
    batch_norm,
    distances,
    fourier,
    per_added_element,
    per_element,
    per_input,
    per_input_list,
    per_list,
    per_output,
    times,
    window,
)
from effbench.cost.formula_types import PRODUCTS, Call, Count, Formula, Kind, Mask, Shape, Sparse
from effbench.cost.madds_formulas import recurrent

__all__ = [
    "FORMULAS",
    "FREE",
    "POINTWISE",
    "PRODUCTS",
    "UNKNOWN",
    "Call",
    "Formula",
    "Kind",
    "Mask",
    "Shape",
    "Sparse",
    "formula",
    "recurrent",
]

# --- the table --------------------------------------------------------------------------------------

POINTWISE = Formula("elementwise", elementwise=per_output(1), fusion="pointwise")
"""For every operator that torch tags as pointwise, and those in the table below that it does not tag."""

UNKNOWN = Formula("unknown")

_CONVOLUTION = Formula("conv", madds=madds_formulas.convolution)
_PRODUCT = Formula("matmul", madds=madds_formulas.product)
_ATTENTION = Formula(
    "attention", madds=madds_formulas.attention, elementwise=times(5, madds_formulas.scores), primary=1
)
_KERNEL = Formula(
    "attention", madds=madds_formulas.kernel_attention, elementwise=times(5, madds_formulas.kernel_scores), primary=1
)
_LAYERS = Formula(
    "recurrent",
    madds=madds_formulas.recurrent_layers,
    elementwise=madds_formulas.recurrent_gates,
    primary=1,
    activations=madds_formulas.recurrent_outputs,
    between=madds_formulas.recurrent_between,
)
_BATCH_NORM = Formula("norm", elementwise=batch_norm, primary=1, fusion="norm")
_GIVEN_NORM = Formula("norm", elementwise=per_output(2), primary=1, fusion="norm")
_NORM = Formula("norm", elementwise=per_output(5), primary=1, fusion="row")
_NORM_BACKWARD = Formula("norm", elementwise=per_input(5))
_SOFTMAX = Formula("elementwise", elementwise=per_output(5), fusion="row")
_REDUCE = Formula("reduce", elementwise=per_input(1), fusion="reduce")
_LOSS = Formula("reduce", elementwise=per_input(1))
_POOL = Formula("pool", elementwise=window, primary=1, fusion="start")
_ADAPTIVE = Formula("pool", elementwise=per_input(1), primary=1, fusion="start")
_BAG = Formula(
    "reduce", elementwise=embedding_bag_elements, reads="gathered", primary=1, touched=embedding_bag_elements
)
_CONCAT = Formula("data", fusion="concat")
_DATA = Formula("data", fusion="data")
_LIKE = Formula("data", reads="like", fusion="data")
_MADE = Formula("data", reads="nothing", fusion="data")
_GATHER = Formula("data", reads="gathered")
_OVERWRITE = Formula("data", reads="overwritten", fusion="data")
_MOVE = Formula("data")
_LIST = Formula("elementwise", elementwise=per_list, fusion="pointwise")


def _interpolation(taps: int) -> Formula:
    return Formula("pool", elementwise=per_output(taps), fusion="start")


def _indexed(name: str, touched: Count) -> dict[str, Formula]:
    """Return the entries of an indexed write: in place it writes the indexed elements, otherwise a whole copy."""
    work = per_added_element(touched)
    inside = Formula("data", elementwise=work, reads="scattered", touched=touched, accumulates=accumulates)
    return {f"{name}_": inside, name: Formula("data", elementwise=work)}


def _each(entry: Formula, names: str) -> dict[str, Formula]:
    return dict.fromkeys(names.split(), entry)


FORMULAS: Mapping[str, Formula] = {
    **_each(
        _CONVOLUTION,
        "convolution _convolution convolution_overrideable cudnn_convolution cudnn_convolution_transpose "
        "cudnn_convolution_relu cudnn_convolution_add_relu mkldnn_convolution _conv_depthwise2d conv_depthwise3d "
        "_slow_conv2d_forward slow_conv3d_forward slow_conv_dilated2d slow_conv_dilated3d slow_conv_transpose2d "
        "slow_conv_transpose3d mkldnn::_convolution_pointwise onednn::qconv_pointwise onednn::qconv1d_pointwise "
        "onednn::qconv2d_pointwise onednn::qconv3d_pointwise quantized::conv2d_add quantized::conv2d_add_relu "
        + " ".join(
            f"quantized::conv{kind}{number}d{tail}"
            for kind in ("", "_transpose")
            for number in "123"
            for tail in ("", "_relu", "_dynamic")
        ),
    ),
    "conv_tbc": Formula("conv", madds=madds_formulas.convolution_of_time),
    "convolution_backward": Formula("conv", madds=madds_formulas.convolution_backward),
    **_each(
        _PRODUCT,
        "mm bmm mv dot vdot addmm baddbmm addmv _addmm_activation linear matmul _int_mm _scaled_mm _scaled_mm_v2 "
        "_sparse_mm _sparse_addmm sspaddmm hspmm smm _weight_int8pack_mm _weight_int4pack_mm "
        "_weight_int4pack_mm_for_cpu _weight_int4pack_mm_with_scales_and_zeros _dyn_quant_matmul_4bit "
        "_mkldnn_linear mkldnn_linear mkldnn::_linear_pointwise mkl::_mkl_linear onednn::qlinear_pointwise "
        "quantized::matmul",
    ),
    **_each(
        Formula("matmul", madds=madds_formulas.packed_linear),
        "quantized::linear quantized::linear_relu quantized::linear_leaky_relu quantized::linear_tanh "
        "quantized::linear_dynamic quantized::linear_relu_dynamic quantized::linear_dynamic_fp16 "
        "quantized::linear_relu_dynamic_fp16 quantized::linear_with_input_q_dq_qweight_dq_output_fp32 "
        "quantized::linear_with_input_q_dq_qweight_dq_relu_output_fp32",
    ),
    "sparse_sampled_addmm": Formula("matmul", madds=madds_formulas.sampled_product),
    "addbmm": Formula("matmul", madds=madds_formulas.batch_reduced_product),
    **_each(
        Formula("matmul", madds=madds_formulas.grouped_product), "_grouped_mm _scaled_grouped_mm _scaled_grouped_mm_v2"
    ),
    "_trilinear": Formula("matmul", madds=madds_formulas.trilinear),
    "affine_grid_generator": Formula("matmul", madds=madds_formulas.affine_grid),
    "_euclidean_dist": Formula("matmul", madds=madds_formulas.euclidean),
    **_each(
        _ATTENTION,
        "scaled_dot_product_attention _scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu "
        "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
        "_scaled_dot_product_fused_attention_overrideable _scaled_dot_product_attention_math_for_mps",
    ),
    **_each(_KERNEL, "_flash_attention_forward _efficient_attention_forward"),
    **_each(
        Formula("attention", madds=madds_formulas.attention_backward),
        "_scaled_dot_product_flash_attention_backward _scaled_dot_product_flash_attention_for_cpu_backward "
        "_scaled_dot_product_efficient_attention_backward _scaled_dot_product_cudnn_attention_backward "
        "_scaled_dot_product_fused_attention_overrideable_backward",
    ),
    **_each(
        Formula("attention", madds=madds_formulas.kernel_attention_backward),
        "_flash_attention_backward _efficient_attention_backward",
    ),
    "_native_multi_head_attention": Formula(
        "attention",
        madds=madds_formulas.attention_layer,
        elementwise=times(5, madds_formulas.attention_layer_scores),
        activations=madds_formulas.attention_layer_outputs,
    ),
    "_transformer_encoder_layer_fwd": Formula(
        "attention",
        madds=madds_formulas.encoder_layer,
        elementwise=madds_formulas.encoder_layer_elementwise,
        activations=madds_formulas.encoder_layer_outputs,
    ),
    **_each(_LAYERS, "lstm gru rnn rnn_tanh rnn_relu _cudnn_rnn miopen_rnn quantized_lstm quantized_gru"),
    **_each(
        Formula("recurrent", madds=madds_formulas.recurrent_layers, elementwise=madds_formulas.recurrent_gates),
        "quantized::quantized_lstm_cell_dynamic quantized::quantized_gru_cell_dynamic "
        "quantized::quantized_rnn_tanh_cell_dynamic quantized::quantized_rnn_relu_cell_dynamic",
    ),
    "mkldnn_rnn_layer": Formula(
        "recurrent", madds=madds_formulas.recurrent_layers, elementwise=madds_formulas.recurrent_gates, primary=1
    ),
    "_thnn_fused_lstm_cell": Formula("elementwise", elementwise=per_output(9), primary=2, fusion="pointwise"),
    "_thnn_fused_gru_cell": Formula("elementwise", elementwise=per_output(8), primary=1, fusion="pointwise"),
    **_each(_BATCH_NORM, "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_functional"),
    **_each(_BATCH_NORM, "cudnn_batch_norm miopen_batch_norm quantized::batch_norm"),
    **_each(_GIVEN_NORM, "_native_batch_norm_legit_no_training _batch_norm_no_update _weight_norm_interface renorm"),
    **_each(_GIVEN_NORM, "quantized::batch_norm1d quantized::batch_norm2d quantized::batch_norm3d batch_norm_elemt"),
    **_each(_NORM, "native_layer_norm native_group_norm _fused_rms_norm rms_norm _batch_norm_with_update"),
    **_each(_NORM, "quantized::layer_norm quantized::group_norm quantized::instance_norm"),
    **_each(
        _NORM_BACKWARD,
        "native_layer_norm_backward native_group_norm_backward native_batch_norm_backward cudnn_batch_norm_backward "
        "_fused_rms_norm_backward batch_norm_backward",
    ),
    "_weight_norm_interface_backward": Formula("norm", elementwise=per_input(2)),
    **_each(_SOFTMAX, "_softmax _log_softmax _safe_softmax _masked_softmax quantized::softmax"),
    **_each(_SOFTMAX, "_softmax_backward_data _log_softmax_backward_data _masked_softmax_backward"),
    **_each(
        _REDUCE,
        "sum mean amax amin max min prod any all var std var_mean std_mean norm linalg_vector_norm argmax argmin "
        "aminmax cumsum cumprod logcumsumexp cummax cummin logsumexp nansum count_nonzero equal dist trace "
        "_linalg_check_errors is_all_true is_any_true _is_all_true _is_any_true segment_reduce multinomial hash_tensor",
    ),
    **_each(Formula("reduce", elementwise=per_input(1)), "histc bincount histogram _histogramdd_bin_edges"),
    **_each(Formula("reduce", elementwise=per_input(1)), "_histogramdd_from_bin_cts _histogramdd_from_bin_tensors"),
    **_each(Formula("reduce", elementwise=per_input_list), "_foreach_norm _foreach_max"),
    **_each(
        _LOSS,
        "mse_loss smooth_l1_loss huber_loss binary_cross_entropy soft_margin_loss multi_margin_loss "
        "multilabel_margin_loss_forward binary_cross_entropy_with_logits",
    ),
    **_each(
        Formula(
            "reduce", elementwise=per_element("target"), reads="gathered", touched=per_element("target"), primary=1
        ),
        "nll_loss_forward nll_loss2d_forward",
    ),
    "_ctc_loss": Formula("reduce", elementwise=lambda call: call.outputs[1].numel, primary=1),
    **_each(
        POINTWISE,
        "mse_loss_backward smooth_l1_loss_backward huber_loss_backward binary_cross_entropy_backward "
        "soft_margin_loss_backward multi_margin_loss_backward multilabel_margin_loss_backward",
    ),
    **_each(Formula("data"), "nll_loss_backward nll_loss2d_backward _ctc_loss_backward masked_scatter_backward"),
    **_each(Formula("reduce", elementwise=distances), "_cdist_forward _pdist_forward"),
    **_each(
        Formula(
            "reduce", elementwise=lambda call: 3 * call.operand(0, "grad").numel * call.operand(1, "x1", "self")[-1]
        ),
        "_cdist_backward _pdist_backward",
    ),
    **_each(Formula("elementwise", elementwise=fourier), "_fft_c2c _fft_r2c _fft_c2r"),
    **_each(_POOL, "avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d quantized::max_pool2d"),
    **_each(_POOL, "max_pool2d_with_indices max_pool3d_with_indices quantized_max_pool1d quantized_max_pool2d"),
    **_each(_POOL, "quantized_max_pool3d mkldnn_max_pool2d mkldnn_max_pool3d fractional_max_pool2d"),
    **_each(_POOL, "fractional_max_pool3d avg_pool2d_backward avg_pool3d_backward"),
    **_each(
        Formula("pool", elementwise=per_element("grad_output")),
        "max_pool2d_with_indices_backward max_pool3d_with_indices_backward adaptive_max_pool2d_backward "
        "adaptive_max_pool3d_backward fractional_max_pool2d_backward fractional_max_pool3d_backward",
    ),
    **_each(Formula("pool", elementwise=per_output(1)), "_adaptive_avg_pool2d_backward _adaptive_avg_pool3d_backward"),
    **_each(_ADAPTIVE, "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d"),
    **_each(_ADAPTIVE, "adaptive_avg_pool3d mkldnn_adaptive_avg_pool2d"),
    **_each(_ADAPTIVE, "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d"),
    **_each(_DATA, "upsample_nearest1d upsample_nearest2d upsample_nearest3d"),
    **_each(_DATA, "_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d"),
    "upsample_linear1d": _interpolation(2),
    **_each(_interpolation(4), "upsample_bilinear2d _upsample_bilinear2d_aa grid_sampler_2d"),
    **_each(_interpolation(8), "upsample_trilinear3d grid_sampler_3d"),
    **_each(_interpolation(16), "upsample_bicubic2d _upsample_bicubic2d_aa _upsample_lanczos2d_aa"),
    **{
        f"upsample_{name}_backward": Formula("pool", elementwise=per_element("grad_output", taps))
        for name, taps in (("linear1d", 2), ("bilinear2d", 4), ("trilinear3d", 8), ("bicubic2d", 16))
    },
    **_each(
        Formula("pool", elementwise=per_element("grad_output", 4)),
        "grid_sampler_2d_backward _upsample_bilinear2d_aa_backward",
    ),
    **_each(Formula("pool", elementwise=per_element("grad_output", 8)), "grid_sampler_3d_backward"),
    "_upsample_bicubic2d_aa_backward": Formula("pool", elementwise=per_element("grad_output", 16)),
    **{
        f"{name}{number}d_backward": Formula("pool", elementwise=per_element("grad_output"))
        for name in ("upsample_nearest", "_upsample_nearest_exact", "reflection_pad", "replication_pad")
        for number in "123"
    },
    **_each(
        POINTWISE,
        "hardswish hardsigmoid prelu _prelu_kernel glu log_sigmoid_forward log_sigmoid rrelu_with_noise_functional "
        "rrelu_with_noise softshrink hardshrink relu6 native_dropout bernoulli addcmul addcdiv square masked_fill "
        "floor_divide addr linalg_cross complex polar frexp _fused_dropout dequantize quantize_per_tensor "
        "quantize_per_tensor_dynamic quantize_per_channel fake_quantize_per_tensor_affine_cachemask "
        "fake_quantize_per_channel_affine_cachemask _fake_quantize_per_tensor_affine_cachemask_tensor_qparams "
        "fake_quantize_per_tensor_affine fake_quantize_per_channel_affine rsub binomial poisson normal lerp "
        "threshold_backward tanh_backward sigmoid_backward gelu_backward silu_backward mish_backward "
        "hardswish_backward hardsigmoid_backward hardtanh_backward leaky_relu_backward elu_backward glu_backward "
        "softplus_backward softshrink_backward hardshrink_backward logit_backward log_sigmoid_backward "
        "rrelu_with_noise_backward native_dropout_backward _prelu_kernel_backward glu_jvp silu_jvp isin "
        "_thnn_differentiable_lstm_cell_backward masked_scale cauchy log_normal geometric "
        "quantized::add quantized::add_relu quantized::mul quantized::mul_relu quantized::add_scalar "
        "quantized::mul_scalar quantized::hardswish quantized::sigmoid quantized::leaky_relu quantized::elu "
        "quantized::celu quantized::prelu quantized::relu6 quantized::dropout quantized::threshold "
        "quantized::hardtanh quantized::clamp",
    ),
    **_each(_CONCAT, "cat stack _cat _stack quantized::cat quantized::cat_relu block_diag _chunk_cat"),
    **_each(
        _DATA,
        "clone contiguous _to_copy _copy_from constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d "
        "replication_pad1d replication_pad2d replication_pad3d channel_shuffle native_channel_shuffle pixel_shuffle "
        "pixel_unshuffle roll flip rot90 repeat tril triu im2col col2im unfold_copy slice_scatter select_scatter "
        "as_strided_scatter diagonal_scatter unfold_backward slice_backward select_backward diagonal_backward "
        "as_strided_copy diagonal_copy _reshape_copy "
        "view_copy expand_copy permute_copy split_copy split_with_sizes_copy unbind_copy transpose_copy slice_copy "
        "select_copy squeeze_copy unsqueeze_copy t_copy alias_copy detach_copy lift lift_fresh_copy diag_embed "
        "view_as_real_copy view_as_complex_copy _conj_physical resize_as_ int_repr _fft_fill_with_conjugate_symmetry "
        "_make_per_tensor_quantized_tensor _make_per_channel_quantized_tensor _reshape_alias_copy narrow_copy",
    ),
    **_each(_LIKE, "zeros_like ones_like full_like rand_like randn_like randint_like"),
    **_each(_MADE, "zeros ones full new_zeros new_ones new_full arange linspace logspace eye tril_indices"),
    **_each(_MADE, "rand randn randint randperm triu_indices bartlett_window blackman_window hann_window"),
    **_each(_MADE, "hamming_window kaiser_window complex_window"),
    **_each(_GATHER, "index gather embedding index_select take _unsafe_index masked_select quantized::embedding_byte"),
    **_each(_BAG, "_embedding_bag _embedding_bag_forward_only"),
    **_each(Formula("data", reads="gathered", primary=1), "_pack_padded_sequence"),
    **_each(Formula("data", primary=1), "_pad_packed_sequence"),
    **_each(
        Formula("reduce", elementwise=per_input(1)),
        "embedding_dense_backward _embedding_bag_dense_backward "
        "_embedding_bag_backward _embedding_bag_per_sample_weights_backward _segment_reduce_backward",
    ),
    "embedding_renorm_": Formula(
        "norm",
        elementwise=times(2, embedding_bag_elements),
        reads="scattered",
        touched=embedding_bag_elements,
        accumulates=lambda call: True,
    ),
    **_indexed("scatter", elements_at_index),
    **_indexed("scatter_add", elements_at_index),
    **_indexed("scatter_reduce", elements_at_index),
    **_indexed("put", elements_at_index),
    **_indexed("index_put", indexed_elements),
    **_indexed("_index_put_impl", indexed_elements),
    **_indexed("_unsafe_index_put", indexed_elements),
    **_indexed("index_copy", elements_along_index),
    **_indexed("index_add", elements_along_index),
    **_indexed("index_fill", elements_along_index),
    **_indexed("index_reduce", elements_along_index),
    **_indexed("masked_scatter", elements_under_mask),
    **_each(
        _MOVE, "_unsafe_masked_index _unsafe_masked_index_put_accumulate max_unpool2d max_unpool3d repeat_interleave"
    ),
    **_each(_OVERWRITE, "copy_ copy fill fill_ zero zero_ uniform_ uniform normal_ bernoulli_ random_ random"),
    **_each(_OVERWRITE, "exponential_ exponential cauchy_ log_normal_ geometric_ _foreach_copy_ _foreach_zero_"),
    **_each(_MOVE, "sort topk argsort msort kthvalue median nanmedian mode searchsorted bucketize"),
    **_each(_MOVE, "nonzero nonzero_static _unique2 _unique unique_dim unique_consecutive unique_dim_consecutive"),
    **_each(
        _MOVE, "quantized::embedding_byte_unpack _to_dense to_dense _to_sparse _to_sparse_csr _to_sparse_csc _coalesce"
    ),
}
"""Formulas by operator name without namespace and overload. An in-place operator without an entry uses that of its base
name."""

_FREE = (
    "empty empty_like empty_strided empty_permuted new_empty new_empty_strided detach detach_ alias lift_fresh "
    "as_strided_ squeeze_ unsqueeze_ transpose_ t_ swapaxes_ swapdims_ scalar_tensor empty_quantized "
    "_efficientzerotensor _empty_affine_quantized _empty_per_channel_affine_quantized "
    "q_scale q_zero_point q_per_channel_scales q_per_channel_zero_points q_per_channel_axis "
    "_local_scalar_dense item resize_ set_ is_same_size device sym_size sym_stride sym_numel sym_storage_offset "
    "is_contiguous _assert_async _assert_scalar _assert_tensor_metadata"
)
FREE = frozenset(_FREE.split())
"""Operators that move no data by definition. Views are recognised by their storage and need no entry."""


def formula(op: str, pointwise: bool = False) -> Formula:
    """Return the formula of an operator by its bare name (``add_``), or `UNKNOWN`. `pointwise` is torch's tag."""
    base = op.rstrip("_") if not op.startswith("__") else op
    found = FORMULAS.get(op) or FORMULAS.get(base)
    if found is None and base.startswith("_foreach_"):
        one = formula(base.removeprefix("_foreach_"), True)
        found = _LIST if one is POINTWISE else UNKNOWN
    return found or (POINTWISE if pointwise else UNKNOWN)
