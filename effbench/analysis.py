"""A study that measures nothing: it reads data that are already there and says what follows from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Tell = Callable[[float, str], None]


@dataclass(frozen=True)
class Analysis:
    """A question that stored or published data answer. A file in ``experiments/`` ends in ``ANALYSIS = Analysis(…)``.

    `analyse` gets what ``--select LABEL=VALUE[,VALUE]`` chose, by label, and a function to tell how far it has come (a
    share of 1, and what it is doing); it returns a `report.outcome.Outcome`. `options` are the labels that it
    understands, each with what it means.
    """

    name: str
    title: str
    claim: str
    analyse: Callable[[Mapping[str, Sequence[str]], Tell], Any]
    options: Mapping[str, str] = field(default_factory=dict)
