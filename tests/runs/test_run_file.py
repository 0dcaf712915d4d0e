"""The run file: everything is read back, even after an interrupted write, and only JSON is parsed."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from run_files import write
from runs import CELLS, run_of

from effbench.analysis.run_diff import compare_runs
from effbench.analysis.summary import summarise
from effbench.analysis.verdicts import judge
from effbench.core.errors import CorruptRun, StorageError
from effbench.core.run import Conditions
from effbench.report.tables.launches import launch_rows
from effbench.runs import launch_history, run_file, schema
from effbench.runs.run_file import RUN_FILE, RunWriter, load

pytestmark = pytest.mark.quick

REFERENCE = Path(__file__).parents[2] / "results" / "reference"
TIMES = dict(zip(CELLS, (0.01, 0.013, 0.02), strict=True))


def test_a_run_comes_back_equal(tmp_path: Path) -> None:
    run = run_of(TIMES)
    path = write(run, tmp_path / "run")
    assert load(path) == replace(run, path=str(path))
    assert load(tmp_path / "run") == load(path), "by folder or by file"


def test_a_launch_says_when_it_was_and_in_which_conditions(tmp_path: Path) -> None:
    run = run_of(TIMES, launches=1, rounds=1)
    cooler, warmer = Conditions(load_1m=0.5, uptime_s=100.0), Conditions(temperature_c=71.5, thermal_throttled=2)
    with RunWriter(tmp_path / "run") as writer:
        writer.header(run, "0.0")
        for result in run.results:
            writer.cell(replace(result, blocks=()))
        start = {"start": "2026-11-22T10:00:00.250+00:00", "conditions": {"load_1m": 0.5, "uptime_s": 100.0}}
        writer.append("launch", launch=0, slot=0, **start, changed={"host.kernel": ["6.1", "6.8"]})
        writer.append("null", launch=0, at_s=2.5, ns_per_call=60.0, budget_s=8.0)
        writer.block(replace(run.results[0].blocks[0], at_s=3.25))
        writer.append("end", launch=0, at_s=10.5, stopped="budget", seconds=8.0)
        end = {"end": "2026-11-22T10:00:11+00:00", "conditions": {"temperature_c": 71.5, "thermal_throttled": 2}}
        writer.append("exit", launch=0, at_s=10.75, **end)
        writer.append("facts", launch=0, at_s=4.0, facts={})  # a clock that went backwards gives no time back
    (launch,) = load(tmp_path / "run").launches
    assert (launch.start, launch.end) == (start["start"], end["end"])
    assert (launch.at_start, launch.at_end) == (cooler, warmer)
    assert (launch.overhead_s, launch.seconds, launch.used_s, launch.budget_s) == (2.5, 8.0, 10.75, 8.0)
    assert launch.changed == {"host.kernel": ("6.1", "6.8")}
    assert load(tmp_path / "run").results[0].blocks[0].at_s == 3.25


@pytest.mark.parametrize(
    "record",
    [
        {"kind": "launch", "launch": 0, "slot": 0, "start": "2026-11-22T10:00:00"},
        {"kind": "launch", "launch": 0, "slot": 0, "start": "yesterday"},
        {"kind": "launch", "launch": 0, "slot": 0, "conditions": {"load_1m": "high"}},
        {"kind": "launch", "launch": 0, "slot": 0, "conditions": {"mood": 1}},
        {"kind": "launch", "launch": 0, "slot": 0, "changed": {"host.kernel": ["6.1"]}},
        {"kind": "launch", "launch": 0, "slot": 0, "changed": ["host.kernel"]},
        {"kind": "exit", "launch": 0, "at_s": 1.0},
        {"kind": "exit", "launch": 7, "at_s": 1.0, "end": "2026-11-22T10:00:00+00:00", "conditions": {}},
        {"kind": "null", "launch": 0, "ns_per_call": 1.0, "at_s": -0.5},
        {"kind": "null", "launch": 0, "ns_per_call": 1.0, "budget_s": True},
        {"kind": "end", "launch": 0, "stopped": "budget", "seconds": 1.0, "at_s": "late"},
    ],
)
def test_a_launch_that_makes_no_sense_is_corrupt(tmp_path: Path, record: dict[str, object]) -> None:
    path = write(run_of(TIMES, launches=1, rounds=1), tmp_path / "run")
    path.write_text(path.read_text() + json.dumps(record) + "\n")
    with pytest.raises(CorruptRun, match=r"line \d+: "):
        load(path)


@pytest.mark.parametrize("path", sorted(REFERENCE.rglob(RUN_FILE)), ids=lambda path: str(path.parent.name))
def test_runs_of_older_schemas_load(path: Path) -> None:
    """They say nothing of when their launches were, and what is shown of them says nothing of it either."""
    run = load(path)
    assert run.complete and len(run.launches) == run.sampling.launches
    assert {(launch.start, launch.used_s, launch.at_end) for launch in run.launches} == {("", None, None)}
    assert all(block.at_s is None for result in run.results for block in result.blocks)
    assert launch_history.remarks(run) == () and launch_rows(run) is None
    taken = [launch_history.used_s(launch, ()) for launch in run.launches]
    assert all(used > launch.seconds for used, launch in zip(taken, run.launches, strict=True)), "warm-up counts"


def test_any_truncation_loads_what_was_whole(tmp_path: Path) -> None:
    """Cut the file at every byte of its last 3 records, and at a sample of bytes elsewhere: it loads, and loses one
    record at most.
    """
    path = write(run_of(TIMES, launches=1, rounds=3), tmp_path / "run")
    whole = path.read_bytes()
    header = whole.index(b"\n") + 1
    for size in [*range(header, len(whole), 97), *range(len(whole) - 600, len(whole))]:
        path.write_bytes(whole[:size])
        lines = whole[:size].count(b"\n")
        loaded = load(path)
        blocks = sum(len(result.blocks) for result in loaded.results)
        kept = [json.loads(line)["kind"] for line in whole.split(b"\n")[:lines]]
        assert blocks - kept.count("block") in (0, 1), "a last line that lost only its newline may count"


def test_resuming_cuts_a_torn_line_off_before_it_writes(tmp_path: Path) -> None:
    path = write(run_of(TIMES, launches=1, rounds=3), tmp_path / "run", blocks=2)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"kind":"block","laun')
    with RunWriter(tmp_path / "run", resume=True) as writer:
        writer.append("complete")
    assert path.read_bytes() == whole + b'{"kind":"complete"}\n'
    assert load(path).complete


def test_a_full_disk_leaves_the_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(TIMES, launches=1, rounds=3)
    path = write(run, tmp_path / "run", blocks=1)
    before = path.read_bytes()
    with RunWriter(tmp_path / "run", resume=True) as writer:
        really = os.write

        def short(descriptor: int, data: bytes) -> int:
            return really(descriptor, data[: len(data) // 2])

        monkeypatch.setattr(os, "write", short)
        with pytest.raises(StorageError, match="No space left"):
            writer.block(run.results[0].blocks[1])

        def full(descriptor: int, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(StorageError, match="No space left"):
            writer.block(run.results[0].blocks[1])
        monkeypatch.undo()
    assert path.read_bytes() == before


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run") as writer:
        writer.header(run_of(TIMES), "0.0")
        with pytest.raises(StorageError, match="another run is writing"):
            RunWriter(tmp_path / "run")
    with pytest.raises(StorageError, match="already holds a run"):
        RunWriter(tmp_path / "run")
    with RunWriter(tmp_path / "run", resume=True):
        pass


def test_unwritable_and_absent_places(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot write to"):
        RunWriter(tmp_path / "file" / "run")
    with pytest.raises(StorageError, match="no run to resume"):
        RunWriter(tmp_path / "nothing", resume=True)
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(StorageError, match="there is no run at"):
        load(tmp_path / "nothing")


def test_a_newer_schema_is_refused_by_name(tmp_path: Path) -> None:
    path = write(run_of(TIMES, launches=1, rounds=1), tmp_path / "run")
    path.write_text(path.read_text().replace(f'"schema":{schema.SCHEMA}', '"schema":99', 1))
    with pytest.raises(CorruptRun, match=r"schema 99.*upgrade effbench"):
        load(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "line 3: not a run record"),
        ("[1,2]", "line 3: not a run record"),
        ('{"kind":"block"}', "line 3: missing 'timing'"),
        (
            '{"kind":"block","launch":9,"round":0,"position":0,"cell":"x","timing":{"calls":1}}',
            "unknown cell or launch",
        ),
        ('{"kind":"surprise"}', "unknown kind of record"),
        ('{"kind":"block","launch":0,"round":0,"position":0,"cell":"x","timing":{"calls":0}}', "at least one call"),
        ('{"kind":"block","launch":0,"round":0,"position":0,"cell":"x","timing":{"calls":1,"wall_ns":NaN}}', "NaN"),
        (
            '{"kind":"block","launch":0,"round":0,"position":0,"cell":"x","timing":{"calls":1.5}}',
            "timing.calls: expected a whole number",
        ),
        ("[" * 100_000, "line 3"),
    ],
)
def test_a_corrupted_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = write(run_of(TIMES, launches=1, rounds=1), tmp_path / "run")
    lines = path.read_text().splitlines()
    lines.insert(2, line)
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(CorruptRun, match=message) as raised:
        load(path)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_no_run(tmp_path: Path) -> None:
    for content in ("", "\n\n", "{}\n{}\n", '{"kind":"cell"}\n{"kind":"x"}\n', "\x00\x01\n\x02"):
        path = tmp_path / RUN_FILE
        path.write_text(content)
        with pytest.raises(CorruptRun):
            load(path)


NASTY = (None, True, -1, 0, 1.5, 10**400, 1e308, "1", [], [None], {"a": []})


def paths_of(value: object, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    """The path of everything inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, inner in items for found in [(*path, key), *paths_of(inner, (*path, key))]]


