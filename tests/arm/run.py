"""Run effbench on a real aarch64 userland under qemu: what `make test-arm` does. Skips where that cannot be made."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import userland

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".cache" / "arm"

CHOSEN = (
    "test_stats.py", "test_units.py", "test_plan.py", "test_claims.py", "test_summary.py", "test_diff.py",
    "test_storage.py", "test_machine.py", "test_clusters.py", "test_environment.py", "test_emulation.py",
    "test_formulas.py", "test_cost_cases.py", "test_probes.py",
)  # fmt: skip
"""The part of the suite that says something about a machine, and that emulation does not make endless."""


def main() -> int:
    start = time.monotonic()
    try:
        python, posing = userland.make(FOLDER)
    except userland.Missing as missing:
        print(f"make test-arm: skipped: {missing}")
        return 0
    print(f"{time.monotonic() - start:.0f} s: userland in {FOLDER}", flush=True)
    variables = {
        **os.environ,
        "ARM_PYTHON": str(python),
        "ARM_POSING_PYTHON": str(posing),
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        "OMP_NUM_THREADS": "1",
    }
    tests = [f"tests/{name}" for name in CHOSEN]
    asked = sys.argv[1:] or ["tests/arm/on_arm.py", *tests]
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "timeout=900", "--durations=10", *asked]
    done = subprocess.run([posing, *words], cwd=ROOT, env=variables)
    print(f"{time.monotonic() - start:.0f} s in all", flush=True)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
