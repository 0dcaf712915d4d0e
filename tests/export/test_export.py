"""What other tools read from an exported run is what its raw blocks say: each format goes through its real consumer.

Bencher and github-action-benchmark have no reader in Python: their published formats stand here as schemas.
"""

from __future__ import annotations

import csv
import inspect
import io
import json
import math
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pandas
import prometheus_client.openmetrics.parser
import prometheus_client.parser
import pyperf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nursery import HANGS_S
from runs import CELLS, run_of, study, with_blocks
from shell import effbench, environment, records, study_file

from effbench import export
from effbench.cli import main, runs
from effbench.cli.options import complete_format
from effbench.core.errors import CorruptRun, InvalidValue
from effbench.core.run import Run
from effbench.core.study import Case
from effbench.results import Results
from effbench.runs import run_file

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "results" / "reference" / "amd-epyc-zen5-kvm-2-cores"
EXPORTS = (ROOT / "docs" / "exports.md").read_text(encoding="utf-8")

# bencher.dev/bmf.json, as published, with what its documentation adds: names are not empty, a measure's name has at
# most 64 characters and a benchmark's at most 1024.
BMF = {
    "type": "object",
    "minProperties": 1,
    "propertyNames": {"minLength": 1, "maxLength": 1024},
    "additionalProperties": {
        "type": "object",
        "minProperties": 1,
        "propertyNames": {"pattern": "^[a-z0-9-]{1,64}$"},
        "additionalProperties": {
            "type": "object",
            "properties": {name: {"type": "number"} for name in ("value", "lower_value", "upper_value")},
            "required": ["value"],
            "additionalProperties": False,
        },
    },
}

# The README of benchmark-action/github-action-benchmark ("custom benchmark"), and extractRangeInfo.ts, which takes a
# number behind the sign.
GITHUB_ACTION = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1},
            "unit": {"type": "string", "minLength": 1},
            "value": {"type": "number", "exclusiveMinimum": 0},
            "range": {"type": "string", "pattern": r"^± \d[\d.e+-]*$"},
            "extra": {"type": "string"},
        },
        "required": ["name", "unit", "value"],
        "additionalProperties": False,
    },
}


def texts(run: Run, name: str, **options: Any) -> list[str]:
    return list(export.export(run, name, **options).texts.values())


def names_read(name: str, text: str) -> list[str]:
    """The cells that the consumer of this format sees in a text; it raises where the text is not in the format."""
    if name == "pytest-benchmark":
        return [benchmark["fullname"] for benchmark in json.loads(text)["benchmarks"]]
    if name == "pyperf":
        return list(pyperf.BenchmarkSuite.loads(text).get_benchmark_names())
    if name == "bmf":
        found = json.loads(text)
        jsonschema.validate(found, BMF)
        return list(found)
    if name == "github-action":
        found = json.loads(text)
        jsonschema.validate(found, GITHUB_ACTION)
        return [entry["name"] for entry in found]
    if name == "openmetrics":
        return [sample.labels["cell"] for sample in families(text)["effbench_latency_seconds"].samples]
    return [row["id"] for row in csv.DictReader(io.StringIO(text))]


def families(text: str) -> dict[str, Any]:
    found = prometheus_client.openmetrics.parser.text_string_to_metric_families(text)
    return {family.name: family for family in found}


@pytest.fixture(scope="module")
def run() -> Run:
    return run_file.load(REFERENCE / "g2_groups")


@pytest.fixture(scope="module")
def raw() -> dict[str, dict[int, list[tuple[int, float]]]]:
    """Calls and wall seconds per call of the undisturbed blocks, by cell and launch, read without effbench."""
    blocks = [record for record in records(REFERENCE / "g2_groups") if record["kind"] == "block"]
    found: dict[str, dict[int, list[tuple[int, float]]]] = {}
    for cell in (result.cell.id for result in run_file.load(REFERENCE / "g2_groups")):
        own = [block for block in blocks if block["cell"] == cell]
        quiet = [block for block in own if not block["timing"].get("flags")]
        assert len(own) - len(quiet) <= len(own) / 10, "this test wants a run without contaminated cells"
        for block in quiet:
            timing = block["timing"]
            value = (timing["calls"], timing["wall_ns"] / timing["calls"] * 1e-9)
            found.setdefault(f"g2_groups[{cell}]", {}).setdefault(block["launch"], []).append(value)
    assert any("flags" in block["timing"] for block in blocks), "and disturbed blocks to leave out"
    return found


