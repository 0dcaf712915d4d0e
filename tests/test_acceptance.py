"""Thirteen mistakes that other benchmark tools made or make, each as a test that effbench would fail if it made them.

Each test's docstring names the tool. Every part is tested in detail beside that part; here it is only the mistake.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import scripted_gpu
from planted_machines import PI_4, plant, read
from recordings import of_ratios
from run_files import write
from runs import CELLS, run_of, with_blocks
from scripted_runs import events_of, job
from shell import records, study_file

from effbench import api, export
from effbench.analysis.run_diff import compare_runs
from effbench.analysis.summary import summarise
from effbench.cli import app
from effbench.core.errors import CorruptRun, InvalidValue, ModelError
from effbench.core.run import Block, Run, Timing
from effbench.core.study import Sampling
from effbench.devices import OutOfMemory, cpu
from effbench.devices.fake import Fake, ScriptedCall
from effbench.gates import ab_findings, checked_models
from effbench.gates import decision_rule as gate
from effbench.gates.ab_pairs import Pair
from effbench.gates.result import EXIT_CODES, Decision, Finding
from effbench.host import machine
from effbench.runs import run_file, worker
from effbench.timing import block_loop
from effbench.timing import sampling as sampling_rules

pytestmark = pytest.mark.usefixtures("forked_launches")

TIMES = dict(zip(CELLS, (1e-3, 2e-3, 3e-3), strict=True))


class Clock:
    """Nanoseconds that pass only when something says so."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now

    def work(self, nanoseconds: int) -> Callable[[], None]:
        def call() -> None:
            self.now += nanoseconds

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The CPU device on a scripted clock. Any clock but the monotonic ones in nanoseconds is an AttributeError."""
    scripted = Clock()
    names = ("perf_counter_ns", "thread_time_ns", "process_time_ns")
    monkeypatch.setattr(cpu, "time", SimpleNamespace(**dict.fromkeys(names, scripted)))
    return scripted


@pytest.mark.parametrize("calls", [1, 7, 1000])
def test_01_elapsed_is_positive_and_scales_with_k(clock: Clock, calls: int) -> None:
    """LukasHedegaard/pytorch-benchmark asks the end event for the time to the start one: negative, and milliseconds
    labelled as seconds.
    """
    timing = cpu.Cpu(1).time_block(clock.work(1_250), calls)
    assert (timing.wall_ns, timing.cpu_ns) == (1_250 * calls, 1_250 * calls)
    assert Block(0, 0, 0, "a", timing).per_call_s() == pytest.approx(1.25e-6)
    gpu = scripted_gpu.Gpu()
    on_gpu = scripted_gpu.device(gpu).time_block(gpu.kernels(host=1_000, device=20_000), calls)
    assert on_gpu.device_ns == 20_000 * calls and on_gpu.wall_ns >= 20_000 * calls


UNTELLING = {
    "nothing": [],
    "one value": [[0.5]],
    "one launch": [[0.5, 0.51, 0.49] * 7],
    "no scatter": [[0.5] * 20] * 13,
    "not a number": [[0.5, 0.51], [0.49, math.nan], [0.5, 0.52], [0.51]],
    "unequal counts of the same code": [[0.04, 0.06] * 20, [0.02], [-0.02, 0.0, -0.05], [0.01] * 7],
}


def test_02_what_cannot_be_tested_is_never_significant(tmp_path: Path) -> None:
    """pyperf calls sides of unequal length, and sides of one value each, significantly different: its test raises and
    the caller takes any exception for a yes.
    """
    for name, launches in UNTELLING.items():
        found = gate.Gate(["a"], gate.Rule(looks=(4,))).look(0, of_ratios({"a": launches}))["a"]
        assert (found.verdict, found.is_improved) == ("INCONCLUSIVE", False), name
    one, many = run_of(TIMES, launches=1, rounds=3), run_of(TIMES, launches=9, rounds=20, seed=1)
    slower = run_of({cell: 1.3 * seconds for cell, seconds in TIMES.items()}, launches=5, seed=2)
    assert {item.verdict for item in compare_runs(one, slower)} == {"unsure"}
    assert {item.verdict for item in compare_runs(run_of(TIMES, launches=3), many)} == {"same"}
    path = write(one, tmp_path)
    path.write_text(path.read_text().replace('"wall_ns":', '"wall_ns":NaN,"was":', 1))
    with pytest.raises(CorruptRun, match="NaN is not a measurement"):
        run_file.load(path)


def test_03_every_printed_statistic_is_that_of_the_raw_blocks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """tritonbench prints the largest value as the minimum, CodSpeed divides by the iterations twice, asv stores five
    digits.
    """
    from scipy.stats import quantile_test, sem, t

    study = study_file(
        tmp_path, "launches=3, min_rounds=8, max_rounds=8, warmup_s=0.0, max_warmup_s=0.01, precision=1e-9"
    )
    assert app.main(["run", str(study), "--device", "fake", "--json", "--out", str(tmp_path / "run")]) == 0
    printed = {cell["id"]: cell for cell in json.loads(capsys.readouterr().out)["cells"]}
    blocks = [record for record in records(tmp_path / "run") if record["kind"] == "block"]

    def raw(cell: str) -> numpy.ndarray:
        """Seconds per call by launch and round."""
        return numpy.array(
            [
                [
                    1e-9 * block["timing"]["wall_ns"] / block["timing"]["calls"]
                    for block in blocks
                    if (block["cell"], block["launch"]) == (cell, launch)
                ]
                for launch in range(3)
            ]
        )

    def expected(logs: numpy.ndarray) -> list[float]:
        """Point and interval: the wider of t over launch medians and the exact interval over all rounds."""
        medians = numpy.median(logs, axis=1)
        point = float(numpy.median(medians))
        student = t.interval(0.95, 2, loc=medians.mean(), scale=sem(medians))
        exact = quantile_test(logs.ravel(), q=0.0, p=0.5).confidence_interval(0.95)
        return [
            math.exp(value) for value in (point, min(student[0], exact.low, point), max(student[1], exact.high, point))
        ]

    one, two = (raw(cell) for cell in ("groups=1", "groups=2"))
    assert one.shape == (3, 8)
    for cell, times in (("groups=1", one), ("groups=2", two)):
        found = printed[cell]
        assert list(found["latency_s"].values()) == pytest.approx(expected(numpy.log(times)), rel=1e-12)
        assert found["throughput"] == pytest.approx(1 / expected(numpy.log(times))[0], rel=1e-12)
    assert list(printed["groups=2"]["ratio"].values()) == pytest.approx(expected(numpy.log(two / one)), rel=1e-12)
    run = run_file.load(tmp_path / "run")
    (text,) = export.export(run, "pytest-benchmark").texts.values()
    for row, times in zip(json.loads(text)["benchmarks"], (one, two), strict=True):
        for name in ("min", "max", "mean", "median"):
            assert row["stats"][name] == pytest.approx(float(getattr(numpy, name)(times)), rel=1e-12)


def test_04_every_outcome_has_an_exit_code_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """nvbench's comparison, criterion and hyperfine exit 0 on a slowdown; asv exits the same for a slowdown and for a
    benchmark that does not run.
    """
    codes = {word: Decision((Finding("against", "a", word),)).exit_code for word in EXIT_CODES}  # type: ignore[arg-type]
    assert codes == {"PASS": 0, "REGRESSION": 1, "INCONCLUSIVE": 3, "ENVIRONMENT": 4}
    monkeypatch.chdir(tmp_path)
    budget = ["check", "lenet5", "--max-params"]
    assert app.main([*budget, "61706"]) == 0
    assert app.main([*budget, "61705"]) == 1
    assert app.main(["check", "lenet55", "--max-params", "61706"]) == 2

    def crash(*words: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(checked_models, "count_costs", crash)
    assert app.main([*budget, "61706"]) == 70
    assert "Traceback" not in capsys.readouterr().err


def test_05_a_batch_that_does_not_fit_is_never_made_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's benchmark halves the batch when memory runs out, so that rows of one table have different batches."""

    class Small(Fake):
        def time_block(self, call: Any, calls: int) -> Timing:
            if call.seconds > 3e-3 if isinstance(call, ScriptedCall) else False:
                raise OutOfMemory("3 GiB asked for, 1 GiB free")
            return super().time_block(call, calls)

    monkeypatch.setattr(worker.devices, "get", lambda name, **options: Small(**options))
    task = job()
    task["cells"] = [{**spec, "batch": 64} for spec in task["cells"]]
    events = events_of(task)
    assert [(fields["cell"], fields["reason"]) for event, fields in events if event == "skip"] == [
        ("b", "out of memory: 3 GiB asked for, 1 GiB free")
    ]
    assert {fields["cell"] for event, fields in events if event == "block"} == {"a"}
    run = run_of(TIMES)
    larger = tuple(replace(result, cell=replace(result.cell, batch=64)) for result in run)
    assert {item.reason for item in compare_runs(run, replace(run, results=larger))} == {
        "the same name, but another network, input or batch"
    }


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_06_the_precision_is_asserted_when_the_run_ends(precision: str) -> None:
    """timm's benchmark switches TF32 on for everybody, and refuses the word tf32 that its help offers."""
    gpu = scripted_gpu.Gpu()
    device = scripted_gpu.device(gpu, precision=precision)
    device.setup()
    assert device.facts()["gpu.precision"] == precision
    device.time_block(gpu.kernels(1_000, 20_000), 10)
    gpu.found = replace(gpu.found, conv_tf32=not gpu.found.conv_tf32)
    with pytest.raises(ModelError, match="precision policy changed"):
        device.facts()


