"""A/B runs of two sides through real worker processes: order, pairing, source of the code, failures."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from measuring import UNTIMED_LAUNCHES
from runs import COST

from effbench.core.cost import Cost
from effbench.core.errors import EffbenchError, NotComparable, StorageError
from effbench.core.study import Case, Cell, Experiment
from effbench.cost import count_in_subprocess
from effbench.devices.fake import seconds_of
from effbench.gates import ab_pairs
from effbench.gates.ab_pairs import SIDES
from effbench.gates.ab_run import AbRun
from effbench.host.worker_process import Site
from effbench.runs import run_file
from effbench.studies import plan
from effbench.timing import sampling as sampling_rules

ROUNDS = 6
HERE = (Site(), Site())


@pytest.fixture(autouse=True)
def forked(forked_launches: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks at times, but for what the scripted clock says."""
    monkeypatch.setenv(UNTIMED_LAUNCHES, "1")


def plan_of(*models: str, device: str = "fake", **options: Any) -> plan.Plan:
    cases = tuple(Case(spec, (4, 8, 8), labels={"model": spec.rpartition(":")[2]}) for spec in models)
    study = Experiment(
        "check", "t", "c", "model", tuple(c.labels["model"] for c in cases), cases[0].labels["model"], cases
    )
    sampling = {"min_rounds": ROUNDS, "max_rounds": ROUNDS, "warmup_s": 0.0, "max_warmup_s": 0.2, "block_s": 0.001}
    return plan.make(study, device=device, sampling={**sampling, **options})


def costs(cell: Cell) -> Cost:
    return COST


def fought(
    folder: Path,
    planned: plan.Plan,
    sites: Sequence[Site] = HERE,
    launches: int = 2,
    cost: Any = (costs, costs),
) -> tuple[ab_pairs.Pair, dict[str, dict[str, str]]]:
    with AbRun(planned, sites, folder / "out", cost, planned=launches) as ab:
        while ab.launches < launches and ab.launch([cell.id for cell in planned.cells]):
            pass
        return ab.finish(), ab.skipped()


NET = """
import torch
def small():
    return torch.nn.Conv2d(4, 4, {kernel}, padding={kernel} // 2)
"""


def project(folder: Path, kernel: int = 1, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "nets.py").write_text(NET.format(kernel=kernel))
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def sites(tmp_path: Path) -> tuple[Site, Site]:
    old, new = tmp_path / "old", tmp_path / "new"
    return Site(old, (".",), foreign=new), Site(new, (".",), foreign=old)


# --- the order of blocks ----------------------------------------------------------------------------


def test_two_rounds_are_abba_for_every_cell(tmp_path: Path) -> None:
    pair, _ = fought(tmp_path, plan_of("a:one", "a:two"))
    for cell in pair.cells:
        places = [
            {(block.launch, block.round): block.position for block in run.result(cell).blocks}
            for run in (pair.baseline, pair.candidate)
        ]
        assert places[0].keys() == places[1].keys() and len(places[0]) == 2 * ROUNDS
        for launch in range(2):
            for number in range(0, ROUNDS, 2):
                first, second = (places[0][launch, n] < places[1][launch, n] for n in (number, number + 1))
                assert first != second, "a linear drift cancels only in ABBA or BAAB"
        assert all(abs(places[0][key] - places[1][key]) == 1 for key in places[0]), "one right after the other"


def test_which_side_comes_first_is_drawn_and_reproducible() -> None:
    drawn = [sampling_rules.first_side("c", seed=0, launch=launch, round=0) for launch in range(200)]
    assert 70 < sum(drawn) < 130
    assert drawn == [sampling_rules.first_side("c", seed=0, launch=launch, round=0) for launch in range(200)]
    assert drawn != [sampling_rules.first_side("c", seed=1, launch=launch, round=0) for launch in range(200)]