def test_the_loader_only_ever_returns_or_says_corrupt(tmp_path: Path) -> None:
    """A wrong value in any field of any kind of record: a run whose verdicts can be computed, or a one-line
    CorruptRun.
    """
    path = write(run_of(TIMES, launches=1, rounds=1), tmp_path / "run")
    lines = path.read_text().splitlines()
    tried, refused, seen = 0, 0, set()
    for number, line in enumerate(lines):
        record = json.loads(line)
        for place in paths_of(record):
            if (record["kind"], place) in seen:
                continue
            seen.add((record["kind"], place))
            for nasty in NASTY:
                changed = json.loads(line)
                holder = changed
                for key in place[:-1]:
                    holder = holder[key]
                holder[place[-1]] = nasty
                path.write_text("\n".join([*lines[:number], json.dumps(changed), *lines[number + 1 :]]) + "\n")
                tried += 1
                try:
                    run = load(path)
                    judge(run, summarise(run))
                    compare_runs(run, run)
                except CorruptRun as error:
                    refused += 1
                    assert "\n" not in str(error) and len(str(error)) < 500
    assert tried > 900 and refused > tried / 2


@given(st.binary(max_size=300))
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_a_run_or_corrupt(tmp_path: Path, noise: bytes) -> None:
    path = tmp_path / "run" / RUN_FILE
    whole = (
        path.read_bytes()
        if path.exists()
        else write(run_of(TIMES, launches=1, rounds=1), tmp_path / "run").read_bytes()
    )
    other = tmp_path / "noisy.jsonl"
    other.write_bytes(whole[: len(whole) // 2] + noise + whole[len(whole) // 2 :])
    try:
        load(other)
    except CorruptRun as error:
        assert "\n" not in str(error)


def test_reading_never_imports_or_runs_anything(tmp_path: Path) -> None:
    """A model path in a run file is text: loading it must not touch the file it names."""
    trap = tmp_path / "trap.py"
    trap.write_text("raise SystemExit('executed')")
    run = run_of(TIMES, launches=1, rounds=1)
    cell = run.results[0].cell
    case = replace(cell.case, model=f"{trap}:net")
    trapped = replace(run.results[0], cell=replace(cell, case=case))
    experiment = run.experiment.with_cases([case, *run.experiment.cases[1:]])
    path = write(replace(run, experiment=experiment, results=(trapped, *run.results[1:])), tmp_path / "run")
    assert load(path).results[0].cell.case.model.startswith(str(trap))


def test_blocks_are_written_small(tmp_path: Path) -> None:
    path = write(run_of(TIMES), tmp_path / "run")
    blocks = [line for line in path.read_text().splitlines() if line.startswith('{"kind":"block"')]
    assert len(blocks) == 180
    assert max(map(len, blocks)) < 200, "defaults are left out: a run is mostly blocks"


def test_find_accepts_only_runs(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=RUN_FILE):
        run_file.find(tmp_path)


def test_ctrl_c_while_a_run_file_is_created_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(path: Path) -> int:
        assert path.exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(run_file, "_size_of_whole_lines", interrupt)
    with pytest.raises(KeyboardInterrupt):
        RunWriter(tmp_path / "run")
    assert not (tmp_path / "run").exists()
