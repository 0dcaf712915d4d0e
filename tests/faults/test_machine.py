"""Machine failures: out of memory, a clock that goes backwards, killed processes; and models that compute NaN."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path

import pytest
from runs import CELLS, run_of
from shell import QUICKLY, effbench, records

from effbench.analysis.summary import summarise
from effbench.core.run import Timing
from effbench.gates.ab_pairs import Pair, rounds
from effbench.runs import run_file
from effbench.runs.recorder import Recording
from effbench.timing import output_check

NETS = """
import os, torch
from torch import nn

class Net(nn.Module):
    def __init__(self, mode):
        super().__init__()
        self.conv, self.mode, self.calls = nn.Conv2d(3, 4, 1), mode, 0

    def forward(self, x):
        self.calls += not torch._C.TensorBase.is_meta.__get__(x)
        if self.calls and self.mode == "hungry":
            torch.empty(16 << 30, dtype=torch.uint8)
        if self.calls > 3 and self.mode == "hungry later":
            torch.empty(16 << 30, dtype=torch.uint8)
        if self.calls and self.mode == "hungry Python":
            bytearray(16 << 30)
        if self.calls > 9 and self.mode == "killed":
            os.kill(os.getpid(), 9)
        y = self.conv(x)
        if self.mode == "nan":
            return y * float("nan")
        if self.mode == "infinite inside":
            return {"image": y, "more": (None, [y / 0.0])}
        return y.long() if self.mode == "integers" else y

def net(mode):
    return Net(mode)
"""

STUDY = """
from effbench.core.study import Case, Experiment, Sampling

MODES = {modes!r}
case = lambda mode: Case("nets.py:net", (3, 8, 8), {{"mode": mode}}, labels={{"mode": mode}})
EXPERIMENT = Experiment(
    name="nets", title="Nets", claim="", factor="mode", levels=tuple(MODES), reference="fine",
    cases=tuple(map(case, MODES)), sampling=Sampling({sampling}),
)
"""

BACKWARDS = """
import sys, time

if "effbench.runs.worker" in sys.orig_argv:
    really, steps = time.perf_counter_ns, [0, 0]

    def backwards():
        steps[0] += 1
        steps[1] += 3_600_000_000_000 * (steps[0] % 13 == 0)  # an hour back, within a block or between two
        return really() - steps[1]

    time.perf_counter_ns = backwards
"""

SKIPPED = {
    "hungry": "out of memory: ",
    "hungry later": "out of memory: ",
    "hungry Python": "out of memory: MemoryError",
    "killed": "SIGKILL (out of memory?)",
}
MODES = ("fine", *SKIPPED, "nan", "infinite inside", "integers")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the CPU under a limit on memory, with a clock that steps back now and then."""
    home = tmp_path_factory.mktemp("machine")
    (home / "nets.py").write_text(NETS)
    sampling = QUICKLY.replace("launches=2, min_rounds=3, max_rounds=4", "launches=1, min_rounds=12, max_rounds=12")
    (home / "nets_study.py").write_text(STUDY.format(modes=MODES, sampling=sampling))
    (home / "patch").mkdir()
    (home / "patch" / "sitecustomize.py").write_text(BACKWARDS)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))

    words = ["run", "nets_study.py", "--out", "run", "--json"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(home / "patch"), prepend=os.pathsep)
        done = effbench(*words, cwd=home, preexec_fn=limit)
    assert done.code == 0, done.err
    (home / "run" / "said.json").write_text(done.out)
    return home / "run"


def cells(run: Path) -> dict[str, dict[str, object]]:
    said = json.loads((run / "said.json").read_text())
    return {cell["labels"]["mode"]: cell for cell in said["cells"]}


@pytest.mark.parametrize("mode", MODES)
def test_what_ends_a_cell_is_its_reason_and_costs_no_other(mode: str, run: Path) -> None:
    cell = cells(run)[mode]
    if mode not in SKIPPED:
        assert cell["skipped"] is None and cell["ratio"]
    else:
        assert SKIPPED[mode] in str(cell["skipped"])


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode not in SKIPPED])
def test_an_output_that_is_not_finite_is_noted(mode: str, run: Path) -> None:
    noted = mode in ("nan", "infinite inside")
    assert ("its output is not finite" in cells(run)[mode]["notes"]) == noted  # type: ignore[operator]
    row = next(line for line in (run / "table.md").read_text().splitlines() if line.startswith(f"| {mode} |"))
    assert ("its output is not finite" in row) == noted


def test_a_clock_that_goes_backwards_gives_a_flagged_block_and_no_time(run: Path) -> None:
    """An hour back is never a time, and what the other clock read is kept."""
    timings = [record["timing"] for record in records(run) if record["kind"] == "block"]
    flagged = [timing for timing in timings if "clock went backwards" in timing.get("flags", ())]
    assert 0 < len(flagged) < len(timings) / 2
    assert all(timing.get("wall_ns", 0) == 0 and timing["cpu_ns"] > 0 for timing in flagged)
    assert all(0 < timing["wall_ns"] < 60e9 for timing in timings if timing not in flagged)
    for cell in cells(run).values():
        if cell["skipped"] is None:
            assert 0 < cell["latency_s"]["median"] < 60  # type: ignore[index]


@pytest.mark.parametrize("clock", ["wall_ns", "cpu_ns", "device_ns"])
def test_no_clock_is_stored_that_went_backwards(clock: str, tmp_path: Path) -> None:
    made = run_of(dict.fromkeys(CELLS, 0.01), launches=1, rounds=2)
    timing = {"calls": 4, "wall_ns": 10, "cpu_ns": 9, "device_ns": 8, "flags": ["steal"], clock: -7}
    with run_file.RunWriter(tmp_path / "run") as writer:
        writer.header(made, "0")
        for result in made.results:
            writer.cell(result)
        recording = Recording(plan=None, writer=writer, scratch=tmp_path)  # type: ignore[arg-type]
        recording.record_event(0, {"event": "launch", "slot": 0})
        event = {"event": "block", "round": 0, "position": 0, "cell": CELLS[0], "timing": timing}
        recording.record_event(0, event)
    (stored,) = run_file.load(tmp_path / "run").results[0].blocks
    kept = {name: timing[name] for name in ("wall_ns", "cpu_ns", "device_ns")} | {clock: None}
    kept["wall_ns"] = kept["wall_ns"] or 0
    assert stored.timing == Timing(calls=4, **kept, flags=("steal", "clock went backwards"))
    again = run_file.load(tmp_path / "run")
    assert summarise(again) and rounds(Pair(again, again), CELLS[0], clock.removesuffix("_ns")) == ()


def test_every_tensor_of_an_output_is_looked_at() -> None:
    import torch

    good, bad = torch.zeros(3), torch.tensor([0.0, float("-inf")])
    for fine in (good, good.bfloat16(), good.long(), None, "text", (), [good, {"a": (good,)}]):
        assert output_check.is_finite(fine)
    for wrong in (bad, bad.half(), [good, bad], {"a": {"b": (good, [bad])}}):
        assert not output_check.is_finite(wrong)
