"""Measure how long each tool takes to say which of two networks is faster, and whether it is right."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks.peers import repository
from benchmarks.peers.harness_cost import in_pytest
from benchmarks.peers.session import INSIDE, Ended, Part, Row, Section, Target, Task, process, shuffled
from benchmarks.peers.tables import percent, table
from effbench.analysis import stats

RATIOS = (1.02, 1.05, 1.2)
TOOLS = ("effbench", "hyperfine's procedure", "pytest-benchmark", "torch Timer")
REPEATS = 5
NET = "wide_a"
WANTED_S = 15.0
"""Within this time a difference of 20 % shall be decided."""
NOTICED = 0.01
"""A difference of medians below this share is read as none in a tool that prints no interval."""


def plan(is_smoke: bool) -> list[Task]:
    if is_smoke:
        return [{"ratio": 1.2, "tool": "torch Timer", "repeat": 0}]
    return shuffled(
        [
            [{"ratio": ratio, "tool": tool, "repeat": each} for ratio in RATIOS for tool in TOOLS]
            for each in range(REPEATS)
        ],
        9,
    )


def seconds(task: Task) -> float:
    return 8.0 + {"effbench": 20.0, "hyperfine's procedure": 9.0, "pytest-benchmark": 6.0}.get(task["tool"], 4.0)


def measure(task: Task, folder: Path) -> Iterator[Row]:
    """Yield one row. `injected` is the calibrated extra work of the second network as a share of the first's CPU time;
    `answer_s` lasts from the start of the tool's process to the last of its output, `wall_s` to its end.
    """
    extra, injected = 0, 0.0
    if task["ratio"] > 1:
        command = [sys.executable, INSIDE / "calibrate.py", NET, task["ratio"] - 1]
        found = json.loads(process(command).out)
        extra, injected = found["extra"], found["injected"]
    said, done = _ask(task["tool"], extra)
    judged = judge(said["answer"], task["ratio"])
    yield {
        "extra": extra,
        "injected": injected,
        **said,
        "judged": judged,
        "answer_s": done.answer_s,
        "wall_s": done.wall_s,
    }


def _ask(tool: str, extra: int) -> tuple[Row, Ended]:
    if tool == "effbench":
        return _effbench(extra)
    if tool == "pytest-benchmark":
        found, done = _pytest(extra)
        ratio = found["slowed"] / found["plain"]
        return {"answer": by_points(ratio), "measured": ratio}, done
    done = process([sys.executable, INSIDE / "pair.py", tool, NET, extra])
    return json.loads(done.out.splitlines()[-1]), done


def _pytest(extra: int) -> tuple[dict[str, float], Ended]:
    ended: list[Ended] = []
    found = in_pytest("pytest_pair.py", [], {"PEERS_NET": NET, "PEERS_EXTRA": str(extra)}, ended.append)
    return {item["extra_info"]["network"]: item["stats"]["median"] for item in found}, ended[0]


def _effbench(extra: int) -> tuple[Row, Ended]:
    """Ask `effbench compare` about two networks in a user's file."""
    with tempfile.TemporaryDirectory(prefix="effbench-bench-") as scratch:
        text = (INSIDE / "nets.py").read_text()
        for name, number in (("plain", 0), ("slowed", extra)):
            text += f"\n\ndef {name}() -> Net:\n    return Net(*NETS[{NET!r}], extra={number})\n"
        (Path(scratch) / "pair.py").write_text(text)
        asked = ["compare", "pair.py:plain", "pair.py:slowed", "--input", f"{repository.NETS[NET]}x28x28"]
        command = [sys.executable, "-m", "effbench", *asked, "--json", "--out", "run"]
        done = process(command, folder=Path(scratch), codes=(0, 4))  # 4: others disturbed it, so it says nothing
    decision = json.loads(done.out)["decision"]
    (answer,) = decision["answers"]
    said = "none" if answer["verdict"] == "undecided" else answer["verdict"]
    return {
        "answer": said,
        "measured": answer["ratio"]["point"],
        "low": answer["ratio"]["low"],
        "high": answer["ratio"]["high"],
        "launches": decision["after_launches"],
        "stopped": decision["stopped"],
    }, done


