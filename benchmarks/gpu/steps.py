"""List the steps in the order of their value.

The most important steps come first, and every long run is preceded by a short version of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Step:
    """One step. `need_s` is its approximate time on a GPU of 2022; below `least_s` it is not started."""

    name: str
    title: str
    work: str
    need_s: float
    least_s: float = 20.0

    def folder(self, session: Path) -> Path:
        return session / f"{list(STEPS).index(self.name) + 1:02}_{self.name}"


_ALL = (
    Step("environment", "The machine, its packages, effbench doctor", "machine:environment", 15, 10),
    Step("contract", "The CUDA contract tests", "machine:contract", 50),
    Step("first_command", "effbench run g2_groups", "studies:first_command", 70),
    Step("agreement", "Device time against do_bench, Timer and the profiler", "agreement:agreement", 45),
    Step("faults", "Faults of users' networks stay in their row", "faults:faults", 40),
    Step("batch_sweep", "Images per second against images per call", "studies:batch_sweep", 60),
    Step("guidelines", "G1 to G4, eager and cudagraph, batch 1", "studies:guidelines", 110),
    Step("guidelines_saturated", "The same at the saturating batch", "studies:guidelines_saturated", 110),
    Step("peaks", "Peaks against the data sheet", "peaks:peaks", 25),
    Step("full_models", "Table 8 at batch 8", "studies:full_models", 80),
    Step("breakdown", "Run time by kind of operation", "studies:breakdown", 30),
    Step(
        "secondary_metrics",
        "Energy, percentiles and peak memory of four networks",
        "secondary_metrics:secondary_metrics",
        150,
        40,
    ),
    Step("repeat", "G2 again: no verdict flips", "studies:repeat", 70),
    Step("half_precision", "bfloat16 and channels_last of four networks", "studies:half_precision", 70, 30),
    Step("runtimes", "G1 to G4, compile and onnxruntime as well, batch 1", "studies:runtimes", 220, 60),
    Step("full_models_saturated", "Table 8 at the saturating batch", "studies:full_models_saturated", 80),
    Step(
        "runtimes_saturated", "The same by all runtimes at the saturating batch", "studies:runtimes_saturated", 220, 60
    ),
)
STEPS: Mapping[str, Step] = {step.name: step for step in _ALL}