def test_07_the_clock_is_monotonic_and_no_nanosecond_is_lost(clock: Clock, tmp_path: Path) -> None:
    """TorchBench reads a clock that can be set back, AI-Benchmark keeps whole milliseconds and DeepBench whole
    microseconds.
    """
    for name in ("perf_counter", "thread_time", "process_time"):
        about = time.get_clock_info(name)
        assert about.monotonic and about.resolution <= 1e-6
    odd = cpu.Cpu(1).time_block(clock.work(1_234_567), 3)
    assert odd.wall_ns == 3_703_701
    run = with_blocks(run_of(TIMES), CELLS[0], lambda timing: replace(odd, minor_faults=0))
    back = run_file.load(write(run, tmp_path))
    assert {block.timing.wall_ns for block in back.result(CELLS[0]).blocks} == {3_703_701}
    assert summarise(back)[0].latency.point == pytest.approx(1.234567e-3, rel=1e-12)  # type: ignore[union-attr]


def test_08_peak_memory_is_the_peak_of_this_cell() -> None:
    """TorchBench's "CPU peak" is what the process holds at the moment it is asked."""

    class Filling(scripted_gpu.Gpu):
        held, most = 100, 5_000  # 5,000 is an earlier cell's peak

        def hold(self, change: int) -> None:
            self.held += change
            self.most = max(self.most, self.held)

        def reset_peak(self) -> None:
            self.most = self.held

        def allocated(self) -> int:
            return self.held

        def peak_allocated(self) -> int:
            return self.most

    gpu = Filling()
    kernel = gpu.kernels(1_000, 20_000)

    def call() -> None:
        gpu.hold(+600)
        kernel()
        gpu.hold(-600)

    found = scripted_gpu.device(gpu).probe(call, 5)
    assert (found["peak_memory_bytes"], found["working_memory_bytes"], gpu.held) == (700, 600, 100)
    assert "peak_memory_bytes" not in cpu.Cpu(1).probe(lambda: None, 1), "missing, not something else by that name"


