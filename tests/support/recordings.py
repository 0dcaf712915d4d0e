"""Recordings made up for tests of the gate: rounds and evidence whose truth is known."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

import numpy

from effbench.gates.ab_pairs import Round
from effbench.gates.evidence import Evidence

Source = dict[str, list[list[Round]]]
"""Each cell's launches of rounds."""


def recorded(
    *,
    cells: int = 4,
    launches: int = 20,
    rounds: int = 12,
    within: float = 0.02,
    between: float = 0.008,
    drift: float = 0.0,
    flagged: float = 0.0,
    seed: int = 0,
) -> Source:
    """An A/A measurement: log-normal noise of both sides by round, of the ratio by launch, of both sides by launch."""
    draw = random.Random(seed)
    found: Source = {}
    for cell in range(cells):
        found[f"cell{cell}"] = []
        for launch in range(launches):
            common, offset = draw.gauss(0, drift), draw.gauss(0, between)
            side = within / math.sqrt(2)
            found[f"cell{cell}"].append(
                [
                    Round(
                        launch,
                        number,
                        1e-3 * math.exp(common + draw.gauss(0, side)),
                        1e-3 * math.exp(common + offset + draw.gauss(0, side)),
                        ("shared",) if draw.random() < flagged else (),
                    )
                    for number in range(rounds)
                ]
            )
    return found


def flat(source: Source) -> dict[str, list[Round]]:
    """Each cell's rounds, in the order of time."""
    return {cell: [item for launch in launches for item in launch] for cell, launches in source.items()}


def evidence(source: Source) -> Evidence:
    return Evidence.of_rounds(flat(source)).recorded()


def of_ratios(ratios: Mapping[str, Sequence[Sequence[float]]]) -> Evidence:
    """Evidence of these log ratios, by cell and launch, none of them disturbed."""
    return Evidence.of_rounds(
        {
            cell: [
                Round(launch, number, 1.0, math.exp(value))
                for launch, values in enumerate(launches)
                for number, value in enumerate(values)
            ]
            for cell, launches in ratios.items()
        }
    )


def of_array(values: numpy.ndarray, cells: Sequence[str]) -> Evidence:
    """Evidence of these log ratios (cells × launches × rounds), none of them disturbed."""
    none = numpy.zeros((*values.shape[:2], 2), dtype=int)
    return Evidence(tuple(cells), tuple(range(values.shape[1])), "wall", values, None, none, none)