def latency_of(launches: Mapping[int, list[tuple[int, float]]]) -> float:
    """The median over launches of each launch's median, on logarithms."""
    medians = [statistics.median(math.log(seconds) for _, seconds in blocks) for blocks in launches.values()]
    return math.exp(statistics.median(medians))


# --- one format at a time ----------------------------------------------------------------------------


def test_pytest_benchmark_reads_the_medians_of_the_raw_blocks(run: Run, raw: Any, tmp_path: Path) -> None:
    """In its own storage, with its own command, which writes what it read as CSV."""
    stored = tmp_path / ".benchmarks" / "machine"
    stored.mkdir(parents=True)
    again = run_file.load(REFERENCE / "g2_groups_again")
    for name, item in (("0001_before", run), ("0002_after", again)):
        (stored / f"{name}.json").write_text(texts(item, "pytest-benchmark")[0])
    columns = ("min", "mean", "stddev", "median", "rounds", "iterations")
    command = ["compare", "0001", "0002", "--csv=seen.csv", f"--columns={','.join(columns)}", "--name=long"]
    done = consumer("pytest_benchmark", *command, cwd=tmp_path)
    assert "24 tests" in done
    seen = list(csv.DictReader(io.StringIO((tmp_path / "seen.csv").read_text())))
    assert {row["param:groups"] for row in seen} == {"1", "2", "4", "8"}
    assert len(seen) == 24
    for name, launches in raw.items():
        values = [seconds for blocks in launches.values() for _, seconds in blocks]
        wanted = (
            min(values),
            statistics.mean(values),
            statistics.stdev(values),
            statistics.median(values),
            len(values),
            launches[0][0][0],
        )
        rows = [row for row in seen if row["name"] == name]
        assert len(rows) == 2
        assert tuple(map(float, wanted)) in [tuple(float(row[column]) for column in columns) for row in rows]


