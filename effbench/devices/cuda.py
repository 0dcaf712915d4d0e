"""A CUDA GPU: what the host waits for, what the device spends, and whether the GPU was itself meanwhile.

A block is measured twice. First as a caller sees it: synchronise, read the clock, k calls, synchronise, read the clock.
Then between device events, behind a kernel that spins until the host has queued all of the calls, so that the time of
launching them is not in it. Nothing synchronises inside either. The first over the second tells a network that keeps
the GPU busy from one that waits for Python. `TorchCuda` alone touches ``torch.cuda``; a scripted stand-in for it drives
everything else in tests.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping
from typing import Any, Literal

from effbench.core.errors import EffbenchError, InvalidValue, ModelError, text_of
from effbench.core.operator_times import WatchedCall
from effbench.core.run import Timing
from effbench.devices._device_time import WAITS, DeviceTimer
from effbench.devices._gpu_watch import Watch
from effbench.devices._torch_cuda import Policy, TorchCuda
from effbench.devices.base import Call, Device, Energy, Memory, OutOfMemory, renew
from effbench.host import nvml

HOST_BOUND, DEVICE_BOUND = 1.2, 1.05
"""Host time over device time: above the first the host holds the GPU up, below the second it does not."""

MAX_ROTATIONS = 512
MAX_CAPTURED_CALLS = 64


def available(index: int = 0) -> str | None:
    """None where this GPU can be used, else the reason in words."""
    return TorchCuda.unavailable(index)


def rotations(input_bytes: int, l2_bytes: int | None) -> int:
    """How many inputs to rotate through, so that an input has left the L2 cache before it comes round again.

    Their total exceeds twice the cache; at most 512, and 1 where the size of the cache is unknown.
    Raises InvalidValue.
    """
    if input_bytes < 1:
        raise InvalidValue(f"input_bytes (={input_bytes}) must be 1 or more")
    return min(2 * (l2_bytes or 0) // input_bytes + 1, MAX_ROTATIONS)


def bound(host_over_device: float | None) -> Literal["host", "device", "mixed"] | None:
    """What limits a cell, from host time over device time (or over graph replay, where a graph was captured)."""
    if host_over_device is None:
        return None
    if host_over_device > HOST_BOUND:
        return "host"
    return "device" if host_over_device < DEVICE_BOUND else "mixed"


class Cuda(Device):
    """GPU `index`. Precision, cuDNN autotuning and cache policy are conditions of the run, checked at its end.

    `cache` says what the L2 holds when a call starts: "steady" (consecutive calls, inputs rotating: see `rotations`),
    "cold" (twice its size is overwritten before each call, untimed) or "hot" (the same input every time).
    Raises InvalidValue.
    """

    kind = "cuda"
    probes = True

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
        self._timer, self._watch = DeviceTimer(self._api), Watch(None, self._api.now_ns)
        self._spoilt = False

    # --- life of a launch ---------------------------------------------------------------------------

    def setup(self) -> None:
        """Set and check the policies, then load the GPU until its clock stands, for `warm_up_s` at the most."""
        self._api.select()
        self._api.set_policy(self._policy)
        self._ready = True
        self.verify_policy()
        self._gpu = self._api.monitor()
        self._watch = Watch(self._gpu if isinstance(self._gpu, nvml.Gpu) else None, self._api.now_ns)
        self._watch.heat(self._warm_up_s, self._api.work, self._api.synchronize)
        self.admit_processes()

    def admit_processes(self) -> None:
        self._watch.admit()

    def verify_policy(self) -> None:
        """Raises ModelError where precision or autotuning is no longer what `setup` set: a network may change both."""
        found = self._api.policy()
        if self._ready and found != self._policy:
            raise ModelError(
                f"the precision policy changed from {self._policy} to {found} during the run; "
                "remove what sets torch.backends flags from the network, or ask for that policy"
            )

    def facts(self) -> dict[str, Any]:
        """Everything about the GPU and the policies. After `setup`, also checks the policies (raises ModelError)."""
        self.verify_policy()
        about = self._api.properties()
        uuid = about.pop("gpu.uuid", None)
        gpu = self._gpu if isinstance(self._gpu, nvml.Gpu) else None
        watched = (
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
            **watched,
            "gpu.nvml": "read" if gpu else self._gpu,
            # Where NVML does not show this process under its own number, it may not show the others either.
            "gpu.other_processes": len(known) - 1 if os.getpid() in (known := self._watch.admitted or ()) else None,
        }

    def setting(self) -> Mapping[str, Any]:
        index = int(self.name.partition(":")[2] or 0)
        tf32 = self._policy.matmul_tf32 and self._policy.conv_tf32
        return {"index": index, "tf32": tf32, "autotune": self._policy.autotune}

    def place(self, value: Any) -> Any:
        """Raises OutOfMemory."""
        return self._guarded(lambda: self._api.place(value))

    def synchronize(self) -> None:
        self._api.synchronize()

    def release(self) -> None:
        self._api.empty_cache()

    def broken(self) -> str | None:
        reason: str | None = self._api.broken()
        return reason

    def now_s(self) -> float:
        return float(self._api.now_ns() * 1e-9)

    def rotations(self, input_bytes: int) -> int:
        """Inputs to rotate through: only the steady policy needs more than one."""
        return rotations(input_bytes, self._api.l2_bytes()) if self._cache == "steady" else 1

    # --- timing -------------------------------------------------------------------------------------

    def time_block(self, call: Call, calls: int) -> Timing:
        """`wall_ns` is what the host waits, `device_ns` what the device spends; their calls are separate.

        Under the cold policy every call stands alone: the cache is overwritten and the device idle before it starts.
        `device_ns` is None where the host could not queue the calls ahead of the device. Clocks are read while the
        device computes, since an idle one recovers. Raises OutOfMemory.
        """
        reading = nvml.Reading()

        def look() -> None:
            nonlocal reading
            reading = self._watch.look()

        renew(call)
        wall, queueing, cpu = self._guarded(lambda: self._host(call, calls))
        renew(call)
        device = self._guarded(lambda: self._device(call, calls, queueing, look))
        return Timing(
            calls=calls,
            wall_ns=wall,
            cpu_ns=cpu,
            device_ns=device,
            clocks=reading.numbers(),
            flags=self._watch.flags(call, reading),
        )

    def run_calls(self, call: Call, calls: int) -> None:
        """Exactly so many calls: no second pass between events, no spin, no look at NVML."""

        def run() -> None:
            renew(call)
            for _ in range(calls):
                call()
            self._api.synchronize()

        self._guarded(run)

    def probe(self, call: Call, calls: int, *, no_graph: str | None = None) -> Mapping[str, Any]:
        """Host, device and graph-replay time per call, what bounds the cell, and the memory that a call works in.

        Measured back to back whatever the cache policy: the question is whether launching keeps up. A capture that
        fails may leave torch unable to capture again, or to do more, in this process (`broken`), so that this comes
        after everything that is measured. Raises OutOfMemory.
        """
        # Neither what an earlier cell left reserved nor its graph is this one's.
        self._api.empty_cache()
        self._api.reset_peak()
        resident = self._api.allocated()
        self._guarded(lambda: self._host_steady(call, 1))
        peak = self._api.peak_allocated()
        memory = {
            "peak_memory_bytes": peak,
            "peak_reserved_bytes": self._api.peak_reserved(),
            # The process may hold other cells' networks; this is what the call itself needed on top.
            "working_memory_bytes": peak - resident,
        }
        wall, queueing, _ = self._guarded(lambda: self._host_steady(call, calls))
        device = self._guarded(lambda: self._timer.steady(call, calls, queueing))
        graph, reason = (None, f"no CUDA graph: {no_graph}") if no_graph else self._graph(call, calls)
        host_s, device_s = wall / calls * 1e-9, None if device is None else device / calls * 1e-9
        least = graph if graph is not None else device_s
        ratio = host_s / least if least else None
        return {
            "bound": bound(ratio),
            "host_over_device": ratio,
            "host_s": host_s,
            "device_s": device_s,
            "device_reason": WAITS if self._timer.waits(call) else None,
            "graph_s": graph,
            "graph_reason": reason,
            **memory,
        }

    def time_calls(self, call: Call, calls: int) -> list[int]:
        """What a caller waits for: each call is launched, computed and waited for before the next."""
        spent: list[int] = self._guarded(lambda: [self._host(call, 1)[0] for _ in range(calls)])
        return spent

    def memory(self, *, afresh: bool = False) -> Memory:
        """What torch allocated on the GPU; the CUDA context and whatever allocates past torch are not in it."""
        if afresh:
            self._api.reset_peak()
        peak, reserved = self._api.peak_allocated(), self._api.peak_reserved()
        return Memory(peak, "max_memory_allocated of torch", reserved_bytes=reserved)

    def energy(self) -> Energy:
        """Of the whole GPU since its driver was loaded, by its own meter."""
        if not isinstance(self._gpu, nvml.Gpu):
            raise EffbenchError(f"no energy can be read through NVML: {self._gpu}")
        found = self._gpu.energy_uj()
        if found is None:
            raise EffbenchError("this GPU tells no energy through NVML; use one from Volta on, or measure at the plug")
        return Energy({"gpu": found}, "nvml, whole GPU" if self._gpu.is_shared else "nvml")

    def watch(self, call: Call, calls: int) -> list[WatchedCall]:
        """An operator's own time is that of the kernels it launched. Raises OutOfMemory."""
        watched: list[WatchedCall] = self._guarded(lambda: self._api.watch(call, calls))
        return watched

    def _host(self, call: Call, calls: int) -> tuple[int, int, int]:
        if self._cache != "cold":
            return self._host_steady(call, calls)
        parts = []
        for _ in range(calls):
            self._api.flush()
            parts.append(self._host_steady(call, 1))
        wall, queueing, cpu = (sum(part) for part in zip(*parts, strict=True))
        return wall, queueing, cpu

    def _host_steady(self, call: Call, calls: int) -> tuple[int, int, int]:
        """(wall time, how long the host took to queue the calls, CPU time of this thread), nanoseconds."""
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

    def _device(self, call: Call, calls: int, queueing: int, meanwhile: Callable[[], None]) -> int | None:
        if self._cache != "cold":
            return self._timer.steady(call, calls, queueing, meanwhile)
        return self._timer.alone(call, calls, queueing, self._api.flush, meanwhile)

    def _graph(self, call: Call, calls: int) -> tuple[float | None, str | None]:
        """Seconds per call when replayed as a CUDA graph, or why there is no graph.

        Several calls go into one graph, so that rotating inputs rotate in it too.
        """
        if self._spoilt:
            return None, "no CUDA graph: not probed, since an earlier capture failed in this process"
        captured = min(calls, MAX_CAPTURED_CALLS)

        def several() -> None:
            for _ in range(captured):
                call()

        try:
            replay = self._api.capture(several)
            replay()
            repeats = math.ceil(calls / captured)
            _, queueing, _ = self._host_steady(replay, repeats)
            # A timer of its own, which does not outlive the graph.
            spent = DeviceTimer(self._api).steady(replay, repeats, queueing)
        except Exception as error:  # the same call has just run eagerly: whatever fails here is capture's limit
            self._api.abandon_capture()
            self._spoilt = self.broken() is not None
            return None, f"no CUDA graph: {(text_of(error).strip() or type(error).__name__).splitlines()[0]}"
        if spent is None:
            return None, "no CUDA graph time: the host could not keep ahead of its replay"
        return spent / (repeats * captured) * 1e-9, None

    def _guarded(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:
            if not self._api.is_out_of_memory(error):
                raise
            message = (text_of(error).strip() or type(error).__name__).splitlines()[0]
        # Out of the handler, the traceback no longer holds the network's activations.
        self._api.empty_cache()
        raise OutOfMemory(message)
