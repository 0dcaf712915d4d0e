"""Summaries, verdicts and tables are computed once a command, however many outputs show them."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from shell import study_file

from effbench import report
from effbench.analysis import rank_agreement, summary, verdicts
from effbench.cli import app
from effbench.runs import run_file


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Counter[str]:
    """How often each conclusion was drawn, in this process."""
    counts: Counter[str] = Counter()

    def count(module: Any, name: str) -> None:
        computed: Callable[..., Any] = getattr(module, name)

        def counting(*given: Any, **named: Any) -> Any:
            counts[name] += 1
            return computed(*given, **named)

        monkeypatch.setattr(module, name, counting)

    for module, name in [
        (run_file, "parse"),
        (summary, "_summarise"),  # one a cell, by whatever name `summarise` was imported
        (verdicts, "judge"),
        (rank_agreement, "agreements"),
        (report, "run_tables"),
    ]:
        count(module, name)
    monkeypatch.setattr(report, "run_figures", lambda *given: counts.update(figures=1) or {})  # drawing takes seconds
    monkeypatch.chdir(tmp_path)
    return counts


def carried_out(counts: Counter[str], *words: str) -> Counter[str]:
    counts.clear()
    assert app.main(words) == 0
    return Counter(counts)


FAKE = ("--device", "fake", "--launches", "1")
RUN = {"parse": 1, "_summarise": 2, "judge": 1, "run_tables": 1, "figures": 1}
COMPARISON = {**RUN, "agreements": 1}


def test_every_command_draws_each_conclusion_once(counted: Counter[str], tmp_path: Path) -> None:
    study_file(tmp_path)
    assert carried_out(counted, "run", "tiny.py", *FAKE, "--out", "a") == RUN
    shutil.copytree("a", "b")
    pair = ("shufflenet_v2_x0_5", "mobilenet_v2")
    assert carried_out(counted, "compare", *pair, *FAKE, "--budget", "1s", "--out", "c", "--json") == COMPARISON
    assert carried_out(counted, "report", "a") == RUN
    assert carried_out(counted, "report", "c", "--format", "md") == COMPARISON
    both = {name: 2 * number for name, number in RUN.items()}
    assert carried_out(counted, "report", "a", "b", "--out", "both.html") == both
    assert carried_out(counted, "export", "a", "--format", "pyperf", "--out", "p.json") == {"parse": 1, "_summarise": 2}
    assert carried_out(counted, "diff", "a", "b", "--ignore-environment") == {"parse": 2, "_summarise": 4}


def test_a_gate_summarises_nothing(counted: Counter[str]) -> None:
    """It decides on rounds; what a run of the same cells would conclude is not its question."""
    model = ("shufflenet_v2_x0_5", *FAKE)
    assert carried_out(counted, "check", *model, "--save-baseline", "base") == {"parse": 1}
    counted.clear()
    assert app.main(("check", *model, "--baseline", "base", "--out", "now")) in (0, 3)
    assert set(counted) == {"parse"}
