"""Time blocks on the CPU, and read the kernel's counters of disturbances around each block.

Counters are read once per block, outside of the timed region: page faults and involuntary context switches (getrusage),
time spent runnable but not running (schedstat), and time stolen by the hypervisor (/proc/stat). A counter that the
kernel does not have reads as zero.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import sys
import time
import weakref
from collections.abc import Iterator
from typing import Any

from effbench.core.errors import InvalidValue, first_line, message_of
from effbench.core.operator_times import WatchedCall
from effbench.core.run import Timing
from effbench.devices._thread_run_delay import ThreadRunDelays
from effbench.devices.base import Call, Device, Energy, Memory, OutOfMemory, restore_inputs
from effbench.host import cgroups, core_clusters, rapl

RUN_DELAY_SHARE = 0.05
"""A block that waited for a core for more than this share of its time is flagged as disturbed."""

STEAL_SHARE = 0.05
"""The same limit for steal time. One tick of 10 ms exceeds it in any block shorter than 0.2 s."""

_ALLOCATOR_MESSAGES = ("can't allocate memory", "not enough memory", "bad_alloc", "annot allocate memory")


class Cpu(Device):
    """The CPU with `threads` intra-op threads (0 = `usable_cores`) and one inter-op thread.

    Parameters
    ----------
    threads : int
        Intra-op threads of torch or the runtime; 0 for one per usable core.
    whole_process : bool
        With one thread, count the CPU time of all threads and not only of the calling one. For runtimes that compute in
        threads of their own.
    cluster : str
        "big" or "little" pins the process to the cores of that kind in `setup`. 0 `threads` is then one per such core.
    torch : bool
        False leaves torch's threads and denormals alone: bundles run without torch, and their runtimes set both
        themselves.
    """

    kind = "cpu"
    name = "cpu"

    def __init__(self, threads: int = 1, *, whole_process: bool = False, cluster: str = "", torch: bool = True) -> None:
        self.uses_torch = torch
        self.cluster, self._cores = cluster, core_clusters.cores_of(cluster)
        self.threads = thread_count(threads, cluster)
        self._one_thread = self.threads == 1 and not whole_process
        self._cpu_clock = time.thread_time_ns if self._one_thread else time.process_time_ns
        self._schedstat = _open_until_freed("/proc/thread-self/schedstat", self)
        # A runtime may compute in its own threads; those are then the ones that wait for a core.
        self._thread_delays = ThreadRunDelays() if whole_process and self.threads == 1 else None
        self._stat = _open_until_freed("/proc/stat", self)

    def facts(self) -> dict[str, Any]:
        found = {"kind": "cpu", "name": "cpu", "threads": self.threads, "machine": platform.machine()}
        if self._cores:
            found |= {"cpu.cluster": self.cluster, "cpu.cluster_cores": core_clusters.core_ranges(self._cores)}
        return found

    def setup(self) -> None:
        if self._cores:
            # Before torch is imported: its threads inherit the affinity of the thread that starts them.
            core_clusters.pin(self._cores)
        if not self.uses_torch:
            return
        import torch

        torch.set_num_threads(self.threads)
        torch.set_num_interop_threads(1)
        # Denormals cost up to 40x on some layers and are no property of the network (pytorch issue 21734).
        torch.set_flush_denormal(True)

    def place(self, value: Any) -> Any:
        return value.to("cpu")

    def synchronize(self) -> None:
        """Do nothing: a CPU call returns when it is done."""

    def time_block(self, call: Call, calls: int) -> Timing:
        restore_inputs(call)
        faults, switches = _rusage(self._one_thread)
        delay, steal = self._run_delay_ns(), self._steal_ns()
        cpu_clock, wall_clock, process_clock = self._cpu_clock, time.perf_counter_ns, time.process_time_ns
        with translate_out_of_memory():
            process_start = process_clock()
            cpu_start = cpu_clock()
            start = wall_clock()
            for _ in range(calls):
                call()
            wall = wall_clock() - start
            cpu = cpu_clock() - cpu_start
            # Read outermost, so that the clocks that ratios are computed from stay closest to the calls.
            process = process_clock() - process_start
        delay, steal = self._run_delay_ns() - delay, self._steal_ns() - steal
        faults_after, switches_after = _rusage(self._one_thread)
        return Timing(
            calls=calls,
            wall_ns=wall,
            cpu_ns=cpu,
            process_ns=process,
            minor_faults=faults_after - faults,
            switches=switches_after - switches,
            run_delay_ns=delay,
            steal_ns=steal,
            flags=disturbances(wall, delay, steal),
        )

    def memory(self, *, reset_peak: bool = False) -> Memory:
        """Return the peak of resident pages, shared libraries included."""
        held = _status_bytes("VmHWM", "RssFile") if sys.platform == "linux" else {}
        if held.get("VmHWM"):
            # Not getrusage: a process inherits its maximum from its parent.
            return Memory(held["VmHWM"], "VmHWM of /proc/self/status", code_bytes=held["RssFile"])
        if sys.platform == "win32":
            return super().memory()
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return Memory(peak * (1 if sys.platform == "darwin" else 1024), "ru_maxrss of getrusage")

    def energy(self) -> Energy:
        """Return the energy of the whole package and its memory, other processes included."""
        counters, wraps = rapl.read()
        return Energy(counters, "rapl", wraps)

    def time_calls(self, call: Call, calls: int) -> list[int]:
        with translate_out_of_memory():
            return super().time_calls(call, calls)

    def time_operators(self, call: Call, calls: int) -> list[WatchedCall]:
        from effbench.devices import _torch_profiler

        with translate_out_of_memory():
            return _torch_profiler.profile_calls(call, calls)

    def _run_delay_ns(self) -> int:
        if self._thread_delays is not None:
            return self._thread_delays.run_delay_ns()
        fields = os.pread(self._schedstat, 128, 0).split() if self._schedstat is not None else ()
        return int(fields[1]) if len(fields) > 1 else 0

    def _steal_ns(self) -> int:
        """Return the steal time of all cores since boot. The kernel counts it in ticks of 10 ms."""
        if self._stat is None:
            return 0
        fields = os.pread(self._stat, 256, 0).split(b"\n", 1)[0].split()
        return int(fields[8]) * 10_000_000 if len(fields) > 8 else 0


@contextlib.contextmanager
def translate_out_of_memory() -> Iterator[None]:
    """Raise OutOfMemory if torch's allocator or Python runs out of memory; leave other errors as they are."""
    try:
        yield
    except MemoryError as error:
        raise OutOfMemory(message_of(error) or "MemoryError") from error
    except RuntimeError as error:
        if any(word in message_of(error) for word in _ALLOCATOR_MESSAGES):
            raise OutOfMemory(first_line(error)) from error
        raise


