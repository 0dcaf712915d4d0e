"""The measuring method on a scripted clock: order of rounds, calls per block, warm-up, stopping, worker events."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_runs import events_of, job

from effbench.core.run import Block
from effbench.core.study import Sampling
from effbench.devices.fake import Fake, ScriptedCall
from effbench.timing import block_loop
from effbench.timing import sampling as sampling_rules

CELLS = [f"cell{i}" for i in range(6)]


def test_schedule_is_reproducible_and_different_every_round() -> None:
    orders = [sampling_rules.round_order(CELLS, seed=1, launch=0, round=number) for number in range(20)]
    assert orders == [sampling_rules.round_order(CELLS, seed=1, launch=0, round=number) for number in range(20)]
    assert all(sorted(order) == CELLS for order in orders)
    assert len({tuple(order) for order in orders}) > 15
    assert sampling_rules.round_order(CELLS, seed=2, launch=0, round=0) != orders[0]


def test_schedule_puts_every_cell_everywhere() -> None:
    """Over many rounds no cell keeps a favoured position: each mean position is close to the middle."""
    positions = {cell: 0 for cell in CELLS}
    for number in range(600):
        for position, cell in enumerate(sampling_rules.round_order(CELLS, seed=3, launch=1, round=number)):
            positions[cell] += position
    assert all(abs(total / 600 - 2.5) < 0.35 for total in positions.values())


@given(st.floats(1e-8, 10), st.floats(1e-4, 0.05))
@settings(deadline=None)
def test_calls_per_block_fill_the_block_and_not_more(seconds: float, block_s: float) -> None:
    sampling = Sampling(block_s=block_s, max_block_s=0.1)
    calls = block_loop.calls_per_block(seconds, sampling)
    assert calls >= 1
    if seconds < block_s:
        assert calls * seconds >= block_s * (1 - 1e-9)
        assert (calls - 1) * seconds < block_s
    else:
        assert calls == 1


def test_steady_needs_two_windows_without_trend() -> None:
    flat = [1.0, 1.001, 0.999, 1.0, 1.002] * 2
    assert sampling_rules.is_steady(flat)
    assert not sampling_rules.is_steady(flat[:9])
    assert not sampling_rules.is_steady([2.0 - 0.1 * i for i in range(10)]), "still getting faster"
    assert not sampling_rules.is_steady([1.5] * 5 + [1.0] * 5), "two levels"
    assert sampling_rules.is_steady([9.0, 5.0, *flat]), "only the recent past counts"


def test_warm_up_reports_a_cell_that_never_settles() -> None:
    slower = iter(range(1, 10**6))
    device = Fake(noise=0.0)

    class Drifting(Fake):
        def time_block(self, call: Any, calls: int) -> Any:
            return super().time_block(ScriptedCall(0.01 * 1.1 ** min(next(slower), 40)), calls)

    sampling = Sampling(max_warmup_s=1.0)
    warm, _ = block_loop.warm_up(Drifting(noise=0.0), ScriptedCall(0.01), "cell", None, sampling)
    assert not warm.steady
    warm, calls = block_loop.warm_up(device, ScriptedCall(0.001), "cell", None, sampling)
    assert warm.steady and calls == 5
    assert warm.seconds >= sampling.warmup_s


def test_frozen_calls_are_kept() -> None:
    """k differs by a factor between launches would bias the comparison by about 1 % (nanobench's tutorial)."""
    _, calls = block_loop.warm_up(Fake(), ScriptedCall(0.001), "cell", 17, Sampling())
    assert calls == 17


def test_stop_for_each_reason() -> None:
    sampling = Sampling(min_rounds=10, max_rounds=30, precision=0.01)
    quiet = {"a": [0.001 * (-1) ** i for i in range(10)]}
    noisy = {"a": [0.2 * (-1) ** i for i in range(10)]}

    def reason(series: dict[str, list[float]], rounds: int, spent: float = 0.0) -> str | None:
        return sampling_rules.reason_to_stop(series, rounds=rounds, spent_s=spent, budget_s=5.0, sampling=sampling)

    assert reason(quiet, 10) == "precision"
    assert reason(quiet, 9) is None, "not looked at before min_rounds"
    assert reason(quiet, 11) is None, "looks are spaced out"
    assert reason(noisy, 10) is None
    assert reason(noisy, 10, spent=6.0) == "budget"
    assert reason(noisy, 2, spent=6.0) is None, "three rounds at least"
    assert reason(noisy, 30) == "rounds"
    assert reason(quiet | noisy, 10) is None, "one imprecise cell keeps the launch going"
    assert sampling_rules.check_rounds(sampling) == {10, 15, 22}


def test_precision_claims_are_true_on_autocorrelated_clocks() -> None:
    """A launch that stops on ± 2 % must really be that close, also where neighbouring blocks resemble each other."""
    draw, right, stopped = random.Random(11), 0, 0
    for _ in range(150):
        values, state = [], 0.0
        while len(values) < 1500:
            state = 0.5 * state + draw.gauss(0, 0.05 * math.sqrt(0.75))
            values.append(state)
            if len(values) >= 10 and len(values) % 10 == 0 and sampling_rules.is_precise(values, 0.02):
                stopped += 1
                right += abs(sorted(values)[len(values) // 2]) <= 0.02
                break
    assert stopped == 150
    assert right >= 128, f"only {right} of 150 claims of ± 2 % were true"


def test_worker_measures_what_the_clock_says() -> None:
    events = events_of(job())
    blocks = [fields for event, fields in events if event == "block"]
    per_call = {
        name: [b["timing"]["wall_ns"] / b["timing"]["calls"] for b in blocks if b["cell"] == name]
        for name in ("a", "b")
    }
    assert len(per_call["a"]) == len(per_call["b"]) == 10
    assert sum(per_call["b"]) / sum(per_call["a"]) == pytest.approx(2.0, rel=0.01)
    assert [fields["stopped"] for event, fields in events if event == "end"] == ["precision"]
    assert [fields["ns_per_call"] for event, fields in events if event == "null"] == [pytest.approx(60, rel=0.1)]


def test_worker_keeps_frozen_calls_and_first_round() -> None:
    task = job(first_round=7)
    task["cells"][0]["calls"] = 3
    events = events_of(task)
    blocks = [fields for event, fields in events if event == "block"]
    assert {b["timing"]["calls"] for b in blocks if b["cell"] == "a"} == {3}
    assert min(b["round"] for b in blocks) == 7


def test_drift_over_a_launch_does_not_reach_the_ratio() -> None:
    """A clock that slows by 20 % over the run: paired ratios stay within 0.5 % of the truth (measurement test 11)."""

    class Slowing(Fake):
        def time_block(self, call: Any, calls: int) -> Any:
            factor = 1 + 0.2 * min(self.now_s() / 10, 1)
            return super().time_block(ScriptedCall(call.seconds * factor), calls)

    calls = {"a": ScriptedCall(0.01), "b": ScriptedCall(0.03)}
    sampling = Sampling(min_rounds=40, max_rounds=40)
    task = block_loop.LaunchTask(0, 5, 0, 100.0, {"a": "a", "b": "a"}, "cpu")
    device = Slowing(noise=0.002)
    blocks = [
        item
        for item in block_loop.measure_rounds(device, calls, {"a": 1, "b": 1}, sampling, task)
        if isinstance(item, Block)
    ]
    times = {(b.cell, b.round): b.timing.wall_ns for b in blocks}
    ratios = sorted(times["b", number] / times["a", number] for number in range(40))
    assert abs(ratios[20] / 3 - 1) < 0.005
    assert times["a", 39] / times["a", 0] > 1.05, "the drift was really there"


def test_worker_protocol_survives_a_network_that_prints(tmp_path: Any) -> None:
    """Anything the user's network writes to standard output must not be mistaken for an event."""
    import subprocess
    import sys

    source = tmp_path / "loud.py"
    source.write_text(
        "import torch\nprint('{\"event\": \"end\"}')\ndef net():\n    print('hello')\n    return torch.nn.ReLU()\n"
    )
    task = job(
        device="cpu", device_options={"threads": 1}, sampling={"max_rounds": 2, "min_rounds": 2, "warmup_s": 0.0}
    )
    fed = [{"shape": [4], "name": "", "dtype": ""}]
    task["cells"] = [{**task["cells"][0], "model": f"{source}:net", "inputs": fed}]
    errors = tmp_path / "stderr"
    with errors.open("w") as stderr:
        command = [sys.executable, "-m", "effbench.runs.worker"]
        process = subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr)
        assert process.stdin is not None and process.stdout is not None
        # Left open until the worker is done: it takes the end of its input for the end of its parent.
        process.stdin.write(json.dumps(task) + "\n")
        process.stdin.flush()
        events = [json.loads(line)["event"] for line in process.stdout]
        assert process.wait() == 0, errors.read_text()
        process.stdin.close()
        process.stdout.close()
    assert events[0] == "ready" and events.count("end") == 1 and events.count("block") == 2
    assert "hello" in errors.read_text()


@pytest.mark.parametrize(("runtime", "is_steady"), [("eager", False), ("compile", True)])
def test_a_compiled_cell_may_take_longer_to_settle(
    runtime: str, is_steady: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its calls become faster for three seconds."""
    really = Fake.time_block

    def falling(self: Fake, call: Any, calls: int) -> Any:
        slower = 1 + max(0.0, 3 - self.now_s()) if isinstance(call, ScriptedCall) else 1
        return really(self, ScriptedCall(0.005 * slower), calls)

    monkeypatch.setattr(Fake, "time_block", falling)
    cells = [{**spec, "runtime": runtime} for spec in job()["cells"][:1]]
    (warm,) = [fields for event, fields in events_of(job(cells=cells, budget_s=100.0)) if event == "warmup"]
    assert warm["steady"] is is_steady and (warm["seconds"] > 3) is is_steady