def test_the_file_has_what_pytest_benchmark_writes_itself(run: Run, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_it(benchmark):\n    benchmark.pedantic(int, rounds=2)\n")
    consumer("pytest", "-q", "-p", "no:cacheprovider", "--benchmark-json=own.json", "test_it.py", cwd=tmp_path)
    own, ours = json.loads((tmp_path / "own.json").read_text()), json.loads(texts(run, "pytest-benchmark")[0])
    assert own.keys() == ours.keys() and own["commit_info"].keys() == ours["commit_info"].keys()
    assert ours["machine_info"].keys() <= own["machine_info"].keys()
    (theirs,) = own["benchmarks"]
    for benchmark in ours["benchmarks"]:
        assert benchmark.keys() == theirs.keys() and benchmark["stats"].keys() == theirs["stats"].keys()
        assert benchmark["options"].keys() <= theirs["options"].keys()


def test_pytest_benchmark_gets_costs_and_conditions_beside_the_times(run: Run) -> None:
    header, *cells = records(REFERENCE / "g2_groups")
    counted = {json.dumps(item["cell"]["case"]["labels"]): item["cost"] for item in cells if item["kind"] == "cell"}
    for benchmark in json.loads(texts(run, "pytest-benchmark")[0])["benchmarks"]:
        ours = benchmark["extra_info"]["effbench"]
        cost = counted[json.dumps(benchmark["params"])]
        assert (ours["costs"]["madds"], ours["costs"]["params"]) == (cost["madds"], cost["params"])
        assert ours["environment"]["fingerprint"] == header["environment"]["facts"]["host.fingerprint"]
        assert ours["latency_s"].keys() == {"median", "low", "high"} and ours["ratio"]["point"] >= 1
        assert ours["clock"] == "cpu"


def test_pyperf_reads_launches_as_runs_and_blocks_as_values(run: Run, raw: Any) -> None:
    suite = pyperf.BenchmarkSuite.loads(texts(run, "pyperf", values="all")[0])
    assert suite.get_benchmark_names() == list(raw)
    for name, launches in raw.items():
        found = suite.get_benchmark(name)
        values = [seconds for blocks in launches.values() for _, seconds in blocks]
        assert found.get_nrun() == len(launches) and found.get_loops() == launches[0][0][0]
        assert [list(item.values) for item in found.get_runs()] == [[s for _, s in b] for b in launches.values()]
        assert found.mean() == statistics.mean(values) and found.median() == statistics.median(values)
        assert all(len(item.warmups) == 1 for item in found.get_runs())
    assert suite.get_metadata()["cpu_model_name"] == "AMD EPYC" and suite.get_metadata()["unit"] == "second"


def test_pyperf_gets_equal_numbers_without_which_it_calls_everything_significant(run: Run, raw: Any) -> None:
    """`pyperf._utils.tscore` raises for unequal ones, and `compare_to` takes that for a difference."""
    least = min(len(blocks) for launches in raw.values() for blocks in launches.values())
    for values, wanted in ((None, run.sampling.min_rounds), (3, 3), (least, least)):
        suite = pyperf.BenchmarkSuite.loads(texts(run, "pyperf", values=values)[0])
        for name, launches in raw.items():
            for item, blocks in zip(suite.get_benchmark(name).get_runs(), launches.values(), strict=True):
                own = [seconds for _, seconds in blocks]
                assert len(item.values) == wanted
                places = [own.index(value) for value in item.values]
                assert places == sorted(set(places)), "blocks in their order, none twice"
                gaps = [after - before for before, after in pairwise(places)]
                assert not gaps or max(gaps) - min(gaps) <= 1, "evenly spread over the launch"
                assert places[0] < len(own) / wanted and places[-1] >= len(own) - len(own) / wanted - 1
    with pytest.raises(InvalidValue, match=f"expected 1 to {least}"):
        export.export(run, "pyperf", values=least + 1)


def test_bencher_gets_nanoseconds_with_our_interval(run: Run, raw: Any) -> None:
    (text,) = texts(run, "bmf")
    assert names_read("bmf", text) == list(raw)
    for cell, measures in zip(Results(run).cells, json.loads(text).values(), strict=True):
        latency, throughput = measures["latency"], measures["throughput"]
        wanted = latency_of(raw[f"g2_groups[{cell.cell.id}]"])
        assert latency["value"] == pytest.approx(1e9 * wanted, rel=1e-12)
        assert throughput["value"] == pytest.approx(cell.cell.batch / wanted, rel=1e-12)
        assert cell.latency is not None and cell.latency.low is not None
        assert latency["lower_value"] == pytest.approx(1e9 * cell.latency.low)
        assert latency["lower_value"] <= latency["value"] <= latency["upper_value"]
        assert throughput["upper_value"] == pytest.approx(1e9 / latency["lower_value"])
        assert throughput["lower_value"] <= throughput["value"] <= throughput["upper_value"]
        assert measures["cpu-time"]["value"] == pytest.approx(latency["value"], rel=0.05)
        assert measures["madds"] == {"value": cell.cost.madds if cell.cost else None}


def test_github_action_gets_one_file_a_direction(run: Run, raw: Any) -> None:
    done = export.export(run, "github-action").texts
    assert list(done) == ["smaller-is-better", "bigger-is-better"]
    for text in done.values():
        assert names_read("github-action", text) == list(raw)
    for times, speeds in zip(*(json.loads(text) for text in done.values()), strict=True):
        wanted = latency_of(raw[times["name"]])
        assert times["value"] == pytest.approx(1e3 * wanted) and times["unit"] == "ms"
        assert speeds["value"] == pytest.approx(1 / wanted) and speeds["unit"] == "images/s"
        for entry in (times, speeds):
            assert 0 < float(entry["range"].removeprefix("± ")) < 0.2 * entry["value"]
            assert "95 % interval" in entry["extra"] and "5 launches" in entry["extra"]


def test_openmetrics_and_the_older_prometheus_format_read_the_same(run: Run, raw: Any) -> None:
    (text,) = texts(run, "openmetrics")
    found = families(text)
    older = {family.name: family for family in prometheus_client.parser.text_string_to_metric_families(text)}
    assert found.keys() == older.keys()
    for name, family in found.items():
        assert family.documentation and family.type == "gauge"
        assert not family.unit or name.endswith(f"_{family.unit}")
        assert [sample[:3] for sample in family.samples] == [sample[:3] for sample in older[name].samples]
        assert len(family.samples) <= len(raw), "one sample a cell: blocks stay out"
    assert len(found["effbench_latency_seconds"].samples) == len(raw)
    for sample in found["effbench_latency_seconds"].samples:
        launches = raw[f"g2_groups[{sample.labels['cell']}]"]
        assert sample.value == pytest.approx(latency_of(launches), rel=1e-12)
        assert sample.labels["label_groups"] in ("1", "2", "4", "8")
    (began,) = (sample.value for sample in found["effbench_run_timestamp_seconds"].samples)
    assert time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(began)) == run.created
    assert {family.unit for family in found.values()} >= {"seconds", "ratio", "bytes", "images_per_second"}


