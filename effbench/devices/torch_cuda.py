"""Adapt ``torch.cuda`` for the CUDA device. No other module calls ``torch.cuda`` or reads its clocks."""

from __future__ import annotations

import contextlib
import importlib
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from effbench.core.errors import first_line, message_of
from effbench.core.operator_times import WatchedCall
from effbench.devices import _torch_profiler
from effbench.host import nvml

CYCLES_PER_NS = 2
"""Clock cycles that a spin takes per nanosecond. Most GPUs run nearer to 1, so spins last longer than asked, which is
safe.
"""

_FALLBACK_FLUSH_BYTES = 256 << 20
_OUT_OF_MEMORY = ("out of memory", "ALLOC_FAILED")

_FAILED_GRAPHS: list[Any] = []
"""Graphs whose capture failed in this process. They are kept alive (`_end_failed_capture`)."""


@dataclass(frozen=True)
class Policy:
    """Whether matrix products and cuDNN use TF32 for float32, and whether cuDNN benchmarks its algorithms
    (autotune).
    """

    matmul_tf32: bool
    conv_tf32: bool
    autotune: bool

    def __str__(self) -> str:
        precision_names = {True: "tf32", False: "fp32"}
        autotune = "on" if self.autotune else "off"
        return (
            f"matmul {precision_names[self.matmul_tf32]}, cudnn {precision_names[self.conv_tf32]}, autotune {autotune}"
        )


