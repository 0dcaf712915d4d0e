"""Every operator with a formula of its own, called as people call it, against a closed form worked out by hand."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from math import log2
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from effbench.cost import profile

pytestmark = pytest.mark.quick

R = torch.randn


class Case(NamedTuple):
    name: str
    run: Callable[..., Any]
    inputs: tuple[Tensor, ...]
    madds: int
    elementwise: int | None = None
    memory: int | None = None
    activations: int | None = None
    devices: tuple[str, ...] = ("meta", "real")


class Run(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Any) -> Any:
        return self.function(*inputs)


M, N3, V = R(3, 4), R(4, 5), R(4)
B1, B2 = R(2, 3, 4), R(2, 4, 5)
SQUARE = torch.eye(5)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a sparse layout in beta state
    COMPRESSED = SQUARE.to_sparse_csr()
BYTES = torch.ones(32, 16, dtype=torch.int8)
EXPERTS = torch.tensor([8, 16, 24, 32], dtype=torch.int32)
REAL = ("real",)


def gradients(function: Callable[..., Tensor], *needed: int) -> Callable[..., Any]:
    """The gradients of the sum of ``function(*inputs)`` for the inputs at `needed`."""

    def run(*inputs: Tensor) -> Any:
        with torch.enable_grad():
            taken = [item.detach().requires_grad_() if n in needed else item for n, item in enumerate(inputs)]
            return torch.autograd.grad(function(*taken).sum(), [taken[n] for n in needed])

    return run


def attention(query: Tensor, key: Tensor, **options: Any) -> Tensor:
    return functional.scaled_dot_product_attention(query, key, key, **options)


def shared_heads(query: Tensor, key: Tensor) -> Tensor:
    return attention(query, key, enable_gqa=True)


def grouped(x: Tensor, weight: Tensor, ends: Tensor | None = None) -> Tensor:
    return torch._grouped_mm(x, weight, offs=ends)


def pooled(x: Tensor) -> Tensor:
    return torch.ops.aten.avg_pool2d(x, kernel_size=[3, 3], stride=[2, 2])


CASES = [
    # Written tensors (out=) are no operands: (3, 4) @ (4, 5) is 60 whatever comes first.
    Case("mm out", lambda x, y: torch.mm(x, y, out=x.new_empty(3, 5)), (M, N3), 60, 0, 12 + 20 + 15, 15),
    Case("bmm out", lambda x, y: torch.bmm(x, y, out=x.new_empty(2, 3, 5)), (B1, B2), 120, 0, 24 + 40 + 30),
    Case("addmm out", lambda x, y, b: torch.addmm(b, x, y, out=x.new_empty(3, 5)), (M, N3, R(5)), 60, 0, 52),
    Case("baddbmm out", lambda x, y, b: torch.baddbmm(b, x, y, out=x.new_empty(2, 3, 5)), (B1, B2, R(2, 3, 5)), 120),
    Case("addbmm out", lambda x, y, b: torch.addbmm(b, x, y, out=x.new_empty(3, 5)), (B1, B2, R(3, 5)), 120, 0, 94),
    Case("addmv out", lambda x, y, b: torch.addmv(b, x, y, out=x.new_empty(3)), (M, V, R(3)), 12, 0, 22),
    Case("mv out", lambda x, y: torch.mv(x, y, out=x.new_empty(3)), (M, V), 12, 0, 19),
    Case("dot out", lambda x, y: torch.dot(x, y, out=x.new_empty(())), (V, V), 4, 0, 9),
    Case("matmul out", lambda x, y: torch.matmul(x, y, out=x.new_empty(2, 3, 5)), (B1, N3), 120),
    Case("linear out", lambda x, y: torch._C._nn.linear(x, y, out=x.new_empty(3, 5)), (M, R(5, 4)), 60),
    Case("by name", lambda x, y, b: torch.addmm(beta=2, mat2=y, mat1=x, input=b, alpha=3), (M, N3, R(5)), 60),
    Case("out resized", lambda x, y: torch.mm(x, y, out=x.new_empty(0)).relu(), (M, N3), 60, 15),
    Case("out is an operand", lambda x, y: torch.add(x, y, out=y) + 0, (M, M.clone()), 0, 24, 36 + 24),
    Case(
        "convolution by name",
        lambda x, w: torch.convolution(
            groups=1, weight=w, input=x, bias=None, stride=[1], padding=[0], dilation=[1], transposed=True,
            output_padding=[0],
        ),
        (R(1, 4, 5), R(4, 6, 3)),
        5 * 4 * 6 * 3,
    ),
    Case("conv_tbc", lambda x, w, b: torch.conv_tbc(x, w, b, 1), (R(10, 2, 3), R(3, 3, 5), R(5)), 10 * 2 * 5 * 3 * 3),
    Case("int8 product", lambda x, y: torch._int_mm(x, y), (BYTES, BYTES[:16, :16].t()), 32 * 16 * 16),
    # Attention from the output: the queries of a perceiver are broadcast over the batch, heads are shared in GQA.
    Case("broadcast queries", attention, (R(1, 4, 8, 4), R(16, 4, 10, 4)), 16 * 4 * 8 * 10 * 8, 5 * 16 * 4 * 8 * 10),
    Case("broadcast keys", attention, (R(16, 4, 8, 4), R(1, 1, 10, 4)), 16 * 4 * 8 * 10 * 8, 5 * 16 * 4 * 8 * 10),
    Case("grouped queries", shared_heads, (R(2, 4, 8, 4), R(2, 2, 10, 4)), 2 * 4 * 8 * 10 * 8),
    # Grouped products: rows shared out among four experts, k shared out, and one product each.
    Case("experts", grouped, (R(32, 16), R(4, 16, 24), EXPERTS), 32 * 16 * 24, devices=REAL),
    Case("k in groups", grouped, (R(16, 32), R(32, 24), EXPERTS), 16 * 32 * 24, devices=REAL),
    Case("one each", grouped, (R(4, 8, 16), R(4, 16, 24)), 4 * 8 * 16 * 24, devices=REAL),
    # Sparse: five stored elements, eight columns.
    Case("sparse @ dense", lambda a, b: torch.sparse.mm(a, b), (SQUARE.to_sparse(), R(5, 8)), 40, devices=REAL),
    Case("CSR @ dense", lambda a, b: a @ b, (COMPRESSED, R(5, 8)), 40, devices=REAL),
    Case("dense @ CSR", lambda a, b: b @ a, (COMPRESSED, R(8, 5)), 40, devices=REAL),
    Case("sparse @ vector", lambda a, b: torch.mv(a, b), (SQUARE.to_sparse(), R(5)), 5, devices=REAL),
    Case("sampled product", torch.sparse.sampled_addmm, (COMPRESSED, R(5, 4), R(4, 5)), 20, devices=REAL),
    Case("Euclidean distances", lambda x, y: torch.cdist(x, y), (R(30, 4), R(40, 4)), 30 * 40 * 4),
    Case("Manhattan distances", lambda x, y: torch.cdist(x, y, p=1.0), (R(30, 4), R(40, 4)), 0, 3 * 30 * 40 * 4),
    Case("distances within", functional.pdist, (R(30, 4),), 0, 3 * 435 * 4),
    Case("affine grid", lambda t: functional.affine_grid(t, (2, 3, 4, 5)), (R(2, 2, 3),), 2 * 4 * 5 * 2 * 3),
    # Gradients: a convolution once for its input and once for its weight; attention by hand.
    Case("convolution backward", gradients(functional.conv2d, 0, 1), (R(1, 4, 5, 5), R(6, 4, 3, 3)), 3 * 9 * 6 * 36),
    Case("its input's alone", gradients(functional.conv2d, 0), (R(1, 4, 5, 5), R(6, 4, 3, 3)), 2 * 9 * 6 * 36),
    Case("its bias's too", gradients(functional.conv2d, 0, 1, 2), (R(1, 4, 5, 5), R(6, 4, 3, 3), R(6)), 3 * 9 * 6 * 36),
    Case("gradient of a product", gradients(torch.mm, 0, 1), (M, N3), 3 * 60),
    # Everything that is no product.
    Case("real Fourier", torch.fft.rfft, (R(3, 16),), 0, int(2.5 * 48 * log2(16))),
    Case("weight norm", lambda v, g: torch._weight_norm(v, g, 0), (R(8, 6), R(8, 1)), 0, 2 * 48, 48 + 8 + 48),
    Case("cross entropy", functional.cross_entropy, (R(4, 10), torch.arange(4)), 0, 5 * 40 + 4, 40 + 40 + 4 + 4 + 1),
    Case("mean square", functional.mse_loss, (R(4, 10), R(4, 10)), 0, 40, 81),
    Case("logits", functional.binary_cross_entropy_with_logits, (R(4, 10), torch.rand(4, 10)), 0, 40, 81),
    Case("a number where not", lambda x: torch.where(x > 0, x, 0.0), (M,), 0, 24, 24 + 36),
    Case("lists", lambda x, y: torch._foreach_abs([x, y]), (M, R(5)), 0, 17, 34),
    Case("lists in place", lambda x, y: torch._foreach_add_([x, y], [x, y]), (M, R(5)), 0, 17, 51),
    Case("norms of lists", lambda x, y: torch._foreach_norm([x, y]), (M, R(5)), 0, 17, 19),
    Case("pool by name", pooled, (R(1, 2, 9, 9),), 0, 9 * 32),
    Case("layer norm without weights", lambda x: functional.layer_norm(x, (4,)), (M,), 0, 60, 24),
    Case("bilinear", functional.bilinear, (R(2, 3), R(2, 4), R(5, 3, 4)), 2 * 5 * 3 * 4),
    Case("bilinear, none", functional.bilinear, (R(0, 3), R(0, 4), R(5, 3, 4)), 0),
    Case("running sums", lambda x: torch.logcumsumexp(x, 1), (M,), 0, 12, 24),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_closed_forms(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    # A fork for each would take most of the time.
    monkeypatch.setattr("effbench.cost.forked_call.can_fork", lambda: False)
    for device in case.devices:
        cost = profile(Run(case.run), (1,), inputs=case.inputs, device=device).cost  # type: ignore[arg-type]
        assert (cost.madds, cost.status) == (case.madds, "complete"), device
        for found, expected in (
            (cost.elementwise, case.elementwise),
            (cost.memory_access, case.memory),
            (cost.activations, case.activations),
        ):
            assert expected is None or found == expected, device


def test_bags_of_embeddings_read_the_rows_they_look_up() -> None:
    cost = profile(nn.EmbeddingBag(100, 8), (1,), inputs=(torch.tensor([[1, 2, 3], [4, 5, 6]]),)).cost
    # two rows of three: 48 of the table, 6 indices, 2 offsets made and read, 16 written; one sum an element
    assert (cost.madds, cost.elementwise, cost.memory_access) == (0, 48, 48 + 6 + 2 + 2 + 16)
    assert cost.status == "complete"


@pytest.mark.parametrize("layers", [1, 2])
def test_whole_layer_kernels(layers: int) -> None:
    d, heads, tokens, hidden, batch = 8, 2, 5, 16, 2
    attend = nn.MultiheadAttention(d, heads, batch_first=True)

    def attended(x: Any) -> Any:
        return torch._native_multi_head_attention(
            x, x, x, d, heads, attend.in_proj_weight, attend.in_proj_bias, attend.out_proj.weight,
            attend.out_proj.bias, need_weights=False,
        )[0]  # fmt: skip

    cost = profile(Run(attended), (1,), inputs=(R(batch, tokens, d),)).cost
    assert cost.madds == batch * (4 * tokens * d * d + 2 * tokens * tokens * d)
    assert cost.activations == batch * 5 * tokens * d
    assert cost.elementwise == 5 * batch * heads * tokens * tokens
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(d, heads, hidden, batch_first=True), layers, enable_nested_tensor=False
    )
    whole = profile(encoder, (tokens, d), batch=batch).cost
    assert whole.madds == layers * (cost.madds + batch * 2 * tokens * d * hidden)


def test_factorisations_are_named() -> None:
    for run, name in ((torch.linalg.det, "_linalg_det"), (torch.linalg.inv, "linalg_inv_ex")):
        cost = profile(Run(run), (1,), inputs=(torch.eye(3),)).cost
        assert (cost.status, dict(cost.uncounted)) == ("partial", {name: 1})


@pytest.mark.filterwarnings("ignore")
def test_quantised_layers_count_from_their_packed_weights() -> None:
    quantised = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(192, 1000)), {nn.Linear})
    cost = profile(quantised, (192,)).cost
    assert (cost.madds, cost.activations, cost.status) == (192_000, 1000, "complete")
    # one byte a weight, four a bias
    assert cost.memory_access_levels["layer"].weight_bytes == 192_000 + 4 * 1000
    lstm = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.LSTM(6, 5)), {nn.LSTM})
    cost = profile(lstm, (2, 6), batch=7).cost
    assert (cost.madds, cost.elementwise, cost.status) == (14 * 20 * 11, 14 * 5 * 9, "complete")


@pytest.mark.filterwarnings("ignore")
def test_a_quantised_recurrent_layer_does_not_read_the_batch_sizes_of_a_packed_sequence() -> None:
    layer = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.LSTM(6, 5)), {nn.LSTM})[0]

    def packed(x: Any) -> Any:
        return layer(nn.utils.rnn.pack_padded_sequence(x.transpose(0, 1), torch.tensor([3, 3])))[0].data

    (plain,) = (op for op in profile(Run(lambda x: layer(x.transpose(0, 1))[0]), (3, 6), batch=2).ops if op.madds)
    (of_packed,) = (op for op in profile(Run(packed), (3, 6), batch=2).ops if op.madds)
    assert of_packed.memory_access == plain.memory_access
    assert of_packed.activations_read == 2 * 3 * 6
