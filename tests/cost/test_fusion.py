"""Fusion: the four levels keep their order for every network, kernels can run one after another, and time is linear."""

from __future__ import annotations

import importlib.util
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from graphlib import TopologicalSorter
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from networks import FunctionModule, assert_ordered, shapes_only
from torch import Tensor, nn
from torch.nn import functional

from effbench.core.cost import LEVELS, Traffic
from effbench.cost import kernel_graph
from effbench.cost.formulas import PRODUCTS, formula
from effbench.cost.fusion import Fusion
from effbench.cost.kernel_graph import KernelGraph
from effbench.cost.op_cost import CallCost
from effbench.cost.profiler import count as profile  # in this process: a fork for each is slow and shows nothing
from effbench.cost.records import Access, Record
from effbench.zoo import load_model

SIDE = 8


def float32(x: Tensor) -> Tensor:
    return x if x.dtype is torch.float32 else x.float()


def decomposed_rms_norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def decomposed_softmax(x: Tensor) -> Tensor:
    exponential = torch.exp(x - x.amax(-1, keepdim=True))
    return exponential / exponential.sum(-1, keepdim=True)


def in_place(x: Tensor, y: Tensor) -> Tensor:
    return x.add_(y) if x.is_floating_point() else x.logical_or_(y > 0) if x.dtype is torch.bool else x


