"""Operators called under other names or through other interfaces: equal counts, against values by hand."""

from __future__ import annotations

import os
import queue
import random
import signal
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache, partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from networks import FunctionModule
from torch import nn
from torch.nn import functional

from effbench import api
from effbench.core.errors import ModelError, UnknownName
from effbench.cost import count, forked_call, profile

LSTM = 10 * 4 * 16 * (8 + 16)
"""Ten steps, four gates of 16 units, inputs of 8."""


def linear(function: Callable[..., Any]) -> FunctionModule:
    return FunctionModule(function, layer=nn.Linear(8, 8))


# --- recurrent layers -------------------------------------------------------------------------------


class Tagger(nn.LSTM):
    """A recurrent layer with a layer of its own."""

    def __init__(self) -> None:
        super().__init__(8, 16, batch_first=True)
        self.head = nn.Linear(16, 1000)

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(super().forward(x)[0])


class Twice(nn.LSTM):
    """Runs twice, and returns a dictionary."""

    def __init__(self) -> None:
        super().__init__(8, 16, batch_first=True)

    def forward(self, x: torch.Tensor) -> Any:
        return {"sum": super().forward(x)[0] + super().forward(x)[0]}


class OwnStep(nn.RNNBase):
    """Says that it is an LSTM, and is a product."""

    def __init__(self) -> None:
        super().__init__("LSTM", 8, 16, batch_first=True)

    def forward(self, x: torch.Tensor) -> Any:
        return x @ torch.ones(8, 2, device=x.device)


def lstm() -> nn.LSTM:
    return nn.LSTM(8, 16, batch_first=True).eval()


def packed(model: FunctionModule, x: torch.Tensor) -> Any:
    rows = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([10]), batch_first=True)
    return nn.utils.rnn.pad_packed_sequence(model.layer(rows)[0], batch_first=True)[0]


def bare_gru(model: FunctionModule, x: torch.Tensor) -> Any:
    return torch.gru(x, x.new_zeros(1, len(x), 16), list(model.layer.parameters()), True, 1, 0.0, False, False, True)


def exported(model: nn.Module, *shape: int) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(model, (torch.randn(1, *shape),)).module()


