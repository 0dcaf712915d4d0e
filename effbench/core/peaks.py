"""The two roofline peaks of a device, and their cache on disk. Without torch.

The cache is in the user's cache folder, one small file a machine and setting, so that peaks are measured once a
machine. If a file cannot be read or written, peaks are measured again.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeGuard

from effbench.core import decoding
from effbench.core.cache_folder import cache_folder


@dataclass(frozen=True)
class Peaks:
    """The highest measured arithmetic rate and memory bandwidth of a device, per second.

    `flops_per_s` is the rate of a large square matrix product in `dtype` (2 operations per multiply-add). `bytes_per_s`
    is the bandwidth of a large copy (bytes read plus bytes written). Each is the maximum of its samples, since
    disturbances only lower a sample. `threads` is 0 where it has no meaning. `measured` is an ISO time.
    """

    flops_per_s: float
    bytes_per_s: float
    dtype: str = "float32"
    threads: int = 1
    measured: str = ""
    flops_samples: tuple[float, ...] = ()
    bytes_samples: tuple[float, ...] = ()

    @property
    def ridge(self) -> float:
        """The arithmetic intensity (operations per byte) above which a kernel is compute-bound, not memory-bound."""
        return self.flops_per_s / self.bytes_per_s

    def facts(self) -> dict[str, Any]:
        """The facts that a run records: ``peaks.float32.flops_per_s`` and so on, samples as one string."""
        plain = asdict(self)
        dtype = plain.pop("dtype")
        samples = {name: " ".join(f"{value:.3g}" for value in plain.pop(name)) for name in _SAMPLES}
        return {f"peaks.{dtype}.{name}": value for name, value in (plain | samples).items()}


_SAMPLES = ("flops_samples", "bytes_samples")


def from_facts(facts: Mapping[str, Any], dtype: str) -> Peaks | None:
    """The peaks for this dtype in the facts of a run; None if there are none."""
    flops, moved = (facts.get(f"peaks.{dtype}.{name}") for name in ("flops_per_s", "bytes_per_s"))
    if not (_is_rate(flops) and _is_rate(moved)):
        return None
    threads, measured = (facts.get(f"peaks.{dtype}.{name}") for name in ("threads", "measured"))
    return Peaks(flops, moved, dtype, threads if isinstance(threads, int) else 1, str(measured or ""))


def read_cached(key: str) -> Peaks | None:
    """Read the peaks of this key (`host.facts.machine_key`) from the cache; None if there are no valid ones."""
    with suppress(OSError, ValueError):
        found = decoding.decode(decoding.parse(_file(key).read_bytes()), Peaks)
        if _is_rate(found.flops_per_s) and _is_rate(found.bytes_per_s):
            return found
    return None


def write_cached(key: str, peaks: Peaks) -> Path | None:
    """Write the peaks to the cache. Never raises: without a cache, peaks are measured again."""
    path = _file(key)
    half = path.with_suffix(f".{os.getpid()}")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        half.write_text(json.dumps(asdict(peaks), indent=1) + "\n", encoding="utf-8")
        half.replace(path)
        return path
    return None


def _file(key: str) -> Path:
    return cache_folder() / "peaks" / f"{key}.json"


def _is_rate(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0
