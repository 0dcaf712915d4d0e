"""Capture of CUDA graphs: the state of torch after a failed capture, and the calls that follow it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from scripted_gpu import CALM as CALM_READING
from scripted_gpu import Gpu, Nvml, device

from effbench.core.study import Sampling
from effbench.devices import torch_cuda
from effbench.devices.cuda import Cuda
from effbench.devices.torch_cuda import TorchCuda
from effbench.runs import worker
from effbench.runtimes import Unsupported
from effbench.timing import build_call

REFUSED = "CUDA error: operation not permitted when stream is capturing"
INVALID = "CUDA error: operation failed due to a previous error during capture"
ASSERT = "captures_underway.empty() INTERNAL ASSERT FAILED at CUDACachingAllocator.cpp"


@dataclass
class Torch:
    """``torch`` on a GPU, as far as capturing goes (aten/src/ATen/cuda/CUDAGraph.cpp of 2.10).

    Up to 2.12 `capture_end` of a capture that CUDA broke off raises before it tells the allocator and the random
    generators (not so where it `tells`). `can_end` is whether the binding that ends it for the allocator is there.
    """

    tells: bool = False
    can_end: bool = True
    underway: list[Any] = field(default_factory=list)
    current: Any = "default"
    capturing: Any = None
    is_invalid: bool = False
    generator_captures: bool = False
    launched: int = 0
    recorded: int = 0
    pools: int = 0

    def __post_init__(self) -> None:
        self.cuda = SimpleNamespace(
            Stream=lambda: SimpleNamespace(wait_stream=lambda other: None),
            current_stream=lambda: SimpleNamespace(wait_stream=lambda other: None),
            stream=self._within,
            CUDAGraph=lambda: Graph(self),
            graph_pool_handle=self._pool,
            synchronize=lambda index: None,
            empty_cache=self._empty,
            OutOfMemoryError=MemoryError,
            reset_peak_memory_stats=lambda index: None,
            memory_allocated=lambda index: 0,
        )
        self._C = SimpleNamespace(**({"_cuda_endAllocateToPool": self._end} if self.can_end else {}))

    @contextlib.contextmanager
    def _within(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def _pool(self) -> tuple[int, int]:
        self.pools += 1
        return (0, self.pools)

    def _empty(self) -> None:
        if self.underway:
            raise RuntimeError(ASSERT)

    def _end(self, index: int, pool: Any) -> None:
        if pool not in self.underway:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.underway.remove(pool)

    def launch(self) -> None:
        if self.capturing:
            self.recorded += 1
        else:
            self.launched += 1

    def zeros(self, *_: Any, **__: Any) -> None:
        self.launch()

    def read_back(self) -> None:
        self.launch()
        if self.capturing:
            self.is_invalid = True
            raise RuntimeError(f"{REFUSED}\nCUDA kernel errors might be asynchronously reported")

    def draw(self) -> None:
        if self.generator_captures and not self.capturing:
            raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")
        self.launch()


class Graph:
    def __init__(self, torch: Torch) -> None:
        self.torch = torch

    def capture_begin(self, pool: Any, capture_error_mode: str) -> None:
        assert self.torch.current != "default" and capture_error_mode == "thread_local"
        if self.torch.underway:
            raise RuntimeError(ASSERT)
        self.pool = pool
        self.torch.underway.append(pool)
        self.torch.capturing, self.torch.generator_captures, self.torch.recorded = self, True, 0

    def capture_end(self) -> None:
        torch, invalid = self.torch, self.torch.is_invalid
        assert torch.current != "default"
        torch.capturing, torch.is_invalid = None, False
        if not invalid or torch.tells:
            torch._end(0, self.pool)
            torch.generator_captures = False
        if invalid:
            raise RuntimeError(INVALID)
        if not torch.recorded:
            warnings.warn("The CUDA Graph is empty. This usually means that ...", stacklevel=1)

    def replay(self) -> None:
        self.torch.launched += 1


@pytest.fixture(autouse=True)
def afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_cuda, "_FAILED_GRAPHS", [])


def adapter(torch: Torch) -> TorchCuda:
    made = TorchCuda(0)
    made._torch, made._cuda = torch, torch.cuda
    return made


TORCHES: dict[str, Callable[[], Torch]] = {
    "to 2.12": Torch,
    "later": lambda: Torch(tells=True),
    "without the binding": lambda: Torch(can_end=False),
}


@pytest.mark.parametrize("version", TORCHES)
@pytest.mark.parametrize("pooled", [False, True])
def test_a_capture_that_cuda_breaks_off_is_left_behind(version: str, pooled: bool) -> None:
    torch = TORCHES[version]()
    api = adapter(torch)
    pool = api.graph_pool() if pooled else None
    with pytest.raises(RuntimeError, match=REFUSED):
        api.capture(torch.read_back, pool)
    assert torch.current == "default", "else everything after it runs on the stream of the capture"
    api.abandon_capture()
    api.empty_cache()  # raises for nobody, whatever the allocator believes
    if version == "without the binding":
        assert ASSERT in str(api.why_unusable())
        with pytest.raises(RuntimeError, match="an earlier capture failed"):
            api.capture(torch.launch)
        return
    assert api.why_unusable() is None
    torch.draw()
    before = torch.launched
    api.capture(torch.launch, pool)()
    assert torch.launched == before + 2 + 1, "the small capture is recorded only, after a pass; one aside, one replay"


@pytest.mark.parametrize("error", [ZeroDivisionError("in Python"), KeyboardInterrupt()])
def test_an_error_of_the_call_itself_ends_the_capture(error: BaseException) -> None:
    torch = Torch()
    api, count = adapter(torch), 0

    def call() -> None:
        nonlocal count
        count += 1
        torch.launch()
        if count == 2:
            raise error

    with pytest.raises(type(error)):
        api.capture(call)
    assert not torch.capturing and not torch.underway and torch.current == "default"
    assert api.why_unusable() is None


def test_a_call_that_launches_nothing_on_torchs_stream_has_no_graph_to_time() -> None:
    """Its replay takes no time at all, which would make any cell host-bound; and the warning is no test's failure."""
    torch = Torch()
    with pytest.raises(RuntimeError, match="launches nothing"):
        adapter(torch).capture(lambda: None)