@pytest.mark.parametrize("name", ["g2_groups", "g1_channel_ratio", "full_models"])
def test_csv_gives_pandas_the_frame_of_the_results(name: str) -> None:
    """Also where a label is called like a column, as in G1, and where the study has no labels."""
    run = run_file.load(REFERENCE / name)
    read = pandas.read_csv(io.StringIO(texts(run, "csv")[0]))
    wanted = Results(run).to_frame()
    assert list(read.columns) == list(wanted.columns)
    for column in read.columns:
        for seen, true in zip(read[column], wanted[column], strict=True):
            missing = true is None or true == "" or true != true
            assert (seen != seen) if missing else seen == true, column


# --- what holds for every format ---------------------------------------------------------------------

HOSTILE = {
    "quotes": "a\"b'c\\d",
    "lines": "a\nb\r\n# EOF\n",
    "escape": "\x1b]0;owned\x07\x1b[31m",
    "unicode": "Größe ×½ 网络 \u202e\ud800",
    "path": "../../../etc/x",
    "braces": '{x="1"} 5 # {y="2"} [a](b),',
    "html": "<script>alert(1)</script>&amp;",
}


def labelled(labels: list[Mapping[str, Any]], name: str = "made_up") -> Run:
    """A run whose cells carry these labels."""
    cases = tuple(Case("probe", (4, 8, 8), labels={"groups": 1, **item}) for item in labels)
    made = replace(study(), name=name, cases=cases)
    return run_of({case.id: 1e-3 * (place + 1) for place, case in enumerate(cases)}, experiment=made, launches=3)


@pytest.mark.parametrize("name", export.FORMATS)
def test_hostile_names_stay_text(name: str) -> None:
    run = labelled([{key: value} for key, value in HOSTILE.items()], '../../x\n"]\x1b[2J')
    for text in texts(run, name):
        seen = names_read(name, text)
        assert len(set(seen)) == len(HOSTILE)
        assert all(entry.isprintable() for entry in seen)
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)
        text.encode()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=4, unique=True), st.text(min_size=1, max_size=8))
def test_no_cell_is_lost_whatever_it_is_called(values: list[str], label: str) -> None:
    run = labelled([{label: value} for value in values])
    for name in export.FORMATS:
        for text in texts(run, name):
            assert len(set(names_read(name, text))) == len(values)


@pytest.mark.parametrize("name", export.FORMATS)
def test_cells_that_look_alike_are_numbered(name: str) -> None:
    for text in texts(labelled([{"g": "a\tb"}, {"g": "a b"}, {"g": "a\nb"}]), name):
        seen = [re.sub(r"^made_up\[(.*)\]$", r"\1", entry) for entry in names_read(name, text)]
        assert seen == ["groups=1,g=a b", "groups=1,g=a b (2)", "groups=1,g=a b (3)"]


@pytest.mark.parametrize("name", export.FORMATS)
def test_a_cell_without_a_time_is_left_out_and_named(name: str) -> None:
    run = run_of(dict.fromkeys(CELLS, 1e-3))
    gone, *kept = run.results
    done = export.export(replace(run, results=(replace(gone, skipped="out of memory"), *kept)), name)
    assert done.left_out == {CELLS[0]: "out of memory"} and done.cells == 2
    assert f"left out: {CELLS[0]}: out of memory" in done.notes
    for text in done.texts.values():
        assert len(names_read(name, text)) == 2 and CELLS[0] not in names_read(name, text)
    empty = replace(kept[0], blocks=())
    assert export.export(replace(run, results=(empty, *kept[1:])), name).left_out == {CELLS[1]: "nothing was timed"}
    nothing = tuple(replace(result, skipped="out of memory") for result in run.results)
    with pytest.raises(InvalidValue, match=r"nothing to export: .*out of memory"):
        export.export(replace(run, results=nothing), name)


def test_disturbed_blocks_are_left_out_until_they_are_too_many() -> None:
    run = run_of(dict.fromkeys(CELLS, 1e-3), launches=5, rounds=20)
    blocks = list(run.results[0].blocks)
    for count, wanted in ((10, 90), (11, 100)):
        late = [replace(b, timing=replace(b.timing, wall_ns=10**10, flags=("steal time",))) for b in blocks[:count]]
        results = (replace(run.results[0], blocks=(*late, *blocks[count:])), *run.results[1:])
        done = export.export(replace(run, results=results), "pyperf", values="all")
        found = pyperf.BenchmarkSuite.loads(done.texts[""]).get_benchmarks()[0]
        assert found.get_nvalue() == wanted
        assert any("flagged as contaminated" in note for note in done.notes) == (wanted == 100)


