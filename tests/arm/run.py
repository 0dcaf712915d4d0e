"""Run effbench on a real aarch64 userland under qemu: what `make test-arm` does. Skips where that cannot be made.

Words on the command line go to pytest instead of the tests that are chosen here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import userland

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".cache" / "arm"

CHOSEN = (
    "test_machine.py", "test_clusters.py", "test_plan.py", "test_stats.py", "test_units.py", "test_claims.py",
    "test_summary.py", "test_formulas.py", "test_probes.py", "test_storage.py",
)  # fmt: skip
"""The part of the suite that says something about a machine, and that emulation does not make endless."""

BUNDLED = ("--study", "g2_groups", "--scale", "x1", "--select", "groups=1,8", "--runtime", "onnxruntime,ncnn")


def main() -> int:
    start = time.monotonic()
    try:
        made = userland.make(FOLDER)
        site = made.packages("site", userland.WHEELS)
    except userland.Missing as missing:
        print(f"make test-arm: skipped: {missing}")
        return 0
    python = made.python("python", made.root, site)
    variables = {
        **os.environ,
        "ARM_PYTHON": str(python),
        "ARM_POSING_PYTHON": str(made.python("posing-python", made.posing, site)),
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "support", ROOT / "tests" / "arm"))),
        "OMP_NUM_THREADS": "1",
    }
    try:
        bundle = _bundle()
        wheels = [line for line in (bundle / "requirements.txt").read_text().splitlines() if line[:1] not in ("#", "")]
        light = made.python("light-python", made.posing, made.packages("light", wheels))
        variables |= {"ARM_LIGHT_PYTHON": str(light), "ARM_BUNDLE": str(bundle)}
    except (userland.Missing, OSError) as missing:
        print(f"make test-arm: no bundle: {missing}")
    print(f"{time.monotonic() - start:.0f} s: the userland is in {FOLDER}", flush=True)
    tests = ["tests/arm/on_arm.py", *(f"tests/{name}" for name in CHOSEN)]
    # Not in /tmp, which the root has too: qemu would list one and write to the other.
    words = [f"--basetemp={FOLDER / 'tmp'}", "-p", "few_examples", "-p", "no:cacheprovider", "-o", "timeout=4000"]
    done = subprocess.run([python, "-m", "pytest", "-q", *words, *(sys.argv[1:] or tests)], cwd=ROOT, env=variables)
    print(f"{time.monotonic() - start:.0f} s in all", flush=True)
    return done.returncode


def _bundle() -> Path:
    """Two networks as model files, exported here, where torch and the exporters run at full speed. Raises Missing."""
    folder = FOLDER / "bundle"
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "effbench", "bundle", *BUNDLED, "--out", folder]
    userland.must_run("models in a bundle", command, {**os.environ, "PYTHONPATH": str(ROOT)})
    return folder


if __name__ == "__main__":
    sys.exit(main())
