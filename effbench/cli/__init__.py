"""The command line: parse, call the API, print, exit codes. One file a group of commands."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that was typed, or these words, and return its exit code."""
    from effbench.cli.app import main as run_command

    return run_command(arguments)
