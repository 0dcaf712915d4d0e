"""What the commands of a fleet print, from a fleet that runs."""

# ruff: noqa: E402 - what these import may be missing

from __future__ import annotations

import glob
import json
from pathlib import Path

import pytest

for needed in ("distributed", "cryptography", "onnxruntime"):
    pytest.importorskip(needed)

import schemas
from fleets import LABELS, NAMES, Fleet, Process, until


def printed(client: Process, code: int = 0) -> str:
    assert client.wait(30) == code, client.err
    assert "Traceback" not in client.err
    return client.out


@pytest.fixture(scope="module")
def measured(fleet: Fleet, bundle: Path) -> Path:
    out = fleet.order(bundle)
    document = json.loads(printed(fleet.resume(out, "--json")))
    schemas.validate(document, "fleet_run")
    assert [item["machine"] for item in document["machines"]] == sorted(NAMES)
    assert all(item["state"] == "complete" and item["launches_done"] == 2 for item in document["machines"])
    return out


def test_status_names_every_machine_with_what_it_is(fleet: Fleet, measured: Path) -> None:
    document = json.loads(
        printed(fleet.client("status", "--scheduler", fleet.address, "--certs", certs(fleet), "--json"))
    )
    schemas.validate(document, "fleet_status")
    seen = {item["machine"]: item for item in document["machines"]}
    assert set(NAMES) <= set(seen)
    for name in NAMES:
        assert seen[name]["present"] and not seen[name]["unfit"]
        assert sorted(f"{key}={value}" for key, value in seen[name]["labels"].items()) == sorted(LABELS[name])
        assert seen[name]["last_launch_s"] is not None
    table = printed(fleet.client("status", "--scheduler", fleet.address, "--certs", certs(fleet)))
    assert "| pi5-a | board=pi5 | idle |" in table


def certs(fleet: Fleet) -> Path:
    return fleet.certs / "alice"


def test_pull_and_watch_find_the_scheduler_of_the_run(fleet: Fleet, measured: Path) -> None:
    """The folder of a run knows where it was ordered, so neither is typed again."""
    document = json.loads(printed(fleet.client("pull", measured, "--json")))
    schemas.validate(document, "fleet_run")
    assert {item["state"] for item in document["machines"]} == {"complete"}
    watching = fleet.client("watch", measured)
    printed(watching)
    assert "pi5-a: 2 of 2 launches, complete" in watching.err


def test_pull_brings_back_a_copy_that_was_lost(fleet: Fleet, measured: Path) -> None:
    copy = measured / "gpu-1" / "run.jsonl"
    whole = copy.read_bytes()
    copy.unlink()
    printed(fleet.client("pull", measured))
    assert copy.read_bytes() == whole


def test_a_complete_run_needs_no_scheduler(fleet: Fleet, measured: Path) -> None:
    client = fleet.resume(measured, "--scheduler", "tls://127.0.0.1:1")
    assert "next    effbench report" in printed(client)


def test_a_study_is_ordered_and_conducted_by_one_command(fleet: Fleet) -> None:
    """The first command of the README, on the fake device: a study by name, chosen by a label."""
    out = fleet.out()
    words = ("run", "g2_groups", "--on", "board=pi5", "--device", "fake", "--quick", "--launches", 1)
    place = ("--scheduler", fleet.address, "--certs", certs(fleet), "--out", out)
    client = fleet.client(*words, *place)
    assert "| pi5-b | complete | 1 of 1 |" in printed(client)
    assert sorted(glob.glob(f"{out}/*")) == [f"{out}/pi5-a", f"{out}/pi5-b"], "as the shell sees it"
    until(lambda: fleet.is_mirrored(out, "pi5-a") and fleet.is_mirrored(out, "pi5-b"), "both are copied")
