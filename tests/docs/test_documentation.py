"""README and documentation pages: commands run, and figures equal those of the stored runs that they quote."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import measuring
import pytest
from projects import commit, git
from shell import effbench as command
from shell import records

import effbench

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
COUNTING = (ROOT / "docs" / "counting.md").read_text(encoding="utf-8")
BENCHMARKS = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
REFERENCE = ROOT / "results" / "reference" / "amd-epyc-zen5-kvm-2-cores"

PAGES_OF_COMMANDS = (README, (ROOT / "docs" / "commands.md").read_text(encoding="utf-8"))
COMMANDS = dict.fromkeys(
    line.partition("#")[0].strip()
    for page in PAGES_OF_COMMANDS
    for line in page.splitlines()
    if line.startswith("    effbench ") and "--install-completion" not in line and "fleet" not in line
)
"""Each command once, in the order of the pages: a bundle is written before it is measured. Those of a fleet need one:
test_recipes.py and tests/fleet have them.
"""

PART = {
    "batch_sweep": ("--select", "model=shufflenet_v2"),
    "full_models": ("--select", "level=40"),
    "guidelines_by_runtime": ("--select", "guideline=G2"),
    "metric_predicts_speed": ("--select", f"runs={REFERENCE / 'full_models'}"),
}
"""What the command runs on where its study is long: the whole ones are for test_every_experiment.py, which counts every
network of each, and for test_metric_predicts_speed.py.
"""

BUNDLE = {"bundle": ("--input", "3x32x32"), "run-bundle": ("--quick", "--launches", "1", "--budget", "1s")}
"""A small input, and a short look at it: a runtime needs a real clock. The bundled network is one of few layers."""

HEADLINES = (
    ("**G1**", "g1_channel_ratio_equal", "unequal is slower"),
    ("**G2**", "g2_groups", "groups are slower"),
    ("**G3** 4 fragments in series", "g3_fragmentation", "series fragments are slower"),
    ("**G3** 4 fragments in parallel", "g3_fragmentation", "parallel fragments are slower"),
    ("**G4**", "g4_elementwise", "ReLU and shortcut cost time"),
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the placeholders of README and pages exist."""
    folder = tmp_path_factory.mktemp("readme")
    net = folder / "path" / "to" / "net.py"
    net.parent.mkdir(parents=True)
    net.write_text(
        "import torch\n\n"
        "def build(width=8):\n    return torch.nn.Conv2d(3, width, 3)\n\n"
        "class two(torch.nn.Module):\n    def forward(self, x, ids):\n        return x.mean() + ids.float().mean()\n"
    )
    for name in ("ONE", "OTHER"):
        shutil.copytree(REFERENCE / "g2_groups", folder / "results" / "runs" / name)
    (folder / "effbench.toml").write_text('[models.small]\nmodel = "path/to/net.py:build"\ninput = "3x32x32"\n')
    git(folder, "init", "-q", ".")
    commit(folder, "begin")
    return folder


def test_the_readme_is_short_and_each_page_has_commands_to_try() -> None:
    assert len(README.splitlines()) <= 180 and README.count("![") == 1
    assert all(page.count("\n    effbench ") >= 8 for page in PAGES_OF_COMMANDS)


@pytest.mark.bulk
@pytest.mark.parametrize("line", COMMANDS)
def test_each_command_of_readme_and_pages_runs(line: str, home: Path) -> None:
    words = shlex.split(line)[1:]
    if words[0] in ("run", "compare") and "metric_predicts_speed" not in words:
        words += ["--device", "fake", "--quick", "--launches", "1"]
    if words[0] == "aa" or "--against" in words:
        words += ["--device", "fake", "--launches", "4"]
    if words[0] == "bundle":
        words[1] = "nin_cifar"
    if "--peaks" in words:
        words += ["--device", "fake"]
    words += BUNDLE.get(words[0], ())
    words += PART.get(words[1] if words[0] == "run" else "", ())
    done = command(*words, cwd=home, variables={measuring.UNTIMED_LAUNCHES: "1"})
    assert done.code == 0, done.err
    assert done.out