def scripted(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(nn.Sequential(model))


RECURRENT: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "a subclass with a head": (Tagger, LSTM + 10 * 16_000),
    "forward of the base class twice": (Twice, 2 * LSTM),
    "a recurrence of its own": (OwnStep, 10 * 8 * 2),
    "scripted": (lambda: scripted(lstm()), LSTM),
    "exported": (lambda: exported(lstm(), 10, 8), LSTM),
    "packed sequences": (lambda: FunctionModule(packed, layer=lstm()), LSTM),
    "torch.gru": (lambda: FunctionModule(bare_gru, layer=nn.GRU(8, 16)), LSTM * 3 // 4),
    "cells in a loop": (
        lambda: FunctionModule(lambda m, x: [m.layer(x[:, i]) for i in range(10)], layer=nn.LSTMCell(8, 16)),
        LSTM,
    ),
    "two layers, both ways, projected": (
        lambda: FunctionModule(lambda m, x: m.layer(x)[0], layer=nn.LSTM(8, 16, 2, True, True, 0.0, True, 4)),
        4 * 10 * (4 * 16 * (8 + 4) + 16 * 4),
    ),
}


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("inference", [False, True])
def test_recurrent_layers_count_where_they_run(name: str, inference: bool) -> None:
    build, madds = RECURRENT[name]
    model = build()
    with torch.inference_mode(inference):
        cost = profile(model, (10, 8)).cost
    assert (cost.madds, cost.status) == (madds, "complete")


def test_a_recurrent_layer_moves_its_weights_once_and_its_states() -> None:
    cost = profile(lstm(), (10, 8)).cost
    weights = 4 * 16 * (8 + 16) + 2 * 4 * 16
    states = 2 * (16 + 16)  # two states of zeros, written and read
    assert cost.memory_access == weights + states + 10 * 8 + 10 * 16
    assert cost.params == weights


def test_a_projected_layer_works_on_every_hidden_unit() -> None:
    """Nine operations for each of 16, though only 4 leave: ten steps, two layers, both ways."""
    model = FunctionModule(lambda m, x: m.layer(x)[0], layer=nn.LSTM(8, 16, 2, True, True, 0.0, True, 4))
    assert profile(model, (10, 8)).cost.elementwise == 9 * 10 * 16 * 2 * 2


# --- attention --------------------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self, attend: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.attend, self.qkv = attend, nn.Linear(64, 192)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.qkv(x).reshape(len(x), x.shape[1], 3, 4, 16).permute(2, 0, 3, 1, 4)
        return self.attend(query, key, value)


ATTENTIONS = {
    "functional": functional.scaled_dot_product_attention,
    "torch._C": torch._C._nn.scaled_dot_product_attention,
    "aten": torch.ops.aten.scaled_dot_product_attention,
    "partial": partial(functional.scaled_dot_product_attention, is_causal=True),
    "grouped": lambda q, k, v: functional.scaled_dot_product_attention(q, k[:, :2], v[:, :2], enable_gqa=True),
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_by_every_name_stores_no_scores(name: str) -> None:
    layer = 196 * 64 + 64 * 192 + 192 + 196 * 192
    attended = 4 * 196 * 64 if name != "grouped" else 3 * 196 * 64
    for inference in (False, True):
        with torch.inference_mode(inference):
            levels = profile(Attention(ATTENTIONS[name]), (196, 64)).cost.memory_access_levels
        assert {moved.elements for moved in levels.values()} == {layer + attended}


def test_exported_attention_stores_no_scores() -> None:
    model = Attention(functional.scaled_dot_product_attention).eval()
    assert (
        profile(exported(model, 196, 64), (196, 64)).cost.memory_access == profile(model, (196, 64)).cost.memory_access
    )


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 1, 3), (2, 0, 1, 3), (1, 2, 0, 3)])
@pytest.mark.parametrize("kind", ["plain", "masked", "narrow values", "one query for all", "shared heads"])
def test_attention_lays_out_its_result_as_on_the_cpu(order: tuple[int, ...], kind: str) -> None:
    def forward(model: FunctionModule, x: torch.Tensor) -> torch.Tensor:
        query = x.permute(order)
        value = query[..., :2].contiguous() if kind == "narrow values" else query
        first = query[:1] if kind == "one query for all" else query
        mask = x.new_zeros(query.shape[-2], query.shape[-2]) if kind == "masked" else None
        if kind == "shared heads":
            key = query[:, :1]
            out = functional.scaled_dot_product_attention(query, key, key, enable_gqa=True)
        else:
            out = functional.scaled_dot_product_attention(first, query, value, mask)
        return out.transpose(1, 2).reshape(len(out), out.shape[2], -1)  # copies where the layout asks for it

    model = FunctionModule(forward)
    costs = {count(model, (4, 3, 4), batch=5, device=device).cost.memory_access for device in ("meta", "real")}
    assert len(costs) == 1


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_multihead_attention_copies_as_on_the_cpu(batch: int) -> None:
    layer = nn.MultiheadAttention(64, 4, batch_first=True)
    model = FunctionModule(lambda m, x: m.layer(x, x, x, need_weights=False)[0], layer=layer)
    costs = {count(model, (10, 64), batch=batch, device=device).cost.memory_access for device in ("meta", "real")}
    assert len(costs) == 1


# --- modes ------------------------------------------------------------------------------------------


def test_inference_mode_changes_no_count() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(36, 8)
    )
    plain = count(model, (3, 5, 5)).cost

    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        @torch.inference_mode()
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.model(x)

    with torch.inference_mode():
        assert count(model, (3, 5, 5)).cost == plain
    assert count(Inside(), (3, 5, 5)).cost == plain


