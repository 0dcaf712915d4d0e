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
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

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
    "onnxruntime", "ncnn",
)  # fmt: skip
PROCESSOR = "neoverse-n1"
"""Graviton 2 and Ampere Altra. qemu's default, "max", emulates vectors of 512 bits, twenty times as slow."""


class Missing(Exception):
    """What keeps the userland from being made here, in one line."""


def make(folder: Path) -> tuple[Path, Path]:
    """The userland's interpreter, and one in whose root /proc/cpuinfo is an Arm machine's. What is there is kept.

    The first sees the file of the machine underneath, as in any container under emulation; runtimes that read which
    cores there are (ONNX Runtime, ncnn) need the second. Raises Missing.
    """
    if os.uname().machine == "aarch64":
        raise Missing("this machine is aarch64 itself: run make test")
    _install_tools()
    folder.mkdir(parents=True, exist_ok=True)
    root, packages = folder / "root", folder / "site"
    if not (root / f"usr/bin/python{PYTHON}").exists():
        include = f"--include={','.join(PACKAGES)}"
        _must_run(
            "Debian's packages", ["mmdebstrap", "--quiet", "--arch=arm64", "--variant=extract", include, SUITE, root]
        )
    wanted = "\n".join(WHEELS)
    if not (folder / "wheels").exists() or (folder / "wheels").read_text() != wanted:
        shutil.rmtree(packages, ignore_errors=True)
        uv = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-config", "--target", packages]
        target = ["--python-platform", "aarch64-manylinux_2_28", "--python-version", PYTHON]
        _must_run("wheels for aarch64", [*uv, *target, *WHEELS])
        (folder / "wheels").write_text(wanted)
    # A second root with a processor of its own; everything but those files is the first one's.
    posing = folder / "posing"
    if not posing.exists():
        posing.mkdir()
        for entry in root.iterdir():
            (posing / entry.name).symlink_to(entry)
    cores = machines.GRAVITON_2.cores[: os.cpu_count()]
    for place in ("proc", "sys"):
        if (posing / place).is_symlink():
            (posing / place).unlink()
    replace(machines.GRAVITON_2, cores=cores).under(posing)
    return _interpreter(folder, "python", root, packages), _interpreter(folder, "posing-python", posing, packages)


def _install_tools() -> None:
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if not missing:
        return
    by_hand = f"it needs {' and '.join(missing)}: apt install {' '.join(DEBIAN)}"
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise Missing(by_hand)
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    _must_run(by_hand, ["apt-get", "update", "-q"], quiet)
    _must_run(by_hand, ["apt-get", "install", "-y", "-q", "--no-install-recommends", *DEBIAN], quiet)


def _must_run(what: str, command: Sequence[str | Path], variables: dict[str, str] | None = None) -> None:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=variables)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise Missing(f"could not get {what} ({last})")


def _interpreter(folder: Path, name: str, root: Path, packages: Path) -> Path:
    """A script that stands for the interpreter, in itself too: what it starts as `sys.executable` is emulated as well.

    The kernel runs no aarch64 program without being told how (binfmt_misc), which takes rights that not everyone has.
    """
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        "#!/bin/sh\n"
        f'export QEMU_LD_PREFIX="{root}" QEMU_CPU="${{QEMU_CPU:-{PROCESSOR}}}"\n'
        f'export PYTHONPATH="{packages}${{PYTHONPATH:+:$PYTHONPATH}}"\n'
        f'exec qemu-aarch64 -0 "$0" "{root}/usr/bin/python{PYTHON}" "$@"\n'
    )
    path.chmod(0o755)
    return path
