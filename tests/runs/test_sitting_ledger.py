"""The ledger of sittings: what a run adds to it, and every reason not to trust it."""

from __future__ import annotations

import datetime
import json
import math
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import shell
from filelock import FileLock
from runs import CELLS, run_of

from effbench.analysis.between_sittings import NO_HISTORY
from effbench.core.run import Launch, Run, Timing
from effbench.core.sittings import BetweenSittings
from effbench.host import facts
from effbench.runs import run_file, sitting_ledger

TIMES = dict(zip(CELLS, (0.01, 0.013, 0.02), strict=True))
NOON = datetime.datetime(2026, 11, 28, 12, tzinfo=datetime.timezone.utc)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "effbench" / "sittings"


def timed(run: Run, minute: float, *, yardstick: float = 2.0, torch: str = "2.13.0") -> Run:
    """The run with launches that began this many minutes after noon, and a yardstick of this ratio."""
    block = {"dense": 1_000_000, "depthwise": round(1_000_000 * yardstick)}
    blocks = {name: (Timing(1, spent, cpu_ns=spent),) * 3 for name, spent in block.items()}
    launches = []
    for number, launch in enumerate(run.launches):
        start = NOON + datetime.timedelta(minutes=minute, seconds=10 * number)
        end = start + datetime.timedelta(seconds=9)
        launches.append(replace(launch, start=start.isoformat(), end=end.isoformat(), yardstick=blocks))
    environment = replace(run.environment, facts={**run.environment.facts, "torch.version": torch})
    return replace(run, launches=tuple(launches), environment=environment)


def update(run: Run) -> BetweenSittings:
    """Look up the scatter that the run includes, then add the run, as a run does."""
    found = sitting_ledger.look_up(run)
    sitting_ledger.add(run)
    return found


def ledger(cache: Path) -> Path:
    (path,) = cache.glob("*.jsonl")
    return path


def measured(count: int, **how: str) -> BetweenSittings:
    """Carry out this many runs, half an hour apart, and return the scatter that the last one includes."""
    return [update(timed(run_of(TIMES, seed=n), 30 * n, **how)) for n in range(count)][-1]


# --- what a run adds ------------------------------------------------------------------------------------------------


def test_the_first_two_runs_of_a_machine_have_no_history_and_the_third_has(cache: Path) -> None:
    assert measured(2) == NO_HISTORY
    ledger(cache).unlink()
    found = measured(4)
    assert (found.sittings, found.problem) == (3, "")
    assert set(found.cells) == set(TIMES)
    assert set(found.cells[CELLS[0]]) == {"latency", "busy"}, "the reference has no ratio"
    assert set(found.cells[CELLS[1]]) == {"latency", "busy", "ratio"}
    assert found.cells[CELLS[1]]["ratio"].tau < NO_HISTORY.ratio.tau, "these runs repeat themselves to 0.1 %"


def test_a_line_holds_the_logarithms_that_tables_show(cache: Path) -> None:
    run = timed(run_of(TIMES, noise=0.0, launch_noise=0.0), 0, yardstick=2.5)
    update(run)
    (line,) = sitting_ledger.read(ledger(cache), facts.machine_id(), NOON.timestamp() + 3600)
    assert (line.start_s, line.end_s) == (NOON.timestamp(), NOON.timestamp() + 49)
    assert line.torch == "2.13"
    assert line.yardstick["ratio"] == (pytest.approx(math.log(2.5), abs=1e-4), pytest.approx(0.0, abs=1e-20))
    assert line.yardstick["dense"] == (pytest.approx(math.log(0.001), abs=1e-4), pytest.approx(0.0, abs=1e-20))
    values = line.cells[sitting_ledger.cell_key(run, run.result(CELLS[2]))]
    assert values["ratio"] == (pytest.approx(math.log(2), abs=1e-4), pytest.approx(0.0, abs=1e-20))
    assert values["latency"] == (pytest.approx(math.log(0.02), abs=1e-4), pytest.approx(0.0, abs=1e-20))


def test_the_variance_is_that_of_the_mean_over_launches(cache: Path) -> None:
    run = timed(run_of(TIMES, noise=0.0, launch_noise=0.05), 0)
    update(run)
    (line,) = sitting_ledger.read(ledger(cache), facts.machine_id(), NOON.timestamp() + 3600)
    medians = [math.log(block.per_call_s("cpu") or 0) for block in run.result(CELLS[0]).blocks if block.round == 0]
    mean = sum(medians) / 5
    expected = sum((value - mean) ** 2 for value in medians) / 4 / 5
    assert line.cells[sitting_ledger.cell_key(run, run.result(CELLS[0]))]["busy"][1] == pytest.approx(
        expected, rel=0.01
    )