@pytest.mark.parametrize("inside", [True, False])
def test_autocast_of_the_cpu_casts_on_shapes_too(inside: bool) -> None:
    """Input, weight and bias are cast (read at 4 bytes, written at 2) and multiplied at 2."""

    def forward(model: FunctionModule, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=inside):
            return model.layer(x)

    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not inside):
        model = linear(forward if inside else lambda m, x: m.layer(x))
        found = count(model, (8,))
        assert found.cost.memory_access_bytes == 6 * (8 + 64 + 8) + 2 * (8 + 64 + 8 + 8)
        with torch.device("meta"):
            assert count(linear(model.function), (8,)).cost.madds == 64
    assert found.cost.traced_on == "meta"


def test_autocast_may_be_switched_by_hand() -> None:
    def forward(model: FunctionModule, x: torch.Tensor) -> torch.Tensor:
        torch.set_autocast_enabled(x.device.type, True)
        try:
            return model.layer(x)
        finally:
            torch.set_autocast_enabled(x.device.type, False)
            torch.clear_autocast_cache()

    found = count(linear(forward), (8,))
    assert found.cost.memory_access_bytes == 6 * (8 + 64 + 8) + 2 * (8 + 64 + 8 + 8)


@pytest.mark.parametrize(
    "elsewhere",
    [
        lambda x: x.device.type == "meta",
        lambda x: x.device != torch.device("cpu"),
        lambda x: "meta" in str(x.device),
        lambda x: x.is_meta,
        lambda x: not x.is_cpu,
        lambda x: x.get_device() != -1,
        lambda x: x.type() != "torch.FloatTensor",
        lambda x: torch.zeros(1, device=x.device).is_meta,
    ],
)
def test_a_network_that_looks_where_it_is_goes_as_it_goes_there(elsewhere: Callable[[Any], bool]) -> None:
    model = linear(lambda m, x: x if elsewhere(x) or elsewhere(m.layer.weight) else m.layer(x))
    assert count(model, (8,)).cost.madds == 64
    with torch.device("meta"):
        assert count(linear(model.function), (8,), device="meta").cost.madds == 64
    assert torch.empty(1, device="meta").device.type == "meta"


def attempt(read: Callable[[torch.Tensor], Any]) -> FunctionModule:
    def forward(model: FunctionModule, x: torch.Tensor) -> torch.Tensor:
        try:
            read(x)
        except Exception:
            return x
        return model.layer(x)

    return linear(forward)


READS: list[Callable[[torch.Tensor], Any]] = [
    lambda x: int((x > -9).sum()),
    lambda x: x.sum().item(),
    lambda x: bool(x.sum() > 1e9),
    lambda x: x.tolist(),
    lambda x: x.numpy(),
    lambda x: np.asarray(x),
    lambda x: np.from_dlpack(x),
    lambda x: x.untyped_storage()[0],
    lambda x: x.nonzero(),
    lambda x: torch.equal(x, x),
    lambda x: x.unique(),
]


@pytest.mark.parametrize("read", READS)
def test_a_value_that_is_missing_is_noticed_though_the_error_is_caught(read: Callable[[torch.Tensor], Any]) -> None:
    cost = count(attempt(read), (8,)).cost
    assert (cost.madds, cost.traced_on) == (64, "cpu")
    with torch.device("meta"):
        bare = attempt(read)
    with pytest.raises(ModelError, match="values"):
        count(bare, (8,))


def test_an_error_of_its_own_may_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("effbench.cost.trace_modes.SMALL_BYTES", -1)  # also in a network of gigabytes

    def forward(model: FunctionModule, x: torch.Tensor) -> torch.Tensor:
        try:
            return torch.mm(x, torch.ones(3, 3))
        except RuntimeError:
            return model.layer(x)

    cost = count(linear(forward), (8,)).cost
    assert (cost.madds, cost.traced_on) == (64, "cpu"), "on shapes the error may be of our making"


