"""The contract of devices: one test suite for the fake device and every device of this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import scripted_gpu
from nursery import HANGS_S

from effbench import devices
from effbench.core.errors import DeviceUnavailable, InvalidValue, UnknownName
from effbench.core.run import Timing
from effbench.devices import Device, OutOfMemory, cpu, cuda

NO_CUDA = cuda.why_unavailable(0)


@pytest.fixture(
    params=[
        "fake",
        "cpu",
        "scripted GPU",
        pytest.param("cuda", marks=[pytest.mark.cuda, pytest.mark.skipif(bool(NO_CUDA), reason=str(NO_CUDA))]),
    ]
)
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    if request.param == "scripted GPU":
        yield scripted_gpu.device(scripted_gpu.Gpu(graph=20_000))
        return
    made = devices.get(request.param, **({"threads": 1} if request.param == "cpu" else {}))
    yield made
    made.empty_cache()


def work(device: Device, size: int = 256) -> Any:
    """A call of real work on the device; the scripted clock gets one of known length."""
    if device.kind == "fake":
        return device.bind(None, {"madds": size**3, "memory_access_bytes": 12 * size * size})
    if gpu := scripted(device):
        return device.bind(gpu.kernels(5_000, 20_000), {})
    import torch

    left = device.place(torch.randn(size, size))
    return device.bind(lambda: left @ left, {})


SPIN_NS = 200_000


def spin() -> None:
    """So much CPU time, on a machine of any speed."""
    start = time.thread_time_ns()
    while time.thread_time_ns() - start < SPIN_NS:
        pass


def scripted(device: Device) -> scripted_gpu.Gpu | None:
    """The scripted GPU that stands for a real one, where one does."""
    gpu = getattr(device, "_api", None)
    return gpu if isinstance(gpu, scripted_gpu.Gpu) else None


def test_it_knows_its_name_and_says_what_it_is(device: Device) -> None:
    facts = device.facts()
    assert facts["kind"] == device.kind and facts["name"] == device.name
    json.dumps(facts, allow_nan=False)


def test_single_calls_are_made_and_timed_one_by_one(device: Device) -> None:
    call = work(device)
    made = []
    counted = call if device.kind == "fake" else lambda: made.append(call())
    spent = device.time_calls(counted, 7)
    assert len(spent) == 7 and all(isinstance(each, int) and each > 0 for each in spent)
    assert device.kind == "fake" or len(made) == 7


def test_it_says_how_much_memory_was_held_at_most(device: Device) -> None:
    before = device.memory(reset_peak=True)
    work(device)
    after = device.memory()
    assert after.peak_bytes >= before.peak_bytes >= 0 and after.source


def test_a_block_is_positive_and_grows_with_its_calls(device: Device) -> None:
    """Elapsed time is positive and scales with k (one tool's was negative, in the wrong unit)."""
    call = device.bind(spin, {}) if device.kind == "cpu" else work(device)
    device.time_block(call, 20)
    blocks = {calls: [device.time_block(call, calls) for _ in range(9)] for calls in (10, 80)}
    # Where other processes take the cores, only the CPU clock grows with the calls.
    spent = {calls: [timing.cpu_ns or timing.wall_ns for timing in every] for calls, every in blocks.items()}
    few, many = min(spent[10]), min(spent[80])
    assert 0 < few < many
    assert 3 < many / few < 24, "8 times the calls: about 8 times as long"
    if device.kind == "cpu":
        assert few >= 10 * SPIN_NS and many >= 80 * SPIN_NS, "nanoseconds"
        assert all(2 * timing.wall_ns > (timing.cpu_ns or 0) for every in blocks.values() for timing in every)


def test_it_makes_exactly_the_calls_it_was_asked_for(device: Device) -> None:
    """A GPU times a block twice over, for its host and for itself; what is not timed is made once."""
    made = []
    timing = device.time_block(lambda: made.append(1), 7)
    if device.kind != "fake":
        assert len(made) == 7 if device.kind == "cpu" else len(made) >= 14
        made.clear()
        device.run_calls(lambda: made.append(1), 7)
        assert len(made) == 7
    assert isinstance(timing, Timing) and timing.calls == 7
    assert all(value >= 0 for value in (timing.minor_faults, timing.switches, timing.run_delay_ns, timing.steal_ns))


def test_the_budget_clock_runs_forward(device: Device) -> None:
    before = device.now_s()
    device.time_block(work(device), 50)
    assert device.now_s() > before


def test_errors_of_the_network_come_through(device: Device) -> None:
    if device.kind == "fake":
        pytest.skip("a scripted clock runs no network")

    def broken() -> None:
        raise ZeroDivisionError("from the network")

    with pytest.raises(ZeroDivisionError, match="from the network"):
        device.time_block(broken, 1)


def test_memory_running_out_is_told_apart(device: Device) -> None:
    if device.kind == "fake" or scripted(device):
        pytest.skip("what is scripted has no memory")
    import torch

    place = "cuda" if device.kind == "cuda" else "cpu"
    with pytest.raises(OutOfMemory):
        device.time_block(lambda: torch.empty(1 << 46, dtype=torch.uint8, device=place), 1)


def test_placing_moves_and_synchronizing_waits(device: Device) -> None:
    device.synchronize()
    if device.kind == "fake" or scripted(device):
        assert device.place("anything") == "anything"
        return
    import torch

    assert device.place(torch.nn.Linear(2, 2)).weight.device.type == device.kind
    assert device.rotations(1000) >= 1


def test_probing_yields_facts_and_rotations_are_whole(device: Device) -> None:
    facts = device.probe(work(device), 3)
    assert facts.get("bound") in (None, "host", "device", "mixed")
    assert bool(facts) == device.has_probe
    json.dumps(dict(facts), allow_nan=False)


def test_a_device_on_which_nothing_failed_is_not_broken(device: Device) -> None:
    device.expect_current_processes()
    device.run_calls(work(device), 1)
    assert device.why_unusable() is None


def test_setup_applies_the_threads_that_were_asked_for() -> None:
    """In a process of its own: setting threads is once and for all."""
    code = (
        "import torch; from effbench import devices; device = devices.get('cpu', threads=2); device.setup();"
        "print(torch.get_num_threads(), torch.get_num_interop_threads(), (torch.tensor([1e-40]) * 1).item() == 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "1", "True"], "threads, inter-op threads, denormals flushed"


def test_the_kernels_counters_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Page faults of a block are counted: a call that touches 2,000 fresh pages shows them."""
    if sys.platform != "linux":
        pytest.skip("counters of the Linux kernel")
    import mmap

    device = cpu.Cpu(1)

    def touch() -> None:
        with mmap.mmap(-1, 2000 * mmap.PAGESIZE) as memory:
            for page in range(2000):
                memory[page * mmap.PAGESIZE] = 1

    assert device.time_block(touch, 1).minor_faults >= 1900
    assert device.time_block(lambda: None, 1000).minor_faults < 50


@pytest.mark.skipif(sys.platform != "linux", reason="counters of the Linux kernel")
def test_its_files_are_closed_with_it() -> None:
    """A suite of tests makes a device for each network, and a process may hold 1024 files."""

    def timed() -> Timing:
        return cpu.Cpu(1, whole_process=True).time_block(lambda: None, 1)

    timed()
    before = len(os.listdir("/proc/self/fd"))
    assert sum(timed().calls for _ in range(20)) == 20
    assert len(os.listdir("/proc/self/fd")) == before


def test_disturbances_are_named_by_cause() -> None:
    assert cpu.disturbances(10_000_000, 0, 0) == ()
    assert cpu.disturbances(10_000_000, 400_000, 0) == ()
    assert cpu.disturbances(10_000_000, 600_000, 0) == ("waited for a core",)
    assert cpu.disturbances(10_000_000, 600_000, 10_000_000) == ("waited for a core", "steal")


def test_a_busy_core_is_noticed() -> None:
    """Two spinning processes pinned to one core: blocks there wait for it, and say so."""
    if sys.platform != "linux" or not hasattr(os, "sched_setaffinity"):
        pytest.skip("needs affinity")
    code = (
        "import os, time; from effbench.devices.cpu import Cpu;"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "spin = os.fork();\n"
        "while spin == 0: pass\n"
        "time.sleep(0.05); device = Cpu(1); work = lambda: sum(range(20000))\n"
        "flags = [device.time_block(work, 60).flags for _ in range(10)]; os.kill(spin, 9); print(flags)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=HANGS_S)
    assert done.stdout.count("waited for a core") >= 5, done.stdout


def test_names_that_are_no_devices() -> None:
    for name in ("gpu", "cuda:x", "cpu:1", "", "cuda:1:2"):
        with pytest.raises(UnknownName, match="cpu, cuda, fake"):
            devices.kind_of(name)
    assert devices.kind_of("cuda:3") == "cuda"
    with pytest.raises(InvalidValue, match="threads"):
        devices.get("cpu", threads=-1)


@pytest.mark.skipif(NO_CUDA is None, reason="CUDA is here")
def test_cuda_where_there_is_none_says_why() -> None:
    with pytest.raises(DeviceUnavailable, match=r"'cuda' cannot be used: .+ Present here: cpu"):
        devices.get("cuda")


def test_a_real_device_refuses_to_time_nothing() -> None:
    with pytest.raises(ValueError, match="real calls only"):
        devices.get("cpu").bind(None, {})
