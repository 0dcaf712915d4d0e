"""The two peaks of a device, and where they are kept between runs. No torch.

Kept under the user's cache folder, one small file each: a peak belongs to a machine, and one measurement serves every
run on it. What cannot be read or written there is measured again; that is all a cache may do.
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


@dataclass(frozen=True)
class Peaks:
    """The most arithmetic and the most memory traffic that a device was seen to reach, per second.

    `flops_per_s` is a large square matrix product's (2 operations per multiply-add) in `dtype`, `bytes_per_s` a large
    copy's (bytes read plus bytes written): each the best of its samples, since disturbances only ever lower one.
    `threads` is 0 where it has no meaning, `measured` an ISO time.
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
        """The intensity in operations per byte above which arithmetic, and no longer memory, takes the time."""
        return self.flops_per_s / self.bytes_per_s

    def facts(self) -> dict[str, Any]:
        """What a run's environment records: ``peaks.float32.flops_per_s`` and so on, samples as one string."""
        plain = asdict(self)
        dtype = plain.pop("dtype")
        samples = {name: " ".join(f"{value:.3g}" for value in plain.pop(name)) for name in _SAMPLES}
        return {f"peaks.{dtype}.{name}": value for name, value in (plain | samples).items()}


_SAMPLES = ("flops_samples", "bytes_samples")


def recorded(facts: Mapping[str, Any], dtype: str) -> Peaks | None:
    """The peaks that a run's environment records for this dtype; None where it holds none."""
    flops, moved = (facts.get(f"peaks.{dtype}.{name}") for name in ("flops_per_s", "bytes_per_s"))
    if not (_is_rate(flops) and _is_rate(moved)):
        return None
    threads, measured = (facts.get(f"peaks.{dtype}.{name}") for name in ("threads", "measured"))
    return Peaks(flops, moved, dtype, threads if isinstance(threads, int) else 1, str(measured or ""))


def kept(key: str) -> Peaks | None:
    """The peaks kept under this key (`host.facts.machine_key`); None where there are none to be trusted."""
    with suppress(OSError, ValueError):
        found = decoding.make(decoding.parse(_file(key).read_bytes()), Peaks)
        if _is_rate(found.flops_per_s) and _is_rate(found.bytes_per_s):
            return found
    return None


def keep(key: str, peaks: Peaks) -> Path | None:
    """Keep the peaks for later runs. Where that is not possible they are only measured again, so nothing is raised."""
    path = _file(key)
    half = path.with_suffix(f".{os.getpid()}")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        half.write_text(json.dumps(asdict(peaks), indent=1) + "\n", encoding="utf-8")
        half.replace(path)
        return path
    return None


def _file(key: str) -> Path:
    # The user's home may be unknown; a folder that cannot exist is then a cache that keeps nothing.
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "effbench" / "peaks" / f"{key}.json"


def _is_rate(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0
