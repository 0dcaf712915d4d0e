"""What runs are called beside each other: by folder, which is a fleet's machine, and by the facts that differ."""

from __future__ import annotations

from dataclasses import replace

import runs
from pages import reference

from effbench.report.run_names import run_names
from effbench.results import Results

G2 = {"scale=x1,groups=1": 1e-3, "scale=x1,groups=2": 2e-3}


def stored(path: str, cpu: str = "Test CPU", threads: int = 1, title: str = "Made up") -> Results:
    run = runs.run_of(G2, facts={"cpu.model": cpu})
    cells = tuple(replace(result, cell=replace(result.cell, threads=threads)) for result in run.results)
    study = replace(run.experiment, name=title, title=title)
    return Results(replace(run, results=cells, path=path, experiment=study))


def called(*results: Results) -> list[str]:
    return list(map(str, run_names(dict(enumerate(results, start=1))).values()))


def test_machines_are_named_by_their_folder_and_by_the_hardware_where_it_differs() -> None:
    pis = [stored(f"/fleet/g2/{name}/run.jsonl", "Cortex-A76") for name in ("pi5-a", "pi5-b")]
    assert called(*pis) == ["1: pi5-a", "2: pi5-b"]
    assert called(*pis, stored("/fleet/g2/gpu-1/run.jsonl", "Xeon")) == [
        "1: pi5-a, Cortex-A76 (cpu)",
        "2: pi5-b, Cortex-A76 (cpu)",
        "3: gpu-1, Xeon (cpu)",
    ]


def test_a_heading_of_a_figure_has_the_hardware_even_where_it_is_the_same() -> None:
    pis = {n: stored(f"/fleet/g2/pi5-{n}/run.jsonl", "Cortex-A76", threads=n) for n in (1, 2)}
    assert [(name.title, name.setting) for name in run_names(pis).values()] == [
        ("1: pi5-1", "Cortex-A76 (cpu), 1 thread"),
        ("2: pi5-2", "Cortex-A76 (cpu), 2 threads"),
    ]


def test_one_machine_in_two_folders_is_told_apart_by_the_folder_above() -> None:
    assert called(stored("/g2/pi5-a/run.jsonl"), stored("/g2-again/pi5-a/run.jsonl")) == [
        "1: g2/pi5-a",
        "2: g2-again/pi5-a",
    ]
    assert called(stored("/g2/pi5-a/run.jsonl"), stored("/g3/pi5-a/run.jsonl", title="Other")) == [
        "1: pi5-a, Made up",
        "2: pi5-a, Other",
    ]
    assert called(stored("/g2/pi5-a/run.jsonl"), stored("/g2/pi5-a/run.jsonl")) == ["1: g2/pi5-a", "2: g2/pi5-a"]


def test_a_folder_that_effbench_named_is_shown_only_where_nothing_else_differs() -> None:
    dated = [f"results/runs/20261129-10150{n}-g2_groups-cpu/run.jsonl" for n in (1, 2)]
    assert called(stored(dated[0]), stored(dated[1], threads=2)) == ["1: 1 thread", "2: 2 threads"]
    assert called(*map(stored, dated)) == [f"{n}: 20261129-10150{n}-g2_groups-cpu" for n in (1, 2)]


def test_files_of_other_names_in_one_folder_go_by_their_own() -> None:
    assert called(stored("/runs/pi5-a.jsonl"), stored("/runs/pi5-b.jsonl")) == ["1: pi5-a", "2: pi5-b"]


def test_runs_that_are_not_stored_are_named_by_what_differs_or_when_they_were_made() -> None:
    one, two = (replace(stored("").run, path=None, created=when) for when in ("2026-01-01", "2026-01-02"))
    assert called(Results(one), Results(two)) == ["1: 2026-01-01", "2: 2026-01-02"]
    assert [name.title for name in run_names({1: stored(""), 2: stored("", threads=2)}).values()] == ["run 1", "run 2"]
    assert called(Results(replace(one, created=""))) == ["1"]


def test_stored_runs_are_named_by_folder_and_reading() -> None:
    assert called(reference("g2_groups"), reference("g2_groups_again")) == ["1: g2_groups", "2: g2_groups_again"]
    assert called(reference("g1_channel_ratio"), reference("g1_channel_ratio_equal")) == [
        "1: g1_channel_ratio, widths paper",
        "2: g1_channel_ratio_equal, widths equal",
    ]
