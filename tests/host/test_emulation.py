"""Runs under emulation: costs are shown, and nothing derived from times is shown anywhere."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pages import store
from runs import CELLS, COST, run_of
from shell import effbench, refusal

from effbench import export
from effbench.analysis import run_diff, time_shares
from effbench.core.errors import EffbenchError, InvalidValue, NotComparable
from effbench.core.operator_times import Breakdown, OperatorTime
from effbench.core.run import Environment, Launch, Metric, Run
from effbench.core.study import Case, Experiment
from effbench.gates import ab_pairs, baseline
from effbench.gates.ab_run import AbRun
from effbench.gates.decision_rule import Rule
from effbench.host import facts
from effbench.host.emulation import EMULATED
from effbench.host.worker_process import Site
from effbench.report import page
from effbench.results import Results
from effbench.runs import runner
from effbench.studies import plan

MODELS = tuple(f"model={name}" for name in ("shufflenet_v2", "mobilenet_v2", "resnet18", "densenet121", "vgg16"))


def run(scale: float, *, models: bool = False, emulated: bool = True, seed: int = 0) -> Run:
    """A run of a study, or of models, in which everything that a clock said is drawn anew and `scale` times as long."""
    draw = random.Random(seed)
    experiment, cells = None, CELLS
    if models:
        cases = tuple(Case(name.partition("=")[2], (3, 224, 224), labels={"model": name[6:]}) for name in MODELS)
        names = tuple(case.model for case in cases)
        experiment = Experiment("comparison", "Models", "", "model", names, names[0], cases, breakdown="merged")
        cells = tuple(case.id for case in cases)
    found = run_of(
        {cell: scale * draw.uniform(1e-3, 5e-3) for cell in cells},
        experiment=experiment,
        seed=seed,
        facts={"host.emulated": emulated},
    )
    seconds = scale * draw.uniform(1e-3, 2e-3)
    split = Breakdown((OperatorTime("aten::conv2d", "aten::conv2d", "", seconds / 2, 1),), 1, seconds, seconds)

    def clocked(launch: Launch) -> Launch:
        probe = {"bound": draw.choice(["host", "device"]), "host_over_device": draw.uniform(1, 3)}
        probe |= {"prepare_s": draw.uniform(1, 9), "load_s": draw.uniform(0, 1), "artefact_bytes": 1000, "pieces": 2}
        return replace(
            launch,
            null_call_ns=draw.uniform(50, 90),
            breakdowns=dict.fromkeys(cells, split),
            probes=dict.fromkeys(cells, probe),
            warmups={cell: replace(item, steady=draw.random() < 0.5) for cell, item in launch.warmups.items()},
        )

    bounds = {level: scale * draw.uniform(1e-4, 1e-3) for level in ("layer", "eager", "pointwise", "epilogue")}
    results = tuple(replace(result, bounds_s=bounds) for result in found.results)
    return replace(found, results=results, launches=tuple(map(clocked, found.launches)))


def shown(run: Run, folder: Path) -> dict[str, str]:
    """Everything that a person or a program gets to see of a run, but the raw blocks and how the warm-ups went."""
    results = Results(run)
    files = results.write(folder)
    texts = {name: path.read_text() for name, path in files.items() if path.suffix in (".md", ".csv", ".svg")}
    written = page.markdown([results], folder)
    return {
        **texts,
        "page": "\n".join(line for line in written.splitlines() if "steady state" not in line),
        "json": json.dumps(results.to_dict()),
        "frame": results.to_frame().to_csv(),
        "breakdown": repr(time_shares.split(run)),
        "verdicts": repr(results.verdicts),
    }


@pytest.mark.parametrize("models", [False, True])
def test_nothing_that_is_shown_depends_on_a_time(tmp_path: Path, models: bool) -> None:
    """Two runs in which every clock said something else look the same, to the last byte."""
    one, other = (shown(run(scale, models=models, seed=seed), tmp_path / "run") for scale, seed in ((1, 1), (900, 2)))
    assert one.keys() == other.keys()
    for name, text in one.items():
        assert text == other[name], name
    for name in ("table.md", "json", "frame", "breakdown", "page"):
        assert EMULATED in one[name].replace("Emulated", "emulated") or (name == "breakdown" and not models), name
    real = [Results(run(scale, models=models, emulated=False, seed=scale)) for scale in (1, 2)]
    assert str(real[0]) != str(real[1]) and real[0].to_dict() != real[1].to_dict()


def test_costs_stay_and_the_reason_stands_where_the_times_would() -> None:
    results = Results(run(1))
    for cell in results.cells:
        assert cell.cost is not None and cell.cost.madds == 1000
        assert (cell.latency, cell.busy, cell.ratio, cell.throughput, cell.bounds_s) == (None,) * 5
        assert cell.flags == (EMULATED,) and cell.blocks == 60
    assert {item.verdict for item in results.verdicts} == {"unsure"}
    assert all(EMULATED in item.reason and item.headline.ratio is None for item in results.verdicts)
    assert len(results.blocks_frame()) == 180, "raw blocks are kept"


def test_a_scripted_clock_keeps_its_own_time_under_emulation() -> None:
    found = run(1)
    fake = replace(found, environment=Environment("fake", "eager", found.environment.facts))
    assert all(cell.latency is not None for cell in Results(fake).cells)


@pytest.mark.parametrize("name", sorted(export.FORMATS))
def test_no_other_tool_gets_such_a_time(name: str) -> None:
    with pytest.raises(InvalidValue, match=EMULATED):
        export.export(run(1), name)


@pytest.mark.parametrize("sides", [(True, True), (True, False), (False, True)])
def test_two_runs_are_not_compared_where_one_was_emulated(sides: tuple[bool, bool]) -> None:
    before, after = (run(1, emulated=side) for side in sides)
    comparisons = run_diff.compare_runs(before, after)
    assert {(item.verdict, item.change, item.reason) for item in comparisons} == {("missing", None, EMULATED)}
    findings = baseline.judge(before, after, CELLS, Rule(), {})
    assert {item.verdict for item in findings} == {"ENVIRONMENT"}
    for item in findings:
        assert EMULATED in item.reason and (item.change, item.wall, item.detectable) == (None,) * 3
    assert ab_pairs.rounds(ab_pairs.Pair(before, after), CELLS[0]) == ()
    assert baseline.geomean(before, after, CELLS, None) is None


def test_the_commands_say_it_in_one_line(tmp_path: Path) -> None:
    store(run(1), tmp_path / "run")
    for words in (("export", "run", "--format", "bmf"), ("export", "run", "--format", "openmetrics")):
        assert EMULATED in refusal(effbench(*words, cwd=tmp_path))
    done = effbench("diff", "run", "run", cwd=tmp_path)
    assert done.code == 0 and done.out.count(EMULATED) == len(CELLS)


# --- while it measures ------------------------------------------------------------------------------


@pytest.fixture
def translated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is measured is taken to be emulated, a scripted clock too."""
    monkeypatch.setattr("effbench.host.machine.emulated", lambda *_, **__: True)
    for place in ("runs.runner", "gates.ab_run"):
        monkeypatch.setattr(f"effbench.{place}.is_emulated", lambda _: True)


