"""The copy of a run that a machine of a fleet holds: it is read like any run, and goes on there alone."""

from __future__ import annotations

from pathlib import Path

import pytest

import effbench
from effbench.core.errors import EffbenchError
from effbench.runs import run_file, runner, schedule

STORED = Path(__file__).parents[2] / "results/reference/amd-epyc-zen5-kvm-2-cores/g2_groups"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """An incomplete run in a folder of a fleet's run."""
    place = tmp_path / "g2" / "pi5-a"
    place.mkdir(parents=True)
    lines = (STORED / run_file.RUN_FILE).read_bytes().splitlines(keepends=True)
    (place / run_file.RUN_FILE).write_bytes(b"".join(lines[: len(lines) // 2]))
    return place


def order(copy: Path, machine: str) -> None:
    (copy.parent / run_file.FLEET_ORDERS).mkdir()
    (copy.parent / run_file.FLEET_ORDERS / f"{machine}.json").write_text("{}")


def test_a_copy_is_not_measured_here(copy: Path) -> None:
    order(copy, "pi5-a")
    before = (copy / run_file.RUN_FILE).read_bytes()
    with pytest.raises(EffbenchError, match=rf"go on with: effbench fleet run --resume {copy.parent}$"):
        runner.resume(copy)
    assert (copy / run_file.RUN_FILE).read_bytes() == before


def test_what_is_printed_of_a_copy_names_the_fleets_command(copy: Path) -> None:
    assert "go on with: effbench run --resume" in schedule.standing(effbench.load(copy).run)
    order(copy, "pi5-a")
    assert schedule.standing(effbench.load(copy).run).endswith(f"go on with: effbench fleet run --resume {copy.parent}")


def test_a_run_beside_the_copies_is_an_ordinary_one(copy: Path) -> None:
    order(copy, "pi5-b")
    assert not run_file.is_fleet_copy(copy)
