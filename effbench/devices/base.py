"""Define what every device implements: its facts, placing a network, and timing a block of calls.

`time_block` is the only place of a device that reads a clock. Devices are final: `cpu`, `cuda` and `fake` implement
this class, and nothing overrides them.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from effbench.core.errors import EffbenchError
from effbench.core.operator_times import WatchedCall
from effbench.core.run import Timing

Call = Callable[[], object]
"""One forward pass on fixed inputs."""


@dataclass(frozen=True)
class Memory:
    """Peak memory of a process in bytes, and the counter that it comes from.

    `code_bytes` is the size of the files mapped into the process now, mostly programs and libraries. `reserved_bytes`
    is the most that an allocator kept for the process. Either is None if the device does not have it.
    """

    peak_bytes: int
    source: str
    code_bytes: int | None = None
    reserved_bytes: int | None = None


@dataclass(frozen=True)
class Energy:
    """Energy counters in microjoules by domain, and their source.

    A counter restarts from 0 at its value in `wraps_uj`. A counter without an entry there does not wrap.
    """

    counters_uj: Mapping[str, int]
    source: str
    wraps_uj: Mapping[str, int] = field(default_factory=dict)


def restore_inputs(call: Call) -> None:
    """Restore the inputs of a call whose network writes into them. Only such calls have the attribute
    `restore_inputs`.
    """
    restore = getattr(call, "restore_inputs", None)
    if restore is not None:
        restore()


class OutOfMemory(Exception):
    """The device ran out of memory in this cell. This is a result to record; the batch is never reduced because of
    it.
    """


class Device(ABC):
    """Where networks run and are timed. Implementations may hold state such as threads and streams.

    To add a device, implement this class in one file of `effbench/devices/`.
    """

    kind: str
    """ "cpu", "cuda" or "fake". Studies choose their defaults by it."""
    name: str
    """As written on the command line: "cpu", "cuda:1"."""
    uses_torch: bool = True
    """Whether calls may be torch's. If so, `setup` imports torch and sets its modes."""
    has_probe: bool = False
    """Whether `probe` returns anything."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Describe this device for the environment record of a run.

        Returns
        -------
        dict
            JSON values by name; None for what cannot be read.
        """

    @abstractmethod
    def setup(self) -> None:
        """Set threads, denormals, precision and autotuning. Called once in a worker before anything runs."""

    @abstractmethod
    def place(self, value: Any) -> Any:
        """Move a module or tensor to this device and return it."""

    @abstractmethod
    def time_block(self, call: Call, calls: int) -> Timing:
        """Time `calls` back-to-back calls.

        Parameters
        ----------
        call : callable
            One forward pass on fixed inputs.
        calls : int
            How often to call it.

        Returns
        -------
        Timing
            Wall, CPU and (on a GPU) device time of the whole block in nanoseconds, with counters and flags.

        Raises
        ------
        OutOfMemory
            If the device runs out of memory. Other errors of the model are not caught.
        """

    def time_calls(self, call: Call, calls: int) -> list[int]:
        """Time each of `calls` calls from its start until its result is ready.

        Returns
        -------
        list of int
            Wall time of each call in nanoseconds.

        Raises
        ------
        OutOfMemory
            If the device runs out of memory. Other errors of the model are not caught.
        """
        spent, clock = [], time.perf_counter_ns
        restore_inputs(call)
        self.synchronize()
        for _ in range(calls):
            start = clock()
            call()
            self.synchronize()
            spent.append(clock() - start)
        return spent

    def run_calls(self, call: Call, calls: int) -> None:
        """Make exactly `calls` back-to-back calls, untimed, and wait for the last one.

        Raises
        ------
        OutOfMemory
            If the device runs out of memory. Other errors of the model are not caught.
        """
        self.time_block(call, calls)

    @abstractmethod
    def synchronize(self) -> None:
        """Wait for all work queued on the device."""

    def bind(self, call: Call | None, cost: Mapping[str, Any]) -> Call:
        """Wrap `call` for timing. Real devices return it unchanged; the fake device returns a scripted call and needs
        no `call`.
        """
        if call is None:
            raise ValueError(f"{self.name} times real calls only")
        return call

    def now_s(self) -> float:
        """Return the time in seconds on the clock that time budgets use."""
        return time.perf_counter()

    def runtime_settings(self) -> Mapping[str, Any]:
        """Return the fields of a runtime's `Setting` that this device decides: `index`, `tf32`, `autotune`.

        A runtime with its own kernels must follow the run's precision and autotuning. Empty if the device decides none.
        """
        return {}

    def rotations(self, input_bytes: int) -> int:
        """Return how many different inputs consecutive calls rotate through, so that no input is still in a cache."""
        return 1

    def expect_current_processes(self) -> None:  # noqa: B027 - most devices cannot list their processes
        """Take the processes that use this device now as expected; any that appears later is flagged as a
        disturbance.
        """

    def why_unusable(self) -> str | None:
        """Return why this process can no longer use the device, as after some failed cells; None if it can."""
        return None

    def probe(self, call: Call, calls: int, *, why_no_graph: str | None = None) -> Mapping[str, Any]:
        """Measure facts of a cell once per launch, after the rounds: device time against host time, and memory.

        Parameters
        ----------
        call : callable
            One forward pass on fixed inputs.
        calls : int
            How often to call it.
        why_no_graph : str, optional
            Why the call must not be captured as a CUDA graph; None if it may.

        Returns
        -------
        mapping
            ``bound`` ("host", "device", "mixed" or None: what limits the cell), ``host_over_device`` (ratio),
            ``graph_s`` (seconds), ``working_memory_bytes``. Empty if the device has no probe.
        """
        return {}

    def memory(self, *, reset_peak: bool = False) -> Memory:
        """Return the peak memory of this process.

        Parameters
        ----------
        reset_peak : bool
            Reset the peak to what is held now, if the device can.

        Raises
        ------
        EffbenchError
            If this device has no memory counter.
        """
        raise EffbenchError(f"the memory of {self.name} is counted nowhere; measure on cpu or cuda")

    def energy(self) -> Energy:
        """Return the energy used since the device's counters started. Raises EffbenchError if it has no energy
        counter.
        """
        raise EffbenchError(f"the energy of {self.name} is counted nowhere; measure on cpu or cuda")

    def sleep(self, seconds: float) -> None:
        """Sleep for `seconds`."""
        time.sleep(seconds)

    def time_operators(self, call: Call, calls: int) -> list[WatchedCall] | None:
        """Profile `calls` calls.

        Returns
        -------
        list of WatchedCall or None
            Wall time of each call and its operators in the order of their start; None if the device has no profiler.

        Raises
        ------
        OutOfMemory
            If the device runs out of memory. Other errors of the model are not caught.
        """
        return None

    def empty_cache(self) -> None:  # noqa: B027 - most devices cache nothing
        """Free memory that is cached for a cell that has ended."""
