"""Captured output of libraries: nothing reaches the terminal, and streams are restored afterwards."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings

import pytest

from effbench.runtimes.capture_output import captured_output


def chatter() -> None:
    os.write(1, b"from below, out\n")
    os.write(2, b"from below, err\n")
    print("print", flush=True)
    print("print err", file=sys.stderr)
    logging.getLogger("a.library").error("log line")
    warnings.warn("deprecated", DeprecationWarning, stacklevel=1)  # an error under pytest, were it not dropped


def test_nothing_reaches_the_terminal_and_what_was_written_can_be_read(capfd: pytest.CaptureFixture[str]) -> None:
    with captured_output() as said:
        chatter()
        assert "from below, out\nfrom below, err\n" in said()
    assert capfd.readouterr() == ("", "")
    os.write(1, b"after")
    assert capfd.readouterr() == ("after", "")


@pytest.mark.parametrize("fails", [False, True])
def test_levels_handlers_and_filters_are_as_before(fails: bool) -> None:
    root = logging.getLogger()

    def state() -> object:
        descriptors = sorted(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else []
        return root.manager.disable, root.level, list(root.handlers), list(warnings.filters), len(descriptors)

    before = state()
    with contextlib.suppress(ZeroDivisionError), captured_output():
        root.addHandler(logging.NullHandler())
        root.setLevel(logging.DEBUG)
        warnings.simplefilter("always")
        if fails:
            1 / 0  # noqa: B018
    assert state() == before


def test_what_was_buffered_before_is_not_swallowed(capfd: pytest.CaptureFixture[str]) -> None:
    sys.stdout.write("before")
    with captured_output():
        pass
    assert capfd.readouterr().out == "before"