def test_09_a_run_whose_every_block_was_disturbed_is_labelled_and_not_empty() -> None:
    """nvbench's throttle check discarded every sample and left a row without a result."""

    def throttled(run: Run) -> Run:
        return with_blocks(run, CELLS[0], lambda timing: replace(timing, flags=("thermal slowdown",)))

    before, after = throttled(run_of(TIMES)), throttled(run_of(TIMES, seed=1))
    cell = summarise(after)[0]
    assert cell.latency is not None and "contaminated" in cell.flags
    assert cell.disturbed == {"thermal slowdown": 60}
    assert compare_runs(before, after)[0].reason == "contaminated"
    judge = gate.Gate(list(CELLS), gate.Rule(looks=(5,)))
    pair = Pair(before, after)
    judge.look_at(0, pair)
    found = ab_findings.findings(judge, pair, {})
    assert found[0].verdict == "ENVIRONMENT" and "60 of 60 rounds" in found[0].reason and found[0].change is not None
    assert Decision(found).exit_code == EXIT_CODES["ENVIRONMENT"]


def test_10_an_arm_board_without_model_name_or_x86_sensors_is_read(tmp_path: Path) -> None:
    """pyperf looks for "model name" and for x86's names of temperatures, and knows no ARM board."""
    assert "model name" not in PI_4
    root = plant(
        tmp_path,
        {
            "proc/cpuinfo": "\n".join(PI_4.format(n=n) for n in range(4)),
            "sys/devices/system/cpu/online": "0-3\n",
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
            "sys/class/thermal/thermal_zone0/temp": "61500\n",
        },
    )
    facts = read(root).facts
    assert (facts["cpu.model"], facts["cpu.logical"]) == ("Arm Cortex-A72", 4)
    assert machine.temperatures(root) == {"cpu-thermal": 61.5}


