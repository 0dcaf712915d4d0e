"""Start-up of the command: no needless imports, and help printed without typer equals the help of typer."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import typer
from shell import environment

from effbench import cli
from effbench.cli.app import command_line

GROUP: Any = typer.main.get_command(command_line())


def modules_of(*words: str) -> set[str]:
    """What a process has imported that ran this command."""
    code = (
        f"import sys; sys.argv = ['effbench', *{words!r}]\n"
        "from effbench.__main__ import start\n"
        "code = start()\n"
        "print('\\n'.join(sys.modules), file=sys.stderr)\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines())


@pytest.mark.parametrize("words", [(), ("-h",), ("--help",), ("--version",)])
def test_help_and_version_import_no_library(words: tuple[str, ...]) -> None:
    ours = {name for name in modules_of(*words) if name.startswith("effbench")}
    assert ours <= {
        "effbench",
        "effbench.__main__",
        "effbench._version",
        "effbench.cli",
        "effbench.host",
        "effbench.host.streams",
    }
    assert not {"typer", "click", "rich", "dataclasses", "inspect", "json", "pathlib"} & modules_of(*words)


def test_a_command_imports_its_own_module_alone() -> None:
    found = modules_of("list", "devices")
    assert "effbench.cli.info" in found
    assert not {f"effbench.cli.{name}" for name in ("check", "calibrate", "bundle", "profile", "runs")} & found


def test_the_help_is_that_of_the_real_commands() -> None:
    told = " ".join(cli.HELP.split())
    assert list(GROUP.commands) == list(cli.COMMANDS)
    for name, command in GROUP.commands.items():
        text = cli.COMMANDS[name][2]
        assert command.help.partition("\n")[0] == text, name
        assert f"\n  {name:<10}  {text.removesuffix('.')}\n" in cli.HELP
    context = GROUP.make_context("effbench", [], resilient_parsing=True)
    for parameter in GROUP.get_params(context):
        assert " ".join(parameter.help.split()) in told and all(word in told for word in parameter.opts)
    assert GROUP.help in told and GROUP.get_usage(context) in told
    assert max(map(len, cli.HELP.splitlines())) <= 80


def test_help_of_the_group_beside_other_words_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help", "run"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n  {name} " in said for name in cli.COMMANDS)