@pytest.mark.parametrize(("seed", "name"), [(3, "plain"), (4, "mün ☃")])
def test_sides_are_drawn_as_ever_and_for_names_that_the_locale_cannot_read(seed: int, name: str) -> None:
    """By Python's own seeding with the text; a name from an ASCII locale holds its bytes."""
    for number in range(0, 20, 2):
        drawn = sampling_rules.first_side(name, seed=seed, launch=number, round=number)
        assert drawn == random.Random(f"{seed}/{number}/{number // 2}/{name}").randrange(2)
        ascii_name = name.encode().decode("ascii", "surrogateescape")
        assert drawn == sampling_rules.first_side(ascii_name, seed=seed, launch=number, round=number)


def test_both_sides_make_the_same_number_of_calls(tmp_path: Path) -> None:
    """Ten times the work on one side must not change its number of calls: that would be a bias of its own."""
    dear = Cost(**{**COST.__dict__, "madds": 10_000_000})
    pair, _ = fought(tmp_path, plan_of("a:one"), cost=(costs, lambda cell: dear), launches=3)
    calls = {block.timing.calls for run in (pair.baseline, pair.candidate) for block in run.results[0].blocks}
    assert len(calls) == 1 and pair.baseline.results[0].calls == pair.candidate.results[0].calls == calls.pop()


def test_what_a_gate_keeps_in_memory_is_what_the_files_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After every launch, of both sides; no look reads a file, however long it has grown."""
    planned, read = plan_of("a:one", "a:two"), ab_pairs.run_file.load
    with AbRun(planned, HERE, tmp_path / "out", (costs, costs), planned=2) as ab:
        for launch in range(2):
            assert ab.launch([cell.id for cell in planned.cells])
            with monkeypatch.context() as patched:
                patched.setattr(ab_pairs.run_file, "load", lambda path: pytest.fail("a look reads no file"))
                kept = ab.pair()
            for side, run in zip(SIDES, (kept.baseline, kept.candidate), strict=True):
                stored = read(tmp_path / "out" / side)
                assert [each.blocks for each in run] == [each.blocks for each in stored]
                assert [each.cost for each in run] == [each.cost for each in stored]
                assert [each.warmups for each in run.launches] == [each.warmups for each in stored.launches]
                assert len(run.launches) == launch + 1
                assert (run.clock, run.environment) == (stored.clock, stored.environment)


def test_each_launch_is_a_fresh_process_of_each_side(tmp_path: Path) -> None:
    pair, _ = fought(tmp_path, plan_of("a:one"), launches=3)
    for run in (pair.baseline, pair.candidate):
        assert [launch.number for launch in run.launches] == [0, 1, 2] and run.complete
        assert {launch.stopped for launch in run.launches} == {"rounds"}


def test_a_pair_is_two_ordinary_runs_on_disk(tmp_path: Path) -> None:
    pair, _ = fought(tmp_path, plan_of("a:one"))
    assert [run_file.load(tmp_path / "out" / side) for side in SIDES] == [pair.baseline, pair.candidate]
    rounds = ab_pairs.rounds(pair, "model=one")
    assert len(rounds) == 2 * ROUNDS
    before, after = (run.results[0].blocks[0] for run in (pair.baseline, pair.candidate))
    assert rounds[0].log_ratio == pytest.approx(math.log(after.timing.cpu_ns / before.timing.cpu_ns))  # type: ignore[operator]
    with pytest.raises(StorageError, match="no pair of runs"):
        ab_pairs.load(tmp_path / "out" / "baseline")


# --- whose code runs --------------------------------------------------------------------------------


def test_both_sides_say_when_their_launches_were(tmp_path: Path) -> None:
    fought(tmp_path, plan_of("probe", "lenet"))
    for side in SIDES:
        for launch in run_file.load(tmp_path / "out" / side).launches:
            assert launch.start < launch.end and launch.at_end is not None
            assert launch.budget_s is None and launch.overhead_s is not None, "no budget ends a launch of a pair"


def test_each_side_counts_and_runs_its_own_tree(tmp_path: Path) -> None:
    """A kernel of 3 against one of 1 is nine times the multiply-adds, and a scripted clock that knows it."""
    project(tmp_path / "old", 1), project(tmp_path / "new", 3)
    planned = plan_of("nets.py:small")
    both = sites(tmp_path)
    counted = [count_in_subprocess.count_in_worker(planned.cells, 60, site)["model=small"] for site in both]
    assert all(not isinstance(found, str) for found in counted), counted
    madds = [found.cost.madds for found in counted]  # type: ignore[union-attr]
    assert madds == [4 * 4 * 64, 9 * 4 * 4 * 64]
    pair, _ = fought(tmp_path, planned, both, cost=[lambda cell, found=found: found.cost for found in counted])  # type: ignore[union-attr, misc]
    expected = [seconds_of({"madds": f.cost.madds, "memory_access_bytes": f.cost.memory_access_bytes}) for f in counted]  # type: ignore[union-attr]
    ratio = math.exp(sum(r.log_ratio for r in ab_pairs.rounds(pair, "model=small")) / (2 * ROUNDS))
    assert ratio == pytest.approx(expected[1] / expected[0], rel=0.01)


def test_a_real_clock_on_two_trees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides run what lies in their own tree, imported as a package and with a neighbour of the same name.

    In processes that import everything themselves.
    """
    monkeypatch.delenv(UNTIMED_LAUNCHES)
    for name, width in (("old", 1), ("new", 2)):
        folder = project(tmp_path / name, 1, shared=f"WIDTH = {width}\n")
        (folder / "pack").mkdir()
        (folder / "pack" / "__init__.py").write_text(
            "import torch, shared\n"
            "class Net(torch.nn.Module):\n"
            "    def forward(self, x):\n"
            "        if shared.WIDTH != 1:\n"
            "            raise RuntimeError('this is the new tree')\n"
            "        return x + 1\n"
        )
    pair, skipped = fought(tmp_path, plan_of("pack:Net", "nets.py:small", device="cpu"), sites(tmp_path), launches=1)
    assert skipped == {"baseline": {}, "candidate": {"model=Net": "RuntimeError: this is the new tree"}}
    assert len(ab_pairs.rounds(pair, "model=small")) == ROUNDS
    assert ab_pairs.rounds(pair, "model=Net") == ()