def quickly(device: str = "fake", **options: Any) -> plan.Plan:
    case = Case("probe_groups", (8, 8, 8), {"channels": 8, "groups": 1, "blocks": 1}, labels={"groups": 1})
    study = Experiment("tiny", "Tiny", "c", "groups", (1,), 1, (case,))
    sampling = {"launches": 1, "min_rounds": 2, "max_rounds": 2, "warmup_s": 0.0, "max_warmup_s": 0.05}
    return plan.make(study, device=device, sampling={**sampling, "block_s": 0.001}, **options)


@pytest.mark.usefixtures("translated")
def test_no_peak_is_measured_and_no_reading_taken_but_instructions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []

    def measure_cells(job: Any, cells: Any, *_: Any) -> list[tuple[str, Metric]]:
        taken.append(job["task"])
        return [(cell["id"], Metric(job["task"], {"per_call": 1000})) for cell in cells]

    monkeypatch.setattr("effbench.metrics.base.measure_cells", measure_cells)
    with pytest.raises(EffbenchError, match=EMULATED):
        runner.find_peaks(quickly("cpu"), "float32", remeasure=True)
    planned = quickly(metrics=("percentiles", "energy", "peak_memory", "instructions"))
    found = runner.execute(planned, tmp_path / "run", profile=lambda _: COST)
    (result,) = found.results
    assert found.environment.facts["host.emulated"] is True and result.blocks
    assert taken == ["instructions"]
    missing = {item.what: item.missing for item in result.metrics}
    assert missing == {"percentiles": EMULATED, "energy": EMULATED, "peak_memory": EMULATED, "instructions": None}


@pytest.mark.usefixtures("translated")
def test_the_interleaved_gate_refuses_before_it_measures(tmp_path: Path) -> None:

    planned = quickly()
    with (
        pytest.raises(NotComparable, match=EMULATED),
        AbRun(planned, (Site(), Site()), tmp_path / "out", (lambda _: COST, lambda _: COST), planned=1) as ab,
    ):
        ab.launch([cell.id for cell in planned.cells])


def test_an_emulated_machine_is_not_the_one_it_emulates() -> None:
    found = facts.differences(run(1, emulated=False).environment, run(1).environment)
    assert [item.field for item in found] == ["host.emulated"]


@pytest.mark.usefixtures("translated")
def test_a_test_that_times_is_skipped() -> None:
    from effbench.pytest_plugin import Effbench

    with pytest.raises(pytest.skip.Exception, match=EMULATED):
        Effbench(benchmark=None, block_clock=None, sampling={}).measure("shufflenet_v2")  # type: ignore[arg-type]
