"""What only a real aarch64 Python can show. pytest runs it in the userland: `make test-arm`."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from shell import EFFBENCH, effbench, environment, kinds, records, refusal

import effbench as package
from effbench import doctor
from effbench.host.emulation import EMULATED

SECONDS = 1200
"""Importing torch alone takes half a minute here, beside others a minute and more."""

TRIES = 3
"""qemu 7.2 now and then stops for good where a process with several threads starts another."""

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(platform.machine() != "aarch64", reason="this is no aarch64 Python")


def is_without_times(printed: str, run: Path) -> bool:
    """Whether neither the tables nor the CSV beside the run hold anything that was made of a time."""
    table = run / "table.csv"
    told = f"{printed}\n{table.read_text() if table.exists() else ''}".lower()
    return not re.search(r"\d ms\b|latency|images/s|time ratio|speedup|×\d+\.\d+ \[", told)


def measured(command: list[str], cwd: Path, variables: dict[str, str]) -> tuple[str, Path]:
    """What a command that measures printed, and the folder of its run. One that hangs in qemu is begun again."""
    for number in range(TRIES):
        run = cwd / f"run{number}"
        words = [*command, "--out", str(run)]
        try:
            done = subprocess.run(words, cwd=cwd, env=variables, capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            print(f"{' '.join(command[-6:])} hung")
            continue
        assert done.returncode == 0, done.stderr
        print(done.stdout)
        return done.stdout, run
    pytest.fail(f"hung {TRIES} times")


def facts(run: Path) -> dict[str, Any]:
    (found,) = (record["environment"]["facts"] for record in records(run) if record["kind"] == "header")
    return dict(found)


@pytest.mark.parametrize("name", ["ARM_PYTHON", "ARM_POSING_PYTHON"])
def test_an_emulated_process_finds_itself_out(name: str) -> None:
    """Also where /proc/cpuinfo is that of an Arm machine."""
    code = (
        "import platform, effbench.host.machine as m;"
        "print(platform.machine(), m.emulated(m.HERE, platform.machine()), m.cpu()['cpu.model'], sep='|')"
    )
    done = subprocess.run([os.environ[name], "-c", code], capture_output=True, text=True, check=True)
    architecture, emulated, model = done.stdout.strip().split("|")
    assert (architecture, emulated) == ("aarch64", "True")
    assert (model == "Arm Neoverse-N1") == (name == "ARM_POSING_PYTHON")


def test_the_doctor_says_so() -> None:
    (processor,) = (item for item in doctor.examine() if item.topic == "processor")
    assert processor.status == "warn" and processor.value.startswith("emulated on ")


def test_counts_are_those_of_any_machine() -> None:
    """torchvision gives 0.145 G for ShuffleNetV2 1x; the exact count is what x86 counts."""
    found = package.profile("shufflenet_v2").cost
    assert found.madds == 144_907_992 and found.status == "complete"


def test_a_study_runs_and_shows_no_time(tmp_path: Path) -> None:
    """One launch of the three of --quick: each imports torch anew."""
    words = ["run", "g2_groups", "--quick", "--scale", "x1", "--launches", "1"]
    printed, run = measured([*EFFBENCH, *words], tmp_path, environment())
    assert (facts(run)["host.emulated"], facts(run)["host.machine"]) == (True, "aarch64")
    assert kinds(run).count("block") >= 4 * 4 and kinds(run)[-1] == "complete" and "skip" not in kinds(run)
    assert printed.count(EMULATED) >= 4 and "madds" in printed and is_without_times(printed, run)
    assert EMULATED in refusal(effbench("export", run, "--format", "bmf", cwd=tmp_path, timeout=SECONDS))


def test_the_whole_pipeline_with_a_scripted_clock(tmp_path: Path) -> None:
    words = ["run", "g2_groups", "--quick", "--scale", "x1", "--device", "fake"]
    printed, run = measured([*EFFBENCH, *words], tmp_path, environment())
    assert "latency" in printed and EMULATED not in printed and not is_without_times(printed, run)


@pytest.mark.skipif("ARM_BUNDLE" not in os.environ, reason="there is no bundle: run.py says why")
def test_a_bundle_runs_where_there_is_no_torch(tmp_path: Path) -> None:
    python = os.environ["ARM_LIGHT_PYTHON"]
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    torch = subprocess.run([python, "-c", "import torch"], env=variables, capture_output=True, text=True)
    assert "No module named 'torch'" in torch.stderr
    words = ["run-bundle", os.environ["ARM_BUNDLE"], "--quick", "--launches", "1"]
    printed, run = measured([python, "-m", "effbench", *words], tmp_path, variables)
    assert (facts(run)["host.emulated"], facts(run)["cpu.model"]) == (True, "Arm Neoverse-N1")
    timed = {record["cell"] for record in records(run) if record["kind"] == "block"}
    assert len(timed) == 4 and "skip" not in kinds(run)
    assert {"onnxruntime", "ncnn"} == {label for cell in timed for label in ("onnxruntime", "ncnn") if label in cell}
    assert EMULATED in printed and is_without_times(printed, run)
