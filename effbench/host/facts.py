"""Collect the environment of a run, and compare two: which facts must agree, and which differ.

Facts are flat JSON scalars under dotted names. They contain no user name, host name, home folder or network address.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from effbench.core.errors import NotComparable
from effbench.core.run import Environment
from effbench.host import machine
from effbench.host import nvml as host_nvml

MUST_AGREE: tuple[str, ...] = (
    "device",
    "runtime",
    "run.threads",
    "run.allocator",
    "run.memory_format",
    "run.mode",
    "host.machine",
    "host.emulated",
    "cpu.model",
    "cpu.logical",
    "cpu.allowed",
    "cpu.cluster",
    "cpu.cluster_cores",
    "cpu.quota",
    "cpu.governor",
    "cpu.boost",
    "python.version",
    "torch.version",
    "torch.cpu_capability",
    "torch.float32_matmul_precision",
    "runtime.version",
    "env.DNNL_DEFAULT_FPMATH_MODE",
    "env.LD_PRELOAD",
    "gpu.name",
    "gpu.driver",
    "gpu.cuda",
    "gpu.mig",
    "gpu.precision",
    "gpu.autotune",
    "gpu.cache",
    "gpu.cudnn",
    "gpu.power_limit_w",
    "gpu.sm_mhz_application",
    "gpu.memory_mhz_application",
    "gpu.ecc",
    "gpu.fp16_reduced_precision_reduction",
    "gpu.bf16_reduced_precision_reduction",
    "gpu.fp16_accumulation",
)
"""Conditions that must agree before a difference between two runs can be attributed to the code."""

_ADDED_LATER = frozenset(MUST_AGREE[MUST_AGREE.index("gpu.cudnn") :])
"""Conditions added after run files were already stored. While unrecorded, they do not change a fingerprint."""

_GPU_SETTINGS = (
    "gpu.driver",
    "gpu.mig",
    "gpu.power_limit_w",
    "gpu.sm_mhz_application",
    "gpu.memory_mhz_application",
    "gpu.ecc",
)
"""Settings of a GPU that its owner can change and that NVML reports without torch."""

_MAJOR_MINOR = ("python.version", "torch.version", "runtime.version")

_PACKAGES = ("numpy", "onnxruntime", "openvino", "executorch", "ncnn", "triton")

_VARIABLES = re.compile(
    r"(OMP|GOMP|KMP|MKL|DNNL|ONEDNN|OPENBLAS|MALLOC|ACL|TORCH_CUDNN|CUBLAS|TORCHINDUCTOR)_\w+"
    r"|GLIBC_TUNABLES|LD_PRELOAD|CUDA_VISIBLE_DEVICES|CUDA_DEVICE_ORDER|CUDA_LAUNCH_BLOCKING|CUDA_MODULE_LOADING"
    r"|NVIDIA_TF32_OVERRIDE|LRU_CACHE_CAPACITY|THP_MEM_ALLOC_ENABLE|ATEN_CPU_CAPABILITY|PYTORCH_(CUDA_)?ALLOC_CONF"
    r"|PYTHON(MALLOC|HASHSEED)"
)


@dataclass(frozen=True)
class Difference:
    """A condition in which two runs differ. None means "not recorded"."""

    field: str
    baseline: Any
    candidate: Any

    def __str__(self) -> str:
        return f"{self.field} ({_value_text(self.baseline)} / {_value_text(self.candidate)})"


def collect(
    device_facts: Mapping[str, Any],
    runtime: str,
    *,
    threads: int,
    allocator: str,
    runtime_facts: Mapping[str, Any] | None = None,
    root: Path = machine.HERE,
    variables: Mapping[str, str] | None = None,
) -> Environment:
    """Collect the environment of a run.

    Parameters
    ----------
    device_facts : mapping
        `Device.facts()` of the device that was measured.
    runtime : str
        Name of the runtime, or several separated by commas.
    threads : int
        Intra-op threads.
    allocator : str
        Name of the malloc policy: "retain" or "system".
    runtime_facts : mapping, optional
        `Runtime.facts()` from the process that measured, where thread counts and precision were set.
    root, variables
        Replace this machine's files and environment variables.

    Returns
    -------
    Environment
        Device, runtime and facts, with a fingerprint of the conditions.
    """
    device = _flat(device_facts)
    facts: dict[str, Any] = {
        **_host(root),
        **machine.cpu(root),
        **_limits(root),
        **_software(root),
        **_variables(os.environ if variables is None else variables),
        **_flat(runtime_facts or {}, "runtime"),
        **device,
        "run.threads": threads,
        "run.allocator": allocator,
    }
    versions = [_version(name) for name in runtime.split(",") if name in _PACKAGES]
    if versions:
        facts["runtime.version"] = " ".join(map(str, versions))
    found = Environment(str(device.get("device.name") or "unknown"), runtime, facts)
    return Environment(found.device, runtime, {**facts, "host.fingerprint": fingerprint(found)})


def differences(baseline: Environment, candidate: Environment) -> tuple[Difference, ...]:
    """Return the conditions of `MUST_AGREE` in which the two environments differ, in that order.

    Versions are compared by major and minor number. A fact that neither environment recorded agrees; a fact that only
    one of them recorded differs.
    """
    pairs = ((name, _condition(baseline, name), _condition(candidate, name)) for name in MUST_AGREE)
    return tuple(Difference(name, before, after) for name, before, after in pairs if before != after)


def require_comparable(baseline: Environment, candidate: Environment) -> None:
    """Raise NotComparable, naming every condition that differs, unless the two environments agree."""
    found = differences(baseline, candidate)
    if found:
        raise NotComparable(
            f"the runs were measured under different conditions: {', '.join(map(str, found))}; "
            "measure both on the same machine with the same settings"
        )


_MOMENTARY = re.compile(
    r"host\.load_1m|host\.fingerprint|cpu\.mhz_now|cpu\.throttled_periods|effbench\.dirty|peaks\..*|run\..*"
    r"|gpu\.(sm_mhz|memory_mhz|temperature_c|power_w|throttle_reasons|other_processes)"
)
"""Facts that change from minute to minute, and facts that only the start of a run records."""


def changes(before: Environment, now: Environment) -> tuple[Difference, ...]:
    """Return the lasting facts outside of `MUST_AGREE` that both environments recorded and that differ."""
    return tuple(
        Difference(name, value, now.facts[name])
        for name, value in before.facts.items()
        if name not in MUST_AGREE
        and not _MOMENTARY.fullmatch(name)
        and value is not None
        and now.facts.get(name) not in (None, value)
    )


def fingerprint(environment: Environment) -> str:
    """Return a stable anonymous id of the conditions. Two ids are equal exactly if `differences` is empty."""
    conditions = ((name, _condition(environment, name)) for name in MUST_AGREE)
    known = "\n".join(f"{name}={value!r}" for name, value in conditions if not (value is None and name in _ADDED_LATER))
    return hashlib.sha256(known.encode()).hexdigest()[:16]


def machine_key(
    device: str,
    options: Mapping[str, Any],
    *,
    threads: int,
    allocator: str,
    dtype: str,
    root: Path = machine.HERE,
    variables: Mapping[str, str] | None = None,
    nvml: Any = None,
) -> str:
    """Return a stable anonymous id of everything that a device's peaks depend on, without importing torch or using a
    GPU.

    Equal ids mean the same machine, device, options, dtype, threads, versions and environment variables, and GPUs with
    the same settings. `nvml` replaces the pynvml module.
    """
    facts = {**_host(root), **machine.cpu(root), **_limits(root)}
    known = {name: facts[name] for name in MUST_AGREE if name in facts}
    known |= _variables(os.environ if variables is None else variables)
    known |= {"device": device, "threads": threads, "allocator": allocator, "dtype": dtype, "torch": _version("torch")}
    if device.startswith("cuda"):
        found = host_nvml.gpus(nvml)
        known["gpus"] = found if isinstance(found, str) else [_gpu_settings(gpu) for gpu in found]
    return hashlib.sha256(repr((sorted(known.items()), sorted(options.items()))).encode()).hexdigest()[:16]


_LEDGER_FACTS = (
    "host.machine",
    "host.board",
    "cpu.model",
    "cpu.logical",
    "cpu.allowed",
    "cpu.cluster",
    "cpu.quota",
    "run.threads",
    "run.allocator",
    "gpu.name",
    "gpu.mig",
    "gpu.precision",
    "gpu.autotune",
    "gpu.cache",
)
"""Facts that must agree for the results of a machine to be compared: its hardware, and settings of the yardstick."""


def ledger_key(environment: Environment) -> str:
    """Return a stable anonymous id of hardware, device and settings, whatever the versions of software."""
    known = [environment.device, *(environment.facts.get(name) for name in _LEDGER_FACTS)]
    return hashlib.sha256(repr(known).encode()).hexdigest()[:16]


def machine_id(root: Path = machine.HERE) -> str:
    """Return an anonymous hash of this installation's id (machine-id(5)); that of no id where it has none."""
    names = ("etc/machine-id", "var/lib/dbus/machine-id")
    found = next((text for name in names if (text := machine.read_text(root / name))), "")
    return hashlib.sha256(f"effbench sittings {found}".encode()).hexdigest()[:16]