def test_it_holds_no_name_and_no_path(cache: Path) -> None:
    measured(2)
    text = ledger(cache).read_text()
    assert not any(word in text for word in ("groups", "probe", "made_up", "Test CPU", str(Path.home())))
    assert len(text) < 2500, "a few kB"


def test_a_cell_is_the_same_only_with_the_same_files_setting_and_reference() -> None:
    run = run_of(TIMES)
    cell = run.result(CELLS[1]).cell
    of_file = replace(run.result(CELLS[1]), cell=replace(cell, case=replace(cell.case, model="net.py:build")))
    keys = {
        sitting_ledger.cell_key(run, run.result(CELLS[1])),
        sitting_ledger.cell_key(run, of_file),
        sitting_ledger.cell_key(replace(run, files={"net.py": "0" * 64}), of_file),
        sitting_ledger.cell_key(replace(run, clock="wall"), run.result(CELLS[1])),
        sitting_ledger.cell_key(run, run.result(CELLS[2])),
        sitting_ledger.cell_key(run_of(TIMES, facts={"cpu.governor": "powersave"}), run.result(CELLS[1])),
        sitting_ledger.cell_key(replace(run, experiment=replace(run.experiment, reference=4)), run.result(CELLS[1])),
    }
    assert len(keys) == 7
    edited = sitting_ledger.cell_key(replace(run, files={"net.py": "0" * 64}), run.result(CELLS[1]))
    assert edited in keys, "a network of the zoo has no file of the user's"
    assert sitting_ledger.cell_key(run_of(TIMES, seed=9), run.result(CELLS[1])) in keys, "not what was measured"


def test_a_run_spread_over_time_adds_a_line_for_each_sitting(cache: Path) -> None:
    run = timed(run_of(TIMES, launches=4), 0)
    later = timed(run_of(TIMES, launches=4), 40)
    update(replace(run, launches=(*run.launches[:2], *later.launches[2:])))
    lines = sitting_ledger.read(ledger(cache), facts.machine_id(), NOON.timestamp() + 7200)
    assert [round(line.start_s - NOON.timestamp()) for line in lines] == [0, 2420]


def test_a_contaminated_cell_and_a_launch_without_times_add_nothing(cache: Path) -> None:
    run = timed(run_of(TIMES), 0)
    blocks = tuple(replace(block, timing=replace(block.timing, flags=("steal",))) for block in run.results[1].blocks)
    update(replace(run, results=(run.results[0], replace(run.results[1], blocks=blocks))))
    (line,) = sitting_ledger.read(ledger(cache), facts.machine_id(), NOON.timestamp() + 3600)
    assert len(line.cells) == 1
    assert sitting_ledger.sittings_of(run_of(TIMES), dict.fromkeys(TIMES, "k"), "2.13") == []


def test_it_stays_small_and_keeps_the_last_sittings(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sitting_ledger, "MOST_BYTES", 4000)
    monkeypatch.setattr(sitting_ledger, "KEPT_BYTES", 2500)
    found = measured(20)
    assert ledger(cache).stat().st_size <= 4000 + 700
    assert 2 < found.sittings < 12
    lines = sitting_ledger.read(ledger(cache), facts.machine_id(), NOON.timestamp() + 36000)
    assert lines[-1].start_s == NOON.timestamp() + 19 * 1800


def test_two_runs_at_once_lose_no_line(cache: Path) -> None:
    runs = [timed(run_of(TIMES, seed=n, rounds=2), 30 * n) for n in range(8)]
    threads = [threading.Thread(target=sitting_ledger.add, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sitting_ledger.read(ledger(cache), facts.machine_id(), NOON.timestamp() + 36000)) == 8


# --- what cannot be trusted -------------------------------------------------------------------------------------------


def _damage(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b'{"start_s": "yesterday"}\n', *lines[1:]]))


def _impossible(path: Path) -> None:
    record = json.loads(path.read_text().splitlines()[1])
    record["yardstick"]["ratio"][1] = -1.0
    path.write_text("\n".join([path.read_text().splitlines()[0], json.dumps(record), ""]))


def _absurd(place: int, value: float) -> Callable[[Path], None]:
    """A number that JSON can hold, and no time or ratio can have."""

    def change(path: Path) -> None:
        header, line, *rest = path.read_text().splitlines()
        record = json.loads(line)
        record["yardstick"]["ratio"][place] = value
        path.write_text("\n".join([header, json.dumps(record), *rest, ""]))

    return change