def test_a_launch_with_too_few_values_is_said() -> None:
    run = run_of(dict.fromkeys(CELLS, 1e-3), launches=3, rounds=7)
    done = export.export(run, "pyperf")
    assert pyperf.BenchmarkSuite.loads(done.texts[""]).get_benchmarks()[0].get_nvalue() == 21
    assert any("--values 7" in note for note in done.notes)


@pytest.mark.parametrize("name", export.FORMATS)
def test_what_is_not_known_is_missing_and_not_zero(name: str) -> None:
    """No costs, no reference, one launch and so no interval, a clock that reads nothing."""
    run = run_of(dict.fromkeys(CELLS, 1e-3), launches=1)
    run = with_blocks(run, CELLS[1], lambda timing: replace(timing, cpu_ns=None))
    run = replace(run, results=tuple(replace(result, cost=None) for result in run.results[1:]))
    for text in texts(run, name):
        assert len(names_read(name, text)) == 2
        assert not re.search(r"null_value|madds\D{1,4}0\b|NaN|nan|None", text)
    if name == "bmf":
        assert all(item["latency"].keys() == {"value"} for item in json.loads(texts(run, name)[0]).values())
        assert set(next(iter(json.loads(texts(run, name)[0]).values()))) == {"latency", "throughput"}


def test_speed_counts_every_image_of_a_batch() -> None:
    run = run_of(dict.fromkeys(CELLS, 1e-3), noise=0, launch_noise=0)
    run = replace(run, results=tuple(replace(item, cell=replace(item.cell, batch=8)) for item in run.results))
    for measures in json.loads(texts(run, "bmf")[0]).values():
        assert measures["throughput"]["value"] == pytest.approx(8000)
        assert measures["latency"]["value"] == pytest.approx(1e6)
    assert all(entry["value"] == pytest.approx(8000) for entry in json.loads(texts(run, "github-action")[1]))
    for sample in families(texts(run, "openmetrics")[0])["effbench_throughput_images_per_second"].samples:
        assert sample.value == pytest.approx(8000) and sample.labels["batch"] == "8"


def test_a_number_that_json_lacks_is_a_corrupt_run() -> None:
    run = run_of(dict.fromkeys(CELLS, 1e-3), facts={"cpu.logical": math.inf})
    for name in ("pytest-benchmark", "pyperf"):
        with pytest.raises(CorruptRun, match="not finite"):
            export.export(run, name)


# --- the command -------------------------------------------------------------------------------------


