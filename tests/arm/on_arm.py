"""What only a real aarch64 Python can show. pytest runs it in the userland: `make test-arm`."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

import pytest
from shell import effbench, kinds, records, refusal

import effbench as package
from effbench import machine
from effbench.emulation import EMULATED

SECONDS = 1800
"""Importing torch alone takes half a minute here."""

pytestmark = [
    pytest.mark.timeout(SECONDS),
    pytest.mark.skipif(platform.machine() != "aarch64", reason="this is not an Arm machine"),
]


@pytest.mark.parametrize("name", ["ARM_PYTHON", "ARM_POSING_PYTHON"])
def test_an_emulated_process_finds_itself_out(name: str) -> None:
    """Also where /proc/cpuinfo is that of an Arm machine, and in a process that a process has started."""
    code = (
        "import platform, effbench.machine as m;"
        "print(platform.machine(), m.emulated(m.HERE, platform.machine()), m.cpu()['cpu.model'], sep='|')"
    )
    done = subprocess.run([os.environ[name], "-c", code], capture_output=True, text=True, check=True)
    architecture, emulated, model = done.stdout.strip().split("|")
    assert (architecture, emulated) == ("aarch64", "True")
    assert (model == "Arm Neoverse-N1") == (name == "ARM_POSING_PYTHON")


def test_counts_are_those_of_any_machine() -> None:
    """Torch's and Arm's own kernels are not asked: ShuffleNetV2 1x costs 146 million multiply-adds (the paper's)."""
    found = package.profile("shufflenet_v2").cost
    assert round(found.madds / 1e6) == 146 and found.status == "complete"


def test_a_study_runs_and_shows_no_time(tmp_path: Path) -> None:
    done = effbench("run", "g2_groups", "--quick", "--scale", "x1", "--out", "run", cwd=tmp_path, timeout=SECONDS)
    assert done.code == 0, done.err
    print(done.out)
    told = records(tmp_path / "run")
    (facts,) = (record["environment"]["facts"] for record in told if record["kind"] == "environment")
    assert facts["host.emulated"] is True and facts["host.machine"] == "aarch64"
    assert kinds(tmp_path / "run").count("block") >= 4 * 4 and kinds(tmp_path / "run")[-1] == "verdicts"
    assert not any(record["kind"] == "skip" for record in told)
    assert done.out.count(EMULATED) >= 4 and "madds" in done.out
    written = done.out + (tmp_path / "run" / "table.csv").read_text()
    for shown in (r"\d ms\b", r"latency", r"images/s", r"time ratio", r"×\d+\.\d+ \["):
        assert not re.search(shown, written.lower()), shown
    assert EMULATED in refusal(effbench("export", "run", "--format", "bmf", cwd=tmp_path, timeout=SECONDS))
    assert effbench("diff", "run", "run", cwd=tmp_path, timeout=SECONDS).out.count(EMULATED) == 4


def test_the_whole_pipeline_with_a_scripted_clock(tmp_path: Path) -> None:
    done = effbench("run", "g2_groups", "--quick", "--device", "fake", cwd=tmp_path, timeout=SECONDS)
    assert done.code == 0, done.err
    assert "×1.04" in done.out and EMULATED not in done.out


def test_the_doctor_says_that_times_mean_nothing() -> None:
    found = machine.emulated(machine.HERE, platform.machine())
    assert found