def test_constants_have_their_values_on_shapes() -> None:
    def forward(model: FunctionModule, x: torch.Tensor) -> torch.Tensor:
        steps = int(torch.arange(4, device=x.device).sum())
        return sum((model.layer(x) for _ in range(steps)), x)

    cost = count(linear(forward), (8,)).cost
    assert (cost.madds, cost.traced_on) == (6 * 64, "meta")


def test_a_large_constant_takes_no_memory() -> None:
    def forward(model: FunctionModule, x: torch.Tensor) -> torch.Tensor:
        return model.layer(x) + torch.zeros(1 << 20, 1 << 20, device=x.device)[0, :8]

    assert count(linear(forward), (8,)).cost.traced_on == "meta"


def test_a_constant_that_the_input_is_written_into() -> None:
    def forward(model: FunctionModule, x: torch.Tensor) -> torch.Tensor:
        cache = torch.zeros(len(x), 20, 8)
        cache[:, :5] = model.layer(x)
        return functional.scaled_dot_product_attention(x, cache, cache)

    cost = count(linear(forward), (5, 8)).cost
    assert (cost.madds, cost.traced_on) == (5 * 64 + 5 * 20 * 16, "meta")


def test_a_constant_brought_to_the_device_is_no_copy() -> None:
    table = torch.ones(8)
    model = FunctionModule(lambda m, x: x * table.to(x.device))
    assert {count(model, (8,), device=device).cost.memory_access for device in ("meta", "real")} == {3 * 8}


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_what_grows_with_the_batch_is_no_weight(batch: int) -> None:
    """A class token repeated for every image, and a table that is not."""

    def forward(model: FunctionModule, x: torch.Tensor) -> torch.Tensor:
        token = model.token.repeat(len(x), 1, 1)
        return torch.cat([token, x], 1) * (model.table + 1)

    model = FunctionModule(forward, token=nn.Parameter(torch.ones(1, 1, 8)), table=nn.Parameter(torch.ones(5, 8)))
    moved = count(model, (4, 8), batch=batch).cost.memory_access_levels["eager"]
    assert moved.weights == 8 + 3 * 40  # the token and the table, the table's sum written and read
    assert moved.activations == batch * (8 + 2 * 40 + 2 * 40)


def test_a_weight_written_into_what_the_input_makes_leaves_it_an_activation() -> None:
    def forward(model: FunctionModule, x: torch.Tensor) -> torch.Tensor:
        y = x * 1
        y[:, :1] = model.token
        return y + 1

    model = FunctionModule(forward, token=nn.Parameter(torch.ones(1)))
    moved = count(model, (), inputs=(torch.ones(1, 8),)).cost.memory_access_levels["eager"]
    assert (moved.weights, moved.activations) == (1, 8 + 8 + 1 + 8 + 8)


# --- threads ----------------------------------------------------------------------------------------

POOL = ThreadPoolExecutor(1)


def in_threads(model: FunctionModule, x: torch.Tensor) -> Any:
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(model.layer(x))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found[0] + found[1]


class Worker(threading.Thread):
    """A thread with a `run` of its own."""

    def __init__(self, model: FunctionModule, x: torch.Tensor) -> None:
        super().__init__()
        self.model, self.x = model, x

    def run(self) -> None:
        self.found = self.model.layer(self.x)


