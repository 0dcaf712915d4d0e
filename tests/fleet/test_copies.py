"""The copy of a machine's run grows with each launch. It is compared again wherever the machine may have changed."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

if not (ROOT / "benchmarks" / "fleet").exists():  # as in an installed copy of the tests
    pytest.skip("benchmarks/ is not here", allow_module_level=True)
if sys.platform == "win32":
    pytest.skip("machines of a fleet are for Linux and macOS", allow_module_level=True)
pytest.importorskip("distributed")
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.fleet import hundred, recorded  # noqa: E402
from benchmarks.fleet.hundred import Conducted  # noqa: E402
from effbench.fleet.conductor import Timing  # noqa: E402
from effbench.fleet.connection import Connection  # noqa: E402

Launch = Callable[[Any], Mapping[str, Any]]

PIECES = recorded.launches(most=3)


def conduct(
    folder: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[int, Launch, Path], Launch]
) -> tuple[Conducted, str]:
    """Conduct three launches of one machine. Returns how they ended, and the names of the calls in between.

    `change` gets the number of a launch, what carries it out, and the machine's file. It returns what is called.
    """
    calls: list[str] = []
    call = Connection.call

    async def noted(self: Connection, function: Any, *arguments: Any, **how: Any) -> Any:
        calls.append(function.__name__)
        return await call(self, function, *arguments, **how)

    monkeypatch.setattr(Connection, "call", noted)

    async def go() -> Conducted:
        async with AsyncExitStack() as stack:
            fleet = await hundred.build(stack, folder, 1, PIECES, 0.0, is_secure=False)
            path, launch = folder / "m000" / "runs" / hundred.RUN / "run.jsonl", fleet.launches["m000"].launch
            number = 0

            def carry_out(order: Any) -> Mapping[str, Any]:
                nonlocal number
                number += 1
                return change(number, launch, path)(order)

            machine: Any = fleet.workers[0].plugins["effbench-machine"]
            machine.launch = carry_out
            return await hundred.conduct(fleet, Timing(busy_s=0.0, look_s=0.05))

    return asyncio.run(go()), " ".join(calls)


def test_launches_that_end_well_are_asked_for_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found, calls = conduct(tmp_path, monkeypatch, lambda number, launch, path: launch)
    assert found.progress["m000"].state == "complete" and found.identical == 1
    assert calls == "standing step step step"


@pytest.mark.parametrize("state", ["busy", "unfit", "died"])
def test_a_machine_is_asked_again_after_anything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str):
    def change(number: int, launch: Launch, path: Path) -> Launch:
        return (lambda order: {"state": state, "why": "so"}) if number == 2 else launch

    found, calls = conduct(tmp_path, monkeypatch, change)
    assert found.progress["m000"].state == "complete" and found.identical == 1
    assert calls == "standing step step standing step step"


def test_a_machine_is_asked_again_after_the_wait_for_a_planned_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def change(number: int, launch: Launch, path: Path) -> Launch:
        return (lambda order: {**launch(order), "wait_s": 0.01}) if number == 1 else launch

    found, calls = conduct(tmp_path, monkeypatch, change)
    assert found.progress["m000"].state == "complete" and found.identical == 1
    assert calls == "standing step standing step step"


def test_what_a_launch_that_died_wrote_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def change(number: int, launch: Launch, path: Path) -> Launch:
        def die(order: Any) -> Mapping[str, Any]:
            launch(order)
            return {"state": "died", "why": "so"}

        return die if number == 1 else launch

    found, calls = conduct(tmp_path, monkeypatch, change)
    assert found.progress["m000"].state == "complete" and found.identical == 1
    assert calls == "standing step standing pull step step"


def test_a_step_that_cannot_tell_how_far_it_is_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def change(number: int, launch: Launch, path: Path) -> Launch:
        return (lambda order: {"state": launch(order)["state"], "why": ""}) if number == 2 else launch

    found, calls = conduct(tmp_path, monkeypatch, change)
    assert found.progress["m000"].state == "complete" and found.identical == 1
    assert calls == "standing step step standing pull step"


def test_a_run_that_was_begun_anew_meanwhile_is_not_mixed_with_its_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def change(number: int, launch: Launch, path: Path) -> Launch:
        def begin_anew(order: Any) -> Mapping[str, Any]:
            path.write_bytes(PIECES[0].replace(b'"seed":0', b'"seed":1', 1) + PIECES[1])
            return {
                **{"state": "more", "why": "", "size": path.stat().st_size, "complete": False, "wait_s": 0.0},
                **{"launches_done": 1, "launches": 3},
            }

        return begin_anew if number == 2 else launch

    found, _ = conduct(tmp_path, monkeypatch, change)
    assert found.progress["m000"].state == "failed"
    assert "differs from" in found.progress["m000"].why
    assert (tmp_path / "out" / "m000" / "run.jsonl").read_bytes() == PIECES[0]
