"""A hundred machines in one process: every copy is identical, no launch is carried out twice, and a launch costs one
call.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
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
pytest.importorskip("cryptography")
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.fleet import hundred, recorded  # noqa: E402
from benchmarks.fleet.hundred import Conducted, Fleet  # noqa: E402
from effbench.fleet import tasks  # noqa: E402
from effbench.fleet.connection import Connection  # noqa: E402
from effbench.runs import run_file  # noqa: E402

MACHINES, LAUNCHES = 100, 2


@pytest.fixture(scope="module")
def carried_out(tmp_path_factory: pytest.TempPathFactory) -> tuple[Conducted, Fleet, Counter[Any], list[Path]]:
    """What a conductor did with a hundred machines, how often it called which function, and which files were loaded."""
    calls: Counter[Any] = Counter()
    loaded: list[Path] = []
    call, load = Connection.call, run_file.load

    async def counted(self: Connection, function: Any, *arguments: Any, **how: Any) -> Any:
        calls[function] += 1
        return await call(self, function, *arguments, **how)

    def noted(reference: Any) -> Any:
        loaded.append(Path(reference))
        return load(reference)

    async def conduct() -> tuple[Conducted, Fleet]:
        async with AsyncExitStack() as stack:
            folder = tmp_path_factory.mktemp("hundred")
            pieces = recorded.launches(most=LAUNCHES)
            # Without TLS, whose handshakes are half of the time.
            fleet = await hundred.build(stack, folder, MACHINES, pieces, 0.1, is_secure=False)
            return await hundred.conduct(fleet), fleet

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Connection, "call", counted)
        patch.setattr(run_file, "load", noted)
        found, fleet = asyncio.run(conduct())
    return found, fleet, calls, loaded


def test_every_copy_is_complete_and_identical(carried_out: Any):
    found, fleet, _, _ = carried_out
    assert {item.state for item in found.progress.values()} == {"complete"}
    assert {item.launches_done for item in found.progress.values()} == {LAUNCHES}
    assert (found.identical, len(found.progress)) == (MACHINES, MACHINES)
    copy = run_file.load(fleet.folder / "out" / "m042")
    assert copy.complete and {launch.slot for launch in copy.launches} == {0, 1}


def test_no_launch_is_carried_out_twice_and_no_two_at_once(carried_out: Any):
    _, fleet, _, _ = carried_out
    assert {tuple(item.slots) for item in fleet.launches.values()} == {(0, 1)}
    assert {item.most_at_once for item in fleet.launches.values()} == {1}


def test_a_launch_costs_one_call(carried_out: Any):
    *_, calls, _ = carried_out
    assert calls == {tasks.standing: MACHINES, tasks.step: MACHINES * LAUNCHES}


def test_nobody_loads_a_run_to_see_how_far_it_is(carried_out: Any):
    """But for the step itself, which says so at its end."""
    *_, loaded = carried_out
    assert loaded == []