def consumer(module: str, *words: str, cwd: Path) -> str:
    """What another tool's command says; fails where it does."""
    command = [sys.executable, "-m", module, *words]
    # A pytest that takes itself for a worker of ours would measure nothing.
    alone = {name: value for name, value in environment().items() if not name.startswith("PYTEST_XDIST")}
    done = subprocess.run(command, cwd=cwd, env=alone, capture_output=True, text=True, timeout=HANGS_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of one study, and both as the sides of a pair."""
    folder = tmp_path_factory.mktemp("exports")
    for place in ("results/runs/ONE", "results/runs/OTHER", "pair/baseline", "pair/candidate"):
        again = "_again" if place.endswith(("OTHER", "candidate")) else ""
        (folder / place).mkdir(parents=True)
        shutil.copy(REFERENCE / f"g2_groups{again}" / "run.jsonl", folder / place)
    return folder


WRONG = {
    "results/runs/ONE --format bencher": "no format named 'bencher'",
    "results/runs/ONE": "Missing option '--format'",
    "nowhere --format csv": "no run at nowhere",
    "pair --format csv": "name one of them, pair/baseline or pair/candidate",
    "results/runs/ONE --format csv --json": "add --out",
    "results/runs/ONE --format github-action": "name a folder for both with --out",
    "results/runs/ONE --format github-action --direction up": "no direction named 'up'",
    "results/runs/ONE --format csv --direction smaller-is-better": "leave it out",
    "results/runs/ONE --format bmf --values 3": "bmf holds none",
    "results/runs/ONE --format pyperf --values 0": "expected 1 to 28",
    "results/runs/ONE --format pyperf --values x": "a whole number above zero, or all",
    "results/runs/ONE --format csv --out results": "it is a folder",
    "results/runs/ONE --format csv --out results/runs/ONE/run.jsonl": "the raw blocks",
    "results/runs/ONE --format csv --out /dev/null/x": "cannot write /dev/null/x",
}


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_word_is_one_line(
    words: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    before = {path: path.stat().st_size for path in home.rglob("*")}
    assert main(["export", *shlex.split(words)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and WRONG[words] in said.err
    assert {path: path.stat().st_size for path in home.rglob("*")} == before


def test_the_examples_of_the_documentation_run(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """effbench's own here, and the consumers' in processes of their own."""
    monkeypatch.chdir(home)
    lines = [line.strip() for line in EXPORTS.splitlines() if line.startswith("    ") and " import " not in line]
    tried: dict[str, str] = {}
    for line in lines:
        program, *words = shlex.split(line)
        if program == "effbench":
            assert main(words) == 0, line
            tried[line] = capsys.readouterr().out
            assert (home / words[words.index("--out") + 1]).exists()
        elif program == "python":
            tried[line] = consumer(words[1], *words[2:], cwd=home)
        elif program == "pytest-benchmark":
            tried[line] = consumer("pytest_benchmark", *words, cwd=home)
    assert {line.split("--format ")[1].split()[0] for line in tried if "--format" in line} == set(export.FORMATS)
    assert "benchmark 'groups=8': 6 tests" in tried[next(line for line in tried if "group-by" in line)]
    assert "Number of run with values: 5" in tried[next(line for line in tried if "pyperf stats" in line)]
    compared = tried[next(line for line in tried if "compare_to" in line)]
    assert "ERROR" not in compared and "not significant (11)" in compared


def test_every_format_is_named_in_help_and_documentation() -> None:
    assert complete_format("p") == ["pytest-benchmark", "pyperf"]
    for name in export.FORMATS:
        assert name in inspect.getsource(runs.export) and f"| `{name}` |" in EXPORTS


def test_printed_and_written_are_the_same(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    for name, item in export.FORMATS.items():
        for direction in item.directions:
            words = ["export", "pair/candidate", "--format", name, *(["--direction", direction] if direction else [])]
            assert main(words) == 0
            printed = capsys.readouterr().out
            path = tmp_path / "new" / f"{name}{direction}"
            assert main([*words, "--out", str(path), "--json"]) == 0
            told = json.loads(capsys.readouterr().out)
            assert told["files"] == {direction or name: str(path)} and told["cells"] == 12 and not told["left_out"]
            assert path.read_text(encoding="utf-8") == printed


def test_a_measured_run_goes_through_the_command_without_torch(tmp_path: Path) -> None:
    """From the scripted clock to each consumer; the labels are hostile, and nothing lands outside the named files."""
    path = study_file(tmp_path, name="../../x")
    labels = r'labels={"a|b": "x\"y\x1b[5m\n../..", "groups": groups}'
    path.write_text(path.read_text().replace('labels={"groups": groups}', labels))
    done = effbench("run", "tiny.py", "--device", "fake", "--out", "run", "--launches", "1", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    code = (
        "import sys; from effbench.cli import main;"
        "codes = [main(['export', 'run', '--format', name, '--out', 'out/' + name]) for name in sys.argv[1:]];"
        "print(codes, [name for name in ('torch', 'pandas', 'matplotlib') if name in sys.modules])"
    )
    before = {item for item in tmp_path.rglob("*") if item.is_file()}
    said = subprocess.run(
        [sys.executable, "-c", code, *export.FORMATS], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert said.stdout.splitlines()[-1] == "[0, 0, 0, 0, 0, 0] []" and "\x1b" not in said.stdout + said.stderr
    written = {item for item in tmp_path.rglob("*") if item.is_file()} - before
    assert all(item.is_relative_to(tmp_path / "out") for item in written) and len(written) == len(export.FORMATS) + 1
    latencies = {cell["latency_s"]["median"] for cell in done.json["cells"]}
    for item in written:
        name = item.name if item.name in export.FORMATS else "github-action"
        assert len(names_read(name, item.read_text(encoding="utf-8"))) == 2
    seen = families((tmp_path / "out" / "openmetrics").read_text())["effbench_latency_seconds"].samples
    assert {sample.value for sample in seen} == latencies
