"""Runs made up for tests: a small study with blocks whose ratios are known exactly."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import replace

from effbench.core.cost import Cost, Traffic
from effbench.core.run import Block, Environment, Launch, Result, Run, Timing, Warmup
from effbench.core.study import Case, Cell, Claim, Experiment, Sampling

TRAFFIC = {level: Traffic(10, 90, 40, 360) for level in ("layer", "eager", "pointwise", "epilogue")}
COST = Cost(params=10, madds=1000, activations=90, elementwise=0, memory_access_levels=TRAFFIC)


def study(levels: tuple[int, ...] = (1, 2, 4), scales: tuple[str, ...] = ("x1",)) -> Experiment:
    """A study in the manner of G2: `groups` is the factor, 1 its reference."""
    cases = tuple(
        Case("probe", (4, 8, 8), {"groups": level}, labels={"scale": scale, "groups": level})
        for scale in scales
        for level in levels
    )
    others = levels[1:]
    return Experiment(
        name="made_up",
        title="Made up",
        claim="More groups run slower",
        factor="groups",
        levels=levels,
        reference=levels[0],
        cases=cases,
        claims=(
            Claim(
                "slower",
                "every level is slower",
                tuple((level, levels[0]) for level in others),
                (levels[-1], levels[0]),
            ),
            Claim("ordered", "time grows", tuple(zip(others, levels, strict=False)), (levels[-1], levels[0])),
        ),
    )


def run_of(
    times_s: Mapping[str, float],
    *,
    experiment: Experiment | None = None,
    launches: int = 5,
    rounds: int = 12,
    noise: float = 0.001,
    launch_noise: float = 0.001,
    seed: int = 0,
    facts: Mapping[str, object] | None = None,
) -> Run:
    """A complete run whose cells take these seconds a call, times log-normal noise per block and per launch."""
    draw = random.Random(seed)
    experiment = experiment or study()
    blocks: dict[str, list[Block]] = {cell: [] for cell in times_s}
    for launch in range(launches):
        offsets = {cell: draw.gauss(0, launch_noise) for cell in times_s}
        for number in range(rounds):
            for position, (cell, seconds) in enumerate(times_s.items()):
                spent = round(seconds * 4 * math.exp(offsets[cell] + draw.gauss(0, noise)) * 1e9)
                timing = Timing(calls=4, wall_ns=spent, cpu_ns=spent)
                blocks[cell].append(Block(launch, number, position, cell, timing))
    cases = {case.id: case for case in experiment.cases}
    steady = {cell: Warmup(cell, 10, 0.1, True) for cell in times_s}
    return Run(
        experiment=experiment,
        environment=Environment("cpu", "eager", {"device": "cpu", "cpu.model": "Test CPU", **(facts or {})}),
        sampling=Sampling(launches=launches),
        results=tuple(Result(Cell(cases[cell]), COST, calls=4, blocks=tuple(blocks[cell])) for cell in times_s),
        launches=tuple(Launch(n, n, "precision", 1.0, warmups=steady, null_call_ns=60.0) for n in range(launches)),
        clock="cpu",
        complete=True,
        created="2026-01-01T00:00:00+00:00",
        command="effbench run made_up",
    )


def with_blocks(run: Run, cell: str, change: object) -> Run:
    """The run with every timing of one cell replaced by `change(timing)`."""
    results = tuple(
        replace(result, blocks=tuple(replace(block, timing=change(block.timing)) for block in result.blocks))  # type: ignore[operator]
        if result.cell.id == cell
        else result
        for result in run.results
    )
    return replace(run, results=results)


CELLS = ("scale=x1,groups=1", "scale=x1,groups=2", "scale=x1,groups=4")
