"""The documentation page about Arm: its commands exist, and its statements about the code are true."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

sys.path.insert(0, str(Path(__file__).parents[1] / "arm"))

import machines
import userland

from effbench.cli.app import command_line
from effbench.host import machine
from effbench.host.emulation import EMULATED

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "arm.md").read_text(encoding="utf-8")
COMMANDS = sorted(set(re.findall(r"^ {4,}(effbench .*?)(?: +#.*)?$", PAGE, re.M)))


def subcommand(name: str) -> Any:
    return typer.main.get_command(command_line()).commands[name]  # type: ignore[attr-defined]


@pytest.mark.parametrize("line", COMMANDS)
def test_each_command_is_one_that_effbench_takes(line: str) -> None:
    """Its words are parsed by the real command line, and nothing is started."""
    _, name, *words = shlex.split(line)
    subcommand(name).make_context(name, words)


def test_there_are_commands_and_others_are_refused() -> None:
    assert len(COMMANDS) >= 12
    with pytest.raises(Exception, match="No such option"):
        subcommand("run").make_context("run", ["g2_groups", "--clusters", "big"])


def test_the_processors_it_names_are_the_ones_that_effbench_names(tmp_path: Path) -> None:
    for name in ("PI_4", "PI_5", "GRAVITON_2", "GRAVITON_3"):
        model = str(machine.cpu(getattr(machines, name).under(tmp_path / name))["cpu.model"])
        told = model.removeprefix("Arm ")
        assert told in PAGE or told.removeprefix("Neoverse-") in PAGE, model
    assert EMULATED in PAGE


def test_the_torch_of_the_userland_is_the_one_the_page_gives() -> None:
    assert userland.TORCH in PAGE
    assert "make test-arm" in PAGE and "test-arm:" in (ROOT / "Makefile").read_text()
