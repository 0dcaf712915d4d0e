"""The step by hand, as `effbench fleet step < order.json`: its input is a file, and its order may be anything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

if sys.platform == "win32":
    pytest.skip("machines of a fleet are for Linux and macOS", allow_module_level=True)


def step(home: Path, **order: Any) -> tuple[int, dict[str, Any]]:
    """Carry out an order from a file. Returns the exit code and the last line."""
    path = home / "order.json"
    path.write_text(json.dumps({"run": "r", "machine": "m", "study": "g2_groups", **order}) + "\n")
    with path.open() as source:
        done = subprocess.run(
            [sys.executable, "-m", "effbench.fleet.step"], stdin=source, capture_output=True, text=True, timeout=100
        )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


def test_an_order_in_a_file_is_carried_out(tmp_path: Path) -> None:
    options = {"device": "fake", "launches": 2, "quick": True}
    places = {"folder": str(tmp_path / "fleet"), "lock": str(tmp_path / "lock")}
    code, end = step(tmp_path, arguments={"scale": "x1"}, options=options, **places)
    assert (code, end["state"], end["launches_done"]) == (5, "more", 1), end


@pytest.mark.parametrize("wrong", [{"folder": 5}, {"folder": "a\0b"}, {"lock": ["x"]}])
def test_a_place_that_is_no_path(tmp_path: Path, wrong: dict[str, Any]) -> None:
    code, end = step(tmp_path, **wrong)
    assert (code, end["state"]) == (2, "error") and end["why"].endswith("expected a path"), end