def _two_lines(path: Path) -> None:
    header, line, *rest = path.read_text().splitlines()
    path.write_text("\n".join([header, json.dumps({**json.loads(line), "torch": "2.13\nbad"}), *rest, ""]))


def _fill(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" " * sitting_ledger.TOO_LARGE_BYTES)


def _rename_machine(path: Path) -> None:
    path.write_text(path.read_text().replace(facts.machine_id(), "0" * 16))


def _newer(path: Path) -> None:
    path.write_text(path.read_text().replace('"effbench_sittings":1', '"effbench_sittings":2'))


def _set_clock_back(path: Path) -> None:
    lines = path.read_text().splitlines(keepends=True)
    late = json.loads(lines[1])
    late["start_s"] += 1e8
    late["end_s"] += 1e8
    path.write_text("".join([lines[0], json.dumps(late) + "\n", *lines[1:]]))


def _to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _to_link(path: Path) -> None:
    path.rename(path.with_suffix(".other"))
    path.symlink_to(path.with_suffix(".other"))


TROUBLE: dict[str, Callable[[Path], object]] = {
    "line 2 of the ledger of sittings is damaged": _damage,
    "line 2 of the ledger of sittings is damaged ": _impossible,
    "line 2 of the ledger of sittings is damaged  ": _absurd(0, 700.0),
    "line 2 of the ledger of sittings is damaged   ": _absurd(0, -1e200),
    "line 2 of the ledger of sittings is damaged    ": _absurd(1, 1e200),
    "line 2 of the ledger of sittings is damaged     ": _two_lines,
    "the ledger of sittings is larger than effbench makes one": _fill,
    "line 1 of the ledger of sittings is damaged": lambda path: path.write_bytes(b"\xff\x00 no ledger\n"),
    "line 1 of the ledger of sittings is damaged ": lambda path: path.write_text("{}\n"),
    "the ledger of sittings was copied from another machine": _rename_machine,  # its content alone
    "the ledger of sittings was written by a newer effbench": _newer,
    "the ledger of sittings holds sittings of the future, so the clock was changed": _set_clock_back,
    "the ledger of sittings is no plain file": _to_folder,
    "the ledger of sittings is no plain file ": _to_link,
}


@pytest.mark.parametrize(("problem", "spoil"), TROUBLE.items())
def test_a_ledger_that_cannot_be_trusted_is_said_in_one_sentence(
    problem: str, spoil: Callable[[Path], object], cache: Path
) -> None:
    measured(3)
    path = ledger(cache)
    spoil(path)
    kept = path.read_bytes() if path.is_file() else b""
    found = update(timed(run_of(TIMES), 500))
    remedy = f"; delete effbench/sittings/{path.name} in your cache folder to begin anew"
    assert found == replace(NO_HISTORY, problem=problem.strip() + remedy)
    assert not path.is_file() or path.read_bytes() == kept, "it is left as it is"