def partly_overwritten(x: Tensor, y: Tensor) -> Tensor:
    result = torch.empty_like(x)
    result[:, : SIDE // 2] = y[:, : SIDE // 2]
    result[:, SIDE // 2 :] = x[:, SIDE // 2 :]
    return result


def glu(m: Any, x: Tensor) -> Tensor:
    gate, up = m.wide(float32(x)).chunk(2, dim=-1)
    return functional.silu(gate) * up


# Each takes the network and two tensors of (batch, 8, 8), and returns another.
OPERATORS: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "linear": lambda m, x, y: m.linear(float32(x)),
    "linear without bias": lambda m, x, y: m.plain(float32(x)),
    "half linear": lambda m, x, y: functional.linear(x.half(), m.plain.weight.half()),
    "double linear": lambda m, x, y: functional.linear(x.double(), m.plain.weight.double()),
    "conv": lambda m, x, y: m.conv(float32(x)),
    "depthwise": lambda m, x, y: m.depthwise(float32(x)),
    "batch norm": lambda m, x, y: m.norm(float32(x)),
    "conv norm relu": lambda m, x, y: functional.relu_(m.norm(m.conv(float32(x)))),
    "matmul": lambda m, x, y: float32(x) @ float32(y),
    "matmul with itself": lambda m, x, y: float32(x) @ float32(x),
    "matmul transposed": lambda m, x, y: float32(x) @ float32(x).mT,
    "baddbmm": lambda m, x, y: torch.baddbmm(float32(y), float32(x), float32(y)),
    "attention": lambda m, x, y: functional.scaled_dot_product_attention(float32(x), float32(y), float32(y)),
    "self-attention": lambda m, x, y: functional.scaled_dot_product_attention(*[float32(x)] * 3),
    "softmax attention": lambda m, x, y: torch.softmax(float32(x) @ float32(y).mT, -1) @ float32(y),
    "layer norm": lambda m, x, y: functional.layer_norm(float32(x), (SIDE,)),
    "rms norm": lambda m, x, y: functional.rms_norm(float32(x), (SIDE,)),
    "decomposed rms norm": lambda m, x, y: decomposed_rms_norm(float32(x)),
    "double rms norm": lambda m, x, y: decomposed_rms_norm(x.double()).to(x.dtype),
    "softmax": lambda m, x, y: torch.softmax(float32(x), -1),
    "decomposed softmax": lambda m, x, y: decomposed_softmax(float32(x)),
    "relu": lambda m, x, y: functional.relu(float32(x)),
    "silu": lambda m, x, y: functional.silu(float32(x)),
    "glu": lambda m, x, y: glu(m, x),
    "add": lambda m, x, y: x + y,
    "add in place": lambda m, x, y: in_place(x, y),
    "double itself": lambda m, x, y: x + x,
    "multiply": lambda m, x, y: x * y,
    "greater": lambda m, x, y: x > y,
    "where": lambda m, x, y: torch.where(x > 0, x, y),
    "byte": lambda m, x, y: x.to(torch.uint8),
    "half": lambda m, x, y: x.half(),
    "double": lambda m, x, y: x.double(),
    "concat": lambda m, x, y: torch.cat([x, y], 1)[:, ::2],
    "narrow": lambda m, x, y: m.narrow(torch.cat([float32(x), float32(y)], -1)),
    "stack": lambda m, x, y: torch.stack([x, y]).sum(0),
    "mean": lambda m, x, y: float32(x).mean(-1, keepdim=True).expand(-1, -1, SIDE),
    "gate": lambda m, x, y: x * torch.sigmoid(m.linear(float32(x).mean(1, keepdim=True))),
    "sum of all": lambda m, x, y: y + x.sum(),
    "largest": lambda m, x, y: x.argmax(-1, keepdim=True).expand(-1, -1, SIDE),
    "cumulated": lambda m, x, y: float32(x).cumsum(1),
    "gather": lambda m, x, y: x[:, m.order],
    "embedding": lambda m, x, y: m.table(x.long()),
    "sort": lambda m, x, y: float32(x).sort(-1).values,
    "transpose": lambda m, x, y: x.mT,
    "contiguous": lambda m, x, y: x.mT.contiguous(),
    "roll": lambda m, x, y: x.roll(1, 1),
    "pad": lambda m, x, y: functional.pad(float32(x), (1, 1))[..., 2:],
    "pool": lambda m, x, y: functional.max_pool1d(float32(x), 3, stride=1, padding=1),
    "constant": lambda m, x, y: x + torch.arange(SIDE, device=x.device).sin(),
    "zeros": lambda m, x, y: torch.zeros_like(x) + y,
    "overwrite": lambda m, x, y: partly_overwritten(x, y),
    "normed weight": lambda m, x, y: functional.linear(float32(x), functional.normalize(m.plain.weight)),
    "slices": lambda m, x, y: x[:, :1] * y[:, 1:2] + x,
}  # fmt: skip

Step = tuple[str, int, int]


class Program(nn.Module):
    """A random network: each step takes two of the tensors so far; what `returned` names leaves the network."""

    def __init__(self, steps: list[Step], returned: list[int]) -> None:
        super().__init__()
        self.steps, self.returned = steps, returned
        self.linear, self.plain = nn.Linear(SIDE, SIDE), nn.Linear(SIDE, SIDE, bias=False)
        self.wide, self.narrow = nn.Linear(SIDE, 2 * SIDE), nn.Linear(2 * SIDE, SIDE)
        self.conv, self.norm = nn.Conv1d(SIDE, SIDE, 3, padding=1, bias=False), nn.BatchNorm1d(SIDE)
        self.depthwise = nn.Conv1d(SIDE, SIDE, 3, padding=1, groups=SIDE)
        self.table = nn.Embedding(10, 1)
        self.table.forward = lambda index: functional.embedding(index, self.table.weight)[..., 0]  # type: ignore
        self.register_buffer("order", torch.arange(SIDE).flip(0))

    def forward(self, x: Tensor) -> list[Tensor]:
        tensors = [x]
        for name, one, other in self.steps:
            tensors.append(OPERATORS[name](self, tensors[-1 - one % len(tensors)], tensors[-1 - other % len(tensors)]))
        return [tensors[-1 - place % len(tensors)] for place in self.returned]


# Near operands make chains, far ones residual connections.
places = st.integers(0, 2) | st.integers(0, 30)
programs = st.builds(
    Program,
    st.lists(st.tuples(st.sampled_from(sorted(OPERATORS)), places, places), min_size=1, max_size=20),
    st.lists(places, min_size=1, max_size=3),
)


def assert_it_can_run(fusion: Fusion, homes: Sequence[int]) -> None:
    """Kernels wait for one another in no circle, and none runs two products."""
    graph: dict[int, set[int]] = {}
    producer: dict[int, int] = {}
    products = Counter(
        home for home, record in zip(homes, fusion.records, strict=True) if record.cost.formula.kind in PRODUCTS
    )
    assert not products or max(products.values()) == 1
    for home, record in zip(homes, fusion.records, strict=True):
        needed = graph.setdefault(home, set())
        needed.update(producer[access.value] for access in record.reads if access.value in producer)
        needed.discard(home)
        producer.update((access.value, home) for access in record.writes)
    TopologicalSorter(graph).prepare()


@contextmanager
def watched() -> Iterator[list[Any]]:
    """What the fusion of each profile inside was made of and found."""
    seen = []
    original = Fusion.epilogue

    def epilogue(fusion: Fusion, pointwise: Sequence[int]) -> Any:
        found = original(fusion, pointwise)
        seen.append((fusion, pointwise, found))
        return found

    with patch.object(Fusion, "epilogue", epilogue):
        yield seen


@settings(deadline=None, max_examples=150)
@given(program=programs)
@example(Program([("linear", 0, 0), ("rms norm", 0, 0), ("silu", 0, 0)], [0]))  # folded pow and silu, read y again
@example(Program([("linear", 0, 0), ("greater", 0, 1)], [0]))  # one byte an element, where the product wrote four
@example(Program([("linear", 0, 0), ("half", 0, 0)], [0]))
@example(Program([("matmul with itself", 0, 0)], [0]))  # two operands, one content
@example(Program([("self-attention", 0, 0), ("linear", 0, 0)], [0]))
def test_the_levels_are_ordered_for_every_network(program: Program) -> None:
    with watched() as seen:
        found = profile(program, (SIDE, SIDE), device="meta")
    assert found.cost.status == "complete"
    assert_ordered(found.cost.memory_access_levels)
    for level in LEVELS:
        moved = sum((kernel.traffic for kernel in found.kernels[level]), Traffic())
        assert moved == found.cost.memory_access_levels[level]
        assert sum(kernel.madds for kernel in found.kernels[level]) == found.cost.madds
    ((fusion, *ways),) = seen
    for homes in ways:
        assert_it_can_run(fusion, homes)


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
@pytest.mark.parametrize(
    "name",
    ["test_vit", "test_byobnet", "resnetv2_50d_frn", "mobilenetv5_base", "gcvit_xxtiny", "dla46x_c", "hgnetv2_b0"],
)
@pytest.mark.filterwarnings("ignore")
def test_the_levels_are_ordered_for_timm(name: str) -> None:
    with shapes_only():
        model = load_model.load(f"timm:{name}")
    assert_ordered(profile(model, (3, 224, 224), device="meta").cost.memory_access_levels)


# --- what is folded, in closed form --------------------------------------------------------------------


ROWS, WIDTH = 10, 64
N, WEIGHT = ROWS * WIDTH, 8 * WIDTH


def moved(function: Any, **options: Any) -> dict[str, int]:
    """Beside the operands of one linear layer without bias, 8 to 64, what every level reads and writes."""
    model = FunctionModule(function, linear=nn.Linear(8, WIDTH, bias=False), **options)
    levels = profile(model, (ROWS, 8)).cost.memory_access_levels
    return {level: moved.elements - ROWS * 8 - WEIGHT for level, moved in levels.items()}


def test_a_product_does_not_take_in_the_square_of_a_norm() -> None:
    """linear n; square and mean n + r; add and root 2 r; normed and gated n + r + n: as without folding."""
    found = moved(lambda m, x: functional.silu(decomposed_rms_norm(m.linear(x))))
    assert found["pointwise"] == found["epilogue"] == N + (N + ROWS) + 2 * ROWS + (2 * N + ROWS)


def test_a_product_takes_in_the_residual_but_not_the_square() -> None:
    def block(m: Any, x: Any, residual: Any) -> Any:
        y = m.linear(x) + residual
        return y, y.pow(2).mean(-1, keepdim=True)

    model = FunctionModule(block, linear=nn.Linear(8, WIDTH, bias=False))
    levels = profile(model, ((ROWS, 8), (ROWS, WIDTH))).cost.memory_access_levels
    operands = ROWS * 8 + WEIGHT
    # Without folding: the product n, then one kernel that reads it and the residual, and writes the sum and the mean.
    assert levels["pointwise"].elements == operands + N + (2 * N + N + ROWS)
    # The product with its residual 2 n; the square again n, read by the mean. To leave it out would be the same.
    assert levels["epilogue"].elements <= operands + (N + N) + N + (N + ROWS)


def test_what_costs_less_outside_stays_outside_and_the_rest_is_folded() -> None:
    """The sum of squares and of exponentials read what the product has written: taking them in would write both."""

    def block(m: Any, x: Any) -> Any:
        y = functional.relu(m.linear(x))
        return y, y.pow(2).sum(-1), y.exp().sum(-1)

    found = moved(block)
    assert found["pointwise"] == N + (N + N + 2 * ROWS)
    assert found["epilogue"] == N + (N + 2 * ROWS)


def test_a_narrower_result_is_not_folded() -> None:
    """A bool is a byte: folded, the product would write less than the level "layer" says it does."""
    levels = profile(
        FunctionModule(lambda m, x: m.linear(x) > 0, linear=nn.Linear(8, WIDTH)), (ROWS, 8)
    ).cost.memory_access_levels
    assert levels["epilogue"].bytes == levels["pointwise"].bytes == levels["layer"].bytes + 4 * N + N
    # What comes before the cut is folded still.
    folded = profile(
        FunctionModule(lambda m, x: m.linear(x).relu() > 0, linear=nn.Linear(8, WIDTH)), (ROWS, 8)
    ).cost.memory_access_levels
    assert folded["epilogue"].bytes == levels["layer"].bytes + 4 * N + N
    # Where the product reads on for it, there is no harm: the residual is more than what the mask saves.
    both = FunctionModule(lambda m, x, y: m.linear(x) + y > 0, linear=nn.Linear(8, WIDTH))
    levels = profile(both, ((ROWS, 8), (ROWS, WIDTH))).cost.memory_access_levels
    assert levels["epilogue"].bytes == levels["layer"].bytes - 4 * N + 4 * N + N


def test_an_operand_read_twice_is_read_twice_at_every_level() -> None:
    levels = profile(FunctionModule(lambda m, x: torch.mm(x[0], x[0])), (SIDE, SIDE)).cost.memory_access_levels
    assert {traffic.elements for traffic in levels.values()} == {3 * SIDE * SIDE}


def test_a_norm_is_folded_where_the_kernel_took_in_earlier_operators() -> None:
    """The gated branch comes before the convolution that takes it in; the norm behind that costs one bias a channel."""

    def block(m: Any, x: Any, y: Any) -> Any:
        return torch.sigmoid(y) + m.norm(m.conv(x))

    model = FunctionModule(block, conv=nn.Conv2d(6, 6, 1, bias=False), norm=nn.BatchNorm2d(6))
    levels = profile(model, ((6, 5, 5), (6, 5, 5))).cost.memory_access_levels
    assert levels["epilogue"].elements == (150 + 36) + 6 + 150 + 150


# --- the order of kernels -------------------------------------------------------------------------------


class Tape:
    """Records written by hand: each call is one operator on contents so far, and returns the content it writes."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self._elements: list[int] = []

    def input(self, elements: int) -> int:
        self._elements.append(elements)
        return len(self._elements) - 1

    def __call__(self, op: str, *reads: int, elements: int) -> int:
        written = self.input(elements)
        accesses = [Access(value, None, self._elements[value], 4 * self._elements[value], False) for value in reads]
        cost = CallCost(formula(op, pointwise=True), False, (), ())
        write = Access(written, None, elements, 4 * elements, False)
        self.records.append(Record(op, "", "", 1, cost, tuple(accesses), (write,)))
        return written


def circular() -> tuple[Tape, set[int]]:
    """Folding helps the product and not the means, and the one way for both has a circle."""
    op = Tape()
    x, z, weight = op.input(8), op.input(64), op.input(8)
    y = op("mm", x, weight, elements=64)
    first = op("relu", y, elements=64)
    mean = op("mean", first, elements=8)
    other = op("mean", z, elements=8)
    second = op("add", y, other, elements=64)
    both = op("add", mean, other, elements=8)
    return op, {first, second, both}


def test_what_is_folded_never_waits_for_itself() -> None:
    op, leaving = circular()
    op("sort", 4, elements=64)  # the relu has two readers
    fusion = Fusion(op.records, leaving)
    pointwise = fusion.pointwise()
    assert_it_can_run(fusion, pointwise)
    found = fusion.epilogue(pointwise)
    assert_it_can_run(fusion, found)
    levels = [sum((kernel.traffic for kernel in fusion.kernels(homes)), Traffic()) for homes in (found, pointwise)]
    assert levels[0].elements <= levels[1].elements


def scan(op: Tape, tokens: int) -> None:
    step, state, outputs = op("mm", op.input(64), elements=64), op("zeros", elements=512), []
    for _ in range(tokens):
        kept = op("exp", op("mul", step, elements=512), elements=512)
        state = op("add", op("mul", kept, state, elements=512), op("mul", step, elements=512), elements=512)
        outputs.append(op("sum", op("mul", state, step, elements=512), elements=32))
    op("cat", *outputs, elements=32 * tokens)


def running_sum(op: Tape, tokens: int) -> None:
    """A kernel that must be moved behind ever later ones, with ever more that waits for it."""
    total, x, weight = op("relu", op.input(8), elements=8), op.input(8), op.input(64)
    for _ in range(tokens):
        x = op("mm", x, weight, elements=8)
        total = op("add", total, x, elements=8)
        op("mm", op("relu", op("mm", total, weight, elements=4), elements=4), weight, elements=4)


def masked_state(op: Tape, tokens: int) -> None:
    """A kernel at the beginning feeds every step of a long chain."""
    mask, state, weight = op("gt", op.input(8), elements=8), op.input(8), op.input(64)
    for _ in range(tokens):
        state = op("mul", op("mm", state, weight, elements=8), mask, elements=8)


def crossing_streams(op: Tape, tokens: int) -> None:
    one, other, weight = op("relu", op.input(8), elements=8), op("relu", op.input(8), elements=8), op.input(64)
    for _ in range(tokens):
        up, down = op("mm", one, weight, elements=8), op("mm", other, weight, elements=8)
        one, other = op("add", one, down, elements=8), op("add", other, up, elements=8)


def residual_stream(op: Tape, tokens: int) -> None:
    x, weight = op("relu", op.input(8), elements=8), op.input(64)
    for _ in range(tokens):
        x = op("add", x, op("mm", op("pow", x, elements=8), weight, elements=8), elements=8)


def growing_state(op: Tape, tokens: int) -> None:
    """A kernel far behind takes in ever more that waits for little."""
    x, weight = op.input(8), op.input(64)
    state = op("relu", op("mm", op("sort", op("sort", x, elements=8), elements=8), weight, elements=8), elements=8)
    for _ in range(tokens):
        state = op("add", state, op("relu", op("mm", x, weight, elements=8), elements=8), elements=8)


NETWORKS = [scan, running_sum, masked_state, crossing_streams, residual_stream, growing_state]


@pytest.mark.parametrize("network", NETWORKS)
def test_steps_grow_as_the_records_do(network: Callable[[Tape, int], None]) -> None:
    """Near-linear by counting: neighbours looked at per record, which a quadratic search would multiply by four."""
    per_record = []
    for tokens in (500, 2000):
        op = Tape()
        network(op, tokens)
        fusion = Fusion(op.records, ())
        assert_it_can_run(fusion, fusion.epilogue(fusion.pointwise()))
        per_record.append(fusion.steps / len(op.records))
    assert per_record[1] <= 8 and per_record[1] <= 1.5 * per_record[0] + 0.5


def reachable(edges: Mapping[int, set[int]], start: int) -> set[int]:
    found: set[int] = set()
    stack = [start]
    while stack:
        for one in edges[stack.pop()] - found:
            found.add(one)
            stack.append(one)
    return found


@pytest.mark.parametrize("allowance", [0, 20_000])
def test_what_precedes_what_is_found_exactly_or_assumed(allowance: int) -> None:
    """Against the closure over plain sets. Without steps to spend, more is taken to precede, never less."""
    for seed in range(60):
        with patch.multiple(kernel_graph, STEPS_AT_FIRST=allowance, STEPS_PER_RECORD=0):
            assert_precedence(KernelGraph(), random.Random(seed), is_exact=bool(allowance))


def assert_precedence(graph: KernelGraph, choose: random.Random, is_exact: bool) -> None:
    needs: dict[int, set[int]] = {}
    for _ in range(60):
        feeding = set(choose.sample(sorted(needs), min(len(needs), choose.randint(0, 3))))
        exact = {one for one in feeding if any(one in reachable(needs, other) for other in feeding)}
        found = graph.preceding(sorted(feeding), feeding) if feeding else set()
        assert found == exact if is_exact else found >= exact
        homes = sorted(feeding - found, reverse=True)[: choose.randint(0, 2)]
        if homes and graph.join(homes, feeding):
            home, *others = homes
            assert {graph.find(one) for one in homes} == {home}
            needs[home] = set().union(*(needs[one] for one in homes), feeding - set(homes))
            for other in others:
                del needs[other]
            needs = {one: {home if two in others else two for two in before} for one, before in needs.items()}
        else:
            assert not homes or not is_exact
            needs[graph.add(feeding)] = set(feeding)


@settings(deadline=None, max_examples=25)
@given(program=programs)
def test_without_steps_to_spend_less_is_fused_and_all_holds(program: Program) -> None:
    with watched() as seen, patch.multiple(kernel_graph, STEPS_AT_FIRST=0, STEPS_PER_RECORD=0):
        found = profile(program, (SIDE, SIDE), device="meta")
    assert_ordered(found.cost.memory_access_levels)
    ((fusion, *ways),) = seen
    for homes in ways:
        assert_it_can_run(fusion, homes)