def test_a_side_that_reaches_into_the_other_tree_is_refused(tmp_path: Path) -> None:
    """As an editable install does: both sides would run the candidate's code, and any slowdown would pass."""
    project(tmp_path / "new", 1, shared="WIDTH = 2\n")
    reach = f"import sys; sys.path.append({str(tmp_path / 'new')!r}); import shared\n"
    project(tmp_path / "old", 1)
    (tmp_path / "old" / "nets.py").write_text(reach + NET.format(kernel=1))
    with pytest.raises(EffbenchError, match="'shared' was imported from the other side's tree") as refused:
        fought(tmp_path, plan_of("nets.py:small", device="cpu"), sites(tmp_path), launches=1)
    assert "--resume" not in str(refused.value), "one side of a pair is nothing to go on with"


def test_the_way_into_the_other_tree_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``python -m`` puts the folder it is called from on the path: the candidate's tree."""
    project(tmp_path / "old", 1), project(tmp_path / "new", 1, shared="WIDTH = 2\n")
    monkeypatch.syspath_prepend(tmp_path / "new")
    (tmp_path / "old" / "nets.py").write_text("import shared\n" + NET.format(kernel=1))
    _, skipped = fought(
        tmp_path, plan_of("nets.py:small", device="cpu"), sites(tmp_path), launches=1, cost=(costs, costs)
    )
    assert "imports 'shared', which is not installed" in skipped["baseline"]["model=small"]


def interpreter(folder: Path, before: str) -> str:
    """A Python of its own environment that does something first."""
    start = folder / "start.py"
    start.write_text(f"import sys, runpy\n{before}\nrunpy.run_module('effbench.runs.worker', run_name='__main__')\n")
    path = folder / "python"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{start}"\n')
    path.chmod(0o755)
    return str(path)


