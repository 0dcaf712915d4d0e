"""What every device can do: say what it is, hold a network, and time one block of calls.

`time_block` is the only place of a device that looks at a clock. A device is final: `cpu`, `cuda` and `fake` implement
this class and nothing overrides them.
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
"""One forward pass with its inputs bound."""


@dataclass(frozen=True)
class Memory:
    """Bytes that a process has held at most, and who counted them.

    `code_bytes` are those of files mapped into it, programs and libraries above all, now; `reserved_bytes` what an
    allocator kept for it at most. Either is None where it has no meaning.
    """

    peak_bytes: int
    source: str
    code_bytes: int | None = None
    reserved_bytes: int | None = None


@dataclass(frozen=True)
class Energy:
    """What counters of energy read now, in microjoules by domain, and whose they are.

    A counter starts anew at its entry in `wraps`; one without an entry does not.
    """

    counters_uj: Mapping[str, int]
    source: str
    wraps_uj: Mapping[str, int] = field(default_factory=dict)


def renew(call: Call) -> None:
    """Put the inputs back that a network writes into. Only the call of such a network has this attribute."""
    put_back = getattr(call, "renew", None)
    if put_back is not None:
        put_back()


class OutOfMemory(Exception):
    """The device ran out of memory in this cell. A result to record, never a reason for a smaller batch."""


class Device(ABC):
    """A place where networks run. Adapters hold state (threads, streams); everything else is functions."""

    kind: str
    """"cpu", "cuda" or "fake": what studies choose their defaults by."""
    name: str
    """As written on the command line: "cpu", "cuda:1"."""
    uses_torch: bool = True
    """Whether what runs here may be torch's: set-up and its modes then import it."""
    probes: bool = False
    """Whether `probe` finds anything out."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What this device is, for the environment record. JSON values only; unreadable facts are None."""

    @abstractmethod
    def setup(self) -> None:
        """Called once in a worker before anything runs: threads, denormals, precision and autotune policy."""

    @abstractmethod
    def place(self, value: Any) -> Any:
        """The module or tensor on this device."""

    @abstractmethod
    def time_block(self, call: Call, calls: int) -> Timing:
        """Time `calls` back-to-back calls. Raises OutOfMemory; lets the model's own errors through."""

    def time_calls(self, call: Call, calls: int) -> list[int]:
        """Wall nanoseconds that each of `calls` calls took until its results were there, one after the other.

        Raises OutOfMemory; lets the model's own errors through.
        """
        spent, clock = [], time.perf_counter_ns
        renew(call)
        self.synchronize()
        for _ in range(calls):
            start = clock()
            call()
            self.synchronize()
            spent.append(clock() - start)
        return spent

    def run_calls(self, call: Call, calls: int) -> None:
        """Make exactly `calls` calls back to back, untimed, and wait for the last.

        Raises OutOfMemory; lets the model's own errors through.
        """
        self.time_block(call, calls)

    @abstractmethod
    def synchronize(self) -> None:
        """Wait for all work given to the device."""

    def bind(self, call: Call | None, cost: Mapping[str, Any]) -> Call:
        """The call as this device wants to time it. Only a scripted clock changes it; it needs no real call at all."""
        if call is None:
            raise ValueError(f"{self.name} times real calls only")
        return call

    def now_s(self) -> float:
        """Seconds on the clock that budgets are kept by."""
        return time.perf_counter()

    def setting(self) -> Mapping[str, Any]:
        """What this device decides of a runtime's `Setting`: `index`, `tf32`, `autotune`. Empty where it decides none.

        A runtime with kernels of its own must follow the precision and the search for algorithms of the run.
        """
        return {}

    def rotations(self, input_bytes: int) -> int:
        """How many different inputs consecutive calls should rotate through, so that no cache holds the next one."""
        return 1

    def admit_processes(self) -> None:  # noqa: B027 - most devices do not see who computes on them
        """Take whoever computes on this device now for one of ours; a process that appears later disturbs."""

    def broken(self) -> str | None:
        """Why nothing more can run on this device in this process, or None: a cell that failed may leave it so."""
        return None

    def probe(self, call: Call, calls: int, *, no_graph: str | None = None) -> Mapping[str, Any]:
        """Facts measured once per cell and launch, after the rounds: device against host time, memory.

        `no_graph` says why the call is not to be captured as a CUDA graph, where it is not. Keys: ``bound`` ("host",
        "device", "mixed" or None), ``host_over_device``, ``graph_s``, ``working_memory_bytes``.
        """
        return {}

    def memory(self, *, afresh: bool = False) -> Memory:
        """The most memory that this process has held until now; `afresh` forgets what is no longer held, where the
        device can. Raises EffbenchError where nobody counts it.
        """
        raise EffbenchError(f"the memory of {self.name} is counted nowhere; measure on cpu or cuda")

    def energy(self) -> Energy:
        """What this device has used since its counters began. Raises EffbenchError where nobody counts it."""
        raise EffbenchError(f"the energy of {self.name} is counted nowhere; measure on cpu or cuda")

    def rest(self, seconds: float) -> None:
        """Do nothing for so long."""
        time.sleep(seconds)

    def watch(self, call: Call, calls: int) -> list[WatchedCall] | None:
        """Run `calls` calls under a profiler, each with its wall time and its operators in order of their start.

        None where the device has no profiler. Raises OutOfMemory; lets the model's own errors through.
        """
        return None

    def release(self) -> None:  # noqa: B027 - most devices cache nothing
        """Give back memory cached for a cell that has ended."""
