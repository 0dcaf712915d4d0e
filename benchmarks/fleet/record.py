"""Keep what a part measured: one JSON file a part, with the machine, versions, command and raw values."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.peers.session import ROOT, facts, machine_name, now
from effbench.host import facts as host_facts
from effbench.host import machine

PACKAGES = ("effbench", "torch", "distributed", "dask", "tornado", "cryptography", "msgpack", "msgspec", "psutil")
RESULTS = ROOT / "results" / "fleet"


@dataclass(frozen=True)
class Target:
    """What must hold, and what was found. `is_met` None is a value that is only reported."""

    what: str
    wanted: str
    found: str
    is_met: bool | None = None


@dataclass(frozen=True)
class Outcome:
    """What a part found: its targets, the conditions that it chose, and every raw value."""

    targets: Sequence[Target]
    settings: dict[str, Any] = field(default_factory=dict)
    raw: dict[str, Any] = field(default_factory=dict)


def default_folder() -> Path:
    return RESULTS / machine_name()


def keep(folder: Path, part: str, command: str, begun: dict[str, Any], outcome: Outcome) -> Path:
    """Write what a part found. `begun` is `conditions` from before it began."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{part}.json"
    values = {
        "part": part,
        "command": command,
        "before": begun,
        "after": conditions(),
        "machine": {key: value for key, value in facts().items() if key != "load_1m"},
        "versions": _versions(),
        "settings": outcome.settings,
        "targets": [asdict(target) for target in outcome.targets],
    }
    text = json.dumps(values, indent=1, allow_nan=False).removesuffix("\n}")
    raw = json.dumps(outcome.raw, allow_nan=False, separators=(",", ":"))  # one long line: there may be many values
    path.write_text(f'{text},\n "raw": {raw}\n}}\n')
    return path


def conditions() -> dict[str, Any]:
    """What may have disturbed a part: time and load of the machine."""
    return {"at": now(), "load_1m": machine.load_average()}


def _versions() -> dict[str, str]:
    import platform
    import ssl

    found = {"python": platform.python_version(), "openssl": ssl.OPENSSL_VERSION}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    commit, is_dirty = host_facts.checkout(ROOT)
    if commit:
        found["effbench commit"] = commit[:10] + ("+changes" if is_dirty else "")
    return found


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value that this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def ratio_interval(
    pairs: Sequence[tuple[float, float]], draws: int = 4000, seed: int = 0
) -> tuple[float, float, float]:
    """Return the geometric mean of the ratios of pairs, and its bootstrap interval of 95 % over the pairs."""
    logs = [math.log(first / second) for first, second in pairs]
    generator = random.Random(seed)
    means = sorted(math.fsum(generator.choices(logs, k=len(logs))) / len(logs) for _ in range(draws))
    low, high = means[int(0.025 * draws)], means[min(draws - 1, int(0.975 * draws))]
    return math.exp(math.fsum(logs) / len(logs)), math.exp(low), math.exp(high)