def test_an_error_of_a_kernel_stays() -> None:
    torch = Torch()
    torch.cuda.synchronize = lambda index: (_ for _ in ()).throw(RuntimeError("device-side assert triggered\nmore"))
    assert adapter(torch).why_unusable() == "device-side assert triggered"


def test_out_of_memory_is_said_where_the_cache_cannot_be_emptied() -> None:
    torch = Torch(underway=["a capture that failed"])
    made = Cuda(api=adapter(torch))

    def call() -> None:
        raise MemoryError("CUDA out of memory")

    from effbench.devices import OutOfMemory

    with pytest.raises(OutOfMemory):
        made.run_calls(call, 1)
    made.empty_cache()


# --- a launch ---------------------------------------------------------------------------------------


class Cells:
    """A launch of cells on a scripted GPU, in this process. Each has the runtime and what preparing it does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, gpu: Gpu, cells: dict[str, tuple[str, Any]]) -> None:
        self.gpu, self.cells, self.device = gpu, cells, device(gpu)
        self.events: list[dict[str, Any]] = []
        monkeypatch.setattr(worker.devices, "get", lambda *words, **options: self.device)
        monkeypatch.setattr(worker.runtimes, "why_unavailable", lambda name: "not here")
        monkeypatch.setattr(build_call, "prepare", lambda spec, *rest, **how: self.cells[spec["id"]][1]())
        monkeypatch.setattr(worker, "_freeze_garbage", lambda: None)

    def launch(self, *names: str, orders: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
        cells = [
            {
                "id": name,
                "runtime": self.cells[name][0],
                "calls": None,
                "reference": next(iter(self.cells)),
                "folder": ".",
            }
            for name in names
        ]
        job = {
            "sampling": vars(Sampling(min_rounds=2, max_rounds=2, warmup_s=0.01, max_warmup_s=0.02, block_s=0.001)),
            "device": "cuda", "device_options": {}, "runtimes": ["eager"], "mode": "train", "cells": cells, "launch": 0,
            "seed": 0, "first_round": 0, "budget_s": 100.0, "clock": "device", "obeys": orders is not None,
        }  # fmt: skip
        self.events = []
        told = iter(orders or ())
        worker.launch(job, lambda event, **fields: self.events.append({"event": event, **fields}), lambda: next(told))
        return self.events

    def of(self, kind: str) -> dict[str, dict[str, Any]]:
        return {event["cell"]: event for event in self.events if event["event"] == kind}


def test_a_capture_that_fails_costs_no_cell_of_the_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(graph=RuntimeError(REFUSED))
    cells = Cells(monkeypatch, gpu, {name: ("eager", lambda: gpu.kernels(10_000, 100_000)) for name in ("a", "b", "c")})
    kinds = [event["event"] for event in cells.launch("a", "b", "c")]
    assert set(cells.of("block")) == {"a", "b", "c"} and "skip" not in kinds
    assert kinds.index("end") < kinds.index("probe") and kinds[-1] == "facts"
    reasons = [event["values"]["graph_reason"] for event in cells.of("probe").values()]
    assert reasons[0] == f"no CUDA graph: {REFUSED}"
    assert all("not probed, since an earlier capture failed" in reason for reason in reasons[1:])
    assert all(event["values"]["device_s"] for event in cells.of("probe").values()), "measured all the same"


def test_a_probe_that_fails_altogether_is_no_failure_of_the_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(graph=1_000)
    cells = Cells(monkeypatch, gpu, {"a": ("eager", lambda: gpu.kernels(10_000, 100_000))})
    monkeypatch.setattr(gpu, "reset_peak", lambda: 1 // 0)
    events = cells.launch("a")
    assert not cells.of("skip") and events[-1]["event"] == "facts"
    assert cells.of("probe")["a"]["values"]["graph_reason"].startswith("not probed: ZeroDivisionError")


@pytest.mark.parametrize("mends", [False, True])
def test_a_cell_that_cannot_be_captured_is_left_out_and_the_others_are_measured(
    monkeypatch: pytest.MonkeyPatch, mends: bool
) -> None:
    """Where torch does not get over it the process ends with the cell reported, and the parent starts another."""
    gpu = Gpu(graph=RuntimeError(REFUSED), mends=mends)

    def captured() -> Any:
        try:
            return gpu.capture(gpu.kernels(10_000, 100_000))
        except RuntimeError as error:
            raise Unsupported(f"a CUDA graph cannot hold it: {error}") from error

    ordinary = ("eager", lambda: gpu.kernels(10_000, 100_000))
    cells = Cells(monkeypatch, gpu, {"a": ordinary, "b": ("cudagraph", captured), "c": ordinary})
    cells.launch("a", "b", "c")
    assert cells.of("skip")["b"]["reason"] == f"a CUDA graph cannot hold it: {REFUSED}"
    assert set(cells.of("skip")) == {"b"} and set(cells.of("block")) == ({"a", "c"} if mends else set())
    if not mends:
        assert "end" not in [event["event"] for event in cells.events], "so that this launch is made again"
        gpu.poisoned = False  # another process
        cells.launch("a", "c")
        assert set(cells.of("block")) == {"a", "c"} and not cells.of("skip")


def test_a_network_that_breaks_the_gpu_in_warm_up_takes_no_other_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """An index out of range fails every later call of the process: that is no fault of the other cells."""
    gpu = Gpu()

    def asserting() -> None:
        gpu.poisoned = True
        raise RuntimeError("CUDA error: device-side assert triggered")

    cells = Cells(
        monkeypatch, gpu, {"a": ("eager", lambda: asserting), "b": ("eager", lambda: gpu.kernels(10_000, 100_000))}
    )
    assert [event["event"] for event in cells.launch("a", "b")][-1] == "skip"
    assert set(cells.of("skip")) == {"a"}


def test_a_call_that_is_a_graph_already_is_not_captured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(graph=50_000)
    cells = Cells(monkeypatch, gpu, {"a": ("cudagraph", lambda: gpu.kernels(10_000, 100_000))})
    monkeypatch.setattr("effbench.runtimes.cuda_graph.CudaGraph.why_no_graph", "it is one already")
    cells.launch("a")
    assert cells.of("probe")["a"]["values"]["graph_reason"] == "no CUDA graph: it is one already"
    assert "capture" not in gpu.log


def test_the_other_side_of_a_pair_is_not_foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may start computing seconds after this one was set up, and has by the time that both are prepared."""
    from dataclasses import replace

    alone, both = (replace(CALM_READING, processes=frozenset(pids)) for pids in ({1}, {1, 2}))
    gpu = Gpu(watched=Nvml(alone), graph=1_000)
    cells = Cells(monkeypatch, gpu, {"a": ("eager", lambda: gpu.kernels(10_000, 100_000))})

    def orders() -> Iterator[dict[str, Any]]:
        gpu.watched.readings = [both]
        yield {"calls": {}}
        for number in range(5):
            gpu.clock += 2_000_000_000
            yield {"cell": "a", "round": number, "position": 0}
        yield {"cell": None}

    cells.launch("a", orders=orders())  # type: ignore[arg-type]
    blocks = [event for event in cells.events if event["event"] == "block"]
    assert len(blocks) == 5 and all(not event["timing"]["flags"] for event in blocks)