def in_workers(model: FunctionModule, x: torch.Tensor) -> Any:
    workers = [Worker(model, x), Worker(model, x)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return workers[0].found + workers[1].found


def in_thread_pool(model: FunctionModule, x: torch.Tensor) -> Any:
    with ThreadPool(2) as pool:
        return sum(pool.map(model.layer, [x])) + pool.apply_async(model.layer, (x,)).get()


def in_thread_pool_by_rows(model: FunctionModule, x: torch.Tensor) -> Any:
    found: list[Any] = []
    with ThreadPool(2) as pool:
        pool.apply_async(model.layer, (x,), callback=found.append).wait()
        return sum(pool.starmap(model.layer, [(x,)])) + found[0]


def in_a_thread_that_is_waited_for(model: FunctionModule, x: torch.Tensor) -> Any:
    found: queue.Queue[Any] = queue.Queue()
    threading.Thread(target=lambda: (time.sleep(0.2), found.put(model.layer(x)))).start()
    return found.get() + model.layer(x)


@pytest.mark.parametrize(
    "forward",
    [
        in_threads,
        in_workers,
        in_thread_pool,
        in_thread_pool_by_rows,
        in_a_thread_that_is_waited_for,
        lambda m, x: sum(POOL.map(m.layer, [x, x])),
        lambda m, x: POOL.submit(m.layer, x).result() + m.layer(x),
    ],
)
def test_threads_are_followed(forward: Callable[..., Any]) -> None:
    POOL.submit(int).result()  # its thread is there before the count, and not in a forked process
    for counted in (profile, count):
        cost = counted(linear(forward), (8,)).cost
        assert (cost.madds, cost.status) == (128, "complete")
    assert POOL.submit(int).result() == 0


def test_other_threads_go_on_with_their_pools() -> None:
    POOL.submit(int).result()
    asked, ran = threading.Event(), []

    def other() -> None:
        asked.wait()
        ran.append(POOL.submit(threading.get_ident).result())

    thread = threading.Thread(target=other)
    thread.start()

    def forward(model: FunctionModule, x: torch.Tensor) -> torch.Tensor:
        asked.set()
        for _ in range(1000):
            time.sleep(0 if ran else 0.01)
        return model.layer(x)

    cost = count(linear(forward), (8,)).cost
    thread.join()
    assert (cost.madds, cost.status) == (64, "complete")
    assert ran and ran[0] != thread.ident


def test_work_of_a_thread_that_was_there_before_is_named() -> None:
    orders: Any = queue.Queue()
    results: Any = queue.Queue()
    threading.Thread(target=lambda: [results.put(orders.get()()) for _ in range(9)], daemon=True).start()

    def forward(model: FunctionModule, x: torch.Tensor) -> Any:
        orders.put(lambda: model.layer(x))
        try:
            return results.get(timeout=0.5)
        except queue.Empty:
            return x

    cost = profile(linear(forward), (8,)).cost
    assert cost.status == "partial" and "other threads" in cost.uncounted


@pytest.mark.parametrize("hand_over", [lambda x: x.numpy(), np.asarray, np.from_dlpack])
def test_what_numpy_computes_is_named(hand_over: Callable[[torch.Tensor], Any]) -> None:
    model = linear(lambda m, x: torch.from_numpy(hand_over(x) @ np.ones((8, 8), dtype=np.float32)))
    cost = profile(model, (8,)).cost
    assert cost.status == "partial" and "numpy" in cost.uncounted


def test_what_numpy_reads_of_the_weights_is_no_work_on_the_input() -> None:
    model = linear(lambda m, x: m.layer(x) if np.isfinite(m.layer.weight.detach().numpy()).all() else x)
    cost = profile(model, (8,)).cost
    assert (cost.madds, cost.status) == (64, "complete")


# --- what a profile leaves behind -------------------------------------------------------------------


class Table:
    """Keeps what it made, outside of every module."""

    made: dict[Any, Any]

    def __init__(self) -> None:
        self.made = {"nested": {}}

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if "table" not in self.made["nested"]:
            self.made["nested"]["table"] = torch.arange(8, device=x.device, dtype=x.dtype)
        return x * self.made["nested"]["table"]


KEPT: dict[Any, torch.Tensor] = {}


@lru_cache(None)
def cached(device: torch.device) -> torch.Tensor:
    return torch.arange(8.0, device=device)


def kept_by_module(model: FunctionModule, x: torch.Tensor) -> torch.Tensor:
    if x.shape not in KEPT:
        KEPT[x.shape] = torch.arange(8.0, device=x.device)
    return model.layer(x * KEPT[x.shape])


def kept_by_class(model: FunctionModule, x: torch.Tensor) -> torch.Tensor:
    if not hasattr(Table, "shared"):
        Table.shared = torch.arange(8.0, device=x.device)  # type: ignore[attr-defined]
    return model.layer(x * Table.shared)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "forward",
    [
        kept_by_module,
        kept_by_class,
        lambda m, x: m.layer(m.table(x)),
        lambda m, x: m.layer(x * cached(x.device)),
    ],
)
def test_no_cache_of_the_network_holds_what_has_no_values(forward: Callable[..., Any]) -> None:
    model = FunctionModule(forward, layer=nn.Linear(8, 8), table=Table())
    assert profile(model, (8,)).cost.madds == 64
    assert not KEPT and not hasattr(Table, "shared") and not cached.cache_info().currsize
    assert not model.table.made["nested"]
    assert model(torch.randn(1, 8)).isfinite().all()
    for clear in (
        KEPT.clear,
        cached.cache_clear,
        partial(delattr, Table, "shared") if hasattr(Table, "shared") else int,
    ):
        clear()


