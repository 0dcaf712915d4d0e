"""Runs on the scripted clock: measured, frozen and skipped cells, resuming, stopping rules."""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from runs import study
from scripted_runs import cost_of

from effbench.analysis.summary import summarise
from effbench.analysis.verdicts import judge
from effbench.core.cost import Cost
from effbench.core.errors import EffbenchError, ModelError, StorageError
from effbench.core.run import Run
from effbench.core.study import Cell, Experiment
from effbench.host import worker_process
from effbench.runs import launch, launch_history, run_file, runner
from effbench.studies import plan

pytestmark = [pytest.mark.quick, pytest.mark.usefixtures("forked_launches")]

SAMPLING = {"launches": 5, "min_rounds": 10, "max_rounds": 12, "warmup_s": 0.0, "max_warmup_s": 0.2}


def execute(directory: Path, experiment: Experiment | None = None, **options: Any) -> Run:
    planned = plan.make(
        experiment or study(), device="fake", sampling={**SAMPLING, **options.pop("sampling", {})}, **options
    )
    return runner.execute(planned, directory, profile=cost_of, command="effbench run made_up")


def kinds(path: Path) -> Counter[str]:
    return Counter(json.loads(line)["kind"] for line in (path / run_file.RUN_FILE).read_text().splitlines())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return execute(tmp_path_factory.mktemp("runs") / "finished")


def test_a_run_says_what_the_clock_was_scripted_to(finished: Run) -> None:
    ratios = [cell.ratio.point for cell in summarise(finished) if cell.ratio]
    launch = 2e-6
    expected = [(launch + n * 2e-4) / (launch + 2e-4) for n in (1, 2, 4)]
    assert ratios == pytest.approx(expected, rel=0.005)
    assert {verdict.verdict for verdict in judge(finished)} == {"holds"}
    assert finished.complete and finished.clock == "cpu" and finished.command == "effbench run made_up"


def test_every_launch_uses_the_frozen_calls(finished: Run) -> None:
    for result in finished.results:
        assert {block.timing.calls for block in result.blocks} == {result.calls}
        assert {block.launch for block in result.blocks} == set(range(5))


def test_every_round_visits_every_cell_in_a_new_order(finished: Run) -> None:
    visits: dict[tuple[int, int], list[tuple[int, str]]] = {}
    for result in finished.results:
        for block in result.blocks:
            visits.setdefault((block.launch, block.round), []).append((block.position, block.cell))
    assert all(sorted(position for position, _ in round_) == [0, 1, 2] for round_ in visits.values())
    assert len({tuple(cell for _, cell in sorted(round_)) for round_ in visits.values()}) > 3


def test_the_same_seed_gives_the_same_run(finished: Run, tmp_path: Path) -> None:
    again = execute(tmp_path / "again")
    assert [result.blocks for result in again.results] == [result.blocks for result in finished.results]
    other = execute(tmp_path / "other", seed=1)
    orders = [[(b.launch, b.round, b.position) for b in run.results[0].blocks] for run in (finished, other)]
    assert orders[0] != orders[1]


def test_records_are_complete_and_in_order(finished: Run) -> None:
    assert finished.path is not None
    records = [json.loads(line) for line in Path(finished.path).read_text().splitlines()]
    order = [record["kind"] for record in records]
    assert order[0] == "header" and order[-1] == "complete" and not {"verdicts", "facts"} & set(order)
    assert order[1:4] == ["cell"] * 3
    count = Counter(order)
    assert count["launch"] == count["end"] == count["null"] == 5
    assert records[0]["environment"]["facts"]["run.allocator"] == "retain"


def test_resuming_a_finished_run_measures_nothing(finished: Run) -> None:
    assert finished.path is not None
    before = Path(finished.path).read_bytes()
    again = runner.resume(Path(finished.path).parent)
    assert Path(finished.path).read_bytes() == before
    assert again.results == finished.results


