"""The benchmarks of a fleet: each part in a tiny form, and what they store."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

if not (ROOT / "benchmarks" / "fleet").exists():  # as in an installed copy of the tests
    pytest.skip("benchmarks/ is not here", allow_module_level=True)
if sys.platform != "linux":
    pytest.skip("the benchmarks read /proc", allow_module_level=True)
pytest.importorskip("distributed")
pytest.importorskip("cryptography")
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.fleet import disturbance, processes, record, recorded  # noqa: E402
from benchmarks.fleet.__main__ import PARTS, main  # noqa: E402


def test_parts_store_targets_raw_values_machine_versions_and_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["hundred", "bundle", "--quick", "--out", str(tmp_path)]) in (0, 1)
    assert "copies identical: 5 (target 5 of 5)" in capsys.readouterr().out
    for part in ("hundred", "bundle"):
        text = (tmp_path / f"{part}.json").read_text()
        stored = json.loads(text)
        assert stored["command"] == "python -m benchmarks.fleet hundred bundle --quick"
        assert stored["machine"]["cores"] and stored["versions"]["distributed"] and stored["targets"] and stored["raw"]
        assert str(tmp_path) not in text and str(Path.home()) not in text


def test_a_part_that_is_unknown_is_named(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["disturbence"])
    assert "there is no part disturbence" in capsys.readouterr().err
    assert {"idle", "hundred", "step", "bundle", "disturbance"} == {*PARTS}


def test_what_launches_wrote_adds_up_to_the_run():
    pieces = recorded.launches()
    assert len(pieces) == 5 and b"".join(pieces) == recorded.RUN.read_bytes()
    for number, piece in enumerate(pieces):
        launches = [json.loads(line) for line in piece.splitlines() if b'"kind":"launch"' in line]
        assert [item["launch"] for item in launches] == [number]
    assert b'"kind":"complete"' in recorded.launches(most=2)[1]


def test_ratios_and_flags_beside_a_worker_that_disturbs():
    """Made-up windows: the worker makes layers 4 % slower on the wall, and flags half of their blocks."""
    windows = []
    for turn in range(8):
        for condition, factor in ((disturbance.NONE, 1.0), (disturbance.OURS, 1.04), (disturbance.DEFAULT, 1.0)):
            blocks = []
            for number in range(10):
                base = 1000.0 * (1 + 0.1 * turn)  # drift, which pairs cancel
                is_flagged = condition == disturbance.OURS and number % 2 == 0
                blocks += [[layer, base * factor, base, is_flagged] for layer in disturbance.LAYERS]
                blocks.append([disturbance.NULL, 50.0, 50.0, False])
            windows.append({"round": turn, "condition": condition, "blocks": blocks})
    found = {target.what: target for target in disturbance._targets("two cores", windows)}
    wall = found["two cores, worker: wall time of a block, two layers, over none"]
    assert wall.found.startswith("1.040 [1.040, 1.040]") and wall.is_met is False
    assert found["two cores, worker: CPU time of a block, two layers, over none"].is_met is True
    flagged = found["two cores, worker: flagged blocks"]
    assert flagged.found == "50.0%, without 0.0%" and flagged.is_met is False
    assert all(target.is_met is None for what, target in found.items() if "dask's" in what)


def test_the_interval_of_a_ratio_holds_it():
    pairs = [(1.1 + 0.01 * (number % 3 - 1), 1.0) for number in range(30)]
    ratio, low, high = record.ratio_interval(pairs)
    assert low < ratio < high and abs(ratio - 1.1) < 0.001 and high - low < 0.01


def test_what_a_process_spends_is_read():
    import os

    before = processes.spent(os.getpid())
    sum(range(3_000_000))
    after = processes.spent(os.getpid())
    assert after.cpu_s > before.cpu_s and after.resident_bytes > 1e6 and after.threads >= 1