class TorchCuda:
    """Call ``torch.cuda`` for GPU `index`. Tests use a scripted GPU with the same methods."""

    def __init__(self, index: int) -> None:
        self._torch = importlib.import_module("torch")
        self._cuda: Any = self._torch.cuda
        self._index, self._device = index, f"cuda:{index}"
        self._load_matrix: Any = None
        self._flush_buffer: Any = None

    @staticmethod
    def why_unavailable(index: int) -> str | None:
        """Return why GPU `index` cannot be used, or None. Starts no CUDA context if there is a GPU."""
        try:
            torch = importlib.import_module("torch")
        except ImportError:
            return "torch is not installed"
        if not torch.backends.cuda.is_built():
            return f"this torch ({torch.__version__}) is built without CUDA; install a CUDA build of torch"
        count = torch.cuda.device_count()
        if 0 <= index < count:
            return None
        if count:
            valid = ", ".join(f"cuda:{i}" for i in range(count))
            return f"there is no GPU {index}; the valid names are {valid}"
        try:
            torch.cuda.init()
        except (RuntimeError, AssertionError) as error:
            return first_line(error).rstrip(".")
        return "torch sees no GPU; check the driver with nvidia-smi, and CUDA_VISIBLE_DEVICES"

    # --- policies -----------------------------------------------------------------------------------

    def set_device(self) -> None:
        self._cuda.set_device(self._index)

    def current_device(self) -> int:
        """Return the index of this thread's current GPU, which `set_device` changes; 0 before CUDA is initialised."""
        return int(self._cuda.current_device()) if self._cuda.is_initialized() else 0

    def set_policy(self, policy: Policy) -> None:
        """Set TF32 and autotuning, the old switches first and then the new ones.

        With only the new switches set, code that reads the old ones raises (TorchInductor does). torch's own test
        helpers freeze the switches, so they are set as torch's own context managers set them.
        """
        backends = self._torch.backends
        # `getattr`, because Python would mangle the name within a class.
        with getattr(backends, "__allow_nonbracketed_mutation")():
            backends.cudnn.benchmark = policy.autotune
            backends.cuda.matmul.allow_tf32 = policy.matmul_tf32
            backends.cudnn.allow_tf32 = policy.conv_tf32
            if hasattr(backends.cudnn, "conv"):
                names = {True: "tf32", False: "ieee"}
                backends.cuda.matmul.fp32_precision = names[policy.matmul_tf32]
                backends.cudnn.conv.fp32_precision = names[policy.conv_tf32]
                backends.cudnn.rnn.fp32_precision = names[policy.conv_tf32]

    def policy(self) -> Policy:
        """Return the policy in force, read from the switches that the kernels obey."""
        backends = self._torch.backends
        if hasattr(backends.cudnn, "conv"):
            matmul = backends.cuda.matmul.fp32_precision == "tf32"
            conv = backends.cudnn.conv.fp32_precision == "tf32"
        else:
            matmul, conv = backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32
        return Policy(bool(matmul), bool(conv), bool(backends.cudnn.benchmark))

    # --- work and time ------------------------------------------------------------------------------

    def now_ns(self) -> int:
        return time.perf_counter_ns()

    def cpu_ns(self) -> int:
        return time.thread_time_ns()

    def synchronize(self) -> None:
        self._cuda.synchronize(self._index)

    def stream_address(self) -> int:
        """Return the address of the stream that calls are queued on, for a library that launches kernels without torch.

        The default stream has the address 0. Such a library takes 0 for "no stream" and creates its own. If the default
        stream is current, this method therefore makes a new stream the current one of this thread, permanently. Spins,
        events and torch's kernels use it too.
        """
        current = self._cuda.current_stream(self._index)
        if not current.cuda_stream:
            # Work on the default stream may produce data that the new stream reads.
            self.synchronize()
            current = self._cuda.Stream(self._index)
            self._cuda.set_stream(current)
        return int(current.cuda_stream)

    def event(self) -> Any:
        """Create an event with ``record()``, ``query()`` and ``elapsed_time(end)`` in milliseconds."""
        return self._cuda.Event(enable_timing=True)

    def spin(self, nanoseconds: int) -> None:
        """Keep the stream busy for at least this long without touching memory."""
        self._cuda._sleep(nanoseconds * CYCLES_PER_NS)

    def flush(self) -> None:
        """Overwrite twice the size of the L2 cache, queued on the stream."""
        if self._flush_buffer is None:
            size = 2 * (self.l2_bytes() or _FALLBACK_FLUSH_BYTES // 2)
            # A tensor created outside inference mode may be written to inside and outside of it.
            with self._torch.inference_mode(False):
                self._flush_buffer = self._torch.empty(size, dtype=self._torch.int8, device=self._device)
        self._flush_buffer.zero_()

    def queue_load(self) -> None:
        """Queue a few milliseconds of load on the stream."""
        if self._load_matrix is None:
            self._load_matrix = self._torch.ones(2048, 2048, device=self._device)
        for _ in range(8):
            self._torch.mm(self._load_matrix, self._load_matrix)

    def graph_pool(self) -> Any:
        """Return a memory pool that several graphs may share if they are replayed one after the other."""
        return self._cuda.graph_pool_handle()

    def capture(self, call: Callable[[], None], pool: Any = None) -> Callable[[], None]:
        """Capture `call` as a CUDA graph and return its replay.

        Parameters
        ----------
        call
            The work to capture. It runs once before, on a side stream, so that what the first call selects or allocates
            is not captured.
        pool
            The memory pool of the graph; its own by default.

        Returns
        -------
        callable
            Replays the graph.

        Raises
        ------
        RuntimeError
            If `call` launches nothing, or if an earlier failed capture still blocks captures.
        Exception
            Whatever torch raises for operations that a capture forbids.
        """
        if _FAILED_GRAPHS and (reason := self.why_unusable()):
            raise RuntimeError(f"an earlier capture failed and cannot be left behind ({reason})")
        return self._capture_on_side_stream(call, self.graph_pool() if pool is None else pool)

    def _capture_on_side_stream(self, call: Callable[[], None], pool: Any) -> Callable[[], None]:
        """Begin and end the capture without ``torch.cuda.graph``, which leaves its side stream current if ending it
        raises.
        """
        side_stream = self._cuda.Stream()
        side_stream.wait_stream(self._cuda.current_stream())
        with self._cuda.stream(side_stream):
            call()
        self._cuda.current_stream().wait_stream(side_stream)
        self.synchronize()
        self.empty_cache()
        graph = self._cuda.CUDAGraph()
        with self._cuda.stream(side_stream):
            try:
                graph.capture_begin(pool=pool, capture_error_mode="thread_local")
                try:
                    call()
                except BaseException:
                    with contextlib.suppress(RuntimeError):  # it repeats the error of the call
                        graph.capture_end()
                    raise
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    graph.capture_end()
            except BaseException:
                self._end_failed_capture(graph, pool)
                raise
        if any("Graph is empty" in str(warning.message) for warning in caught):
            raise RuntimeError("it launches nothing on torch's stream")
        replay: Callable[[], None] = graph.replay
        return replay

    def _end_failed_capture(self, graph: Any, pool: Any) -> None:
        """End a failed capture for the allocator.

        Up to torch 2.12 ``capture_end`` raises before it tells the allocator (pytorch pull request 180395). The
        allocator then still counts the capture as running: it can neither empty its cache nor capture again. If
        ``capture_end`` did tell it, this call fails harmlessly. The allocator may still query the failed graph, so the
        graph is kept alive.
        """
        _FAILED_GRAPHS.append(graph)
        end = getattr(self._torch._C, "_cuda_endAllocateToPool", None)
        if end is not None:
            with contextlib.suppress(RuntimeError):
                end(self._index, pool)

    def abandon_capture(self) -> None:
        """Clear a failed capture. Its error may be raised once more at the next synchronisation."""
        with contextlib.suppress(RuntimeError):
            self._cuda.synchronize(self._index)
        self.empty_cache()

    def why_unusable(self) -> str | None:
        """Return why torch can do no more work on this GPU in this process, or None.

        The error of a kernel is permanent. The error of a capture persists while the allocator counts that capture as
        running. A small test capture shows which; it also releases random generators that a failed capture has held.
        """
        try:
            self._cuda.synchronize(self._index)
            self._cuda.empty_cache()
            if _FAILED_GRAPHS:
                self._capture_on_side_stream(self._small_kernel, self.graph_pool())
        except RuntimeError as error:
            return first_line(error)
        return None

    def _small_kernel(self) -> None:
        self._torch.zeros(1, device=self._device)

    def time_operators(self, call: Callable[[], object], calls: int) -> list[WatchedCall]:
        """Run `calls` calls under ``torch.profiler``; an operator's time is that of the kernels that it launched."""
        return _torch_profiler.profile_calls(call, calls, synchronize=self.synchronize)

    # --- memory -------------------------------------------------------------------------------------

    def place(self, value: Any) -> Any:
        return value.to(self._device)

    def reset_peak(self) -> None:
        self._cuda.reset_peak_memory_stats(self._index)

    def allocated(self) -> int:
        return int(self._cuda.memory_allocated(self._index))

    def peak_allocated(self) -> int:
        return int(self._cuda.max_memory_allocated(self._index))

    def peak_reserved(self) -> int:
        return int(self._cuda.max_memory_reserved(self._index))

    def empty_cache(self) -> None:
        """Free cached memory. After a failed capture the allocator may refuse (`why_unusable`); that is ignored."""
        with contextlib.suppress(RuntimeError):
            self._cuda.empty_cache()

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether the error means "out of memory", in torch's allocator or in cuBLAS and cuDNN, which allocate without
        it.
        """
        if isinstance(error, self._cuda.OutOfMemoryError):
            return True
        return isinstance(error, RuntimeError) and any(part in message_of(error) for part in _OUT_OF_MEMORY)

    # --- description --------------------------------------------------------------------------------

    def l2_bytes(self) -> int | None:
        return getattr(self._cuda.get_device_properties(self._index), "L2_cache_size", None) or None

    def properties(self) -> dict[str, Any]:
        """Return the GPU's facts under ``gpu.…``. ``gpu.uuid`` only identifies the GPU and is not stored in run
        files.
        """
        properties = self._cuda.get_device_properties(self._index)
        return {
            "gpu.name": properties.name,
            "gpu.capability": f"{properties.major}.{properties.minor}",
            "gpu.multiprocessors": properties.multi_processor_count,
            "gpu.l2_bytes": self.l2_bytes(),
            "gpu.memory_bytes": properties.total_memory,
            "gpu.cuda": self._torch.version.cuda,
            "gpu.cudnn": self._torch.backends.cudnn.version(),
            **self._reduced_precision_flags(),
            "gpu.uuid": self._uuid(),
        }

    def _reduced_precision_flags(self) -> dict[str, bool]:
        """Whether half-precision products may accumulate in less than float32; False if this torch has no such switch.

        torch allows reduced-precision reductions by default. A network may change any of the switches.
        """
        matmul = self._torch.backends.cuda.matmul
        found = {}
        for name in ("fp16_reduced_precision_reduction", "bf16_reduced_precision_reduction", "fp16_accumulation"):
            try:
                found[f"gpu.{name}"] = bool(getattr(matmul, f"allow_{name}"))
            except (AttributeError, AssertionError):  # for an unknown name, depending on torch's version
                found[f"gpu.{name}"] = False
        return found

    def nvml_gpu(self) -> nvml.Gpu | str:
        """Return the same GPU as NVML shows it, or the reason why NVML does not."""
        return nvml.connect(self._uuid(), self._index)

    def _uuid(self) -> str | None:
        found = getattr(self._cuda.get_device_properties(self._index), "uuid", None)
        return str(found) if found else None
