"""Measure how far reported figures scatter between runs of equal wall time, and how many claims of ±1 % are true."""

from __future__ import annotations

import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.peers.harness_cost import in_pytest
from benchmarks.peers.session import INSIDE, Ledger, Part, Row, Section, Target, Task, process, shuffled
from benchmarks.peers.suite import CASES, EXPERIMENT
from benchmarks.peers.tables import percent, table
from effbench.analysis import stats

SUITE = Path(__file__).with_name("suite.py")
RUN_S = 16.0
"""Wall seconds of one run of five cells, from the start to the end of its process."""
START_S = {"effbench": 4.0, "torch Timer": 2.2, "timm-style loop": 2.2, "pytest-benchmark": 3.2}
"""Seconds of it for imports, building cells and, for effbench, counting and plotting, until earlier runs show it."""
PRECISION = 0.01
PEER_CONFIDENCE = 0.99
"""pytest-benchmark's default for --benchmark-confidence."""
TOOLS = (
    ("effbench", "equal"),
    ("torch Timer", "equal"),
    ("timm-style loop", "equal"),
    ("pytest-benchmark", "equal"),
    ("pytest-benchmark", "±1 %"),
    ("torch Timer", "defaults"),
    ("timm-style loop", "defaults"),
    ("pytest-benchmark", "defaults"),
)
REFERENCE = str(EXPERIMENT.reference)
CLAIM = "ratio, where its 95 % interval is at most ±1 % wide"


def plan(is_smoke: bool) -> list[Task]:
    every = [{"tool": tool, "budget": budget} for tool, budget in TOOLS]
    if is_smoke:
        return [{"run": 0, **task} for task in every if task["tool"] in ("effbench", "timm-style loop")]
    return shuffled([[{"run": run, **task} for task in every] for run in range(12)], seed=2)


def seconds(task: Task) -> float:
    if task["budget"] == "defaults":
        return 9.0 if task["tool"] == "pytest-benchmark" else 4.0
    return RUN_S if task["budget"] == "equal" else 10.0


def measure(task: Task, folder: Path) -> Iterator[Row]:
    """Yield a row per cell: `latency_s` and `ratio` as reported; `low`, `high` and `stopped` if the tool reports
    them.
    """
    tool, budget, started = task["tool"], task["budget"], time.perf_counter()
    given_s = max(RUN_S - _start_s(Ledger(folder / f"{PART.name}.jsonl").rows(), tool), 2.0)
    each_s = given_s / len(CASES) if budget == "equal" else 0.0
    if tool == "effbench":
        yield from _effbench(given_s)
        return
    if tool == "pytest-benchmark":
        options = [f"--benchmark-max-time={each_s}"] if each_s else []
        if budget == "±1 %":
            # On a quiet machine the precision is reached long before ten seconds. What this limit cuts off makes no
            # claim.
            options = [f"--benchmark-precision={PRECISION}", "--benchmark-max-time=10"]
        found = in_pytest("pytest_cells.py", options, {})
        figure = "mean" if budget == "±1 %" else "median"
        latencies = {item["extra_info"]["cell"]: item["stats"][figure] for item in found}
        precise = {item["extra_info"]["cell"]: _is_precise(item["stats"]) for item in found}
    else:
        done = process([sys.executable, INSIDE / "loops.py", tool, each_s])
        latencies, precise = json.loads(done.out.splitlines()[-1]), {}
    wall = time.perf_counter() - started
    for cell, latency in latencies.items():
        yield {
            "cell": cell,
            "latency_s": latency,
            "ratio": latency / latencies[REFERENCE],
            "is_precise": precise.get(cell),
            "wall_s": wall,
            "given_s": given_s if each_s else None,
        }


def _start_s(rows: Sequence[Row], tool: str) -> float:
    """Return the median time that earlier runs took beyond their measuring time, so that all runs take equally long."""
    beyond = [row["wall_s"] - row["given_s"] for row in rows if row["tool"] == tool and row.get("given_s")]
    return statistics.median(beyond) if beyond else START_S[tool]


