"""Memory access: the paper's closed forms, what moves nothing, fusion levels, and TorchInductor as oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import FunctionModule
from torch import nn
from torch.nn import functional

from effbench import zoo
from effbench.core.cost import LEVELS, Traffic
from effbench.cost.op_cost import describe, known_result
from effbench.cost.profiler import count as profile  # in this process: a fork for each is slow and shows nothing

pytestmark = pytest.mark.bulk


def shuffle(m: Any, x: Any) -> Any:
    b, c, h, w = x.shape
    return x.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, c, h, w)


def eager(function: Any, *shapes: tuple[int, ...], **parts: nn.Module) -> Traffic:
    return profile(FunctionModule(function, **parts), shapes).cost.memory_access_levels["eager"]


N = 6 * 5 * 5
X = (6, 5, 5)


def overwrite(m: Any, x: Any) -> Any:
    y = torch.empty_like(x)
    y[:, :3] = x[:, :3]
    return y


@pytest.mark.parametrize(
    ("name", "function", "expected"),
    [
        ("view", lambda m, x: x.view(1, -1), 0),
        ("reshape", lambda m, x: x.reshape(1, 6, 25), 0),
        ("permute", lambda m, x: x.permute(0, 2, 3, 1), 0),
        ("slice", lambda m, x: x[:, :3], 0),
        ("chunk", lambda m, x: x.chunk(2, dim=1), 0),
        ("contiguous already", lambda m, x: x.contiguous(), 0),
        ("flatten", lambda m, x: torch.flatten(x, 1), 0),
        ("expand", lambda m, x: x.expand(4, -1, -1, -1), 0),
        ("dropout in eval mode", lambda m, x: functional.dropout(x, training=m.training), 0),
        ("identity", lambda m, x: x, 0),
        ("relu", lambda m, x: x.relu(), 2 * N),
        ("relu in place", lambda m, x: x.relu_(), 2 * N),
        ("add", lambda m, x: x + x.detach(), 3 * N),
        ("add in place", lambda m, x: x.add_(x.detach()), 3 * N),
        ("add of an expanded row", lambda m, x: x + x[:, :1].expand(-1, 6, -1, -1), 2 * N + N // 6),
        ("cat", lambda m, x: torch.cat([x[:, :3], x[:, 3:]], 1), 2 * N),
        ("stack", lambda m, x: torch.stack([x, x]), 4 * N),
        ("channel shuffle", shuffle, 2 * N),
        ("copy of a slice", overwrite, N),
        ("pad", lambda m, x: functional.pad(x, (1, 1)), N + 6 * 5 * 7),
        ("max pool without its indices", lambda m, x: functional.max_pool2d(x, 2), N + 24),
        ("global mean", lambda m, x: x.mean((2, 3)), N + 6),
        ("zeros like", lambda m, x: torch.zeros_like(x), N),
        ("gather", lambda m, x: x[:, torch.tensor([0, 5])], 2 * 50 + 2),
        ("interpolate", lambda m, x: functional.interpolate(x, scale_factor=2), 5 * N),
    ],
)  # fmt: skip
def test_elements_moved(name: str, function: Any, expected: int) -> None:
    model = FunctionModule(function)
    for device in ("meta", "real"):
        assert profile(model, X, device=device).cost.memory_access == expected  # type: ignore[arg-type]


def test_bytes_follow_the_dtype_of_each_tensor() -> None:
    def masked(m: Any, x: Any) -> Any:
        return x.masked_fill(x > 0, 0.0)

    for dtype, size in (("float32", 4), ("float16", 2), ("bfloat16", 2), ("float64", 8)):
        cost = profile(FunctionModule(masked), X, dtype=dtype).cost
        assert cost.memory_access == (N + N) + (N + N + N)
        assert cost.memory_access_bytes == (N * size + N) + (N * size + N + N * size)  # the mask is one byte each


def test_recurring_weights_are_read_at_every_use_and_embeddings_only_where_looked_up() -> None:
    conv = nn.Conv2d(6, 6, 1, bias=False)
    assert eager(lambda m, x: m.conv(m.conv(x)), X, conv=conv) == Traffic(72, 4 * N, 4 * 72, 16 * N)
    table = nn.Embedding(100, 4)
    tokens = torch.zeros(1, 3, dtype=torch.long)
    cost = profile(table, (3,), inputs=(tokens,)).cost
    assert cost.memory_access == 12 + 3 + 12
    assert cost.memory_access_bytes == 48 + 24 + 48


def test_norms_read_their_statistics_as_weights_and_write_only_the_result() -> None:
    assert eager(lambda m, x: m.norm(x), X, norm=nn.BatchNorm2d(6)) == Traffic(24, 2 * N, 96, 8 * N)
    assert eager(lambda m, x: m.norm(x), X, norm=nn.GroupNorm(2, 6)) == Traffic(12, 2 * N, 48, 8 * N)
    assert eager(lambda m, x: m.norm(x), (7, 6), norm=nn.LayerNorm(6)) == Traffic(12, 2 * 42, 48, 8 * 42)


def test_attention_never_writes_the_score_matrix() -> None:
    heads, tokens, width = 2, 50, 4
    shapes = [(heads, tokens, width)] * 3
    moved = eager(lambda m, *x: functional.scaled_dot_product_attention(*x), *shapes)
    assert moved.elements == 4 * heads * tokens * width


def test_computed_from_weights_alone_counts_as_weights() -> None:
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 6, 1, bias=False))
    costs = [profile(conv, X, batch=batch).cost.memory_access_levels["eager"] for batch in (1, 3)]
    assert costs[0].weights == costs[1].weights > 36
    assert costs[1].activations == 3 * costs[0].activations == 3 * 2 * N


def test_convolution_norm_activation_at_every_level() -> None:
    block = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    levels = profile(block, X).cost.memory_access_levels
    read, out, weight = N, 8 * 25, 8 * 6 * 9
    assert levels["layer"] == Traffic(weight, read + out, 4 * weight, 4 * (read + out))
    assert levels["eager"].elements == read + out + weight + (2 * out + 32) + 2 * out
    assert levels["pointwise"].elements == read + out + weight + (2 * out + 32)
    assert levels["epilogue"].elements == read + out + weight + 8  # the folded bias
    biased = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    assert profile(biased, X).cost.memory_access_levels["epilogue"].elements == read + out + weight + 8


def test_residual_is_read_once_in_the_epilogue() -> None:
    def block(m: Any, x: Any) -> Any:
        return functional.relu(m.conv(x) + x)

    levels = profile(FunctionModule(block, conv=nn.Conv2d(6, 6, 1, bias=False)), X).cost.memory_access_levels
    assert levels["eager"].elements == (2 * N + 36) + 3 * N + 2 * N
    assert levels["pointwise"].elements == (2 * N + 36) + 3 * N
    assert levels["epilogue"].elements == 36 + N + N + N


def test_a_later_kernel_is_not_fused_across_a_convolution() -> None:
    def block(m: Any, x: Any) -> Any:
        first = functional.relu(x)
        return m.conv(first) + first

    levels = profile(FunctionModule(block, conv=nn.Conv2d(6, 6, 1, bias=False)), X).cost.memory_access_levels
    # relu 2n, convolution 2n + w, sum 3n: the relu must be in memory before the convolution runs.
    assert levels["pointwise"].elements == 2 * N + (2 * N + 36) + 3 * N
    assert levels["epilogue"].elements == 2 * N + (N + 36) + N + N


def test_what_the_network_returns_is_written_even_when_it_is_also_used() -> None:
    def both(m: Any, x: Any) -> Any:
        y = functional.relu(x)
        return {"features": [y], "sum": y + 1}

    assert profile(FunctionModule(both), X).cost.memory_access_levels["pointwise"].elements == 3 * N


def test_a_kernel_waits_for_everything_its_members_wait_for() -> None:
    def crossing(m: Any, x: Any, y: Any) -> Any:
        first, second = functional.relu(x), functional.relu(y)
        return (first + m.conv(second)) + second

    model = FunctionModule(crossing, conv=nn.Conv2d(6, 6, 1, bias=False))
    # relu of y 2n, convolution 2n + w, then one kernel that reads x, the convolution and the relu, and writes: 4n.
    assert profile(model, (X, X)).cost.memory_access_levels["pointwise"].elements == 8 * N + 36


def test_constants_repeated_for_the_batch_scale_with_it() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.zeros(1, 1, 6))

        def forward(self, x: Any) -> Any:
            mask = torch.zeros(x.shape[0], 3, 6, device=x.device) + torch.arange(6, device=x.device)
            return torch.cat([self.token.repeat(x.shape[0], 1, 1), x + mask], 1)

    one, three = (profile(Tokens(), (3, 6), batch=batch).cost.memory_access_levels for batch in (1, 3))
    for level in one:
        assert one[level].weights == three[level].weights
        assert 3 * one[level].activations == three[level].activations
    # arange written and read, the token read: 6 each. Per image: zeros, mask, sum, cat and the repeated token.
    assert one["eager"].weights == 6 + 6 + 6
    assert one["eager"].activations == 18 + (18 + 18) + 3 * 18 + 6 + 2 * 24


class CountedError(Exception):
    """Raised once the bytes are known: nothing needs to be generated or run."""


def inductor_bytes(model: nn.Module, shape: tuple[int, ...]) -> int:
    """What TorchInductor's own scheduler says the fused graph moves, channels last."""
    from torch._inductor.graph import GraphLowering

    found: list[int] = []

    def codegen(self: Any) -> Any:
        self.init_wrapper_code()
        self._update_scheduler()
        found.append(self.count_bytes()[0])
        raise CountedError

    original = GraphLowering.codegen
    GraphLowering.codegen = codegen  # type: ignore[method-assign]
    try:
        x = torch.randn(1, *shape).to(memory_format=torch.channels_last)
        with torch.no_grad(), torch._inductor.config.patch(fx_graph_cache=False):
            torch.compile(model.eval().to(memory_format=torch.channels_last), fullgraph=True)(x)
    except Exception:
        if not found:
            raise
    finally:
        GraphLowering.codegen = original  # type: ignore[method-assign]
        torch._dynamo.reset()
    return sum(found)


