"""An aarch64 userland on another machine: Debian's packages unpacked, wheels for aarch64, a Python that qemu runs.

Nothing in it is started while it is made: packages are unpacked and no script of theirs runs, and wheels are chosen for
the target by uv (pip would read their conditions for this machine, and fetch gigabytes for CUDA).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

import machines

SUITE, PYTHON = "bookworm", "3.11"
PACKAGES = ("python3", "libgomp1", "libstdc++6", "ca-certificates")
TOOLS = ("qemu-aarch64", "mmdebstrap")
DEBIAN = ("qemu-user", "mmdebstrap", "arch-test", "debian-archive-keyring")
"""Packages that hold the tools, and what mmdebstrap checks Debian's signature with."""

TORCH = "torch==2.10.0"
"""The last release whose wheel for aarch64 on PyPI brings no CUDA libraries along."""
WHEELS = (
    TORCH, "fvcore>=0.1.5.post20221221", "pandas", "matplotlib", "psutil", "scipy", "typer", "rich", "cloudpickle",
    "filelock", "jinja2", "nvidia-ml-py", "py-cpuinfo", "pytest", "pytest-benchmark", "pytest-timeout", "hypothesis",
)  # fmt: skip
PROCESSOR = "neoverse-n1"
"""Graviton 2 and Ampere Altra. qemu's default, "max", emulates vectors of 512 bits, twenty times as slow."""


class Missing(Exception):
    """What keeps the userland from being made here, in one line."""


@dataclass(frozen=True)
class Userland:
    """Where it lies: a root as unpacked, and a `posing` one whose /proc/cpuinfo is an Arm machine's.

    Without the second a program reads the file of the machine underneath, as in any container under emulation; runtimes
    that ask which cores there are (ONNX Runtime, ncnn) end without an Arm answer. With it /proc holds no processes, so
    that psutil ends there.
    """

    folder: Path

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def posing(self) -> Path:
        return self.folder / "posing"

    def python(self, name: str, root: Path, packages: Path) -> Path:
        """A script that stands for an interpreter, to itself too: what it starts as `sys.executable` is emulated.

        The kernel runs no aarch64 program without being told how (binfmt_misc), which not everyone may tell it.
        """
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            "#!/bin/sh\n"
            f'export QEMU_LD_PREFIX="{root}" QEMU_CPU="${{QEMU_CPU:-{PROCESSOR}}}"\n'
            f'export PYTHONPATH="{packages}${{PYTHONPATH:+:$PYTHONPATH}}"\n'
            f'exec qemu-aarch64 -0 "$0" "{root}/usr/bin/python{PYTHON}" "$@"\n'
        )
        path.chmod(0o755)
        return path

    def packages(self, name: str, wheels: Sequence[str]) -> Path:
        """A folder with these packages and what they need, for aarch64; fetched once. Raises Missing."""
        place, told = self.folder / name, self.folder / f"{name}.txt"
        wanted = "\n".join(wheels)
        if not told.exists() or told.read_text() != wanted:
            shutil.rmtree(place, ignore_errors=True)
            uv = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-config", "--target", place]
            target = ["--python-platform", "aarch64-manylinux_2_28", "--python-version", PYTHON]
            must_run("wheels for aarch64", [*uv, *target, *wheels])
            told.write_text(wanted)
        return place


def make(folder: Path) -> Userland:
    """The userland in this folder; what is there already is kept. Raises Missing."""
    if os.uname().machine == "aarch64":
        raise Missing("this machine is aarch64 itself: make test is the test")
    _install_tools()
    folder.mkdir(parents=True, exist_ok=True)
    made = Userland(folder)
    if not (made.root / f"usr/bin/python{PYTHON}").exists():
        shutil.rmtree(made.root, ignore_errors=True)
        options = ["--quiet", "--arch=arm64", "--variant=extract", f"--include={','.join(PACKAGES)}"]
        must_run("Debian's packages", ["mmdebstrap", *options, SUITE, made.root])
    shutil.rmtree(made.posing, ignore_errors=True)
    made.posing.mkdir()
    # Programs only: a link where the host has a folder of its own, such as /home, leads astray whoever follows links.
    for name in ("bin", "lib", "usr"):
        (made.posing / name).symlink_to(made.root / name)
    cores = machines.GRAVITON_2.cores[: os.cpu_count()]
    replace(machines.GRAVITON_2, cores=cores).under(made.posing)
    return made


def must_run(what: str, command: Sequence[str | Path], variables: dict[str, str] | None = None) -> None:
    """Run a command to its end. Raises Missing with the last thing it said."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=variables)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise Missing(f"could not get {what} ({last})")


def _install_tools() -> None:
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if not missing:
        return
    by_hand = f"{' and '.join(missing)}; apt install {' '.join(DEBIAN)}"
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise Missing(f"it needs {by_hand}")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    must_run(by_hand, ["apt-get", "update", "-q"], quiet)
    must_run(by_hand, ["apt-get", "install", "-y", "-q", "--no-install-recommends", *DEBIAN], quiet)
