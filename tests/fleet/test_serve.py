"""A scheduler or a worker that cannot start says why in one line."""

# ruff: noqa: E402 - what these import may be missing

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest

for needed in ("distributed", "cryptography"):
    pytest.importorskip(needed)

from fleets import HOST, Fleet, until


@pytest.fixture
def refused(fleet: Fleet) -> Callable[..., str]:
    """Run a command that must refuse, and return what it says."""

    def run(*words: object) -> str:
        made = fleet.forks.start("client", "fleet", *words, cwd=fleet.home)
        assert made.wait(30) == 2 and made.out == "" and made.err.count("\n") == 1, made.err
        return made.err

    return run


def test_a_port_that_is_taken(fleet: Fleet, refused: Callable[..., str]) -> None:
    said = refused("scheduler", "--host", HOST, "--port", fleet.port, "--certs", fleet.certs / "hub")
    assert (
        said == f"effbench: cannot listen at {fleet.address}: Address already in use; choose another --host or --port\n"
    )


def test_a_host_that_is_not_this_machine(fleet: Fleet, refused: Callable[..., str]) -> None:
    said = refused("scheduler", "--host", "203.0.113.7", "--certs", fleet.certs / "hub")
    assert "cannot listen at tls://203.0.113.7:8786: Cannot assign requested address" in said


def test_a_folder_that_cannot_be_written(fleet: Fleet, refused: Callable[..., str]) -> None:
    (fleet.home / "no-folder").touch()
    words = ("worker", fleet.address, "--name", "other", "--certs", fleet.certs / "other")
    said = refused(*words, "--folder", fleet.home / "no-folder")
    assert said == f"effbench: cannot write to {fleet.home}/no-folder: Not a directory; choose another --folder\n"


def test_a_port_that_no_worker_can_have(fleet: Fleet, refused: Callable[..., str]) -> None:
    words = ("worker", fleet.address, "--name", "other", "--certs", fleet.certs / "other")
    assert "--port 99999: expected 1 to 65535" in refused(*words, "--port", 99999)


@pytest.mark.parametrize(
    ("name", "port", "why"),
    [
        ("pi5-a", None, "the scheduler has a machine named pi5-a already"),
        ("other", "scheduler", "Address already in use; trying again"),
    ],
)
def test_a_worker_that_has_to_wait_says_why(fleet: Fleet, name: str, port: str | None, why: str) -> None:
    more = () if port is None else ("--port", fleet.port)
    certs = ("--certs", fleet.certs / "other", "--folder", fleet.home / "waits", "--lock", fleet.home / "waits.lock")
    made = fleet.forks.start("worker", "fleet", "worker", fleet.address, "--name", name, *certs, *more, cwd=fleet.home)
    try:
        until(lambda: made.err.count("\n"), "it says something")
        assert why in made.err and made.err.count("\n") == 1
    finally:
        made.kill()
        made.wait(10)
        shutil.rmtree(fleet.home / "waits", ignore_errors=True)