def test_an_interpreter_of_its_own(tmp_path: Path) -> None:
    python = interpreter(tmp_path, "import os; assert 'PYTHONPATH' not in os.environ")
    pair, skipped = fought(tmp_path, plan_of("a:one"), (Site(tmp_path, python=python), Site()), launches=1)
    assert not any(skipped.values()) and len(ab_pairs.rounds(pair, "model=one")) == ROUNDS


def test_another_effbench_on_one_side_is_refused(tmp_path: Path) -> None:
    python = interpreter(tmp_path, "import effbench._version; effbench._version.__version__ = '0.1.0'")
    with pytest.raises(NotComparable, match=r"the baseline's environment has effbench 0\.1\.0"):
        fought(tmp_path, plan_of("a:one"), (Site(tmp_path, python=python), Site()))


def test_an_interpreter_that_cannot_start(tmp_path: Path) -> None:
    python = interpreter(tmp_path, "sys.exit('No module named effbench')")
    with pytest.raises(EffbenchError, match=r"baseline's measuring process could not start: .*No module named effb"):
        fought(tmp_path, plan_of("a:one"), (Site(tmp_path, python=python), Site()))


# --- what goes wrong --------------------------------------------------------------------------------

DEADLY = """
import os, signal, torch
class Net(torch.nn.Module):
    calls = 0
    def forward(self, x):
        Net.calls += 1
        if Net.calls > {after}:
            {how}
        return x + 1
def fine():
    return torch.nn.ReLU()
"""


@pytest.mark.parametrize(
    ("how", "reason", "silence_s"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "ended by SIGKILL", 60),
        ("raise ValueError('now')", "ValueError: now", 60),
        ("import time; time.sleep(60)", "no sign of life", 6),
    ],
    ids=["killed", "raises", "hangs"],
)
def test_a_cell_that_fails_in_the_rounds_costs_only_itself(
    tmp_path: Path, how: str, reason: str, silence_s: float
) -> None:
    for name, after in (("old", 10**9), ("new", 400)):
        project(tmp_path / name)
        (tmp_path / name / "nets.py").write_text(DEADLY.format(after=after, how=how))
    planned = plan_of("nets.py:Net", "nets.py:fine", device="cpu", silence_s=silence_s)
    pair, skipped = fought(tmp_path, planned, sites(tmp_path), launches=1)
    assert not skipped["baseline"] and reason in skipped["candidate"]["model=Net"]
    assert sum(r.launch == pair.candidate.launches[-1].number for r in ab_pairs.rounds(pair, "model=fine")) == ROUNDS


def test_a_cell_that_a_side_cannot_count_is_never_measured(tmp_path: Path) -> None:
    def refuse(cell: Cell) -> Cost:
        if cell.id == "model=one":
            raise EffbenchError("there is no 'one' yet")
        return COST

    pair, skipped = fought(tmp_path, plan_of("a:one", "a:two"), cost=(refuse, costs), launches=1)
    assert skipped["baseline"] == {"model=one": "there is no 'one' yet"}
    assert ab_pairs.rounds(pair, "model=one") == () and len(ab_pairs.rounds(pair, "model=two")) == ROUNDS


def test_unlike_conditions_are_refused_by_name(tmp_path: Path) -> None:
    python = interpreter(
        tmp_path, "import os; os.environ['LD_PRELOAD'] = ''; os.environ['DNNL_DEFAULT_FPMATH_MODE'] = 'BF16'"
    )
    other = interpreter(tmp_path, "import effbench.devices.fake as f; f.Fake.facts = lambda self: {'name': 'other'}")
    assert python == other  # written anew: the second is what runs
    with pytest.raises(NotComparable, match=r"different conditions: device \(other / fake\)"):
        fought(tmp_path, plan_of("a:one"), (Site(tmp_path, python=other), Site()))


def test_nothing_is_left_running(tmp_path: Path) -> None:
    before = psutil.Process().children(recursive=True)
    fought(tmp_path, plan_of("a:one"), launches=1)
    assert psutil.Process().children(recursive=True) == before
