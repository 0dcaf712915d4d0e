"""A scripted GPU: the logic of the CUDA device without one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from effbench.devices.cuda import Cuda
from effbench.devices.torch_cuda import Policy
from effbench.host import nvml

MB = 1 << 20


class NVMLError(Exception):
    pass


class NotEnoughError(RuntimeError):
    pass


@dataclass
class Event:
    gpu: Gpu
    at: int | None = None

    def record(self) -> None:
        self.gpu.log.append("event")
        self.at = self.gpu.busy_until = max(self.gpu.busy_until, self.gpu.clock)

    def query(self) -> bool:
        return self.at is not None and self.at <= self.gpu.clock

    def elapsed_time(self, end: Event) -> float:
        assert self.at is not None and end.at is not None and end.query(), "read before the device was done"
        return (end.at - self.at) / 1e6


@dataclass
class Gpu:
    """A scripted GPU: a host clock, and the time until which the device has work. Times in nanoseconds.

    `queue_limit` launches may be pending; one more makes the host wait, as the driver does. `worked` is how long the
    device computed. A capture that fails leaves the allocator believing in it, so that nothing can be captured any
    more, unless it `mends`.
    """

    queue_limit: int | None = None
    clock: int = 0
    busy_until: int = 0
    log: list[str] = field(default_factory=list)
    found: Policy = field(default_factory=lambda: Policy(True, True, True))
    pending: list[int] = field(default_factory=list)
    graph: int | Exception = 0
    l2: int | None = 50 * MB
    watched: Any = "no NVML in this test"
    worked: int = 0
    mends: bool = False
    poisoned: bool = False

    def launch(self, host: int, device: int) -> None:
        """What one kernel does: the host spends its launch time, the device starts when it can."""
        self.clock += host
        if self.queue_limit is not None:
            self.pending = [end for end in self.pending if end > self.clock]
            if len(self.pending) >= self.queue_limit:
                self.clock = self.pending.pop(0)
        self.busy_until = max(self.busy_until, self.clock) + device
        self.worked += device
        self.pending.append(self.busy_until)

    def kernels(self, host: int, device: int) -> Callable[[], None]:
        """A call that launches for `host` ns and computes for `device` ns."""

        def call() -> None:
            self.log.append("call")
            self.launch(host, device)

        return call

    def set_device(self) -> None:
        self.log.append("set_device")

    def set_policy(self, policy: Policy) -> None:
        self.log.append("policy")
        self.found = policy

    def policy(self) -> Policy:
        return self.found

    def now_ns(self) -> int:
        self.log.append("now")
        return self.clock

    def cpu_ns(self) -> int:
        return self.clock // 2

    def synchronize(self) -> None:
        self.log.append("sync")
        self.clock = max(self.clock, self.busy_until)

    def event(self) -> Event:
        return Event(self)

    def spin(self, nanoseconds: int) -> None:
        self.log.append("spin")
        self.launch(0, nanoseconds)

    def stream_address(self) -> int:
        return 7

    def flush(self) -> None:
        self.log.append("flush")
        self.launch(1_000, 70_000)

    def queue_load(self) -> None:
        self.log.append("work")
        self.launch(1_000, 100_000_000)

    def capture(self, call: Callable[[], None]) -> Callable[[], None]:
        self.log.append("capture")
        if self.poisoned:
            raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")
        call()
        if isinstance(self.graph, Exception):
            self.poisoned = not self.mends
            raise self.graph
        captured = self.log[len(self.log) - self.log[::-1].index("capture") :].count("call")
        return lambda: self.launch(10_000, int(self.graph) * captured)  # type: ignore[call-overload]

    def abandon_capture(self) -> None:
        self.log.append("abandon")

    def why_unusable(self) -> str | None:
        return "captures_underway.empty() INTERNAL ASSERT FAILED" if self.poisoned else None

    def place(self, value: Any) -> Any:
        return value

    def reset_peak(self) -> None:
        self.log.append("reset")

    def allocated(self) -> int:
        return 100

    def peak_allocated(self) -> int:
        return 700

    def peak_reserved(self) -> int:
        return 900

    def empty_cache(self) -> None:
        self.log.append("empty")

    def is_out_of_memory(self, error: BaseException) -> bool:
        return isinstance(error, NotEnoughError)

    def l2_bytes(self) -> int | None:
        return self.l2

    def properties(self) -> dict[str, Any]:
        return {"gpu.name": "Scripted", "gpu.uuid": "abc"}

    def nvml_gpu(self) -> Any:
        return self.watched


class Nvml(nvml.Gpu):
    """An NVML whose readings follow a script, one a block; the last one stays. The first is that of the setup."""

    def __init__(self, *readings: nvml.GpuSample) -> None:
        super().__init__(None, None)
        self.readings, self.looks = list(readings), 0

    def read(self) -> nvml.GpuSample:
        self.looks += 1
        return self.readings.pop(0) if len(self.readings) > 1 else self.readings[0]

    def read_clock(self) -> nvml.GpuSample:
        found = self.read()
        return nvml.GpuSample(sm_mhz=found.sm_mhz, reasons=found.reasons)

    def processes(self) -> frozenset[int] | None:
        return self.readings[0].processes

    def sm_mhz_max(self) -> float | None:
        return 1980.0

    def facts(self) -> dict[str, Any]:
        return {"gpu.driver": "570.1"}


def device(gpu: Gpu, **options: Any) -> Cuda:
    return Cuda(api=gpu, **{"warm_up_s": 0.0, **options})


CALM = nvml.GpuSample(sm_mhz=1980, memory_mhz=2619, temperature_c=50, power_w=300, reasons=0, processes=frozenset({7}))


def library(**answers: Any) -> Any:
    """A pynvml of which only `answers` are supported."""

    def unsupported(*_: Any) -> None:
        raise NVMLError("Not Supported")

    names = ("nvmlSystemGetDriverVersion", "nvmlDeviceGetClockInfo", "nvmlDeviceGetPowerUsage", "nvmlDeviceGetMigMode")
    ready = {name: unsupported for name in names}
    handles = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetHandleByUUID": lambda uuid: uuid,
        "nvmlDeviceGetCount": lambda: 2,
    }
    return SimpleNamespace(NVMLError=NVMLError, **{**ready, **handles, **answers})
