"""Dispatch a command; turn errors into one line and an exit code.

Exit codes: 0 done, 2 an error that the user can fix, 4 a run that others disturbed, 5 a run with launches left (--now),
70 a bug in effbench, 130 interrupted (129, 143: by SIGHUP, SIGTERM). `effbench check` has others for its verdicts. With
``--json`` standard output holds exactly one object; progress and notes go to standard error.
"""

from __future__ import annotations

import errno
import io
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from effbench.cli import ABOUT, COMMANDS, VERSION_HELP, output
from effbench.core.errors import EffbenchError, UnknownName
from effbench.host import optional_packages

# The base of typer's usage errors, reached through a public class: typer ships click under another name from 0.16 on.
_ClickError: type[Exception] = typer.BadParameter.__mro__[2]


def command_line(names: Sequence[str] = tuple(COMMANDS)) -> typer.Typer:
    """The command line with these commands. Imports their modules."""
    app = typer.Typer(
        name="effbench",
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        help=ABOUT,
    )
    app.callback(invoke_without_command=True)(_effbench)
    for name in names:
        module, function, about = COMMANDS[name]
        found = getattr(import_module(f"effbench.cli.{module}"), function)
        if isinstance(found, typer.Typer):
            app.add_typer(found, name=name, help=about)
        else:
            app.command(name=name)(found)
    return app


def _effbench(version: Annotated[bool, typer.Option("--version", help=VERSION_HELP)] = False) -> None:
    if version:
        from effbench import __version__

        print(f"effbench {__version__}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Tracebacks are printed only with EFFBENCH_DEBUG=1, for bug reports."""
    typed = list(sys.argv[1:] if arguments is None else arguments)
    output.typed_command.set(shlex.join(["effbench", *typed]))
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show × gets an escape, not a crash.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with output.handle_signals():
        return _carry_out(typed)


def _carry_out(typed: Sequence[str]) -> int:
    try:
        with output.short_warnings():
            # Import only the command that runs: importing all would double the start-up time.
            names = typed[:1] if typed and typed[0] in COMMANDS else tuple(COMMANDS)
            app = command_line(names)
            code = app(list(typed) or ["--help"], prog_name="effbench", standalone_mode=False)
        if code == 130 and not output.is_interrupt_reported():  # typer turns Ctrl-C into this code, without a message
            return output.report_interrupt()
        return output.flush_output(code if isinstance(code, int) else 0)
    except EffbenchError as error:
        return output.print_error(str(error))
    except _ClickError as error:
        return output.print_error(_report_usage_error(error, typed))
    except (KeyboardInterrupt, typer.Abort):
        return output.report_interrupt()
    except SystemExit as stop:
        # typer turns a closed pipe into exit 1. A reader that stops early (`| head`) is no error.
        return (
            output.discard_output()
            if isinstance(stop.__context__, BrokenPipeError)
            else output.flush_output(int(stop.code or 0))
        )
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return _report_bug(error)
        output.discard_output()
        return output.print_error(f"cannot write: {error.strerror}; free space there and begin again")
    except Exception as error:
        message = optional_packages.missing_package_message(error) if isinstance(error, ModuleNotFoundError) else None
        return output.print_error(message) if message else _report_bug(error)


def _report_bug(error: Exception) -> int:
    """Report a bug of effbench in one line. Returns exit code 70."""
    if output.was_interrupted():
        return output.report_interrupt()
    if os.environ.get("EFFBENCH_DEBUG"):
        traceback.print_exception(error)
    where = traceback.extract_tb(error.__traceback__)[-1]
    text = f"{type(error).__name__}: {error}".partition("\n")[0]
    place = f"{Path(where.filename).name}:{where.lineno}"
    return output.print_error(f"internal error ({text}, {place}); EFFBENCH_DEBUG=1 shows more", 70)


def _report_usage_error(error: Any, typed: Sequence[str]) -> str:
    message = str(error.format_message())
    words = [word for word in typed if not word.startswith("-")]
    if words[:1] == ["fleet"]:
        from effbench.cli.fleet import COMMANDS as OF_FLEET

        known, before, words = tuple(OF_FLEET), ["fleet"], words[1:]
    else:
        known, before = tuple(COMMANDS), []
    if message.startswith("No such command"):
        return str(UnknownName(" ".join([*before, "command"]), words[0] if words else "", known))
    command = next((word for word in words if word in known), "")
    again = shlex.join(["effbench", *before, *([command] if command else []), "--help"])
    return f"{message.partition(chr(10))[0].rstrip('.')}; see {again}"