def test_nothing_that_the_network_writes_or_draws_is_left() -> None:
    norm = nn.BatchNorm2d(3)  # in a list, which eval mode does not reach
    table = Table()
    table.made = {"tensor": torch.ones(8)}

    def forward(model: FunctionModule, x: torch.Tensor) -> Any:
        table.made["tensor"].mul_(2)
        os.environ["EFFBENCH_TEST"] = "written"
        random.random(), np.random.rand(), torch.rand(1)
        return norm(x), KEPT.setdefault("x", x)

    model = FunctionModule(forward)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]
    profile(model, (3, 8, 8))
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before  # type: ignore[index]
    assert int(norm.num_batches_tracked) == 0 and float(table.made["tensor"][0]) == 1.0
    assert not KEPT and "EFFBENCH_TEST" not in os.environ


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("counted", [profile, count])
def test_torch_compile_compiles_after_a_profile(counted: Any, full: bool) -> None:
    compiled: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    torch._dynamo.reset()
    model = FunctionModule(
        lambda m, x: m.layer(x), layer=torch.compile(nn.Linear(8, 8), backend=backend, fullgraph=full)
    )
    assert counted(model, (8,)).cost.madds == 64 and not compiled
    model(torch.randn(1, 8))
    assert len(compiled) == 1
    assert counted(model, (8,)).cost.madds == 64 and len(compiled) == 1


# --- the child process ------------------------------------------------------------------------------

forks = pytest.mark.skipif(not forked_call.can_fork(), reason="no fork here")


@forks
def test_what_ends_the_child_is_said() -> None:
    home = os.getpid()

    def ended(end: Callable[[], Any]) -> None:
        def forward(model: FunctionModule, x: torch.Tensor) -> Any:
            assert os.getpid() != home, "counted in this process, which it would end"
            return end()

        profile(linear(forward), (8,))

    with pytest.raises(ModelError, match="SIGSEGV"):
        ended(lambda: os.kill(os.getpid(), 11))
    with pytest.raises(ModelError, match="exit code 3"):
        ended(lambda: os._exit(3))


@forks
def test_a_child_leaves_no_process_and_no_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    here = psutil.Process()

    def fails() -> None:
        raise ValueError("on purpose")

    def stands_still() -> None:
        threading.Event().wait()

    monkeypatch.setattr(forked_call, "IDLE_S", 1.0)
    before = here.num_fds(), here.children()
    for function in (int, fails, partial(os._exit, 3), stands_still):
        with suppress(ValueError, forked_call.ChildFailed):
            forked_call.run(function)
        assert (here.num_fds(), here.children()) == before, function


