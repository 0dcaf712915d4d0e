"""Measure whether intervals hold on the next sitting: runs in different quarters of hours, and verdicts of G1 to G4.

Every sitting begins in another quarter of an hour than the one before and runs effbench, its peers and the four
guideline studies once. The machine is used for other work meanwhile, as it happens to be. Intervals are computed from
the raw blocks in the order of the sittings, each with the history that the machine had then. The last task measures
nothing: it takes launches of different sittings together, as `--spread` would have carried them out.
"""

from __future__ import annotations

import datetime
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.peers import spread
from benchmarks.peers.session import Ledger, Part, Row, Section, Target, Task, process
from benchmarks.peers.spread import count_covering_intervals, count_true_claims, root_mean_square, scatter, share
from benchmarks.peers.tables import percent, table
from effbench.analysis import between_sittings, summary, verdicts
from effbench.analysis.between_sittings import Sitting
from effbench.core.run import Run
from effbench.runs import run_file, sitting_ledger

SITTINGS = 12
QUARTER_S = 900.0
LAUNCHES, BUDGET_S = 5, 30.0
STUDIES = ("g1_channel_ratio", "g2_groups", "g3_fragmentation", "g4_elementwise")
PEERS = ("torch Timer", "timm-style loop", "pytest-benchmark")
SPREAD = 5
"""Sittings over which the launches of a spread run are distributed, one launch each."""
PRECISION = 0.01
WANTED = {"coverage": 0.93, "half width": 0.02, "claims": 0.9}


def plan(is_smoke: bool) -> list[Task]:
    tasks: list[Task] = []
    for run in range(1 if is_smoke else SITTINGS):
        tools = [{"run": run, "tool": tool, "budget": "equal"} for tool in ("effbench", *PEERS)]
        studies = [{"run": run, "study": study} for study in STUDIES]
        tasks += tools[:2] if is_smoke else [*tools, *studies]
    return tasks if is_smoke else [*tasks, {"run": SITTINGS, "spread": SPREAD}]


def seconds(task: Task) -> float:
    return 10.0 if "spread" in task else QUARTER_S / (1 + len(PEERS) + len(STUDIES))


def measure(task: Task, folder: Path) -> Iterator[Row]:
    """Yield a row per cell of a tool, or one per verdict of a study. Waits for another quarter of an hour first."""
    if "spread" in task:
        suites = [run_file.load(path) for path in (folder / "sittings").glob("suite_*")]
        yield from rows_of_spread_runs(with_history(suites), task["spread"])
        return
    _wait_for_quarter(task, folder)
    if task.get("tool") in PEERS:
        yield from spread.measure(task, folder)
        return
    study = task.get("study")
    name = str(study or "suite")
    out = folder / "sittings" / f"{name}_{task['run']:02}"
    words = [study or spread.SUITE, "--launches", LAUNCHES, "--budget", f"{BUDGET_S}s", "--json", "--out", out]
    run = [sys.executable, "-m", "effbench", "run"]
    done = None if out.exists() else process([*run, *words], codes=(0, 4))
    if done is None or done.code:  # interrupted, or disturbed by others: it goes on regardless
        process([*run, "--resume", out])
    for made in out.iterdir():
        if made.name != run_file.RUN_FILE:
            made.unlink()
    runs = with_history([run_file.load(path) for path in out.parent.iterdir()])
    found = next(run for run in runs if run.path == str(out / run_file.RUN_FILE))
    yield from rows_of_study(found) if study else rows_of_suite(found)


def _wait_for_quarter(task: Task, folder: Path) -> None:
    """Wait until the quarter of an hour differs from those of earlier sittings. The machine is free meanwhile."""
    earlier = {_quarter(entry["at"]) for entry in _entries(folder) if entry["task"]["run"] < task["run"]}
    while _quarter(datetime.datetime.now(datetime.timezone.utc).isoformat()) in earlier:
        time.sleep(5.0)


def _entries(folder: Path) -> list[Mapping[str, Row]]:
    return Ledger(folder / f"{PART.name}.jsonl").entries()


