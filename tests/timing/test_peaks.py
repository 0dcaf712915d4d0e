"""The peaks of a device: measured on a scripted clock and with real operators, and cached by machine."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from shell import effbench, refusal

from effbench.core import decoding, peaks
from effbench.core.errors import EffbenchError
from effbench.core.measure_options import DTYPES
from effbench.core.peaks import Peaks
from effbench.core.study import Case, Experiment
from effbench.devices.fake import Fake
from effbench.host import facts as host_facts
from effbench.runs import runner
from effbench.studies import plan
from effbench.timing import peaks as measuring

FOUND = Peaks(1e11, 2e10, "float32", 1, "2026-01-01T00:00:00+00:00", (9e10, 1e11), (2e10,))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "effbench" / "peaks"


# --- measured -----------------------------------------------------------------------------------------


def test_the_peaks_of_a_scripted_device_are_what_it_was_scripted_to() -> None:
    """1e12 multiply-adds and 5e11 bytes a second, and nothing else takes time."""

    def seconds(cost: Mapping[str, Any]) -> float:
        return max(cost["madds"] / 1e12, cost["memory_access_bytes"] / 5e11)

    found = measuring.measure(Fake(noise=0.0, script=seconds), "float32", 0)
    assert found.flops_per_s == pytest.approx(2e12, rel=1e-3)
    assert found.bytes_per_s == pytest.approx(5e11, rel=1e-3)
    assert found.flops_per_s == max(found.flops_samples) and found.bytes_per_s == max(found.bytes_samples)


def test_the_best_block_counts_and_every_block_is_kept() -> None:
    found = measuring.measure(Fake(seed=3, noise=0.2), "float32", 0)
    assert found.flops_per_s == max(found.flops_samples) > 1.1 * min(found.flops_samples)
    assert found.bytes_per_s == max(found.bytes_samples) > 1.1 * min(found.bytes_samples)
    assert len(found.bytes_samples) >= 6


def test_products_grow_while_they_are_quick() -> None:
    """A device that small products cannot fill is tried with large ones; a slow one is not kept waiting."""
    tried: list[int] = []

    def device(filled: float) -> Fake:
        def seconds(cost: Mapping[str, Any]) -> float:
            tried.append(cost["madds"])
            rate = filled if cost["madds"] >= 2048**3 else filled / 10
            return float(cost["madds"] / rate + cost["memory_access_bytes"] / 1e12)

        return Fake(noise=0.0, script=seconds)

    assert measuring.measure(device(1e13), "float32", 0).flops_per_s == pytest.approx(2e13, rel=1e-3)
    assert max(tried) == 8192**3
    tried.clear()
    assert measuring.measure(device(1e12), "float32", 0).flops_per_s == pytest.approx(2e11, rel=1e-3)
    assert max(tried) == 28 * 28 * 9 * 512**2, "18 ms, and 1024 cubed takes 11"


def test_a_device_too_small_for_the_larger_products_keeps_what_it_measured() -> None:
    class Small(Fake):
        def bind(self, call: Any, cost: Mapping[str, Any]) -> Any:
            if cost["madds"] > 600**3:
                raise MemoryError("no room")
            return super().bind(call, cost)

    found = measuring.measure(Small(noise=0.0), "float32", 0)
    assert found.flops_per_s == pytest.approx(1e11, rel=0.01)


def test_on_the_cpu_in_a_process_of_its_own(cache: Path) -> None:
    """The same through torch: convolutions and products really run, faster than Python and slower than any machine."""
    key = host_facts.machine_key("cpu", {"threads": 1}, threads=1, allocator="retain", dtype="float32")
    options = {"threads": 1, "allocator": "retain", "dtype": "float32"}
    found = measuring.load_or_measure(key, "cpu", {"threads": 1}, **options)
    assert 1e8 < found.flops_per_s < 1e14 and 1e8 < found.bytes_per_s < 1e13
    assert found.dtype == "float32" and found.threads == 1 and found.measured.startswith("20")
    assert [file.stem for file in cache.iterdir()] == [key]
    assert peaks.read_cached(key) == found


def test_a_dtype_without_kernels_is_one_line(cache: Path) -> None:
    with pytest.raises(EffbenchError, match=r"peaks of cpu in bool could not be measured: .+"):
        measuring.load_or_measure("0", "cpu", {"threads": 1}, threads=1, allocator="retain", dtype="bool")
    assert not cache.exists()


class Remembering:
    """A device of kind "cuda" that keeps what it was handed, and how much of it."""

    kind = "cuda"

    def __init__(self) -> None:
        self.placed: list[int] = []

    def place(self, value: Any) -> Any:
        self.placed.append(value.numel())
        return value


@pytest.mark.parametrize("shape", [(3,), (1 << 10, 1 << 10), (1 << 10, (1 << 10) + 1), (256, 512, 3, 9)])
def test_operands_are_drawn_once_and_repeated_where_they_are_used(shape: tuple[int, ...]) -> None:
    import torch

    device = Remembering()
    found = measuring._random_values(device, "bfloat16", *shape)  # type: ignore[arg-type]
    assert tuple(found.shape) == shape and found.dtype is torch.bfloat16 and found.is_contiguous()
    assert max(device.placed) <= 1 << 20, "what the host draws and hands over"
    values = found.double()
    assert shape == (3,) or (abs(values.mean()) < 0.01 and abs(values.std() - 1) < 0.01), "normal values"
    flat = values.flatten()
    if len(flat) > 1 << 20:
        assert torch.equal(flat[1 << 20 :], flat[: len(flat) - (1 << 20)])


# --- kept ---------------------------------------------------------------------------------------------


def planned(**options: Any) -> plan.Plan:
    study = Experiment("n", "t", "c", "model", ("a",), "a", (Case("a", (1,), labels={"model": "a"}),))
    return plan.make(study, **options)


def test_kept_peaks_are_used_and_measured_afresh_when_asked(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    orders: list[Mapping[str, Any]] = []

    def measured(job: Mapping[str, Any], threads: int, allocator: str) -> Peaks:
        orders.append({**job, "allocator": allocator})
        return dataclasses.replace(FOUND, flops_per_s=1e11 + len(orders), threads=threads)

    monkeypatch.setattr(measuring, "_measure_in_worker", measured)
    first = runner.find_peaks(planned(), "float32")
    assert runner.find_peaks(planned(), "float32") == first and len(orders) == 1
    assert runner.find_peaks(planned(threads=2), "float32").threads == 2
    assert runner.find_peaks(planned(), "bfloat16") != first
    assert runner.find_peaks(planned(allocator="system"), "float32") != first
    assert [order["threads"] for order in orders] == [1, 2, 1, 1]
    assert runner.find_peaks(planned(), "float32", remeasure=True) != first and len(orders) == 5
    assert runner.find_peaks(planned(), "float32").flops_per_s == 1e11 + 5, "the fresh ones are kept"


def test_a_key_changes_with_what_peaks_depend_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def key(device: str = "cpu", options: Mapping[str, Any] | None = None, **changes: Any) -> str:
        asked: dict[str, Any] = {"threads": 1, "allocator": "retain", "dtype": "float32", "variables": {}, **changes}
        return host_facts.machine_key(device, options or {}, **asked)

    plain = key()
    assert key() == plain
    assert key(variables={"HOME": "/elsewhere", "LANG": "C"}) == plain, "nothing that peaks do not depend on"
    others = {
        key(threads=2),
        key(allocator="system"),
        key(dtype="float16"),
        key(options={"precision": "tf32"}),
        key(variables={"ATEN_CPU_CAPABILITY": "default"}),
        key(root=tmp_path),
        key("cuda"),
    }
    monkeypatch.setattr(host_facts, "_version", lambda package: "0.0")
    others.add(key())
    assert len(others | {plain}) == 9


def test_a_gpu_set_otherwise_has_peaks_of_its_own() -> None:
    """A lower power limit or clock is a slower card, by whatever name."""

    def key(**answers: Any) -> str:
        library = SimpleNamespace(
            NVMLError=RuntimeError,
            nvmlInit=lambda: None,
            nvmlDeviceGetCount=lambda: 1,
            nvmlDeviceGetHandleByIndex=lambda index: index,
            nvmlSystemGetDriverVersion=lambda: "580.1",
            **answers,
        )
        asked: dict[str, Any] = {"threads": 0, "allocator": "retain", "dtype": "float32", "variables": {}}
        return host_facts.machine_key("cuda", {}, nvml=library, **asked)

    assert key() == key()
    others = {
        key(nvmlDeviceGetEnforcedPowerLimit=lambda handle: 700_000),
        key(nvmlDeviceGetEnforcedPowerLimit=lambda handle: 350_000),
        key(nvmlDeviceGetApplicationsClock=lambda handle, kind: 1410),
        key(nvmlDeviceGetEccMode=lambda handle: [0, 0]),
        key(nvmlDeviceGetMigMode=lambda handle: [1, 1]),
    }
    assert len(others | {key()}) == 6


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"flops_per_s": 1}', json.dumps(dataclasses.asdict(FOUND) | {"more": 1})]
)
def test_a_damaged_file_is_measured_again(cache: Path, text: str) -> None:
    peaks.write_cached("key", FOUND)
    (cache / "key.json").write_text(text)
    assert peaks.read_cached("key") is None


@pytest.mark.parametrize("rate", [0, -1.0, float("nan"), float("inf"), "fast", None, True])
def test_a_rate_that_is_none_is_not_trusted(cache: Path, rate: Any) -> None:
    peaks.write_cached("key", dataclasses.replace(FOUND, bytes_per_s=rate))
    assert peaks.read_cached("key") is None
    assert peaks.from_facts({**FOUND.facts(), "peaks.float32.flops_per_s": rate}, "float32") is None


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert peaks.write_cached("key", FOUND) is None and peaks.read_cached("key") is None
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    kept = peaks.write_cached("key", FOUND)
    assert kept == tmp_path / ".cache" / "effbench" / "peaks" / "key.json"
    assert [file.name for file in kept.parent.iterdir()] == ["key.json"], "no half-written file stays"


@hypothesis_settings(deadline=None)
@given(
    st.builds(
        Peaks,
        st.floats(1e-3, 1e18),
        st.floats(1e-3, 1e18),
        st.sampled_from(DTYPES),
        st.integers(0, 1024),
        st.text(max_size=9),
        st.lists(st.floats(1, 1e18), max_size=4).map(tuple),
        st.lists(st.floats(1, 1e18), max_size=4).map(tuple),
    )
)
def test_peaks_survive_json_and_the_environment(found: Peaks) -> None:
    assert decoding.decode(json.loads(json.dumps(dataclasses.asdict(found))), Peaks) == found
    facts = json.loads(json.dumps(found.facts()))
    bare = dataclasses.replace(found, flops_samples=(), bytes_samples=())
    assert peaks.from_facts(facts, found.dtype) == bare
    assert peaks.from_facts(facts, "int4") is None
    assert not {name for name in facts if name in host_facts.MUST_AGREE}


# --- the command --------------------------------------------------------------------------------------


def test_doctor_measures_prints_and_refuses(tmp_path: Path) -> None:
    found = effbench("doctor", "--peaks", "--device", "fake", "--dtype", "float16", "--json", cwd=tmp_path).json
    assert found["findings"] and found["peaks"]["dtype"] == "float16"
    assert found["peaks"]["flops_per_s"] == max(found["peaks"]["flops_samples"])
    done = effbench("doctor", "--peaks", "--device", "fake", cwd=tmp_path)
    assert done.code == 0 and "Peaks in float32" in done.out and "Gflop/s" in done.out
    assert "--peaks" in refusal(effbench("doctor", "--threads", "2", cwd=tmp_path))
    assert "float12" in refusal(effbench("doctor", "--peaks", "--dtype", "float12", cwd=tmp_path))
