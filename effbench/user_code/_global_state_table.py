"""List the global settings that a network can change: one row per setting, with how to read and how to restore it.

torch's rows come first. A setting that changes others comes before those, so that restoring all of them in this order
restores each. A row that this version of torch, Python or the system does not have is left out.
"""

from __future__ import annotations

import functools
import gc
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

from effbench.user_code._warning_filters import set_warning_filters, warning_filters

ADVICE_THREADS = "--threads sets them for every cell"

_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "OMP_PROC_BIND")

_entered: list[Any] = []
"""Context managers that were entered to restore a setting. They stay entered until the process ends."""


@dataclass(frozen=True)
class GlobalSetting:
    """One setting of the process or of the computing thread.

    Attributes
    ----------
    name
        Its name in messages.
    read
        Returns the current value.
    put_back
        Restores a value that `read` returned; None if it cannot be restored.
    follows
        Settings that change this one along with themselves. It is reported only if it changed alone.
    slow
        Reading it takes long.
    quiet
        It is restored without a report: libraries change it when they are imported, and it does not affect timing.
    advice
        What to do instead of changing it.
    """

    name: str
    read: Callable[[], Any]
    restore: Callable[[Any], object] | None
    follows: tuple[str, ...] = ()
    slow: bool = False
    unreported: bool = False
    advice: str = ""


def readable_settings() -> tuple[GlobalSetting, ...]:
    """Return the settings that can be read here: torch's if torch is imported, Python's and the system's."""
    found = [*(_torch_settings() if "torch" in sys.modules else ()), *_python_settings(), *_system_settings()]
    return tuple(setting for setting in found if _is_readable(setting))


def _is_readable(setting: GlobalSetting) -> bool:
    try:
        setting.read()
    except Exception:  # versions without it raise different errors
        return False
    return True


def format_value(value: Any) -> str:
    """Format a value for a message."""
    if isinstance(value, float):
        return f"{value:g}"
    if value is None or isinstance(value, (bool, int, str, _Hooks)):
        return str(value)
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(map(format_value, value)) + ")"
    if isinstance(value, (set, frozenset)):
        return "{" + ", ".join(sorted(map(format_value, value))) + "}"
    if isinstance(value, io.IOBase):
        return "another stream"
    text = repr(value)
    return text if len(text) <= 40 and " at 0x" not in text else type(value).__name__


# --- torch ------------------------------------------------------------------------------------------