def disturbances(wall_ns: int, run_delay_ns: int, steal_ns: int) -> tuple[str, ...]:
    """Name the outside causes that disturbed a block, each judged as a share of the block's time."""
    flags = []
    if run_delay_ns > RUN_DELAY_SHARE * wall_ns:
        flags.append("waited for a core")
    if steal_ns > STEAL_SHARE * wall_ns:
        flags.append("steal")
    return tuple(flags)


def thread_count(threads: int, cluster: str = "") -> int:
    """Return the number of threads to use: `threads`, or for 0 one per core of the cluster or per usable core.

    Raises InvalidValue if `threads` is negative or exceeds the cluster's cores, or if this machine has no such cluster.
    """
    if threads < 0:
        raise InvalidValue(f"threads (={threads}) must be 1 or more, or 0 for every core")
    cores = len(core_clusters.cores_of(cluster))
    if cores and threads > cores:
        raise InvalidValue(
            f"threads (={threads}) are more than the {cores} cores of --cluster {cluster}; ask for fewer"
        )
    return threads or cores or usable_cores()


def usable_cores() -> int:
    """Return how many cores this process can keep busy: those of its affinity, limited by its cgroup's CPU quota."""
    quota = cgroups.quota()
    most = math.ceil(quota.cores) if quota is not None and quota.cores else allowed_cores()
    return max(1, min(allowed_cores(), most))


def allowed_cores() -> int:
    """Return how many cores this process may run on; respects the affinity if the system has one."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def thread_warning(threads: int, cluster: str = "") -> str | None:
    """Return a warning about measuring with `threads` threads (as for `Cpu`) on these cores, or None."""
    asked, quota = thread_count(threads, cluster), cgroups.quota()
    cores = len(core_clusters.cores_of(cluster)) or allowed_cores()
    counted = f"{asked} thread{'s' * (asked > 1)}"
    if quota is not None and quota.cores and quota.cores < min(asked, cores):
        limit = f"the control group may use {quota.cores:g} cores (docker: --cpus)"
        return f"{limit}, so {counted} will stand still for part of the time; give it more, or rely on ratios"
    if quota is not None and quota.cores and threads == 0 and asked < cores:
        return f"the control group may use {quota.cores:g} of {cores} cores (docker: --cpus), so this is {counted}"
    if asked > cores:
        return f"{counted} on {cores} core{'s' * (cores > 1)} take turns: what is timed is that, too"
    return None


def _open_until_freed(path: str, owner: Cpu) -> int | None:
    """Open a file until `owner` is freed. Test suites create one device per network, so descriptors must not
    accumulate.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    weakref.finalize(owner, os.close, descriptor).atexit = False
    return descriptor


def _status_bytes(*names: str) -> dict[str, int]:
    """Return these sizes of this process in bytes, from the kernel's values in kB; 0 for one that the kernel does not
    list.
    """
    found = dict.fromkeys(names, 0)
    with contextlib.suppress(OSError), open("/proc/self/status") as lines:
        for line in lines:
            name, _, size = line.partition(":")
            if name in found:
                found[name] = int(size.split()[0]) * 1024
    return found


def _rusage(one_thread: bool) -> tuple[int, int]:
    """Return (minor page faults, involuntary switches) of this thread, or of the process if several threads compute."""
    if sys.platform == "win32":
        return 0, 0
    import resource

    who = resource.RUSAGE_THREAD if one_thread and sys.platform == "linux" else resource.RUSAGE_SELF
    usage = resource.getrusage(who)
    return usage.ru_minflt, usage.ru_nivcsw
