"""Time blocks on a CUDA GPU: host time, device time, and throttling checks.

Each block is measured twice. The first pass takes the time that a caller sees: synchronise, read the clock, k calls,
synchronise, read the clock. The second pass takes device time between CUDA events, behind a spin kernel that runs until
the host has queued all calls, so that launch overhead is excluded. Neither pass synchronises between calls. The ratio
of host time to device time tells a network that keeps the GPU busy from one that waits for Python. Only `TorchCuda`
touches ``torch.cuda``; tests replace it with a scripted GPU.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping
from typing import Any, Literal

from effbench.core.errors import EffbenchError, InvalidValue, ModelError, first_line
from effbench.core.operator_times import WatchedCall
from effbench.core.run import Timing
from effbench.devices._device_time import NO_DEVICE_TIME, DeviceTimer
from effbench.devices._gpu_monitor import GpuMonitor
from effbench.devices.base import Call, Device, Energy, Memory, OutOfMemory, restore_inputs
from effbench.devices.torch_cuda import Policy, TorchCuda
from effbench.host import nvml

HOST_BOUND, DEVICE_BOUND = 1.2, 1.05
"""Limits of host time over device time: above the first a cell is host-bound, below the second it is device-bound."""

MAX_ROTATIONS = 512
MAX_CAPTURED_CALLS = 64


def why_unavailable(index: int = 0) -> str | None:
    """Return why this GPU cannot be used, or None if it can."""
    return TorchCuda.why_unavailable(index)


def rotations(input_bytes: int, l2_bytes: int | None) -> int:
    """Return how many inputs to rotate through so that an input has left the L2 cache before it is used again.

    Parameters
    ----------
    input_bytes : int
        Size of one input.
    l2_bytes : int or None
        Size of the L2 cache; None if unknown.

    Returns
    -------
    int
        The smallest number of inputs whose total exceeds twice the cache, at most 512; 1 if the cache size is unknown.

    Raises
    ------
    InvalidValue
        If `input_bytes` is below 1.
    """
    if input_bytes < 1:
        raise InvalidValue(f"input_bytes (={input_bytes}) must be 1 or more")
    return min(2 * (l2_bytes or 0) // input_bytes + 1, MAX_ROTATIONS)


def host_or_device_bound(host_over_device: float | None) -> Literal["host", "device", "mixed"] | None:
    """Tell what limits a cell, from its host time over its device time (or over graph replay, if a graph was
    captured).
    """
    if host_over_device is None:
        return None
    if host_over_device > HOST_BOUND:
        return "host"
    return "device" if host_over_device < DEVICE_BOUND else "mixed"


class Cuda(Device):
    """The GPU `index`. Precision, cuDNN autotuning and cache policy are conditions of the run and checked at its end.

    Parameters
    ----------
    index : int
        CUDA index of the GPU.
    precision : str
        "fp32" or "tf32": how float32 products are computed.
    autotune : bool
        Whether cuDNN benchmarks its convolution algorithms.
    cache : str
        What the L2 cache holds when a call starts. "steady": consecutive calls on rotating inputs (`rotations`).
        "cold": twice the cache is overwritten before each call, untimed. "hot": the same input in every call.
    warm_up_s : float
        Longest warm-up in seconds.
    api
        Replaces `TorchCuda` in tests.

    Raises
    ------
    InvalidValue
        If `precision` or `cache` is none of these.
    """

    kind = "cuda"
    has_probe = True

    def __init__(
        self,
        index: int = 0,
        *,
        precision: str = "fp32",
        autotune: bool = False,
        cache: str = "steady",
        warm_up_s: float = 2.0,
        api: Any = None,
    ) -> None:
        if precision not in ("fp32", "tf32"):
            raise InvalidValue(f"precision (={precision}) must be fp32 or tf32")
        if cache not in ("steady", "cold", "hot"):
            raise InvalidValue(f"cache (={cache}) must be steady, cold or hot")
        self.name = f"cuda:{index}" if index else "cuda"
        self._api = api if api is not None else TorchCuda(index)
        self._policy = Policy(precision == "tf32", precision == "tf32", autotune)
        self._precision = precision
        self._cache, self._warm_up_s = cache, warm_up_s
        self._ready = False
        self._gpu: nvml.Gpu | str = "not set up"
        self._timer, self._monitor = DeviceTimer(self._api), GpuMonitor(None, self._api.now_ns)
        self._capture_failed = False

    # --- life of a launch ---------------------------------------------------------------------------

    def setup(self) -> None:
        """Set and check the policies, then load the GPU until its clock is stable, for at most `warm_up_s`."""
        self._api.set_device()
        self._api.set_policy(self._policy)
        self._ready = True
        self.verify_policy()
        self._gpu = self._api.nvml_gpu()
        self._monitor = GpuMonitor(self._gpu if isinstance(self._gpu, nvml.Gpu) else None, self._api.now_ns)
        self._monitor.warm_up(self._warm_up_s, self._api.queue_load, self._api.synchronize)
        self.expect_current_processes()

    def expect_current_processes(self) -> None:
        self._monitor.expect_current_processes()

    def verify_policy(self) -> None:
        """Raise ModelError if precision or autotuning differ from what `setup` set: a network can change both."""
        found = self._api.policy()
        if self._ready and found != self._policy:
            raise ModelError(
                f"the precision policy changed from {self._policy} to {found} during the run; "
                "remove what sets torch.backends flags from the network, or ask for that policy"
            )

    def facts(self) -> dict[str, Any]:
        """Describe the GPU and the policies. After `setup` the policies are checked too (raises ModelError)."""
        self.verify_policy()
        about = self._api.properties()
        uuid = about.pop("gpu.uuid", None)
        gpu = self._gpu if isinstance(self._gpu, nvml.Gpu) else None
        monitored = (
            {**gpu.facts(), **{f"gpu.{name}": value for name, value in gpu.read().numbers().items()}} if gpu else {}
        )
        return {
            "kind": self.kind,
            "name": self.name,
            **about,
            "gpu.id": hashlib.sha256(str(uuid).encode()).hexdigest()[:12] if uuid else None,
            "gpu.precision": self._precision,
            "gpu.autotune": self._policy.autotune,
            "gpu.cache": self._cache,
            **monitored,
            "gpu.nvml": "read" if gpu else self._gpu,
            # If NVML does not list this process under its own id, it may not list other processes either.
            "gpu.other_processes": len(processes) - 1
            if os.getpid() in (processes := self._monitor.expected_processes or ())
            else None,
        }

    def runtime_settings(self) -> Mapping[str, Any]:
        index = int(self.name.partition(":")[2] or 0)
        tf32 = self._policy.matmul_tf32 and self._policy.conv_tf32
        return {"index": index, "tf32": tf32, "autotune": self._policy.autotune}

    def place(self, value: Any) -> Any:
        """Move a module or tensor to the GPU and return it. Raises OutOfMemory."""
        return self._catch_out_of_memory(lambda: self._api.place(value))

    def synchronize(self) -> None:
        self._api.synchronize()

    def empty_cache(self) -> None:
        self._api.empty_cache()

    def why_unusable(self) -> str | None:
        reason: str | None = self._api.why_unusable()
        return reason

    def now_s(self) -> float:
        return float(self._api.now_ns() * 1e-9)

    def rotations(self, input_bytes: int) -> int:
        """Return how many inputs to rotate through. Only the "steady" policy needs more than one."""
        return rotations(input_bytes, self._api.l2_bytes()) if self._cache == "steady" else 1

    # --- timing -------------------------------------------------------------------------------------

    def time_block(self, call: Call, calls: int) -> Timing:
        """Time `calls` calls twice: `wall_ns` as the host sees them, and `device_ns` on the device, in a second pass.

        With the "cold" cache policy every call is timed alone: the cache is overwritten and the device is idle before
        it. `device_ns` is None if the host could not queue the calls ahead of the device. Clocks are read while the
        device computes, because an idle GPU recovers. Raises OutOfMemory.
        """
        gpu_sample = nvml.GpuSample()

        def query() -> None:
            nonlocal gpu_sample
            gpu_sample = self._monitor.sample()

        restore_inputs(call)
        wall, queueing, cpu = self._catch_out_of_memory(lambda: self._host_time(call, calls))
        restore_inputs(call)
        device = self._catch_out_of_memory(lambda: self._device_time(call, calls, queueing, query))
        return Timing(
            calls=calls,
            wall_ns=wall,
            cpu_ns=cpu,
            device_ns=device,
            clocks=gpu_sample.numbers(),
            flags=self._monitor.flags(call, gpu_sample),
        )

    def run_calls(self, call: Call, calls: int) -> None:
        """Make exactly `calls` calls: no second pass between events, no spin, no NVML query."""

        def run() -> None:
            restore_inputs(call)
            for _ in range(calls):
                call()
            self._api.synchronize()

        self._catch_out_of_memory(run)

    def probe(self, call: Call, calls: int, *, why_no_graph: str | None = None) -> Mapping[str, Any]:
        """Measure host, device and graph-replay time per call, what limits the cell, and the memory that a call needs.

        Calls are back to back whatever the cache policy, because the question is whether launching keeps up. A capture
        that fails may leave torch unable to capture again, or to do any work in this process (`why_unusable`). So the
        probe comes after all measurements. Raises OutOfMemory.
        """
        # Memory reserved by an earlier cell, and its graph, must not count for this one.
        self._api.empty_cache()
        self._api.reset_peak()
        resident = self._api.allocated()
        self._catch_out_of_memory(lambda: self._host_time_back_to_back(call, 1))
        peak = self._api.peak_allocated()
        memory = {
            "peak_memory_bytes": peak,
            "peak_reserved_bytes": self._api.peak_reserved(),
            # The process may hold the networks of other cells; this is what the call needs on top.
            "working_memory_bytes": peak - resident,
        }
        wall, queueing, _ = self._catch_out_of_memory(lambda: self._host_time_back_to_back(call, calls))
        device = self._catch_out_of_memory(lambda: self._timer.time_calls(call, calls, queueing))
        graph, reason = (None, f"no CUDA graph: {why_no_graph}") if why_no_graph else self._graph_time(call, calls)
        host_s, device_s = wall / calls * 1e-9, None if device is None else device / calls * 1e-9
        fastest = graph if graph is not None else device_s
        ratio = host_s / fastest if fastest else None
        return {
            "bound": host_or_device_bound(ratio),
            "host_over_device": ratio,
            "host_s": host_s,
            "device_s": device_s,
            "device_reason": NO_DEVICE_TIME if self._timer.is_never_ahead(call) else None,
            "graph_s": graph,
            "graph_reason": reason,
            **memory,
        }

    def time_calls(self, call: Call, calls: int) -> list[int]:
        """Time single calls: each is launched and waited for before the next one starts."""
        spent: list[int] = self._catch_out_of_memory(lambda: [self._host_time(call, 1)[0] for _ in range(calls)])
        return spent

    def memory(self, *, reset_peak: bool = False) -> Memory:
        """Return what torch allocated on the GPU. The CUDA context and allocations outside of torch are not
        included.
        """
        if reset_peak:
            self._api.reset_peak()
        peak, reserved = self._api.peak_allocated(), self._api.peak_reserved()
        return Memory(peak, "max_memory_allocated of torch", reserved_bytes=reserved)

    def energy(self) -> Energy:
        """Return the energy of the whole GPU since its driver was loaded, from its own meter."""
        if not isinstance(self._gpu, nvml.Gpu):
            raise EffbenchError(f"no energy can be read through NVML: {self._gpu}")
        found = self._gpu.energy_uj()
        if found is None:
            raise EffbenchError("this GPU has no energy counter in NVML; use one from Volta on, or measure at the plug")
        return Energy({"gpu": found}, "nvml, whole GPU" if self._gpu.is_shared else "nvml")

    def time_operators(self, call: Call, calls: int) -> list[WatchedCall]:
        """Profile calls; an operator's own time is that of the kernels that it launched. Raises OutOfMemory."""
        profiled: list[WatchedCall] = self._catch_out_of_memory(lambda: self._api.time_operators(call, calls))
        return profiled

    def _host_time(self, call: Call, calls: int) -> tuple[int, int, int]:
        if self._cache != "cold":
            return self._host_time_back_to_back(call, calls)
        parts = []
        for _ in range(calls):
            self._api.flush()
            parts.append(self._host_time_back_to_back(call, 1))
        wall, queueing, cpu = (sum(part) for part in zip(*parts, strict=True))
        return wall, queueing, cpu

    def _host_time_back_to_back(self, call: Call, calls: int) -> tuple[int, int, int]:
        """Return (wall time, time the host took to queue the calls, CPU time of this thread) in nanoseconds."""
        synchronize, now, cpu_now = self._api.synchronize, self._api.now_ns, self._api.cpu_ns
        synchronize()
        cpu = cpu_now()
        start = now()
        for _ in range(calls):
            call()
        queued = now()
        synchronize()
        end = now()
        return end - start, queued - start, cpu_now() - cpu

    def _device_time(self, call: Call, calls: int, queueing: int, while_busy: Callable[[], None]) -> int | None:
        if self._cache != "cold":
            return self._timer.time_calls(call, calls, queueing, while_busy)
        return self._timer.time_calls_separately(call, calls, queueing, self._api.flush, while_busy)

    def _graph_time(self, call: Call, calls: int) -> tuple[float | None, str | None]:
        """Return the seconds per call when replayed as a CUDA graph, or the reason why there is no graph.

        Several calls go into one graph, so that rotating inputs also rotate in the graph.
        """
        if self._capture_failed:
            return None, "no CUDA graph: not probed, since an earlier capture failed in this process"
        captured = min(calls, MAX_CAPTURED_CALLS)

        def call_repeatedly() -> None:
            for _ in range(captured):
                call()

        try:
            replay = self._api.capture(call_repeatedly)
            replay()
            repeats = math.ceil(calls / captured)
            _, queueing, _ = self._host_time_back_to_back(replay, repeats)
            # A separate timer, because it keeps no reference to the graph afterwards.
            spent = DeviceTimer(self._api).time_calls(replay, repeats, queueing)
        except Exception as error:  # the call just ran eagerly, so only capturing can fail
            self._api.abandon_capture()
            self._capture_failed = self.why_unusable() is not None
            return None, f"no CUDA graph: {first_line(error)}"
        if spent is None:
            return None, "no CUDA graph time: the host could not keep ahead of its replay"
        return spent / (repeats * captured) * 1e-9, None

    def _catch_out_of_memory(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:
            if not self._api.is_out_of_memory(error):
                raise
            message = first_line(error)
        # Outside of the handler, so that the traceback no longer holds the network's activations.
        self._api.empty_cache()
        raise OutOfMemory(message)
