"""Energy: RAPL on a made-up file tree, NVML on a script, and the window between two readings."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import runs
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_gpu import CALM, Gpu, Nvml, device, library

from effbench.analysis import summary
from effbench.core.errors import EffbenchError
from effbench.core.run import Metric
from effbench.core.study import Sampling
from effbench.devices import Device, Energy, cpu
from effbench.devices.fake import Fake
from effbench.host import nvml, rapl
from effbench.metrics import base, energy
from effbench.report.tables.study import study_rows
from effbench.report.tables.table_model import render_markdown

RANGE = 262_143_328_850
"""Microjoules after which a package's counter starts anew: what many of Intel's processors say."""

CALL = {"madds": 100_000_000, "memory_access_bytes": 0}
"""On the scripted device 2.002 ms."""


def zone(root: Path, place: str, name: str, energy_uj: int) -> None:
    folder = root / f"intel-rapl:{place}"
    folder.mkdir()
    values = {"name": name, "energy_uj": energy_uj, "max_energy_range_uj": RANGE}
    for file, value in values.items():
        (folder / file).write_text(f"{value}\n")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two sockets as Linux shows them, with what is part of them, the platform's own zone and the older interface."""
    for number, start in enumerate((1_000, 5_000)):
        zone(tmp_path, str(number), f"package-{number}", start)
        zone(tmp_path, f"{number}:0", "core", 400)
        zone(tmp_path, f"{number}:1", "dram", start + 7)
    zone(tmp_path, "2", "psys", 99_000)
    (tmp_path / "intel-rapl-mmio:0").mkdir()
    (tmp_path / "intel-rapl").mkdir()
    return tmp_path


def energy_of(tree: Path) -> Energy:
    counters, wraps = rapl.read(tree)
    return Energy(counters, "rapl", wraps)


def test_packages_and_their_memory_are_read_and_no_part_twice(tree: Path) -> None:
    counters, wraps = rapl.read(tree)
    assert counters == {
        "package-0": 1_000,
        "package-0 dram": 1_007,
        "package-1": 5_000,
        "package-1 dram": 5_007,
    }
    assert set(wraps.values()) == {RANGE}


def test_without_rapl_and_without_leave_the_reason_says_what_to_do(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EffbenchError, match=r"no intel-rapl .* virtual machines .* at the plug"):
        rapl.read(tree / "nothing")
    read_text = Path.read_text

    def guarded(self: Path, *words: Any) -> str:
        if self.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read_text(self, *words)

    # Tests may run as root, whom no mode of a file stops.
    monkeypatch.setattr(Path, "read_text", guarded)
    with pytest.raises(EffbenchError, match=r"only root .* sudo chmod a\+r"):
        rapl.read(tree)


def test_a_file_that_holds_no_number_is_a_reason(tree: Path) -> None:
    (tree / "intel-rapl:0" / "energy_uj").write_text("busy\n")
    with pytest.raises(EffbenchError, match="cannot be read"):
        rapl.read(tree)


@given(st.integers(0, RANGE - 1), st.integers(0, RANGE - 1))
def test_a_counter_that_starts_anew_loses_nothing(first: int, spent: int) -> None:
    before = Energy({"package-0": first}, "rapl", {"package-0": RANGE})
    after = Energy({"package-0": (first + spent) % RANGE}, "rapl", {"package-0": RANGE})
    assert energy.consumed_j(before, after)["package-0"] == pytest.approx(spent * 1e-6)


def test_a_counter_that_goes_back_without_a_range_is_not_believed() -> None:
    with pytest.raises(EffbenchError, match="backwards"):
        energy.consumed_j(Energy({"gpu": 5}, "nvml"), Energy({"gpu": 4}, "nvml"))


class Metered(Fake):
    """A scripted clock beside the files of `tree`: 10 W at rest in each package, 30 W at work; memory takes 2 W."""

    def __init__(self, root: Path) -> None:
        super().__init__(noise=0.0)
        self.root, self.rested_s, self.starts = root, 0.0, {}
        for folder in root.glob("intel-rapl:*"):
            self.starts[folder] = int((folder / "energy_uj").read_text())

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        self.rested_s += seconds

    def energy(self) -> Energy:
        worked_s = self.now_s() - self.rested_s
        for folder, start in self.starts.items():
            is_memory = (folder / "name").read_text().strip() == "dram"
            joules = 2 * self.now_s() if is_memory else 10 * self.rested_s + 30 * worked_s
            (folder / "energy_uj").write_text(str((start + round(joules * 1e6)) % RANGE))
        return energy_of(self.root)


@pytest.mark.parametrize("start", [0, RANGE - 60_000_000], ids=["plain", "starting anew in the window"])
def test_joules_per_call_and_image_with_the_power_at_rest_beside_them(tree: Path, start: int) -> None:
    for place in ("0", "1"):
        (tree / f"intel-rapl:{place}" / "energy_uj").write_text(str(start))
    made = Metered(tree)
    found = energy.measure_energy(made, made.bind(None, CALL), "cell", 8, Sampling())
    assert found["idle_w"] == pytest.approx(2 * 10 + 2 * 2)
    assert found["power_w"] == pytest.approx(2 * 30 + 2 * 2)
    assert found["energy_j_per_call"] == pytest.approx(64 * 2.002e-3, rel=1e-6)
    assert found["energy_j_per_image"] == pytest.approx(64 * 2.002e-3 / 8, rel=1e-6)
    assert found["window_s"] >= 5.0 and found["idle_s"] == pytest.approx(5.0)
    assert found["calls"] * 2.002e-3 == pytest.approx(found["window_s"])
    assert sum(found["domains"].values()) == pytest.approx(64 * found["window_s"])
    looks = found["counters_uj"]
    assert len(looks) == 4 and all(set(look) == set(found["domains"]) for look in looks)
    wrapped = any(later["package-0"] < earlier["package-0"] for earlier, later in itertools.pairwise(looks))
    assert wrapped == bool(start)


