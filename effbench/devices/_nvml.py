"""What NVML says about one GPU: clocks, heat, power, why it is slowed, who else computes on it.

NVML is optional: `connect` returns a reason in words where it is absent, and each single value that a GPU or driver
does not give is None. Reading it takes a fraction of a millisecond, so it is read between blocks, never inside one.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

HW_SLOWDOWN, SW_THERMAL, HW_THERMAL, POWER_BRAKE = 0x8, 0x20, 0x40, 0x80

REASONS = {
    0x1: "idle",
    0x2: "clocks set by the user",
    0x4: "power cap",
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
class Reading:
    """One look at a GPU. Clocks in MHz, temperature in °C, power in W; `processes` are computing process ids."""

    sm_mhz: float | None = None
    memory_mhz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    reasons: int | None = None
    processes: frozenset[int] | None = None

    def numbers(self) -> dict[str, float]:
        """The values that were read, as the clocks of a block."""
        named = {
            "sm_mhz": self.sm_mhz,
            "memory_mhz": self.memory_mhz,
            "temperature_c": self.temperature_c,
            "power_w": self.power_w,
            "throttle_reasons": self.reasons,
        }
        return {name: float(value) for name, value in named.items() if value is not None}


class Gpu:
    """One GPU as NVML sees it. `library` is the pynvml module, `handle` its handle of the GPU."""

    def __init__(self, library: Any, handle: Any) -> None:
        self._library, self._handle = library, handle

    def read(self) -> Reading:
        """The state that changes from block to block."""
        power = self._ask("nvmlDeviceGetPowerUsage")
        return Reading(
            sm_mhz=self._ask("nvmlDeviceGetClockInfo", _SM),
            memory_mhz=self._ask("nvmlDeviceGetClockInfo", _MEMORY),
            temperature_c=self._temperature(),
            power_w=None if power is None else power / 1000,
            reasons=self._reasons(),
            processes=self._processes("nvmlDeviceGetComputeRunningProcesses"),
        )

    def facts(self) -> dict[str, Any]:
        """What stays the same during a run, under ``gpu.…``."""
        limit, mig, ecc = (self._ask(f"nvmlDeviceGet{name}") for name in ("EnforcedPowerLimit", "MigMode", "EccMode"))
        mode, persistence = self._ask("nvmlDeviceGetComputeMode"), self._ask("nvmlDeviceGetPersistenceMode")
        clients = self._processes("nvmlDeviceGetMPSComputeRunningProcesses")
        return {
            "gpu.driver": _words(self._call(self._library.nvmlSystemGetDriverVersion)),
            "gpu.sm_mhz_max": self._ask("nvmlDeviceGetMaxClockInfo", _SM),
            "gpu.memory_mhz_max": self._ask("nvmlDeviceGetMaxClockInfo", _MEMORY),
            # As set by `nvidia-smi -ac`. Clocks locked by `-lgc` can be set through NVML, and not read.
            "gpu.sm_mhz_application": self._ask("nvmlDeviceGetApplicationsClock", _SM),
            "gpu.memory_mhz_application": self._ask("nvmlDeviceGetApplicationsClock", _MEMORY),
            "gpu.power_limit_w": None if limit is None else limit / 1000,
            "gpu.pcie_generation": self._ask("nvmlDeviceGetMaxPcieLinkGeneration"),
            "gpu.pcie_width": self._ask("nvmlDeviceGetMaxPcieLinkWidth"),
            "gpu.persistence": None if persistence is None else bool(persistence),
            "gpu.compute_mode": None if mode is None else _COMPUTE_MODES.get(mode, str(mode)),
            "gpu.ecc": None if ecc is None else bool(ecc[0]),
            "gpu.mig": None if mig is None else bool(mig[0]),
            "gpu.mps_clients": None if clients is None else len(clients),
        }

    def energy_uj(self) -> int | None:
        """Microjoules since the driver was loaded. NVML counts in millijoules."""
        found = self._ask("nvmlDeviceGetTotalEnergyConsumption")
        return None if found is None else int(found) * 1000

    def name(self) -> str | None:
        return _words(self._ask("nvmlDeviceGetName"))

    def _temperature(self) -> int | None:
        # Newer drivers deprecate the plain query; newer bindings wrap the versioned one.
        return _first_present(
            lambda: self._ask("nvmlDeviceGetTemperature", 0), lambda: self._ask("nvmlDeviceGetTemperatureV", 0)
        )

    def _reasons(self) -> int | None:
        return _first_present(
            lambda: self._ask("nvmlDeviceGetCurrentClocksEventReasons"),
            lambda: self._ask("nvmlDeviceGetCurrentClocksThrottleReasons"),
        )

    def _processes(self, question: str) -> frozenset[int] | None:
        found = self._ask(question)
        return None if found is None else frozenset(process.pid for process in found)

    def _ask(self, question: str, *words: Any) -> Any:
        function = getattr(self._library, question, None)
        return None if function is None else self._call(function, self._handle, *words)

    def _call(self, function: Callable[..., Any], *words: Any) -> Any:
        try:
            return function(*words)
        except self._library.NVMLError:
            return None


def connect(uuid: str | None = None, index: int = 0, library: Any = None) -> Gpu | str:
    """The GPU with this UUID (or, without one, this NVML index), or the reason why NVML cannot show it.

    The UUID matters: CUDA_VISIBLE_DEVICES renumbers GPUs for CUDA, not for NVML.
    """
    found = load(library)
    if isinstance(found, str):
        return found
    try:
        if uuid is None:
            return Gpu(found, found.nvmlDeviceGetHandleByIndex(index))
        full = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
        return Gpu(found, found.nvmlDeviceGetHandleByUUID(full))
    except found.NVMLError as error:
        return f"NVML does not show this GPU ({error})"


def gpus(library: Any = None) -> tuple[Gpu, ...] | str:
    """Every GPU of this machine, or the reason why NVML cannot list them."""
    found = load(library)
    if isinstance(found, str):
        return found
    try:
        return tuple(Gpu(found, found.nvmlDeviceGetHandleByIndex(i)) for i in range(found.nvmlDeviceGetCount()))
    except found.NVMLError as error:
        return f"NVML cannot list the GPUs ({error})"


def load(library: Any = None) -> Any:
    """The started NVML binding, or the reason in words why there is none."""
    if library is None:
        try:
            library = importlib.import_module("pynvml")
        except ImportError:
            return "nvidia-ml-py is not installed"
    try:
        library.nvmlInit()
    except library.NVMLError as error:
        return f"NVML does not start ({error})"
    return library


def reason_names(mask: int | None) -> tuple[str, ...]:
    """The set bits in words; a bit without a name keeps its number."""
    bits = (1 << place for place in range((mask or 0).bit_length()) if (mask or 0) >> place & 1)
    return tuple(REASONS.get(bit, f"{bit:#x}") for bit in bits)


def _words(value: Any) -> str | None:
    return value.decode() if isinstance(value, bytes) else value


def _first_present(*questions: Callable[[], int | None]) -> int | None:
    for question in questions:
        if (answer := question()) is not None:
            return answer
    return None