def whole(network: Any) -> nn.Module:
    return network  # type: ignore[no-any-return]


def first_inverted_residuals(network: Any) -> nn.Module:
    """The stem, the block that does not widen, and two that halve, each with one behind it that adds its input."""
    return nn.Sequential(*network.features[:6])


def first_stage_and_a_half(network: Any) -> nn.Module:
    return nn.Sequential(network.stem, network.pool, *network.stages[:6])


@pytest.mark.parametrize(
    ("name", "part", "tolerance"),
    [
        ("resnet18", whole, 0.0),
        ("mobilenet_v2", first_inverted_residuals, 0.0),
        ("shufflenet_v2", first_stage_and_a_half, 0.1),
        *(
            pytest.param(name, whole, tolerance, marks=pytest.mark.slow)
            for name, tolerance in (
                ("mobilenet_v1", 0.0),
                ("mobilenet_v2", 0.0),
                ("shufflenet_v1", 0.1),
                ("shufflenet_v2", 0.1),
            )
        ),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_fused_bytes_agree_with_inductor(name: str, part: Callable[[Any], nn.Module], tolerance: float) -> None:
    model = part(zoo.build(name))
    ours = profile(model, (3, 224, 224)).cost.memory_access_levels["pointwise"].bytes
    # Inductor copies channel slices before a convolution, which keeps the ShuffleNets from equality.
    assert ours == pytest.approx(inductor_bytes(model, (3, 224, 224)), rel=tolerance, abs=0)


class Excitation(nn.Module):
    """Squeeze and excitation: a reduction whose operand is needed again after it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.down, self.up, self.last = nn.Conv2d(32, 8, 1), nn.Conv2d(8, 32, 1), nn.Conv2d(32, 32, 1)

    def forward(self, x: Any) -> Any:
        x = functional.silu(self.norm(self.conv(x)))
        gate = self.up(functional.relu(self.down(x.mean((2, 3), keepdim=True))))
        return self.last(x * torch.sigmoid(gate))


@pytest.mark.filterwarnings("ignore")
def test_squeeze_and_excitation_agrees_with_inductor() -> None:
    model = Excitation()
    ours = profile(model, (3, 32, 32)).cost.memory_access_levels["pointwise"].bytes
    assert ours == inductor_bytes(model, (3, 32, 32))


@pytest.mark.parametrize("name", ["resnet50", "shufflenet_v2"])
def test_levels_are_ordered(name: str) -> None:
    levels = profile(zoo.build(name), (3, 224, 224)).cost.memory_access_levels
    assert tuple(levels) == LEVELS
    assert levels["layer"].elements < levels["epilogue"].elements < levels["pointwise"].elements
    assert levels["pointwise"].elements < levels["eager"].elements


LAYOUTS = (
    *(((2, 8, 1, 1), (8, 1, 1, 1)), ((2, 8, 1, 1), (8, 1, 8, 8)), ((2, 1, 4, 4), (16, 1, 4, 1))),
    *(((2, 1, 4, 4), (16, 16, 4, 1)), ((2, 8, 1), (8, 1, 8)), ((2, 8), (8, 1)), ((1, 8, 4, 4), (999, 16, 4, 1))),
    *(((2, 8, 4, 1), (32, 4, 1, 4)), ((2, 8, 1, 1, 1), (8, 1, 8, 8, 8)), ((2, 8, 4, 4), (128, 1, 32, 8))),
)
"""Shapes and strides, most of them in two orders at once: with one channel or one pixel the order does not matter."""


@pytest.mark.parametrize(("shape", "stride"), LAYOUTS)
def test_a_norm_lays_its_result_out_on_shapes_as_it_does_for_real(
    shape: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    operator = describe(torch.ops.aten.native_batch_norm.default)

    def arguments(device: str) -> tuple[Any, ...]:
        x = torch.empty_strided(shape, stride, device=device)
        mean, variance = torch.zeros(shape[1], device=device), torch.ones(shape[1], device=device)
        return x, None, None, mean, variance, False, 0.1, 1e-5

    given = arguments("meta")
    found = known_result(operator, given, [given[0], *given[3:5]])
    real = torch.native_batch_norm(*arguments("cpu"))
    assert found is None or [(one.shape, one.stride()) for one in found] == [(one.shape, one.stride()) for one in real]
    assert (found is None) != given[0].is_contiguous()
