"""Whether a machine is fit to measure now, read of the files of machines that are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from effbench.core.run import Conditions
from effbench.fleet import readiness
from effbench.host import machine


def sensor(root: Path, name: str, degrees: float) -> None:
    zone = root / "sys/class/thermal" / f"thermal_zone{len(list(root.rglob('thermal_zone*')))}"
    zone.mkdir(parents=True)
    (zone / "type").write_text(f"{name}\n")
    (zone / "temp").write_text(f"{1000 * degrees:.0f}\n")


def test_a_hot_machine_waits(tmp_path: Path) -> None:
    sensor(tmp_path, "gpu-thermal", 61.0)
    sensor(tmp_path, "cpu-thermal", 84.0)
    assert machine.temperatures(tmp_path)
    assert readiness.why_unfit(tmp_path) == ""
    sensor(tmp_path, "cpu-thermal", 91.2)
    assert readiness.why_unfit(tmp_path).startswith("too hot: 91 °C (cpu-thermal")


@pytest.mark.parametrize(("mask", "said"), [(0x50000, ""), (0x50005, "the firmware throttles the processor (0x50005)")])
def test_what_the_firmware_does_now_counts_not_what_it_did(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mask: int, said: str
) -> None:
    monkeypatch.setattr(machine, "firmware_throttling", lambda root: mask)
    assert readiness.why_unfit(tmp_path) == said


def test_a_machine_that_says_nothing_of_itself_is_fit(tmp_path: Path) -> None:
    assert readiness.why_unfit(tmp_path) == ""


@pytest.mark.parametrize(("others", "said"), [(None, ""), (0.5, ""), (1.34, "others keep 1.3 cores busy")])
def test_work_of_others_is_waited_for(monkeypatch: pytest.MonkeyPatch, others: float | None, said: str) -> None:
    class Observed:
        def end(self) -> tuple[str, Conditions]:
            return "", Conditions(other_cores=others)

    monkeypatch.setattr(readiness, "Observation", Observed)
    assert readiness.why_busy(0.0) == said
