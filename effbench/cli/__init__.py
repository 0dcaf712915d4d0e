"""The command line: parse arguments, call the API, print, return exit codes. One module per group of commands.

``effbench --help`` and ``--version`` import nothing, so that they start in milliseconds. Each command imports its
modules when it runs.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # not from typing, whose import takes time
if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS = {
    "run": ("measure", "run", "Carry out a study and check whether its guideline holds here."),
    "compare": ("measure", "compare", "Measure models side by side: costs, speed, the paper's row."),
    "profile": ("profile", "profile", "Count what a model costs: parameters, multiply-adds, memory access."),
    "diff": ("runs", "diff", "Compare two stored runs, a verdict per cell."),
    "check": ("check", "check", "Check models against budgets, a stored run or another revision."),
    "aa": ("calibrate", "aa", "Measure how often a gate raises a false alarm here."),
    "report": ("runs", "report", "Write stored runs as one page of verdicts, tables and figures."),
    "export": ("runs", "export", "Convert a stored run to another tool's format."),
    "bundle": ("bundle", "bundle", "Export models for a machine without torch."),
    "run-bundle": ("bundle", "run_bundle", "Measure a bundle on this machine, without torch."),
    "list": ("info", "list_names", "List the names that the other commands take."),
    "doctor": ("info", "doctor", "Find what makes timings noisy on this machine, and how to fix it."),
    "fleet": ("fleet", "fleet", "Measure on many machines from one command."),
}
"""Every command: its module in this package, its function there, and the first line of its help."""

ABOUT = "Benchmark PyTorch models and check hardware-efficiency guidelines."
VERSION_HELP = "Print the version and exit."

HELP = f"""\
Usage: effbench [OPTIONS] COMMAND [ARGS]...

  {ABOUT}

Options:
  --version             {VERSION_HELP}
  --install-completion  Install completion for the current shell.
  --show-completion     Show completion for the current shell, to copy it or
                        customize the installation.
  -h, --help            Show this message and exit.

Commands:
""" + "".join(f"  {name:<10}  {text.rstrip('.')}\n" for name, (_, _, text) in COMMANDS.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that was typed and return its exit code."""
    typed = list(sys.argv[1:] if arguments is None else arguments)
    if "_EFFBENCH_COMPLETE" not in os.environ:
        if typed in ([], ["-h"], ["--help"]):
            return _printed(HELP)
        if typed == ["--version"]:
            from effbench._version import __version__

            return _printed(f"effbench {__version__}\n")
    from effbench.cli.app import main as run_command

    return run_command(typed)


def _printed(text: str) -> int:
    """Print a text and return the exit code: 0, or 2 if it cannot be written."""
    from effbench.host import streams

    try:
        sys.stdout.write(text)
        failure = streams.write_error(sys.stdout)
    except OSError as error:
        failure = error
    if failure is None:
        return 0
    from effbench.cli import output

    return 2 * output.report_write_error(failure)
