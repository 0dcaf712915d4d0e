"""The text of an error that other code raised, for a message of one line."""

from __future__ import annotations

import pytest

from effbench.core.errors import first_line


class _Unreadable(Exception):
    def __str__(self) -> str:
        raise TypeError("no text")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("\n  CUDA error: no kernel\nCompile with it\n"), "CUDA error: no kernel"),
        (RuntimeError(""), "RuntimeError"),
        (RuntimeError(" \n"), "RuntimeError"),
        (_Unreadable(), "_Unreadable"),
    ],
)
def test_the_first_line_of_an_error_is_never_empty(error: Exception, expected: str) -> None:
    assert first_line(error) == expected


def test_the_first_line_is_shortened_on_request() -> None:
    assert first_line(ValueError("x" * 500), 120) == "x" * 120
    assert first_line(ValueError("x" * 500)) == "x" * 500
