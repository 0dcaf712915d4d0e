"""Measure what a harness adds to each call over a bare loop, in nanoseconds."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.peers.session import INSIDE, Ended, Part, Row, Section, Target, Task, process, shuffled
from benchmarks.peers.tables import table

TARGET_NS = 100.0
EQUAL_S = 1.0
BODIES = ("empty", "add")
HARNESSES = {
    "bare loop": ("equal",),
    "effbench": ("equal",),
    "torch Timer": ("defaults", "equal"),
    "pytest-benchmark": ("defaults",),
    "pytest-benchmark pedantic": ("defaults",),
    "pyperf": ("equal",),
}
"""Each harness with the budgets that it is run with.

pytest-benchmark's default is also one second. pyperf's default of 21 processes is run once per body.
"""


def plan(is_smoke: bool) -> list[Task]:
    repeats = 1 if is_smoke else 10
    every = [
        [
            {"repeat": repeat, "harness": harness, "body": body, "budget": budget}
            for harness, budgets in HARNESSES.items()
            for body in BODIES
            for budget in budgets
        ]
        for repeat in range(repeats)
    ]
    if not is_smoke:
        every.append([{"repeat": 0, "harness": "pyperf", "body": body, "budget": "defaults"} for body in BODIES])
    return shuffled(every, seed=1)


def seconds(task: Task) -> float:
    if task["harness"] == "pyperf":
        return {"empty": 15.0, "add": 75.0}[task["body"]] if task["budget"] == "defaults" else 4.5
    return 1.6 + (1.3 if task["body"] == "add" else 0.0)


def measure(task: Task, folder: Path) -> Iterator[Row]:
    """Yield one row: `harness_ns` as the tool reports it, and `bare_ns` from the same process."""
    harness, body, is_equal = task["harness"], task["body"], task["budget"] == "equal"
    if harness.startswith("pytest-benchmark"):
        mode = "pedantic" if harness.endswith("pedantic") else "calibrated"
        (found,) = in_pytest("pytest_body.py", [], {"PEERS_BODY": body, "PEERS_MODE": mode})
        yield {"harness_ns": found["stats"]["median"] * 1e9, "bare_ns": found["extra_info"]["bare_ns"]}
    elif harness == "pyperf":
        yield _pyperf(body, is_equal)
    else:
        command = [sys.executable, INSIDE / "harness.py", harness, body, EQUAL_S if is_equal else 0]
        yield json.loads(process(command).out.splitlines()[-1])


def in_pytest(
    file: str, options: list[str], variables: dict[str, str], ended: Callable[[Ended], None] = lambda done: None
) -> list[Row]:
    """Return the benchmarks in pytest-benchmark's JSON, from a pytest process without our configuration.

    `ended` is called with the process once it has ended.
    """
    with tempfile.TemporaryDirectory() as scratch:
        empty, out = Path(scratch) / "pytest.ini", Path(scratch) / "out.json"
        empty.write_text("[pytest]\n")
        command = [sys.executable, "-m", "pytest", "-q", "-c", empty, "-p", "no:cacheprovider"]
        # effbench's plugin is disabled: users of the peer do not have it.
        command += ["-p", "no:effbench", INSIDE / file, f"--benchmark-json={out}", *options]
        ended(process(command, variables=variables))
        return list(json.loads(out.read_text())["benchmarks"])


def _pyperf(body: str, is_equal: bool) -> Row:
    import pyperf

    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out.json"
        options = ["--processes=1", "--values=9", "--warmups=1"] if is_equal else []
        process([sys.executable, INSIDE / "pyperf_body.py", body, "--quiet", "-o", out, *options])
        found = pyperf.Benchmark.load(str(out))
    bare = [run.get_metadata()["bare_ns"] for run in found.get_runs() if "bare_ns" in run.get_metadata()]
    return {"harness_ns": found.median() * 1e9, "bare_ns": statistics.median(bare)}


def section(rows: list[Row]) -> Section:
    names = list(dict.fromkeys((row["harness"], row["budget"]) for row in rows))
    order = [(harness, budget) for harness, budgets in HARNESSES.items() for budget in ("defaults", "equal")]
    lines, added = [], {}
    for harness, budget in sorted(names, key=order.index):
        shown = []
        for body in BODIES:
            mine = [row for row in rows if (row["harness"], row["budget"], row["body"]) == (harness, budget, body)]
            over = sorted(row["harness_ns"] - row["bare_ns"] for row in mine)
            added[harness, budget, body] = statistics.median(over) if over else None
            shown.append(f"{statistics.median(over):+.1f} [{over[0]:+.1f}, {over[-1]:+.1f}]" if over else "–")
        count = sum((row["harness"], row["budget"]) == (harness, budget) for row in rows)
        lines.append((harness, "its defaults" if budget == "defaults" else f"{EQUAL_S:g} s", *shown, count))
    bare = {body: statistics.median(row["bare_ns"] for row in rows if row["body"] == body) for body in BODIES}
    ours = [added.get(("effbench", "equal", body)) for body in BODIES]
    theirs = {
        name: max(abs(added[name, budget, body] or 0.0) for body in BODIES)
        for name, budget, body in added
        if name not in ("effbench", "bare loop")
    }
    blocks = statistics.median(row["block_us"] for row in rows if "block_us" in row)
    found = max(value for value in ours if value is not None)
    return Section(
        [
            f"Each repeat is a fresh process that times the body in a plain `for` loop ({bare['empty']:.1f} ns per "
            f"call of an empty function, {bare['add']:.0f} ns of one small `torch.add`) and then through the harness. "
            "The table shows the harness's time less that of the bare loop, in nanoseconds per call: median and "
            "range. The bare loop against itself shows how large a difference can arise by chance.",
            table(("harness", "budget", "empty function", "torch.add", "repeats"), lines),
            f"effbench reads its counters once per block, outside of the clocks. That takes {blocks:.1f} µs per block "
            "of at least 5 ms.",
        ],
        [
            Target(
                "time added per call over a bare loop, in blocks",
                "≤ 100 ns",
                f"{found:+.1f} ns",
                ", ".join(f"{name} {value:.0f}" for name, value in theirs.items()) + " ns",
                found <= TARGET_NS,
            )
        ],
    )


PART = Part("harness_cost", "What a harness adds to each call", plan, measure, seconds, section)