@forks
def test_what_the_network_prints_is_printed_here(capsys: pytest.CaptureFixture[str]) -> None:
    profile(linear(lambda m, x: (print("forward"), m.layer(x))[1]), (8,))
    assert "forward" in capsys.readouterr().out


@forks
def test_a_child_that_waits_for_ever_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forked_call, "IDLE_S", 2.0)
    home = os.getpid()
    never = threading.Event()

    def waits(model: FunctionModule, x: torch.Tensor) -> Any:
        if os.getpid() != home:
            never.wait()
        return model.layer(x) + torch.linalg.inv(torch.eye(8))[0]

    cost = profile(linear(waits), (8,)).cost
    assert cost.madds == 64, "counted in this process instead"
    assert (cost.status, dict(cost.uncounted)) == ("partial", {"what it waited for": 1, "linalg_inv_ex": 1})


@forks
def test_a_second_child_counts_where_the_first_waits_for_a_lock(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(forked_call, "IDLE_S", 2.0)
    home, counted_here = os.getpid(), []

    def waits_once(model: FunctionModule, x: torch.Tensor) -> Any:
        if os.getpid() == home:
            counted_here.append(x.device)
        if not (tmp_path / "waited").exists():
            (tmp_path / "waited").touch()
            threading.Event().wait()
        return model.layer(x)

    cost = profile(linear(waits_once), (8,)).cost
    assert (cost.madds, cost.status, dict(cost.uncounted)) == (64, "complete", {}) and not counted_here


@forks
def test_a_child_gives_two_of_its_own_up_before_it_is_given_up_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if waiting took no CPU time at all: looking after its own child keeps the first one busy now and then."""
    monkeypatch.setattr(forked_call, "IDLE_S", 16.0)
    monkeypatch.setattr(forked_call, "_seconds_computed", lambda process: 0.0)

    def counts() -> tuple[int, str]:
        home = os.getpid()

        def waits(model: FunctionModule, x: torch.Tensor) -> Any:
            if os.getpid() != home:
                threading.Event().wait()
            return model.layer(x)

        cost = profile(linear(waits), (8,)).cost
        return cost.madds, cost.status

    assert forked_call.run(counts) == (64, "partial")


@forks
def test_a_count_can_be_asked_for_where_python_warns_of_forks() -> None:
    with warnings.catch_warnings(), ThreadPoolExecutor(1) as pool:
        warnings.simplefilter("error")
        pool.submit(int).result()
        assert profile(nn.Linear(8, 8), (8,)).cost.madds == 64


def test_without_fork_the_modules_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forked_call, "can_fork", lambda: False)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert api.profile(model, (3, 5, 5)).cost.madds == 9 * 3 * 4 * 9
    assert model.training and not model[0].weight.is_meta and int(model[1].num_batches_tracked) == 0


@forks
def test_a_network_may_be_as_deep_as_python_allows() -> None:
    model: nn.Module = nn.Linear(4, 4)
    for _ in range(230):
        model = nn.Sequential(model)
    assert profile(model, (4,)).cost.madds == 16


@forks
def test_children_may_be_collected_by_the_kernel() -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert profile(nn.Linear(8, 8), (8,)).cost.madds == 64
    finally:
        signal.signal(signal.SIGCHLD, before)


@forks
def test_errors_for_people_travel_as_they_are() -> None:
    def unknown() -> None:
        raise UnknownName("model", "resnt", ["resnet"])

    with pytest.raises(UnknownName, match=r"no model named 'resnt'\. Did you mean 'resnet'\?") as raised:
        forked_call.run(unknown)
    assert raised.value.known == ("resnet",)


@forks
def test_a_child_of_a_child_may_compute_for_longer_than_one_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forked_call, "IDLE_S", 2.0)

    def busy() -> int:
        end = time.monotonic() + 4
        while time.monotonic() < end:
            pass
        return os.getpid()

    found = forked_call.run(lambda: forked_call.run(busy))
    assert found != os.getpid()
