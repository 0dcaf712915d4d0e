"""The progress of many machines, as it is shown."""

from __future__ import annotations

import io
import sys

import pytest

from effbench.cli.fleet_progress import show_machines, words
from effbench.fleet.conductor import Progress


def test_outside_of_a_terminal_a_line_for_each_launch_and_each_trouble(capsys: pytest.CaptureFixture[str]) -> None:
    with show_machines() as tell:
        for step in (
            Progress("pi5-a", "queued", 0, 3),
            Progress("pi5-a", "measuring", 0, 3, doing="round 1"),
            Progress("pi5-a", "measuring", 0, 3, doing="round 2"),
            Progress("pi5-b", "away", 0, 3, why="not there for 1 s"),
            Progress("pi5-b", "away", 0, 3, why="not there for 2 s"),
            Progress("pi5-a", "queued", 1, 3),
            Progress("pi5-a", "complete", 3, 3),
        ):
            tell(step)
    assert capsys.readouterr().err.splitlines() == [
        "effbench: pi5-a: 0 of 3 launches, queued",
        "effbench: pi5-b: 0 of 3 launches, away: not there for 1 s",
        "effbench: pi5-a: 1 of 3 launches, queued",
        "effbench: pi5-a: 3 of 3 launches, complete",
    ]


def test_in_a_terminal_a_bar_for_each_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with show_machines() as tell:
        tell(Progress("pi5-a", "measuring", 1, 4, doing="launch 2/4: [bold]round 3", done=0.3))
        tell(Progress("pi5-b", "busy", 0, 4, why="another launch holds the lock"))
    shown = screen.getvalue()
    assert "pi5-a" in shown and "30%" in shown and "launch 2/4: [bold]round 3" in shown  # its markup is no markup
    assert "busy: another launch holds the lock" in shown


def test_words_are_printable() -> None:
    assert words(Progress("pi5-a", "failed", 1, 2, why="a\x1b[31m\nb")) == "1 of 2 launches, failed: a [31m b"
    assert words(Progress("pi5-a")) == "0 of ? launches, waiting"