@pytest.mark.parametrize("ordered", [True, False])
def test_after_a_cell_fails_the_others_go_on_when_ordered_and_else_the_launch_ends(
    monkeypatch: pytest.MonkeyPatch, ordered: bool
) -> None:
    gpu, failing = Gpu(), False
    kernels = gpu.kernels(10_000, 100_000)

    def call() -> None:
        if failing:
            raise ValueError("now")
        kernels()

    def fail_from_now_on() -> None:
        nonlocal failing
        failing = True

    def orders() -> Iterator[dict[str, Any]]:
        yield {"calls": {"a": 1, "b": 1}}
        yield {"cell": "a", "round": 0, "position": 0}
        fail_from_now_on()
        yield {"cell": "a", "round": 1, "position": 0}
        yield {"cell": "b", "round": 1, "position": 1}
        yield {}

    cells = Cells(monkeypatch, gpu, {"a": ("eager", lambda: call), "b": ("eager", lambda: kernels)})
    if not ordered:  # what comes right before the rounds
        monkeypatch.setattr(worker, "_freeze_garbage", fail_from_now_on)
    events = cells.launch("a", "b", orders=orders() if ordered else None)  # type: ignore[arg-type]
    kinds = [event["event"] for event in events]
    assert cells.of("skip")["a"]["reason"] == "ValueError: now"
    assert ("end" in kinds) == ordered and kinds[-1] == "facts"
    if ordered:
        assert [(event["cell"], event["round"]) for event in events if event["event"] == "block"] == [
            ("a", 0),
            ("b", 1),
        ]