# --- parts ------------------------------------------------------------------------------------------


def _gpu_settings(gpu: host_nvml.Gpu) -> tuple[Any, ...]:
    facts = gpu.facts()
    return (gpu.name(), *(facts.get(name) for name in _GPU_SETTINGS))


def _host(root: Path) -> dict[str, Any]:
    here = root == machine.HERE
    libc = " ".join(platform.libc_ver()).strip() if here else ""
    kind = platform.machine()
    return {
        "host.os": platform.system(),
        "host.kernel": platform.release() if here else machine.read_text(root / "proc/sys/kernel/osrelease"),
        "host.machine": kind,
        "host.emulated": machine.emulated(root, kind),
        "host.board": machine.board(root),
        "host.hypervisor": machine.hypervisor(root),
        "host.container": machine.container(root),
        "host.libc": libc or None,
        "host.load_1m": machine.load_average(root),
    }


def _limits(root: Path) -> dict[str, Any]:
    memory, quota = machine.memory(root), machine.quota(root)
    return {
        "cpu.quota": quota.cores if quota else None,
        "cpu.throttled_periods": quota.throttled if quota else None,
        "memory.total_bytes": memory.get("MemTotal"),
        "memory.swap_bytes": memory.get("SwapTotal"),
        "memory.huge_pages": machine.huge_pages(root),
        "memory.aslr": machine.read_number(root / "proc/sys/kernel/randomize_va_space"),
    }