def test_a_counter_that_stands_still_is_missing_and_not_zero(tree: Path) -> None:
    class Still(Fake):
        def energy(self) -> Energy:
            return energy_of(tree)

    made: Device = Still(noise=0.0)
    with pytest.raises(EffbenchError, match="stood still"):
        energy.measure_energy(made, made.bind(None, CALL), "cell", 1, Sampling())


def test_nvml_counts_millijoules_and_says_why_it_does_not() -> None:
    meter = nvml.connect(library=library(nvmlDeviceGetTotalEnergyConsumption=lambda handle: 1_234_567))
    made = device(Gpu(watched=meter))
    made.setup()
    assert made.energy() == Energy({"gpu": 1_234_567_000}, "nvml")
    assert not made.energy().wraps_uj
    silent = nvml.connect(library=library())
    for watched, why in ((silent, "no energy counter.*from Volta on"), ("no NVML here", "NVML: no NVML here$")):
        made = device(Gpu(watched=watched))
        made.setup()
        with pytest.raises(EffbenchError, match=why):
            made.energy()


@given(st.integers(200_000, 9_000_000), st.integers(1_000, 150_000), st.integers(50, 700), st.integers(1, 64))
@settings(deadline=None, max_examples=20)
def test_joules_of_a_call_on_a_gpu_are_its_power_times_its_time(work: int, host: int, watts: int, batch: int) -> None:
    """Closed form, on a GPU that takes so many watts while it computes and none at rest: n calls take n x power x
    time, whatever the host does meanwhile, and are counted as n.
    """
    gpu = Gpu()

    class Meter(Nvml):
        def energy_uj(self) -> int:
            return gpu.worked * watts // 1000

    gpu.watched = Meter(CALM)
    made = device(gpu)
    made.setup()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made, "sleep", lambda seconds: gpu.launch(round(seconds * 1e9), 0))
        found = energy.measure_energy(made, gpu.kernels(host, work), "cell", batch, Sampling())
    joules = watts * work * 1e-9
    assert found["energy_j_per_call"] == pytest.approx(joules, abs=1e-6)
    assert found["energy_j_per_image"] == pytest.approx(joules / batch, abs=1e-6)
    assert found["power_w"] == pytest.approx(found["calls"] * joules / found["window_s"], rel=1e-6)
    # Chunks of 50 ms and more, in which the device computes without a break but for the first launch.
    assert 0.98 * watts < found["power_w"] <= watts
    assert found["idle_w"] == 0 and found["window_s"] >= 5


# --- the whole way ----------------------------------------------------------------------------------


def job(on: str) -> dict[str, Any]:
    return {
        "task": "energy",
        "seed": 0,
        "device": on,
        "device_options": {},
        "mode": "infer",
        "sampling": {},
        "cell": {"id": "a", "batch": 2, "cost": CALL},
    }


def told(on: str) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    base.measure(job(on), lambda event, **fields: events.append({"event": event, **fields}))
    return events


def test_a_worker_tells_one_reading() -> None:
    (event,) = told("fake")
    assert event["event"] == "metric"
    assert event["values"]["power_w"] == pytest.approx(20.0) == event["values"]["idle_w"]


def test_where_nobody_counts_a_worker_says_why_before_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fake, "energy", Device.energy)
    monkeypatch.setattr(Fake, "sleep", lambda self, seconds: pytest.fail("it waited"))
    assert told("fake") == [
        {"event": "skip", "reason": "the energy of fake is counted nowhere; measure on cpu or cuda"}
    ]


def test_the_cpu_reads_its_own_meter(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "rapl", SimpleNamespace(read=lambda: rapl.read(tree)))
    assert cpu.Cpu().energy().counters_uj["package-1"] == 5_000


def test_joules_and_instructions_stand_in_the_table_with_what_they_are() -> None:
    read = {
        "energy": {"energy_j_per_image": 0.0125, "power_w": 65.4, "idle_w": 21.3, "source": "rapl"},
        "instructions": {
            "instructions_per_call": 85_213_105,
            "repeatability": 0.00041,
            "method_version": "qemu-x86_64 7.2.22",
        },
    }
    run = runs.run_of({cell: 1e-3 for cell in runs.CELLS})
    first = replace(run.results[0], metrics=tuple(Metric(what, values) for what, values in read.items()))
    run = replace(run, results=(first, *run.results[1:]))
    text = render_markdown(study_rows(run, summary.summarise(run)))
    for said in ("energy (mJ/image)", "12.5", "65.4", "21.3", "(rapl)", "instructions (M)", "85.21", "0.041 %"):
        assert said in text
    bare = runs.run_of({runs.CELLS[0]: 1e-3})
    assert "at rest" not in render_markdown(study_rows(bare, summary.summarise(bare)))