class Slowing(Fake):
    """A machine that slows by a fifth over ten seconds, as a phone does that gets warm."""

    def time_block(self, call: Any, calls: int) -> Timing:
        factor = 1 + 0.2 * min(self.now_s() / 10, 1)
        return super().time_block(ScriptedCall(call.seconds * factor), calls)


def test_11_a_drift_of_a_fifth_moves_the_ratio_by_less_than_half_a_percent() -> None:
    """hyperfine runs one command after the other, so the second pays for the drift."""
    work, sampling = ScriptedCall(0.05), Sampling(min_rounds=100, max_rounds=100)

    def seconds(device: Fake, cells: tuple[str, ...]) -> dict[str, list[float]]:
        task = block_loop.LaunchTask(0, 5, 0, 100.0, dict.fromkeys(cells, cells[0]), "cpu")
        found: dict[str, list[float]] = {cell: [] for cell in cells}
        for item in block_loop.measure_rounds(
            device, dict.fromkeys(cells, work), dict.fromkeys(cells, 1), sampling, task
        ):
            if isinstance(item, Block):
                found[item.cell].append(item.timing.wall_ns)
        return found

    together = seconds(Slowing(noise=0.002), ("a", "b"))
    assert together["a"][-1] > 1.15 * together["a"][0], "the drift was really there"
    ratios = numpy.divide(together["b"], together["a"])
    assert abs(float(numpy.median(ratios)) - 1) < 0.005
    one_machine = Slowing(noise=0.002)
    first, second = (seconds(one_machine, (cell,))[cell] for cell in ("a", "b"))
    assert numpy.median(second) / numpy.median(first) > 1.05, "the same code, measured one after the other"


def test_12_the_shuffled_schedule_comes_back_from_its_seed(tmp_path: Path) -> None:
    """google/tachometer alternates in one fixed order, so that whatever has its rhythm falls on one side; a random
    order that nobody can repeat is no better. This one is the same on every machine, and a stored run can prove its.
    """
    orders = [sampling_rules.round_order("abcde", seed=7, launch=1, round=number) for number in range(4)]
    assert ["".join(order) for order in orders] == ["baedc", "aebdc", "baedc", "eadbc"]
    sides = [sampling_rules.first_side("a", seed=7, launch=1, round=number) for number in range(4)]
    assert sides == [1, 0, 1, 0]
    study = study_file(tmp_path, "launches=2, min_rounds=6, max_rounds=6, warmup_s=0.0, max_warmup_s=0.01")
    run = api.run(str(study), device="fake", seed=3, out=tmp_path / "run").run
    visits = sorted(
        (block.launch, block.round, block.position, block.cell) for result in run for block in result.blocks
    )
    cells = [result.cell.id for result in run]
    assert visits == [
        (launch, number, position, cell)
        for launch in range(2)
        for number in range(6)
        for position, cell in enumerate(sampling_rules.round_order(cells, seed=run.seed, launch=launch, round=number))
    ]


def test_13_180_channels_do_not_form_8_groups() -> None:
    """Table 2 of the ShuffleNetV2 paper prints c = 180 for 8 groups, which no convolution can have; its authors meant
    184.
    """
    with pytest.raises(InvalidValue, match=r"divisible by `groups` .=8.*: use 184 or 176$"):
        api.profile("probe_groups", (180, 28, 28), arguments={"channels": 180, "groups": 8, "blocks": 1})
    assert api.profile("probe_groups", (184, 28, 28), arguments={"channels": 184, "groups": 8, "blocks": 1}).cost.madds