@pytest.mark.parametrize("records", [4, 11, 17, 60, 100])
def test_resuming_a_cut_run_adds_only_what_is_missing(finished: Run, tmp_path: Path, records: int) -> None:
    """Cut after so many records, in the middle of the next: what was there stays to the byte, the rest is measured."""
    assert finished.path is not None
    lines = Path(finished.path).read_bytes().splitlines(keepends=True)
    folder = tmp_path / "cut"
    folder.mkdir()
    (folder / run_file.RUN_FILE).write_bytes(b"".join(lines[:records]) + lines[records][:20])
    run = runner.resume(folder)
    data = (folder / run_file.RUN_FILE).read_bytes()
    assert data.startswith(b"".join(lines[:records]))
    assert run.complete
    kept = sum(line.startswith(b'{"kind":"end"') for line in lines[:records])
    assert kinds(folder)["end"] == 5, "every slot ends once"
    slots = Counter(launch.slot for launch in run.launches if launch.stopped != "interrupted")
    assert slots == Counter(range(5))
    started = {launch.slot for launch in run.launches if launch.number < kept}
    assert all(sum(1 for launch in run.launches if launch.slot == slot) == 1 for slot in started), "no slot twice"
    rounds: Counter[tuple[int, str, int]] = Counter()
    slot_of = {launch.number: launch.slot for launch in run.launches}
    for result in run.results:
        for block in result.blocks:
            rounds[slot_of[block.launch], block.cell, block.round] += 1
    assert max(rounds.values()) <= 2, "at most the round that was in flight is repeated"
    assert sum(value - 1 for value in rounds.values()) <= 2


def test_resuming_elsewhere_is_refused_by_name(finished: Run, tmp_path: Path) -> None:
    assert finished.path is not None
    text = "".join(Path(finished.path).read_text().splitlines(keepends=True)[:20])
    header = json.loads(text.splitlines()[0])
    header["environment"]["facts"]["cpu.model"] = "Another CPU"
    (tmp_path / run_file.RUN_FILE).write_text(json.dumps(header) + "\n" + text.partition("\n")[2])
    with pytest.raises(EffbenchError, match=r"cpu\.model"):
        runner.resume(tmp_path)


def test_resuming_on_the_same_machine_in_other_conditions_says_so(finished: Run, tmp_path: Path) -> None:
    """A new kernel forbids nothing, and may change everything."""
    assert finished.path is not None
    lines = Path(finished.path).read_text().splitlines(keepends=True)
    header = json.loads(lines[0])
    header["environment"]["facts"] |= {"host.kernel": "2.4.0", "host.load_1m": 99.0}
    (tmp_path / run_file.RUN_FILE).write_text(json.dumps(header) + "\n" + "".join(lines[1:20]))
    run = runner.resume(tmp_path)
    kernel = finished.environment.facts["host.kernel"]
    resumed = next(launch for launch in run.launches if launch.changed)
    assert resumed.changed == {"host.kernel": ("2.4.0", kernel)} and resumed.number == 1
    said = f"From launch 2 on, when the run was resumed, other conditions: host.kernel (2.4.0 / {kernel})."
    assert said in launch_history.remarks(run)


