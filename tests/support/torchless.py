"""A Python in which packages that are installed cannot be found, as on a board that has none of them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from nursery import HANGS_S
from shell import EFFBENCH, Done

HEAVY = ("torch", "torchvision", "timm", "pandas", "matplotlib", "fvcore", "onnx", "onnxscript", "pnnx")
LEFT_OUT = (*HEAVY, "cloudpickle", "jinja2", "pynvml", "cpuinfo", "psutil", "pytest", "pytest_benchmark")
"""What the requirements of a bundle do not bring."""

_HIDING = """
import sys
from importlib.machinery import PathFinder

class Hiding(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {hidden!r} else super().find_spec(name, path, target)

sys.meta_path[:] = [Hiding if finder is PathFinder else finder for finder in sys.meta_path]
"""


def effbench(
    *words: object, cwd: Path, without: Sequence[str] = (), command: Sequence[str] = EFFBENCH, timeout: float = HANGS_S
) -> Done:
    """Run one command, and every process that it starts, where neither `LEFT_OUT` nor `without` can be found."""
    folder = cwd / "hiding"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(_HIDING.format(hidden=[*LEFT_OUT, *without]))
    # Coverage is measured by a package that wants others; here it would only be in the way.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    here = str(Path(__file__).parents[2])
    variables = {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join((str(folder), here))}
    done = subprocess.run(
        [*command, *map(str, words)], cwd=cwd, env=variables, capture_output=True, text=True, timeout=timeout
    )
    return Done(done.returncode, done.stdout, done.stderr)