def _quarter(at: str) -> int:
    return int(datetime.datetime.fromisoformat(at).timestamp() // QUARTER_S)


# --- what the runs say --------------------------------------------------------------------------------------------


def with_history(runs: Iterable[Run]) -> list[Run]:
    """Return the runs of one machine in order of time, each with the scatter that its ledger showed before it."""
    ledger: list[Sitting] = []
    found = []
    for run in sorted(runs, key=lambda run: run.launches[0].start):
        keys = {result.cell.id: f"{run.experiment.name}: {result.cell.id}" for result in run.results}
        found.append(replace(run, between_sittings=between_sittings.estimate(ledger, keys)))
        ledger += sitting_ledger.sittings_of(_with_yardstick(run), keys, "")
    return found


def _with_yardstick(run: Run) -> Run:
    """Return the run; of runs that measured the two convolutions as cells, with these as its yardstick."""
    found = {str(result.cell.case.labels["cell"]): result for result in run if "cell" in result.cell.case.labels}
    cells = {name: found.get(f"yard {name}") for name in ("dense", "depthwise")}
    if any(launch.yardstick for launch in run.launches) or None in cells.values():
        return run
    launches = []
    for launch in run.launches:
        blocks = {
            name: tuple(block.timing for block in result.blocks if block.launch == launch.number)
            for name, result in cells.items()
            if result is not None
        }
        launches.append(replace(launch, yardstick=blocks))
    return replace(run, launches=tuple(launches))


def rows_of_suite(run: Run) -> list[Row]:
    """Return a row per cell: estimates with the interval of now, and with that within the sitting."""
    within = {cell.cell.id: cell for cell in summary.summarise(replace(run, between_sittings=None))}
    rows = []
    for cell in summary.summarise(run):
        name, old = str(cell.cell.case.labels["cell"]), within[cell.cell.id]
        if name.startswith("yard ") or cell.latency is None or cell.ratio is None:
            continue
        assert old.latency is not None and old.ratio is not None
        rows.append(
            {
                "cell": name,
                "latency_s": cell.latency.point,
                "latency_low_s": cell.latency.low,
                "latency_high_s": cell.latency.high,
                "latency_low_within_s": old.latency.low,
                "latency_high_within_s": old.latency.high,
                "ratio": cell.ratio.point,
                "low": cell.ratio.low,
                "high": cell.ratio.high,
                "low_within": old.ratio.low,
                "high_within": old.ratio.high,
                "flags": list(cell.flags),
                "began": run.launches[0].start,
                "commit": run.environment.facts.get("effbench.commit"),
                "load_1m": run.environment.facts.get("host.load_1m"),
                "other_cores": _other_cores(run),
                "wall_s": sum(launch.used_s or 0.0 for launch in run.launches),
            }
        )
    return rows


def rows_of_spread_runs(runs: Sequence[Run], number: int) -> list[Row]:
    """Return the rows of runs whose launches lie in `number` sittings, one launch in each.

    They are put together from runs of one sitting each, in order of time: the first launches of the first `number`
    runs, then their second launches, and so on; then of the next `number` runs.
    """
    found = []
    for first in range(0, len(runs) - number + 1, number):
        group = runs[first : first + number]
        for place in range(min(len(run.launches) for run in group)):
            for row in rows_of_suite(_spread_run(group, place)):
                found.append({**row, "sittings": [first, first + number - 1], "launch": place})
    return found


def _spread_run(runs: Sequence[Run], place: int) -> Run:
    """Return a run made of one launch of each of these runs."""
    launches = [replace(run.launches[place], number=number, slot=number) for number, run in enumerate(runs)]
    results = [
        replace(
            result,
            blocks=tuple(
                replace(block, launch=number)
                for number, run in enumerate(runs)
                for block in run.result(result.cell.id).blocks
                if block.launch == run.launches[place].number
            ),
        )
        for result in runs[0]
    ]
    return replace(runs[0], launches=tuple(launches), results=tuple(results))


def _other_cores(run: Run) -> float:
    """Return the mean number of cores that other processes kept busy during the launches."""
    found = [launch.at_end.other_cores or 0.0 for launch in run.launches if launch.at_end is not None]
    return round(statistics.fmean(found), 2) if found else 0.0


def rows_of_study(run: Run) -> list[Row]:
    """Return a row per verdict, with the one that intervals within the sitting would give."""
    pairs = zip(verdicts.judge(run), verdicts.judge(replace(run, between_sittings=None)), strict=True)
    return [
        {
            "claim": verdict.claim,
            "group": json.dumps(dict(verdict.group), sort_keys=True),
            "verdict": verdict.verdict,
            "within": within.verdict,
            "ratio": None if verdict.headline.ratio is None else verdict.headline.ratio.point,
        }
        for verdict, within in pairs
    ]


# --- what the rows say --------------------------------------------------------------------------------------------

_FIGURES = {
    "ratio": ("ratio", "low", "high", "low_within", "high_within"),
    "latency": ("latency_s", "latency_low_s", "latency_high_s", "latency_low_within_s", "latency_high_within_s"),
}


def section(rows: list[Row]) -> Section:
    ours = [row for row in rows if row.get("tool") == "effbench"]
    judged = [row for row in rows if "verdict" in row]
    blocks, targets = [], []
    if ours:
        clean = [row for row in ours if "contaminated" not in row["flags"]]
        spread_runs = [row for row in rows if "spread" in row]
        blocks += [_about(ours), _scatter_table(rows), _CLAIMS, _claims_table({"not flagged": clean, "all": ours})]
        if spread_runs:
            blocks += [_SPREAD, _spread_table(ours, spread_runs)]
        targets += _claims_targets(clean)
    if judged:
        text, flips = _verdicts_table(judged)
        blocks += [_VERDICTS, text]
        runs = min(
            len({row["run"] for row in judged if row["study"] == study}) for study in {r["study"] for r in judged}
        )
        targets.append(
            Target(
                f"verdicts that flip between holds and fails in {runs} repetitions of G1 to G4",
                "none",
                f"{len(flips)} of {len(_by_claim(judged))} claims",
                "none judges",
                not flips,
            )
        )
    return Section(blocks, targets)


_VERDICTS = (
    "How often each claim of G1 to G4 was judged to hold, to fail or to be unsure, over all scales, with the scatter "
    "between sittings and without it (as 0.4 judged). A flip is a claim at one scale that held in one sitting and "
    "failed in another."
)


def _about(ours: Sequence[Row]) -> str:
    runs = sorted({(row["run"], row["began"][11:16]) for row in ours})
    busy = [row["other_cores"] for row in ours]
    commits = dict.fromkeys(str(row["commit"])[:7] for row in ours)
    flagged = sum("contaminated" in row["flags"] for row in ours)
    return (
        f"{len(runs)} sittings, which began at {', '.join(at for _, at in runs)} (UTC). Other processes kept "
        f"{min(busy):.1f} to {max(busy):.1f} cores busy meanwhile, {statistics.median(busy):.1f} in the median, and "
        f"{flagged} of {len(ours)} cells were flagged as contaminated. Each run of effbench has {LAUNCHES} launches in "
        f"{BUDGET_S:.0f} s; the peers have {spread.RUN_S:.0f} s. The runs were measured by effbench "
        f"{', '.join(commits)}. Their intervals are computed by the code of this page, each with the history that the "
        "runs before it give."
    )


def _scatter_table(rows: Sequence[Row]) -> str:
    lines = []
    for tool in ("effbench", *PEERS):
        mine = [row for row in rows if row.get("tool") == tool]
        if mine:
            by_cell = scatter([row for row in mine if row["cell"] != spread.REFERENCE], "ratio")
            names = [str(case.labels["cell"]) for case in spread.CASES[1:]]
            latency = percent(root_mean_square(scatter(mine, "latency_s")), 1)
            shown = [percent(by_cell.get(name), 1) for name in names]
            lines.append((tool, *shown, percent(root_mean_square(by_cell), 1), latency))
    heads = [str(case.labels["cell"]) for case in spread.CASES[1:]]
    return table(("standard deviation between sittings", *heads, "all ratios", "latency"), lines)


_CLAIMS = (
    "An interval holds if it contains the median of the *other* sittings. *Within the sitting* is the interval of 0.4, "
    "over the launches of the run alone. A claim of ±1 % is an interval of at most that half width. Cells that others "
    "disturbed are flagged as contaminated, and effbench claims nothing for them; the targets are for cells without "
    "that flag, among the sittings in which they have none."
)


def _claims(ours: Sequence[Row]) -> list[tuple[str, str, int, int, float | None, int, int]]:
    """Return for each figure and interval: how many hold, how many there are, their median half width, and how many
    claims of ±1 % are true, of how many.
    """
    found = []
    for figure, (value, low, high, low_within, high_within) in _FIGURES.items():
        for name, ends in (
            ("with the scatter between sittings", (low, high)),
            ("within the sitting", (low_within, high_within)),
        ):
            made = [row for row in ours if row[ends[0]] is not None]
            held, every = count_covering_intervals(list(ours), made, value, *ends)
            widths = [(row[ends[1]] - row[ends[0]]) / 2 / row[value] for row in made]
            sure = [row for row, width in zip(made, widths, strict=True) if width <= PRECISION]
            true, claimed = count_true_claims(list(ours), sure, value)
            found.append((figure, name, held, every, statistics.median(widths) if widths else None, true, claimed))
    return found


def _claims_table(groups: Mapping[str, Sequence[Row]]) -> str:
    heads = (
        "cells",
        "figure",
        "95 % interval",
        "hold",
        "share",
        "of the share",
        "median half width",
        "±1 % claimed",
        "true",
    )
    return table(
        heads,
        [
            (kind, figure, name, f"{held} of {every}", *share(held, every), f"±{percent(width)}", claimed, true)
            for kind, rows in groups.items()
            for figure, name, held, every, width, true, claimed in _claims(rows)
        ],
    )


_SPREAD = (
    f"What `--spread` would have given: the first launches of {SPREAD} runs that follow each other are taken as one "
    "run, their second launches as another, and so on. These runs share sittings, so they are not independent of each "
    "other. An interval holds if it contains the median of the sittings in which the run has no launch. All cells "
    "count, also flagged ones."
)


def _spread_table(ours: Sequence[Row], spread_runs: Sequence[Row]) -> str:
    lines = []
    for figure, (value, low, high, *_) in _FIGURES.items():
        made = [row for row in spread_runs if row[low] is not None and row[low] < row[high]]
        held = 0
        for row in made:
            first, last = row["sittings"]
            others = [item[value] for item in ours if item["cell"] == row["cell"] and not first <= item["run"] <= last]
            held += row[low] <= statistics.median(others) <= row[high]
        widths = [(row[high] - row[low]) / 2 / row[value] for row in made]
        lines.append(
            (figure, f"{held} of {len(made)}", *share(held, len(made)), f"±{percent(statistics.median(widths))}")
        )
    return table(("figure", "hold", "share", "of the share", "median half width"), lines)


def _claims_targets(ours: Sequence[Row]) -> list[Target]:
    said = {(figure, name): rest for figure, name, *rest in _claims(ours)}
    targets, true, claimed = [], 0, 0
    for figure in _FIGURES:
        held, every, width, right, made = said[figure, "with the scatter between sittings"]
        if not every:
            continue
        old = said[figure, "within the sitting"]
        true, claimed = true + right, claimed + made
        targets.append(
            Target(
                f"95 % intervals that hold on other sittings: {figure}",
                f"≥ {percent(WANTED['coverage'], 0)}",
                f"{held} of {every}, {percent(held / every, 0)} (within the sitting: {percent(old[0] / old[1], 0)})",
                "none gives such an interval",
                held >= WANTED["coverage"] * every,
            )
        )
        targets.append(
            Target(
                f"their median half width: {figure}",
                f"≤ {percent(WANTED['half width'], 0)}",
                f"{percent(width)} (within the sitting: {percent(old[2])})",
                "–",
                width is not None and width <= WANTED["half width"],
            )
        )
    targets.append(
        Target(
            "claimed ±1 % that is true on other sittings",
            f"≥ {percent(WANTED['claims'], 0)}",
            f"{true} of {claimed}" if claimed else "no claim was made",
            "–",
            true >= WANTED["claims"] * claimed if claimed else None,
        )
    )
    return targets


def _by_claim(judged: Sequence[Row]) -> dict[tuple[str, str, str], list[Row]]:
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in judged:
        found.setdefault((row["study"], row["claim"], row["group"]), []).append(row)
    return found


def _verdicts_table(judged: Sequence[Row]) -> tuple[str, list[tuple[str, str, str]]]:
    """Return the table of verdicts, and the claims that flipped."""
    by_claim = _by_claim(judged)
    flips = {
        kind: [key for key, rows in by_claim.items() if {"holds", "fails"} <= {row[kind] for row in rows}]
        for kind in ("verdict", "within")
    }
    lines = []
    for study, claim in dict.fromkeys((row["study"], row["claim"]) for row in judged):
        mine = [row for row in judged if (row["study"], row["claim"]) == (study, claim)]
        now, old = (Counter(row[kind] for row in mine) for kind in ("verdict", "within"))
        lines.append(
            (
                f"{study}: {claim}",
                *(now[word] for word in ("holds", "fails", "unsure")),
                sum(key[:2] == (study, claim) for key in flips["verdict"]),
                *(old[word] for word in ("holds", "fails", "unsure")),
                sum(key[:2] == (study, claim) for key in flips["within"]),
            )
        )
    heads = ("claim", "holds", "fails", "unsure", "flips", "0.4: holds", "fails", "unsure", "flips")
    return table(heads, lines), flips["verdict"]


PART = Part("sittings", "Do intervals hold on the next sitting?", plan, measure, seconds, section)