@pytest.mark.parametrize(("row", "study", "claim"), HEADLINES)
def test_the_headline_table_is_computed_from_the_stored_runs(row: str, study: str, claim: str) -> None:
    """Ratio, interval, the paper's ratio and the verdict, for each scale, as the page prints them."""
    line = next(line for line in RESULTS.splitlines() if line.startswith(f"| {row}"))
    printed = re.findall(r"([\d.]+) \[([\d.]+), ([\d.]+)\] \*([\d.]+)\* \**(\w+)", line)
    verdicts = [verdict for verdict in effbench.load(REFERENCE / study).verdicts if verdict.claim == claim]
    expected = []
    for verdict in verdicts:
        ratio, paper = verdict.headline.ratio, verdict.headline.paper_ratio
        assert ratio is not None and ratio.low is not None and ratio.high is not None and paper is not None
        numbers = (ratio.point, ratio.low, ratio.high, paper)
        expected.append((*(f"{number:.2f}" for number in numbers), verdict.verdict))
    assert printed == expected and len(printed) == 3


def test_the_table_of_whole_networks_is_the_stored_run() -> None:
    """Each ratio with its interval and the paper's, and the latency of each level's reference."""
    expected = []
    for cell in effbench.load(REFERENCE / "full_models").cells:
        assert cell.ratio and cell.latency
        if cell.ratio.low is None:
            expected.append(f"{1e3 * cell.latency.point:.1f} ms")
        elif cell.paper_ratio is not None:
            numbers = (cell.ratio.point, cell.ratio.low, cell.ratio.high, cell.paper_ratio)
            expected.append("{:.2f} [{:.2f}, {:.2f}] *{:.2f}*".format(*numbers))
    table = RESULTS.partition("## Whole networks")[2].partition("MobileNetV1, the simplest")[0]
    printed = re.findall(r"[\d.]+ ms|[\d.]+ \[[\d., ]+\] \*[\d.]+\*", table)
    assert len(printed) == 23 and set(printed) <= set(expected)


def test_the_shares_of_time_it_quotes() -> None:
    """Of ShuffleNetV2 0.5x: the max pooling, and what is spent between operators, means over launches."""
    results = effbench.load(REFERENCE / "runtime_breakdown_small")
    launches = [launch.breakdowns["model=shufflenet_v2_x0_5"] for launch in results.run.launches]
    pooling = statistics.mean(
        sum(item.seconds for item in one.operators if item.called == "aten::max_pool2d") / one.alone_s
        for one in launches
    )
    between = statistics.mean(1 - sum(item.seconds for item in one.operators) / one.alone_s for one in launches)
    text = RESULTS.replace("\n", " ")
    assert f"{100 * pooling:.0f} % of the 0.5× network's time is one operator" in text
    assert f"{100 * between:.0f} % is spent between operators" in text


def test_the_rank_agreement_it_quotes() -> None:
    found = {
        item["metric"]: item["tau_within_group"]
        for item in effbench.load(REFERENCE / "full_models").to_dict()["ranking"]
    }
    for metric in ("madds", "memory access, epilogue"):
        tau = found[metric]
        assert "{point:.2f} [{low:.2f}, {high:.2f}]".format(**tau).replace("-", "−") in RESULTS.replace("\n", " ")


def test_the_prediction_errors_it_quotes_are_the_stored_ones() -> None:
    """And the stored ones are what the analysis finds today: its own tests hold that."""
    with (ROOT / "results" / "metric_predicts_speed" / "table.csv").open(encoding="utf-8") as file:
        rows = {(row["device"], row["predicted from"]): row for row in csv.DictReader(file)}
    for metric in ("multiply-adds", "multiply-adds + memory access, eager"):
        row = rows["RTX 4090, eager AMP", metric]
        point, low, high = (100 * float(value) for value in list(row.values())[2:5])
        assert f"{point:.1f} % [{low:.1f}, {high:.1f}]" in RESULTS.replace("\n", " ")


def test_the_difference_of_two_identical_runs_it_quotes() -> None:
    first, again = (effbench.load(REFERENCE / name).cells for name in ("g2_groups", "g2_groups_again"))
    differences = [
        abs(two.ratio.point / one.ratio.point - 1)
        for one, two in zip(first, again, strict=True)
        if one.ratio and two.ratio and one.ratio.low is not None
    ]
    assert len(differences) == 9
    middle, largest = statistics.median(differences), max(differences)
    assert f"differed by {100 * middle:.1f} % in the median ratio, and by {100 * largest:.1f} % at most" in RESULTS


def test_the_memory_access_levels_it_quotes() -> None:
    levels = effbench.profile("shufflenet_v2").cost.memory_access_levels
    quoted = {name: float(number) for name, number in re.findall(r"^\| `(\w+)` \|.*\| ([\d.]+) M \|$", COUNTING, re.M)}
    assert quoted == {name: float(f"{level.elements / 1e6:.3g}") for name, level in levels.items()}