def _software(root: Path) -> dict[str, Any]:
    commit, dirty = checkout(Path(__file__).resolve().parents[2]) if root == machine.HERE else (None, None)
    versions = {f"{name}.version": version for name in _PACKAGES if (version := _version(name)) is not None}
    return {
        "python.version": platform.python_version(),
        "python.implementation": platform.python_implementation(),
        "effbench.version": _version("effbench"),
        "effbench.commit": commit,
        "effbench.dirty": dirty,
        **versions,
    }


def checkout(folder: Path) -> tuple[str | None, bool | None]:
    """Return the commit of the git checkout at `folder` and whether tracked files are modified; (None, None) without
    one.
    """
    if not (folder / ".git").exists():
        return None, None
    commit = _git(folder, "rev-parse", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return commit or None, None if changed is None else bool(changed)


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _variables(variables: Mapping[str, str]) -> dict[str, str]:
    chosen = sorted((name, value) for name, value in variables.items() if _VARIABLES.fullmatch(name))
    return {f"env.{name}": _without_folders(value) for name, value in chosen}


def _without_folders(value: str) -> str:
    """Keep the names of preloaded libraries but not their folders, which may contain a user name."""
    if "/" not in value:
        return value
    return " ".join(re.findall(r"[^/\\\s:;,]+\.(?:so|dylib)[\w.]*", value)) or "(a path)"


def _version(package: str) -> str | None:
    """Return the version of an imported package, which may be installed under another name if built for GPUs."""
    for name in (package, f"{package}-gpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _flat(facts: Mapping[str, Any], prefix: str = "device") -> dict[str, Any]:
    """Flatten nested mappings to dotted names, and sequences to one string. Scalars without a dot get the `prefix`."""
    flat: dict[str, Any] = {}
    for key, value in facts.items():
        name = key if "." in key else f"{prefix}.{key}"
        if isinstance(value, Mapping):
            flat |= _flat({f"{key}.{inner}": v for inner, v in value.items()})
        elif isinstance(value, (list, tuple, set, frozenset)):
            flat[name] = " ".join(str(item) for item in value)
        else:
            flat[name] = value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
    return flat


def _condition(environment: Environment, name: str) -> Any:
    if name == "device":
        return environment.device
    if name == "runtime":
        return environment.runtime
    value = environment.facts.get(name)
    if name in _MAJOR_MINOR and isinstance(value, str):
        return ".".join(value.split(".")[:2])
    return value


def _value_text(value: Any) -> str:
    return "not recorded" if value is None else str(value)
