"""Another minor version of Python with what a machine of a fleet needs, and without torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from filelock import FileLock
from nursery import ROOT
from torchless import _HIDING, HEAVY

COMPILED = ("msgspec", "numpy")
"""What differs from version to version and has nothing in pure Python to fall back on. All else is taken from this
installation."""


def _candidates() -> Iterator[str]:
    for minor in range(sys.version_info.minor + 3, 9, -1):
        if minor != sys.version_info.minor:
            yield from filter(None, [shutil.which(f"python3.{minor}")])
            yield from map(str, Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python3"))


@cache
def find() -> tuple[str, str]:
    """An interpreter of another minor version, and which one it is. Skips the test where there is none."""
    for path in _candidates():
        asked = "import sys, ssl; print('%d.%d' % sys.version_info[:2])"
        said = subprocess.run([path, "-c", asked], capture_output=True, text=True, timeout=60)
        if said.returncode == 0:
            return path, said.stdout.strip()
    pytest.skip("there is no other minor version of Python here")


def packages(version: str) -> Path:
    """The folder with `COMPILED` for this version, made once. Skips the test where pip cannot."""
    home = Path(os.environ["XDG_CACHE_HOME"], "pythons")
    home.mkdir(parents=True, exist_ok=True)
    folder = home / f"{version}-{'-'.join(COMPILED)}"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            words = ["--quiet", "--no-compile", "--no-deps", "--only-binary", ":all:", "--python-version", version]
            part = folder.with_suffix(".part")
            pip = [sys.executable, "-m", "pip", "install", *words, "--target", str(part), *COMPILED]
            done = subprocess.run(pip, capture_output=True, text=True, timeout=300)
            if done.returncode:
                pytest.skip(f"pip cannot install {', '.join(COMPILED)} for Python {version}: {done.stderr[-300:]}")
            part.rename(folder)
    return folder


def environment(version: str, folder: Path) -> dict[str, str]:
    """The variables with which it finds effbench, no torch, and something that passes for a runtime in `folder`."""
    import distributed

    (folder / "onnxruntime").mkdir(parents=True)
    (folder / "onnxruntime" / "__init__.py").touch()  # the fake device never runs a model
    (folder / "sitecustomize.py").write_text(_HIDING.format(hidden=[*HEAVY]))
    places = (folder, ROOT, packages(version), Path(distributed.__file__).parents[1])
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("COV", "PYTHON"))}
    return {**kept, "PYTHONPATH": os.pathsep.join(map(str, places)), "PYTHONDONTWRITEBYTECODE": "1"}