def test_what_it_says_of_the_gate_was_measured() -> None:
    """Alarms, power and time, from the raw rows of the benchmarks."""
    folder = ROOT / "results" / "benchmarks" / "amd-epyc-zen5-kvm-2-cores"

    def rows(part: str) -> list[dict[str, Any]]:
        entries = [json.loads(line) for line in (folder / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()]
        return [{**entry["task"], **row} for entry in entries for row in entry["rows"]]

    text = " ".join(RESULTS.split())
    (resampled,) = (row for row in rows("alarm") if row["kind"] == "resampled")
    none = next(item for item in resampled["gate"] if not item["slowdown"])
    assert (none["suite_regression"]["point"], resampled["suites"], resampled["recorded"]) == (0, 300, 20)
    peers = sorted(item["suite_alarm"]["point"] for item in resampled["rules"] if item["arrangement"] == "sequential")
    assert peers[0] == 0 and f"in {100 * peers[1]:.0f} to {100 * peers[-1]:.0f} % of suites" in text
    said = Counter(row["verdict"] for row in rows("alarm") if row["kind"] == "real")
    assert (
        f"In {said.total()} real gates on unchanged code: no alarm, {said['PASS']} PASS, {said['INCONCLUSIVE']}" in text
    )
    assert said["PASS"] + said["INCONCLUSIVE"] == said.total()
    called = Counter(row["verdict"] for row in rows("power") if row["slowdown"] == 0.05)
    assert (
        f"{called['REGRESSION']} of {called.total()} gates said REGRESSION, {called['INCONCLUSIVE']} INCONCLUSIVE"
        in text
    )
    assert called["PASS"] == 0
    held = re.search(r"effbench \| ratio, the 95 % interval holds it .*? (\d+ %) \|", BENCHMARKS)
    assert held and f"held the other runs' median in {held[1]} of cases" in text
    assert f"take {statistics.median(row['wall_s'] for row in rows('gate_time')):.0f} s" in text


PAGES = ["README.md", "CONTRIBUTING.md", "results/README.md", "experiments/README.md", "notebooks/README.md"]


@pytest.mark.parametrize("name", [*PAGES, *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_links_and_paths_lead_somewhere(name: str) -> None:
    path = ROOT / name
    text = path.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("http") or (path.parent / link).exists(), link
    for file in re.findall(r"`((?:effbench|tests|experiments|benchmarks)/[\w/.]+)`", text):
        assert (ROOT / file).exists(), file


@pytest.mark.parametrize("study", sorted(path.parent.name for path in REFERENCE.glob("*/run.jsonl")))
def test_committed_runs_are_whole_clean_and_real(study: str) -> None:
    """Complete, from committed code, on real hardware, and its verdicts are still what the code says."""
    results = effbench.load(REFERENCE / study)
    run = results.run
    assert run.complete
    assert run.environment.facts["effbench.dirty"] is False
    assert run.environment.device == "cpu" and run.command.startswith("effbench ")
    for name in ("table.md", "table.csv", "figure.png", "figure.svg"):
        assert (REFERENCE / study / name).is_file()
    for written in (record for record in records(REFERENCE / study) if record["kind"] == "verdicts"):
        # Runs of before 0.5 hold what was concluded then.
        assert [item["verdict"] for item in written["verdicts"]] == [verdict.verdict for verdict in results.verdicts]


def test_the_figures_by_runtime_are_those_of_the_stored_run() -> None:
    """Every ratio with an interval in that section is the headline of a verdict of the run that it shows."""
    section = RESULTS.partition("## Under deployment runtimes")[2].partition("\n## ")[0].replace("\n", " ")
    printed = re.findall(r"([\d.]+) \[([\d.]+), ([\d.]+)\]", section)
    verdicts = effbench.load(REFERENCE / "guidelines_by_runtime").verdicts
    ratios = [verdict.headline.ratio for verdict in verdicts if verdict.headline.ratio is not None]
    stored = {tuple(f"{value:.2f}" for value in (ratio.point, ratio.low or 0, ratio.high or 0)) for ratio in ratios}
    assert len(printed) == 5 and set(printed) <= stored
    held = {verdict.claim[:2] for verdict in verdicts} - {
        verdict.claim[:2] for verdict in verdicts if verdict.verdict != "holds"
    }
    assert held == {"G1", "G2", "G4"}, "what holds under every runtime"