@pytest.mark.usefixtures("cache")
def test_a_cache_that_cannot_be_written_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a machine would seem to be without a history for ever."""
    with monkeypatch.context() as patch:
        patch.setattr(sitting_ledger.os, "access", lambda *_: False)
        found = sitting_ledger.look_up(timed(run_of(TIMES), 0))
    assert found == replace(NO_HISTORY, problem="the ledger of sittings cannot be written: its folder is read-only")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    found = sitting_ledger.look_up(timed(run_of(TIMES), 0))
    assert found == replace(NO_HISTORY, problem="the ledger of sittings cannot be written: Permission denied")


def test_a_copied_cache_is_said_once_and_this_machine_begins_its_own(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(3)
    monkeypatch.setattr(facts, "machine_id", lambda: "0" * 16)
    found = update(timed(run_of(TIMES), 500))
    assert found == replace(NO_HISTORY, problem="the ledgers of sittings in the cache are of other machines")
    assert update(timed(run_of(TIMES), 600)).problem == ""
    assert len(list(cache.glob("*.jsonl"))) == 2
    other = run_of(TIMES, facts={"cpu.model": "Another CPU"})
    assert sitting_ledger.look_up(other).problem == "", "other hardware is no copy"


def test_runs_with_another_allocator_or_precision_do_not_mix() -> None:
    keys = {
        facts.ledger_key(run_of(TIMES, facts=known).environment)
        for known in ({}, {"run.allocator": "system"}, {"gpu.precision": "tf32"}, {"gpu.cache": "cold"})
    }
    assert len(keys) == 4
    assert facts.ledger_key(run_of(TIMES, facts={"torch.version": "9"}).environment) in keys


def test_a_yardstick_that_others_disturbed_adds_nothing(cache: Path) -> None:
    run = timed(run_of(TIMES), 0)
    flagged = Timing(1, 5_000_000, cpu_ns=5_000_000, flags=("waited for a core",))
    launches = [replace(run.launches[0], yardstick={name: (flagged,) * 3 for name in ("dense", "depthwise")})]
    sitting_ledger.add(replace(run, launches=(*launches, *run.launches[1:])))
    (line,) = sitting_ledger.read(ledger(cache), facts.machine_id(), NOON.timestamp() + 3600)
    assert line.yardstick["dense"] == (pytest.approx(math.log(0.001), abs=1e-4), pytest.approx(0.0, abs=1e-20))


def test_a_module_of_a_session_adds_no_cell(cache: Path) -> None:
    run = timed(run_of(TIMES), 0)
    cases = tuple(replace(case, model="pickle:/tmp/a1b2") for case in run.experiment.cases)
    results = tuple(
        replace(each, cell=replace(each.cell, case=case)) for each, case in zip(run.results, cases, strict=True)
    )
    sitting_ledger.add(replace(run, experiment=replace(run.experiment, cases=cases), results=results))
    (line,) = sitting_ledger.read(ledger(cache), facts.machine_id(), NOON.timestamp() + 3600)
    assert line.cells == {} and line.yardstick


def test_the_ledger_of_another_user_is_not_trusted(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(3)
    monkeypatch.setattr(os, "geteuid", lambda: os.stat(cache).st_uid + 1)
    assert update(timed(run_of(TIMES), 500)).problem.startswith("the ledger of sittings belongs to another user")


def test_sittings_of_another_torch_do_not_count() -> None:
    measured(3)
    other = update(timed(run_of(TIMES), 500, torch="2.14.1"))
    assert other == replace(NO_HISTORY, problem="this machine's sittings were measured with torch 2.13, not 2.14")
    again = update(timed(run_of(TIMES), 600, torch="2.14.1"))
    assert (again.sittings, again.problem) == (0, ""), "one sitting shows no scatter"
    assert update(timed(run_of(TIMES), 700, torch="2.14.1")).sittings == 2, "they were kept, and count from now on"
    assert update(timed(run_of(TIMES), 800, torch="2.13.2")).sittings == 3


def test_a_folder_that_cannot_be_written_is_said_in_one_sentence(cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("a file in the way")
    found = measured(1)
    assert found == replace(NO_HISTORY, problem=found.problem)
    assert found.problem.startswith("the ledger of sittings cannot be read: ")


def test_a_ledger_that_another_run_holds_is_not_waited_for_long(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(2)
    monkeypatch.setattr(sitting_ledger, "LOCK_S", 0.01)
    with FileLock(ledger(cache).with_suffix(".lock")):
        assert update(timed(run_of(TIMES), 500)).problem == ""
    assert len(ledger(cache).read_bytes().splitlines()) == 3, "its own line is not there"


def test_a_line_that_a_killed_process_left_is_dropped(cache: Path) -> None:
    measured(2)
    with ledger(cache).open("ab") as file:
        file.write(b'{"start_s":17')
    found = update(timed(run_of(TIMES), 500))
    assert (found.sittings, found.problem) == (2, "")
    assert len(ledger(cache).read_bytes().splitlines()) == 4


# --- from end to end -------------------------------------------------------------------------------------------------


def test_a_run_says_what_its_intervals_include(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "from torch import nn\nnet = lambda: nn.Conv2d(3, 8, 3)\nwide = lambda: nn.Conv2d(3, 32, 3)\n"
    )
    words = ("compare", "nets.py:net", "nets.py:wide", "--input", "3x16x16", "--launches", "3", "--budget", "1s")
    variables = {"XDG_CACHE_HOME": str(tmp_path)}
    first = shell.effbench(*words, "--out", "a", cwd=tmp_path, variables=variables)
    assert first.code == 0, first.err + first.out
    reference = "between sittings: that of reference machines, since this machine has fewer than two earlier sittings."
    assert reference in first.out and "Intervals include ±7.2 % (ratios) and ±10.2 % (times)" in first.out
    ledger(cache).write_text("no ledger\n")
    second = shell.effbench(*words, "--out", "b", cwd=tmp_path, variables=variables)
    assert second.code == 0 and "Traceback" not in second.err
    assert "since line 1 of the ledger of sittings is damaged; delete effbench/sittings/" in second.out
    run = run_file.load(tmp_path / "b")
    assert run.complete and run.between_sittings is not None and run.between_sittings.problem
    launch: Launch
    for launch in run.launches:
        assert {name: 3 <= len(blocks) <= 9 for name, blocks in launch.yardstick.items()} == {
            "dense": True,
            "depthwise": True,
        }