def _torch_settings() -> Iterator[GlobalSetting]:
    import torch

    c: Any = torch._C
    backends: Any = torch.backends
    yield GlobalSetting("torch's default device", _default_device, _set_default_device)
    yield GlobalSetting(
        "torch's open modes (of functions, of operators)",
        _open_modes,
        _close_modes,
        follows=("torch's default device",),
    )
    yield GlobalSetting("torch's inference mode", torch.is_inference_mode_enabled, _set_inference_mode)
    yield GlobalSetting(
        "torch's grad mode", torch.is_grad_enabled, c._set_grad_enabled, follows=("torch's inference mode",)
    )
    yield GlobalSetting("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype)
    yield GlobalSetting("torch's threads", torch.get_num_threads, torch.set_num_threads, advice=ADVICE_THREADS)
    yield GlobalSetting("MKL's threads", _mkl_threads, torch.set_num_threads, follows=("torch's threads",), slow=True)
    yield GlobalSetting("torch's inter-op threads", torch.get_num_interop_threads, None)
    yield GlobalSetting("flushing of denormals", flushes_denormals, torch.set_flush_denormal)
    for kind in ("cpu", "cuda"):
        enabled, dtype = partial(torch.is_autocast_enabled, kind), partial(torch.get_autocast_dtype, kind)
        yield GlobalSetting(f"autocast on {kind}", enabled, partial(torch.set_autocast_enabled, kind))
        yield GlobalSetting(f"the dtype of autocast on {kind}", dtype, partial(torch.set_autocast_dtype, kind))
    cached = torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled
    yield GlobalSetting("the cache of autocast", *cached)
    anomaly = "torch.autograd's anomaly detection"
    yield GlobalSetting(anomaly, _anomaly, _set_anomaly)
    profiler: Any = torch.autograd
    yield GlobalSetting("torch's profiler", profiler._profiler_enabled, None)
    yield GlobalSetting("torch.use_deterministic_algorithms", _deterministic, _set_deterministic)
    yield _flag("torch.utils.deterministic.fill_uninitialized_memory", "deterministic_fill_uninitialized_memory")
    yield from _precision(torch)
    yield _flag("torch.backends.mkldnn.enabled", "mkldnn_enabled")
    yield _flag("torch.backends.mkldnn.deterministic", "mkldnn_deterministic")
    yield _flag("torch.backends.nnpack", "nnpack_enabled")
    quantized = backends.quantized
    engine = partial(getattr, quantized, "engine"), lambda name: c._set_qengine(_engine_number(name))
    yield GlobalSetting("torch.backends.quantized.engine", *engine)
    yield _flag("torch.backends.cudnn.enabled", "cudnn_enabled")
    yield _flag("torch.backends.cudnn.benchmark", "cudnn_benchmark")
    yield _flag(
        "torch.backends.cudnn.deterministic",
        "cudnn_deterministic",
        follows=("torch.use_deterministic_algorithms",),
    )
    for kernel in ("flash", "mem_efficient", "math", "cudnn"):
        getter, setter = f"_get_{kernel}_sdp_enabled", f"_set_sdp_use_{kernel}"
        yield _flag(f"torch.backends.cuda's {kernel} attention", "", getter=getter, setter=setter)
    attention = "the order of attention kernels"
    yield GlobalSetting(
        attention, lambda: tuple(c._get_sdp_priority_order()), lambda order: c._set_sdp_priority_order(order)
    )
    for kind in ("fp16", "bf16"):
        name = f"allow_{kind}_reduced_precision_reduction"
        reads, sets = getattr(c, f"_get_cublas_{name}", None), partial(_allow_reduction, backends.cuda.matmul, name)
        if reads is not None:
            yield GlobalSetting(f"torch.backends.cuda.matmul.{name}", reads, sets)
    yield _flag("torch.backends.cuda.matmul.allow_fp16_accumulation", "cublas_allow_fp16_accumulation")
    yield _flag(
        "torch.backends.cpu.allow_fp16_reduced_precision_reduction", "cpu_allow_fp16_reduced_precision_reduction"
    )
    yield _flag("torch's library for linear algebra on a GPU", "linalg_preferred_backend")
    yield _flag("torch's library for matrix products on a GPU", "blas_preferred_backend")
    fast = backends.mha
    yield GlobalSetting("torch.backends.mha's fast path", fast.get_fastpath_enabled, fast.set_fastpath_enabled)
    yield GlobalSetting(
        "torch.backends.opt_einsum",
        lambda: (backends.opt_einsum.enabled, backends.opt_einsum.strategy),
        lambda value: _set_opt_einsum(backends.opt_einsum, value),
    )
    yield GlobalSetting("the number of hooks on every module", _module_hooks, _set_module_hooks)


def _flag(name: str, stem: str, follows: tuple[str, ...] = (), getter: str = "", setter: str = "") -> GlobalSetting:
    """Return the setting of a ``torch._C`` flag, by the getter and setter behind torch's properties, which tests can
    freeze.
    """
    import torch

    c: Any = torch._C
    read, restore = getattr(c, getter or f"_get_{stem}", None), getattr(c, setter or f"_set_{stem}", None)
    return GlobalSetting(name, read or _missing, restore, follows)


def _engine_number(name: str) -> int:
    quantized: Any = sys.modules["torch.backends.quantized"]
    number: int = quantized._get_qengine_id(name)
    return number


def _missing() -> NoReturn:
    raise AttributeError("not in this version")


def _precision(torch: Any) -> Iterator[GlobalSetting]:
    """Yield the settings of float32 precision.

    Since torch 2.9 there are old and new settings for it. After the new ones were set, reading the old ones raises;
    setting the old ones resets the new ones.
    """
    c, old = torch._C, "torch.float32_matmul_precision"
    yield GlobalSetting(old, torch.get_float32_matmul_precision, torch.set_float32_matmul_precision)
    olds = {"cublas": "cuda.matmul", "cudnn": "cudnn", "onednn": "mkldnn"}
    for stem, place in olds.items():
        yield _flag(f"torch.backends.{place}.allow_tf32", f"{stem}_allow_tf32", (old,))
    if not hasattr(c, "_get_fp32_precision_getter"):
        return
    above: tuple[str, ...] = (old, *(f"torch.backends.{place}.allow_tf32" for place in olds.values()))
    for place in ("generic.all", *(f"{kind}.{op}" for kind in ("cuda", "mkldnn") for op in _OPERATORS)):
        backend, operator = place.split(".")
        path = {"generic": "", "cuda": "cuda." if operator == "matmul" else "cudnn.", "mkldnn": "mkldnn."}[backend]
        name = f"torch.backends.{path}{'' if operator == 'all' else operator + '.'}fp32_precision"
        read = partial(c._get_fp32_precision_getter, backend, operator)
        yield GlobalSetting(name, read, partial(c._set_fp32_precision_setter, backend, operator), above)
        if operator == "all":
            above = (*above, name)


_OPERATORS = ("all", "matmul", "conv", "rnn")


def flushes_denormals() -> bool:
    """Whether the processor flushes denormals to zero. Tested by computing, since torch can set this but not
    report it.
    """
    import torch

    tiny = torch.full((1,), 1e-310, dtype=torch.float64, device="cpu")
    return bool((tiny * 1).item() == 0)


def _mkl_threads() -> int:
    """Return MKL's own number of threads, which other libraries can set without torch."""
    import torch

    _, _, rest = torch.__config__.parallel_info().partition("mkl_get_max_threads() :")
    return int(rest.split()[0])


def _default_device() -> Any:
    import torch.utils._device

    return torch.utils._device.CURRENT_DEVICE


def _set_default_device(device: Any) -> None:
    import torch.utils._device

    torch.set_default_device(device)
    # torch does not reset a device that was entered as a mode and never left.
    torch.utils._device.CURRENT_DEVICE = device


def _open_modes() -> tuple[int, int]:
    """Return how many modes intercept torch functions, and how many intercept operators."""
    import torch

    c: Any = torch._C
    return c._len_torch_function_stack(), c._len_torch_dispatch_stack()


def _close_modes(before: tuple[int, int]) -> None:
    import torch

    c: Any = torch._C
    while c._len_torch_function_stack() > before[0]:
        c._pop_torch_function_stack()
    while c._len_torch_dispatch_stack() > before[1]:
        c._pop_torch_dispatch_stack(None)


def _set_inference_mode(value: bool) -> None:
    import torch

    guard = torch.inference_mode(value)
    guard.__enter__()
    _entered.append(guard)


def _anomaly() -> tuple[bool, bool]:
    import torch

    return torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()


def _set_anomaly(value: tuple[bool, bool]) -> None:
    import torch

    torch.set_anomaly_enabled(*value)


def _deterministic() -> tuple[bool, bool]:
    import torch

    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _set_deterministic(value: tuple[bool, bool]) -> None:
    import torch

    # The public function also sets the compiler's option, and would import the compiler for that.
    sets: Any = torch._C._set_deterministic_algorithms
    if "torch._inductor.config" in sys.modules:
        sets = torch.use_deterministic_algorithms
    sets(value[0], warn_only=value[1])


def _allow_reduction(matmul: Any, name: str, value: Any) -> None:
    import torch

    backends: Any = torch.backends
    # `getattr`, because Python would mangle the name within a class.
    with getattr(backends, "__allow_nonbracketed_mutation")():
        setattr(matmul, name, value)


def _set_opt_einsum(opt_einsum: Any, value: tuple[Any, Any]) -> None:
    import torch

    backends: Any = torch.backends
    with getattr(backends, "__allow_nonbracketed_mutation")():
        opt_einsum.enabled, opt_einsum.strategy = value


@functools.cache
def _registries() -> list[dict[Any, Any]]:
    from torch.nn.modules import module

    return [value for name, value in vars(module).items() if name.startswith("_global_") and isinstance(value, dict)]


class _Hooks(tuple[tuple[Any, ...], ...]):
    """The hooks in each registry."""

    def __str__(self) -> str:
        return str(sum(map(len, self)))


def _module_hooks() -> _Hooks:
    return _Hooks(tuple(registry.items()) for registry in _registries())


def _set_module_hooks(before: tuple[tuple[Any, ...], ...]) -> None:
    for registry, items in zip(_registries(), before, strict=True):
        registry.clear()
        registry.update(items)


# --- Python and the system --------------------------------------------------------------------------


def _python_settings() -> Iterator[GlobalSetting]:
    yield GlobalSetting("gc.isenabled", gc.isenabled, lambda value: gc.enable() if value else gc.disable())
    yield GlobalSetting("gc.get_threshold", gc.get_threshold, lambda value: gc.set_threshold(*value))
    yield GlobalSetting("sys.settrace", sys.gettrace, sys.settrace)
    yield GlobalSetting("sys.setprofile", sys.getprofile, sys.setprofile)
    yield GlobalSetting("sys.monitoring's tools", _monitoring, None)
    yield GlobalSetting("tracemalloc", _tracemalloc, _set_tracemalloc)
    yield GlobalSetting("sys.setswitchinterval", sys.getswitchinterval, sys.setswitchinterval)
    # sys.setrecursionlimit is not restored: a deep network needs it, and it does not affect timing. Nor is sys.path,
    # which imports extend.
    yield GlobalSetting("the filters of warnings", warning_filters, set_warning_filters, unreported=True)
    yield GlobalSetting("np.seterr", _numpy_errors, _set_numpy_errors)
    for stream in ("stdout", "stderr"):
        yield GlobalSetting(f"sys.{stream}", partial(getattr, sys, stream), partial(setattr, sys, stream))
    for name in _VARIABLES:
        yield GlobalSetting(f"the variable {name}", partial(os.environ.get, name), partial(_set_variable, name))


def _monitoring() -> tuple[Any, ...]:
    monitoring: Any = sys.monitoring  # type: ignore[attr-defined,unused-ignore] # Python 3.12
    return tuple(monitoring.get_tool(number) for number in range(6))


def _numpy_errors() -> tuple[str, ...]:
    """Return numpy's reactions to division by zero and other floating-point errors."""
    numpy: Any = sys.modules["numpy"]
    return tuple(f"{kind}={reaction}" for kind, reaction in numpy.geterr().items())


def _set_numpy_errors(value: tuple[str, ...]) -> None:
    numpy: Any = sys.modules["numpy"]
    numpy.seterr(**dict(each.split("=") for each in value))


def _tracemalloc() -> bool:
    tracemalloc = sys.modules.get("tracemalloc")
    return bool(tracemalloc and tracemalloc.is_tracing())


def _set_tracemalloc(value: bool) -> None:
    import tracemalloc

    (tracemalloc.start if value else tracemalloc.stop)()


def _set_variable(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def _system_settings() -> Iterator[GlobalSetting]:
    yield GlobalSetting("the working folder", os.getcwd, os.chdir)
    affinity = "the cores that the process may use"
    yield GlobalSetting(affinity, lambda: os.sched_getaffinity(0), lambda cores: os.sched_setaffinity(0, cores))
    # Without a privilege that few processes have, a priority can only be lowered.
    nice = lambda: os.getpriority(os.PRIO_PROCESS, 0)  # noqa: E731
    yield GlobalSetting(
        "the priority of the process (nice)", nice, lambda value: os.setpriority(os.PRIO_PROCESS, 0, value)
    )
    yield GlobalSetting("the scheduling policy of the process", lambda: os.sched_getscheduler(0), None)
    for name in ("ITIMER_REAL", "ITIMER_VIRTUAL", "ITIMER_PROF"):
        yield GlobalSetting(f"the timer {name}", partial(_timer, name), partial(_set_timer, name))


def _timer(name: str) -> bool:
    return signal.getitimer(getattr(signal, name)) != (0.0, 0.0)


def _set_timer(name: str, value: bool) -> None:
    if not value:  # a timer that ran before has advanced, and is left alone
        signal.setitimer(getattr(signal, name), 0.0)