def _is_precise(found: Mapping[str, float]) -> bool:
    """Whether pytest-benchmark's precision rule was met at its default confidence, and not only its time used up."""
    z = statistics.NormalDist().inv_cdf(0.5 + PEER_CONFIDENCE / 2)
    return z * found["stddev"] / math.sqrt(found["rounds"]) <= PRECISION * found["mean"]


def _effbench(budget_s: float) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as scratch:
        arguments = [
            "run",
            SUITE,
            "--launches",
            "3",
            "--budget",
            f"{budget_s:.2f}s",
            "--json",
            "--out",
            f"{scratch}/run",
        ]
        done = process([sys.executable, "-m", "effbench", *arguments])
    for cell in json.loads(done.out)["cells"]:
        ratio, latency = cell["ratio"], cell["latency_s"]
        yield {
            "cell": cell["labels"]["cell"],
            "latency_s": latency["median"],
            "latency_low_s": latency["low"],
            "latency_high_s": latency["high"],
            "ratio": ratio["point"],
            "low": ratio["low"],
            "high": ratio["high"],
            "wall_s": done.wall_s,
            "given_s": budget_s,
        }


# --- what the rows say --------------------------------------------------------------------------------


def scatter(rows: Sequence[Row], figure: str) -> dict[str, float]:
    """Return, by cell, the standard deviation over runs of the log of a figure; 0.01 is about 1 %."""
    cells: dict[str, list[float]] = {}
    for row in rows:
        cells.setdefault(row["cell"], []).append(math.log(row[figure]))
    return {cell: statistics.stdev(values) for cell, values in cells.items() if len(values) > 1}


def root_mean_square(scatters: Mapping[str, float]) -> float | None:
    """Return the root mean square over cells."""
    return math.sqrt(statistics.fmean(value**2 for value in scatters.values())) if scatters else None


def count_true_claims(rows: Sequence[Row], made: Sequence[Row], figure: str) -> tuple[int, int]:
    """Return how many of the claims in `made` are true, and how many there are. `made` is a subset of one tool's
    `rows`.

    A claim is true if the figure lies within ±1 % of the cell's median over all *other* runs of the same tool.
    """
    near = [abs(row[figure] / truth - 1) <= PRECISION for row in made if (truth := _others(rows, row, figure))]
    return sum(near), len(near)


def count_covering_intervals(
    rows: Sequence[Row], made: Sequence[Row], figure: str, low: str, high: str
) -> tuple[int, int]:
    """Return how many printed 95 % intervals contain the median of the other runs, and how many intervals there are."""
    inside = [row[low] <= truth <= row[high] for row in made if (truth := _others(rows, row, figure))]
    return sum(inside), len(inside)


def _others(rows: Sequence[Row], row: Row, figure: str) -> float | None:
    values = [item[figure] for item in rows if item["cell"] == row["cell"] and item["run"] != row["run"]]
    return statistics.median(values) if values else None


def claims(rows: list[Row]) -> list[tuple[str, str, int, int]]:
    """Return for each tool and claim: tool, claim, how many are true, how many there are."""
    ours = [row for row in rows if row["tool"] == "effbench"]
    theirs = [row for row in rows if row["budget"] == "±1 %"]
    ratios = [row for row in ours if row.get("low") is not None]
    times = [row for row in ours if row.get("latency_low_s") is not None]
    sure_ratios = [row for row in ratios if _is_sure(row, "ratio", "low", "high")]
    sure_times = [row for row in times if _is_sure(row, "latency_s", "latency_low_s", "latency_high_s")]
    sure_peers = [row for row in theirs if row["is_precise"]]
    beside = [row for row in theirs if row["cell"] != REFERENCE]
    return [
        ("effbench", CLAIM, *count_true_claims(ours, sure_ratios, "ratio")),
        (
            "effbench",
            "latency, where its 95 % interval is at most ±1 % wide",
            *count_true_claims(ours, sure_times, "latency_s"),
        ),
        (
            "effbench",
            "ratio, the 95 % interval holds it",
            *count_covering_intervals(ours, ratios, "ratio", "low", "high"),
        ),
        (
            "effbench",
            "latency, the 95 % interval holds it",
            *count_covering_intervals(ours, times, "latency_s", "latency_low_s", "latency_high_s"),
        ),
        (
            "pytest-benchmark",
            "latency, `--benchmark-precision=0.01` reached",
            *count_true_claims(theirs, sure_peers, "latency_s"),
        ),
        ("pytest-benchmark", "ratio of two such figures (it claims none)", *count_true_claims(theirs, beside, "ratio")),
    ]


