"""Read one GPU through NVML: clocks, temperature, power, throttle reasons, and processes that use it.

NVML is optional: `connect` returns the reason if it is missing. A single value that a GPU, a driver or the binding does
not have is None. One query takes some tens of microseconds, the list of processes more than a millisecond. No query is
therefore made inside a timed region.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

IDLE, POWER_CAP = 0x1, 0x4
HW_SLOWDOWN, SW_THERMAL, HW_THERMAL, POWER_BRAKE = 0x8, 0x20, 0x40, 0x80

REASONS = {
    IDLE: "idle",
    0x2: "clocks set by the user",
    POWER_CAP: "power cap",
    HW_SLOWDOWN: "hardware slowdown",
    0x10: "sync boost",
    SW_THERMAL: "thermal (software)",
    HW_THERMAL: "thermal (hardware)",
    POWER_BRAKE: "power brake",
    0x100: "display clocks",
}
"""Bits of the clock event reasons (nvmlClocksEventReason… in nvml.h)."""

_SM, _MEMORY = 1, 2
_COMPUTE_MODES = {0: "default", 1: "exclusive thread", 2: "prohibited", 3: "exclusive process"}


@dataclass(frozen=True)
class GpuSample:
    """One sample of a GPU. Clocks in MHz, temperature in °C, power in W; `processes` are ids of computing processes."""

    sm_mhz: float | None = None
    memory_mhz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    reasons: int | None = None
    processes: frozenset[int] | None = None

    def numbers(self) -> dict[str, float]:
        """Return the values that could be read, as the clocks of a block."""
        named = {
            "sm_mhz": self.sm_mhz,
            "memory_mhz": self.memory_mhz,
            "temperature_c": self.temperature_c,
            "power_w": self.power_w,
            "throttle_reasons": self.reasons,
        }
        return {name: float(value) for name, value in named.items() if value is not None}


class Gpu:
    """One GPU as NVML shows it. `library` is the pynvml module, `handle` the GPU's handle in it.

    `mig_slice` is the handle of the MIG slice in use. A slice has its own processes; clocks, temperature and energy
    meter are those of the whole GPU.
    """

    def __init__(self, library: Any, handle: Any, mig_slice: Any = None) -> None:
        self._library, self._handle, self._mig_slice = library, handle, mig_slice

    @property
    def is_shared(self) -> bool:
        """Whether only a slice of the GPU is used, so that its energy meter includes the other slices."""
        return self._mig_slice is not None

    def read_clock(self) -> GpuSample:
        """Read only the SM clock and its throttle reasons, which is cheap enough for every block."""
        return GpuSample(sm_mhz=self._query("nvmlDeviceGetClockInfo", _SM), reasons=self._reasons())

    def read(self) -> GpuSample:
        """Read everything that changes during a run, including the list of processes."""
        power = self._query("nvmlDeviceGetPowerUsage")
        return GpuSample(
            sm_mhz=self._query("nvmlDeviceGetClockInfo", _SM),
            memory_mhz=self._query("nvmlDeviceGetClockInfo", _MEMORY),
            temperature_c=self._temperature(),
            power_w=None if power is None else power / 1000,
            reasons=self._reasons(),
            processes=self.processes(),
        )

    def processes(self) -> frozenset[int] | None:
        """Return the ids of the processes that compute on the GPU, in the host's numbering. A container may see none of
        them.
        """
        return self._processes("nvmlDeviceGetComputeRunningProcesses")

    def sm_mhz_max(self) -> float | None:
        found: float | None = self._query("nvmlDeviceGetMaxClockInfo", _SM)
        return found

    def facts(self) -> dict[str, Any]:
        """Return what stays the same during a run, under ``gpu.…``."""
        limit, mig, ecc = (self._query(f"nvmlDeviceGet{name}") for name in ("EnforcedPowerLimit", "MigMode", "EccMode"))
        mode, persistence = self._query("nvmlDeviceGetComputeMode"), self._query("nvmlDeviceGetPersistenceMode")
        clients = self._processes("nvmlDeviceGetMPSComputeRunningProcesses")
        return {
            "gpu.driver": _decoded(self._call(self._library.nvmlSystemGetDriverVersion)),
            "gpu.sm_mhz_max": self.sm_mhz_max(),
            "gpu.memory_mhz_max": self._query("nvmlDeviceGetMaxClockInfo", _MEMORY),
            # As set by `nvidia-smi -ac`. Clocks locked by `-lgc` can be set through NVML but not read.
            "gpu.sm_mhz_application": self._query("nvmlDeviceGetApplicationsClock", _SM),
            "gpu.memory_mhz_application": self._query("nvmlDeviceGetApplicationsClock", _MEMORY),
            "gpu.power_limit_w": None if limit is None else limit / 1000,
            "gpu.pcie_generation": self._query("nvmlDeviceGetMaxPcieLinkGeneration"),
            "gpu.pcie_width": self._query("nvmlDeviceGetMaxPcieLinkWidth"),
            "gpu.persistence": None if persistence is None else bool(persistence),
            "gpu.compute_mode": None if mode is None else _COMPUTE_MODES.get(mode, str(mode)),
            "gpu.ecc": None if ecc is None else bool(ecc[0]),
            "gpu.mig": None if mig is None else bool(mig[0]),
            "gpu.mps_clients": None if clients is None else len(clients),
        }

    def energy_uj(self) -> int | None:
        """Return microjoules since the driver was loaded. NVML counts in millijoules."""
        found = self._query("nvmlDeviceGetTotalEnergyConsumption")
        return None if found is None else int(found) * 1000

    def name(self) -> str | None:
        return _decoded(self._query("nvmlDeviceGetName"))

    def _temperature(self) -> int | None:
        # Newer drivers deprecate the plain query; newer bindings have the versioned one.
        return _first_present(
            lambda: self._query("nvmlDeviceGetTemperature", 0), lambda: self._query("nvmlDeviceGetTemperatureV", 0)
        )

    def _reasons(self) -> int | None:
        return _first_present(
            lambda: self._query("nvmlDeviceGetCurrentClocksEventReasons"),
            lambda: self._query("nvmlDeviceGetCurrentClocksThrottleReasons"),
        )

    def _processes(self, function_name: str) -> frozenset[int] | None:
        # The plain name needs the newest library; a driver older than the binding has only the versioned one.
        for name in (function_name, f"{function_name}_v2"):
            function = getattr(self._library, name, None)
            found = None if function is None else self._call(function, self._mig_slice or self._handle)
            if found is not None:
                return frozenset(process.pid for process in found)
        return None

    def _query(self, function_name: str, *arguments: Any) -> Any:
        function = getattr(self._library, function_name, None)
        return None if function is None else self._call(function, self._handle, *arguments)

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Exception:  # NVMLLibraryMismatchError is no NVMLError, and a missing value must not end a worker
            return None


def connect(uuid: str | None = None, index: int = 0, library: Any = None) -> Gpu | str:
    """Return the GPU with this UUID (or, without one, this NVML index), or the reason why NVML does not show it.

    The UUID is needed because CUDA_VISIBLE_DEVICES renumbers GPUs for CUDA but not for NVML. CUDA gives the UUID of a
    GPU or MIG slice without its prefix.
    """
    found = load(library)
    if isinstance(found, str):
        return found
    if uuid is None:
        names: tuple[str, ...] = ()
    else:
        names = (uuid,) if uuid.startswith(("GPU-", "MIG-")) else (f"GPU-{uuid}", f"MIG-{uuid}")
    why: list[str] = []
    for name in names:
        try:
            handle = found.nvmlDeviceGetHandleByUUID(name)
            if not name.startswith("MIG-"):
                return Gpu(found, handle)
            return Gpu(found, found.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle), mig_slice=handle)
        except Exception as error:
            why.append(str(error))
    try:
        return f"NVML does not show this GPU ({why[0]})" if why else Gpu(found, found.nvmlDeviceGetHandleByIndex(index))
    except Exception as error:
        return f"NVML does not show this GPU ({error})"


def gpus(library: Any = None) -> tuple[Gpu, ...] | str:
    """Return every GPU of this machine, or the reason why NVML cannot list them."""
    found = load(library)
    if isinstance(found, str):
        return found
    try:
        return tuple(Gpu(found, found.nvmlDeviceGetHandleByIndex(i)) for i in range(found.nvmlDeviceGetCount()))
    except Exception as error:
        return f"NVML cannot list the GPUs ({error})"


def load(library: Any = None) -> Any:
    """Return the initialised NVML binding, or the reason why there is none."""
    if library is None:
        try:
            library = importlib.import_module("pynvml")
        except ImportError:
            return "nvidia-ml-py is not installed"
    try:
        library.nvmlInit()
    except Exception as error:
        return f"NVML does not start ({error})"
    return library


def reason_names(mask: int | None) -> tuple[str, ...]:
    """Return the names of the set bits; a bit without a name is given as a number."""
    bits = (1 << place for place in range((mask or 0).bit_length()) if (mask or 0) >> place & 1)
    return tuple(REASONS.get(bit, f"{bit:#x}") for bit in bits)


def _decoded(value: Any) -> str | None:
    return value.decode() if isinstance(value, bytes) else value


def _first_present(*queries: Callable[[], int | None]) -> int | None:
    for query in queries:
        if (value := query()) is not None:
            return value
    return None