def by_points(ratio: float) -> str:
    """Return how two printed times are read: the smaller one is faster, unless they differ by less than 1 %."""
    if 1 / (1 + NOTICED) < ratio < 1 + NOTICED:
        return "same"
    return "slower" if ratio > 1 else "faster"


def judge(answer: str, ratio: float) -> str:
    """Return whether an answer is "right", "wrong" or "none". "same" means within 3 %, so it is right at 2 %."""
    if answer == "none":
        return "none"
    if answer == "same":
        return "right" if ratio <= 1.03 else "wrong"
    return "right" if answer == "slower" and ratio > 1 else "wrong"


def section(rows: list[Row]) -> Section:
    lines = []
    for ratio in sorted({row["ratio"] for row in rows}):
        for tool in TOOLS:
            mine = [row for row in rows if (row["ratio"], row["tool"]) == (ratio, tool)]
            if not mine:
                continue
            times = sorted(map(_answer_s, mine))
            count = Counter(row["judged"] for row in mine)
            time = f"{statistics.median(times):.1f} [{times[0]:.1f}, {times[-1]:.1f}]"
            points = sorted(row["measured"] for row in mine)
            spread = f"{statistics.median(points):.3f} [{points[0]:.3f}, {points[-1]:.3f}]"
            lines.append((f"{ratio:g}", tool, len(mine), time, count["right"], count["wrong"], count["none"], spread))
    wrong = {tool: _wrong([row for row in rows if row["tool"] == tool]) for tool in TOOLS}
    return Section(
        [
            "Two networks, the second with so many small additions in its forward pass that it takes the wanted ratio "
            "of CPU time, calibrated before each question; at 1 the same network twice. Each tool is asked in a "
            "process of its own which one is faster, as its users ask it. `effbench compare` has its defaults. "
            "hyperfine's documented procedure (at least 10 runs and 3 s of each, one after the other; the ratio of "
            "means with its propagated standard deviation) is applied to calls in one process. Two benchmarks of one "
            f"pytest-benchmark session are read by their medians, below {percent(NOTICED, 0)} as no difference. "
            "`blocked_autorange` of each is read as different where the interquartile ranges do not overlap. *same* is "
            "right up to 3 %. The time lasts from the command to its last output; effbench draws "
            "figures after that.",
            table(
                (
                    "ratio",
                    "tool",
                    "asked",
                    "s to the answer, median [range]",
                    "right",
                    "wrong",
                    "no answer",
                    "ratio it measured",
                ),
                lines,
            ),
        ],
        _targets(rows, wrong),
    )


def _answer_s(row: Row) -> float:
    """Return the seconds to the answer; of older rows, those to the end of the process."""
    return float(row.get("answer_s", row["wall_s"]))


def _wrong(rows: list[Row]) -> tuple[int, int]:
    return sum(row["judged"] == "wrong" for row in rows), len(rows)


def _targets(rows: list[Row], wrong: dict[str, tuple[int, int]]) -> list[Target]:
    ours = [row for row in rows if row["tool"] == "effbench"]
    large = [row for row in ours if row["ratio"] == 1.2]
    quick = [row for row in large if row["judged"] == "right" and _answer_s(row) <= WANTED_S]
    times = list(map(_answer_s, large))
    shown = f"{len(quick)} of {len(large)}, median {statistics.median(times):.1f} s" if large else "–"
    count, every = wrong["effbench"]
    peers = ", ".join(f"{tool} {count} of {every}" for tool, (count, every) in wrong.items() if tool != "effbench")
    # Few questions cannot show 5 %, so the target is missed only where the exact interval excludes it.
    low = stats.proportion_interval(count, every).low if every else None
    return [
        Target(
            "two networks that differ by 20 % are decided, from command to answer",
            f"≤ {WANTED_S:g} s",
            shown,
            ", ".join(
                f"{tool} {statistics.median(_answer_s(row) for row in rows if row['tool'] == tool):.1f} s"
                for tool in TOOLS[1:]
                if any(row["tool"] == tool for row in rows)
            ),
            2 * len(quick) > len(large) if large else None,
        ),
        Target(
            "wrong answers to which network is faster",
            "≤ 5 %",
            f"{count} of {every}" if every else "–",
            peers,
            None if low is None else low <= 0.05,
        ),
    ]


PART = Part("time_to_answer", "Time to an answer: which of two networks is faster?", plan, measure, seconds, section)
