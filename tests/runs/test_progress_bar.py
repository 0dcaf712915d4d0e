"""The progress bar: shown in a terminal, in a notebook, and on request."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from effbench.runs import progress_bar
from effbench.runs.runner import Progress


def test_without_a_terminal_or_a_notebook_nothing_is_drawn(capfd: pytest.CaptureFixture[str]) -> None:
    with progress_bar.bar_watch() as watch:
        watch(Progress(0.5, "launch 1", "a note"))
    assert capfd.readouterr() == ("", "")


def test_whoever_asks_sees_bar_and_notes_on_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    with progress_bar.bar_watch(True) as watch:
        watch(Progress(0.5, "launch [1]", "a note"))
    out, err = capfd.readouterr()
    assert out == "" and "effbench: a note\n" in err and "50%" in err and "launch" in err


class Output:
    """The output of a cell: everything that it has shown."""

    def __init__(self) -> None:
        self.shown: list[Any] = []

    def update(self, item: Any) -> None:
        self.shown.append(item)


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Output:
    """A kernel without ipywidgets."""
    output, ipython, display = Output(), ModuleType("IPython"), ModuleType("IPython.display")

    def show(item: Any, *, display_id: bool) -> Output:
        assert display_id
        output.update(item)
        return output

    ipython.get_ipython = lambda: SimpleNamespace(kernel=None)  # type: ignore[attr-defined]
    display.display, display.HTML = show, lambda text: f"HTML {text}"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    monkeypatch.setattr(progress_bar, "REDRAWS_PER_S", 1e9)
    return output


def test_a_notebook_sees_one_output_that_is_empty_in_the_end(notebook: Output) -> None:
    with pytest.raises(KeyboardInterrupt), progress_bar.bar_watch() as watch:
        watch(Progress(0.25, "launch 1"))
        watch(Progress(0.75, "launch 2"))
        raise KeyboardInterrupt
    assert len(notebook.shown) == 4 and notebook.shown[-1] == "HTML "
    assert notebook.shown[2]._repr_mimebundle_([], [])["text/html"].count("launch 2") == 1


def test_a_notebook_that_asks_for_none_sees_none(notebook: Output) -> None:
    with progress_bar.bar_watch(False) as watch:
        watch(Progress(0.25, "launch 1"))
    assert not notebook.shown
