"""The thin adapter between a CUDA device and torch: the only place that calls ``torch.cuda`` and reads its clocks."""

from __future__ import annotations

import contextlib
import importlib
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from effbench.core.errors import text_of
from effbench.core.operator_times import WatchedCall
from effbench.devices import _torch_profiler
from effbench.host import nvml

CYCLES_PER_NS = 2
"""For the spin kernel. Nearer 1 on most GPUs: the spin then lasts longer than asked, which is the safe side."""

_FALLBACK_FLUSH_BYTES = 256 << 20
_OUT_OF_MEMORY = ("out of memory", "ALLOC_FAILED")

_FAILED: list[Any] = []
"""Graphs whose capture failed in this process."""


@dataclass(frozen=True)
class Policy:
    """Whether matrix products and cuDNN multiply float32 as TF32, and whether cuDNN tries algorithms out."""

    matmul_tf32: bool
    conv_tf32: bool
    autotune: bool

    def __str__(self) -> str:
        words = {True: "tf32", False: "fp32"}
        autotune = "on" if self.autotune else "off"
        return f"matmul {words[self.matmul_tf32]}, cudnn {words[self.conv_tf32]}, autotune {autotune}"


class TorchCuda:
    """``torch.cuda`` for GPU `index`. Scripted stand-ins have the same methods."""

    def __init__(self, index: int) -> None:
        self._torch = importlib.import_module("torch")
        self._cuda: Any = self._torch.cuda
        self._index, self._device = index, f"cuda:{index}"
        self._work: Any = None
        self._flushed: Any = None

    @staticmethod
    def unavailable(index: int) -> str | None:
        """Why GPU `index` cannot be used, or None. Starts no CUDA context where there is a GPU."""
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
            return text_of(error).strip().splitlines()[0].rstrip(".")
        return "torch sees no GPU; check the driver with nvidia-smi, and CUDA_VISIBLE_DEVICES"

    # --- policies -----------------------------------------------------------------------------------

    def select(self) -> None:
        self._cuda.set_device(self._index)

    def selected(self) -> int:
        """The index of this thread's current GPU, which `select` changes; 0 where none was chosen yet."""
        return int(self._cuda.current_device()) if self._cuda.is_initialized() else 0

    def set_policy(self, policy: Policy) -> None:
        """Old switches first, then new ones: set alone, the new make old readers raise (TorchInductor is one).

        A test suite that uses torch's own test helpers has the switches frozen, so they are set as torch's own context
        managers set them.
        """
        backends = self._torch.backends
        # By `getattr`, since a class would mangle the name.
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
        """The policy in force, as the kernels see it."""
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

    def stream(self) -> int:
        """The address of the stream that calls are queued on, for a library that launches kernels past torch.

        The default stream has the address 0, which such a library takes for none and makes a stream of its own. Where
        it is the current one, another is made and becomes the current one of this thread, for good: spin, events and
        torch's kernels go there too.
        """
        current = self._cuda.current_stream(self._index)
        if not current.cuda_stream:
            # What is under way on the default stream may be read on the new one.
            self.synchronize()
            current = self._cuda.Stream(self._index)
            self._cuda.set_stream(current)
        return int(current.cuda_stream)

    def event(self) -> Any:
        """An event with ``record()``, ``query()`` and ``elapsed_time(end)`` in milliseconds."""
        return self._cuda.Event(enable_timing=True)

    def spin(self, nanoseconds: int) -> None:
        """Keep the stream busy for at least this long without touching memory."""
        self._cuda._sleep(nanoseconds * CYCLES_PER_NS)

    def flush(self) -> None:
        """Overwrite twice the L2 cache, queued on the stream."""
        if self._flushed is None:
            size = 2 * (self.l2_bytes() or _FALLBACK_FLUSH_BYTES // 2)
            # Born outside inference mode, a tensor may be overwritten inside it and outside.
            with self._torch.inference_mode(False):
                self._flushed = self._torch.empty(size, dtype=self._torch.int8, device=self._device)
        self._flushed.zero_()

    def work(self) -> None:
        """A few milliseconds of load, queued on the stream."""
        if self._work is None:
            self._work = self._torch.ones(2048, 2048, device=self._device)
        for _ in range(8):
            self._torch.mm(self._work, self._work)

    def graph_pool(self) -> Any:
        """Memory that several graphs may work in, as long as they are replayed one after the other."""
        return self._cuda.graph_pool_handle()

    def capture(self, call: Callable[[], None], pool: Any = None) -> Callable[[], None]:
        """Capture `call` as a CUDA graph, in a pool of its own unless given one, and return its replay.

        It is called once before, on a stream aside: what is chosen or allocated at the first call is no part of it.
        Raises whatever capture does not allow, and RuntimeError for a call that launches nothing, or where an earlier
        capture cannot be left behind.
        """
        if _FAILED and (reason := self.broken()):
            raise RuntimeError(f"an earlier capture failed and cannot be left behind ({reason})")
        return self._captured(call, self.graph_pool() if pool is None else pool)

    def _captured(self, call: Callable[[], None], pool: Any) -> Callable[[], None]:
        """Begun and ended here, and not by ``torch.cuda.graph``: where the end raises, that leaves its own stream the
        current one.
        """
        aside = self._cuda.Stream()
        aside.wait_stream(self._cuda.current_stream())
        with self._cuda.stream(aside):
            call()
        self._cuda.current_stream().wait_stream(aside)
        self.synchronize()
        self.empty_cache()
        graph = self._cuda.CUDAGraph()
        with self._cuda.stream(aside):
            try:
                graph.capture_begin(pool=pool, capture_error_mode="thread_local")
                try:
                    call()
                except BaseException:
                    with contextlib.suppress(RuntimeError):  # it says once more what the call said
                        graph.capture_end()
                    raise
                with warnings.catch_warnings(record=True) as said:
                    warnings.simplefilter("always")
                    graph.capture_end()
            except BaseException:
                self._leave(graph, pool)
                raise
        if any("Graph is empty" in str(warning.message) for warning in said):
            raise RuntimeError("it launches nothing on torch's stream")
        replay: Callable[[], None] = graph.replay
        return replay

    def _leave(self, graph: Any, pool: Any) -> None:
        """End for the allocator a capture that failed.

        Up to torch 2.12 ``capture_end`` raises before it tells the allocator (pytorch pull request 180395), which then
        takes the capture for under way: it can neither empty its cache nor capture again. Where `capture_end` did tell
        it, this call fails harmlessly. The allocator may still ask the failed graph for its state, so the graph is kept
        alive.
        """
        _FAILED.append(graph)
        end = getattr(self._torch._C, "_cuda_endAllocateToPool", None)
        if end is not None:
            with contextlib.suppress(RuntimeError):
                end(self._index, pool)

    def abandon_capture(self) -> None:
        """Leave a failed capture behind: its error may surface once more at the next synchronisation."""
        with contextlib.suppress(RuntimeError):
            self._cuda.synchronize(self._index)
        self.empty_cache()

    def broken(self) -> str | None:
        """Why torch can do no more on this GPU in this process, or None.

        The error of a kernel stays for good; that of a capture stays where the allocator still takes it for under way.
        A small capture tells, and gives random generators back that a failed one has kept.
        """
        try:
            self._cuda.synchronize(self._index)
            self._cuda.empty_cache()
            if _FAILED:
                self._captured(self._little, self.graph_pool())
        except RuntimeError as error:
            return (text_of(error).strip() or type(error).__name__).splitlines()[0]
        return None

    def _little(self) -> None:
        self._torch.zeros(1, device=self._device)

    def watch(self, call: Callable[[], object], calls: int) -> list[WatchedCall]:
        """`calls` calls under ``torch.profiler``: operators with the time of the kernels that they launched."""
        return _torch_profiler.watch(call, calls, synchronize=self.synchronize)

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
        """Give cached memory back, where the allocator can: after a failed capture it may not (`broken`)."""
        with contextlib.suppress(RuntimeError):
            self._cuda.empty_cache()

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Also where a library underneath ran out: cuBLAS and cuDNN allocate past torch's allocator."""
        if isinstance(error, self._cuda.OutOfMemoryError):
            return True
        return isinstance(error, RuntimeError) and any(words in text_of(error) for words in _OUT_OF_MEMORY)

    # --- description --------------------------------------------------------------------------------

    def l2_bytes(self) -> int | None:
        return getattr(self._cuda.get_device_properties(self._index), "L2_cache_size", None) or None

    def properties(self) -> dict[str, Any]:
        """Under ``gpu.…``; ``gpu.uuid`` is for finding the GPU, not for the record."""
        about = self._cuda.get_device_properties(self._index)
        return {
            "gpu.name": about.name,
            "gpu.capability": f"{about.major}.{about.minor}",
            "gpu.multiprocessors": about.multi_processor_count,
            "gpu.l2_bytes": self.l2_bytes(),
            "gpu.memory_bytes": about.total_memory,
            "gpu.cuda": self._torch.version.cuda,
            "gpu.cudnn": self._torch.backends.cudnn.version(),
            **self._accumulation(),
            "gpu.uuid": self._uuid(),
        }

    def _accumulation(self) -> dict[str, bool]:
        """Whether products of halves may add up in less than float32. A torch without a switch does not do it.

        Torch allows reduced reductions by default. A network may set any of them.
        """
        matmul = self._torch.backends.cuda.matmul
        found = {}
        for name in ("fp16_reduced_precision_reduction", "bf16_reduced_precision_reduction", "fp16_accumulation"):
            try:
                found[f"gpu.{name}"] = bool(getattr(matmul, f"allow_{name}"))
            except (AttributeError, AssertionError):  # either means an unknown name, by torch's version
                found[f"gpu.{name}"] = False
        return found

    def monitor(self) -> nvml.Gpu | str:
        """The same GPU through NVML, or the reason why not."""
        return nvml.connect(self._uuid(), self._index)

    def _uuid(self) -> str | None:
        found = getattr(self._cuda.get_device_properties(self._index), "uuid", None)
        return str(found) if found else None