def test_every_launch_says_when_it_was_however_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To its end, with a worker that dies, and through Ctrl-C."""
    before = datetime.now(timezone.utc).replace(microsecond=0)
    monkeypatch.setattr(launch, "Worker", _Dying("scale=x1,groups=4"))
    really = run_file.RunWriter.append

    def interrupted(self: run_file.RunWriter, kind: str, **values: Any) -> None:
        if kind == "null" and values["launch"] == 2:
            raise KeyboardInterrupt
        really(self, kind, **values)

    monkeypatch.setattr(run_file.RunWriter, "append", interrupted)
    with pytest.raises(runner.Interrupted):
        execute(tmp_path / "run")
    found = run_file.load(tmp_path / "run").launches
    assert [launch.stopped for launch in found] == ["interrupted", "precision", "interrupted"]
    times = [datetime.fromisoformat(text) for launch in found for text in (launch.start, launch.end)]
    assert times == sorted(times) and before <= times[0] and times[-1] <= datetime.now(timezone.utc)
    assert all(launch.at_start is not None and launch.at_end is not None for launch in found)
    assert all(launch.used_s is not None and launch.used_s > 0 for launch in found)


def test_a_case_that_cannot_be_costed_is_a_skip(tmp_path: Path) -> None:
    def failing(cell: Cell) -> Cost:
        if cell.case.labels["groups"] == 2:
            raise ModelError("this network raises")
        return cost_of(cell)

    planned = plan.make(study(), device="fake", sampling=SAMPLING)
    run = runner.execute(planned, tmp_path / "run", profile=failing)
    assert [result.skipped for result in run.results] == [None, "this network raises", None]
    assert run.results[2].blocks and not run.results[1].blocks


def test_when_no_case_can_be_costed_the_reason_is_the_error(tmp_path: Path) -> None:
    def failing(cell: Cell) -> Cost:
        raise ModelError("this network raises")

    planned = plan.make(study(), device="fake", sampling=SAMPLING)
    with pytest.raises(EffbenchError, match="this network raises"):
        runner.execute(planned, tmp_path / "run", profile=failing)


def test_the_budget_ends_a_run_early_but_not_before_three_rounds(tmp_path: Path) -> None:
    run = execute(tmp_path / "run", sampling={"launches": 2, "budget_s": 1e-6, "precision": 1e-6})
    assert {launch.stopped for launch in run.launches} == {"budget"}
    assert {block.round for block in run.results[0].blocks} == {0, 1, 2}


def test_progress_only_grows_and_ends_at_one(tmp_path: Path) -> None:
    seen: list[runner.Progress] = []
    planned = plan.make(study(), device="fake", sampling=SAMPLING)
    runner.execute(planned, tmp_path / "run", profile=cost_of, watch=seen.append)
    done = [step.done for step in seen]
    assert done == sorted(done) and done[-1] == 1.0
    assert len(set(done)) > 20


class _Dying:
    """A stand-in for the worker that ends while it measures one cell, the first time it is asked to."""

    def __init__(self, cell: str) -> None:
        self.cell = cell

    def __call__(self, job: dict[str, Any], *_: Any) -> Any:
        real = worker_process.Worker(job, worker_process.worker_environment(0, "retain"), 60)
        if any(spec["id"] == self.cell for spec in job["cells"]):
            events = real.events

            def dying() -> Any:
                for event in events():
                    kind, cell = event["event"], event.get("cell")
                    yield event
                    if kind == "working" and cell == self.cell and seen_block:
                        raise worker_process.WorkerFailed("the process was ended by SIGSEGV")
                    seen_block.extend([1] if kind == "block" else [])

            seen_block: list[int] = []
            real.events = dying  # type: ignore[method-assign]
        return real


def test_a_worker_that_dies_costs_its_cell_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "Worker", _Dying("scale=x1,groups=4"))
    run = execute(tmp_path / "run")
    assert run.complete
    assert [result.skipped for result in run.results] == [None, None, "the process was ended by SIGSEGV"]
    assert {launch.slot for launch in run.launches if launch.stopped != "interrupted"} == set(range(5))


def test_ctrl_c_is_told_apart_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = 0
    really = run_file.RunWriter.block

    def interrupted(self: run_file.RunWriter, block: Any) -> None:
        nonlocal blocks
        if blocks == 40:
            raise KeyboardInterrupt
        blocks += 1
        really(self, block)

    monkeypatch.setattr(run_file.RunWriter, "block", interrupted)
    with pytest.raises(runner.Interrupted) as stopped:
        execute(tmp_path / "run")
    assert stopped.value.directory == tmp_path / "run"
    assert sum(len(result.blocks) for result in run_file.load(tmp_path / "run").results) == 40
    monkeypatch.undo()
    assert runner.resume(tmp_path / "run").complete


def test_a_full_disk_names_where_the_data_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really, blocks = run_file.RunWriter.block, iter(range(100))

    def full(self: run_file.RunWriter, block: Any) -> None:
        if next(blocks) == 25:
            raise StorageError("No space left on device")
        really(self, block)

    monkeypatch.setattr(run_file.RunWriter, "block", full)
    with pytest.raises(StorageError, match=r"No space left.*kept in"):
        execute(tmp_path / "run")
    assert sum(len(result.blocks) for result in run_file.load(tmp_path / "run").results) == 25


def test_worker_environment_keeps_pages_and_threads() -> None:
    retained = worker_process.worker_environment(2, "retain", {"A": "1"})
    assert retained["A"] == "1" and retained["OMP_NUM_THREADS"] == "2"
    assert int(retained["MALLOC_MMAP_THRESHOLD_"]) > 1 << 30 and int(retained["MALLOC_TRIM_THRESHOLD_"]) > 1 << 30
    assert not any(name.startswith("MALLOC") for name in worker_process.worker_environment(1, "system", {}))
