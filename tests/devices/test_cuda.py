"""The CUDA device: its logic on a scripted GPU, and a real GPU where there is one."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_gpu import CALM, MB, Gpu, NotEnoughError, Nvml, NVMLError, device, library

from effbench.core.errors import InvalidValue, ModelError
from effbench.core.study import Sampling
from effbench.devices import Energy, OutOfMemory, cuda
from effbench.devices.cuda import Cuda, host_or_device_bound, rotations
from effbench.devices.torch_cuda import Policy, TorchCuda
from effbench.host import nvml
from effbench.timing import block_loop

# --- policies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", False), ("tf32", True)])
@pytest.mark.parametrize("autotune", [False, True])
def test_setup_sets_every_policy(precision: str, tf32: bool, autotune: bool) -> None:
    gpu = Gpu()
    made = device(gpu, precision=precision, autotune=autotune)
    made.setup()
    assert gpu.found == Policy(tf32, tf32, autotune)
    facts = made.facts()
    assert (facts["gpu.precision"], facts["gpu.autotune"], facts["gpu.cache"]) == (precision, autotune, "steady")


def test_a_runtime_with_its_own_kernels_is_told_the_policies_and_the_gpu() -> None:
    made = Cuda(1, api=Gpu(), precision="tf32", autotune=True)
    assert made.runtime_settings() == {"index": 1, "tf32": True, "autotune": True}
    assert device(Gpu()).runtime_settings() == {"index": 0, "tf32": False, "autotune": False}


@pytest.mark.parametrize("asked", [{}, {"current": 3}])
def test_a_library_past_torch_is_handed_a_stream_that_is_not_the_default(asked: dict[str, int]) -> None:
    """Address 0 means "none" to ONNX Runtime, which then computes beside whatever we time."""
    adapter = TorchCuda(0)
    made: list[int] = []
    streams = {"current": 0, **asked}

    def stream(index: int) -> Any:
        made.append(9)
        return SimpleNamespace(cuda_stream=9)

    adapter._cuda = SimpleNamespace(
        current_stream=lambda index: SimpleNamespace(cuda_stream=streams["current"]),
        Stream=stream,
        set_stream=lambda found: streams.update(current=found.cuda_stream),
        synchronize=lambda index: None,
    )
    assert adapter.stream_address() == adapter.stream_address() == streams["current"] == (3 if asked else 9)
    assert len(made) == (0 if asked else 1), "one stream for the whole process"


def test_what_products_of_halves_add_up_in_is_a_fact() -> None:
    torch = pytest.importorskip("torch")
    matmul, adapter = torch.backends.cuda.matmul, TorchCuda(0)
    before = matmul.allow_fp16_reduced_precision_reduction
    try:
        for allowed in (True, False):
            matmul.allow_fp16_reduced_precision_reduction = allowed
            assert adapter._reduced_precision_flags()["gpu.fp16_reduced_precision_reduction"] is allowed
    finally:
        matmul.allow_fp16_reduced_precision_reduction = before


@pytest.mark.parametrize("change", [{"matmul_tf32": True}, {"conv_tf32": True}, {"autotune": True}])
def test_a_network_that_changes_the_policy_is_found_out(change: dict[str, bool]) -> None:
    gpu = Gpu()
    made = device(gpu)
    made.setup()
    made.facts()
    gpu.found = replace(gpu.found, **change)
    with pytest.raises(ModelError, match="policy changed from matmul fp32, cudnn fp32, autotune off"):
        made.facts()


def test_a_policy_that_does_not_take_is_refused_at_once() -> None:
    class Stubborn(Gpu):
        def set_policy(self, policy: Policy) -> None:
            pass

    with pytest.raises(ModelError):
        device(Stubborn()).setup()


def test_setup_loads_the_gpu_for_as_long_as_asked() -> None:
    gpu = Gpu()
    device(gpu, warm_up_s=2.0).setup()
    assert gpu.clock >= 2_000_000_000
    assert gpu.log.count("work") == 20  # 100 ms each
    assert gpu.log.index("policy") < gpu.log.index("work")


@pytest.mark.parametrize("options", [{"precision": "fp8"}, {"cache": "warm"}])
def test_unknown_options_are_refused(options: dict[str, str]) -> None:
    with pytest.raises(InvalidValue, match="must be"):
        device(Gpu(), **options)


def test_torch_switches_agree_in_both_generations() -> None:
    torch = pytest.importorskip("torch")
    backends, adapter = torch.backends, TorchCuda(0)
    before = adapter.policy()
    try:
        for wanted in (Policy(True, True, True), Policy(False, False, False), Policy(True, True, False)):
            adapter.set_policy(wanted)
            assert adapter.policy() == wanted
            # The old readers still answer, and the same: compilers ask them.
            assert backends.cuda.matmul.allow_tf32 is wanted.matmul_tf32
            assert backends.cudnn.allow_tf32 is wanted.conv_tf32
            if hasattr(backends.cudnn, "rnn"):
                assert backends.cudnn.rnn.fp32_precision == backends.cudnn.conv.fp32_precision
            assert torch.get_float32_matmul_precision() == ("high" if wanted.matmul_tf32 else "highest")
        backends.cudnn.allow_tf32 = False
        assert adapter.policy() == Policy(True, False, False)
    finally:
        adapter.set_policy(before)


def test_switches_are_set_where_a_test_suite_has_frozen_them(monkeypatch: pytest.MonkeyPatch) -> None:
    backends = pytest.importorskip("torch").backends
    adapter = TorchCuda(0)
    before = adapter.policy()
    monkeypatch.setitem(backends.flags_frozen.__globals__, "__allow_nonbracketed_mutation_flag", False)
    with pytest.raises(RuntimeError, match="not allowed"):
        backends.cudnn.benchmark = True
    try:
        adapter.set_policy(Policy(True, False, True))
        assert adapter.policy() == Policy(True, False, True) and backends.flags_frozen()
    finally:
        adapter.set_policy(before)


# --- timing -----------------------------------------------------------------------------------------


def test_a_block_has_no_synchronisation_inside() -> None:
    gpu = Gpu()
    device(gpu).time_block(gpu.kernels(10_000, 100_000), 3)
    host = ["sync", "now", "call", "call", "call", "now", "sync", "now"]
    behind = ["spin", "event", "call", "call", "call", "event", "sync"]
    assert gpu.log == host + behind


@given(st.integers(1, 60), st.integers(1_000, 2_000_000), st.integers(1_000, 2_000_000))
@settings(deadline=None)
def test_host_and_device_time_of_a_scripted_gpu(calls: int, host: int, work: int) -> None:
    """Closed form: back to back, the wall is the larger of launching and computing, plus one of the other."""
    gpu = Gpu()
    timing = device(gpu).time_block(gpu.kernels(host, work), calls)
    assert timing.wall_ns == max(host, work) * calls + min(host, work)
    assert timing.device_ns == work * calls
    assert timing.calls == calls


def test_a_full_launch_queue_splits_the_block_and_loses_no_call() -> None:
    # However long the spin, the host leads by 20 launches at most, and the device is ten times faster.
    gpu = Gpu(queue_limit=20)
    timing = device(gpu).time_block(gpu.kernels(100_000, 10_000), 100)
    assert timing.device_ns == 100 * 10_000
    assert gpu.log.count("spin") > 100 // 20


def test_what_the_launch_queue_holds_is_learnt_once_and_pieces_are_alike() -> None:
    """Pieces that are thrown away cost a spin each, and unlike numbers of events in unlike blocks are a bias."""
    gpu = Gpu(queue_limit=20)
    made, call = device(gpu), gpu.kernels(100_000, 10_000)
    made.time_block(call, 100)
    blocks = []
    for _ in range(3):
        gpu.log.clear()
        assert made.time_block(call, 100).device_ns == 100 * 10_000
        log = gpu.log[gpu.log.index("spin") :]
        parts = " ".join(log).split("spin")[1:]
        blocks.append([part.count("call") for part in parts])
    assert blocks[0] == blocks[1] == blocks[2]
    assert sum(blocks[0]) == 100 and max(blocks[0]) - min(blocks[0]) <= 1 and len(blocks[0]) <= 2 * 100 // 19 + 1


def test_a_dry_spell_inside_a_piece_is_no_device_time() -> None:
    """Light layers, launched slower than the last time, leave the device idle; heavy ones behind them hide it."""
    gpu = Gpu()
    made, count = device(gpu), 0

    def call() -> None:
        nonlocal count
        place, in_second_pass = count % 10, 10 <= count < 20
        count += 1
        gpu.launch(300_000 if in_second_pass else 100_000, 1_000 if place < 8 else 10_000_000)

    assert made.time_block(call, 10).device_ns == 8 * 1_000 + 2 * 10_000_000


def waiting(gpu: Gpu) -> Callable[[], None]:
    """A network that reads a value back in its forward pass."""

    def call() -> None:
        gpu.launch(20_000, 50_000)
        gpu.synchronize()

    return call


@pytest.mark.parametrize("cache", ["steady", "cold"])
def test_a_call_that_waits_for_the_gpu_is_found_out_in_warm_up(cache: str) -> None:
    gpu = Gpu()
    made, call = device(gpu, cache=cache), waiting(gpu)
    warm, _ = block_loop.warm_up(made, call, "cell", None, Sampling(warmup_s=0.01, max_warmup_s=0.02, block_s=0.001))
    assert warm.calls > 3
    gpu.log.clear()
    timing = made.time_block(call, 8)
    assert timing.device_ns is None and timing.wall_ns == 8 * 70_000
    assert "spin" not in gpu.log, "each try would cost a spin"
    assert "waits for the GPU" in made.probe(call, 8)["device_reason"]


def test_one_block_without_device_time_is_no_habit() -> None:
    """A host that is held up now and then is not taken for a network that waits."""
    gpu, held_up = Gpu(), False
    made = device(gpu)

    def call() -> None:
        gpu.launch(10_000, 50_000)
        if held_up:
            gpu.synchronize()

    assert made.time_block(call, 1).device_ns
    held_up = True
    assert [made.time_block(call, 1).device_ns for _ in range(9)] == [None] * 9
    held_up = False
    assert made.time_block(call, 1).device_ns


def test_nothing_keeps_a_cell_alive_that_was_given_up() -> None:
    """One that ran out of memory must give its own back."""
    gpu = Gpu(watched=Nvml(CALM), graph=1_000)
    made = device(gpu)
    made.setup()
    call = gpu.kernels(10_000, 50_000)
    made.time_block(call, 2)
    made.probe(call, 2)
    gone = weakref.ref(call)
    del call
    gc.collect()
    assert gone() is None


def test_untimed_calls_are_made_once_and_waited_for() -> None:
    gpu = Gpu(watched=Nvml(CALM))
    made = device(gpu)
    made.setup()
    gpu.log.clear()
    looks = gpu.watched.looks
    made.run_calls(gpu.kernels(10_000, 70_000), 3)
    assert gpu.log == ["call", "call", "call", "sync"] and gpu.watched.looks == looks


def test_device_time_is_missing_where_the_host_never_leads() -> None:
    gpu = Gpu(queue_limit=1)
    timing = device(gpu).time_block(gpu.kernels(200_000, 10_000), 8)
    assert timing.device_ns is None
    assert timing.wall_ns == 8 * 200_000 + 10_000


def test_single_calls_are_waited_for_one_by_one() -> None:
    """10 us of launching and 70 us of work are 80 us for whoever waits, every time."""
    gpu = Gpu()
    found = device(gpu)
    assert found.time_calls(gpu.kernels(10_000, 70_000), 3) == [80_000] * 3


def test_memory_is_counted_afresh_by_the_allocator() -> None:
    gpu = Gpu()
    found = device(gpu)
    assert found.memory(reset_peak=True).peak_bytes == 700 and gpu.log == ["reset"]
    assert found.memory().reserved_bytes == 900 and gpu.log == ["reset"]


def test_cold_overwrites_the_cache_before_each_call_and_outside_its_clocks() -> None:
    gpu = Gpu()
    timing = device(gpu, cache="cold").time_block(gpu.kernels(10_000, 100_000), 2)
    alone = ["flush", "sync", "now", "call", "now", "sync", "now"]
    behind = ["spin", "flush", "event", "call", "event"]
    assert gpu.log == alone * 2 + behind * 2 + ["sync"]
    assert timing.wall_ns == 2 * 110_000
    assert timing.device_ns == 2 * 100_000


@pytest.mark.parametrize("cache", ["steady", "hot"])
def test_only_cold_flushes(cache: str) -> None:
    gpu = Gpu()
    device(gpu, cache=cache).time_block(gpu.kernels(1, 1), 2)
    assert "flush" not in gpu.log


def test_out_of_memory_is_a_result_and_frees_the_cache() -> None:
    def call() -> None:
        raise NotEnoughError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")

    gpu = Gpu()
    for attempt in (lambda: device(gpu).time_block(call, 3), lambda: device(gpu).probe(call, 3)):
        with pytest.raises(OutOfMemory, match=r"^CUDA out of memory\. Tried to allocate 2 GiB\.$") as raised:
            attempt()
        assert raised.value.__cause__ is None and raised.value.__context__ is None
    assert gpu.log[-1] == "empty"


def test_the_networks_own_errors_come_through() -> None:
    def call() -> None:
        raise RuntimeError("sizes do not match")

    with pytest.raises(RuntimeError, match="sizes do not match"):
        device(Gpu()).time_block(call, 1)


@pytest.mark.parametrize("words", ["CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED when calling"])
def test_libraries_that_run_out_underneath_are_recognised(words: str) -> None:
    pytest.importorskip("torch")
    adapter = TorchCuda(0)
    assert adapter.is_out_of_memory(RuntimeError(words))
    assert not adapter.is_out_of_memory(RuntimeError("CUDNN_STATUS_NOT_SUPPORTED"))
    assert not adapter.is_out_of_memory(ValueError(words))


# --- cache ------------------------------------------------------------------------------------------


@given(st.integers(1, 1 << 32), st.integers(0, 1 << 28))
@settings(deadline=None)
def test_rotating_inputs_outgrow_twice_the_cache_and_no_more_than_needed(size: int, l2: int) -> None:
    count = rotations(size, l2)
    assert 1 <= count <= 512
    assert count == 512 or count * size > 2 * l2
    assert count == 1 or (count - 1) * size <= 2 * l2


def test_rotation_follows_the_cache_policy() -> None:
    image = 4 * 3 * 224 * 224  # 602 112 bytes: 2 x 50 MiB / that is 174.1
    assert device(Gpu()).rotations(image) == 175
    assert device(Gpu(), cache="hot").rotations(image) == device(Gpu(), cache="cold").rotations(image) == 1
    assert device(Gpu(l2=None)).rotations(image) == 1
    with pytest.raises(InvalidValue):
        rotations(0, MB)


# --- what bounds a cell -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [(None, None), (0.9, "device"), (1.0499, "device"), (1.05, "mixed"), (1.2, "mixed"), (1.2001, "host"), (9, "host")],
)
def test_thresholds_of_bound(ratio: float | None, verdict: str | None) -> None:
    assert host_or_device_bound(ratio) == verdict


def test_probe_compares_the_host_with_graph_replay() -> None:
    gpu = Gpu(graph=80_000)
    found = device(gpu).probe(gpu.kernels(200_000, 100_000), 100)
    assert found["host_s"] == pytest.approx(201e-6)
    assert found["device_s"] == pytest.approx(100e-6)
    assert found["graph_s"] == pytest.approx(80e-6)
    assert found["host_over_device"] == pytest.approx(201 / 80)
    assert (found["bound"], found["graph_reason"]) == ("host", None)
    assert (found["peak_memory_bytes"], found["peak_reserved_bytes"], found["working_memory_bytes"]) == (700, 900, 600)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_probe_goes_on_without_a_graph_and_says_why() -> None:
    gpu = Gpu(graph=RuntimeError("operation not permitted when stream is capturing\nlong story"), mends=True)
    found = device(gpu).probe(gpu.kernels(10_000, 100_000), 50)
    assert found["graph_s"] is None
    assert found["graph_reason"] == "no CUDA graph: operation not permitted when stream is capturing"
    assert found["host_over_device"] == pytest.approx((100 * 50 + 10) / (100 * 50))
    assert found["bound"] == "device"
    assert "abandon" in gpu.log


@pytest.mark.parametrize("mends", [False, True])
def test_after_a_failed_capture_nothing_is_captured_unless_torch_got_over_it(mends: bool) -> None:
    gpu = Gpu(graph=RuntimeError("operation not permitted when stream is capturing"), mends=mends)
    made, call = device(gpu), gpu.kernels(200_000, 100_000)
    made.probe(call, 50)
    gpu.graph = 80_000
    gpu.log.clear()
    found = made.probe(call, 50)
    assert (made.why_unusable() is None) is mends
    assert ("capture" in gpu.log) is mends and (found["graph_s"] is not None) is mends
    assert found["bound"] == "host", "told without a graph too"
    if not mends:
        assert found["graph_reason"] == "no CUDA graph: not probed, since an earlier capture failed in this process"


def test_what_is_a_graph_already_is_not_captured() -> None:
    gpu = Gpu(graph=80_000)
    found = device(gpu).probe(gpu.kernels(10_000, 100_000), 50, why_no_graph="it is a replay already")
    assert "capture" not in gpu.log
    assert (found["graph_s"], found["graph_reason"]) == (None, "no CUDA graph: it is a replay already")
    assert found["bound"] == "device"


def test_what_earlier_cells_left_reserved_is_not_in_a_cells_memory() -> None:
    gpu = Gpu(graph=80_000)
    device(gpu).probe(gpu.kernels(10_000, 100_000), 2)
    assert gpu.log[:2] == ["empty", "reset"]


def test_a_graph_that_does_not_fit_is_no_out_of_memory_of_the_cell() -> None:
    gpu = Gpu(graph=NotEnoughError("CUDA out of memory"))
    assert device(gpu).probe(gpu.kernels(1_000, 100_000), 5)["bound"] == "device"


def test_probe_without_any_device_time_has_no_verdict() -> None:
    gpu = Gpu(graph=RuntimeError("no"), queue_limit=1)
    found = device(gpu).probe(gpu.kernels(200_000, 10_000), 8)
    assert (found["bound"], found["host_over_device"], found["device_s"]) == (None, None, None)


# --- disturbances -----------------------------------------------------------------------------------


def flags_of(*readings: nvml.GpuSample) -> list[tuple[str, ...]]:
    """Of blocks of one cell, more than a look at the processes apart."""
    gpu = Gpu(watched=Nvml(CALM, *readings))
    made, call = device(gpu), gpu.kernels(1, 1)
    made.setup()
    gpu.watched.readings.pop(0)
    found = []
    for _ in readings:
        found.append(made.time_block(call, 1).flags)
        gpu.clock += 2_000_000_000
    return found


@pytest.mark.parametrize(
    ("bits", "flags"),
    [
        (0x0, ()),
        (0x1, ()),
        (0x2, ()),
        (0x4, ()),  # at its power cap, as big GPUs are
        (0x8, ("hw-slowdown",)),
        (0x20, ("thermal",)),
        (0x40, ("thermal",)),
        (0x80, ("power-brake",)),
        (0x4 | 0x8 | 0x80, ("hw-slowdown", "power-brake")),
    ],
)
def test_throttle_bits_name_their_cause(bits: int, flags: tuple[str, ...]) -> None:
    assert flags_of(replace(CALM, reasons=bits)) == [flags]


@pytest.mark.parametrize("reasons", [None, 0x2, 0x100, 0x4 | 0x10])
def test_a_clock_drop_is_judged_by_the_running_median_of_its_cell(reasons: int | None) -> None:
    steady = [CALM] * 5
    just, below = (replace(CALM, sm_mhz=share * 1980, reasons=reasons) for share in (0.971, 0.969))
    assert flags_of(*steady, just, below, CALM)[5:] == [(), ("clock-drop",), ()]
    assert flags_of(below, CALM) == [(), ()]  # too few readings to know what is usual


@pytest.mark.parametrize("reasons", [0x0, 0x1, 0x4, 0x5])
def test_a_lower_clock_that_the_network_itself_causes_is_none(reasons: int) -> None:
    """At its power cap, or given so little to do that it idles."""
    assert set(flags_of(*[CALM] * 6, replace(CALM, sm_mhz=1500, reasons=reasons))) == {()}


def test_a_heavy_cell_is_not_held_to_the_clock_of_light_ones() -> None:
    gpu = Gpu(watched=Nvml(CALM))
    made, light, heavy = device(gpu), gpu.kernels(1, 1), gpu.kernels(1, 1)
    made.setup()
    for _ in range(20):
        for call, mhz in ((light, 1980), (heavy, 1500)):
            gpu.watched.readings = [replace(CALM, sm_mhz=mhz, reasons=None)]
            assert made.time_block(call, 1).flags == ()


@pytest.mark.parametrize("cache", ["steady", "cold"])
def test_clocks_are_read_while_the_device_computes(cache: str) -> None:
    """An idle GPU recovers: read after the block, a throttled one looks well."""
    gpu = Gpu()

    class Recovering(Nvml):
        def read(self) -> nvml.GpuSample:
            busy = gpu.busy_until > gpu.clock
            return replace(CALM, sm_mhz=1200.0 if busy else 1980.0, reasons=0x20 if busy else 0)

    gpu.watched = Recovering(CALM)
    made = device(gpu, cache=cache)
    made.setup()
    timing = made.time_block(gpu.kernels(10_000, 100_000), 4)
    assert timing.clocks["sm_mhz"] == 1200.0 and timing.flags == ("thermal",)


def test_a_block_asks_nvml_two_questions() -> None:
    asked: list[str] = []

    def answering(name: str, answer: Any) -> Callable[..., Any]:
        def ask(*_: Any) -> Any:
            asked.append(name)
            return answer

        return ask

    answers = {
        "nvmlDeviceGetClockInfo": 1980,
        "nvmlDeviceGetCurrentClocksEventReasons": 0,
        "nvmlDeviceGetComputeRunningProcesses": [SimpleNamespace(pid=3)],
        "nvmlDeviceGetPowerUsage": 300_000,
    }
    gpu = Gpu(watched=nvml.connect(library=library(**{k: answering(k, v) for k, v in answers.items()})))
    made, call = device(gpu), gpu.kernels(10_000, 100_000)
    made.setup()
    made.time_block(call, 1)
    asked.clear()
    assert made.time_block(call, 1).clocks == {"sm_mhz": 1980.0, "throttle_reasons": 0.0}
    assert asked == ["nvmlDeviceGetClockInfo", "nvmlDeviceGetCurrentClocksEventReasons"]
    gpu.clock += 2_000_000_000
    made.time_block(call, 1)
    assert asked.count("nvmlDeviceGetComputeRunningProcesses") == 1, "whether somebody came is asked now and then"


@pytest.mark.parametrize(
    ("clocks", "at_most"),
    [([1980.0] * 99, 0.8), ([600.0, 900.0, 1980.0] + [1980.0] * 99, 1.1), ([210.0] * 99, 2.1), ([0.0] * 99, 2.1)],
    ids=["warm", "rising", "asleep", "unknown"],
)
def test_setup_heats_no_longer_than_the_clock_takes_to_stand(clocks: list[float], at_most: float) -> None:
    gpu = Gpu(watched=Nvml(*(replace(CALM, sm_mhz=mhz or None) for mhz in clocks)))
    device(gpu, warm_up_s=2.0).setup()
    assert at_most - 0.3 <= gpu.clock * 1e-9 <= at_most


def test_only_a_process_that_appears_later_is_foreign() -> None:
    guest = replace(CALM, processes=frozenset({7, 99}))
    assert flags_of(CALM, guest, CALM) == [(), ("foreign-process",), ()]
    gpu = Gpu(watched=Nvml(CALM, guest))
    made, call = device(gpu), gpu.kernels(1, 1)
    made.setup()
    gpu.watched.readings.pop(0)
    made.expect_current_processes()
    assert made.time_block(call, 1).flags == ()


def test_where_nvml_lists_nobody_nobody_is_foreign_and_none_are_counted() -> None:
    """As in a container with process numbers of its own, though this very process computes."""
    nobody = replace(CALM, processes=frozenset())
    gpu = Gpu(watched=Nvml(nobody, replace(CALM, processes=frozenset({99}))))
    made, call = device(gpu), gpu.kernels(1, 1)
    made.setup()
    assert made.facts()["gpu.other_processes"] is None
    gpu.clock += 2_000_000_000
    assert made.time_block(call, 1).flags == ()


@pytest.mark.parametrize(("others", "told"), [([], 0), ([99], 1), ([99, 100], 2)])
def test_other_processes_are_counted_where_we_are_among_them(others: list[int], told: int) -> None:
    for own, expected in ((os.getpid(), told), (2**22 + 1, None)):
        gpu = Gpu(watched=Nvml(replace(CALM, processes=frozenset({own, *others}))))
        made = device(gpu)
        made.setup()
        assert made.facts()["gpu.other_processes"] == expected


def test_readings_are_kept_with_the_block() -> None:
    gpu = Gpu(watched=Nvml(CALM))
    made = device(gpu)
    made.setup()
    assert made.time_block(gpu.kernels(1, 1), 1).clocks == {
        "sm_mhz": 1980,
        "memory_mhz": 2619,
        "temperature_c": 50,
        "power_w": 300,
        "throttle_reasons": 0,
    }


def test_without_nvml_a_block_has_no_clocks_and_facts_say_why() -> None:
    gpu = Gpu()
    made = device(gpu)
    made.setup()
    timing = made.time_block(gpu.kernels(1, 1), 1)
    assert (timing.clocks, timing.flags) == ({}, ())
    assert made.facts()["gpu.nvml"] == "no NVML in this test"
    assert made.facts()["gpu.other_processes"] is None


def test_facts_are_json_and_hide_the_uuid() -> None:
    gpu = Gpu(watched=Nvml(CALM))
    made = Cuda(1, api=gpu, warm_up_s=0)
    made.setup()
    facts = made.facts()
    assert json.loads(json.dumps(facts)) == facts
    assert (facts["name"], facts["kind"], facts["gpu.driver"]) == ("cuda:1", "cuda", "570.1")
    assert "abc" not in facts.values() and "gpu.uuid" not in facts and len(facts["gpu.id"]) == 12
    assert device(gpu).name == "cuda"


# --- NVML -------------------------------------------------------------------------------------------


class NVMLLibraryMismatchError(Exception):
    """No NVMLError, in pynvml as here."""


def test_each_value_that_nvml_lacks_is_none_on_its_own() -> None:
    found = nvml.connect(library=library(nvmlDeviceGetClockInfo=lambda handle, kind: {1: 1980, 2: 2619}[kind]))
    assert isinstance(found, nvml.Gpu)
    assert found.read() == nvml.GpuSample(sm_mhz=1980, memory_mhz=2619)
    assert found.facts()["gpu.mig"] is None


def test_a_driver_older_than_the_binding_costs_no_worker() -> None:
    def mismatched(*_: Any) -> None:
        raise NVMLLibraryMismatchError("Unversioned function called")

    older = {"nvmlDeviceGetComputeRunningProcesses_v2": lambda handle: [SimpleNamespace(pid=5)]}
    for more, expected in (({}, None), (older, {5})):
        gpu = nvml.connect(library=library(nvmlDeviceGetComputeRunningProcesses=mismatched, **more))
        assert isinstance(gpu, nvml.Gpu)
        assert gpu.processes() == gpu.read().processes == expected
        made = device(Gpu(watched=gpu))
        made.setup()
        assert made.facts()["gpu.other_processes"] is None


@pytest.mark.parametrize("question", ["nvmlInit", "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetCount"])
def test_whatever_the_binding_raises_is_a_reason(question: str) -> None:
    def fails(*_: Any) -> None:
        raise OSError("libnvidia-ml.so.1: file too short")

    found = library(**{question: fails})
    told = nvml.gpus(found) if question == "nvmlDeviceGetCount" else nvml.connect("1b-2c", library=found)
    assert isinstance(told, str) and "file too short" in told


@pytest.mark.parametrize("uuid", ["1b-2c", "MIG-1b-2c"])
def test_a_slice_of_a_gpu_has_the_clocks_and_the_meter_of_the_whole(uuid: str) -> None:
    """CUDA gives a slice's UUID without its prefix, as a GPU's; NVML knows it by the prefix only."""

    def by_uuid(name: str) -> str:
        if name != "MIG-1b-2c":
            raise NVMLError("Not Found")
        return "slice"

    def whole(answer: Any) -> Callable[..., Any]:
        def ask(handle: str, *_: Any) -> Any:
            if handle != "whole":
                raise NVMLError("Not Supported")
            return answer

        return ask

    gpu = nvml.connect(
        uuid,
        library=library(
            nvmlDeviceGetHandleByUUID=by_uuid,
            nvmlDeviceGetDeviceHandleFromMigDeviceHandle=lambda handle: {"slice": "whole"}[handle],
            nvmlDeviceGetClockInfo=whole(1410),
            nvmlDeviceGetMigMode=whole([1, 1]),
            nvmlDeviceGetTotalEnergyConsumption=whole(2_000),
            nvmlDeviceGetComputeRunningProcesses=lambda handle: [SimpleNamespace(pid={"slice": 7, "whole": 8}[handle])],
        ),
    )
    assert isinstance(gpu, nvml.Gpu)
    assert (gpu.read().sm_mhz, gpu.processes(), gpu.facts()["gpu.mig"]) == (1410, {7}, True)
    made = device(Gpu(watched=gpu))
    made.setup()
    assert made.energy() == Energy({"gpu": 2_000_000}, "nvml, whole GPU")


def test_nvml_values_have_our_units() -> None:
    gpu = nvml.connect(
        library=library(
            nvmlDeviceGetPowerUsage=lambda handle: 412_500,
            nvmlDeviceGetCurrentClocksThrottleReasons=lambda handle: 0x44,
            nvmlDeviceGetComputeRunningProcesses=lambda handle: [SimpleNamespace(pid=3), SimpleNamespace(pid=4)],
            nvmlDeviceGetEnforcedPowerLimit=lambda handle: 700_000,
            nvmlDeviceGetMigMode=lambda handle: [1, 0],
            nvmlDeviceGetApplicationsClock=lambda handle, kind: {1: 1410, 2: 2619}[kind],
            nvmlDeviceGetComputeMode=lambda handle: 3,
            nvmlSystemGetDriverVersion=lambda: b"570.86.15",
        )
    )
    assert isinstance(gpu, nvml.Gpu)
    reading, facts = gpu.read(), gpu.facts()
    assert (reading.power_w, reading.reasons, reading.processes) == (412.5, 0x44, {3, 4})
    assert nvml.reason_names(reading.reasons) == ("power cap", "thermal (hardware)")
    assert (facts["gpu.power_limit_w"], facts["gpu.mig"], facts["gpu.driver"]) == (700.0, True, "570.86.15")
    assert facts["gpu.compute_mode"] == "exclusive process"
    assert (facts["gpu.sm_mhz_application"], facts["gpu.memory_mhz_application"]) == (1410, 2619)


def test_a_gpu_is_found_by_uuid_and_its_absence_explained() -> None:
    seen: list[str] = []
    nvml.connect("1b-2c", library=library(nvmlDeviceGetHandleByUUID=seen.append))
    assert seen == ["GPU-1b-2c"]

    def missing(*_: Any) -> None:
        raise NVMLError("Driver Not Loaded")

    assert nvml.connect(library=library(nvmlInit=missing)) == "NVML does not start (Driver Not Loaded)"
    assert "does not show this GPU" in str(nvml.connect("x", library=library(nvmlDeviceGetHandleByUUID=missing)))


def test_reason_names_of_every_mask() -> None:
    assert nvml.reason_names(None) == nvml.reason_names(0) == ()
    assert nvml.reason_names(0x1000 | 0x1) == ("idle", "0x1000")


# --- availability -----------------------------------------------------------------------------------


def test_the_only_calls_into_torch_cuda_are_in_the_adapter() -> None:
    folder = Path(cuda.__file__).parent
    for path in folder.glob("*.py"):
        if path.name != "torch_cuda.py":
            lines = [line for line in path.read_text().splitlines() if "torch.cuda" in line and "``" not in line]
            assert not lines, path.name


def scripted_torch(monkeypatch: pytest.MonkeyPatch, *, built: bool, count: int, init: str = "") -> None:
    torch = pytest.importorskip("torch")

    def start() -> None:
        raise RuntimeError(init)

    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: built)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "init", start)


@pytest.mark.parametrize(
    ("built", "count", "index", "words"),
    [
        (False, 0, 0, "is built without CUDA; install a CUDA build of torch"),
        (True, 0, 0, "Found no NVIDIA driver on your system"),
        (True, 2, 5, "there is no GPU 5; the valid names are cuda:0, cuda:1"),
        (True, 2, 1, None),
    ],
)
def test_why_there_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch, built: bool, count: int, index: int, words: str | None
) -> None:
    scripted_torch(monkeypatch, built=built, count=count, init="Found no NVIDIA driver on your system.\nDo something")
    reason = cuda.why_unavailable(index)
    assert reason is None if words is None else reason is not None and reason.endswith(words)


def test_a_driver_that_says_nothing_is_named_by_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted_torch(monkeypatch, built=True, count=0, init="")
    assert cuda.why_unavailable(0) == "RuntimeError"


# --- a real GPU -------------------------------------------------------------------------------------


def _no_gpu() -> str | None:
    try:
        return cuda.why_unavailable(0)
    except Exception as error:  # a half-installed driver must skip these tests, not break the collection
        return str(error)


real = [pytest.mark.cuda, pytest.mark.skipif(_no_gpu() is not None, reason=f"no GPU: {_no_gpu()}")]


@pytest.fixture(scope="module")
def gpu_device() -> Cuda:
    made = Cuda(0, warm_up_s=0.5)
    made.setup()
    return made


def layer(made: Cuda, width: int, batch: int) -> Callable[[], object]:
    import torch

    network = made.place(torch.nn.Conv2d(width, width, 1, bias=False)).eval()
    image = made.place(torch.randn(batch, width, 56, 56))

    def call() -> object:
        with torch.inference_mode():
            return network(image)

    return call


class TestRealGpu:
    pytestmark = real

    def test_facts(self, gpu_device: Cuda) -> None:
        facts = gpu_device.facts()
        assert facts["gpu.l2_bytes"] > 0 and facts["gpu.multiprocessors"] > 0
        json.dumps(facts)

    def test_time_grows_with_the_calls(self, gpu_device: Cuda) -> None:
        call = layer(gpu_device, 256, 64)
        gpu_device.time_block(call, 20)
        one, ten = gpu_device.time_block(call, 10), gpu_device.time_block(call, 100)
        assert one.device_ns and ten.device_ns
        assert ten.device_ns > 3 * one.device_ns
        assert ten.wall_ns > 3 * one.wall_ns

    def test_a_large_layer_is_bound_by_the_device_and_a_tiny_one_by_the_host(self, gpu_device: Cuda) -> None:
        large, tiny = layer(gpu_device, 512, 256), layer(gpu_device, 8, 1)
        for call in (large, tiny):
            gpu_device.time_block(call, 20)
        assert gpu_device.probe(large, 20)["bound"] == "device"
        found = gpu_device.probe(tiny, 200)
        assert found["bound"] == "host" and found["graph_s"] is not None

    def test_device_time_does_not_exceed_host_time(self, gpu_device: Cuda) -> None:
        found = gpu_device.probe(layer(gpu_device, 64, 8), 50)
        assert found["device_s"] is None or found["device_s"] < 1.1 * found["host_s"]

    def test_a_call_that_synchronises_has_no_graph_but_a_reason(self) -> None:
        """In a process of its own, which it may leave unable to capture."""
        code = (
            "import torch; from effbench.devices.cuda import Cuda;"
            "made = Cuda(0, warm_up_s=0.5); made.setup(); value = made.place(torch.ones(8));"
            "first = made.probe(lambda: value.sum().item(), 5);"
            "image = made.place(torch.ones(1 << 20)); call = lambda: image.mul(2);"
            "second, timing = made.probe(call, 5), made.time_block(call, 5); made.empty_cache();"
            "print(first['graph_s'], first['graph_reason'].partition(':')[0], timing.device_ns > 0, sep='|');"
            "print('able to capture:', second['graph_s'] is not None, second['graph_reason'], made.why_unusable())"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[0] == "None|no CUDA graph|True"
        print(done.stdout)

    def test_a_call_that_synchronises_is_timed_by_the_wall(self, gpu_device: Cuda) -> None:
        import torch

        value = gpu_device.place(torch.ones(8))

        def call() -> object:
            return value.sum().item()

        timings = [gpu_device.time_block(call, 3) for _ in range(4)]
        assert [timing.device_ns for timing in timings] == [None] * 4

    def test_cold_is_slower_than_hot(self) -> None:
        import torch

        spent = {}
        for cache in ("hot", "cold"):
            made = Cuda(0, cache=cache, warm_up_s=0.5)
            made.setup()
            data = made.place(torch.ones(2 * MB))  # 8 MB: fits every L2 since Ampere
            timings = [made.time_block(data.sum, 50).device_ns for _ in range(5)]
            spent[cache] = min(t for t in timings if t is not None)
        assert spent["cold"] > spent["hot"]

    def test_out_of_memory(self, gpu_device: Cuda) -> None:
        import torch

        with pytest.raises(OutOfMemory):
            gpu_device.time_block(lambda: torch.empty(1 << 50, device="cuda"), 1)

    def test_precision_reaches_the_arithmetic(self) -> None:
        import torch

        if torch.cuda.get_device_capability() < (8, 0):
            pytest.skip("no TF32 before Ampere")
        torch.manual_seed(0)
        a = torch.randn(512, 512, dtype=torch.float64)
        errors = {}
        for precision in ("tf32", "fp32"):
            made = Cuda(0, precision=precision, warm_up_s=0)
            made.setup()
            b = made.place(a.float())
            errors[precision] = ((b @ b).double().cpu() - a @ a).abs().max().item()
        assert errors["tf32"] > 10 * errors["fp32"]
