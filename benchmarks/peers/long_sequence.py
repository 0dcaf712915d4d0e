"""What counting takes where a network runs a loop over its tokens, at growing lengths: time should grow as they do."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.peers.session import INSIDE, Part, Row, Section, Target, Task, process, shuffled
from benchmarks.peers.tables import table

LAYERS = 24
TOKENS = (256, 512, 1024)
TARGET_S = 30.0


def plan(is_smoke: bool) -> list[Task]:
    repeats, layers, lengths = (1, 1, (16, 32)) if is_smoke else (3, LAYERS, TOKENS)
    return shuffled(
        [[{"repeat": repeat, "layers": layers, "tokens": tokens} for tokens in lengths] for repeat in range(repeats)],
        seed=5,
    )


def seconds(task: Task) -> float:
    return 6.0 + 1.5e-3 * task["layers"] * task["tokens"]


def measure(task: Task, folder: Path) -> Iterator[Row]:
    """One process a length."""
    words = [sys.executable, INSIDE / "long_sequence.py", task["layers"], task["tokens"]]
    yield json.loads(process(words).out.splitlines()[-1])


def section(rows: list[Row]) -> Section:
    lines, middle = [], {}
    for layers, tokens in sorted({(row["layers"], row["tokens"]) for row in rows}):
        same = [row for row in rows if (row["layers"], row["tokens"]) == (layers, tokens)]
        counted, forward = (statistics.median(row[name] for row in same) for name in ("cpu_s", "forward_s"))
        middle[layers, tokens] = counted
        operators = same[0]["operators"]
        numbers = (f"{counted:.1f}", f"{1e6 * counted / operators:.0f}", f"{forward:.1f}")
        lines.append((f"{layers} layers, {tokens} tokens", f"{operators:,}", *numbers))
    longest = middle.get((LAYERS, TOKENS[-1]))
    return Section(
        [
            "CPU seconds to count a selective scan after Mamba, written as a loop over tokens. Medians over fresh "
            "processes that have imported torch and built the network. The last column is one forward pass of the same "
            "network on the meta device without any counter, which is what torch itself takes for so many operators.",
            table(
                ("network", "operators", "counting (s)", "per operator (µs)", "forward pass on meta (s)"),
                lines,
            ),
        ],
        [
            Target(
                f"counting a scan of {LAYERS} layers and {TOKENS[-1]} tokens, CPU time",
                f"≤ {TARGET_S:.0f} s",
                "–" if longest is None else f"{longest:.1f} s",
                "",
                None if longest is None else longest <= TARGET_S,
            )
        ],
    )


PART = Part("long_sequence", "What counting a loop over tokens takes", plan, measure, seconds, section)
