"""What only a real aarch64 Python can show. pytest runs it in the userland: `make test-arm`."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from shell import effbench, kinds, records, refusal

import effbench as package
from effbench import doctor
from effbench.emulation import EMULATED

SECONDS = 1800
"""Importing torch alone takes half a minute here, beside others a minute and more."""

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(platform.machine() != "aarch64", reason="this is no aarch64 Python")


def is_without_times(printed: str, run: Path) -> bool:
    """Whether neither the tables nor the CSV beside the run hold anything that was made of a time."""
    table = run / "table.csv"
    told = f"{printed}\n{table.read_text() if table.exists() else ''}".lower()
    return not re.search(r"\d ms\b|latency|images/s|time ratio|speedup|×\d+\.\d+ \[", told)


def facts(run: Path) -> dict[str, Any]:
    (found,) = (record["environment"]["facts"] for record in records(run) if record["kind"] == "environment")
    return dict(found)


@pytest.mark.parametrize("name", ["ARM_PYTHON", "ARM_POSING_PYTHON"])
def test_an_emulated_process_finds_itself_out(name: str) -> None:
    """Also where /proc/cpuinfo is that of an Arm machine."""
    code = (
        "import platform, effbench.machine as m;"
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
    """The paper's Table 8: ShuffleNetV2 1x costs 146 million multiply-adds."""
    found = package.profile("shufflenet_v2").cost
    assert round(found.madds / 1e6) == 146 and found.status == "complete"


def test_a_study_runs_and_shows_no_time(tmp_path: Path) -> None:
    """One launch of the three of --quick: each imports torch anew."""
    words = ("run", "g2_groups", "--quick", "--scale", "x1", "--launches", "1", "--out", "run")
    done = effbench(*words, cwd=tmp_path, timeout=SECONDS)
    assert done.code == 0, done.err
    print(done.out)
    run = tmp_path / "run"
    assert (facts(run)["host.emulated"], facts(run)["host.machine"]) == (True, "aarch64")
    assert kinds(run).count("block") >= 4 * 4 and kinds(run)[-1] == "verdicts" and "skip" not in kinds(run)
    assert done.out.count(EMULATED) >= 4 and "madds" in done.out and is_without_times(done.out, run)
    assert EMULATED in refusal(effbench("export", "run", "--format", "bmf", cwd=tmp_path, timeout=SECONDS))


def test_the_whole_pipeline_with_a_scripted_clock(tmp_path: Path) -> None:
    words = ("run", "g2_groups", "--quick", "--scale", "x1", "--device", "fake", "--out", "run")
    done = effbench(*words, cwd=tmp_path, timeout=SECONDS)
    assert done.code == 0, done.err
    assert "latency" in done.out and EMULATED not in done.out and not is_without_times(done.out, tmp_path / "run")


@pytest.mark.skipif("ARM_BUNDLE" not in os.environ, reason="there is no bundle: run.py says why")
def test_a_bundle_runs_where_there_is_no_torch(tmp_path: Path) -> None:
    python, run = os.environ["ARM_LIGHT_PYTHON"], tmp_path / "run"
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    torch = subprocess.run([python, "-c", "import torch"], env=variables, capture_output=True, text=True)
    assert "No module named 'torch'" in torch.stderr
    words = ("run-bundle", os.environ["ARM_BUNDLE"], "--quick", "--launches", "1", "--out", "run")
    done = subprocess.run(
        [python, "-m", "effbench", *words], cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    assert (facts(run)["host.emulated"], facts(run)["cpu.model"]) == (True, "Arm Neoverse-N1")
    timed = {record["cell"] for record in records(run) if record["kind"] == "block"}
    assert len(timed) == 4 and "skip" not in kinds(run)
    assert {"onnxruntime", "ncnn"} == {label for cell in timed for label in ("onnxruntime", "ncnn") if label in cell}
    assert EMULATED in done.stdout and is_without_times(done.stdout, run)
