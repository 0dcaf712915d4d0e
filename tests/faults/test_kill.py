"""kill -9 of a run and of its measuring processes at 50 seeded moments: what was measured stays, and only that.

At 100 others behind the mark `slow`.

A run that is killed ends where it is: no handler runs, no buffer is flushed. Half of the moments are numbers of
function calls, which a slow machine does not move; the others are times.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from contextlib import suppress
from typing import Any

import psutil
import pytest
from forks import CELLS, LAUNCHES, RESUME, ROUNDS, SAMPLING, WORDS, Ended, Forks
from shell import kinds

from effbench.runs import run_file

SEED = 20261122


pytestmark = pytest.mark.usefixtures("fresh_forks")


def lost_nothing(forks: Forks, ended: Ended, before: bytes, outside: dict[str, Any]) -> str:
    """What must hold after any kill. Returns how far the run had come."""
    assert ended.code == -signal.SIGKILL and "Traceback" not in ended.said, ended
    assert forks.outside() == outside, "written outside the output folder"
    data = forks.lines()
    assert data.startswith(before), "what an earlier process wrote is there, byte for byte"
    new = [json.loads(line)["kind"] for line in data[len(before) :].splitlines()]
    # Written to the kernel before the next thing happens: at most one record beyond what was known to be written.
    known = [kind for kind in ended.acknowledged if kind != "over"]
    assert new[: len(known)] == known and len(new) - len(known) in (0, 1)
    if not data:
        return "nothing"
    run = run_file.load(forks.work / "run")
    blocks = [block for result in run.results for block in result.blocks]
    assert len(blocks) == kinds(forks.work / "run").count("block")
    assert all(block.timing.wall_ns > 0 for block in blocks)
    return "complete" if run.complete else "blocks" if blocks else "header"


def finish(forks: Forks) -> None:
    """Go on after a kill, as its user would: the result is the whole plan, once."""
    before = forks.lines()
    if len([line for line in before.splitlines() if b'"kind":"cell"' in line]) == CELLS:
        ended = forks.carry_out(*RESUME)
        assert ended.code == 0, ended
    elif before:
        ended = forks.carry_out(*RESUME)
        assert ended.code == 2 and ended.said.count("\n") == 1 and "delete it and begin again" in ended.said
        return
    else:
        ended = forks.carry_out(*WORDS)
        assert ended.code == 0, ended
    assert forks.lines().startswith(before)
    run = run_file.load(forks.work / "run")
    assert run.complete and (forks.work / "run" / "table.md").is_file()
    blocks = [block for result in run for block in result.blocks]
    slots = {launch.number: launch.slot for launch in run.launches}
    last = [launch.number for launch in run.launches if launch.stopped != "interrupted"]
    assert sorted(slots[number] for number in last) == list(range(LAUNCHES))
    for number in last:
        assert sum(block.launch == number for block in blocks) == ROUNDS * CELLS, "a fresh process measures in full"
    visits = [(slots[block.launch], block.round, block.cell) for block in blocks]
    assert len(visits) == len(set(visits)), "nothing is measured twice"
    for slot in range(LAUNCHES):
        rounds = {round for at, round, _ in visits if at == slot}
        assert rounds == set(range(len(rounds)))


@pytest.fixture(scope="module")
def whole(forks: Forks) -> Ended:
    """A run that is left alone, in which the calls are counted."""
    ended = forks.carry_out(*WORDS, at_call=-1)
    assert ended.code == 0
    return ended


STAGES = (("", "header", 3), ("header", "warmup", 2), ("warmup", "complete", 5), ("complete", "over", 4))
"""From one record to the next, so many kills: counting; the header and the plan; the launches; verdicts and figures."""

SOME_OR_MANY = [pytest.param(1, id="some"), pytest.param(4, id="many", marks=pytest.mark.slow)]
"""How many times as many kills, at moments of their own."""


@pytest.mark.parametrize("times", SOME_OR_MANY)
def test_kill_9_at_any_call_loses_nothing(forks: Forks, whole: Ended, times: int) -> None:
    draw, outside, seen = random.Random(SEED + 10 * times), forks.outside(), []
    at = {"": 0} | dict(zip(reversed(whole.acknowledged), reversed(whole.calls), strict=True))
    for first, last, kills in STAGES:
        for number in range(kills * times):
            forks.empty()
            ended = forks.carry_out(*WORDS, at_call=draw.randint(1, at[last] - at[first]), after=first)
            seen.append(lost_nothing(forks, ended, b"", outside))
            if number % 8 == 0:
                finish(forks)
    assert set(seen) == {"nothing", "header", "blocks", "complete"}
    assert len(seen) == 14 * times


def test_an_end_in_the_middle_of_a_line_costs_that_line(forks: Forks, whole: Ended) -> None:
    """What a power cut leaves behind, and what a resumed run then leaves behind."""
    draw, outside, before, words = random.Random(SEED + 1), forks.outside(), b"", WORDS
    lines = whole.acknowledged.index("end")
    for number in range(6):
        at = draw.randint(lines - 14, lines) if number == 0 else draw.randint(1, 8)
        ended = forks.carry_out(*words, in_line=at)
        assert (forks.work / "run" / "run.jsonl").read_bytes()[-1:] != b"\n"
        lost_nothing(forks, ended, before, outside)
        assert len(ended.acknowledged) == at - 1
        before, words = forks.lines(), RESUME
    finish(forks)


@pytest.mark.parametrize("times", SOME_OR_MANY)
def test_kill_9_at_any_time_loses_nothing(forks: Forks, times: int) -> None:
    """From outside: the run, and every attempt to go on with it, at moments over the length of an undisturbed one."""
    draw, outside = random.Random(SEED + 10 * times + 2), forks.outside()
    start = time.monotonic()
    assert forks.carry_out(*WORDS).code == 0
    length, kills = time.monotonic() - start, 0
    while kills < 13 * times:
        forks.empty()
        words, before = WORDS, b""
        for _ in range(8):
            process = forks.start(*words)
            time.sleep(length * draw.random() ** 2)
            os.kill(process, signal.SIGKILL)
            ended = forks.end()
            if ended.code == 0:
                break  # it was done before
            kills += 1
            lost_nothing(forks, ended, before, outside)
            before = forks.lines()
            if before.count(b'"kind":"cell"') == CELLS:
                words = RESUME
            elif before:
                break
        if ended.code:
            finish(forks)


def test_a_budget_outlasts_kill_9_after_every_launch(forks: Forks) -> None:
    """Killed when a launch has ended, and once while one warms up: each launch gets its share of one budget."""
    launches, budget_s = 4, 2.0
    sampling = f"launches={launches}, min_rounds=3, max_rounds=100000, precision=1e-9, budget_s={budget_s}"
    text = (forks.work / "tiny.py").read_text().replace(SAMPLING, f"{sampling}, warmup_s=0.0, max_warmup_s=0.05")
    (forks.work / "budget.py").write_text(text)
    words = ("run", "budget.py", "--device", "fake", "--out", "run")
    for line in ('{"kind":"end","launch":0,', '{"kind":"warmup","launch":1,', '{"kind":"end","launch":2,'):
        assert forks.carry_out(*words, after_line=line).code == -signal.SIGKILL
        words = RESUME
    assert forks.carry_out(*words).code == 0
    seen = [json.loads(line) for line in forks.lines().splitlines()]
    header = seen[0]["sampling"]
    assert (header["launches"], header["budget_s"]) == (launches, budget_s)
    slots = {record["launch"]: record["slot"] for record in seen if record["kind"] == "launch"}
    ends = {record["launch"]: record for record in seen if record["kind"] == "end"}
    assert sorted(slots[launch] for launch in ends) == list(range(launches)) and ends.keys() < slots.keys()
    assert {record["stopped"] for record in ends.values()} == {"budget"}
    used = {launch: max(r["at_s"] for r in seen if r.get("launch") == launch and "at_s" in r) for launch in slots}
    # Two blocks of 5 ms and a call before each make a round: one of them too many, and one lost, in each launch.
    assert budget_s - 0.05 < sum(used.values()) < budget_s + 0.05 * len(slots)
    took = [record["seconds"] for record in ends.values()]
    assert max(took) < 1.5 * min(took), "at first every launch that was left got all of the budget's rest"


# --- the measuring process ---------------------------------------------------------------------------


def test_a_killed_measuring_process_costs_its_cell_and_no_more(forks: Forks) -> None:
    """A study of many cells, whose process is killed in each launch as long as two cells are left."""
    cells, draw, killed = 24, random.Random(SEED + 3), 0
    text = (forks.work / "tiny.py").read_text().replace(SAMPLING, SAMPLING_OF_MANY)
    text = text.replace("cases=(case(1), case(2))", f"cases=tuple(map(case, range(1, {cells + 1})))")
    (forks.work / "many.py").write_text(text.replace('"groups": groups, "blocks"', '"groups": 1, "blocks"'))
    outside = forks.outside()
    for _ in range(6):
        forks.empty()
        process = psutil.Process(forks.start("run", "many.py", "--device", "fake", "--out", "run", "--json"))
        for launch in range(cells - 2):
            if not wait_for_launch(forks, launch, process):
                break
            time.sleep(0.02 * draw.random())
            for worker in process.children():
                with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
                    worker.kill()
        ended = forks.end()
        assert ended.code == 0, ended
        assert forks.outside() == outside
        shown = json.loads(ended.said)["cells"]
        reasons = [cell["skipped"] for cell in shown if cell["skipped"] is not None]
        run = run_file.load(forks.work / "run")
        interrupted = [launch for launch in run.launches if launch.stopped == "interrupted"]
        assert len(reasons) == len(interrupted) and all("SIGKILL" in reason for reason in reasons)
        assert run.complete and run.launches[-1].stopped == "rounds"
        blocks = kinds(forks.work / "run").count("block")
        assert sum(len(result.blocks) for result in run) == sum(cell["blocks"] for cell in shown) == blocks
        killed += len(reasons)
        print("KILLED", killed)
        if killed >= 20:
            return
    raise AssertionError(f"only {killed} processes were killed before their end")


SAMPLING_OF_MANY = "launches=1, min_rounds=400, max_rounds=400, warmup_s=0.0, max_warmup_s=0.05, budget_s=1e9"
"""So many rounds that a launch on the scripted clock takes longer than it takes to notice that it has begun."""


def wait_for_launch(forks: Forks, launch: int, process: psutil.Process) -> bool:
    """Until the first cell of this launch is warm, as the file says. False where the run ends before."""
    path, seen, at = forks.work / "run" / "run.jsonl", f'{{"kind":"warmup","launch":{launch},'.encode(), 0
    while process.status() != psutil.STATUS_ZOMBIE:
        if path.exists():
            with path.open("rb") as file:  # only what is new: it grows to megabytes
                file.seek(at)
                new = file.read()
            if seen in new:
                return True
            at += new.rfind(b"\n") + 1
        time.sleep(0.002)
    return False