def _is_sure(row: Row, figure: str, low: str, high: str) -> bool:
    return bool((row[high] - row[low]) / 2 <= PRECISION * row[figure])


def section(rows: list[Row]) -> Section:
    ratios, lines = {}, []
    for tool, budget in TOOLS:
        mine = [row for row in rows if (row["tool"], row["budget"]) == (tool, budget)]
        if not mine:
            continue
        by_cell = scatter([row for row in mine if row["cell"] != REFERENCE], "ratio")
        ratios[tool, budget] = root_mean_square(by_cell)
        walls = [row["wall_s"] for row in mine if row["wall_s"]]
        budgets = {"equal": f"{RUN_S:g} s", "defaults": "its defaults"}
        shown = [percent(by_cell.get(str(case.labels["cell"])), 2) for case in CASES[1:]]
        latency = percent(root_mean_square(scatter(mine, "latency_s")), 2)
        wall = f"{statistics.median(walls):.1f} s" if walls else "–"
        lines.append(
            (tool, budgets.get(budget, f"until {budget}"), *shown, percent(ratios[tool, budget], 2), latency, wall)
        )
    ours = ratios.get(("effbench", "equal"))
    theirs = {tool: value for (tool, budget), value in ratios.items() if budget == "equal" and tool != "effbench"}
    best = min((value for value in theirs.values() if value is not None), default=None)
    runs = len({row["run"] for row in rows})
    said = claims(rows)
    (_, _, true, count), peers = said[0], said[4]
    return Section(
        [
            f"{runs} runs of each tool, in fresh processes, alternating in random order. A ratio is a cell's reported "
            f"time over that of the cell `{REFERENCE}`, as each tool reports them. The columns of cells show the "
            "standard deviation over runs of its logarithm, *all ratios* the root mean square over cells, *latency* "
            "the same of the plain times, and *took* the time from the start of a run's process to its end. effbench "
            "counts costs and starts three fresh processes within that time. Its ratios are of CPU time on one "
            "thread. The peers read the wall clock and report the median (the loop and `--benchmark-precision` the "
            "mean).",
            table(
                ("tool", "time", *(str(case.labels["cell"]) for case in CASES[1:]), "all ratios", "latency", "took"),
                lines,
            ),
            "How many of the claims of ±1 % are true: a claim is true where the result lies within 1 % of the median "
            "of the *other* runs of the same tool. effbench claims a precision by the interval over launches that it "
            "prints, pytest-benchmark by stopping at the precision that it was told.",
            table(
                ("tool", "claim", "claims", "true", "share", "95 % interval"),
                [(who, what, count, true, *share(true, count)) for who, what, true, count in said],
            ),
        ],
        [
            Target(
                "run-to-run spread of the reported ratio, at equal time",
                "≤ half of the best peer's",
                f"{percent(ours, 2)}, {ours / best:.2f} of the best peer's" if ours and best else "–",
                ", ".join(f"{tool} {percent(value, 2)}" for tool, value in theirs.items()),
                ours <= best / 2 if ours and best else None,
            ),
            Target(
                "claimed ±1 % that is true, real runs",
                "≥ 90 %",
                f"{true} of {count}" if count else "no claim was made",
                f"pytest-benchmark {peers[2]} of {peers[3]}",
                true >= 0.9 * count if count else None,
            ),
        ],
    )


def share(true: int, count: int) -> tuple[str, str]:
    if not count:
        return "–", "–"
    found = stats.proportion_interval(true, count)
    return percent(found.point, 0), f"[{percent(found.low, 0)}, {percent(found.high, 0)}]"


PART = Part("spread", "How far the reported figure scatters from run to run", plan, measure, seconds, section)
