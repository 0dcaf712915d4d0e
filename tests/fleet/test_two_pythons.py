"""A machine with another Python than whoever orders, and without torch. Nothing of it is a fork."""

# ruff: noqa: E402 - what these import may be missing

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

for needed in ("distributed", "cryptography", "onnxruntime"):
    pytest.importorskip(needed)

import other_python
from fleets import Fleet, until
from shell import records

from effbench.fleet import session

WORKER = """
import asyncio, sys
from pathlib import Path
from effbench.fleet import addresses, certificates, serve

address, certs, home = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
place = serve.WorkerPlace("gpu-1", (), home / "machines" / "gpu-1", home / "lock")
asyncio.run(serve.serve_worker(place, addresses.parse(address, certs), certificates.load(certs), print))
"""
"""`effbench fleet worker` without the command line, whose packages are compiled for each version of Python."""


def test_a_bundle_on_another_python_without_torch(
    new_fleet: Callable[..., Fleet], bundle: Path, tmp_path: Path
) -> None:  # 22, 23
    python, version = other_python.find()
    env = other_python.environment(version, tmp_path / "packages")
    fleet = new_fleet("pi5-a")
    words = [python, "-c", WORKER, fleet.address, str(fleet.certs / "gpu-1"), str(fleet.home)]
    with subprocess.Popen(words, env=env, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as worker:
        try:
            until(lambda: worker.poll() is not None or "gpu-1" in fleet.present(), "the machine is there")
            assert worker.poll() is None, worker.communicate()
            facts = session.machines(fleet.place)["gpu-1"]["facts"]
            assert facts["python"].startswith(f"{version}.") and not facts["torch"]
            out = fleet.order(bundle, launches=1)
            assert {item.state for item in fleet.conduct(out).values()} == {"complete"}
        finally:
            worker.kill()
    assert fleet.is_mirrored(out, "gpu-1")
    environments = [records(out / name)[0]["environment"]["facts"] for name in ("pi5-a", "gpu-1")]
    assert environments[0]["python.version"] == platform.python_version()
    assert environments[1]["python.version"].startswith(f"{version}.")
    assert environments[1].get("torch.version") is None
    blocks = [[item for item in records(out / name) if item["kind"] == "block"] for name in ("pi5-a", "gpu-1")]
    assert len(blocks[0]) == 6 and blocks[0] == blocks[1]  # by one seed, on a scripted clock
